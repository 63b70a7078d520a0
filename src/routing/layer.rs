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

impl Region {
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        meet(&self.outputs, &other.outputs) && meet(&self.inputs, &other.inputs)
    }
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

/// The regions of one layer: region 0 is everything that no other region covers; each of the
/// others is a rectangle or a union of rectangles.
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
    owned: Vec<Vec<Region>>,
    tiles: Vec<Tile>,
    bias_tiles: Vec<(Range<usize>, usize)>,
    input_spans: Vec<(Range<usize>, usize)>,
}

impl RegionMap {
    /// A layer without owned regions.
    pub fn whole(outputs: usize, inputs: usize) -> Self {
        Self::new(outputs, inputs, Vec::new()).expect("no region can overlap another")
    }

    /// Regions `1..=owned.len()` as given, a rectangle each, region 0 the rest.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the region that is empty, exceeds the layer or overlaps an
    /// earlier one.
    pub fn new(outputs: usize, inputs: usize, owned: Vec<Region>) -> Result<Self> {
        Self::unions(outputs, inputs, owned.into_iter().map(|region| vec![region]).collect())
    }

    /// Regions `1..=owned.len()`, each the union of its rectangles, which may overlap one
    /// another but no other region's.
    ///
    /// # Errors
    /// As [`RegionMap::new`].
    pub fn unions(outputs: usize, inputs: usize, owned: Vec<Vec<Region>>) -> Result<Self> {
        for (r, region) in owned.iter().enumerate() {
            check_region(outputs, inputs, r, region)?;
            let overlaps = |other: &Vec<Region>| {
                other.iter().any(|theirs| region.iter().any(|ours| ours.overlaps(theirs)))
            };
            if let Some(other) = owned[..r].iter().position(overlaps) {
                let expected = format!("no overlap with regions[{}]", other + 1);
                let given = format!("{region:?}");
                return Err(Error::argument(format!("regions[{}]", r + 1), expected, given));
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
        let rows = cuts(outputs, map.owned.iter().flatten().map(|region| &region.outputs));
        let columns = cuts(inputs, map.owned.iter().flatten().map(|region| &region.inputs));
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

    /// The owned regions, `1..`, each as its rectangles.
    pub fn owned(&self) -> &[Vec<Region>] {
        &self.owned
    }

    /// Region of output feature `o`, input feature `i`.
    pub fn region_at(&self, o: usize, i: usize) -> usize {
        self.find(|rectangles| {
            rectangles.iter().any(|r| r.outputs.contains(&o) && r.inputs.contains(&i))
        })
    }

    /// Region of bias element `o`: the one that owns the output feature for all inputs.
    pub fn bias_region_at(&self, o: usize) -> usize {
        self.find(|rectangles| {
            let of_row = rectangles.iter().filter(|r| r.outputs.contains(&o));
            covers(self.inputs, of_row.map(|r| &r.inputs))
        })
    }

    /// Region whose flow weight applies to input column `i`: the one that owns the input for
    /// all outputs, where it does not own the whole layer.
    pub fn input_region_at(&self, i: usize) -> usize {
        let owns = |rectangles: &[Region], i: usize| {
            let of_column = rectangles.iter().filter(|r| r.inputs.contains(&i));
            covers(self.outputs, of_column.map(|r| &r.outputs))
        };
        self.find(|rectangles| {
            // The first column not owned, if any, is 0 or where a rectangle ends.
            let mut firsts = rectangles.iter().map(|r| r.inputs.end).chain([0]);
            let mut partial =
                || firsts.any(|first| first < self.inputs && !owns(rectangles, first));
            owns(rectangles, i) && partial()
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

    fn find(&self, owns: impl Fn(&[Region]) -> bool) -> usize {
        self.owned.iter().position(|rectangles| owns(rectangles)).map_or(0, |r| r + 1)
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

fn check_region(outputs: usize, inputs: usize, r: usize, region: &[Region]) -> Result<()> {
    let name = || format!("regions[{}]", r + 1);
    if region.is_empty() {
        return Err(Error::argument(name(), "at least one rectangle", "none"));
    }
    for rectangle in region {
        let given = || format!("{:?} × {:?}", rectangle.outputs, rectangle.inputs);
        if rectangle.outputs.is_empty() || rectangle.inputs.is_empty() {
            return Err(Error::argument(name(), "a range that is not empty", given()));
        }
        if rectangle.outputs.end > outputs || rectangle.inputs.end > inputs {
            let expected = format!("a range within the layer's {outputs} × {inputs}");
            return Err(Error::argument(name(), expected, given()));
        }
    }
    Ok(())
}

/// Whether the ranges together cover `0..extent`.
fn covers<'a>(extent: usize, ranges: impl Iterator<Item = &'a Range<usize>>) -> bool {
    let mut ranges: Vec<&Range<usize>> = ranges.collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let reach = ranges
        .iter()
        .fold(0, |reach, range| if range.start <= reach { reach.max(range.end) } else { reach });
    reach >= extent
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
    fn a_union_owns_bias_and_flow_as_a_whole() {
        // A band of outputs and a band of inputs that cross.
        let band = vec![region(3..5, 0..6), region(0..5, 4..6)];
        let map = RegionMap::unions(5, 6, vec![band]).unwrap();
        assert_eq!((map.region_at(0, 4), map.region_at(4, 5), map.region_at(2, 3)), (1, 1, 0));
        assert_eq!(map.bias_tiles(), [(0..3, 0), (3..5, 1)]);
        assert_eq!(map.input_spans(), [(0..4, 0), (4..6, 1)]);
        // A region that owns the whole layer has no input columns to tell apart.
        let halves = vec![region(0..5, 0..3), region(0..5, 3..6)];
        let map = RegionMap::unions(5, 6, vec![halves]).unwrap();
        assert_eq!(map.input_spans(), [(0..3, 0), (3..6, 0)]);
        assert_eq!(map.bias_tiles(), [(0..5, 1)]);
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
