//! The gradient of a drawn glyph, sketched as the training samples' were: a query.

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::data::{Conditions, SIDE, Sample};
use crate::diffusion::{Purpose, noise, noised, stratified_levels, stream};
use crate::governed::Governed;
use crate::sampling::Wish;

/// Noise levels and draws of noise the loss is averaged over; the same for every query, so that
/// queries differ by their glyph alone.
const DRAWS: usize = 32;

/// Sketch `[B, K]` of the gradient of the mean loss on an image.
pub fn query(model: &Governed, image: &[f32], wish: Wish) -> Result<Vec<f32>> {
    let mut rng = stream(0, Purpose::Probe, 0);
    let levels = stratified_levels(&mut rng, DRAWS);
    let noise = noise(&mut rng, DRAWS);
    let sample = Sample::glyph(wish.typeface, wish.character);
    let conditions = Conditions::of(&[sample; DRAWS]);
    let x = noised(&image.repeat(DRAWS), &noise, &levels, &Device::Cpu)?;
    let target = Tensor::from_vec(noise, (DRAWS, 1, SIDE, SIDE), &Device::Cpu)?;
    let recorder = model.recorder();
    let switches = model.policy().evaluation_switches(&[wish.typeface as u32; DRAWS])?;
    recorder.set_switches(Some(switches))?;
    recorder.begin_probe(DRAWS, DRAWS as f32)?;
    let guess = model.unet().forward(&x, &levels, &conditions)?;
    recorder.backward(&(guess - target)?.sqr()?.mean_all()?)?;
    let record = recorder.finish_probe()?;
    let length = record.sketch.len() / DRAWS;
    let mut mean = vec![0.0; length];
    for sketch in record.sketch.chunks_exact(length) {
        mean.iter_mut().zip(sketch).for_each(|(sum, value)| *sum += value / DRAWS as f32);
    }
    Ok(mean)
}
