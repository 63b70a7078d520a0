//! What one training step leaves behind.

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
