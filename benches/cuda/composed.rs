//! What a user would write with a GEMM library: the plain pass, and the records by way of each sample's
//! gradient in memory.

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use half::bf16;
use std::sync::Arc;

use crate::blas::{Blas, Product, Shape};
use crate::layer::{Buffers, address};
use crate::support::noise;

/// The most that the gradients, or a projection of them, may take: 4 GiB.
const MOST: usize = 4 << 30;
/// Side of the two-sided sketch.
const SIDE: usize = 16;

/// `dX` and `dW`.
pub fn plain<'a>(
    blas: &'a Blas,
    stream: &Arc<CudaStream>,
    [samples, rows, inputs, outputs]: [usize; 4],
    own: &Buffers,
) -> Result<impl FnMut() + use<'a>, String> {
    let total = samples * rows;
    let [x, dy, weight, dx] = [&own.x, &own.dy, &own.weight, &own.dx].map(|to| address(stream, to));
    let to_dx = Shape { wide: false, ..Shape::new(total, inputs, outputs) };
    let to_dx = blas.product(to_dx, [dy, weight, dx])?;
    let to_dw = Shape { turned: [true, false], ..Shape::new(outputs, inputs, total) };
    let to_dw = blas.product(to_dw, [dy, x, address(stream, &own.dw)])?;
    Ok(move || {
        to_dx.queue();
        to_dw.queue();
    })
}

/// The whole pass, with its buffers.
pub struct Composed<'a> {
    steps: Vec<Product<'a>>,
    /// Squared norms, f32.
    pub sq_norm: CudaSlice<f32>,
    /// What else the steps read and write.
    _half: Vec<CudaSlice<bf16>>,
    _single: CudaSlice<f32>,
}

impl<'a> Composed<'a> {
    /// `dX`; `G [N, O, I]` in bf16; the sum of all under one weight each; their norms; and a sketch:
    /// two-sided, `P_oᵀ · (G · P_i)`, or by a dense matrix of 256 columns.
    pub fn new(
        blas: &'a Blas,
        stream: &Arc<CudaStream>,
        [samples, rows, inputs, outputs]: [usize; 4],
        own: &Buffers,
        dense: bool,
    ) -> Result<Self, String> {
        let weights = outputs * inputs;
        let projection = if dense { crate::NUMBERS * weights } else { SIDE * (inputs + outputs) };
        for (what, numbers) in [("gradients", samples * weights), ("projection", projection)] {
            if 2 * numbers > MOST {
                return Err(format!("{what} of {} GiB", (2 * numbers) >> 30));
            }
        }
        let half = |len, filled| half_buffer(stream, len, filled);
        let gradients: CudaSlice<bf16> = half(samples * weights, false)?;
        let (routes, signs) = (half(samples, true)?, half(projection, true)?);
        let between = half(if dense { 1 } else { samples * outputs * SIDE }, false)?;
        let (sq_norm, sketch) = (zeros(stream, samples)?, zeros(stream, samples * crate::NUMBERS)?);
        let at = |slice: &CudaSlice<bf16>| address(stream, slice);
        let (x, dy, g, p, t) = (at(&own.x), at(&own.dy), at(&gradients), at(&signs), at(&between));
        let (dw, norms) = (address(stream, &own.dw), address(stream, &sq_norm));
        let s = address(stream, &sketch);
        let each = |shape: Shape, strides| Shape { batch: samples, strides, ..shape };
        let form =
            Shape { turned: [true, false], wide: false, ..Shape::new(outputs, inputs, rows) };
        let mut steps = vec![
            (
                Shape { wide: false, ..Shape::new(samples * rows, inputs, outputs) },
                [dy, at(&own.weight), at(&own.dx)],
            ),
            (each(form, [rows * outputs, rows * inputs]), [dy, x, g]),
            (Shape::new(1, weights, samples), [at(&routes), g, dw]),
            (each(Shape::new(1, 1, weights), [weights; 2]), [g, g, norms]),
        ];
        if dense {
            steps.push((Shape::new(samples, crate::NUMBERS, weights), [g, p, s]));
        } else {
            let right = Shape { wide: false, ..Shape::new(samples * outputs, SIDE, inputs) };
            let left = Shape { turned: [true, false], ..Shape::new(SIDE, SIDE, outputs) };
            steps.push((right, [g, p, t]));
            let p_o = p + 2 * (SIDE * inputs) as u64;
            steps.push((each(left, [0, outputs * SIDE]), [p_o, t, s]));
        }
        let steps = steps.into_iter().map(|(shape, at)| blas.product(shape, at));
        let steps = steps.collect::<Result<_, _>>()?;
        let halves = vec![gradients, routes, signs, between];
        Ok(Self { steps, sq_norm, _half: halves, _single: sketch })
    }

    /// Queues all of it.
    pub fn queue(&self) {
        self.steps.iter().for_each(Product::queue);
    }
}

fn zeros<T: DeviceRepr + ValidAsZeroBits>(
    stream: &Arc<CudaStream>,
    len: usize,
) -> Result<CudaSlice<T>, String> {
    stream.alloc_zeros(len).map_err(|_| format!("no room for {len} numbers"))
}

/// A buffer, of noise that repeats after a while if it is to be filled.
fn half_buffer(
    stream: &Arc<CudaStream>,
    len: usize,
    filled: bool,
) -> Result<CudaSlice<bf16>, String> {
    let mut buffer = zeros(stream, len)?;
    if filled {
        let numbers = noise(len.min(1 << 20), 4).into_iter().map(bf16::from_f32);
        let numbers: Vec<bf16> = numbers.collect();
        let mut at = 0;
        while at < len {
            let piece = &numbers[..numbers.len().min(len - at)];
            let mut to = buffer.slice_mut(at..at + piece.len());
            stream.memcpy_htod(piece, &mut to).map_err(|_| "a copy failed".to_string())?;
            at += piece.len();
        }
    }
    Ok(buffer)
}
