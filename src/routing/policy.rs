//! The policy: blocks, owned regions and depth profiles, as written by its author.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{CategoryPath, Features, LayerGlob};
use crate::{Error, Result};

/// A named group of layers, the unit of depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Its name, once in a policy.
    pub name: String,
    /// Its layers.
    pub layers: LayerGlob,
}

impl Block {
    /// # Errors
    /// [`Error::Argument`] for a broken glob.
    pub fn new(name: impl Into<String>, layers: &str) -> Result<Self> {
        Ok(Self { name: name.into(), layers: layers.parse()? })
    }
}

/// Features that belong to a subtree of categories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnedRegion {
    /// Its name, once in a policy.
    pub name: String,
    /// The subtree whose categories train it; all others are public to it.
    pub owner: CategoryPath,
    /// Where it is.
    pub parts: Vec<RegionPart>,
    /// What a sample sees of it in the forward pass while training.
    #[serde(default, skip_serializing_if = "SwitchRule::is_on")]
    pub switch: SwitchRule,
}

impl OwnedRegion {
    /// A region without parts yet, never switched off.
    ///
    /// # Errors
    /// [`Error::Argument`] when `owner` is no category path.
    pub fn new(name: impl Into<String>, owner: &str) -> Result<Self> {
        let owner = owner.parse()?;
        Ok(Self { name: name.into(), owner, parts: Vec::new(), switch: SwitchRule::On })
    }

    /// Adds output features of some layers, which are carried to the layers that read them.
    ///
    /// # Errors
    /// [`Error::Argument`] for a broken glob or range.
    pub fn outputs(self, layers: &str, features: &str) -> Result<Self> {
        self.part(layers, Some(features), None)
    }

    /// Adds input features of some layers; of an embedding, rows of its table.
    ///
    /// # Errors
    /// As [`OwnedRegion::outputs`].
    pub fn inputs(self, layers: &str, features: &str) -> Result<Self> {
        self.part(layers, None, Some(features))
    }

    /// Sets the switch rule.
    pub fn switch(mut self, rule: SwitchRule) -> Self {
        self.switch = rule;
        self
    }

    fn part(mut self, layers: &str, outputs: Option<&str>, inputs: Option<&str>) -> Result<Self> {
        let parse = |text: Option<&str>| text.map(str::parse).transpose();
        let (outputs, inputs) = (parse(outputs)?, parse(inputs)?);
        self.parts.push(RegionPart { layers: layers.parse()?, outputs, inputs });
        Ok(self)
    }
}

/// A range of features of some layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPart {
    /// The layers.
    pub layers: LayerGlob,
    /// Output features; all when absent. Given without `inputs`, they are carried to the layers
    /// that read them; with `inputs`, even all of them, the part ends with its own layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Features>,
    /// Input features, or rows of an embedding's table; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Features>,
}

/// When a region is on in the forward pass of a training step. Owners always see it on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchRule {
    /// On for everybody.
    #[default]
    On,
    /// Off for everybody but its owners.
    Strict,
    /// Off for a public sample with this probability, drawn per sample and step.
    PublicOff(f32),
}

impl SwitchRule {
    /// Probability that a public sample sees the region off.
    pub fn public_off(&self) -> f32 {
        match *self {
            Self::On => 0.0,
            Self::Strict => 1.0,
            Self::PublicOff(probability) => probability,
        }
    }

    fn is_on(&self) -> bool {
        *self == Self::On
    }
}

/// Route and flow weight; what is absent is inherited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Multiplies the samples' contribution to parameter gradients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<f32>,
    /// Multiplies the samples' gradient flowing on to earlier layers; a region's, where it flows
    /// back through the region's input features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<f32>,
}

impl Weights {
    /// A route weight.
    pub fn route(weight: f32) -> Self {
        Self { route: Some(weight), flow: None }
    }

    /// A flow weight.
    pub fn flow(weight: f32) -> Self {
        Self { route: None, flow: Some(weight) }
    }

    /// Both.
    pub fn both(route: f32, flow: f32) -> Self {
        Self { route: Some(route), flow: Some(flow) }
    }
}

/// How deep a subtree of categories may reach: its weights per block and region.
///
/// Any finite weights, fractions and negative ones too. What a profile does not mention it
/// takes from the profile of the nearest enclosing category; where there is none: route and flow
/// weight 1 in a block; in a region, route weight 1 for its owners and 0 for everybody else, and
/// the flow weight of the block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthProfile {
    /// The subtree, `/` for all categories; once in a policy.
    pub category: CategoryPath,
    /// Route weight of every block not named in `blocks`. Regions are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<f32>,
    /// Flow weight of every block not named in `blocks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<f32>,
    /// Weights per block.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, Weights>,
    /// Weights per owned region.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub regions: BTreeMap<String, Weights>,
}

