//! Random structure of the sketches: everything comes from Philox4x32-10, nothing is stored.
//!
//! The key is `(seed, layer)` and the counter is a position in the gradient matrix, so every
//! backend, rank and run draws the same projection.

mod count;
mod philox;
mod two_sided;

pub(crate) use count::micro_blocks;
pub use count::{MicroBlock, micro_block};
pub use philox::philox4x32;
pub use two_sided::{Side, SignMatrix};

use crate::{Error, Result};

/// Which projection is kept of a per-sample gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SketchKind {
    /// `P_oᵀ G P_i`, `outputs × inputs` numbers, row-major.
    TwoSided {
        /// Columns of `P_o`.
        outputs: usize,
        /// Columns of `P_i`.
        inputs: usize,
    },
    /// A count sketch of the whole matrix into `buckets` numbers, a multiple of 64.
    Count {
        /// `K`.
        buckets: usize,
    },
}

impl SketchKind {
    /// Numbers kept per sample, `K`.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        match *self {
            Self::TwoSided { outputs, inputs } => outputs * inputs,
            Self::Count { buckets } => buckets,
        }
    }
}

/// A layer's projection: its kind and the Philox key `(seed, layer)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sketch {
    kind: SketchKind,
    seed: u32,
    layer: u32,
}

impl Sketch {
    /// # Errors
    /// [`Error::Argument`] when a dimension is 0, `buckets` is no multiple of 64, or the length
    /// exceeds 2²⁰.
    pub fn new(kind: SketchKind, seed: u32, layer: u32) -> Result<Self> {
        const LONGEST: usize = 1 << 20;
        let length = match kind {
            SketchKind::TwoSided { outputs, inputs } => outputs.saturating_mul(inputs),
            SketchKind::Count { buckets } if !buckets.is_multiple_of(64) => {
                return Err(Error::argument("buckets", "a multiple of 64", buckets));
            }
            SketchKind::Count { buckets } => buckets,
        };
        if length == 0 || length > LONGEST {
            return Err(Error::argument("sketch", format!("1 to {LONGEST} numbers"), length));
        }
        Ok(Self { kind, seed, layer })
    }

    /// `k × k` numbers, two-sided.
    ///
    /// # Errors
    /// As [`Sketch::new`].
    pub fn two_sided(k: usize, seed: u32, layer: u32) -> Result<Self> {
        Self::new(SketchKind::TwoSided { outputs: k, inputs: k }, seed, layer)
    }

    /// A count sketch of `buckets` numbers.
    ///
    /// # Errors
    /// As [`Sketch::new`].
    pub fn count(buckets: usize, seed: u32, layer: u32) -> Result<Self> {
        Self::new(SketchKind::Count { buckets }, seed, layer)
    }

    /// Which projection.
    pub fn kind(&self) -> SketchKind {
        self.kind
    }

    /// The Philox key.
    pub fn key(&self) -> [u32; 2] {
        [self.seed, self.layer]
    }

    /// Numbers kept per sample, `K`.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.kind.len()
    }
}
