//! Region switches: what each sample of a batch sees of each region in the forward pass.

use super::CompiledPolicy;
use crate::error::expect_len;
use crate::projection::philox4x32;
use crate::{Error, Result};

/// A factor per region and sample, 1 on, 0 off: multiplies the region's features right before
/// the layers that read them ([`CompiledPolicy::reads_of`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Switches {
    regions: usize,
    samples: usize,
    /// `[regions, samples]`.
    values: Vec<f32>,
}

impl Switches {
    /// The same value for every region and sample.
    pub fn uniform(regions: usize, samples: usize, value: f32) -> Self {
        Self { regions, samples, values: vec![value; regions * samples] }
    }

    /// The factor of sample `n`.
    ///
    /// # Panics
    /// When there is no such region or sample.
    pub fn value(&self, region: usize, n: usize) -> f32 {
        self.region(region)[n]
    }

    /// The factors of a region, `[N]`.
    ///
    /// # Panics
    /// When there is no such region.
    pub fn region(&self, region: usize) -> &[f32] {
        &self.values[region * self.samples..][..self.samples]
    }

    /// Owned regions of the policy.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// Samples of the batch, `N`.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Turns a region's dial: multiplies its factors by `alpha`, so that 1 leaves it as it is,
    /// 0 takes it away, and samples that do not see it still do not.
    ///
    /// # Panics
    /// When there is no such region.
    pub fn with_dial(mut self, region: usize, alpha: f32) -> Self {
        let samples = self.samples;
        self.values[region * samples..][..samples].iter_mut().for_each(|value| *value *= alpha);
        self
    }
}

/// Second word of the Philox key, so that switches share no bits with sketches of few layers.
const STREAM: u32 = 0x5357_4954;

impl CompiledPolicy {
    /// Draws a training step's switches by each region's [`super::SwitchRule`]. `samples` are
    /// the stable ids, `categories` the category ids, `[N]` both.
    ///
    /// The draw of a sample depends on nothing but seed, step, its id and the region, so that a
    /// resumed run repeats it: region `r` is off where the first word of Philox4x32-10, key
    /// `(seed, 0x53574954 + high half of step)`, counter `(low half of step, low half of id,
    /// high half of id, r)`, is below `p · 2³²`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming `categories` when its length differs from `samples`' or an
    /// entry is no category.
    pub fn switches(
        &self,
        seed: u32,
        step: u64,
        samples: &[u64],
        categories: &[u32],
    ) -> Result<Switches> {
        expect_len("categories", samples.len(), categories.len())?;
        let key = [seed, STREAM.wrapping_add((step >> 32) as u32)];
        self.switches_by(categories, |region, n| {
            let off = f64::from(self.regions()[region].switch.public_off());
            let (id, r) = (samples[n], region as u32);
            let word = philox4x32([step as u32, id as u32, (id >> 32) as u32, r], key)[0];
            f64::from(word) >= off * 2f64.powi(32)
        })
    }

    /// What samples of these categories see at evaluation, without chance: everything, but for
    /// regions with the strict switch, which only their owners see. To be followed by
    /// [`Switches::with_dial`].
    ///
    /// # Errors
    /// As [`CompiledPolicy::switches`].
    pub fn evaluation_switches(&self, categories: &[u32]) -> Result<Switches> {
        self.switches_by(categories, |region, _| self.regions()[region].switch.public_off() < 1.0)
    }

    /// On for owners, and for others where `public` of region and sample says so.
    fn switches_by(
        &self,
        categories: &[u32],
        public: impl Fn(usize, usize) -> bool,
    ) -> Result<Switches> {
        let known = self.categories().len();
        if let Some(n) = categories.iter().position(|&id| id as usize >= known) {
            let expected = format!("an id below {known}");
            return Err(Error::argument(format!("categories[{n}]"), expected, categories[n]));
        }
        let mut values = Vec::with_capacity(self.regions().len() * categories.len());
        for region in 0..self.regions().len() {
            let on = |(n, &id): (usize, &u32)| self.owns(id, region) || public(region, n);
            values.extend(categories.iter().enumerate().map(|entry| f32::from(on(entry))));
        }
        Ok(Switches { regions: self.regions().len(), samples: categories.len(), values })
    }
}
