//! The formed path of linear layers and convolutions: plan and launches.

use std::fmt;

use cudarc::driver::LaunchArgs;
use cudarc::driver::PushKernelArg;
use cudarc::driver::sys::CUdeviceptr;

use super::call::{Call, launch};
use super::device::{Arguments, Grid};
use super::generated as abi;
use super::generated::{GRADROUTE_THREADS, GRADROUTE_TILE, GRADROUTE_WARPS};
use super::plan::{Common, LONGEST_GRID, Parts, Properties};
use crate::problem::Rows;
use crate::{Error, Result};

/// How weight gradients are formed: each sample's tile by tile, in accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormedPlan {
    /// Tiles of the gradient matrix, `[outputs, inputs]`.
    pub tiles: [u32; 2],
    /// Parts of the samples, each a row of blocks with its own running total.
    pub parts: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether a two-sided sketch is taken of the rows, `(dY P_o)ᵀ (X P_i)`, not of the finished tiles:
    /// cheaper for few rows a sample.
    pub sketch_by_rows: bool,
    /// Sketches that are added up for each sample.
    sketch_parts: u32,
    at: Places,
}

/// Where the parts of the workspace begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    /// Running totals, one for each part of the samples.
    totals: u64,
    /// Squares, one for each sample and tile.
    squares: u64,
    /// Sketches, one for each sample and tile, or part of its rows.
    sketches: u64,
    /// Sketches in the making, where shared memory has no room for them.
    stage: u64,
    /// Projections of the rows, one for each tile on either side.
    projected: u64,
}

/// Rows of a batch, as plans see them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Of all samples.
    pub(super) rows: u64,
    /// Of the sample that has most.
    pub(super) longest: u64,
    /// Whether rows can be projected as they are: 16-bit numbers, and no groups of outputs.
    pub(super) plain_rows: bool,
}

impl Extent {
    pub(super) fn of(rows: &Rows, plain_rows: bool) -> Self {
        Self { rows: rows.total() as u64, longest: rows.longest() as u64, plain_rows }
    }
}

/// Three stages of two matrices of 64 · 128 bytes.
const STAGES_BYTES: u32 = 3 * 2 * 64 * GRADROUTE_TILE;
/// A count sketch's places: a word for each micro-block of a warp and lane.
const PLACES_BYTES: u32 = GRADROUTE_WARPS * 32 * 32 * 4;
/// Sums of a two-sided sketch's first product.
const SUMS_BYTES: u32 = 2 * 8 * 32 * 16;
/// What the kernel declares statically, and the driver keeps for itself, rounded up.
const STATIC_BYTES: u32 = 9 << 10;

/// Tiles that a side of the matrix needs.
pub(super) fn tiles(extent: usize) -> usize {
    extent.div_ceil(GRADROUTE_TILE as usize)
}

/// Plans the formed path over tiles `[outputs, inputs]`.
///
/// # Errors
/// [`Error::Argument`] for a layer larger than a launch can be.
pub(super) fn plan_formed(
    common: &mut Common,
    tiles: [usize; 2],
    extent: Extent,
    properties: &Properties,
    take: &mut Parts,
) -> Result<FormedPlan> {
    if tiles[0] > LONGEST_GRID as usize {
        let most = LONGEST_GRID as usize * GRADROUTE_TILE as usize;
        return Err(Error::argument("outputs", format!("at most {most}"), common.layer.outputs));
    }
    let tiles = tiles.map(|count| count as u32);
    let all_tiles = tiles[0] * tiles[1];
    let samples = common.layer.samples;
    let parts = (properties.multiprocessors / all_tiles.max(1)).clamp(1, samples.max(1));
    let sketch_by_rows = takes_rows(common, tiles, extent);
    let (sketched, layer) = (common.sketched(), &mut common.layer);
    let (k_o, k_i) = (u64::from(layer.sketch_outputs), u64::from(layer.sketch_inputs));
    let (length, warps) = (k_o * k_i, u64::from(GRADROUTE_WARPS));
    let beside = match layer.sketch {
        abi::GRADROUTE_SKETCH_COUNT => PLACES_BYTES,
        abi::GRADROUTE_SKETCH_TWO_SIDED if !sketch_by_rows => SUMS_BYTES,
        _ => 0,
    };
    let stage = if sketch_by_rows { 0 } else { 4 * warps * length };
    let before = STAGES_BYTES + beside;
    let shared = stage + u64::from(before + STATIC_BYTES) <= u64::from(properties.shared_bytes);
    layer.flags |= if shared { abi::GRADROUTE_STAGE_SHARED } else { 0 };
    layer.flags |= if sketch_by_rows { abi::GRADROUTE_SKETCH_ROWS } else { 0 };
    let sketch_parts = match sketch_by_rows {
        true => extent.longest.div_ceil(u64::from(abi::GRADROUTE_SKETCH_ROWS_PART)),
        false => u64::from(all_tiles),
    };
    let [samples, all_tiles] = [samples, all_tiles].map(u64::from);
    let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
    let rows = u64::from(tiles[0]) * k_o + u64::from(tiles[1]) * k_i;
    let request = &common.wish.request;
    let at = Places {
        totals: take.take(request.dw && parts > 1, 4 * u64::from(parts) * weights),
        squares: take.take(request.norms, 4 * samples * all_tiles),
        sketches: take.take(sketched, 4 * samples * sketch_parts * length),
        stage: take.take(sketched && !shared, u64::from(parts) * all_tiles * stage),
        projected: take.take(sketch_by_rows, 4 * extent.rows * rows),
    };
    let shared_bytes = before + if shared { stage as u32 } else { 0 };
    let sketch_parts = u32::try_from(sketch_parts)
        .map_err(|_| Error::argument("offsets", "fewer than 2^38 rows a sample", extent.longest))?;
    Ok(FormedPlan { tiles, parts, shared_bytes, sketch_by_rows, sketch_parts, at })
}

