//! Ways to route a batch.

use std::ops::Range;

use gradroute::problem::{Element, GradientShape};
use gradroute::projection::{Sketch, SketchKind};
use gradroute::routing::{LayerRouting, Region, RegionMap};

use super::case::{Case, Random, Setup};

/// A pattern of regions and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// No routing at all.
    None,
    /// Every weight 1.
    Ones,
    /// Every sample routed away.
    Zeros,
    /// One category trains, the others are routed away.
    One,
    /// Fractions, with gates.
    Fractional,
    /// Fractions and negative weights.
    Negative,
    /// Half of the output features owned.
    Outputs,
    /// Half of the input features owned.
    Inputs,
    /// Two rectangles, neither of them full width or height.
    Both,
    /// One region of two crossing bands, outputs and inputs.
    Cross,
    /// Three regions of all kinds, with gates, one of them closed; neighbours of one category have
    /// different gates.
    Mixed,
}

/// Number of categories in every pattern.
pub const CATEGORIES: usize = 3;

impl Pattern {
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Ones,
        Self::Zeros,
        Self::One,
        Self::Fractional,
        Self::Negative,
        Self::Outputs,
        Self::Inputs,
        Self::Both,
        Self::Cross,
        Self::Mixed,
    ];

    /// The regions of this pattern that a layer has room for.
    pub fn regions(self, shape: GradientShape) -> RegionMap {
        let (outputs, inputs) = (shape.outputs(), shape.features());
        let (o, i) = (outputs / 2, inputs / 2);
        let owned = match self {
            Self::Outputs => vec![vec![(o..outputs, 0..inputs)]],
            Self::Inputs => vec![vec![(0..outputs, i..inputs)]],
            Self::Both => vec![vec![(o..outputs, i..inputs)], vec![(0..o, 0..i.div_ceil(2))]],
            Self::Cross => vec![vec![(o..outputs, 0..inputs), (0..outputs, i..inputs)]],
            Self::Mixed => vec![
                vec![(0..outputs, 0..i)],
                vec![(o..outputs, i..inputs)],
                vec![(0..o / 2, i..inputs)],
            ],
            _ => Vec::new(),
        };
        let fits = |rectangles: Vec<(Range<usize>, Range<usize>)>| -> Vec<Region> {
            let some = |(o, i): &(Range<usize>, Range<usize>)| !o.is_empty() && !i.is_empty();
            let region = |(outputs, inputs)| Region { outputs, inputs };
            rectangles.into_iter().filter(some).map(region).collect()
        };
        let owned = owned.into_iter().map(fits).filter(|region| !region.is_empty()).collect();
        RegionMap::unions(outputs, inputs, owned).unwrap()
    }

    /// Tables of dyadic weights, so that exact data stays exact.
    fn routing(self, shape: GradientShape, random: &mut Random) -> Option<LayerRouting> {
        let regions = self.regions(shape);
        let len = CATEGORIES * regions.len();
        let route: Vec<f32> = match self {
            Self::None => return None,
            Self::Ones => vec![1.0; len],
            Self::Zeros => vec![0.0; len],
            Self::One => (0..len).map(|at| f32::from(at / regions.len() == 1)).collect(),
            Self::Fractional => (0..len).map(|_| random.one_of(&[0.25, 0.5, 0.75])).collect(),
            Self::Negative => (0..len).map(|_| random.one_of(&[-1.0, -0.5, 0.5])).collect(),
            _ => (0..len).map(|_| random.one_of(&[0.0, 0.0, 1.0, 0.5, -1.0])).collect(),
        };
        let flow = (0..len)
            .map(|_| match self {
                Self::Ones => 1.0,
                Self::Zeros => 0.0,
                _ => random.one_of(&[0.0, 1.0, 0.5, -1.0]),
            })
            .collect();
        Some(LayerRouting::new(regions, CATEGORIES, route, flow).unwrap())
    }

    fn categories(self, samples: usize) -> Vec<u32> {
        let order: &[u32] = if self == Self::Mixed { &[1, 1, 0, 2, 0] } else { &[1, 0, 2] };
        (0..samples).map(|n| order[n % order.len()]).collect()
    }

    fn gates(self, samples: usize) -> Option<Vec<f32>> {
        let gates: &[f32] = match self {
            Self::Fractional => &[1.0, 0.5],
            Self::Mixed => &[0.5, 2.0, 0.0],
            _ => return None,
        };
        Some((0..samples).map(|n| gates[n % gates.len()]).collect())
    }

    /// Routes every layer of a case by this pattern.
    pub fn apply<T: Element>(self, case: &mut Case<T>, seed: u64) {
        let mut random = Random::new(seed);
        let samples = case.problem.samples();
        case.name = format!("{} / {self:?}", case.name);
        for (shape, setup) in case.problem.layers().into_iter().zip(&mut case.layers) {
            setup.routing = self.routing(shape, &mut random);
            setup.categories = self.categories(samples);
            setup.gates = self.gates(samples);
        }
    }
}

/// Projections whose arithmetic is exact on exact data.
pub fn exact_sketches() -> [SketchKind; 5] {
    [
        SketchKind::TwoSided { outputs: 4, inputs: 4 },
        SketchKind::TwoSided { outputs: 16, inputs: 16 },
        SketchKind::TwoSided { outputs: 1, inputs: 4 },
        SketchKind::Count { buckets: 64 },
        SketchKind::Count { buckets: 256 },
    ]
}

/// Projections of every kind, odd ones among them.
pub fn sketches() -> [SketchKind; 6] {
    [
        SketchKind::TwoSided { outputs: 16, inputs: 16 },
        // More than sixteen columns, which are projected at a time, and yet less than a word of signs.
        SketchKind::TwoSided { outputs: 3, inputs: 21 },
        // Wider than a word of signs, on both sides.
        SketchKind::TwoSided { outputs: 34, inputs: 130 },
        SketchKind::Count { buckets: 64 },
        SketchKind::Count { buckets: 192 },
        SketchKind::Count { buckets: 256 },
    ]
}

/// Sets the records of every layer: projection, what it is of, scale.
pub fn record(layers: &mut [Setup], kind: SketchKind, routed: bool, scale: f32) {
    for (l, setup) in layers.iter_mut().enumerate() {
        setup.sketch = Some(Sketch::new(kind, 17, 3 + l as u32).unwrap());
        setup.sketch_routed = routed;
        setup.sample_scale = scale;
    }
}
