//! Launches of a planned linear layer.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::call::{Call, Pointers, launch};
use super::device::{Device, Grid};
use super::generated::{GRADROUTE_THREADS, GRADROUTE_TILE, GRADROUTE_WARPS};
use super::plan::LinearPlan;
use super::routing::DeviceRouting;
use crate::Result;
use crate::problem::Dtype;

impl LinearPlan {
    /// Queues the kernels on the caller's stream. Nothing is allocated and nothing is waited for.
    ///
    /// # Safety
    /// Each address that the plan's wishes need is that of a buffer of the stated shape and format in
    /// the stream's context, lives until the stream is through, and none overlaps an output.
    /// Offsets, categories and regions are those that the plan was made for.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], [`crate::Error::DeviceUnsupported`].
    pub unsafe fn launch(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        routing: Option<&DeviceRouting>,
        at: &Pointers,
    ) -> Result<()> {
        let call = Call::new(device, stream, &self.common, routing, at)?;
        call.touched()?;
        if self.common.wish.request.dx {
            self.dgrad(&call)?;
        }
        if self.common.forms() {
            self.wgrad(&call)?;
        }
        if !self.common.bias_asked() {
            return Ok(());
        }
        let g = call.work(self.workspace.bias);
        call.sum_rows(g)?;
        call.bias(g)
    }

    fn dgrad(&self, call: &Call) -> Result<()> {
        let (layer, at, [_, flow, map]) = (call.layer(), call.at, call.tables);
        if layer.rows == 0 || layer.inputs == 0 {
            return Ok(());
        }
        let layer = call.aligned(&[(at.dy, layer.outputs), (at.weight, layer.inputs)]);
        let rows = layer.rows.div_ceil(u64::from(GRADROUTE_TILE));
        let blocks = [self.tiles[1], rows.min(32768) as u32, rows.div_ceil(32768) as u32];
        // Three stages of 128 rows of dY and of W; in f32 rows of dY are kept apart.
        let pitch = if self.common.dtype == Dtype::F32 { 80 } else { 64 };
        let shared = 3 * GRADROUTE_TILE * (pitch + 64);
        let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared };
        launch! { call, "linear_dgrad", &call.name("linear_dgrad"), grid;
        layer, at.dy, at.weight, at.offsets, at.categories, flow, map, at.dx }
    }

    fn wgrad(&self, call: &Call) -> Result<()> {
        let (layer, at, [route, _, map]) = (call.layer(), call.at, call.tables);
        let (request, parts) = (&self.common.wish.request, &self.workspace);
        let [totals, squares, sketches, stage] =
            [parts.totals, parts.squares, parts.sketches, parts.stage].map(|part| call.work(part));
        let tiles = self.tiles[0] * self.tiles[1];
        if tiles > 0 {
            let layer = call.aligned(&[(at.x, layer.inputs), (at.dy, layer.outputs)]);
            let blocks = [self.tiles[1], self.tiles[0], self.parts];
            let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: self.shared_bytes };
            launch! { call, "linear_wgrad", &call.name("linear_wgrad"), grid;
            layer, at.x, at.dy, at.offsets, at.categories, route, at.gates, map, at.dw, totals,
            squares, sketches, stage }?;
        }
        if request.dw && self.parts > 1 && tiles > 0 {
            let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
            let blocks = weights.div_ceil(u64::from(GRADROUTE_THREADS)).min(4096) as u32;
            launch! { call, "reduce", &call.name("reduce_totals"), Grid::plain(blocks, 1);
            layer, totals, self.parts, at.dw }?;
        }
        if request.norms && layer.samples > 0 {
            let parts = u64::from(tiles) * u64::from(GRADROUTE_WARPS);
            launch! { call, "reduce", "reduce_squares", Grid::plain(layer.samples, 1);
            layer, at.offsets, squares, parts, at.sq_norm }?;
        }
        call.reduce_sketches(sketches, u64::from(tiles))
    }
}
