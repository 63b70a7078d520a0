//! LoRA: the two factors as linear layers that share `X` and `dY`, beside a frozen layer.

use super::Cpu;
use super::buffers::{widened, with_values};
use super::forward::add_bias;
use super::gemm::{Write, par_gemm, view, view_mut};
use super::linear::{Buffers, Wide, backward};
use super::narrow::par_product;
use super::workspace::{Grow, bytes};
use crate::Result;
use crate::error::expect_len;
use crate::ops::{LinearInputs, LoraInputs, LoraOutputs, Options};
use crate::problem::{Element, Lora};

/// Buffers between the factors, `[R, rank]` each but the last three.
#[derive(Debug, Default)]
pub(crate) struct Between {
    /// `scale · X Aᵀ`.
    hidden: Vec<f32>,
    /// The gradient that reaches `X Aᵀ`.
    d_hidden: Vec<f32>,
    /// `scale · B`.
    b: Vec<f32>,
    /// `Aᵀ`.
    turned: Vec<f32>,
    /// The frozen layer's weight, where that is not `f32`.
    base: Vec<f32>,
}

impl Between {
    pub(crate) fn bytes(&self) -> usize {
        bytes([&self.hidden, &self.d_hidden, &self.b, &self.turned, &self.base])
    }
}

/// `hidden [R, rank] = scale · X Aᵀ`.
fn hide<'a>(
    problem: &Lora,
    [x, a]: [&[f32]; 2],
    [hidden, turned]: [&'a mut Vec<f32>; 2],
) -> &'a mut [f32] {
    let (total, rank, features) = (problem.rows().total(), problem.rank(), problem.in_features());
    let hidden = hidden.grown(total * rank);
    let turned = turned.grown(a.len());
    view_mut(turned, features, rank, rank).copy_from(view(a, rank, features, features).transpose());
    let (x, a) = (view(x, total, features, features), view(turned, features, rank, rank));
    par_product(view_mut(hidden, total, rank, rank), problem.scale(), x, a);
    hidden
}

/// [`crate::ops::Backend::lora`] on checked arguments.
pub(crate) fn run<T: Element>(
    problem: &Lora,
    options: [&Options; 2],
    inputs: LoraInputs<T>,
    dx: Option<&mut [T]>,
    out: LoraOutputs<T>,
    (wide, between, buffers): (&mut Wide, &mut Between, &mut Buffers),
) {
    let (total, rank) = (problem.rows().total(), problem.rank());
    let (features, outputs) = (problem.in_features(), problem.out_features());
    let x = widened(inputs.x, &mut wide.x);
    let a = widened(inputs.a, &mut wide.weight);
    let dy = widened(inputs.dy, &mut wide.dy);
    let Between { hidden, d_hidden, b, turned, base } = between;
    // The scale goes to what is small, for `dY` is not.
    let scale = problem.scale();
    let b = b.grown(inputs.b.len());
    b.iter_mut().zip(inputs.b).for_each(|(to, from)| *to = scale * from.to_f32());
    let hidden = hide(problem, [x, a], [hidden, turned]);
    let d_hidden = d_hidden.grown(total * rank);
    let of_b = LinearInputs { x: hidden, dy, weight: Some(b) };
    backward(&problem.b(), options[1], of_b, Some(d_hidden), out.b, buffers);
    let of_a = LinearInputs { x, dy: d_hidden, weight: Some(a) };
    let Some(dx) = dx else {
        return backward(&problem.a(), options[0], of_a, None, out.a, buffers);
    };
    let base = inputs.base.map(|weight| widened(weight, base));
    // The branch first, for its flow weights are applied to what is there.
    let whole = |dx: &mut [f32]| {
        backward(&problem.a(), options[0], of_a, Some(dx), out.a, buffers);
        let Some(base) = base else { return };
        let (dy, base) =
            (view(dy, total, outputs, outputs), view(base, outputs, features, features));
        par_gemm(view_mut(dx, total, features, features), Write::Add, 1.0, dy, base);
    };
    with_values(dx, &mut wide.dx, whole);
}

/// What a LoRA layer computes from.
#[derive(Clone, Copy, Debug)]
pub struct LoraOperands<'a, T> {
    /// `[R, I]`.
    pub x: &'a [T],
    /// `[rank, I]`.
    pub a: &'a [T],
    /// `[O, rank]`.
    pub b: &'a [T],
    /// Weight of the layer that the branch stands beside, `[O, I]`.
    pub base: &'a [T],
    /// Bias of that layer, `[O]`.
    pub bias: Option<&'a [T]>,
}

impl Cpu {
    /// `y [R, O] = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ`, a LoRA branch and the layer beside it.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) naming the buffer of the wrong size.
    pub fn lora_forward<T: Element>(
        &mut self,
        problem: &Lora,
        operands: LoraOperands<T>,
        y: &mut [T],
    ) -> Result<()> {
        let (rows, rank) = (problem.rows().total(), problem.rank());
        let (features, outputs) = (problem.in_features(), problem.out_features());
        let LoraOperands { x, a, b, base, bias } = operands;
        expect_len("x", rows * features, x.len())?;
        expect_len("a", rank * features, a.len())?;
        expect_len("b", outputs * rank, b.len())?;
        expect_len("base", outputs * features, base.len())?;
        if let Some(bias) = bias {
            expect_len("bias", outputs, bias.len())?;
        }
        expect_len("y", rows * outputs, y.len())?;
        if y.is_empty() {
            return Ok(());
        }
        let super::workspace::Workspace { wide, lora, .. } = &mut self.workspace;
        let x = widened(x, &mut wide.x);
        let a = widened(a, &mut wide.weight);
        let b = view(widened(b, &mut lora.b), outputs, rank, rank).transpose();
        let base = view(widened(base, &mut lora.base), outputs, features, features).transpose();
        let bias = bias.map(|bias| widened(bias, &mut wide.dy));
        let hidden =
            view(hide(problem, [x, a], [&mut lora.hidden, &mut lora.turned]), rows, rank, rank);
        let x = view(x, rows, features, features);
        let whole = |y: &mut [f32]| {
            par_gemm(view_mut(y, rows, outputs, outputs), Write::Replace, 1.0, x, base);
            par_gemm(view_mut(y, rows, outputs, outputs), Write::Add, 1.0, hidden, b);
            if let Some(bias) = bias {
                add_bias(y, bias);
            }
        };
        with_values(y, &mut wide.dx, whole);
        Ok(())
    }
}
