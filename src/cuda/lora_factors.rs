//! A LoRA branch of low rank: both factors' gradients from one read of `X` and `dY`.
//!
//! Each sample's rows are brought down to as many rows as the branch has ranks, which have the same
//! gradients; the kernels of linear layers take them from there.

use cudarc::driver::sys::CUdeviceptr;

use super::call::{Call, Pointers, aligned, launch};
use super::device::Grid;
use super::generated::{GRADROUTE_LORA_GROUPS, GRADROUTE_LORA_RANK_MOST, GRADROUTE_WARPS};
use super::plan::{Parts, Properties};
use crate::Result;
use crate::problem::{Dtype, Lora};

/// How the rows are brought down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnePass {
    /// Parts of a sample, each of which a block takes, and the rows of each.
    pub(super) parts: u32,
    chunk: u64,
    rank: u64,
    /// Stages of rows in shared memory, and all bytes of them.
    stages: u32,
    shared_bytes: u32,
    at: Places,
}

/// Where the parts of the workspace begin, in bytes; in f32 but for the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    /// `Bᵀ [rank, O]`, in the input's format.
    turned: u64,
    /// `[N, parts, rank · (I + O)]`.
    partials: u64,
    /// `[N · rank, I]`, `[N · rank, O]`, `[N · rank, rank]`.
    rows: [u64; 3],
    /// Their offsets, `[N + 1]`.
    starts: u64,
}

/// The rows that a batch was brought down to: of `X`, of `dY`, and of a unit matrix for each sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathered {
    pub(super) x: CUdeviceptr,
    pub(super) dy: CUdeviceptr,
    pub(super) unit: CUdeviceptr,
    pub(super) offsets: CUdeviceptr,
}

/// Rows of a stage.
const ROWS: u64 = 16;
/// Rows that a block takes at least, where there are so many.
const ROWS_A_PART: u64 = 64;
/// Bytes that the kernel declares statically for each sixteen of ranks, and those that the driver keeps.
const STATIC_BYTES: u32 = 20 << 10;

/// Plans the one pass, where it is possible and a sample has more rows than it will have.
pub(super) fn plan_one_pass(
    problem: &Lora,
    dtype: Dtype,
    properties: &Properties,
    take: &mut Parts,
) -> Option<OnePass> {
    let (rows, rank) = (problem.rows(), problem.rank() as u64);
    let sides = [problem.in_features(), problem.out_features()].map(|side| side as u64);
    let longest = rows.longest() as u64;
    let tiles = rank.div_ceil(16) as u32;
    let groups: u64 = sides.iter().map(|side| side.div_ceil(16)).sum();
    let most = u64::from(GRADROUTE_WARPS * (GRADROUTE_LORA_GROUPS / tiles.max(1)));
    let possible = dtype.size() == 2
        && (1..=u64::from(GRADROUTE_LORA_RANK_MOST)).contains(&rank)
        && sides.iter().all(|&side| side > 0)
        && groups <= most;
    if !possible || longest < ROWS.max(rank) {
        return None;
    }
    // A row of either side is 16 bytes longer than its groups.
    let stage = ROWS as u32 * (32 * groups as u32 + 2 * 16);
    let room = properties.shared_bytes.saturating_sub(STATIC_BYTES * tiles);
    let stages = (room / stage).min(2);
    if stages == 0 {
        return None;
    }
    let samples = rows.samples() as u64;
    let parts = (2 * u64::from(properties.multiprocessors) / samples.max(1))
        .clamp(1, longest.div_ceil(ROWS_A_PART));
    let chunk = longest.div_ceil(parts).next_multiple_of(ROWS);
    let parts = longest.div_ceil(chunk);
    let numbers = rank * (sides[0] + sides[1]);
    let at = Places {
        turned: take.take(true, rank * sides[1] * dtype.size() as u64),
        partials: take.take(true, 4 * samples * parts * numbers),
        rows: [sides[0], sides[1], rank].map(|side| take.take(true, 4 * samples * rank * side)),
        starts: take.take(true, 8 * (samples + 1)),
    };
    let shared_bytes = stages * stage;
    Some(OnePass { parts: parts as u32, chunk, rank, stages, shared_bytes, at })
}

impl Gathered {
    /// A call's buffers, with these rows' offsets.
    pub(super) fn of(&self, at: &Pointers) -> Pointers {
        Pointers { offsets: self.offsets, ..*at }
    }
}

impl OnePass {
    /// Rows that a sample is brought down to.
    pub(super) fn rank(&self) -> u64 {
        self.rank
    }

    /// Queues the pass and the sums of its parts, for the calls of `A` and of `B`. What reaches the branch
    /// between its factors goes to `d`, f32 `[R, rank]`, unless that is 0.
    pub(super) fn queue(
        &self,
        [first, second]: [&Call; 2],
        scale: f32,
        d: CUdeviceptr,
    ) -> Result<Gathered> {
        let mut layer = second.layer();
        let (inputs, outputs, rank) = (first.layer().inputs, layer.outputs, layer.inputs);
        let [turned, partials, starts] =
            [self.at.turned, self.at.partials, self.at.starts].map(|part| second.work(part));
        let [x, dy, unit] = self.at.rows.map(|part| second.work(part));
        let gathered = Gathered { x, dy, unit, offsets: starts };
        if layer.samples == 0 {
            return Ok(gathered);
        }
        second.transpose(second.at.weight, turned, [1, u64::from(outputs), u64::from(rank)])?;
        let (a, b) = (first.at, second.at);
        let ([route, flow, map], [a_route, ..]) = (second.tables, first.tables);
        let (of_a, a_categories, a_gates) = (first.layer(), a.categories, a.gates);
        let rows = [(a.x, inputs), (b.dy, outputs), (a.weight, inputs), (turned, outputs)];
        layer.flags |= aligned(&rows, 2);
        let name = second.name(if self.rank <= 16 { "lora_factors" } else { "lora_factors_32" });
        let grid = Grid { shared: self.shared_bytes, ..Grid::plain(self.parts, layer.samples) };
        launch! { second, "lora_factors", &name, grid;
        layer, of_a, b.offsets, b.categories, route, b.gates, a_categories, a_route, a_gates, flow, map, a.x,
        b.dy, a.weight, turned, scale, self.chunk, self.stages, partials, d }?;
        let numbers = u64::from(rank) * (u64::from(inputs) + u64::from(outputs));
        let grid = Grid::plain(numbers.div_ceil(1024).min(256) as u32, layer.samples);
        launch! { second, "lora_gather", "lora_gather", grid;
        layer, of_a, b.offsets, b.categories, route, b.gates, a_categories, a_route, a_gates, partials,
        self.parts, self.chunk, x, dy, unit, starts }?;
        Ok(gathered)
    }
}
