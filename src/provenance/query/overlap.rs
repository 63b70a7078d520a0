//! What else a category moved, moved along: predicted collateral.

use serde::Serialize;

use super::{Archive, Citation, Subject};
use crate::Result;
use crate::provenance::Estimate;
use crate::provenance::influence::dot;
use crate::routing::CategoryPath;

/// With which other categories a category shares directions.
///
/// A prediction, to first order, from what was recorded; what attenuation really costs is
/// measured on the weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overlap {
    /// The category.
    pub category: String,
    /// Names of the blocks, in the order of all cosines.
    pub blocks: Vec<String>,
    /// The others, by how much they would lose.
    pub others: Vec<OverlapWith>,
    /// What this rests on.
    pub citation: Citation,
}

/// One of the other categories.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverlapWith {
    /// The other category.
    pub category: String,
    /// Samples of it that were seen.
    pub samples: usize,
    /// Cosine of the two sums, all blocks together.
    pub cosine: Estimate,
    /// `⟨ΣA, ΣA'⟩ / ‖ΣA'‖²`: the part of its own movement that the other would lose if the
    /// category's were taken back; negative, it would gain.
    pub loses: Estimate,
    /// Cosine in each block; 0 where either did nothing.
    pub by_block: Vec<f64>,
}

impl Archive {
    /// Overlap of a category with all others, these cut to their first `level` names.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) when the run has no such category.
    pub fn overlap(&self, category: &CategoryPath, level: Option<usize>) -> Result<Overlap> {
        let members = self.members(&Subject::Category(category.clone()))?;
        let members: std::collections::HashSet<u64> = members.into_iter().collect();
        let grouping = self.grouping(level);
        let own = grouping.names.len() as u64;
        let sums = self.influence().grouped(|id| match members.contains(&id) {
            true => Some(own),
            false => Some(*grouping.of.get(&id)? as u64),
        })?;
        let mut counts = vec![0; grouping.names.len()];
        let others = self.influence().ids().iter().filter(|id| !members.contains(id));
        others.for_each(|id| counts[grouping.of[id]] += 1);
        let zero = vec![0.0; sums.blocks() * sums.sketch_len()];
        let mine = sums.sketch(own).unwrap_or(&zero);
        let mut others: Vec<OverlapWith> = (grouping.names.iter().enumerate())
            .filter_map(|(at, name)| {
                let theirs = sums.sketch(at as u64)?;
                Some(self.between(name, counts[at], mine, theirs))
            })
            .collect();
        others.sort_by(|a, b| b.loses.value.total_cmp(&a.loses.value));
        Ok(Overlap {
            category: category.to_string(),
            blocks: self.blocks(),
            others,
            citation: self.cite_all(Vec::new()),
        })
    }

    fn between(&self, name: &str, samples: usize, mine: &[f32], theirs: &[f32]) -> OverlapWith {
        let len = self.influence().sketch_len();
        let product = Estimate::product(self.kind(), mine, theirs, len);
        let (mine_sq, theirs_sq) = (dot(mine, mine), dot(theirs, theirs));
        let by_block = mine.chunks_exact(len).zip(theirs.chunks_exact(len)).map(|(a, b)| {
            let norms = (dot(a, a) * dot(b, b)).sqrt();
            if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
        });
        OverlapWith {
            category: name.to_owned(),
            samples,
            cosine: Estimate::cosine(product, (mine_sq * theirs_sq).sqrt()),
            loses: Estimate::part(product, [mine_sq, theirs_sq]),
            by_block: by_block.collect(),
        }
    }
}
