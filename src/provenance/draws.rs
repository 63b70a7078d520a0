//! A query: the sketched gradient of an output, averaged over draws of noise.

use crate::error::expect_len;
use crate::{Error, Result};

/// One draw of what the loss of a diffusion model averages over.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Draw {
    /// Noise level; NaN where the task has none.
    pub level: f32,
    /// Names the noise: the seed it was drawn with, say.
    pub noise: u64,
}

/// Sketches of an output's unrouted gradient, one for each draw of noise level and noise.
///
/// Queries that are to be compared with each other should be made of the same draws (common
/// random numbers), so that they differ by the output alone: [`Query::same_draws`] tells.
///
/// ```
/// use gradroute::provenance::{Draw, Query};
///
/// let mut query = Query::new(1, 2); // one block, sketches of two numbers
/// query.add(Draw { level: 0.2, noise: 1 }, &[1.0, 0.0])?;
/// query.add(Draw { level: 0.7, noise: 2 }, &[0.0, 3.0])?;
/// assert_eq!(query.mean(), [0.5, 1.5]);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    blocks: usize,
    sketch_len: usize,
    draws: Vec<Draw>,
    /// `[draws, B, K]`.
    sketches: Vec<f32>,
}

impl Query {
    /// For `blocks` blocks and sketches of `sketch_len` numbers; no draw yet.
    pub fn new(blocks: usize, sketch_len: usize) -> Self {
        Self { blocks, sketch_len, draws: Vec::new(), sketches: Vec::new() }
    }

    /// A query of a single sketch `[B, K]`, without a noise level.
    ///
    /// # Errors
    /// As [`Query::add`].
    pub fn single(blocks: usize, sketch_len: usize, sketch: &[f32]) -> Result<Self> {
        let mut query = Self::new(blocks, sketch_len);
        query.add(Draw { level: f32::NAN, noise: 0 }, sketch)?;
        Ok(query)
    }

    /// Adds the sketch `[B, K]` of one draw.
    ///
    /// # Errors
    /// [`Error::Argument`] when it has the wrong size or is not finite.
    pub fn add(&mut self, draw: Draw, sketch: &[f32]) -> Result<()> {
        expect_len("sketch", self.blocks * self.sketch_len, sketch.len())?;
        if let Some(value) = sketch.iter().find(|value| !value.is_finite()) {
            return Err(Error::argument("sketch", "finite numbers", value));
        }
        self.draws.push(draw);
        self.sketches.extend(sketch);
        Ok(())
    }

    /// Number of blocks, `B`.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Numbers per sketch, `K`.
    pub fn sketch_len(&self) -> usize {
        self.sketch_len
    }

    /// `[B, K]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.blocks, self.sketch_len]
    }

    /// The draws, in the order in which they were added.
    pub fn draws(&self) -> &[Draw] {
        &self.draws
    }

    /// The sketch `[B, K]` of each draw.
    pub fn sketches(&self) -> impl Iterator<Item = &[f32]> {
        self.sketches.chunks_exact((self.blocks * self.sketch_len).max(1))
    }

    /// The mean sketch `[B, K]`: that of the gradient of the mean loss. 0 without a draw.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0; self.blocks * self.sketch_len];
        for sketch in self.sketches() {
            sums.iter_mut().zip(sketch).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let count = self.draws.len().max(1) as f64;
        sums.iter().map(|sum| (sum / count) as f32).collect()
    }

    /// Whether another query was made of the same draws.
    pub fn same_draws(&self, other: &Self) -> bool {
        let key = |draw: &Draw| (draw.level.to_bits(), draw.noise);
        self.draws.iter().map(key).eq(other.draws.iter().map(key))
    }
}
