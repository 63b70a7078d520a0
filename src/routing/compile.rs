//! A policy put to a model and its samples' categories: the tables the ops read.

use std::ops::Range;

use super::depth::{self, Depth};
use super::policy::{Block, OwnedRegion, Policy, error};
use super::territory::{self, Territory};
use super::{Categories, LayerRouting, LayerSpec, ModelLayout, PolicyHash, RegionMap};
use crate::Result;

/// A [`Policy`] compiled for a [`ModelLayout`] and its [`Categories`]: a [`LayerRouting`] per
/// layer, and what the records need to say about blocks.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    policy: Policy,
    hash: PolicyHash,
    layout: ModelLayout,
    categories: Categories,
    layers: Vec<LayerRouting>,
    block_of: Vec<usize>,
    territory: Vec<Territory>,
    /// `[categories, blocks]`.
    block_weights: Vec<BlockWeights>,
    /// `[categories, regions]`.
    owners: Vec<bool>,
}

impl Policy {
    /// Matches blocks and regions to the model's layers and profiles to the categories.
    ///
    /// Memory grows with layers × (blocks + categories × regions), time also with layers² for each
    /// region that is carried from layer to layer, and with the square of the regions of one layer.
    ///
    /// # Errors
    /// [`crate::Error::Policy`] naming the place: a layer that no block or several match; a
    /// block or region part that matches no layer; blocks out of forward order; a region that
    /// exceeds a layer, overlaps another, would be mixed by a normalisation or a grouped
    /// convolution, whose owner is no category's, or whose switch has nowhere to act; a profile
    /// that matches no category; a category that no profile covers.
    pub fn compile(&self, layout: &ModelLayout, categories: &Categories) -> Result<CompiledPolicy> {
        let block_of = assign_blocks(self.blocks(), layout)?;
        let depths = depth::resolve(self, categories)?;
        let territory = territory::claim(layout, categories, self.regions())?;
        let mut layers = Vec::with_capacity(block_of.len());
        for ((layer, territory), &block) in layout.layers().iter().zip(&territory).zip(&block_of) {
            layers.push(layer_routing(layer, territory, block, &depths)?);
        }
        let owners = categories.ids().flat_map(|id| {
            self.regions().iter().map(move |region| categories.within(id, &region.owner))
        });
        Ok(CompiledPolicy {
            hash: self.hash(),
            block_weights: block_weights(layout, &layers, &block_of, &depths, self.blocks().len()),
            owners: owners.collect(),
            policy: self.clone(),
            layout: layout.clone(),
            categories: categories.clone(),
            layers,
            block_of,
            territory,
        })
    }
}

impl CompiledPolicy {
    /// The policy as written.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its content hash.
    pub fn hash(&self) -> PolicyHash {
        self.hash
    }

    /// The model it was compiled for.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// The categories it was compiled for; ids index its tables.
    pub fn categories(&self) -> &Categories {
        &self.categories
    }

    /// The blocks, in forward order.
    pub fn blocks(&self) -> &[Block] {
        self.policy.blocks()
    }

    /// The owned regions; a policy region's index is its index here.
    pub fn regions(&self) -> &[OwnedRegion] {
        self.policy.regions()
    }

    /// Index of the region with this name.
    pub fn region(&self, name: &str) -> Option<usize> {
        self.regions().iter().position(|region| region.name == name)
    }

    /// Regions and mask tables of every layer, in the layout's order.
    pub fn layers(&self) -> &[LayerRouting] {
        &self.layers
    }

    /// Block of a layer; none where the layout has no such layer.
    pub fn block_of(&self, layer: usize) -> Option<usize> {
        self.block_of.get(layer).copied()
    }

    /// Policy region of each of a layer's regions `1..`: entry `k` is region `k + 1`'s.
    ///
    /// # Panics
    /// When the layout has no such layer.
    pub fn regions_of(&self, layer: usize) -> impl ExactSizeIterator<Item = usize> {
        self.territory[layer].owned.iter().map(|&(region, _)| region)
    }

    /// Features (channels) of the activation a layer reads that belong to a policy region: where
    /// the region's switch applies, right before that layer.
    ///
    /// # Panics
    /// As [`CompiledPolicy::regions_of`].
    pub fn reads_of(&self, layer: usize) -> &[(Range<usize>, usize)] {
        &self.territory[layer].read
    }

    /// Mean route weight of a category over a block's parameters, biases included; gates not.
    ///
    /// # Panics
    /// When there is no such category or block.
    pub fn block_route(&self, category: u32, block: usize) -> f32 {
        self.block_weights(category)[block].route
    }

    /// Largest magnitude of a category's route weights over a block's parameters; gates not. A
    /// sample's routed gradient in the block is no longer than this times the unrouted one.
    ///
    /// # Panics
    /// As [`CompiledPolicy::block_route`].
    pub fn block_reach(&self, category: u32, block: usize) -> f32 {
        self.block_weights(category)[block].reach
    }

    /// Flow weight of a category in a block, outside of its owned regions.
    ///
    /// # Panics
    /// As [`CompiledPolicy::block_route`].
    pub fn block_flow(&self, category: u32, block: usize) -> f32 {
        self.block_weights(category)[block].flow
    }