impl DepthProfile {
    /// A profile that mentions nothing: plain training.
    ///
    /// # Errors
    /// [`Error::Argument`] when `category` is no category path.
    pub fn new(category: &str) -> Result<Self> {
        let (blocks, regions) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { category: category.parse()?, route: None, flow: None, blocks, regions })
    }

    /// Weights of all blocks that are not set one by one.
    pub fn all_blocks(mut self, weights: Weights) -> Self {
        (self.route, self.flow) = (weights.route, weights.flow);
        self
    }

    /// Weights of one block.
    pub fn block(mut self, name: impl Into<String>, weights: Weights) -> Self {
        self.blocks.insert(name.into(), weights);
        self
    }

    /// Weights of one region.
    pub fn region(mut self, name: impl Into<String>, weights: Weights) -> Self {
        self.regions.insert(name.into(), weights);
        self
    }
}

/// A checked policy; see [`Policy::from_toml`] for its file form and [`Policy::compile`] for
/// what becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    blocks: Vec<Block>,
    regions: Vec<OwnedRegion>,
    profiles: Vec<DepthProfile>,
}

impl Policy {
    /// `blocks` in forward order.
    ///
    /// # Errors
    /// [`Error::Policy`] naming the place: a name that is empty or there twice, a region without
    /// parts or with one that names no features, a profile that speaks of an unknown block or region, a number that is not finite,
    /// a probability outside 0 to 1.
    pub fn new(
        blocks: Vec<Block>,
        regions: Vec<OwnedRegion>,
        profiles: Vec<DepthProfile>,
    ) -> Result<Self> {
        let policy = Self { blocks, regions, profiles };
        policy.check()?;
        Ok(policy)
    }

    /// The blocks, in forward order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The owned regions.
    pub fn regions(&self) -> &[OwnedRegion] {
        &self.regions
    }

    /// The depth profiles.
    pub fn profiles(&self) -> &[DepthProfile] {
        &self.profiles
    }

    fn check(&self) -> Result<()> {
        if self.blocks.is_empty() {
            return Err(error("blocks", "there is none"));
        }
        unique("block", self.blocks.iter().map(|block| block.name.as_str()))?;
        unique("region", self.regions.iter().map(|region| region.name.as_str()))?;
        unique("profile", self.profiles.iter().map(|profile| profile.category.as_str()))?;
        for region in &self.regions {
            let place = format!("region {:?}", region.name);
            if region.parts.is_empty() {
                return Err(error(place, "it has no parts"));
            }
            let features = region.parts.iter().flat_map(|part| [&part.outputs, &part.inputs]);
            if features.flatten().any(|features| *features == Features::Ranges(Vec::new())) {
                return Err(error(place, "a part names no features; leave them out to mean all"));
            }
            let off = region.switch.public_off();
            if !(0.0..=1.0).contains(&off) {
                let problem = format!("switch probability {off} is not between 0 and 1");
                return Err(error(place, problem));
            }
        }
        self.profiles.iter().try_for_each(|profile| self.check_profile(profile))
    }

    fn check_profile(&self, profile: &DepthProfile) -> Result<()> {
        let place = format!("profile {:?}", profile.category.as_str());
        finite(&place, Weights { route: profile.route, flow: profile.flow })?;
        for (name, weights) in &profile.blocks {
            if !self.blocks.iter().any(|block| block.name == *name) {
                return Err(error(place, format!("there is no block {name:?}")));
            }
            finite(&format!("{place}, block {name:?}"), *weights)?;
        }
        for (name, weights) in &profile.regions {
            if !self.regions.iter().any(|region| region.name == *name) {
                return Err(error(place, format!("there is no region {name:?}")));
            }
            finite(&format!("{place}, region {name:?}"), *weights)?;
        }
        Ok(())
    }
}

/// An [`Error::Policy`].
pub(super) fn error(place: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Policy { place: place.into(), problem: problem.into() }
}

fn unique<'a>(kind: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            return Err(error(kind, "a name is empty"));
        }
        if !seen.insert(name) {
            return Err(error(format!("{kind} {name:?}"), "it is there twice"));
        }
    }
    Ok(())
}

fn finite(place: &str, weights: Weights) -> Result<()> {
    for (name, weight) in [("route", weights.route), ("flow", weights.flow)] {
        if let Some(weight) = weight.filter(|weight| !weight.is_finite()) {
            return Err(error(place, format!("{name} weight {weight} is not finite")));
        }
    }
    Ok(())
}
