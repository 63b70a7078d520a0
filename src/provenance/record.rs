//! What one training step leaves behind.

use crate::error::expect_len;
use crate::{Error, Result};

/// One optimizer step, per sample and block. `N` samples, `B` blocks, sketches of `K` numbers;
/// all tables row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Optimizer step, from 0.
    pub step: u64,
    /// `η_t`.
    pub step_size: f32,
    /// Factor the optimizer applied to the gradient beside `η_t` (clipping, say); 1 if none.
    pub optimizer_scale: f32,
    /// `B`.
    pub blocks: usize,
    /// Stable id of each sample, `[N]`.
    pub samples: Vec<u64>,
    /// Noise level of each sample, `[N]`; NaN where the task has none.
    pub noise_levels: Vec<f32>,
    /// Gate of each sample, `[N]`.
    pub gates: Vec<f32>,
    /// Route weight, `[N, B]`: the mean over the block's parameters, the gate not included.
    pub route: Vec<f32>,
    /// Flow weight, `[N, B]`, of the block's unowned region.
    pub flow: Vec<f32>,
    /// Exact squared norm of the unrouted gradient, `[N, B]`.
    pub sq_norm: Vec<f32>,
    /// Sketch of the **routed** gradient (route and gate applied, `η_t` not), `[N, B, K]`;
    /// the layers of a block add up.
    pub sketch: Vec<f32>,
}

impl StepRecord {
    /// Checks the record for `blocks` blocks and sketches of `sketch_len` numbers: sizes, and
    /// that everything a sum is made of is finite. Squared norms may be NaN or infinite (a
    /// sample that is routed away may hold anything), and so may the sketches of a step whose
    /// factor `step_size · optimizer_scale` is 0, since nothing of it was applied.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the field, and the sample where one is to blame.
    pub fn check(&self, blocks: usize, sketch_len: usize) -> Result<()> {
        let samples = self.samples.len();
        expect_len("noise_levels", samples, self.noise_levels.len())?;
        expect_len("gates", samples, self.gates.len())?;
        if self.blocks != blocks {
            return Err(Error::argument("blocks", blocks.to_string(), self.blocks));
        }
        expect_len("route", samples * blocks, self.route.len())?;
        expect_len("flow", samples * blocks, self.flow.len())?;
        expect_len("sq_norm", samples * blocks, self.sq_norm.len())?;
        expect_len("sketch", samples * blocks * sketch_len, self.sketch.len())?;
        self.finite("step_size", &[self.step_size], 1)?;
        self.finite("optimizer_scale", &[self.optimizer_scale], 1)?;
        self.finite("gates", &self.gates, 1)?;
        self.finite("route", &self.route, blocks)?;
        self.finite("flow", &self.flow, blocks)?;
        if self.factor() != 0.0 {
            self.finite("sketch", &self.sketch, blocks * sketch_len)?;
        }
        Ok(())
    }

    /// What multiplies the step's sketches: `η_t` times the optimizer's own factor.
    pub fn factor(&self) -> f64 {
        f64::from(self.step_size) * f64::from(self.optimizer_scale)
    }

    fn finite(&self, field: &str, values: &[f32], per_sample: usize) -> Result<()> {
        // Without an early exit, so that it is vectorised: sketches are long.
        if values.iter().fold(true, |all, value| all & value.is_finite()) {
            return Ok(());
        }
        let at = values.iter().position(|value| !value.is_finite()).unwrap_or_default();
        let place = match self.samples.get(at / per_sample) {
            Some(id) if values.len() > 1 => format!("{field} of sample {id}"),
            _ => field.to_owned(),
        };
        Err(Error::argument(place, "a finite number", values[at]))
    }
}
