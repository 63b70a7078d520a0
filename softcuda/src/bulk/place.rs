//! Where the address operands of matrix and asynchronous instructions lie.

use crate::fault::{Check, Fault};
use crate::ir::{Addr, LANES, Space};
use crate::machine::Context;
use crate::memory::{Located, cluster_shared, generic};

/// The lanes' addresses, in the space the instruction names.
pub fn addresses(ctx: &Context<'_>, addr: Addr, space: Space) -> [u64; LANES] {
    let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
    if matches!(space, Space::Shared | Space::Cluster) {
        let bases = regs.read32(addr.base, place);
        return bases.map(|base| u64::from(base).wrapping_add_signed(addr.offset));
    }
    regs.read64(addr.base, place).map(|base| base.wrapping_add_signed(addr.offset))
}

/// Block (by rank) and address in its shared memory of an address.
pub fn shared(
    ctx: &Context<'_>,
    space: Space,
    lane: usize,
    address: u64,
) -> Result<(usize, u32), Fault> {
    let located = match space {
        Space::Shared => u32::try_from(address).ok().map(|addr| (ctx.rank, addr)),
        Space::Cluster => u32::try_from(address).ok().map(|addr| cluster_shared(ctx, addr)),
        _ => match generic(ctx, address) {
            Located::Shared { rank, addr } => Some((rank, addr)),
            _ => None,
        },
    };
    located.ok_or_else(|| {
        let what = "not an address in shared memory";
        Fault::new(Check::OutOfBounds, what).lane(lane).address(address)
    })
}

/// The same where only the block's own shared memory is allowed.
pub fn own_shared(
    ctx: &Context<'_>,
    space: Space,
    lane: usize,
    address: u64,
) -> Result<u32, Fault> {
    match shared(ctx, space, lane, address)? {
        (rank, addr) if rank == ctx.rank => Ok(addr),
        _ => {
            let what = "an address in another block's shared memory";
            Err(Fault::new(Check::OutOfBounds, what).lane(lane).address(address))
        }
    }
}

/// An address in global memory.
pub fn global(ctx: &Context<'_>, space: Space, lane: usize, address: u64) -> Result<u64, Fault> {
    match generic(ctx, address) {
        _ if space == Space::Global => Ok(address),
        Located::Global(address) => Ok(address),
        _ => {
            let what = "not an address in global memory";
            Err(Fault::new(Check::OutOfBounds, what).lane(lane).address(address))
        }
    }
}

/// Refuses an address that is no multiple of `to`.
pub fn aligned(lane: usize, address: u64, to: u64) -> Result<(), Fault> {
    if address.is_multiple_of(to) {
        return Ok(());
    }
    let what = format!("the address must be a multiple of {to}");
    Err(Fault::new(Check::Misaligned, what).lane(lane).address(address))
}

/// Exchanges the 16-byte chunks of a swizzled line: bits 4 up of the address with those 3 above them.
pub fn swizzled(addr: u32, bits: u32) -> u32 {
    addr ^ ((addr >> 7 & ((1 << bits) - 1)) << 4)
}
