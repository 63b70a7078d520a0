//! The calls every backend answers.

use super::{
    ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs, NormInputs,
    Options, check,
};
use crate::Result;
use crate::error::expect_len;
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm};

/// Somewhere to compute: [`crate::reference::Reference`], [`crate::cpu::Cpu`], and
/// [`crate::cuda::Cuda`] by way of the host's memory.
///
/// The provided methods are the public calls; each checks its arguments once and then hands
/// over to the `run_` method that the backend implements, which may rely on every size.
/// All of them return [`crate::Error::Argument`] naming the argument that is wrong, and write
/// nothing in that case; a device can fail otherwise.
pub trait Backend {
    /// Backward pass of a linear layer. `dx [R, I]` needs `inputs.weight`.
    ///
    /// # Errors
    /// See [`Backend`].
    fn linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let (rows, shape) = (problem.rows().total(), problem.gradient());
        expect_len("x", rows * shape.inputs(), inputs.x.len())?;
        expect_len("dy", rows * shape.outputs(), inputs.dy.len())?;
        check::dx(&dx, inputs.x.len(), inputs.weight, shape.weights())?;
        check::layer(shape, problem.rows().samples(), options, &out)?;
        self.run_linear(problem, options, inputs, dx, out)
    }

    /// Backward pass of a convolution. `dx [N, C, H, W]` needs `inputs.weight`.
    ///
    /// # Errors
    /// See [`Backend`].
    fn conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let (spec, [ho, wo]) = (problem.spec(), problem.out_size());
        let x_len = spec.samples * spec.in_channels * spec.size[0] * spec.size[1];
        expect_len("x", x_len, inputs.x.len())?;
        expect_len("dy", spec.samples * spec.out_channels * ho * wo, inputs.dy.len())?;
        check::dx(&dx, x_len, inputs.weight, problem.gradient().weights())?;
        check::layer(problem.gradient(), spec.samples, options, &out)?;
        self.run_conv2d(problem, options, inputs, dx, out)
    }

    /// Backward pass of a normalisation. `dx`, shaped as `x`, needs `inputs.weight`.
    ///
    /// # Errors
    /// See [`Backend`].
    fn norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let len = problem.rows().total() * problem.features();
        expect_len("x", len, inputs.x.len())?;
        expect_len("dy", len, inputs.dy.len())?;
        check::dx(&dx, len, inputs.weight, problem.features())?;
        check::layer(problem.gradient(), problem.rows().samples(), options, &out)?;
        self.run_norm(problem, options, inputs, dx, out)
    }

    /// Backward pass of an embedding: `dw [vocabulary, features]`.
    ///
    /// # Errors
    /// See [`Backend`]; also for a token outside the vocabulary.
    fn embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        expect_len("tokens", problem.rows().total(), inputs.tokens.len())?;
        expect_len("dy", problem.rows().total() * problem.features(), inputs.dy.len())?;
        check::tokens(inputs.tokens, problem.vocabulary())?;
        check::layer(problem.gradient(), problem.rows().samples(), options, &out)?;
        self.run_embedding(problem, options, inputs, out)
    }

    /// Backward pass of a LoRA branch, exactly as two linear layers in a row: `b`'s flow weight
    /// multiplies the gradient that reaches `a`, and `dx [R, I]` carries both; what a frozen layer beside
    /// the branch adds to it ([`LoraInputs::base`]), neither.
    /// `options` are `a`'s and `b`'s.
    ///
    /// # Errors
    /// See [`Backend`].
    fn lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        let (rows, samples) = (problem.rows().total(), problem.rows().samples());
        let (a, b) = (problem.a().gradient(), problem.b().gradient());
        expect_len("x", rows * problem.in_features(), inputs.x.len())?;
        expect_len("dy", rows * problem.out_features(), inputs.dy.len())?;
        expect_len("a", a.weights(), inputs.a.len())?;
        expect_len("b", b.weights(), inputs.b.len())?;
        if let Some(base) = inputs.base {
            expect_len("base", problem.out_features() * problem.in_features(), base.len())?;
        }
        check::dx(&dx, inputs.x.len(), Some(inputs.a), a.weights())?;
        check::layer(a, samples, options[0], &out.a)?;
        check::layer(b, samples, options[1], &out.b)?;
        self.run_lora(problem, options, inputs, dx, out)
    }

    /// [`Backend::linear`] on checked arguments.
    #[doc(hidden)]
    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()>;

    /// [`Backend::conv2d`] on checked arguments.
    #[doc(hidden)]
    fn run_conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()>;

    /// [`Backend::norm`] on checked arguments.
    #[doc(hidden)]
    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()>;

    /// [`Backend::embedding`] on checked arguments.
    #[doc(hidden)]
    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()>;

    /// [`Backend::lora`] on checked arguments.
    #[doc(hidden)]
    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()>;
}
