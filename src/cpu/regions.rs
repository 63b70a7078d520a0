//! Rectangles of a gradient matrix and the routing that applies to them.

use std::ops::Range;

use crate::ops::Options;
use crate::problem::GradientShape;

/// A rectangle of the gradient matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rect {
    /// Range of matrix rows.
    pub(crate) outputs: Range<usize>,
    /// Range of matrix columns, the bias column not among them.
    pub(crate) inputs: Range<usize>,
}

impl Rect {
    /// The whole matrix.
    pub(crate) fn whole(shape: GradientShape) -> Self {
        Self { outputs: 0..shape.outputs(), inputs: 0..shape.inputs() }
    }
}

/// Route weight of sample `n` in a region, gate included; 1 without routing.
pub(crate) fn route(options: &Options, n: usize, region: usize) -> f32 {
    options.routing.map_or(1.0, |routing| routing.route(n, region))
}

/// Flow weight of sample `n` in a region; 1 without routing.
pub(crate) fn flow(options: &Options, n: usize, region: usize) -> f32 {
    options.routing.map_or(1.0, |routing| routing.flow(n, region))
}

/// A rectangle cut into pieces that each lie in one region, with that region. Columns repeat
/// the layer's input features once per tap.
pub(crate) fn pieces<'a>(
    at: &'a Rect,
    shape: GradientShape,
    options: &'a Options,
) -> impl Iterator<Item = (Rect, usize)> + 'a {
    let map = options.routing.map(|routing| routing.layer.regions());
    // Where no region ends within the inputs, one stretch of columns takes in all taps.
    let spread = map.is_some_and(|map| map.input_spans().len() > 1);
    let whole = map.is_none().then(|| (at.clone(), 0));
    let tiles = map.into_iter().flat_map(|map| map.tiles());
    let cut = tiles.flat_map(move |tile| {
        let taps = if spread { shape.taps() } else { 1 };
        (0..taps).filter_map(move |tap| {
            let columns = if spread {
                let first = tap * shape.features();
                first + tile.inputs.start..first + tile.inputs.end
            } else {
                0..shape.inputs()
            };
            let (outputs, inputs) = (meet(&tile.outputs, &at.outputs), meet(&columns, &at.inputs));
            let some = !outputs.is_empty() && !inputs.is_empty();
            some.then_some((Rect { outputs, inputs }, tile.region))
        })
    });
    whole.into_iter().chain(cut)
}

/// The region that a rectangle lies in, if it is one.
pub(crate) fn one_region(at: &Rect, shape: GradientShape, options: &Options) -> Option<usize> {
    let mut pieces = pieces(at, shape, options);
    let (_, region) = pieces.next()?;
    pieces.next().is_none().then_some(region)
}

/// Marks the regions that some sample of at least one row trains.
pub(crate) fn mark_touched(
    touched: &mut [bool],
    options: &Options,
    samples: usize,
    is_empty: impl Fn(usize) -> bool,
) {
    for (region, touched) in touched.iter_mut().enumerate() {
        *touched = (0..samples).any(|n| !is_empty(n) && route(options, n, region) != 0.0);
    }
}

fn meet(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Routing;
    use crate::routing::{LayerRouting, Region, RegionMap};

    #[test]
    fn pieces_partition_a_rectangle_of_every_tap() {
        let conv = crate::problem::Conv2d::new(crate::problem::Conv2dSpec {
            in_channels: 5,
            out_channels: 6,
            kernel: [1, 3],
            size: [1, 9],
            ..Default::default()
        });
        let shape = conv.unwrap().gradient();
        let owned =
            vec![Region { outputs: 2..4, inputs: 1..3 }, Region { outputs: 4..6, inputs: 0..5 }];
        let layer = LayerRouting::open(RegionMap::new(6, 5, owned).unwrap(), 1);
        let routing = Routing { layer: &layer, categories: &[], gates: None };
        let options = Options { routing: Some(routing), ..Options::default() };
        let at = Rect { outputs: 1..6, inputs: 3..13 };
        let mut seen = [0; 6 * 15];
        for (piece, region) in pieces(&at, shape, &options) {
            for o in piece.outputs {
                for i in piece.inputs.clone() {
                    seen[o * 15 + i] += 1;
                    assert_eq!(region, layer.regions().region_at(o, i % 5));
                }
            }
        }
        for o in 0..6 {
            for i in 0..15 {
                let within = at.outputs.contains(&o) && at.inputs.contains(&i);
                assert_eq!(seen[o * 15 + i], usize::from(within), "{o} {i}");
            }
        }
    }
}
