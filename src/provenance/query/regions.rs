//! Which regions a category trains, by the policy that the ledger holds.

use serde::Serialize;

use super::Archive;
use super::archive::labels;
use crate::routing::{CategoryPath, OwnedRegion, Policy, decide};

/// A region and a category's route weight in it. The ledger records amounts per block; of a
/// region it holds what the policy says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegionRoute {
    /// The region.
    pub region: String,
    /// Its owner.
    pub owner: String,
    /// The category's route weight in it.
    pub route: f32,
    /// The blocks that hold layers of it.
    pub blocks: Vec<String>,
}

impl Archive {
    /// The policy; none where the ledger holds no text that is one.
    pub(super) fn policy(&self) -> Option<Policy> {
        Policy::from_toml(&self.reader().info().policy).ok()
    }

    /// Every region of the policy, with its owner's weight in it.
    pub fn all_regions(&self) -> Vec<RegionRoute> {
        let Some(policy) = self.policy() else { return Vec::new() };
        let routes = policy.regions().iter().map(|region| RegionRoute {
            region: region.name.clone(),
            owner: region.owner.to_string(),
            route: route(&policy, region, region.owner.as_str()),
            blocks: self.blocks_of(region).map(|at| self.blocks()[at].clone()).collect(),
        });
        routes.collect()
    }

    /// The regions in which a category has a weight other than 0.
    pub(super) fn regions(&self, policy: &Policy, category: &str) -> Vec<RegionRoute> {
        let routes = policy.regions().iter().map(|region| RegionRoute {
            region: region.name.clone(),
            owner: region.owner.to_string(),
            route: route(policy, region, category),
            blocks: self.blocks_of(region).map(|at| self.blocks()[at].clone()).collect(),
        });
        routes.filter(|route| route.route != 0.0).collect()
    }

    /// The blocks that hold layers which the region's parts name.
    pub(super) fn blocks_of<'a>(
        &'a self,
        region: &'a OwnedRegion,
    ) -> impl Iterator<Item = usize> + 'a {
        let blocks = self.reader().info().blocks.iter().enumerate();
        blocks.filter_map(|(at, block)| {
            let named = |path: &str| region.parts.iter().any(|part| part.layers.matches(path));
            block.layers.iter().any(|layer| named(&layer.path)).then_some(at)
        })
    }
}

/// Route weight of a category in a region: of its labels' the one that decides.
pub(super) fn route(policy: &Policy, region: &OwnedRegion, category: &str) -> f32 {
    let of_label = |label: CategoryPath| {
        let own = if label.within(&region.owner) { 1.0 } else { 0.0 };
        let enclosing = policy.profiles().iter().filter(|it| label.within(&it.category));
        let said = enclosing.filter_map(|profile| {
            let route = profile.regions.get(&region.name)?.route?;
            Some((profile.category.depth(), route))
        });
        said.max_by_key(|(depth, _)| *depth).map_or(own, |(_, route)| route)
    };
    let routes = labels(category).map(of_label);
    routes.reduce(decide).unwrap_or(0.0)
}
