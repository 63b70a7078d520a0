//! The two-sided sketch's sign matrices, drawn anew for every call.

use rayon::prelude::*;

use super::formed::Signs;
use super::gemm::view;
use super::workspace::Grow;
use crate::problem::GradientShape;
use crate::projection::{Side, SignMatrix};

/// Rows drawn by one task: enough to be worth it.
const ROWS: usize = 512;

/// `P_o [outputs, k_o]` and `P_i [inputs, k_i]`, row-major, into the buffers.
pub(crate) fn draw<'a>(
    key: [u32; 2],
    shape: GradientShape,
    [k_o, k_i]: [usize; 2],
    [left, right]: &'a mut [Vec<f32>; 2],
) -> Signs<'a> {
    let (outputs, inputs) = (shape.outputs(), shape.inputs());
    let (left, right) = (left.grown(outputs * k_o), right.grown(inputs * k_i));
    rayon::join(
        || draw_side(SignMatrix::new(key, Side::Outputs, outputs, k_o), k_o, left),
        || draw_side(SignMatrix::new(key, Side::Inputs, inputs, k_i), k_i, right),
    );
    Signs { outputs: view(left, outputs, k_o, k_o), inputs: view(right, inputs, k_i, k_i) }
}

fn draw_side(matrix: SignMatrix, k: usize, signs: &mut [f32]) {
    signs.par_chunks_mut(ROWS * k.max(1)).enumerate().for_each(|(part, signs)| {
        pulp::Arch::new().dispatch(|| matrix.rows(part * ROWS, signs));
    });
}
