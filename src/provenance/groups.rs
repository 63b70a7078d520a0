//! What groups of samples (categories, mostly) did to each block.

use super::Accumulator;
use super::influence::dot;
use crate::{Error, Result};

/// Per group and block: how far the group moved the block, and how much its samples pushed.
///
/// `moved = ‖Σ_n A_n‖`, `pushed = Σ_n ‖A_n‖`. A group whose samples agree moves nearly as far as
/// it pushes; one whose samples contradict each other pushes much and moves little.
///
/// ```
/// use gradroute::provenance::{Accumulator, StepRecord};
///
/// let mut influence = Accumulator::new(1, 2)?;
/// influence.add(&StepRecord {
///     step_size: 1.0,
///     optimizer_scale: 1.0,
///     blocks: 1,
///     samples: vec![1, 2, 3],
///     noise_levels: vec![0.0; 3],
///     gates: vec![1.0; 3],
///     route: vec![1.0; 3],
///     flow: vec![1.0; 3],
///     sq_norm: vec![9.0, 4.0, 1.0],
///     sketch: vec![3.0, 0.0, -2.0, 0.0, 0.0, 1.0],
///     ..StepRecord::default()
/// })?;
/// let groups = influence.groups(2, |id| Some(if id < 3 { 0 } else { 1 }))?;
/// assert_eq!((groups.moved(0, 0), groups.pushed(0, 0)), (1.0, 5.0));
/// assert_eq!((groups.moved(1, 0), groups.pushed(1, 0)), (1.0, 1.0));
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GroupInfluence {
    groups: usize,
    blocks: usize,
    sketch_len: usize,
    samples: Vec<usize>,
    /// `[groups, blocks, sketch_len]`.
    sums: Vec<f64>,
    /// `[groups, blocks]`.
    pushed: Vec<f64>,
    /// `[groups, blocks]`.
    path: Vec<f64>,
}

impl Accumulator {
    /// Adds up the samples of each of `groups` groups; `group_of` returns none for a sample
    /// that belongs to none. Sums are `f64`; costs `samples · B · K`.
    ///
    /// # Errors
    /// [`Error::Argument`] when `group_of` returns a group there is not.
    pub fn groups(
        &self,
        groups: usize,
        group_of: impl Fn(u64) -> Option<usize>,
    ) -> Result<GroupInfluence> {
        let (blocks, len) = (self.blocks(), self.sketch_len());
        let mut out = GroupInfluence {
            groups,
            blocks,
            sketch_len: len,
            samples: vec![0; groups],
            sums: vec![0.0; groups * blocks * len],
            pushed: vec![0.0; groups * blocks],
            path: vec![0.0; groups * blocks],
        };
        for (n, &id) in self.ids().iter().enumerate() {
            let Some(group) = group_of(id) else { continue };
            if group >= groups {
                let place = format!("group_of({id})");
                return Err(Error::argument(place, format!("a group below {groups}"), group));
            }
            out.samples[group] += 1;
            let sums = &mut out.sums[group * blocks * len..][..blocks * len];
            let sketch = self.sketch_at(n);
            sums.iter_mut().zip(sketch).for_each(|(sum, &value)| *sum += f64::from(value));
            for (b, part) in sketch.chunks_exact(len).enumerate() {
                out.pushed[group * blocks + b] += dot(part, part).sqrt();
                out.path[group * blocks + b] += self.totals_at(n)[b].pushed;
            }
        }
        Ok(out)
    }
}

impl GroupInfluence {
    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Samples seen of a group.
    ///
    /// # Panics
    /// When there is no such group; so do the other calls, for a block as well.
    pub fn samples(&self, group: usize) -> usize {
        self.samples[group]
    }

    /// `‖Σ A‖`: how far the group really moved the block.
    pub fn moved(&self, group: usize, block: usize) -> f64 {
        let sum = self.sum(group, block);
        sum.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// `Σ ‖A‖`: how much its samples pushed, each by what became of it over the run.
    pub fn pushed(&self, group: usize, block: usize) -> f64 {
        self.pushed[self.cell(group, block)]
    }

    /// `Σ_n Σ_t η_t · optimizer_scale_t · ‖S_n^t‖`: the length of all single pushes. It also
    /// counts what a sample later took back, and the noise of its own gradients.
    pub fn path(&self, group: usize, block: usize) -> f64 {
        self.path[self.cell(group, block)]
    }

    /// `Σ A`, `[K]`.
    pub fn sum(&self, group: usize, block: usize) -> &[f64] {
        &self.sums[self.cell(group, block) * self.sketch_len..][..self.sketch_len]
    }

    /// Cosine between what two groups did to a block: high means that attenuating one would
    /// take from the other too. 0 when either did nothing.
    pub fn overlap(&self, group: usize, other: usize, block: usize) -> f64 {
        let (a, b) = (self.sum(group, block), self.sum(other, block));
        let product: f64 = a.iter().zip(b).map(|(x, y)| x * y).sum();
        let norms = self.moved(group, block) * self.moved(other, block);
        if norms > 0.0 { product / norms } else { 0.0 }
    }

    fn cell(&self, group: usize, block: usize) -> usize {
        assert!(group < self.groups, "group {group} of {}", self.groups);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        group * self.blocks + block
    }
}
