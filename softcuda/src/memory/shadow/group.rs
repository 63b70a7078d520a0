//! Lanes' accesses put together by cell, so that a cell is checked once for many of them.

use super::mark::{part, whole};
use super::{Happened, Here, PLACES};
use crate::ir::{LANES, Mask};
use crate::registers::lanes;

/// Consecutive lanes' accesses of one cell, which count as one.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub cell: usize,
    /// One bit per byte of the cell.
    pub bytes: u32,
    pub here: Here,
    pub lanes: Mask,
}

/// Puts the lanes' accesses of `width` bytes, each aligned to its width and no wider than a cell, together by
/// cell, in the order of lanes. Lanes that write the same byte stay apart.
pub fn groups<const BYTES: usize, H: Happened, E>(
    offsets: &[u32; LANES],
    mask: Mask,
    width: usize,
    write: bool,
    place: impl Fn(usize) -> u32,
    mut act: impl FnMut(&Group) -> Result<(), E>,
) -> Result<(), E> {
    if width >= BYTES / PLACES
        && (offsets[0] as usize).is_multiple_of(BYTES)
        && consecutive(offsets, mask, width)
    {
        return in_order::<BYTES, E>(offsets[0] as usize / BYTES, width, place, act);
    }
    let all = u32::MAX >> (32 - width);
    let eighths = width.div_ceil(BYTES / PLACES);
    let empty = Here { at: [0; PLACES], several: false };
    let mut group = Group { cell: usize::MAX, bytes: 0, here: empty, lanes: 0 };
    for lane in lanes(mask) {
        let offset = offsets[lane] as usize;
        let (cell, from) = (offset / BYTES, offset % BYTES);
        let (bytes, here) = (all << from, place(lane));
        let first = from / (BYTES / PLACES);
        let mut joins = cell == group.cell && !(write && group.bytes & bytes != 0);
        if joins {
            for n in first..first + eighths {
                let (old, new) = (group.bytes & part::<BYTES>(n), bytes & part::<BYTES>(n));
                let at = &mut group.here.at[n];
                group.here.several |= old != 0;
                match if old == 0 { Some(here) } else { H::merge(*at, here, old == new) } {
                    Some(place) => *at = place,
                    None => joins = false,
                }
            }
        }
        if !joins {
            if group.lanes != 0 {
                act(&group)?;
            }
            group = Group { cell, bytes: 0, here: empty, lanes: 0 };
            group.here.at[first..first + eighths].fill(here);
        }
        group.bytes |= bytes;
        group.lanes |= 1 << lane;
    }
    if group.lanes != 0 { act(&group) } else { Ok(()) }
}

/// True if all lanes access one piece of memory, each its own part of it in the order of lanes.
pub fn consecutive(offsets: &[u32; LANES], mask: Mask, width: usize) -> bool {
    let mut strayed = 0;
    for (lane, &offset) in offsets.iter().enumerate() {
        strayed |= offset.wrapping_sub(offsets[0]) ^ (lane * width) as u32;
    }
    mask == Mask::MAX && strayed == 0
}

/// The groups of a piece of memory that begins with a cell.
fn in_order<const BYTES: usize, E>(
    first: usize,
    width: usize,
    place: impl Fn(usize) -> u32,
    mut act: impl FnMut(&Group) -> Result<(), E>,
) -> Result<(), E> {
    let lanes = BYTES / width;
    let each = PLACES / lanes;
    let bytes = whole::<BYTES>();
    for cell in 0..LANES / lanes {
        let from = cell * lanes;
        let at = std::array::from_fn(|n| place(from + n / each));
        let lanes = (Mask::MAX >> (LANES - lanes)) << from;
        let here = Here { at, several: false };
        act(&Group { cell: first + cell, bytes, here, lanes })?;
    }
    Ok(())
}
