//! Backends of one kind of layer, for the suite: linear layers, and convolutions on buffers whose channels
//! come last, whereas the suite's own come first.

use gradroute::Result;
use gradroute::cuda::{Cuda, ImageLayout};
use gradroute::ops::{
    Backend, ConvInputs, EmbeddingInputs, LayerOutputs, LinearInputs, LoraInputs, LoraOutputs,
    NormInputs, Options, ParamGrad,
};
use gradroute::problem::{Conv2d, Element, Embedding, Linear, Lora, Norm};

use crate::support::case::Problem;
use crate::support::run::Tested;

/// A backend for linear layers alone, or for convolutions alone: then it turns every buffer over on its way
/// in and out.
pub struct Alone<const LINEAR: bool>(pub Cuda);

pub type Linears = Alone<true>;
pub type ChannelsLast = Alone<false>;

impl<const LINEAR: bool> Tested for Alone<LINEAR> {
    const SLOW: bool = Cuda::SLOW;

    fn covers(problem: &Problem) -> bool {
        match problem {
            Problem::Linear(_) => LINEAR,
            Problem::Conv2d(_) => !LINEAR,
            _ => false,
        }
    }
}

/// `[batch, rows, columns]` as `[batch, columns, rows]`.
fn turned<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    let size = (rows * columns).max(1);
    let one = |matrix: &[T]| {
        (0..columns)
            .flat_map(|c| (0..rows).map(move |r| (r, c)))
            .map(|(r, c)| matrix[r * columns + c])
            .collect::<Vec<_>>()
    };
    values.chunks(size).flat_map(one).collect()
}

fn turn_over<T: Copy>(values: &mut [T], sides: [usize; 2]) {
    let turned = turned(values, sides);
    values.copy_from_slice(&turned);
}

impl<const LINEAR: bool> Backend for Alone<LINEAR> {
    fn run_conv2d<T: Element>(
        &mut self,
        problem: &Conv2d,
        options: &Options,
        inputs: ConvInputs<T>,
        mut dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        let (spec, taps) = (problem.spec(), problem.gradient().taps());
        let image = [spec.in_channels, spec.size[0] * spec.size[1]];
        let positions = problem.out_size().iter().product();
        let kernel = [problem.channels_per_group(), taps];
        let x = turned(inputs.x, image);
        let dy = turned(inputs.dy, [spec.out_channels, positions]);
        let weight = inputs.weight.map(|weight| turned(weight, kernel));
        let LayerOutputs { mut dw, db, sq_norm, sq_norm_bias, sketch, touched } = out;
        let mut last = dw.as_ref().map(|dw| match dw {
            ParamGrad::F32(values) => (turned(values, kernel), Vec::new()),
            ParamGrad::Native(values) => (Vec::new(), turned(values, kernel)),
        });
        let grad = last.as_mut().zip(dw.as_ref()).map(|((wide, native), dw)| match dw {
            ParamGrad::F32(_) => ParamGrad::F32(wide),
            ParamGrad::Native(_) => ParamGrad::Native(native),
        });
        let out = LayerOutputs { dw: grad, db, sq_norm, sq_norm_bias, sketch, touched };
        let inputs = ConvInputs { x: &x, dy: &dy, weight: weight.as_deref() };
        let layout = ImageLayout::ChannelsLast;
        self.0.conv2d_laid_out(problem, layout, options, inputs, dx.as_deref_mut(), out)?;
        if let Some(dx) = dx {
            turn_over(dx, [image[1], image[0]]);
        }
        let back = [kernel[1], kernel[0]];
        match (&mut dw, last) {
            (Some(ParamGrad::F32(dw)), Some((wide, _))) => {
                dw.copy_from_slice(&turned(&wide, back));
            }
            (Some(ParamGrad::Native(dw)), Some((_, native))) => {
                dw.copy_from_slice(&turned(&native, back));
            }
            _ => {}
        }
        Ok(())
    }

    fn run_linear<T: Element>(
        &mut self,
        problem: &Linear,
        options: &Options,
        inputs: LinearInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        self.0.run_linear(problem, options, inputs, dx, out)
    }

    fn run_norm<T: Element>(
        &mut self,
        problem: &Norm,
        options: &Options,
        inputs: NormInputs<T>,
        dx: Option<&mut [T]>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        self.0.run_norm(problem, options, inputs, dx, out)
    }

    fn run_embedding<T: Element>(
        &mut self,
        problem: &Embedding,
        options: &Options,
        inputs: EmbeddingInputs<T>,
        out: LayerOutputs<T>,
    ) -> Result<()> {
        self.0.run_embedding(problem, options, inputs, out)
    }

    fn run_lora<T: Element>(
        &mut self,
        problem: &Lora,
        options: [&Options; 2],
        inputs: LoraInputs<T>,
        dx: Option<&mut [T]>,
        out: LoraOutputs<T>,
    ) -> Result<()> {
        self.0.run_lora(problem, options, inputs, dx, out)
    }
}
