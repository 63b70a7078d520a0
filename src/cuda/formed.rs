//! Weight gradients of linear layers and convolutions, formed or factored: plan and launches.

use std::fmt;

use cudarc::driver::LaunchArgs;
use cudarc::driver::PushKernelArg;
use cudarc::driver::sys::CUdeviceptr;

use super::call::{Call, launch};
use super::device::{Arguments, Grid};
use super::generated as abi;
use super::generated::{GRADROUTE_THREADS, GRADROUTE_TILE, GRADROUTE_WARPS, GradrouteLayer};
use super::plan::{Common, LONGEST_GRID, Parts, Properties};
use crate::ops::plan::Path;
use crate::problem::Rows;
use crate::{Error, Result};

/// How weight gradients arise, tile by tile in accumulators: each sample's by itself, or those of one weight
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormedPlan {
    /// Formed: each sample's tile is measured and sketched in the accumulators. Factored: `dW` is one
    /// product over the rows of all samples, and norms and sketch come from the rows themselves: a two-sided sketch
    /// by their projections, a count sketch from the products of single rows.
    pub path: Path,
    /// Tiles of the gradient matrix, `[outputs, inputs]`.
    pub tiles: [u32; 2],
    /// Parts of the samples, or of the rows, each a row of blocks with its own running total.
    pub parts: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether a two-sided sketch is taken of the rows, `(dY P_o)ᵀ (X P_i)`, not of the finished tiles:
    /// cheaper for few rows a sample.
    pub sketch_by_rows: bool,
    /// Whether the bias' gradients arise beside the tiles, from the same rows of `dY`; if not, another kernel
    /// sums the rows.
    pub bias: bool,
    /// Sketches that are added up for each sample, of tiles, rows or blocks that count.
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
    /// Whether there is a factored path.
    pub(super) factored: bool,
}

impl Extent {
    pub(super) fn of(rows: &Rows, plain_rows: bool, factored: bool) -> Self {
        Self { rows: rows.total() as u64, longest: rows.longest() as u64, plain_rows, factored }
    }
}

/// Rows of a sample, on average, up to which a `dW` alone is one product: a sample's end costs a warp about
/// 340 instructions, looking for rows about 50 for each 32 of them. With 256 rows the one product was counted
/// to take 2 % more instructions.
const ROWS_TOGETHER: u64 = 128;
/// Totals of a tile, written and read again, that take the device as long as the product of 32 rows takes
/// one multiprocessor.
const TOTALS_A_STAGE: u64 = 6;

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

/// Plans weight gradients over tiles `[outputs, inputs]`, on either path.
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
    let path = choose(common, extent, properties);
    let factored = path == Path::Factored;
    let stages = extent.rows.div_ceil(32);
    let most = if factored { stages.min(u64::from(u32::MAX)) as u32 } else { samples };
    let most = (properties.multiprocessors / all_tiles.max(1)).clamp(1, most.max(1));
    let parts = split(most, stages, all_tiles);
    let sketch_by_rows = !factored && takes_rows(common, tiles, extent);
    let counted = factored && common.layer.sketch == abi::GRADROUTE_SKETCH_COUNT;
    let sketched = common.sketched() && (!factored || counted);
    let bias = !factored && all_tiles > 0 && sums_rows(common);
    let layer = &mut common.layer;
    let (k_o, k_i) = (u64::from(layer.sketch_outputs), u64::from(layer.sketch_inputs));
    let (length, warps) = (k_o * k_i, u64::from(GRADROUTE_WARPS));
    let beside = match layer.sketch {
        abi::GRADROUTE_SKETCH_COUNT => PLACES_BYTES,
        abi::GRADROUTE_SKETCH_TWO_SIDED if !sketch_by_rows => SUMS_BYTES,
        _ => 0,
    };
    let stage = if sketch_by_rows || factored { 0 } else { 4 * warps * length };
    let before = STAGES_BYTES + if factored { 0 } else { beside };
    let shared = stage + u64::from(before + STATIC_BYTES) <= u64::from(properties.shared_bytes);
    layer.flags |= if shared { abi::GRADROUTE_STAGE_SHARED } else { 0 };
    layer.flags |= if sketch_by_rows { abi::GRADROUTE_SKETCH_ROWS } else { 0 };
    layer.flags |= if bias { abi::GRADROUTE_BIAS } else { 0 };
    let sketch_parts = match (sketch_by_rows, counted) {
        (true, _) => extent.longest.div_ceil(u64::from(abi::GRADROUTE_SKETCH_ROWS_PART)),
        (_, true) => u64::from(blocks_counted(layer, properties)),
        _ => u64::from(all_tiles),
    };
    let [samples, all_tiles] = [samples, all_tiles].map(u64::from);
    let weights = u64::from(layer.outputs) * u64::from(layer.inputs);
    let rows = u64::from(tiles[0]) * k_o + u64::from(tiles[1]) * k_i;
    let request = &common.wish.request;
    let at = Places {
        totals: take.take(request.dw && parts > 1, 4 * u64::from(parts) * weights),
        squares: take.take(request.norms && !factored, 4 * samples * all_tiles),
        sketches: take.take(sketched, 4 * samples * sketch_parts * length),
        stage: take.take(sketched && !shared, u64::from(parts) * all_tiles * stage),
        projected: take.take(sketch_by_rows, 4 * extent.rows * rows),
    };
    let shared_bytes = before + if shared { stage as u32 } else { 0 };
    let sketch_parts = u32::try_from(sketch_parts)
        .map_err(|_| Error::argument("offsets", "fewer than 2^38 rows a sample", extent.longest))?;
    Ok(FormedPlan { path, tiles, parts, shared_bytes, sketch_by_rows, bias, sketch_parts, at })
}

