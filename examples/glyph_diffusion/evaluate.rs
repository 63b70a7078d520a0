//! Noise-prediction losses with common random numbers: what attenuation is measured by.
//!
//! Every run is asked about the same glyphs with the same noise at the same levels, whatever its
//! own seed, so that differences between runs are differences between models.
//!
//! At a dial `α` an owned sample's switches stand at `α`, and its style embedding is faded
//! likewise, `α · own + (1 − α) · none`: the row belongs to the region, as do its channels.
//! `row_kept` are the same losses with the row left as it is. The run that never saw the group
//! has no row for it, so it is asked without a style; and with its untrained row, to compare
//! with `row_kept`.

use anyhow::Result;
use candle_core::Device;
use serde::Serialize;

use crate::data::{Conditions, Dataset, SIDE, Sample};
use crate::diffusion::{Purpose, noise, noised, stratified_levels, stream};
use crate::governed::{Dial, Governed};

/// Dials the owned group is measured at.
pub const DIALS: [f32; 5] = [1.0, 0.75, 0.5, 0.25, 0.0];
/// Images predicted at a time.
const CHUNK: usize = 64;

/// Mean squared error of the predicted noise, per pixel.
#[derive(Clone, Debug, Serialize)]
pub struct Losses {
    /// Public typefaces, as they were trained: with the region off where there is one.
    pub public: f64,
    /// Public typefaces with the region on.
    pub public_region_on: f64,
    /// The owned group without a style, as an unrouted model sees it.
    pub owned_no_style: f64,
    /// The owned group at each dial, from 1 down; without a region only 1.
    pub owned: Vec<DialLoss>,
}

/// The owned group's loss at one dial.
#[derive(Clone, Debug, Serialize)]
pub struct DialLoss {
    pub dial: f32,
    /// Region and style embedding faded.
    pub loss: f64,
    /// The region alone faded.
    pub row_kept: f64,
}

/// Glyphs, noise levels and noise to be asked about.
struct Questions {
    samples: Vec<Sample>,
    levels: Vec<f32>,
    noise: Vec<f32>,
}

impl Questions {
    /// `count` questions that go through `samples` evenly.
    fn new(samples: Vec<Sample>, count: usize, index: u64) -> Self {
        let mut rng = stream(0, Purpose::Evaluation, index);
        let levels = stratified_levels(&mut rng, count);
        let noise = noise(&mut rng, count);
        let stride = stride(samples.len());
        let samples = (0..count).map(|k| samples[k * stride % samples.len()]).collect();
        Self { samples, levels, noise }
    }

    fn loss(&self, model: &Governed, data: &Dataset, dial: Dial, style: Style) -> Result<f64> {
        let mut sum = 0.0;
        for first in (0..self.samples.len()).step_by(CHUNK) {
            let range = first..(first + CHUNK).min(self.samples.len());
            let samples = &self.samples[range.clone()];
            let levels = &self.levels[range.clone()];
            let noise = &self.noise[range.start * SIDE * SIDE..range.end * SIDE * SIDE];
            let mut conditions = Conditions::of(samples);
            match style {
                Style::Own => {}
                Style::None => conditions.styles.fill(data.typefaces.len() as u32),
                Style::Faded(share) => conditions.style_share = Some(vec![share; samples.len()]),
            }
            let categories: Vec<u32> = samples.iter().map(|s| s.typeface as u32).collect();
            let x = noised(&data.images(samples), noise, levels, &Device::Cpu)?;
            let guess: Vec<f32> = model
                .predict(&x, levels, &conditions, &categories, dial)?
                .flatten_all()?
                .to_vec1()?;
            sum += guess.iter().zip(noise).map(|(g, e)| f64::from(g - e).powi(2)).sum::<f64>();
        }
        Ok(sum / self.noise.len() as f64)
    }
}

/// A step through `count` samples that spreads a few questions over all, and reaches every one:
/// it has no factor in common with the count.
fn stride(count: usize) -> usize {
    let mut stride = (count as f64 * 0.618) as usize | 1;
    while common_factor(stride, count) > 1 {
        stride += 2;
    }
    stride
}

/// The greatest common factor.
fn common_factor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_factor(b, a % b) }
}

/// What the model is told about style.
#[derive(Clone, Copy)]
enum Style {
    Own,
    None,
    Faded(f32),
}

/// Glyphs of the owned group, and the others, without copies.
pub fn sides(data: &Dataset) -> (Vec<Sample>, Vec<Sample>) {
    let once = data.samples.iter().copied().filter(|sample| !sample.is_copy());
    once.partition(|sample| data.owned(sample))
}

/// Loss on the owned group of a model without regions, told the style.
pub fn owned_loss(model: &Governed, data: &Dataset, count: usize) -> Result<f64> {
    Questions::new(sides(data).0, count, 0).loss(model, data, Dial::AsTrained, Style::Own)
}

/// Measures a trained model on `count` questions about each side.
pub fn losses(model: &Governed, data: &Dataset, count: usize) -> Result<Losses> {
    let (owned, public) = sides(data);
    let owned = Questions::new(owned, count, 0);
    let public = Questions::new(public, count, 1);
    let trained = Dial::AsTrained;
    let dials = if model.has_region() { &DIALS[..] } else { &DIALS[..1] };
    Ok(Losses {
        public: public.loss(model, data, trained, Style::Own)?,
        public_region_on: public.loss(model, data, Dial::At(1.0), Style::Own)?,
        owned_no_style: owned.loss(model, data, trained, Style::None)?,
        owned: (dials.iter())
            .map(|&dial| {
                let at = Dial::At(dial);
                Ok(DialLoss {
                    dial,
                    loss: owned.loss(model, data, at, Style::Faded(dial))?,
                    row_kept: owned.loss(model, data, at, Style::Own)?,
                })
            })
            .collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::stride;

    #[test]
    fn the_questions_reach_every_sample() {
        for count in (1..200).chain([558, 620, 2418, 2480, 2790]) {
            let mut asked: Vec<usize> = (0..count).map(|k| k * stride(count) % count).collect();
            asked.sort_unstable();
            assert!(asked.into_iter().eq(0..count), "{count} samples");
        }
    }

    #[test]
    fn a_stride_that_reaches_all_stays() {
        // Glyphs of script and display, of blackletter, and of all others; published losses
        // depend on which are asked about.
        for (count, kept) in [(496, 307), (2542, 1571), (186, 115), (2852, 1763)] {
            assert_eq!(stride(count), kept);
        }
    }
}
