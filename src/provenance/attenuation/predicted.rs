//! What an attenuation would touch, before anything is.

use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::fold::Attenuation;
use crate::provenance::GroupInfluence;
use crate::routing::CategoryPath;
use crate::{Error, Result};

/// A dry run's answer, from weights, policy and ledger alone. It predicts; what the loss does is
/// for [`super::Measured`] to say.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Predicted {
    /// Blocks whose weights would change, from input to output.
    pub blocks: Vec<BlockEffect>,
    /// The regions that are dialled.
    pub regions: Vec<RegionEffect>,
    /// Share of what the regions' owners moved, over all blocks, that lies in blocks that would
    /// change: `√(Σ moved² there / Σ moved²)`, by the sketches. None where the ledger saw
    /// nothing of them.
    pub reached: Option<f64>,
    /// Other categories' shared directions in those blocks, largest first.
    pub overlaps: Vec<Overlap>,
}

/// One block's share of the changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BlockEffect {
    /// Index of the block.
    pub block: usize,
    /// Its name.
    pub name: String,
    /// Numbers that would change.
    pub touched: usize,
    /// `‖ΔW‖ / ‖W‖` over the tensors with a change.
    pub relative_change: f64,
}

/// What a policy says of a dialled region.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RegionEffect {
    /// Its name.
    pub name: String,
    /// Who owns it.
    pub owner: CategoryPath,
    /// Whether its owners trained nothing else: then what they taught the model lies in their
    /// regions.
    pub contained: bool,
    /// Chance with which the region was off for a sample of others in training. At 1 they never
    /// saw it, and its dial cannot reach them at all.
    pub public_off: f32,
}

/// Cosine between what the owners and another category did to a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Overlap {
    /// The other category.
    pub category: u32,
    /// The block.
    pub block: usize,
    /// `⟨Σ A, Σ A'⟩ / (‖Σ A‖ ‖Σ A'‖)`, as [`GroupInfluence::overlap`].
    pub cosine: f64,
}

impl Attenuation<'_> {
    /// Predicts effect and collateral. `groups` are the ledger's, one group per category of the
    /// policy ([`crate::provenance::Accumulator::groups`]); costs a read of the tensors that
    /// would change, and `categories² · B · K` at most.
    ///
    /// # Errors
    /// As [`Attenuation::apply`]; [`Error::Argument`] when `groups` are not the policy's
    /// categories and blocks.
    pub fn dry_run(&self, checkpoint: &[u8], groups: &GroupInfluence) -> Result<Predicted> {
        let checkpoint = Checkpoint::read(checkpoint)?;
        self.check(&checkpoint)?;
        let policy = self.policy();
        let expected = (policy.categories().len(), policy.blocks().len());
        if (groups.groups(), groups.blocks()) != expected {
            let given = format!("{:?}", (groups.groups(), groups.blocks()));
            let expected = format!("groups and blocks {expected:?}");
            return Err(Error::argument("groups", expected, given));
        }
        let blocks = self.blocks(&checkpoint)?;
        let touched: Vec<usize> = blocks.iter().map(|block| block.block).collect();
        let regions = self.regions();
        let owners: Vec<u32> = (policy.categories().ids())
            .filter(|&id| regions.iter().any(|&region| policy.owns(id, region)))
            .collect();
        Ok(Predicted {
            blocks,
            regions: regions.iter().map(|&region| self.region(region)).collect(),
            reached: reached(groups, &owners, &touched),
            overlaps: overlaps(groups, &owners, &touched),
        })
    }

    /// The dialled regions.
    fn regions(&self) -> Vec<usize> {
        let mut regions: Vec<usize> = self.edits().iter().map(|edit| edit.region).collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }

    fn region(&self, region: usize) -> RegionEffect {
        let policy = self.policy();
        let owned = &policy.regions()[region];
        let owners = policy.categories().ids().filter(|&id| policy.owns(id, region));
        let contained = owners.into_iter().all(|id| {
            policy.layers().iter().enumerate().all(|(at, layer)| {
                // Region k + 1 of a layer is the k-th of `regions_of`.
                let others = std::iter::once(None).chain(policy.regions_of(at).map(Some));
                (others.enumerate())
                    .filter(|(_, of)| of.is_none_or(|of| !policy.owns(id, of)))
                    .all(|(k, _)| k == 0 && covers(layer.regions()) || layer.route(id, k) == 0.0)
            })
        });
        RegionEffect {
            name: owned.name.clone(),
            owner: owned.owner.clone(),
            contained,
            public_off: owned.switch.public_off(),
        }
    }

    /// Changes per block.
    fn blocks(&self, checkpoint: &Checkpoint) -> Result<Vec<BlockEffect>> {
        let policy = self.policy();
        // Per block: numbers, ‖ΔW‖², ‖W‖².
        let mut sums = vec![(0, 0.0, 0.0); policy.blocks().len()];
        let mut last = None;
        let mut values = Vec::new();
        let mut edits: Vec<_> = self.edits().iter().collect();
        edits.sort_by_key(|edit| edit.layer);
        for edit in edits {
            let block = policy.block_of(edit.layer).expect("every layer is in a block");
            let (count, changed, all) = &mut sums[block];
            if last != Some(edit.layer) {
                values = checkpoint.values(&self.tensor(edit))?;
                *all += values.iter().map(|value| value * value).sum::<f64>();
                last = Some(edit.layer);
            }
            for (at, value) in self.changed(edit, &values) {
                *count += 1;
                *changed += (value - values[at]).powi(2);
            }
        }
        let named = sums.into_iter().enumerate().filter(|(_, (count, ..))| *count > 0);
        Ok(named
            .map(|(block, (touched, changed, all))| BlockEffect {
                block,
                name: policy.blocks()[block].name.clone(),
                touched,
                relative_change: if all > 0.0 { (changed / all).sqrt() } else { 0.0 },
            })
            .collect())
    }
}

/// Whether nothing is left for region 0.
fn covers(map: &crate::routing::RegionMap) -> bool {
    map.tiles().iter().all(|tile| tile.region != 0)
}

fn reached(groups: &GroupInfluence, owners: &[u32], touched: &[usize]) -> Option<f64> {
    let moved = |block: usize| -> f64 {
        owners.iter().map(|&id| groups.moved(id as usize, block).powi(2)).sum()
    };
    let all: f64 = (0..groups.blocks()).map(moved).sum();
    (all > 0.0).then(|| (touched.iter().map(|&block| moved(block)).sum::<f64>() / all).sqrt())
}

/// The largest overlap of any owner with each other category, per block.
fn overlaps(groups: &GroupInfluence, owners: &[u32], touched: &[usize]) -> Vec<Overlap> {
    let others = (0..groups.groups() as u32).filter(|id| !owners.contains(id));
    let mut overlaps: Vec<Overlap> = others
        .flat_map(|category| touched.iter().map(move |&block| (category, block)))
        .map(|(category, block)| {
            let with = |&owner: &u32| groups.overlap(owner as usize, category as usize, block);
            let cosine = owners.iter().map(with).fold(f64::NEG_INFINITY, f64::max);
            Overlap { category, block, cosine }
        })
        .collect();
    overlaps.sort_by(|a, b| b.cosine.total_cmp(&a.cosine));
    overlaps
}
