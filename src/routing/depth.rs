//! Depth profiles resolved: the weights of one label in every block and region.

use std::collections::{HashMap, HashSet};

use super::policy::{DepthProfile, OwnedRegion, Policy, error};
use super::{Categories, CategoryPath};
use crate::Result;

/// Weights of one label, or of a set of labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Depth {
    /// Route and flow weight of each block.
    pub(super) blocks: Vec<[f32; 2]>,
    /// Route weight of each region, and its flow weight where it is not the block's.
    pub(super) regions: Vec<(f32, Option<f32>)>,
}

impl Depth {
    /// Route and flow weight in a block, or in a region where it lies in that block.
    pub(super) fn weights(&self, block: usize, region: Option<usize>) -> [f32; 2] {
        let [route, flow] = self.blocks[block];
        match region {
            None => [route, flow],
            Some(r) => [self.regions[r].0, self.regions[r].1.unwrap_or(flow)],
        }
    }

    fn new(policy: &Policy, label: &CategoryPath) -> Self {
        let default =
            |region: &OwnedRegion| (if label.within(&region.owner) { 1.0 } else { 0.0 }, None);
        Self {
            blocks: vec![[1.0; 2]; policy.blocks().len()],
            regions: policy.regions().iter().map(default).collect(),
        }
    }

    fn apply(&mut self, policy: &Policy, profile: &DepthProfile) {
        for (block, [route, flow]) in policy.blocks().iter().zip(&mut self.blocks) {
            let own = profile.blocks.get(&block.name).copied().unwrap_or_default();
            *route = own.route.or(profile.route).unwrap_or(*route);
            *flow = own.flow.or(profile.flow).unwrap_or(*flow);
        }
        for (region, (route, flow)) in policy.regions().iter().zip(&mut self.regions) {
            let own = profile.regions.get(&region.name).copied().unwrap_or_default();
            *route = own.route.unwrap_or(*route);
            *flow = own.flow.or(*flow);
        }
    }
}

/// The weight that decides where labels disagree: the one of smallest magnitude, and of two
/// opposite ones the lower.
pub(crate) fn decide(a: f32, b: f32) -> f32 {
    match a.abs().total_cmp(&b.abs()) {
        std::cmp::Ordering::Less => a,
        std::cmp::Ordering::Greater => b,
        std::cmp::Ordering::Equal => a.min(b),
    }
}

/// The depths of every category's labels.
pub(super) fn resolve(policy: &Policy, categories: &Categories) -> Result<Vec<Vec<Depth>>> {
    let known: HashSet<&str> = categories
        .ids()
        .flat_map(|id| categories.labels(id))
        .flat_map(CategoryPath::lineage)
        .collect();
    let mut profiles = HashMap::new();
    for profile in policy.profiles() {
        let root = profile.category.as_str();
        if !known.contains(root) {
            return Err(error(format!("profile {root:?}"), "no category lies in this subtree"));
        }
        profiles.insert(root, profile);
    }
    let of_label = |label: &CategoryPath| {
        let mut enclosing = label.lineage().filter_map(|root| profiles.get(root)).peekable();
        if enclosing.peek().is_none() {
            return Err(error(format!("category {:?}", label.as_str()), "no profile covers it"));
        }
        let mut depth = Depth::new(policy, label);
        enclosing.for_each(|profile| depth.apply(policy, profile));
        Ok(depth)
    };
    categories.ids().map(|id| categories.labels(id).iter().map(of_label).collect()).collect()
}
