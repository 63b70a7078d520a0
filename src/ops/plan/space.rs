//! What a plan divides work into, and the memory it takes.

use super::{Norms, Path, Plan, Request, Sketching};
use crate::problem::{GradientShape, Rows};
use crate::projection::SketchKind;

/// Edge of a micro-block of the count sketch, which tiles do not cut.
const EDGE: usize = 8;

/// Extents of a block that is formed in registers, with AVX-512.
pub(crate) const BLOCK: [usize; 2] = [14, 32];
/// Outputs of a task that forms blocks, about: as many as let a packed strip of columns be read seldom,
/// and fit the second-level cache with it.
pub(crate) const BAND: usize = 320;
/// Strips of blocks whose sums are kept until `dw` gets them, a KiB of a row at a time. One by one, 128
/// bytes of a row at a time, norms and `dw` took up to a tenth longer (`docs/performance.md`).
pub(crate) const STRIPS: usize = 8;
/// Rows of which blocks in registers keep a copy; no sample has more there.
pub(crate) const PACKED_ROWS: usize = 1024;

/// Rows of a sample from which on a matrix that fits a tile is formed in one piece.
pub(super) const MANY_ROWS: f64 = 512.0;

/// Most cells, the units of parallel work, a matrix is cut into.
const CELLS: usize = 16;

/// Tiles per cell on each side of the matrix.
pub(crate) fn tiles_per_cell(extents: [usize; 2], tile: [usize; 2]) -> [usize; 2] {
    let [rows, columns] = [0, 1].map(|side| extents[side].div_ceil(tile[side]));
    let per_row = rows.div_ceil(CELLS).max(1);
    let left = CELLS / rows.div_ceil(per_row).max(1);
    [per_row, columns.div_ceil(left).max(1)]
}

/// Extents of a tile for a matrix, so that it stays in a core's second-level cache between being formed
/// and being dropped, and at least four tiles where the matrix is worth sharing between threads; not where
/// samples have `many_rows`, for then the product is nearly all there is to share, and one of the whole
/// matrix copies its operands once. With AVX-512 that cache has a mebibyte or more, but on few processors,
/// and products want whole kernels of 64 columns; the larger a tile, the less is copied for its product.
pub(super) fn extents([outputs, inputs]: [usize; 2], many_rows: bool, avx512: bool) -> [usize; 2] {
    let (columns, step, numbers) = if avx512 { (640, 64, 1 << 17) } else { (256, EDGE, 1 << 16) };
    let fit = |extent: usize, parts: usize, step: usize| {
        // At least one micro-block, and none beyond the matrix.
        let last = extent.next_multiple_of(EDGE).max(EDGE);
        extent.div_ceil(parts).next_multiple_of(step).clamp(EDGE, last)
    };
    let width = fit(inputs, inputs.div_ceil(columns).max(1), step);
    let (across, mut down) = (inputs.div_ceil(width), outputs.div_ceil(numbers / width).max(1));
    let one = many_rows && across * down == 1;
    if outputs * inputs > 1 << 14 && across * down < 4 && !one {
        down = 4_usize.div_ceil(across);
    }
    [fit(outputs, down, EDGE), width]
}

/// [`Plan::workspace_bytes`].
pub(super) fn workspace(
    rows: &Rows,
    shape: GradientShape,
    plan: &Plan,
    request: Request,
    kind: Option<SketchKind>,
) -> usize {
    let (samples, outputs, inputs) = (rows.samples(), shape.outputs(), shape.inputs());
    let [tile_o, tile_i] = plan.tile;
    let (mut floats, mut kept) = (0, 0);
    if shape.bias() && (request.db || request.sketch) {
        floats += samples * outputs + outputs;
    }
    match kind {
        Some(SketchKind::TwoSided { outputs: k_o, inputs: k_i }) => {
            kept = k_o * k_i;
            floats += outputs * k_o + inputs * k_i;
            if shape.bias() {
                floats += outputs * k_o + k_i;
            }
            floats += match plan.sketch {
                Some(Sketching::ProjectRows) => rows.total() * (k_o + k_i),
                _ => tile_o.min(outputs) * k_i,
            };
        }
        Some(SketchKind::Count { buckets }) => {
            kept = buckets;
            let hashed = match plan.sketch {
                Some(Sketching::CountRows) => [outputs, inputs],
                _ => [tile_o, tile_i],
            };
            floats += 4 * hashed[0].div_ceil(8) * hashed[1].div_ceil(8) + 4 * (buckets + 64);
            floats += inputs.next_multiple_of(8);
        }
        None => {}
    }
    if plan.norms == Some(Norms::Blocks) {
        // Both operands copied, the sums of squares of blocks, sums of strips.
        let copied = rows.total().min(PACKED_ROWS);
        let [height, width] = BLOCK;
        floats += copied * (inputs.next_multiple_of(width) + outputs.next_multiple_of(height));
        floats += 2 * samples * outputs.div_ceil(height);
        floats += STRIPS * width * outputs.min(BAND);
    } else if plan.path == Path::Formed {
        let cell = tiles_per_cell([shape.outputs(), shape.inputs()], plan.tile);
        let cells = outputs.div_ceil(cell[0] * tile_o) * inputs.div_ceil(cell[1] * tile_i);
        floats += tile_o * tile_i + cells * samples * (kept + 2);
    } else if request.norms {
        floats += 2 * rows.longest() * rows.longest();
    }
    4 * floats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_of_whole_micro_blocks_and_enough() {
        for [avx512, many] in [[false; 2], [false, true], [true, false], [true; 2]] {
            for outputs in [0, 1, 7, 8, 9, 64, 128, 320, 640, 1280, 10_240] {
                for inputs in [0, 1, 16, 40, 320, 512, 640, 768, 1024, 1280, 5120] {
                    let tile = extents([outputs, inputs], many, avx512);
                    let what = format!("{outputs} × {inputs}, {many}, {avx512}: {tile:?}");
                    let tiles = outputs.div_ceil(tile[0]) * inputs.div_ceil(tile[1]);
                    assert!(tile.iter().all(|tile| tile % EDGE == 0 && *tile > 0), "{what}");
                    assert!(tile[0] <= outputs.next_multiple_of(EDGE).max(EDGE), "{what}");
                    assert!(tile[1] <= inputs.next_multiple_of(EDGE).max(EDGE), "{what}");
                    assert!(tile[0] * tile[1] <= (1 << 17) + 640 * EDGE, "{what}");
                    let few = outputs.div_ceil(EDGE) < 4;
                    let small = outputs * inputs <= 1 << 14;
                    assert!(tiles >= 4 || few || small || many && tiles == 1, "{what}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_fits_is_one_tile_for_many_rows() {
        assert_eq!(extents([320, 320], true, true), [320, 320]);
        assert_eq!(extents([320, 320], false, true), [80, 320]);
        assert_eq!(extents([640, 640], true, true), extents([640, 640], false, true));
    }
}
