//! Groups of samples, each judged by what everybody else did.
//!
//! A whitening divides out the directions that all samples share. For the question what a group did that nobody else
//! would have done in its place, its own samples must not count among them: the more a group agrees with itself,
//! the more it would divide out of itself. Here every group's sum is whitened by the record of the rest.

use faer::Col;
use faer::linalg::solvers::Solve;
use rayon::prelude::*;

use super::influence::check_query;
use super::whitening::{damped, gram, indefinite, lambda};
use super::{Accumulator, GroupInfluence};
use crate::Result;

/// Per group and block the sum `ΣA` of the group's samples and `(RᵀR + λI)⁻¹ ΣA`, where the rows of `R` are the
/// accumulated sketches of all samples that are not of the group.
///
/// [`HeldOut::alone`] compares the sum with itself: large where a group moved a block in directions in which nobody
/// else did. It is the leverage score of statistics (Cohen, Musco and Musco, 2017, arXiv 1511.07263, with damping)
/// of the group as one row, itself left out. Over 14 categories of glyphs it orders what leaving each out of
/// training does to its own loss better than scores of queries do, over 27 it does not (`benches/record/categories-glyphs.md`,
/// `categories-typefaces.md`).
///
/// ```
/// use gradroute::provenance::{Accumulator, StepRecord};
///
/// let mut influence = Accumulator::new(1, 2)?;
/// influence.add(&StepRecord {
///     step_size: 1.0,
///     optimizer_scale: 1.0,
///     blocks: 1,
///     samples: vec![1, 2, 3, 4],
///     noise_levels: vec![0.0; 4],
///     gates: vec![1.0; 4],
///     route: vec![1.0; 4],
///     flow: vec![1.0; 4],
///     sq_norm: vec![4.0, 4.0, 4.0, 4.0],
///     sketch: vec![2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0],
///     ..StepRecord::default()
/// })?;
/// // Samples 1 to 3 agree; 1 and 2 are a group that moved the block farther than 4 did, but not alone.
/// let group_of = |id| match id {
///     1 | 2 => Some(0),
///     4 => Some(1),
///     _ => None,
/// };
/// let held_out = influence.held_out(2, group_of, 0.1)?;
/// assert_eq!([0, 1].map(|group| held_out.groups().moved(group, 0)), [4.0, 2.0]);
/// assert!(held_out.alone(1, 0) > held_out.alone(0, 0));
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    groups: GroupInfluence,
    /// `[groups, blocks, sketch_len]`; 0 in a block nothing was done to.
    whitened: Vec<f64>,
}

impl Accumulator {
    /// Whitens the sum of each of `groups` groups by everybody else; `group_of` as in [`Accumulator::groups`].
    /// `λ = damping · trace(ΦᵀΦ) / K` of all samples, so that it is the same for all groups, and finite amounts come
    /// out where nobody else did anything. Costs `B · (2 · samples · K² + groups · K³ / 3)`.
    ///
    /// # Errors
    /// As [`Accumulator::groups`] and [`Whitening::new`](super::Whitening::new).
    pub fn held_out(
        &self,
        groups: usize,
        group_of: impl Fn(u64) -> Option<usize>,
        damping: f64,
    ) -> Result<HeldOut> {
        let sums = self.groups(groups, &group_of)?;
        let mut members = vec![Vec::new(); groups];
        for (n, &id) in self.ids().iter().enumerate() {
            if let Some(group) = group_of(id) {
                members[group].push(n);
            }
        }
        let (blocks, len) = (self.blocks(), self.sketch_len());
        let of_blocks =
            (0..blocks).into_par_iter().map(|b| self.by_the_rest(b, &sums, &members, damping));
        let of_blocks: Vec<Vec<f64>> = of_blocks.collect::<Result<_>>()?;
        let cells =
            (0..groups).flat_map(|group| of_blocks.iter().map(move |it| &it[group * len..][..len]));
        Ok(HeldOut { whitened: cells.flatten().copied().collect(), groups: sums })
    }

    /// The whitened sums of one block, `[groups, K]`.
    fn by_the_rest(
        &self,
        block: usize,
        sums: &GroupInfluence,
        members: &[Vec<usize>],
        damping: f64,
    ) -> Result<Vec<f64>> {
        let len = self.sketch_len();
        let all = gram(self, block, 0..self.len());
        let Some(lambda) = lambda(&all, damping)? else {
            return Ok(vec![0.0; members.len() * len]);
        };
        let mut whitened = Vec::with_capacity(members.len() * len);
        for (group, members) in members.iter().enumerate() {
            let rest = &all - gram(self, block, members.iter().copied());
            let factor = damped(rest, lambda).ok_or_else(|| indefinite(damping))?;
            let sum = sums.sum(group, block);
            let mut solved = Col::from_fn(len, |i| sum[i]);
            factor.solve_in_place(&mut solved);
            whitened.extend(solved.iter());
        }
        Ok(whitened)
    }
}

