//! A layer's backward problem, whatever its kind.

use std::sync::Arc;

use crate::Result;
use crate::cpu::Cpu;
use crate::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, NormInputs, Options,
};
use crate::problem::{
    Conv2d, Conv2dSpec, Element, Embedding, GradientShape, Linear, Norm, NormKind, Rows,
};

/// The checked problem of one call of a layer; an embedding's tokens come along, since candle
/// has no gradient for them.
#[derive(Clone, Debug)]
pub(super) enum Problem {
    Linear(Linear),
    Conv2d(Conv2d),
    Norm(Norm),
    Embedding(Embedding, Arc<[u32]>),
}

/// A call's tensors as slices; `x` is empty for an embedding.
#[derive(Clone, Copy)]
pub(super) struct Slices<'a, T> {
    pub x: &'a [T],
    pub dy: &'a [T],
    pub weight: Option<&'a [T]>,
}

impl Problem {
    pub fn gradient(&self) -> GradientShape {
        match self {
            Self::Linear(problem) => problem.gradient(),
            Self::Conv2d(problem) => problem.gradient(),
            Self::Norm(problem) => problem.gradient(),
            Self::Embedding(problem, _) => problem.gradient(),
        }
    }

    pub fn samples(&self) -> usize {
        match self {
            Self::Linear(problem) => problem.rows().samples(),
            Self::Conv2d(problem) => problem.spec().samples,
            Self::Norm(problem) => problem.rows().samples(),
            Self::Embedding(problem, _) => problem.rows().samples(),
        }
    }

    /// Which rows belong to which sample; of a convolution, its output positions.
    #[cfg(feature = "candle-cuda")]
    pub fn rows(&self) -> Result<Rows> {
        match self {
            Self::Linear(problem) => Ok(problem.rows().clone()),
            Self::Conv2d(problem) => {
                Rows::uniform(problem.spec().samples, problem.out_size().iter().product())
            }
            Self::Norm(problem) => Ok(problem.rows().clone()),
            Self::Embedding(problem, _) => Ok(problem.rows().clone()),
        }
    }

    pub fn forward<T: Element>(
        &self,
        cpu: &mut Cpu,
        x: &[T],
        weight: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        match self {
            Self::Linear(problem) => cpu.linear_forward(problem, x, weight, bias, y),
            Self::Conv2d(problem) => cpu.conv2d_forward(problem, x, weight, bias, y),
            Self::Norm(problem) => cpu.norm_forward(problem, x, weight, bias, y),
            Self::Embedding(problem, tokens) => cpu.embedding_forward(problem, tokens, weight, y),
        }
    }

    pub fn backward<T: Element>(
        &self,
        backend: &mut impl Backend,
        options: &Options,
        slices: Slices<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let Slices { x, dy, weight } = slices;
        match self {
            Self::Linear(problem) => {
                backend.linear(problem, options, LinearInputs { x, dy, weight }, dx, out)
            }
            Self::Conv2d(problem) => {
                backend.conv2d(problem, options, ConvInputs { x, dy, weight }, dx, out)
            }
            Self::Norm(problem) => {
                backend.norm(problem, options, NormInputs { x, dy, weight }, dx, out)
            }
            Self::Embedding(problem, tokens) => {
                backend.embedding(problem, options, EmbeddingInputs { tokens, dy }, out)
            }
        }
    }

    /// The same call seen by sample `n` alone. Every sample has the same number of rows,
    /// because candle's tensors are dense.
    pub fn sample(&self, n: usize) -> Result<Self> {
        let bias = self.gradient().bias();
        let one = |rows: &Rows| Rows::uniform(1, rows.range(n).len());
        Ok(match self {
            Self::Linear(problem) => Self::Linear(
                Linear::new(one(problem.rows())?, problem.in_features(), problem.out_features())?
                    .with_bias(bias),
            ),
            Self::Conv2d(problem) => {
                Self::Conv2d(Conv2d::new(Conv2dSpec { samples: 1, ..*problem.spec() })?)
            }
            Self::Norm(problem) => {
                let (rows, features, eps) =
                    (one(problem.rows())?, problem.features(), problem.eps());
                let norm = match problem.kind() {
                    NormKind::Layer => Norm::layer(rows, features, eps)?,
                    NormKind::Rms => Norm::rms(rows, features, eps)?,
                    NormKind::Group { groups } => {
                        Norm::group(1, features, rows.total(), groups, eps)?
                    }
                };
                Self::Norm(norm.with_bias(bias))
            }
            Self::Embedding(problem, tokens) => Self::Embedding(
                Embedding::new(one(problem.rows())?, problem.vocabulary(), problem.features())?,
                tokens[problem.rows().range(n)].into(),
            ),
        })
    }
}