    /// Whether a category owns a region: all of its labels lie in the owner's subtree.
    ///
    /// # Panics
    /// When there is no such category or region.
    pub fn owns(&self, category: u32, region: usize) -> bool {
        let regions = self.regions().len();
        assert!(region < regions, "there are {regions} regions, not {region}");
        self.owners[category as usize * regions + region]
    }

    fn block_weights(&self, category: u32) -> &[BlockWeights] {
        let blocks = self.blocks().len();
        &self.block_weights[category as usize * blocks..][..blocks]
    }
}

/// The block of every layer.
fn assign_blocks(blocks: &[Block], layout: &ModelLayout) -> Result<Vec<usize>> {
    let mut block_of = Vec::with_capacity(layout.layers().len());
    for layer in layout.layers() {
        let mut matching = (0..blocks.len()).filter(|&b| blocks[b].layers.matches(&layer.path));
        let place = || format!("layer {:?}", layer.path);
        let block = matching.next().ok_or_else(|| error(place(), "no block matches it"))?;
        if let Some(other) = matching.next() {
            let names = [&blocks[block].name, &blocks[other].name];
            let problem = format!("blocks {:?} and {:?} both match it", names[0], names[1]);
            return Err(error(place(), problem));
        }
        block_of.push(block);
    }
    let mut latest = 0;
    for (b, block) in blocks.iter().enumerate() {
        let place = || format!("block {:?}", block.name);
        let Some(first) = block_of.iter().position(|&of| of == b) else {
            let problem = format!("no layer matches `{}`", block.layers.as_str());
            return Err(error(place(), problem));
        };
        if first < latest {
            let problem = format!(
                "blocks stand in forward order, but this one begins before block {:?}",
                blocks[b - 1].name
            );
            return Err(error(place(), problem));
        }
        latest = first;
    }
    Ok(block_of)
}

/// Mask tables of one layer.
fn layer_routing(
    layer: &LayerSpec,
    territory: &Territory,
    block: usize,
    depths: &[Vec<Depth>],
) -> Result<LayerRouting> {
    let regions: Vec<Option<usize>> =
        std::iter::once(None).chain(territory.owned.iter().map(|&(r, _)| Some(r))).collect();
    let (mut route, mut flow) = (Vec::new(), Vec::new());
    for labels in depths {
        for &region in &regions {
            let [r, f] = decided(labels, block, region);
            route.push(r);
            flow.push(f);
        }
    }
    LayerRouting::new(territory.map(layer)?, depths.len(), route, flow)
}

/// Route and flow weight of a category's labels together.
fn decided(labels: &[Depth], block: usize, region: Option<usize>) -> [f32; 2] {
    let weights = labels.iter().map(|depth| depth.weights(block, region));
    let both = |a: [f32; 2], b: [f32; 2]| [depth::decide(a[0], b[0]), depth::decide(a[1], b[1])];
    weights.reduce(both).expect("a category has at least one label")
}

/// A category's weights in a block.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BlockWeights {
    /// Mean over the parameters.
    route: f32,
    /// Largest magnitude over the parameters.
    reach: f32,
    flow: f32,
}

/// `[categories, blocks]`.
fn block_weights(
    layout: &ModelLayout,
    layers: &[LayerRouting],
    block_of: &[usize],
    depths: &[Vec<Depth>],
    blocks: usize,
) -> Vec<BlockWeights> {
    let counts: Vec<Vec<usize>> = layout
        .layers()
        .iter()
        .zip(layers)
        .map(|(layer, routing)| parameters(layer, routing.regions()))
        .collect();
    let mut table = Vec::with_capacity(depths.len() * blocks);
    for (category, labels) in depths.iter().enumerate() {
        let (mut sums, mut reach) = (vec![[0.0f64; 2]; blocks], vec![0.0f32; blocks]);
        for ((routing, counts), &block) in layers.iter().zip(&counts).zip(block_of) {
            for (region, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                let route = routing.route(category as u32, region);
                sums[block][0] += count as f64 * f64::from(route);
                sums[block][1] += count as f64;
                reach[block] = reach[block].max(route.abs());
            }
        }
        table.extend(sums.into_iter().zip(reach).enumerate().map(
            |(block, ([sum, count], reach))| {
                let [route, flow] = decided(labels, block, None);
                if count > 0.0 {
                    BlockWeights { route: (sum / count) as f32, reach, flow }
                } else {
                    BlockWeights { route, reach: route.abs(), flow }
                }
            },
        ));
    }
    table
}

/// Parameters of a layer in each of its regions, biases included.
fn parameters(layer: &LayerSpec, regions: &RegionMap) -> Vec<usize> {
    let mut counts = vec![0; regions.len()];
    for tile in regions.tiles() {
        counts[tile.region] += tile.outputs.len() * tile.inputs.len() * layer.taps;
    }
    if layer.bias {
        for (outputs, region) in regions.bias_tiles() {
            counts[*region] += outputs.len();
        }
    }
    counts
}
