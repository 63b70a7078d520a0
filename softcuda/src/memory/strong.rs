//! What strong accesses (volatile, relaxed, acquire, release, atomic) and fences order.
//!
//! A release hands on, with the word it stores, all its unit has done; a relaxed store hands on what the
//! unit had done at its last fence. An acquire takes what it finds; a relaxed load's find counts from
//! the next fence on.

use super::access::cluster_address;
use super::by_lane::shared_place;
use super::grid::Strength;
use super::{Memory, Scope, Semantics};
use crate::ir::{LANES, Mask, SHARED_WINDOW, Space, WINDOW_BYTES};
use crate::machine::Context;
use crate::registers::lanes;

/// The name under which a word's clock is kept: its address, unambiguous in the cluster.
fn key(ctx: &Context<'_>, space: Space, address: u64) -> (u64, bool) {
    let shared = match space {
        Space::Shared | Space::Cluster => true,
        Space::Generic => address & !(WINDOW_BYTES - 1) == SHARED_WINDOW,
        _ => false,
    };
    if !shared {
        return (address & !3, true);
    }
    let (rank, addr) = shared_place(ctx, space, address);
    (SHARED_WINDOW + u64::from(cluster_address(rank, addr & !3)), false)
}

/// Strong loads of the lanes' words.
pub fn loads(from: &Memory, ctx: &mut Context<'_>, addresses: &[u64; LANES], mask: Mask) {
    let strength = from.semantics.strength();
    let (unit, block) = (ctx.unit(), ctx.warp.place.linear_block);
    for lane in lanes(mask) {
        let (key, global) = key(ctx, from.space, addresses[lane]);
        ctx.cluster.order.strong_load(unit, lane, key, strength.acquire);
        if global && from.across_blocks() {
            with_blocks(ctx, |blocks| blocks.load(block, key, strength));
        }
    }
}

/// Strong stores of the lanes' words; `keeps` in a read-modify-write.
pub fn stores(
    to: &Memory,
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    keeps: bool,
) {
    let strength = to.semantics.strength();
    let (unit, block) = (ctx.unit(), ctx.warp.place.linear_block);
    for lane in lanes(mask) {
        let (key, global) = key(ctx, to.space, addresses[lane]);
        ctx.cluster.order.strong_store(unit, key, strength.release, keeps);
        if global && to.across_blocks() {
            with_blocks(ctx, |blocks| blocks.store(block, key, strength, keeps));
        }
    }
}

/// `membar`, `fence`.
pub fn fence(scope: Scope, ctx: &mut Context<'_>, mask: Mask) {
    let (unit, block) = (ctx.unit(), ctx.warp.place.linear_block);
    ctx.cluster.order.fence(unit, mask);
    if scope >= Scope::Gpu {
        with_blocks(ctx, |blocks| blocks.fence(block));
    }
}

fn with_blocks(ctx: &mut Context<'_>, act: impl FnOnce(&mut super::grid::Blocks)) {
    let launch = ctx.launch;
    let grid = ctx.cluster.order.grid.get_or_insert_with(|| launch.device.grid(launch.number));
    if let Some(mut blocks) = grid.order() {
        act(&mut blocks);
    }
}

impl Semantics {
    pub fn strength(self) -> Strength {
        Strength {
            acquire: matches!(self, Semantics::Acquire | Semantics::AcquireRelease),
            release: matches!(self, Semantics::Release | Semantics::AcquireRelease),
        }
    }
}
