//! The example's U-Net on its glyphs, noised once and for all.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use gradroute::candle::Scope;

use crate::data::{Conditions, Dataset, Order, Plant, SIDE};
use crate::diffusion::{Purpose, noise, noised, stratified_levels, stream};
use crate::model::{Size, UNet};

/// Batches prepared: as many as steps can be trained.
const BATCHES: usize = 20;
const SEED: u64 = 1;

/// The model and its batches.
pub struct Glyph {
    unet: UNet,
    batches: Vec<Prepared>,
}

struct Prepared {
    x: Tensor,
    target: Tensor,
    levels: Vec<f32>,
    conditions: Conditions,
}

impl Glyph {
    pub fn new(scope: &Scope, samples: usize) -> Result<Self> {
        let data = Dataset::load(Plant::None)?;
        let mut order = Order::new(data.samples.clone(), SEED);
        let prepare = |step| -> Result<Prepared> {
            let samples = order.batch(step as u64, samples);
            let mut rng = stream(SEED, Purpose::Step, step as u64);
            let levels = stratified_levels(&mut rng, samples.len());
            let noise = noise(&mut rng, samples.len());
            let x = noised(&data.images(&samples), &noise, &levels, &Device::Cpu)?;
            let target = Tensor::from_vec(noise, (samples.len(), 1, SIDE, SIDE), &Device::Cpu)?;
            Ok(Prepared { x, target, levels, conditions: Conditions::of(&samples) })
        };
        Ok(Self {
            unet: UNet::new(scope, &Size::FULL, data.typefaces.len())?,
            batches: (0..BATCHES).map(prepare).collect::<Result<_>>()?,
        })
    }

    pub fn loss(&self, step: usize) -> Result<Tensor> {
        ensure!(step < BATCHES, "at most {BATCHES} steps, of which each has a batch");
        let batch = &self.batches[step];
        let guess = self.unet.forward(&batch.x, &batch.levels, &batch.conditions)?;
        Ok((guess - &batch.target)?.sqr()?.mean_all()?)
    }

    /// `x.0`, `target.0`, `levels.0`, `characters.0`, `styles.0`, then those of batch 1 and so on.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for (at, batch) in self.batches.iter().enumerate() {
            let (characters, styles) = batch.conditions.tensors(&Device::Cpu)?;
            let levels = Tensor::new(&batch.levels[..], &Device::Cpu)?;
            let named = [
                ("x", batch.x.clone()),
                ("target", batch.target.clone()),
                ("levels", levels),
                ("characters", characters),
                ("styles", styles),
            ];
            all.extend(named.map(|(name, tensor)| (format!("{name}.{at}"), tensor)));
        }
        Ok(all)
    }
}
