//! The diffusion process: a continuous cosine schedule, its noising step and a DDIM sampler.
//!
//! Noise level `t` in `0..1` mixes an image `x₀` with noise `ε` as `x_t = a x₀ + s ε`,
//! `a = cos(πt/2)`, `s = sin(πt/2)`; the model predicts `ε`.

use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

use crate::data::SIDE;

/// Noise levels the model is trained on; nothing is learned from pure signal or pure noise.
pub const LEVELS: [f32; 2] = [0.02, 0.98];

/// `(a, s)` of a noise level.
pub fn signal_and_noise(t: f32) -> (f32, f32) {
    let (s, a) = (t * std::f32::consts::FRAC_PI_2).sin_cos();
    (a, s)
}

/// A random stream of its own for each purpose, so that every draw follows from the seed and
/// what it is drawn for: the same after a restart, the same in runs that are compared.
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> StdRng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    StdRng::from_seed(key)
}

/// What randomness is drawn for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    Order,
    Step,
    Evaluation,
    Sampling,
    Probe,
}

/// `count` images of standard normal noise.
pub fn noise(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count * SIDE * SIDE).map(|_| rng.sample(StandardNormal)).collect()
}

/// Noise levels spread evenly over the trained range with one random offset, in random order:
/// each batch sees all of the range, which steadies the loss.
pub fn stratified_levels(rng: &mut StdRng, count: usize) -> Vec<f32> {
    let offset: f32 = rng.random();
    let mut levels: Vec<f32> = (0..count)
        .map(|n| LEVELS[0] + (LEVELS[1] - LEVELS[0]) * (n as f32 + offset) / count as f32)
        .collect();
    for n in (1..count).rev() {
        levels.swap(n, rng.random_range(0..=n));
    }
    levels
}

/// `x_t` of every image: `images` and `noise` are `[N, SIDE²]`, the result `[N, 1, SIDE, SIDE]`.
pub fn noised(images: &[f32], noise: &[f32], levels: &[f32], device: &Device) -> Result<Tensor> {
    let area = SIDE * SIDE;
    let mixed: Vec<f32> = (images.chunks_exact(area).zip(noise.chunks_exact(area)))
        .zip(levels)
        .flat_map(|((image, noise), &t)| {
            let (a, s) = signal_and_noise(t);
            image.iter().zip(noise).map(move |(x, e)| a * x + s * e)
        })
        .collect();
    Tensor::from_vec(mixed, (levels.len(), 1, SIDE, SIDE), device)
}

/// Denoises pure noise in `steps` deterministic DDIM steps (Song, Meng & Ermon 2021).
/// `predict(x, t)` gives the guided noise estimate. The images come back in `-1..1`.
pub fn sample(
    start: Tensor,
    steps: usize,
    mut predict: impl FnMut(&Tensor, f32) -> Result<Tensor>,
) -> Result<Vec<f32>> {
    let level = |k: usize| LEVELS[1] + (LEVELS[0] - LEVELS[1]) * k as f32 / steps as f32;
    let mut x = start;
    for k in 0..steps {
        let (a, s) = signal_and_noise(level(k));
        let noise = predict(&x, level(k))?;
        let clean = ((&x - (noise * f64::from(s))?)? / f64::from(a))?.clamp(-1f32, 1f32)?;
        // The noise that is consistent with the clipped image.
        let noise = ((&x - (&clean * f64::from(a))?)? / f64::from(s))?;
        if k + 1 == steps {
            x = clean;
        } else {
            let (a, s) = signal_and_noise(level(k + 1));
            x = ((clean * f64::from(a))? + (noise * f64::from(s))?)?;
        }
    }
    x.flatten_all()?.to_vec1()
}
