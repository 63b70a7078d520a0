//! A policy's content hash, by which a ledger knows it again.

use std::fmt;

use super::{Features, Policy};

/// BLAKE3 of a policy's canonical form: the same for every way to write the same policy down.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyHash([u8; 32]);

impl PolicyHash {
    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PolicyHash {
    /// 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PolicyHash({self})")
    }
}

impl Policy {
    /// Content hash. Order of blocks, of regions and of a region's parts counts, since indices
    /// follow from it; order of profiles and of the keys of a table does not, nor how a range
    /// is spelt.
    pub fn hash(&self) -> PolicyHash {
        let mut form = Canonical(blake3::Hasher::new());
        form.text("gradroute policy 1");
        form.list(self.blocks(), |form, block| {
            form.text(&block.name);
            form.text(block.layers.as_str());
        });
        form.list(self.regions(), |form, region| {
            form.text(&region.name);
            form.text(region.owner.as_str());
            form.number(Some(region.switch.public_off()));
            form.list(&region.parts, |form, part| {
                form.text(part.layers.as_str());
                for features in [&part.outputs, &part.inputs] {
                    form.text(&features.as_ref().map_or(String::new(), Features::to_string));
                }
            });
        });
        let mut profiles: Vec<_> = self.profiles().iter().collect();
        profiles.sort_unstable_by_key(|profile| &profile.category);
        form.list(&profiles, |form, profile| {
            form.text(profile.category.as_str());
            form.number(profile.route);
            form.number(profile.flow);
            for weights in [&profile.blocks, &profile.regions] {
                let weights: Vec<_> = weights.iter().collect(); // sorted by name
                form.list(&weights, |form, (name, weights)| {
                    form.text(name);
                    form.number(weights.route);
                    form.number(weights.flow);
                });
            }
        });
        PolicyHash(*form.0.finalize().as_bytes())
    }
}

/// Fields one after the other, each of them length-prefixed or of fixed size, so that no two
/// policies have one form.
struct Canonical(blake3::Hasher);

impl Canonical {
    fn text(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    fn number(&mut self, number: Option<f32>) {
        self.0.update(&[u8::from(number.is_some())]);
        // Adding 0 turns -0 into 0.
        self.0.update(&(number.unwrap_or(0.0) + 0.0).to_le_bytes());
    }

    fn list<T>(&mut self, entries: &[T], each: impl Fn(&mut Self, &T)) {
        self.0.update(&(entries.len() as u64).to_le_bytes());
        entries.iter().for_each(|entry| each(self, entry));
    }
}
