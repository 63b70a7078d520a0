//! Instructions on addresses: `cvta`, `isspacep`, `mapa`, `getctarank`.

use super::access::{self, Located, generic};
use crate::fault::{Check, Fault};
use crate::ir::{
    FUNCTION_WINDOW, LANES, LOCAL_WINDOW, Mask, PARAM_WINDOW, Reg, SHARED_WINDOW, Space, Src,
    WINDOW_BYTES,
};
use crate::machine::Context;
use crate::registers::lanes;

#[derive(Debug, Clone, PartialEq)]
pub enum Address {
    /// `cvta.space`: an address of a space to a generic one.
    ToGeneric { space: Space, dst: Reg, src: Src },
    /// `cvta.to.space`.
    ToSpace { space: Space, dst: Reg, src: Src },
    /// `isspacep.space`.
    IsIn { space: Space, dst: u32, src: Src },
    /// `mapa`: the same place in another block of the cluster; of shared or generic addresses.
    Map { generic: bool, dst: Reg, src: Src, rank: Src },
    /// `getctarank`: whose shared memory it is.
    Rank { generic: bool, dst: Reg, src: Src },
}

fn window(space: Space) -> Option<u64> {
    match space {
        Space::Shared | Space::Cluster => Some(SHARED_WINDOW),
        Space::Local => Some(LOCAL_WINDOW),
        Space::Param => Some(PARAM_WINDOW),
        Space::Global | Space::Const | Space::Generic => None,
    }
}

pub fn execute(op: &Address, ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
    let read64 = |ctx: &Context<'_>, src| ctx.warp.regs.read64(src, &ctx.warp.place);
    match *op {
        Address::ToGeneric { space, dst, src } => {
            let addresses = read64(ctx, src);
            let base = window(space).unwrap_or(0);
            ctx.warp.regs.write64(dst, mask, &addresses.map(|address| address.wrapping_add(base)));
        }
        Address::ToSpace { space, dst, src } => {
            let addresses = read64(ctx, src);
            let base = window(space).unwrap_or(0);
            ctx.warp.regs.write64(dst, mask, &addresses.map(|address| address.wrapping_sub(base)));
        }
        Address::IsIn { space, dst, src } => {
            let addresses = read64(ctx, src);
            let within = (0..LANES).fold(0, |within, lane| {
                within | u32::from(is_in(ctx, space, addresses[lane])) << lane
            });
            ctx.warp.regs.write_predicate(dst, mask, within);
        }
        Address::Map { generic, dst, src, rank } => {
            let ranks = ctx.warp.regs.read32(rank, &ctx.warp.place);
            let addresses = shared_addresses(ctx, generic, src, mask)?;
            let blocks = ctx.cluster.blocks.len();
            if let Some(lane) = lanes(mask).find(|&lane| ranks[lane] as usize >= blocks) {
                let what = format!("mapa to block {} of a cluster of {blocks}", ranks[lane]);
                return Err(Fault::new(Check::Trap, what).lane(lane));
            }
            let base = if generic { SHARED_WINDOW } else { 0 };
            let mapped = std::array::from_fn(|lane| {
                let (_, addr) = access::cluster_shared(ctx, addresses[lane]);
                base + u64::from(access::cluster_address(ranks[lane] as usize, addr))
            });
            ctx.warp.regs.write64(dst, mask, &mapped);
        }
        Address::Rank { generic, dst, src } => {
            let addresses = shared_addresses(ctx, generic, src, mask)?;
            let ranks = addresses.map(|addr| access::cluster_shared(ctx, addr).0 as u32);
            ctx.warp.regs.write32(dst, mask, &ranks);
        }
    }
    Ok(())
}

fn is_in(ctx: &Context<'_>, space: Space, address: u64) -> bool {
    match (space, generic(ctx, address)) {
        (Space::Shared, Located::Shared { rank, .. }) => rank == ctx.rank,
        (Space::Cluster, Located::Shared { rank, .. }) => rank < ctx.cluster.blocks.len(),
        (Space::Local, Located::Local(_)) | (Space::Param, Located::Param(_)) => true,
        (Space::Global, Located::Global(address)) => {
            address & !(WINDOW_BYTES - 1) != FUNCTION_WINDOW
        }
        _ => false,
    }
}

/// Addresses as `shared::cluster` has them.
fn shared_addresses(
    ctx: &Context<'_>,
    generic: bool,
    src: Src,
    mask: Mask,
) -> Result<[u32; LANES], Fault> {
    let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
    if !generic {
        return Ok(regs.read32(src, place));
    }
    let addresses = regs.read64(src, place);
    let outside = |&lane: &usize| addresses[lane] & !(WINDOW_BYTES - 1) != SHARED_WINDOW;
    match lanes(mask).find(outside) {
        None => Ok(addresses.map(|address| address as u32)),
        Some(lane) => {
            let what = "a generic address outside shared memory";
            Err(Fault::new(Check::OutOfBounds, what).lane(lane).address(addresses[lane]))
        }
    }
}
