//! What the caller says about a step before the forward pass.

use crate::error::expect_len;
use crate::routing::Switches;
use crate::{Error, Result};

/// The samples of one step, supplied once before the forward pass. `N` is the first dimension
/// of every activation.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Stable id of each sample, `[N]`.
    pub samples: Vec<u64>,
    /// Category id of each sample, `[N]`, as the policy was compiled with.
    pub categories: Vec<u32>,
    /// Gate of each sample, `[N]`, with a policy or without; none means 1.
    pub gates: Option<Vec<f32>>,
    /// Noise level of each sample, `[N]`; none where the task has none.
    pub noise_levels: Option<Vec<f32>>,
    /// What each sample sees of owned regions; needed where [`super::Recorder::switch`] is.
    pub switches: Option<Switches>,
    /// What brings the loss's gradient back to each sample's own: see
    /// [`crate::ops::Options::sample_scale`].
    pub sample_scale: f32,
    /// Optimizer step, from 0.
    pub step: u64,
    /// `η_t`.
    pub step_size: f32,
}

impl Batch {
    /// A batch whose loss is the **mean** over its samples, so that `sample_scale` is `N`; step
    /// 0, step size 1. Set the fields for everything else.
    ///
    /// ```
    /// use gradroute::candle::Batch;
    /// let batch = Batch { step: 7, step_size: 1e-3, ..Batch::new(vec![11, 12], vec![0, 0]) };
    /// assert_eq!(batch.sample_scale, 2.0);
    /// ```
    pub fn new(samples: Vec<u64>, categories: Vec<u32>) -> Self {
        let sample_scale = samples.len() as f32;
        Self { samples, categories, sample_scale, step_size: 1.0, ..Self::default() }
    }

    /// Checks lengths, ranges and category ids (below `known`, where there is a policy).
    pub(super) fn check(&self, known: Option<usize>) -> Result<()> {
        let samples = self.samples.len();
        expect_len("batch.categories", samples, self.categories.len())?;
        let too_large = |&id: &u32| known.is_some_and(|known| id as usize >= known);
        if let Some(n) = self.categories.iter().position(too_large) {
            let expected = format!("a category id below {}", known.unwrap_or_default());
            let place = format!("batch.categories[{n}]");
            return Err(Error::argument(place, expected, self.categories[n]));
        }
        if let Some(gates) = &self.gates {
            expect_len("batch.gates", samples, gates.len())?;
            if let Some(n) = gates.iter().position(|gate| !gate.is_finite()) {
                return Err(Error::argument(
                    format!("batch.gates[{n}]"),
                    "a finite gate",
                    gates[n],
                ));
            }
        }
        if let Some(levels) = &self.noise_levels {
            expect_len("batch.noise_levels", samples, levels.len())?;
        }
        if let Some(switches) = &self.switches {
            expect_len("batch.switches", samples, switches.samples())?;
        }
        for (name, value) in [("sample_scale", self.sample_scale), ("step_size", self.step_size)] {
            if !value.is_finite() {
                return Err(Error::argument(format!("batch.{name}"), "a finite number", value));
            }
        }
        // With 0 every norm and sketch would be 0 without a word.
        if samples > 0 && self.sample_scale <= 0.0 {
            let expected = "above 0: N for a mean loss, 1 for a summed one";
            return Err(Error::argument("batch.sample_scale", expected, self.sample_scale));
        }
        Ok(())
    }
}
