//! A layer's rows in the order in which blocks of its gradient read them, and products of theirs that are
//! taken on the way.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use faer::MatRef;

use super::factored::Operands;
use super::gemm::{view, view_mut};
use super::narrow::{self, par_product};
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

/// Columns of a task at least, so that a row's are read in one stretch.
const STRETCH: usize = 256;

/// Both operands in the order in which blocks read them, the packed panels of a matrix product: groups,
/// of each its strips of columns, of these the rows.
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

/// Consecutive samples of up to `most` rows together; one with more is a group of its own. Samples without
/// rows at the end may be left out.
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
    signs: Option<(MatRef<f32>, &mut [f32])>,
) {
    let (Some(first), Some(last)) = (groups.first(), groups.last()) else { return };
    let (all, after) = (first.rows.start..last.rows.end, last.end());
    let padded = columns.next_multiple_of(width);
    let alone = rayon::current_num_threads() == 1;
    let stretch = if alone { padded } else { width * (STRETCH / width) };
    let stretches = padded.div_ceil(stretch);
    let (mut signs, products) = signs.unzip();
    let mut k = signs.map_or(0, |signs| signs.ncols());
    let mut products =
        products.map_or(&mut [][..], |all_of| &mut all_of[all.start * k..all.end * k]);
    // Alone, a thread multiplies what it has just read; several share out either work by itself.
    if let Some(signs) = signs.take_if(|_| !alone) {
        let rows = view(&from[all.start * columns..], all.len(), columns, columns);
        par_product(view_mut(products, all.len(), k, k), 1.0, rows, signs);
        (k, products) = (0, &mut []);
    }
    let before = |task: usize| match groups.get(task / stretches) {
        Some(group) => group.before * padded + task % stretches * stretch * group.height(),
        None => after * padded,
    };
    let row = |task: usize| groups.get(task).map_or(all.end, |group| group.rows.start);
    let product = |task: usize| (row(task) - all.start) * k;
    let copy = |task: usize, to: &mut [f32], products: &mut [f32]| {
        let first = task % stretches * stretch;
        let part = first..(first + stretch).min(columns);
        groups[task / stretches].copy([columns, width], part, from, to, signs, products);
    };
    let tasks = 0..groups.len() * stretches;
    for_block_pairs(to, products, tasks, &before, &product, &copy);
}

impl Group {
    /// Its rows' columns of `part` into strips of a width, and all of the rows times the signs.
    fn copy(
        &self,
        [columns, width]: [usize; 2],
        part: Range<usize>,
        from: &[f32],
        to: &mut [f32],
        signs: Option<MatRef<f32>>,
        products: &mut [f32],
    ) {
        /// Rows that are multiplied, which brings them into a cache, and then copied.
        const TURN: usize = 8;
        let height = self.height();
        for start in self.rows.clone().step_by(TURN) {
            let (count, at) = (TURN.min(self.rows.end - start), start - self.rows.start);
            let own = &from[start * columns..(start + count) * columns];
            if let Some(signs) = signs {
                let k = signs.ncols();
                let product = view_mut(&mut products[at * k..(at + count) * k], count, k, k);
                narrow::product(product, 1.0, view(own, count, columns, columns), signs);
            }
            let rows = own.chunks_exact(columns).map(|row| &row[part.clone()]);
            pulp::Arch::new().dispatch(|| match width {
                32 => copy_rows::<32>(rows, height, at, to),
                16 => copy_rows::<16>(rows, height, at, to),
                14 => copy_rows::<14>(rows, height, at, to),
                8 => copy_rows::<8>(rows, height, at, to),
                6 => copy_rows::<6>(rows, height, at, to),
                2 => copy_rows::<2>(rows, height, at, to),
                _ => unreachable!("a block of {width} rows or columns"),
            });
        }
    }
}

/// Some rows into strips of `W` columns and `height` rows, from row `at` on. Strip by strip, for a row's
/// pieces lie far apart there.
#[inline(always)]
fn copy_rows<'a, const W: usize>(
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    height: usize,
    at: usize,
    to: &mut [f32],
) {
    let (to, _) = to.as_chunks_mut::<W>();
    let len = rows.clone().next().map_or(0, <[f32]>::len);
    let whole = len / W;
    for strip in 0..whole {
        let to = &mut to[strip * height + at..];
        for (to, from) in to.iter_mut().zip(rows.clone()) {
            to.copy_from_slice(&from[strip * W..(strip + 1) * W]);
        }
    }
    let rest = whole * W..len;
    if !rest.is_empty() {
        for (to, from) in to[whole * height + at..].iter_mut().zip(rows) {
            to[..rest.len()].copy_from_slice(&from[rest.clone()]);
            to[rest.len()..].fill(0.0);
        }
    }
}
