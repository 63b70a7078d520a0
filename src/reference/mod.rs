//! The ops in plain f64 loops: no cleverness, obviously right, and the judge of every backend.
//!
//! Each sample's gradient matrix is written out in full, then measured, sketched, weighted and
//! added up, one after the other. [`Reference`] is a [`Backend`] like any other; the functions
//! beside it return every output at once, unrounded.
//!
//! ```
//! use gradroute::ops::{LinearInputs, Options};
//! use gradroute::problem::{Linear, Rows};
//! use gradroute::reference;
//!
//! let layer = Linear::new(Rows::uniform(2, 1)?, 2, 1)?; // two samples of one row, 2 → 1
//! let inputs = LinearInputs { x: &[1.0, 2.0, 3.0, 4.0], dy: &[1.0, -1.0], weight: None };
//! let all = reference::linear::<f32>(&layer, &Options::default(), inputs)?;
//! assert_eq!(all.dw, [-2.0, -2.0]);
//! assert_eq!(all.sq_norm, [5.0, 25.0]);
//! # Ok::<(), gradroute::Error>(())
//! ```

mod gradients;
mod layers;
mod output;

pub use gradients::Gradients;

use crate::Result;
use crate::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, Options,
};
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm};

/// Every output of [`Backend::linear`]; `dx` only with a weight.
/// Time `O(R · I · O)`, memory one gradient matrix.
///
/// # Errors
/// As [`Backend::linear`].
pub fn linear<T: Element>(
    problem: &Linear,
    options: &Options,
    inputs: LinearInputs<T>,
) -> Result<Gradients> {
    // A call that asks for nothing computes nothing, but checks every input.
    Reference.linear(problem, options, inputs, None, LayerOutputs::default())?;
    Ok(layers::linear_of(problem, options, inputs))
}

/// Every output of [`Backend::conv2d`]; `dx` only with a weight.
/// Time `O(N · O · Ho · Wo · kh · kw · C / groups)`, memory one gradient matrix.
///
/// # Errors
/// As [`Backend::conv2d`].
pub fn conv2d<T: Element>(
    problem: &Conv2d,
    options: &Options,
    inputs: ConvInputs<T>,
) -> Result<Gradients> {
    Reference.conv2d(problem, options, inputs, None, LayerOutputs::default())?;
    Ok(layers::conv2d(problem, options, inputs))
}

/// Every output of [`Backend::norm`]; `dx` only with a weight. Time `O(R · features)`.
///
/// # Errors
/// As [`Backend::norm`].
pub fn norm<T: Element>(
    problem: &Norm,
    options: &Options,
    inputs: NormInputs<T>,
) -> Result<Gradients> {
    Reference.norm(problem, options, inputs, None, LayerOutputs::default())?;
    Ok(layers::norm(problem, options, inputs))
}

/// Every output of [`Backend::embedding`]. Time and memory are those of one dense table per
/// sample.
///
/// # Errors
/// As [`Backend::embedding`].
pub fn embedding<T: Element>(
    problem: &Embedding,
    options: &Options,
    inputs: EmbeddingInputs<T>,
) -> Result<Gradients> {
    Reference.embedding(problem, options, inputs, LayerOutputs::default())?;
    Ok(layers::embedding(problem, options, inputs))
}

/// Every output of [`Backend::lora`], for `a` and `b`: `a`'s `dx` is the branch's, `b`'s is the
/// gradient that reaches `a`. Time as two linear layers.
///
/// # Errors
/// As [`Backend::lora`].
pub fn lora<T: Element>(
    problem: &Lora,
    options: [&Options; 2],
    inputs: LoraInputs<T>,
) -> Result<[Gradients; 2]> {
    Reference.lora(problem, options, inputs, None, LoraOutputs::default())?;
    Ok(layers::lora(problem, options, inputs))
}

/// The reference as a backend: f64 inside, each output rounded once at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference;

impl Backend for Reference {
    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        output::answer(dx, out, options, || layers::linear_of(problem, options, inputs))
    }

    fn run_conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        output::answer(dx, out, options, || layers::conv2d(problem, options, inputs))
    }

    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        output::answer(dx, out, options, || layers::norm(problem, options, inputs))
    }

    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        output::answer(None, out, options, || layers::embedding(problem, options, inputs))
    }

    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        if dx.is_none() && output::asks_nothing(&out.a) && output::asks_nothing(&out.b) {
            return Ok(());
        }
        let [a, b] = layers::lora(problem, options, inputs);
        output::answer(dx, out.a, options[0], || a)?;
        output::answer(None, out.b, options[1], || b)
    }
}
