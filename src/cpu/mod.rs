//! The fast CPU backend.
//!
//! Gradients of many rows per sample are *formed* tile by tile in cache-resident scratch,
//! squared, sketched, scaled and added to `dw` in one pass; those of few rows are *factored*.
//! Matrix products are faer's, threads are rayon's: run a call inside a pool of your own to
//! choose their number, which changes no bit of the result.
//!
//! ```
//! use gradroute::cpu::Cpu;
//! use gradroute::ops::{Backend, LayerOutputs, LinearInputs, Options};
//! use gradroute::problem::{Linear, Rows};
//! use gradroute::projection::Sketch;
//!
//! let layer = Linear::new(Rows::uniform(4, 16)?, 24, 32)?;
//! let (x, dy) = (vec![0.5_f32; 64 * 24], vec![0.25_f32; 64 * 32]);
//! let inputs = LinearInputs { x: &x, dy: &dy, weight: None };
//! let options = Options { sketch: Some(Sketch::two_sided(8, 1, 0)?), ..Options::default() };
//! let mut sketch = vec![0.0; 4 * 64];
//! let outputs = LayerOutputs { sketch: Some(&mut sketch), ..LayerOutputs::default() };
//! Cpu::new().linear(&layer, &options, inputs, None, outputs)?;
//! assert_eq!(sketch[..64], sketch[64..128]); // equal samples, equal sketches
//! # Ok::<(), gradroute::Error>(())
//! ```

mod bias;
mod buffers;
mod factored;
mod flush;
mod formed;
mod gemm;
mod linear;
mod lora;
mod regions;
mod signs;
#[cfg(test)]
mod tests;
mod workspace;

use crate::Result;
use crate::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, Options,
};
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm};
use crate::reference::Reference;

/// The backend and its workspace; one per thread that issues calls.
#[derive(Debug, Default)]
pub struct Cpu {
    workspace: workspace::Workspace,
}

impl Cpu {
    /// With an empty workspace, which grows with the calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes the workspace holds.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }
}

impl Backend for Cpu {
    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let workspace::Workspace { wide, linear: buffers, .. } = &mut self.workspace;
        linear::run(problem, options, inputs, dx, out, wide, buffers);
        Ok(())
    }

    fn run_conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        Reference.run_conv2d(problem, options, inputs, dx, out)
    }

    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        Reference.run_norm(problem, options, inputs, dx, out)
    }

    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        Reference.run_embedding(problem, options, inputs, out)
    }

    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        let workspace::Workspace { wide, linear, lora, .. } = &mut self.workspace;
        lora::run(problem, options, inputs, dx, out, (wide, lora, linear));
        Ok(())
    }
}