/// Which path: the factored one where it is possible and takes less. Where something is recorded: no sample
/// has more than 32 rows, and the sketch is one of the rows, or counts single ones. For `dW` alone: a sample has
/// 128 or fewer on average. The wish comes first, if it is possible.
fn choose(common: &Common, extent: Extent, properties: &Properties) -> Path {
    let recorded = common.recorded();
    let few = extent.longest <= u64::from(abi::GRADROUTE_FEW_ROWS) && sketches_rows(common)
        || extent.longest <= 1 && counts_rows(common, properties);
    let together = extent.rows <= ROWS_TOGETHER * u64::from(common.layer.samples);
    // Rows of 32 samples are counted in 32 bits.
    let possible = extent.factored && extent.rows < 1 << 31 && (few || !recorded);
    match common.wish.path {
        Some(Path::Factored) | None if !possible => Path::Formed,
        Some(path) => path,
        None if few || together => Path::Factored,
        None => Path::Formed,
    }
}

/// In how many parts the work of so many stages of a tile is done soonest: each takes its share of the
/// products, and has a total that is written and read again.
fn split(most: u32, stages: u64, tiles: u32) -> u32 {
    let (most, tiles) = (u64::from(most), u64::from(tiles.max(1)));
    let worth = (TOTALS_A_STAGE * stages / tiles).isqrt();
    worth.clamp(1, most) as u32
}

/// Whether a sketch counts elements that a block has room for.
fn counts_rows(common: &Common, properties: &Properties) -> bool {
    let layer = &common.layer;
    let shared = counted_bytes(layer).saturating_add(STATIC_BYTES);
    layer.sketch == abi::GRADROUTE_SKETCH_COUNT
        && shared <= properties.shared_bytes
        && one_weight(common)
}

/// Samples that a block of `count_rows` takes.
const COUNTED_TOGETHER: u32 = 2;

/// Their sketches for each warp, with what a micro-block's 64 buckets have behind the end.
fn counted_bytes(layer: &GradrouteLayer) -> u32 {
    let length = layer.sketch_inputs.saturating_add(64);
    length.saturating_mul(4 * GRADROUTE_WARPS * COUNTED_TOGETHER)
}

/// Blocks that count a sample of one row: one for each 256 inputs, in as many parts of the outputs as the device
/// has room for and as have work for every warp.
fn blocks_counted(layer: &GradrouteLayer, properties: &Properties) -> u32 {
    let groups = layer.inputs.div_ceil(GRADROUTE_THREADS);
    let together = layer.samples.div_ceil(COUNTED_TOGETHER);
    let room = properties.multiprocessors / groups.saturating_mul(together).max(1);
    groups * room.clamp(1, layer.outputs.div_ceil(32 * GRADROUTE_WARPS).max(1))
}

/// Whether one weight holds for all of a sample's sketch.
fn one_weight(common: &Common) -> bool {
    common.layer.flags & abi::GRADROUTE_SKETCH_ROUTED == 0 || common.layer.regions <= 1
}

/// Whether a sketch, if there is one, can come from the rows' projections.
fn sketches_rows(common: &Common) -> bool {
    let layer = &common.layer;
    let sides = [layer.sketch_outputs, layer.sketch_inputs];
    let two_sided = layer.sketch == abi::GRADROUTE_SKETCH_TWO_SIDED
        && sides.iter().all(|&side| side <= abi::GRADROUTE_SKETCH_ROWS_MOST)
        && one_weight(common);
    two_sided || !common.sketched()
}

/// Whether every sample whose bias gradient is asked for is one that the tiles need: all are where something
/// is recorded; else one weight has to hold for the tile and the bias.
fn sums_rows(common: &Common) -> bool {
    let all = common.recorded() || common.layer.regions <= 1 && !common.wish.bias_norms;
    common.bias_asked() && common.forms() && all
}