/// Whether a sketch of the rows is possible, and takes fewer matrix instructions.
fn takes_rows(common: &Common, tiles: [u32; 2], extent: Extent) -> bool {
    let layer = &common.layer;
    let sides = [layer.sketch_outputs, layer.sketch_inputs];
    let possible = layer.sketch == abi::GRADROUTE_SKETCH_TWO_SIDED
        && sides.iter().all(|&side| side <= abi::GRADROUTE_SKETCH_ROWS_MOST)
        // One weight holds for a sample's sketch, and one matrix for all of its outputs.
        && (layer.flags & abi::GRADROUTE_SKETCH_ROUTED == 0 || layer.regions <= 1)
        && extent.plain_rows;
    let [k_o, k_i] = sides.map(|side| u64::from(side.div_ceil(8)));
    // Of 32 rows: eight instructions for each 16 of them and 8 columns. Of a sample's tile: see
    // two_sided.cuh.
    let of_rows =
        extent.rows.div_ceil(32) * 16 * (u64::from(tiles[0]) * k_o + u64::from(tiles[1]) * k_i);
    let all = u64::from(tiles[0]) * u64::from(tiles[1]) * u64::from(layer.samples);
    let of_tiles = all * u64::from(GRADROUTE_WARPS) * k_i.div_ceil(2) * (32 + 2 * k_o);
    possible && of_rows < of_tiles
}

impl fmt::Display for FormedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "formed in {} × {} tiles", self.tiles[0], self.tiles[1])?;
        write!(f, " of {GRADROUTE_TILE} × {GRADROUTE_TILE}")?;
        write!(f, ", samples in {} parts", self.parts)?;
        write!(f, "{}", if self.sketch_by_rows { ", sketched by rows" } else { "" })?;
        write!(f, ", {} KiB of shared memory a block", self.shared_bytes.div_ceil(1024))
    }
}

/// A kernel's own arguments before those of all formed kernels.
struct Before<H>(H, [CUdeviceptr; 11]);

impl<H: Arguments> Arguments for Before<H> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        self.0.push(launch);
        for address in &self.1 {
            launch.arg(address);
        }
    }
}

impl Call<'_> {
    /// Queues a formed kernel, with `head` before the common arguments, and the second stages.
    pub(super) fn form(
        &self,
        plan: &FormedPlan,
        source: &'static str,
        name: &str,
        head: impl Arguments,
    ) -> Result<()> {
        let (layer, at, [route, _, map]) = (self.layer(), self.at, self.tables);
        let Places { totals, squares, sketches, stage, projected } = plan.at;
        let [totals, squares, sketches, stage, projected] =
            [totals, squares, sketches, stage, projected].map(|part| self.work(part));
        let [outputs, inputs] = plan.tiles;
        let (tiles, request) = (outputs * inputs, &self.plan.wish.request);
        if tiles > 0 {
            let blocks = [inputs, outputs, plan.parts];
            let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: plan.shared_bytes };
            let tail = [
                at.offsets,
                at.categories,
                route,
                at.gates,
                map,
                at.dw,
                totals,
                squares,
                sketches,
                stage,
                projected,
            ];
            let function = self.device.function(source, &self.name(name), grid.shared)?;
            self.device.launch(self.stream, &function, grid, Before(head, tail))?;
        }
        if request.dw && plan.parts > 1 && tiles > 0 {
            let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
            let blocks = weights.div_ceil(4 * u64::from(GRADROUTE_THREADS)).min(4096) as u32;
            launch! { self, "reduce", &self.name("reduce_totals"), Grid::plain(blocks, 1);
            layer, totals, plan.parts, at.dw }?;
        }
        if request.norms && layer.samples > 0 {
            launch! { self, "reduce", "reduce_squares", Grid::plain(layer.samples, 1);
            layer, at.offsets, squares, u64::from(tiles), at.sq_norm }?;
        }
        if plan.sketch_by_rows && plan.sketch_parts > 0 && layer.samples > 0 {
            let grid = Grid::plain(plan.sketch_parts, layer.samples);
            launch! { self, "reduce", "sketch_rows", grid;
            layer, at.offsets, at.categories, route, at.gates, projected, outputs, inputs, sketches }?;
        }
        self.reduce_sketches(sketches, u64::from(plan.sketch_parts))
    }
}
