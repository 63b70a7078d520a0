//! Launches of a planned linear layer.

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr};

use super::device::{Device, Grid};
use super::generated::{GRADROUTE_ALIGNED, GRADROUTE_THREADS, GradrouteLayer};
use super::plan::LinearPlan;
use super::routing::DeviceRouting;
use crate::Result;
use crate::problem::Dtype;

/// Device addresses of a linear layer's buffers; 0 for those that are not there.
/// Shapes as in [`crate::ops`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearPointers {
    /// `[R, I]`.
    pub x: CUdeviceptr,
    /// `[R, O]`.
    pub dy: CUdeviceptr,
    /// `[O, I]`, for `dx`.
    pub weight: CUdeviceptr,
    /// Row offsets, 64-bit, `[N + 1]`.
    pub offsets: CUdeviceptr,
    /// Category ids, 32-bit, `[N]`; for a routed layer.
    pub categories: CUdeviceptr,
    /// Gates, f32, `[N]`; 0 means that all are open.
    pub gates: CUdeviceptr,
    /// `[R, I]`.
    pub dx: CUdeviceptr,
    /// `[O, I]`.
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
    /// Of [`LinearPlan::workspace`]'s bytes, aligned to 256.
    pub workspace: CUdeviceptr,
}

/// One call's surroundings.
struct Call<'a> {
    device: &'a Device,
    stream: &'a Arc<CudaStream>,
    plan: &'a LinearPlan,
    at: &'a LinearPointers,
    /// Route weights, flow weights, map of regions.
    tables: [CUdeviceptr; 3],
}

/// A kernel's argument: an address or a number, or the parameter struct.
macro_rules! launch {
    ($call:expr, $source:literal, $name:expr, $grid:expr, $($argument:expr),* $(,)?) => {{
        let grid: Grid = $grid;
        let function = $call.device.function($source, $name, grid.shared)?;
        $call.device.launch($call.stream, &function, grid, ($($argument,)*))
    }};
}

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
        at: &LinearPointers,
    ) -> Result<()> {
        device.bind()?;
        debug_assert_eq!(routing.map(|routing| routing.shape), self.wish.routing);
        let tables = routing.map_or([0; 3], |routing| {
            [
                routing.route.device_ptr(stream).0,
                routing.flow.device_ptr(stream).0,
                routing.map.device_ptr(stream).0,
            ]
        });
        let call = Call { device, stream, plan: self, at, tables };
        if self.wish.touched {
            call.touched()?;
        }
        if self.layer.samples == 0 && !self.wish.request.dw && !self.wish.request.db {
            return Ok(());
        }
        if self.wish.request.dx {
            call.dgrad()?;
        }
        if self.forms() {
            call.wgrad()?;
        }
        if self.bias { call.bias() } else { Ok(()) }
    }
}

