//! One layer's share of a compiled policy: its regions and its mask table.

use std::ops::Range;

use crate::{Error, Result};

/// A rectangle of a layer's parameters: output features × input features. A convolution's
/// rectangle holds all kernel positions of its channels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Range of output features.
    pub outputs: Range<usize>,
    /// Range of input features ([`crate::problem::GradientShape::features`]).
    pub inputs: Range<usize>,
}

/// A rectangle that lies within one region; see [`RegionMap::tiles`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Range of output features.
    pub outputs: Range<usize>,
    /// Range of input features.
    pub inputs: Range<usize>,
    /// The region that covers it.
    pub region: usize,
}

/// The regions of one layer: region 0 is everything that no other region covers.
///
/// ```
/// use gradroute::routing::{Region, RegionMap};
/// // The last 16 of 48 output channels belong to somebody.
/// let map = RegionMap::new(48, 32, vec![Region { outputs: 32..48, inputs: 0..32 }])?;
/// assert_eq!((map.len(), map.region_at(31, 0), map.region_at(32, 0)), (2, 0, 1));
/// assert_eq!(map.bias_region_at(40), 1);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionMap {
    outputs: usize,
    inputs: usize,
    owned: Vec<Region>,
    tiles: Vec<Tile>,
    bias_tiles: Vec<(Range<usize>, usize)>,
    input_spans: Vec<(Range<usize>, usize)>,
}

impl RegionMap {
    /// A layer without owned regions.
    pub fn whole(outputs: usize, inputs: usize) -> Self {
        Self::new(outputs, inputs, Vec::new()).expect("no region can overlap another")
    }

    /// Regions `1..=owned.len()` as given, region 0 the rest.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the region that is empty, exceeds the layer or overlaps an
    /// earlier one.
    pub fn new(outputs: usize, inputs: usize, owned: Vec<Region>) -> Result<Self> {
        for (r, region) in owned.iter().enumerate() {
            let name = || format!("regions[{}]", r + 1);
            let given = || format!("{:?} × {:?}", region.outputs, region.inputs);
            if region.outputs.is_empty() || region.inputs.is_empty() {
                return Err(Error::argument(name(), "a range that is not empty", given()));
            }
            if region.outputs.end > outputs || region.inputs.end > inputs {
                let expected = format!("a range within the layer's {outputs} × {inputs}");
                return Err(Error::argument(name(), expected, given()));
            }
            let overlaps = |other: &Region| {
                meet(&region.outputs, &other.outputs) && meet(&region.inputs, &other.inputs)
            };
            if let Some(other) = owned[..r].iter().position(overlaps) {
                let expected = format!("no overlap with regions[{}]", other + 1);
                return Err(Error::argument(name(), expected, given()));
            }
        }
        let mut map = Self {
            outputs,
            inputs,
            owned,
            tiles: Vec::new(),
            bias_tiles: Vec::new(),
            input_spans: Vec::new(),
        };
        let rows = cuts(outputs, map.owned.iter().map(|region| &region.outputs));
        let columns = cuts(inputs, map.owned.iter().map(|region| &region.inputs));
        for row in &rows {
            for column in &columns {
                let region = map.region_at(row.start, column.start);
                map.tiles.push(Tile { outputs: row.clone(), inputs: column.clone(), region });
            }
            map.bias_tiles.push((row.clone(), map.bias_region_at(row.start)));
        }
        map.input_spans =
            columns.into_iter().map(|c| (c.clone(), map.input_region_at(c.start))).collect();
        Ok(map)
    }

    /// Number of regions, region 0 included.
    #[allow(clippy::len_without_is_empty)] // there is always region 0
    pub fn len(&self) -> usize {
        self.owned.len() + 1
    }

    /// Output features of the layer.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Input features of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The owned regions, `1..`.
    pub fn owned(&self) -> &[Region] {
        &self.owned
    }

    /// Region of output feature `o`, input feature `i`.
    pub fn region_at(&self, o: usize, i: usize) -> usize {
        self.find(|region| region.outputs.contains(&o) && region.inputs.contains(&i))
    }

    /// Region of bias element `o`: the one that owns the output feature for all inputs.
    pub fn bias_region_at(&self, o: usize) -> usize {
        self.find(|region| region.outputs.contains(&o) && region.inputs == (0..self.inputs))
    }

    /// Region whose flow weight applies to input column `i`: the one that owns the input for
    /// all outputs, where it does not own all inputs.
    pub fn input_region_at(&self, i: usize) -> usize {
        self.find(|region| {
            region.inputs.contains(&i)
                && region.inputs != (0..self.inputs)
                && region.outputs == (0..self.outputs)
        })
    }

