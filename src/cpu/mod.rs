//! The fast CPU backend.
//!
//! Gradients of many rows per sample are *formed* tile by tile in cache-resident scratch,
//! squared, sketched, scaled and added to `dw` in one pass; those of few rows are *factored*. Between
//! the two, with AVX-512 and no count sketch, they are formed block by block in registers for their
//! norms.
//! Matrix products are a library's, threads are rayon's: run a call inside a pool of your own to
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
mod blas;
mod blocks;
mod buffers;
mod column;
mod conv2d;
mod conv_dw;
mod conv_dx;
mod conv_forward;
mod conv_gram;
mod conv_records;
mod conv_sketch;
mod embedding;
mod factored;
mod flush;
mod formed;
mod forward;
mod gemm;
mod gram;
mod im2col;
mod linear;
mod lora;
mod narrow;
mod norm;
mod packed;
mod patches;
mod regions;
mod signs;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod workspace;

pub use blas::use_blas;
pub use lora::LoraOperands;

use crate::Result;
use crate::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, Options,
};
use crate::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm};

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

/// Does all of a call on a thread of the current rayon pool: from outside, every parallel step
/// would wake a thread of the pool and wait for it.
fn in_pool(call: impl FnOnce() + Send) {
    rayon::join(call, || ());
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
        in_pool(|| linear::run(problem, options, inputs, dx, out, wide, buffers));
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
        let workspace::Workspace { conv, linear, .. } = &mut self.workspace;
        let threads = &mut linear.threads;
        in_pool(|| conv2d::run(problem, options, inputs, dx, out, conv, threads));
        Ok(())
    }

    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let workspace::Workspace { norm, linear, .. } = &mut self.workspace;
        let threads = &mut linear.threads;
        in_pool(|| norm::run(problem, options, inputs, dx, out, norm, threads));
        Ok(())
    }

    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let workspace::Workspace { embedding, linear, .. } = &mut self.workspace;
        let threads = &mut linear.threads;
        in_pool(|| embedding::run(problem, options, inputs, out, embedding, threads));
        Ok(())
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
        in_pool(|| lora::run(problem, options, inputs, dx, out, (wide, lora, linear)));
        Ok(())
    }
}
