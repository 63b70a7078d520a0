//! The model together with the policy that governs it.

use anyhow::Result;
use candle_core::{DType, Tensor};
use gradroute::candle::{Parameters, Recorder, Scope};
use gradroute::projection::SketchKind;
use gradroute::routing::{CompiledPolicy, Policy, Switches};

use crate::data::{Conditions, Dataset, OWNED};
use crate::model::{Size, UNet};
use crate::options::PolicyChoice;

/// What is kept of each sample's gradient, per block.
pub const SKETCH: SketchKind = SketchKind::Count { buckets: 128 };
/// Seed of the projection.
pub const SKETCH_SEED: u32 = 20;

/// The shipped policies.
const ALL_BLOCKS: &str = include_str!("policies/all_blocks.toml");
const STRICT: &str = include_str!("policies/strict.toml");
const UNROUTED: &str = include_str!("policies/unrouted.toml");

/// Where the dial of the owned regions stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dial {
    /// Owners see their region, others don't.
    AsTrained,
    /// Everybody asked about sees it at this strength.
    At(f32),
}

/// A model under a policy.
pub struct Governed {
    unet: UNet,
    parameters: Parameters,
    recorder: Recorder,
    policy: CompiledPolicy,
}

impl Governed {
    /// A fresh model. Without a region to own (`none`) the policy only names the blocks.
    pub fn new(choice: PolicyChoice, data: &Dataset, seed: u64) -> Result<Self> {
        let text = match choice {
            PolicyChoice::All => ALL_BLOCKS,
            PolicyChoice::Strict => STRICT,
            PolicyChoice::None => UNROUTED,
        };
        let parameters = Parameters::new(DType::F32, seed as u32);
        let recorder = Recorder::new(SKETCH, SKETCH_SEED)?;
        let unet =
            UNet::new(&Scope::new(&parameters, &recorder), &Size::FULL, data.typefaces.len())?;
        // The shipped policies name the group that is tracked unless another is chosen.
        let text = text.replace(OWNED, data.owned_group());
        let policy = Policy::from_toml(&text)?.compile(&recorder.layout()?, &data.categories()?)?;
        recorder.govern(&policy)?;
        Ok(Self { unet, parameters, recorder, policy })
    }

    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub fn policy(&self) -> &CompiledPolicy {
        &self.policy
    }

    /// Whether anybody owns anything.
    pub fn has_region(&self) -> bool {
        !self.policy.regions().is_empty()
    }

    /// Names of the blocks, from input to output.
    pub fn blocks(&self) -> Vec<String> {
        self.policy.blocks().iter().map(|block| block.name.clone()).collect()
    }

    /// Predicts the noise, with every image's switches where the dial says.
    pub fn predict(
        &self,
        x: &Tensor,
        levels: &[f32],
        conditions: &Conditions,
        categories: &[u32],
        dial: Dial,
    ) -> candle_core::Result<Tensor> {
        let switches = match dial {
            Dial::AsTrained => self.policy.evaluation_switches(categories)?,
            Dial::At(at) => Switches::uniform(self.policy.regions().len(), categories.len(), at),
        };
        self.recorder.set_switches(Some(switches))?;
        let guess = self.unet.forward(x, levels, conditions)?;
        self.recorder.set_switches(None)?;
        Ok(guess.detach())
    }
}