impl HeldOut {
    /// The groups' sums as they stand.
    pub fn groups(&self) -> &GroupInfluence {
        &self.groups
    }

    /// `⟨ΣA, (RᵀR + λI)⁻¹ ΣA⟩`, at least 0: how far the group moved the block beyond what the others' movements
    /// explain, in units of these.
    ///
    /// # Panics
    /// When there is no such group or block; so do the other calls.
    pub fn alone(&self, group: usize, block: usize) -> f64 {
        let (sum, whitened) = (self.groups.sum(group, block), self.whitened(group, block));
        sum.iter().zip(whitened).map(|(a, b)| a * b).sum()
    }

    /// `⟨query, (RᵀR + λI)⁻¹ ΣA⟩` over all blocks for a query `[B, K]`: the group's influence on it, as the sum of
    /// its samples' whitened scores is, but for the whitening.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when the query has the wrong size or is not finite.
    pub fn score(&self, group: usize, query: &[f32]) -> Result<f64> {
        let len = self.whitened.len() / self.groups.groups().max(1);
        check_query(len, query)?;
        let whitened = &self.whitened[group * len..][..len];
        Ok(query.iter().zip(whitened).map(|(&a, b)| f64::from(a) * b).sum())
    }

    /// `(RᵀR + λI)⁻¹ ΣA`, `[K]`.
    pub fn whitened(&self, group: usize, block: usize) -> &[f64] {
        let len = self.groups.sum(group, block).len();
        &self.whitened[(group * self.groups.blocks() + block) * len..][..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::StepRecord;

    /// Samples 1, 2 and 3 in blocks of two numbers; nobody but 3 moves the second block, nobody the third.
    fn influence() -> Accumulator {
        let mut influence = Accumulator::new(3, 2).unwrap();
        let record = StepRecord {
            step_size: 1.0,
            optimizer_scale: 1.0,
            blocks: 3,
            samples: vec![1, 2, 3],
            noise_levels: vec![0.0; 3],
            gates: vec![1.0; 3],
            route: vec![1.0; 9],
            flow: vec![1.0; 9],
            sq_norm: vec![1.0; 9],
            sketch: [[1.0, 2.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [0.0, 3.0, 1.0, 1.0]]
                .map(|[a, b, c, d]| [a, b, c, d, 0.0, 0.0])
                .concat(),
            ..StepRecord::default()
        };
        influence.add(&record).unwrap();
        influence
    }

    fn group_of(id: u64) -> Option<usize> {
        (id > 1).then_some(if id == 3 { 2 } else { 0 })
    }

    #[test]
    fn a_block_of_its_own_is_bounded_by_the_damping() {
        let groups = influence().held_out(3, group_of, 0.5).unwrap();
        // Only itself is in the block: λ is a half of its mean diagonal, 1.
        assert!((groups.alone(2, 1) - 2.0 / 0.5).abs() < 1e-12);
        assert_eq!([groups.alone(0, 1), groups.alone(0, 2), groups.alone(2, 2)], [0.0; 3]);
        // Nobody is in group 1.
        assert_eq!([0, 1, 2].map(|b| groups.alone(1, b)), [0.0; 3]);
    }

    #[test]
    fn asked_with_its_own_sum_a_group_scores_what_it_moved_alone() {
        let groups = influence().held_out(3, group_of, 0.5).unwrap();
        let alone = (0..3).map(|b| groups.alone(2, b)).sum::<f64>();
        let score = groups.score(2, &[0.0, 3.0, 1.0, 1.0, 0.0, 0.0]).unwrap();
        assert!((score - alone).abs() < 1e-12 && alone > 0.0, "{score} {alone}");
        let error = groups.score(0, &[0.0; 4]).unwrap_err().to_string();
        assert!(error.contains("query") && error.contains('6'), "{error}");
    }

    #[test]
    fn what_is_not_valid_is_named() {
        let damping = influence().held_out(3, group_of, -1.0).unwrap_err().to_string();
        assert!(damping.contains("damping"), "{damping}");
        let group = influence().held_out(2, group_of, 0.5).unwrap_err().to_string();
        assert!(group.contains("group_of(3)"), "{group}");
    }
}
