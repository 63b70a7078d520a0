//! Near-duplicates by gradients alone: every sample is probed at the same noise levels with the
//! same noise (common random numbers) and told nothing, so that the sketches differ by the
//! pictures. Costs a backward pass per sample and level, where a fingerprint of the content costs
//! none.

use anyhow::Result;
use candle_core::{Device, Tensor};
use gradroute::guard::{Guard, GuardConfig};
use serde::Serialize;

use crate::data::{CHARACTERS, Conditions, Dataset, SIDE, Sample};
use crate::diffusion::{Purpose, noise, noised, stream};
use crate::governed::Governed;

/// Noise levels that are probed.
const LEVELS: [f32; 2] = [0.15, 0.4];
/// Samples probed at a time.
const CHUNK: usize = 32;

/// How alike a sample's gradients are to the most alike other's.
#[derive(Clone, Debug, Serialize)]
pub struct Matched {
    pub sample: u64,
    pub times: usize,
    pub shifted: bool,
    pub nearest: f32,
}

/// Probes all samples.
pub fn compare(model: &Governed, data: &Dataset) -> Result<Vec<Matched>> {
    let mut fingerprints: Vec<Vec<f32>> = vec![Vec::new(); data.samples.len()];
    for (draw, &level) in LEVELS.iter().enumerate() {
        let noise = noise(&mut stream(0, Purpose::Matched, draw as u64), 1);
        for (chunk, all) in data.samples.chunks(CHUNK).zip(fingerprints.chunks_mut(CHUNK)) {
            for (own, all) in probe(model, data, chunk, level, &noise)?.into_iter().zip(all) {
                all.extend(own);
            }
        }
    }
    centre(&mut fingerprints);
    let mut guard = Guard::new(1, GuardConfig::default())?;
    for (sample, fingerprint) in data.samples.iter().zip(&fingerprints) {
        guard.enlist(sample.id, None, Some(fingerprint))?;
    }
    let scores = guard.scores().into_iter().zip(&data.samples);
    let matched = scores.map(|(score, sample)| Matched {
        sample: sample.id,
        times: data.times(sample),
        shifted: sample.shift != (0, 0),
        nearest: score.nearest.unwrap_or(-1.0),
    });
    Ok(matched.collect())
}

/// Sketches `[B, K]` of each sample's gradient, every block of norm 1.
fn probe(
    model: &Governed,
    data: &Dataset,
    samples: &[Sample],
    level: f32,
    noise: &[f32],
) -> Result<Vec<Vec<f32>>> {
    let count = samples.len();
    let (levels, noise) = (vec![level; count], noise.repeat(count));
    let conditions = Conditions {
        characters: vec![CHARACTERS.len() as u32; count],
        styles: vec![data.typefaces.len() as u32; count],
        style_share: None,
    };
    let categories: Vec<u32> = samples.iter().map(|sample| sample.typeface as u32).collect();
    let x = noised(&data.images(samples), &noise, &levels, &Device::Cpu)?;
    let target = Tensor::from_vec(noise, (count, 1, SIDE, SIDE), &Device::Cpu)?;
    let recorder = model.recorder();
    recorder.set_switches(Some(model.policy().evaluation_switches(&categories)?))?;
    recorder.begin_probe(count, count as f32)?;
    let guess = model.unet().forward(&x, &levels, &conditions)?;
    (guess - target)?.sqr()?.mean_all()?.backward()?;
    let record = recorder.finish_probe()?;
    recorder.set_switches(None)?;
    let (each, length) = (record.sketch.len() / count, recorder.sketch_len());
    let unit = |block: &[f32]| {
        let norm = block.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        block.iter().map(move |x| x / norm).collect::<Vec<f32>>()
    };
    let sketches = record.sketch.chunks_exact(each);
    Ok(sketches.map(|it| it.chunks_exact(length).flat_map(unit).collect()).collect())
}

/// Takes off what all samples share.
fn centre(fingerprints: &mut [Vec<f32>]) {
    let mut mean = vec![0.0; fingerprints[0].len()];
    let share = 1.0 / fingerprints.len() as f32;
    for it in &*fingerprints {
        mean.iter_mut().zip(it).for_each(|(sum, x)| *sum += share * x);
    }
    for it in fingerprints {
        it.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
    }
}
