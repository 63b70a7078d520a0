//! LoRA: the two factors as linear layers that share `X` and `dY`.

use super::buffers::{narrow, same_mut, widened};
use super::gemm::{view, view_mut};
use super::linear::{Buffers, Wide, backward};
use super::narrow::par_product;
use super::workspace::{Grow, bytes};
use crate::ops::{LinearInputs, LoraInputs, LoraOutputs, Options};
use crate::problem::{Element, Lora};

/// Buffers between the factors, `[R, rank]` each but the last.
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
}

impl Between {
    pub(crate) fn bytes(&self) -> usize {
        bytes([&self.hidden, &self.d_hidden, &self.b, &self.turned])
    }
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
    let (total, rank, features) = (problem.rows().total(), problem.rank(), problem.in_features());
    let x = widened(inputs.x, &mut wide.x);
    let a = widened(inputs.a, &mut wide.weight);
    let dy = widened(inputs.dy, &mut wide.dy);
    // The scale goes to what is small, for `dY` is not.
    let scale = problem.scale();
    let b = between.b.grown(inputs.b.len());
    b.iter_mut().zip(inputs.b).for_each(|(to, from)| *to = scale * from.to_f32());
    let hidden = between.hidden.grown(total * rank);
    let turned = between.turned.grown(a.len());
    view_mut(turned, features, rank, rank).copy_from(view(a, rank, features, features).transpose());
    let (x_view, a_view) = (view(x, total, features, features), view(turned, features, rank, rank));
    par_product(view_mut(hidden, total, rank, rank), scale, x_view, a_view);
    let d_hidden = between.d_hidden.grown(total * rank);
    let of_b = LinearInputs { x: hidden, dy, weight: Some(b) };
    backward(&problem.b(), options[1], of_b, Some(d_hidden), out.b, buffers);
    let of_a = LinearInputs { x, dy: d_hidden, weight: Some(a) };
    let Some(dx) = dx else {
        return backward(&problem.a(), options[0], of_a, None, out.a, buffers);
    };
    if let Some(dx) = same_mut(dx) {
        return backward(&problem.a(), options[0], of_a, Some(dx), out.a, buffers);
    }
    let all = wide.dx.grown(dx.len());
    backward(&problem.a(), options[0], of_a, Some(all), out.a, buffers);
    narrow(all, dx);
}
