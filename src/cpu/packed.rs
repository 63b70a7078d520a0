//! A layer's rows in the order in which blocks of its gradient read them, and products of theirs that are
//! taken on the way.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use faer::MatRef;

use super::factored::Operands;
use super::gemm::{view, view_mut};
use super::narrow;
use super::tasks::for_block_pairs;

/// A line of a first-level cache, at which every vector is to begin.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Numbers that begin at a [`Line`], in a buffer that only grows.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// The first `len` numbers, of any content.
    pub(super) fn grown(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Line>() * self.0.capacity()
    }
}

/// Both operands in the order in which blocks read them, group after group: of each its strips of
/// columns, of these the rows.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub(super) x: Lines,
    pub(super) dy: Lines,
    pub(super) groups: Vec<Group>,
}

impl Packed {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.x.bytes() + self.dy.bytes() + size_of::<Group>() * self.groups.capacity()
    }
}

/// Consecutive samples that pass through a block together, and their rows.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) members: Range<usize>,
    pub(super) rows: Range<usize>,
    /// Rows of the packed operands before its own.
    pub(super) before: usize,
}

impl Group {
    /// Rows of a packed strip. Of an odd number, since strips a power of two apart would share a few
    /// sets of a cache.
    pub(super) fn height(&self) -> usize {
        self.rows.len() | 1
    }

    /// Rows of the packed operands up to here.
    pub(super) fn end(&self) -> usize {
        self.before + self.height()
    }
}

/// Consecutive samples of up to `most` rows together, no fewer than one with rows.
pub(super) fn groups_of<'a>(
    operands: &'a Operands,
    members: Range<usize>,
    most: usize,
) -> impl Iterator<Item = Group> + 'a {
    let (mut next, mut before) = (members.start, 0);
    std::iter::from_fn(move || {
        let (first, mut rows) = (next, 0..0);
        while next < members.end {
            let own = operands.rows.range(next);
            if !rows.is_empty() && own.end - rows.start > most {
                break;
            }
            rows = if rows.is_empty() { own } else { rows.start..own.end };
            next += 1;
        }
        let group = Group { members: first..next, rows, before };
        before = group.end();
        (!group.rows.is_empty()).then_some(group)
    })
}

/// Copies rows of so many columns into strips of a width, group after group, columns beyond the last being
/// 0; and multiplies them by signs, if there are any.
pub(super) fn pack(
    [columns, width]: [usize; 2],
    groups: &[Group],
    from: &[f32],
    to: &mut [f32],
    signs: &mut Option<(MatRef<f32>, &mut [f32])>,
) {
    /// Rows that are multiplied and copied in turn, the first of which brings them into a cache.
    const TURN: usize = 8;
    let (Some(first), Some(last)) = (groups.first(), groups.last()) else { return };
    let (first, end, after) = (first.rows.start, last.rows.end, last.end());
    let padded = columns.next_multiple_of(width);
    let before = |g: usize| groups.get(g).map_or(after, |group| group.before) * padded;
    let row = |g: usize| groups.get(g).map_or(end, |group| group.rows.start) - first;
    let (signs, products) = match signs {
        Some((signs, products)) => {
            let k = signs.ncols();
            (Some(*signs), &mut products[first * k..end * k])
        }
        None => (None, &mut [][..]),
    };
    let k = signs.map_or(0, |signs| signs.ncols());
    let copy = |g: usize, to: &mut [f32], products: &mut [f32]| {
        let (rows, height) = (groups[g].rows.clone(), groups[g].height());
        for start in rows.clone().step_by(TURN) {
            let count = TURN.min(rows.end - start);
            let own = &from[start * columns..(start + count) * columns];
            let at = start - rows.start;
            if let Some(signs) = signs {
                let product = view_mut(&mut products[at * k..(at + count) * k], count, k, k);
                narrow::product(product, 1.0, view(own, count, columns, columns), signs);
            }
            pulp::Arch::new().dispatch(|| match width {
                32 => copy_rows::<32>(own, columns, height, at, to),
                16 => copy_rows::<16>(own, columns, height, at, to),
                14 => copy_rows::<14>(own, columns, height, at, to),
                8 => copy_rows::<8>(own, columns, height, at, to),
                6 => copy_rows::<6>(own, columns, height, at, to),
                2 => copy_rows::<2>(own, columns, height, at, to),
                _ => unreachable!("a block of {width} rows or columns"),
            });
        }
    };
    let tasks = 0..groups.len();
    for_block_pairs(to, products, tasks, &before, &|g| row(g) * k, &copy);
}

/// Some rows into strips of `W` columns and `height` rows, from row `at` on.
#[inline(always)]
pub(super) fn copy_rows<const W: usize>(
    from: &[f32],
    columns: usize,
    height: usize,
    at: usize,
    to: &mut [f32],
) {
    let (to, _) = to.as_chunks_mut::<W>();
    for (row, from) in (at..).zip(from.chunks_exact(columns)) {
        let (whole, rest) = from.as_chunks::<W>();
        for (strip, from) in whole.iter().enumerate() {
            to[strip * height + row] = *from;
        }
        if !rest.is_empty() {
            let to = &mut to[whole.len() * height + row];
            to[..rest.len()].copy_from_slice(rest);
            to[rest.len()..].fill(0.0);
        }
    }
}
