//! Shapes, row grouping and dtypes of an op: validated once, with checked arithmetic.
//!
//! Every backend takes one of these problems; none of them checks a size again.
//!
//! ```
//! use gradroute::problem::{Linear, Rows};
//! let rows = Rows::new([0, 3, 3, 7])?; // three samples, the second one empty
//! let layer = Linear::new(rows, 320, 640)?.with_bias(true);
//! assert_eq!(layer.gradient().numbers(), 640 * 320 + 640);
//! # Ok::<(), gradroute::Error>(())
//! ```

mod conv2d;
mod element;
mod linear;
mod norm;
mod rows;

pub use conv2d::{Conv2d, Conv2dSpec, Padding, PaddingMode};
pub use element::{Dtype, Element};
pub use linear::{Embedding, Linear, Lora};
pub use norm::{Norm, NormKind};
pub use rows::Rows;

use crate::{Error, Result};

/// Shape of a layer's parameter gradient, written as a matrix `G [outputs, inputs]` with the
/// bias gradient, where there is one, as one more column at index `inputs`.
///
/// Regions and sketches address every layer kind through this matrix:
///
/// | layer | `outputs` | `inputs` |
/// |---|---|---|
/// | linear | output features | input features |
/// | conv2d | output channels | `(r · kw + s) · (C / groups) + c`, channels last |
/// | norm | features or channels | 1 |
/// | embedding | embedding features | tokens of the vocabulary |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GradientShape {
    outputs: usize,
    inputs: usize,
    taps: usize,
    bias: bool,
}

impl GradientShape {
    /// Checks that the matrix can be addressed: each side below 2³² (a Philox counter word).
    pub fn new(outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        const LIMIT: usize = u32::MAX as usize;
        if outputs >= LIMIT {
            return Err(Error::argument("outputs", "fewer than 2^32 - 1", outputs));
        }
        if inputs >= LIMIT {
            return Err(Error::argument("inputs", "fewer than 2^32 - 1", inputs));
        }
        product("gradient", &[outputs, inputs + 1])?;
        Ok(Self { outputs, inputs, taps: 1, bias })
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix, the bias column not counted.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Kernel positions each input feature is seen at: `kh · kw` for a convolution, else 1.
    pub fn taps(&self) -> usize {
        self.taps
    }

    /// Input features, as regions count them: matrix column `i` belongs to feature
    /// `i % features`, since columns count channels last.
    pub fn features(&self) -> usize {
        self.inputs / self.taps
    }

    /// Whether a bias gradient belongs to the layer.
    pub fn bias(&self) -> bool {
        self.bias
    }

    /// Elements of the weight gradient.
    pub fn weights(&self) -> usize {
        self.outputs * self.inputs
    }

    /// Elements of the bias gradient: 0 without a bias.
    pub fn biases(&self) -> usize {
        if self.bias { self.outputs } else { 0 }
    }

    /// Columns that are sketched: the inputs and the bias column.
    pub fn columns(&self) -> usize {
        self.inputs + usize::from(self.bias)
    }

    /// All numbers of the gradient, the bias included.
    pub fn numbers(&self) -> usize {
        self.weights() + self.biases()
    }
}

/// Product of extents; the error names the argument it would size.
pub(crate) fn product(argument: &str, extents: &[usize]) -> Result<usize> {
    extents
        .iter()
        .try_fold(1usize, |size, &extent| size.checked_mul(extent))
        .filter(|&size| size <= isize::MAX as usize)
        .ok_or_else(|| {
            Error::argument(argument, "a size that fits the address space", format!("{extents:?}"))
        })
}
