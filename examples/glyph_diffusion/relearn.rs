//! How soon the tracked group is learned again: what is left of it shows in how little it takes.
//!
//! All weights train on the group's glyphs alone, without a policy, at one step size: from the checkpoint
//! whose dial stands at 0, folded as anybody would be handed it; from weights that never saw the group; and
//! from new ones.

use anyhow::Result;
use gradroute::candle::{AdamW, Batch};
use gradroute::provenance::{Attenuation, Dial, RowFade};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::data::{Conditions, Dataset, Order};
use crate::diffusion::{Purpose, stream};
use crate::evaluate::{owned_loss, sides};
use crate::governed::Governed;
use crate::options::{PolicyChoice, RunOptions};
use crate::train::{Drawn, OPTIMIZER_CONFIG};

const STEP_SIZE: f64 = 1e-3;
/// The loss is measured before, after so many steps, and after each doubling.
const FIRST: u64 = 4;

/// Loss on the group after so many steps of learning it.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// What the learning began with.
    pub from: &'static str,
    pub steps: Vec<u64>,
    pub losses: Vec<f64>,
}

/// The curves that a run can tell of, if they are asked for.
pub fn curves(options: &RunOptions, data: &Dataset, model: &Governed) -> Result<Vec<Curve>> {
    let Some(steps) = options.relearn else {
        return Ok(Vec::new());
    };
    let fresh = || Governed::new(PolicyChoice::None, data, options.seed);
    let learn = |from, start: &Governed| learn(from, start, options, data, steps);
    if model.has_region() {
        return Ok(vec![learn("dial at 0", &attenuated(data, model, fresh()?)?)?]);
    }
    if !options.without_owned {
        return Ok(Vec::new());
    }
    let start = fresh()?;
    start.parameters().assign(&model.parameters().snapshot()?)?;
    Ok(vec![learn("never trained on it", &start)?, learn("new weights", &fresh()?)?])
}

/// The model with the group's dial folded at 0, in a model without regions.
fn attenuated(data: &Dataset, model: &Governed, into: Governed) -> Result<Governed> {
    let category = format!("style/{}", data.owned_group());
    let fade = RowFade { layer: "condition.style".into(), neutral: data.typefaces.len() };
    let attenuation =
        Attenuation::new(model.policy(), &[Dial::new(&category, 0.0)?])?.fade_rows(&fade)?;
    let tensors = model.parameters().snapshot()?;
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
    let faded = attenuation.apply(&safetensors::serialize(named, None)?)?;
    let faded = candle_core::safetensors::load_buffer(&faded, &candle_core::Device::Cpu)?;
    into.parameters().assign(&faded)?;
    Ok(into)
}

fn learn(
    from: &'static str,
    model: &Governed,
    options: &RunOptions,
    data: &Dataset,
    steps: u64,
) -> Result<Curve> {
    let (owned, _) = sides(data);
    let mut order = Order::new(owned, options.seed);
    let mut optimizer = AdamW::new(model.parameters(), model.recorder(), OPTIMIZER_CONFIG)?;
    let mut curve = Curve { from, steps: Vec::new(), losses: Vec::new() };
    let bar = ProgressBar::new(steps);
    bar.set_style(ProgressStyle::with_template("learning again from {msg} {pos}/{len}")?);
    bar.set_message(from);
    for step in 0..=steps {
        if step == 0 || step == steps || step.is_power_of_two() && step >= FIRST {
            curve.steps.push(step);
            curve.losses.push(owned_loss(model, data, options.questions())?);
        }
        if step < steps {
            let samples = order.batch(step, options.batch as usize);
            let drawn = Drawn::new(data, &samples, &mut stream(options.seed, Purpose::Step, step))?;
            let ids = samples.iter().map(|sample| sample.id).collect();
            let categories = samples.iter().map(|sample| sample.typeface as u32).collect();
            model.recorder().begin_step(Batch::new(ids, categories))?;
            let loss = drawn.losses(model, &Conditions::of(&samples))?.mean_all()?;
            let gradients = model.recorder().backward(&loss)?;
            model.recorder().finish_step()?;
            optimizer.step(&gradients, STEP_SIZE)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(curve)
}
