//! How deep a category went.

use serde::Serialize;

use super::{Archive, Citation, Subject};
use crate::provenance::{Accumulator, Estimate};
use crate::{Error, Result};

/// A sample's or category's profile over the blocks, against the whole corpus.
///
/// The profile is each block's part of `‖Σ A‖` over the blocks; the corpus' the same of the
/// sums over the categories, `Σ_c ‖Σ A‖`. Centroid and spread are the mean and the standard
/// deviation of the block's index under it: 0 is the input's end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Depth {
    /// The sample or category.
    pub subject: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// By block, from input to output.
    pub blocks: Vec<DepthBlock>,
    /// Centroid and spread of the subject.
    pub profile: Profile,
    /// Those of the corpus.
    pub corpus: Profile,
    /// What this rests on.
    pub citation: Citation,
}

/// One block of a profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DepthBlock {
    /// The block.
    pub block: String,
    /// The block's part of the subject's movement.
    pub share: Estimate,
    /// The block's part of the corpus'.
    pub corpus: f64,
    /// `share / corpus`: above 1, the subject is more at home here than others; 0 where the
    /// corpus did nothing.
    pub lift: f64,
}

/// Where on the way from input to output a movement lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Profile {
    /// Mean index of the block.
    pub centroid: Estimate,
    /// Standard deviation of the block's index.
    pub spread: f64,
}

impl Archive {
    /// The profile of a sample or category; `level` as in [`Archive::backward`] says which
    /// categories the corpus is added up by.
    ///
    /// # Errors
    /// [`Error::Argument`] when the run has no such sample or category, or it moved nothing.
    pub fn depth(&self, subject: &Subject, level: Option<usize>) -> Result<Depth> {
        let named = self.members(subject)?;
        let members: std::collections::HashSet<u64> = named.iter().copied().collect();
        let own = self.influence().grouped(|id| members.contains(&id).then_some(0))?;
        let grouping = self.grouping(level);
        let all = self.influence().grouped(|id| Some(*grouping.of.get(&id)? as u64))?;
        let (own, all) = (self.moved(&own), self.moved(&all));
        if own.iter().all(|it| it.value == 0.0) {
            let argument = match subject {
                Subject::Sample(_) => "sample",
                Subject::Category(_) => "category",
            };
            return Err(Error::argument(argument, "one that moved something", subject));
        }
        let shares = Estimate::shares(&own).into_iter().zip(Estimate::shares(&all));
        let blocks = shares.zip(self.blocks()).map(|((share, all), block)| {
            let corpus = all.value;
            let lift = if corpus > 0.0 { share.value / corpus } else { 0.0 };
            DepthBlock { block, share, corpus, lift }
        });
        Ok(Depth {
            subject: subject.to_string(),
            samples: named.iter().filter(|&&id| self.influence().sketch(id).is_some()).count(),
            blocks: blocks.collect(),
            profile: profile(&own),
            corpus: profile(&all),
            citation: self.cite_all(named),
        })
    }

    /// How far sums moved each block, their norms added up.
    fn moved(&self, sums: &Accumulator) -> Vec<Estimate> {
        let mut moved = vec![Estimate::default(); sums.blocks()];
        for &id in sums.ids() {
            let parts =
                sums.sketch(id).into_iter().flat_map(|it| it.chunks_exact(sums.sketch_len()));
            for (moved, part) in moved.iter_mut().zip(parts) {
                let norm = Estimate::norm(self.kind(), part, part.len());
                moved.value += norm.value;
                moved.deviation = moved.deviation.hypot(norm.deviation);
            }
        }
        moved
    }
}

fn profile(moved: &[Estimate]) -> Profile {
    let sum: f64 = moved.iter().map(|it| it.value).sum();
    if sum == 0.0 {
        return Profile::default();
    }
    let at = || moved.iter().enumerate().map(|(b, it)| (b as f64, it));
    let centroid = at().map(|(b, it)| b * it.value).sum::<f64>() / sum;
    let square = at().map(|(b, it)| (b - centroid).powi(2) * it.value).sum::<f64>() / sum;
    // By how much each block's amount pulls the mean, the blocks being sketched independently.
    let pulls = at().map(|(b, it)| ((b - centroid) / sum * it.deviation).powi(2));
    let deviation = pulls.sum::<f64>().sqrt();
    Profile { centroid: Estimate { value: centroid, deviation }, spread: square.sqrt() }
}