impl Call<'_> {
    fn layer(&self) -> GradrouteLayer {
        self.plan.layer
    }

    fn suffix(&self) -> &'static str {
        match self.plan.dtype {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// The layer, for kernels that copy rows of these buffers and widths 16 bytes at a time if they can.
    fn aligned(&self, rows: &[(CUdeviceptr, u32)]) -> GradrouteLayer {
        let bytes = if self.plan.dtype == Dtype::F32 { 4 } else { 2 };
        let aligned = rows.iter().all(|&(at, width)| {
            at.is_multiple_of(16) && (u64::from(width) * bytes).is_multiple_of(16)
        });
        let mut layer = self.layer();
        layer.flags |= if aligned { GRADROUTE_ALIGNED } else { 0 };
        layer
    }

    fn work(&self, offset: u64) -> CUdeviceptr {
        self.at.workspace + offset
    }

    fn touched(&self) -> Result<()> {
        let (layer, at, [route, ..]) = (self.layer(), self.at, self.tables);
        let blocks = layer.regions.max(1).div_ceil(GRADROUTE_THREADS);
        launch!(
            self,
            "reduce",
            "touched_regions",
            Grid::plain(blocks, 1),
            layer,
            at.offsets,
            at.categories,
            route,
            at.gates,
            at.touched
        )
    }

    fn dgrad(&self) -> Result<()> {
        let (layer, at, [_, flow, map]) = (self.layer(), self.at, self.tables);
        if layer.rows == 0 || layer.inputs == 0 {
            return Ok(());
        }
        let layer = self.aligned(&[(at.dy, layer.outputs), (at.weight, layer.inputs)]);
        let name = format!("linear_dgrad_{}", self.suffix());
        let rows = layer.rows.div_ceil(128);
        let sides = [self.plan.tiles[1], rows.min(32768) as u32, rows.div_ceil(32768) as u32];
        let pitch = if self.plan.dtype == Dtype::F32 { 80 } else { 64 };
        let grid =
            Grid { blocks: sides, threads: GRADROUTE_THREADS, shared: 3 * 128 * (pitch + 64) };
        launch!(
            self,
            "linear_dgrad",
            &name,
            grid,
            layer,
            at.dy,
            at.weight,
            at.offsets,
            at.categories,
            flow,
            map,
            at.dx
        )
    }

    fn wgrad(&self) -> Result<()> {
        let (layer, at, plan, [route, _, map]) = (self.layer(), self.at, self.plan, self.tables);
        let workspace = &plan.workspace;
        let [totals, squares, sketches, stage] =
            [workspace.totals, workspace.squares, workspace.sketches, workspace.stage]
                .map(|offset| self.work(offset));
        let tiles = plan.tiles[0] * plan.tiles[1];
        if tiles > 0 {
            let layer = self.aligned(&[(at.x, layer.inputs), (at.dy, layer.outputs)]);
            let name = format!("linear_wgrad_{}", self.suffix());
            let blocks = [plan.tiles[1], plan.tiles[0], plan.parts];
            let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: plan.shared_bytes };
            launch!(
                self,
                "linear_wgrad",
                &name,
                grid,
                layer,
                at.x,
                at.dy,
                at.offsets,
                at.categories,
                route,
                at.gates,
                map,
                at.dw,
                totals,
                squares,
                sketches,
                stage
            )?;
        }
        if plan.wish.request.dw && plan.parts > 1 && tiles > 0 {
            let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
            let blocks = weights.div_ceil(u64::from(GRADROUTE_THREADS)).min(4096) as u32;
            let name = format!("reduce_totals_{}", self.suffix());
            launch!(
                self,
                "reduce",
                &name,
                Grid::plain(blocks, 1),
                layer,
                totals,
                plan.parts,
                at.dw
            )?;
        }
        if layer.samples == 0 {
            return Ok(());
        }
        if plan.wish.request.norms {
            let parts = u64::from(tiles) * 8;
            launch!(
                self,
                "reduce",
                "reduce_squares",
                Grid::plain(layer.samples, 1),
                layer,
                at.offsets,
                squares,
                parts,
                at.sq_norm
            )?;
        }
        let length = plan.sketch_length();
        if length > 0 {
            let grid = Grid::plain(length.div_ceil(GRADROUTE_THREADS), layer.samples);
            launch!(
                self,
                "reduce",
                "reduce_sketches",
                grid,
                layer,
                at.offsets,
                sketches,
                u64::from(tiles),
                length,
                plan.sketch_factor(),
                at.sketch
            )?;
        }
        Ok(())
    }

    /// The bias' gradients, and what is recorded of them.
    fn bias(&self) -> Result<()> {
        let (layer, at, plan, [route, _, map]) = (self.layer(), self.at, self.plan, self.tables);
        let g = self.work(plan.workspace.bias);
        if layer.outputs > 0 && layer.samples > 0 {
            let grid = Grid::plain(layer.outputs.div_ceil(32), layer.samples);
            let name = format!("sum_rows_{}", self.suffix());
            launch!(self, "reduce", &name, grid, layer, at.dy, at.offsets, g)?;
        }
        if plan.wish.request.db && layer.outputs > 0 {
            let grid = Grid::plain(layer.outputs.div_ceil(GRADROUTE_THREADS), 1);
            let name = format!("weigh_vectors_{}", self.suffix());
            launch!(
                self,
                "reduce",
                &name,
                grid,
                layer,
                g,
                at.offsets,
                at.categories,
                route,
                at.gates,
                map,
                at.db
            )?;
        }
        if layer.samples == 0 {
            return Ok(());
        }
        if plan.wish.bias_norms {
            let grid = Grid::plain(layer.samples, 1);
            launch!(self, "reduce", "square_vectors", grid, layer, g, at.sq_norm_bias)?;
        }
        if plan.sketch_length() > 0 && layer.outputs > 0 {
            let grid = Grid { threads: 32, ..Grid::plain(layer.samples, 1) };
            launch!(
                self,
                "reduce",
                "sketch_vectors",
                grid,
                layer,
                g,
                at.categories,
                route,
                at.gates,
                map,
                layer.inputs,
                plan.sketch_factor(),
                at.sketch
            )?;
        }
        Ok(())
    }
}
