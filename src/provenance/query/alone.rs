//! What categories moved that nobody else did.

use serde::Serialize;

use super::{Archive, Citation};
use crate::Result;
use crate::provenance::{Estimate, HeldOut};

/// What each category moved that nobody else did: what leaving it out of training would cost it most.
///
/// Amounts have no unit, and are to be compared between the categories of one run. The corpus' other samples explain
/// a movement in so far as theirs went the same way: see [`HeldOut`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alone {
    /// Of the whitening.
    pub damping: f64,
    /// Names of the blocks, in the order of all shares.
    pub blocks: Vec<String>,
    /// The categories, by how much they moved alone.
    pub categories: Vec<CategoryAlone>,
    /// What this rests on.
    pub citation: Citation,
}

/// One of the categories.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CategoryAlone {
    /// The category.
    pub category: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// `⟨ΣA, (RᵀR + λI)⁻¹ ΣA⟩` over all blocks, with the sketches `R` of everybody else.
    pub alone: Estimate,
    /// Each block's part of it; they add up to 1, or are 0 where the category did nothing.
    pub shares: Vec<f64>,
}

impl Archive {
    /// What each category, cut to its first `level` names, moved that nobody else did; `damping` as in
    /// [`Whitening::new`](crate::provenance::Whitening::new). Costs as [`Accumulator::held_out`].
    ///
    /// [`Accumulator::held_out`]: crate::provenance::Accumulator::held_out
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when the damping is not valid.
    pub fn alone(&self, level: Option<usize>, damping: f64) -> Result<Alone> {
        let grouping = self.grouping(level);
        let group_of = |id| grouping.of.get(&id).copied();
        let held_out = self.influence().held_out(grouping.names.len(), group_of, damping)?;
        let seen = |at: &usize| held_out.groups().samples(*at) > 0;
        let mut categories: Vec<CategoryAlone> = (0..grouping.names.len())
            .filter(seen)
            .map(|at| {
                let (alone, shares) = self.moved_alone(&held_out, at);
                let (category, samples) =
                    (grouping.names[at].clone(), held_out.groups().samples(at));
                CategoryAlone { category, samples, alone, shares }
            })
            .collect();
        categories.sort_by(|a, b| b.alone.value.total_cmp(&a.alone.value));
        let (blocks, citation) = (self.blocks(), self.citation());
        Ok(Alone { damping, blocks, categories, citation })
    }

    /// A category's amount, and the blocks' parts of it.
    fn moved_alone(&self, held_out: &HeldOut, group: usize) -> (Estimate, Vec<f64>) {
        let (blocks, len) = (self.influence().blocks(), self.influence().sketch_len());
        let sums = (0..blocks).flat_map(|b| held_out.groups().sum(group, b));
        let sums: Vec<f32> = sums.map(|&value| value as f32).collect();
        let whitened = (0..blocks).flat_map(|b| held_out.whitened(group, b));
        let whitened: Vec<f32> = whitened.map(|&value| value as f32).collect();
        let parts: Vec<f64> = (0..blocks).map(|b| held_out.alone(group, b)).collect();
        let squares = parts.iter().map(|&part| [part; 2]);
        let amount = Estimate::whitened(self.kind(), &sums, &whitened, len, squares);
        let all: f64 = parts.iter().sum();
        let share = |part: &f64| if all > 0.0 { part / all } else { 0.0 };
        (amount, parts.iter().map(share).collect())
    }
}