    /// The matrix cut into rectangles that each lie in one region, in row-major order.
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The bias cut likewise: ranges of output features and their region.
    pub fn bias_tiles(&self) -> &[(Range<usize>, usize)] {
        &self.bias_tiles
    }

    /// The input columns cut likewise, with the region whose flow weight applies.
    pub fn input_spans(&self) -> &[(Range<usize>, usize)] {
        &self.input_spans
    }

    fn find(&self, covers: impl Fn(&Region) -> bool) -> usize {
        self.owned.iter().position(covers).map_or(0, |r| r + 1)
    }
}

/// A layer's regions with the weights each category has there: `[categories, regions]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRouting {
    regions: RegionMap,
    categories: usize,
    route: Vec<f32>,
    flow: Vec<f32>,
}

impl LayerRouting {
    /// `route` and `flow` are `[categories, regions]`, all finite.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the table and entry.
    pub fn new(
        regions: RegionMap,
        categories: usize,
        route: Vec<f32>,
        flow: Vec<f32>,
    ) -> Result<Self> {
        for (name, table) in [("route", &route), ("flow", &flow)] {
            crate::error::expect_len(name, categories * regions.len(), table.len())?;
            if let Some(at) = table.iter().position(|weight| !weight.is_finite()) {
                let place = format!("{name}[{}, {}]", at / regions.len(), at % regions.len());
                return Err(Error::argument(place, "a finite weight", table[at]));
            }
        }
        Ok(Self { regions, categories, route, flow })
    }

    /// Every category trains everything: route and flow weight 1.
    pub fn open(regions: RegionMap, categories: usize) -> Self {
        let ones = vec![1.0; categories * regions.len()];
        Self { regions, categories, route: ones.clone(), flow: ones }
    }

    /// The layer's regions.
    pub fn regions(&self) -> &RegionMap {
        &self.regions
    }

    /// Number of categories in the tables.
    pub fn categories(&self) -> usize {
        self.categories
    }

    /// The route weights, `[categories, regions]`.
    pub fn route_table(&self) -> &[f32] {
        &self.route
    }

    /// The flow weights, `[categories, regions]`.
    pub fn flow_table(&self) -> &[f32] {
        &self.flow
    }

    /// Route weight of a category in a region.
    pub fn route(&self, category: u32, region: usize) -> f32 {
        self.route[category as usize * self.regions.len() + region]
    }

    /// Flow weight of a category in a region.
    pub fn flow(&self, category: u32, region: usize) -> f32 {
        self.flow[category as usize * self.regions.len() + region]
    }
}

fn meet(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// `0..extent` cut at both ends of every range.
fn cuts<'a>(extent: usize, ranges: impl Iterator<Item = &'a Range<usize>>) -> Vec<Range<usize>> {
    let mut ends: Vec<usize> = ranges.flat_map(|range| [range.start, range.end]).collect();
    ends.extend([0, extent]);
    ends.sort_unstable();
    ends.dedup();
    ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(outputs: Range<usize>, inputs: Range<usize>) -> Region {
        Region { outputs, inputs }
    }

    #[test]
    fn tiles_partition_the_layer() {
        let owned = vec![region(2..4, 0..6), region(0..2, 3..5)];
        let map = RegionMap::new(5, 6, owned).unwrap();
        let mut seen = [0; 30];
        for tile in map.tiles() {
            for o in tile.outputs.clone() {
                for i in tile.inputs.clone() {
                    seen[o * 6 + i] += 1;
                    assert_eq!(tile.region, map.region_at(o, i));
                }
            }
        }
        assert!(seen.iter().all(|&times| times == 1));
        assert_eq!(map.bias_tiles(), [(0..2, 0), (2..4, 1), (4..5, 0)]);
    }

    #[test]
    fn mistakes_are_named() {
        let text = |owned| RegionMap::new(4, 4, owned).unwrap_err().to_string();
        assert!(text(vec![region(0..5, 0..4)]).contains("within the layer"));
        assert!(text(vec![region(1..1, 0..4)]).contains("not empty"));
        let overlap = text(vec![region(0..2, 0..4), region(1..3, 3..4)]);
        assert!(overlap.contains("regions[2]") && overlap.contains("regions[1]"), "{overlap}");
        let table = LayerRouting::new(RegionMap::whole(4, 4), 2, vec![1.0, f32::NAN], vec![1.0; 2]);
        assert!(table.unwrap_err().to_string().contains("route[1, 0]"));
    }
}