/// Whether a sketch of the rows is possible, and takes fewer matrix instructions.
fn takes_rows(common: &Common, tiles: [u32; 2], extent: Extent) -> bool {
    let layer = &common.layer;
    let sides = [layer.sketch_outputs, layer.sketch_inputs];
    // One matrix for all of its outputs.
    let possible = common.sketched() && sketches_rows(common) && extent.plain_rows;
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
        let [path, split] = match self.path {
            Path::Formed => ["formed", "samples"],
            Path::Factored => ["factored: dW over all rows", "rows"],
        };
        write!(f, "{path} in {} × {} tiles", self.tiles[0], self.tiles[1])?;
        write!(f, " of {GRADROUTE_TILE} × {GRADROUTE_TILE}")?;
        write!(f, ", {split} in {} parts", self.parts)?;
        write!(f, "{}", if self.sketch_by_rows { ", sketched by rows" } else { "" })?;
        write!(f, "{}", if self.bias { ", with the bias" } else { "" })?;
        write!(f, ", {} KiB of shared memory a block", self.shared_bytes.div_ceil(1024))
    }
}

/// A kernel's own arguments before those of all formed kernels.
struct Before<H>(H, [CUdeviceptr; 12]);

impl<H: Arguments> Arguments for Before<H> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        self.0.push(launch);
        for address in &self.1 {
            launch.arg(address);
        }
    }
}

impl Call<'_> {
    /// Queues a formed kernel, with `head` before the common arguments, and the second stages. The bias'
    /// gradients go to `bias [N, O]`, if the plan says so.
    pub(super) fn form(
        &self,
        plan: &FormedPlan,
        source: &'static str,
        name: &str,
        head: impl Arguments,
        bias: CUdeviceptr,
    ) -> Result<()> {
        let (layer, at, [route, _, map]) = (self.layer(), self.at, self.tables);
        let Places { totals, squares, sketches, stage, projected } = plan.at;
        let [totals, squares, sketches, stage, projected] =
            [totals, squares, sketches, stage, projected].map(|part| self.work(part));
        let [outputs, inputs] = plan.tiles;
        let (tiles, request) = (outputs * inputs, &self.plan.wish.request);
        let factored = plan.path == Path::Factored;
        if tiles > 0 && (request.dw || !factored) {
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
                bias,
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
        if factored {
            return Ok(());
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
    /// Queues what becomes of the bias, if anything is asked of it: `dy` is summed by rows here, unless the
    /// formed kernel has done so on its way.
    pub(super) fn bias_of_rows(
        &self,
        plan: &FormedPlan,
        dy: CUdeviceptr,
        bias: CUdeviceptr,
    ) -> Result<()> {
        if !self.plan.bias_asked() {
            return Ok(());
        }
        if !plan.bias {
            self.sum_rows(dy, bias)?;
        }
        self.bias(bias)
    }
    /// Queues norms and sketches of the factored path, of rows `x` and `dy`.
    pub(super) fn records(&self, plan: &FormedPlan, [x, dy]: [CUdeviceptr; 2]) -> Result<()> {
        let (at, [route, ..]) = (self.at, self.tables);
        let mut layer = self.aligned(&[(x, self.plan.layer.inputs), (dy, self.plan.layer.outputs)]);
        if layer.samples == 0 {
            return Ok(());
        }
        if layer.sketch == abi::GRADROUTE_SKETCH_COUNT {
            self.count_rows(plan, [x, dy])?;
            layer.sketch = abi::GRADROUTE_SKETCH_NONE;
        }
        if !self.plan.wish.request.norms && layer.sketch == abi::GRADROUTE_SKETCH_NONE {
            return Ok(());
        }
        let grid = Grid::plain(layer.samples, 1);
        launch! { self, "sample_gram", &self.name("sample_gram"), grid;
        layer, x, dy, at.offsets, at.categories, route, at.gates, self.plan.sketch_factor(), at.sq_norm,
        at.sketch }
    }
    /// Queues count sketches of samples of one row.
    fn count_rows(&self, plan: &FormedPlan, [x, dy]: [CUdeviceptr; 2]) -> Result<()> {
        let (layer, at, [route, ..]) = (self.layer(), self.at, self.tables);
        let sketches = self.work(plan.at.sketches);
        if plan.sketch_parts > 0 {
            let blocks = [plan.sketch_parts, layer.samples.div_ceil(COUNTED_TOGETHER), 1];
            let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared: counted_bytes(&layer) };
            launch! { self, "count_rows", &self.name("count_rows"), grid;
            layer, x, dy, at.offsets, at.categories, route, at.gates, sketches }?;
        }
        self.reduce_sketches(sketches, u64::from(plan.sketch_parts))
    }
}
