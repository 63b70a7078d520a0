//! What the launches of all ops share: a call's surroundings, and the columns beside a matrix.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUdeviceptr;

use super::device::{Device, Grid};
use super::generated::{GRADROUTE_ALIGNED, GRADROUTE_THREADS, GradrouteLayer};
use super::plan::{Common, LONGEST_GRID};
use super::routing::DeviceRouting;
use super::run::{check_routing, check_stream};
use crate::Result;
use crate::problem::Dtype;

/// Device addresses of a call's buffers; 0 for those that are not there. Shapes as in [`crate::ops`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// The layer's input.
    pub x: CUdeviceptr,
    /// The gradient of its output.
    pub dy: CUdeviceptr,
    /// The layer's weight, for `dx`.
    pub weight: CUdeviceptr,
    /// An embedding's tokens, 32-bit, `[R]`.
    pub tokens: CUdeviceptr,
    /// Row offsets, 64-bit, `[N + 1]`.
    pub offsets: CUdeviceptr,
    /// Category ids, 32-bit, `[N]`; for a routed layer.
    pub categories: CUdeviceptr,
    /// Gates, f32, `[N]`; 0 means that all are open.
    pub gates: CUdeviceptr,
    /// As `x`.
    pub dx: CUdeviceptr,
    /// As the weight.
    pub dw: CUdeviceptr,
    /// `[O]`.
    pub db: CUdeviceptr,
    /// f32, `[N]`.
    pub sq_norm: CUdeviceptr,
    /// f32, `[N]`.
    pub sq_norm_bias: CUdeviceptr,
    /// f32, `[N, K]`.
    pub sketch: CUdeviceptr,
    /// One byte for each region.
    pub touched: CUdeviceptr,
    /// Of the plan's bytes, aligned to 256.
    pub workspace: CUdeviceptr,
}

/// One call's surroundings.
pub struct Call<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a Arc<CudaStream>,
    pub(super) plan: &'a Common,
    pub(super) at: &'a Pointers,
    /// Route weights, flow weights, map of regions.
    pub(super) tables: [CUdeviceptr; 3],
}

/// Queues a kernel: source and name, grid, arguments. In braces, so that arguments stay in lines.
macro_rules! launch {
    { $call:expr, $source:literal, $name:expr, $grid:expr; $($argument:expr),* $(,)? } => {{
        let grid: Grid = $grid;
        let function = $call.device.function($source, $name, grid.shared)?;
        $call.device.launch($call.stream, &function, grid, ($($argument,)*))
    }};
}
pub(super) use launch;

/// The flag of rows that all begin at multiples of 16 bytes, for numbers of so many.
pub(super) fn aligned(rows: &[(CUdeviceptr, u32)], bytes: u32) -> u32 {
    let whole = |at: u64| at.is_multiple_of(16);
    let all =
        rows.iter().all(|&(at, width)| whole(at) && whole(u64::from(width) * u64::from(bytes)));
    if all { GRADROUTE_ALIGNED } else { 0 }
}

impl<'a> Call<'a> {
    pub(super) fn new(
        device: &'a Device,
        stream: &'a Arc<CudaStream>,
        plan: &'a Common,
        routing: Option<&DeviceRouting>,
        at: &'a Pointers,
    ) -> Result<Self> {
        check_stream(device, stream)?;
        check_routing("", device, plan, routing)?;
        device.bind()?;
        let tables = routing.map_or([0; 3], |routing| routing.at);
        Ok(Self { device, stream, plan, at, tables })
    }

    pub(super) fn layer(&self) -> GradrouteLayer {
        self.plan.layer
    }

    /// A kernel's name for the inputs' format.
    pub(super) fn name(&self, kernel: &str) -> String {
        let format = match self.plan.dtype {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        };
        format!("{kernel}_{format}")
    }

    /// The layer, for kernels that copy rows of these buffers and widths 16 bytes at a time if they can.
    pub(super) fn aligned(&self, rows: &[(CUdeviceptr, u32)]) -> GradrouteLayer {
        let mut layer = self.layer();
        layer.flags |= aligned(rows, self.plan.dtype.size() as u32);
        layer
    }

    /// A part of the workspace.
    pub(super) fn work(&self, offset: u64) -> CUdeviceptr {
        self.at.workspace + offset
    }

