//! The policy as the recorder uses it, or the lack of one.

use std::ops::Range;

use super::batch::Batch;
use crate::problem::Element;
use crate::routing::{CompiledPolicy, LayerRouting, LayerSpec, RegionMap};

/// Blocks, and each layer's routing.
#[derive(Debug)]
pub(super) enum Governance {
    /// No policy: no routing, and each layer a block of its own.
    Open {
        /// Paths of the layers.
        blocks: Vec<String>,
        /// What carries a batch's gates to each layer: one category, which trains everything.
        gated: Vec<LayerRouting>,
    },
    /// As the policy says.
    Policy(Box<CompiledPolicy>),
}

impl Governance {
    pub fn open(specs: &[LayerSpec]) -> Self {
        let whole = |spec: &LayerSpec| RegionMap::whole(spec.outputs, spec.features);
        Self::Open {
            blocks: specs.iter().map(|spec| spec.path.clone()).collect(),
            gated: specs.iter().map(|spec| LayerRouting::open(whole(spec), 1)).collect(),
        }
    }

    pub fn blocks(&self) -> Vec<String> {
        match self {
            Self::Open { blocks, .. } => blocks.clone(),
            Self::Policy(policy) => {
                policy.blocks().iter().map(|block| block.name.clone()).collect()
            }
        }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::Open { blocks, .. } => blocks.len(),
            Self::Policy(policy) => policy.blocks().len(),
        }
    }

    /// Categories of the policy; without one, any id will do.
    pub fn categories(&self) -> Option<usize> {
        self.policy().map(|policy| policy.categories().len())
    }

    pub fn block_of(&self, layer: usize) -> Option<usize> {
        match self {
            Self::Open { .. } => Some(layer),
            Self::Policy(policy) => policy.block_of(layer),
        }
    }

    pub fn routing(&self, layer: usize) -> Option<&LayerRouting> {
        self.policy().map(|policy| &policy.layers()[layer])
    }

    /// What routes a layer's gradient in a step: without a policy, gates alone.
    pub fn routing_of(&self, layer: usize, batch: &Batch) -> Option<&LayerRouting> {
        match self {
            Self::Open { gated, .. } => batch.gates.as_ref().map(|_| &gated[layer]),
            Self::Policy(_) => self.routing(layer),
        }
    }

    /// Route and flow weight of a category in a block, as the record states them.
    pub fn weights(&self, category: u32, block: usize) -> [f32; 2] {
        match self.policy() {
            None => [1.0; 2],
            Some(policy) => {
                [policy.block_route(category, block), policy.block_flow(category, block)]
            }
        }
    }

    /// Features of the activation a layer reads that a region owns.
    pub fn reads_of(&self, layer: usize) -> &[(Range<usize>, usize)] {
        self.policy().map_or(&[], |policy| policy.reads_of(layer))
    }

    fn policy(&self) -> Option<&CompiledPolicy> {
        match self {
            Self::Open { .. } => None,
            Self::Policy(policy) => Some(policy),
        }
    }
}

/// Multiplies by a switch: 0 selects, so that a sample's NaN stays with those who see it.
pub(super) fn scaled<T: Element>(value: T, factor: f32) -> T {
    match factor {
        0.0 => T::from_f32(0.0),
        1.0 => value,
        _ => T::from_f32(value.to_f32() * factor),
    }
}