    /// Turns over matrices of the layer's format, `[batch, rows, columns]`.
    pub(super) fn transpose(
        &self,
        from: CUdeviceptr,
        to: CUdeviceptr,
        [batch, rows, columns]: [u64; 3],
    ) -> Result<()> {
        if batch == 0 {
            return Ok(());
        }
        let (rows, columns) = (rows as u32, columns as u32);
        let most = u64::from(LONGEST_GRID);
        let blocks =
            [columns.div_ceil(32), rows.div_ceil(32).min(LONGEST_GRID), batch.min(most) as u32];
        let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: 0 };
        launch! { self, "transpose", &self.name("transpose"), grid; from, to, batch, rows, columns }
    }

    /// Which regions were touched, if asked for.
    pub(super) fn touched(&self) -> Result<()> {
        if !self.plan.wish.touched {
            return Ok(());
        }
        let (layer, at, [route, ..]) = (self.layer(), self.at, self.tables);
        let grid = Grid::plain(layer.regions.max(1).div_ceil(GRADROUTE_THREADS), 1);
        launch! { self, "reduce", "touched_regions", grid;
        layer, at.offsets, at.categories, route, at.gates, at.touched }
    }

    /// Each sample's sum of rows of `dy [R, O]`, `[N, O]`, to `g`.
    pub(super) fn sum_rows(&self, dy: CUdeviceptr, g: CUdeviceptr) -> Result<()> {
        let (layer, at) = (self.layer(), self.at);
        if layer.outputs == 0 || layer.samples == 0 {
            return Ok(());
        }
        let grid = Grid::plain(layer.outputs.div_ceil(32), layer.samples);
        launch! { self, "reduce", &self.name("sum_rows"), grid; layer, dy, at.offsets, g }
    }

    /// Sketches of nothing, or of the parts that tiles left: `[N, tiles, K]`.
    pub(super) fn reduce_sketches(&self, parts: CUdeviceptr, tiles: u64) -> Result<()> {
        let (layer, at, length) = (self.layer(), self.at, self.plan.sketch_length());
        if length == 0 || layer.samples == 0 {
            return Ok(());
        }
        let grid = Grid::plain(length.div_ceil(GRADROUTE_THREADS), layer.samples);
        launch! { self, "reduce", "reduce_sketches", grid;
        layer, at.offsets, parts, tiles, length, self.plan.sketch_factor(), at.sketch }
    }

    /// What becomes of a column of each sample's gradient, `g [N, outputs]` for samples that have rows: the
    /// weighted sum and the squared norms where there are buffers for them, and its share of the sketch, added.
    pub(super) fn column(
        &self,
        g: CUdeviceptr,
        column: u32,
        sum: CUdeviceptr,
        sq_norm: CUdeviceptr,
    ) -> Result<()> {
        let (layer, at, [route, _, map]) = (self.layer(), self.at, self.tables);
        if sum != 0 && layer.outputs > 0 {
            let grid = Grid::plain(layer.outputs.div_ceil(GRADROUTE_THREADS), 1);
            launch! { self, "reduce", &self.name("weigh_vectors"), grid;
            layer, g, at.offsets, at.categories, route, at.gates, map, column, sum }?;
        }
        if layer.samples == 0 {
            return Ok(());
        }
        if sq_norm != 0 {
            let grid = Grid::plain(layer.samples, 1);
            launch! { self, "reduce", "square_vectors", grid; layer, g, at.offsets, sq_norm }?;
        }
        if self.plan.sketched() && layer.outputs > 0 {
            let grid = Grid { threads: 32, ..Grid::plain(layer.samples, 1) };
            let factor = self.plan.sketch_factor();
            launch! { self, "reduce", "sketch_vectors", grid;
            layer, g, at.offsets, at.categories, route, at.gates, map, column, factor, at.sketch }?;
        }
        Ok(())
    }

    /// The bias' column.
    pub(super) fn bias(&self, g: CUdeviceptr) -> Result<()> {
        let (wish, at) = (&self.plan.wish, self.at);
        let db = if wish.request.db { at.db } else { 0 };
        let sq_norm = if wish.bias_norms { at.sq_norm_bias } else { 0 };
        self.column(g, self.plan.layer.inputs, db, sq_norm)
    }
}
