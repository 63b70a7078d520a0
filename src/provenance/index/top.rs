//! The samples that stand out in an answer.

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;
use serde::Serialize;

use super::{Index, Precision};
use crate::provenance::Similarity;
use crate::provenance::influence::ranked;
use crate::provenance::query::Citation;
use crate::{Error, Result};

/// How an index is asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TopOptions {
    /// Damping of the whitening, see [`Whitening::new`](crate::provenance::Whitening::new); none
    /// for the plain inner product.
    pub whitening: Option<f64>,
    /// What is done about the sizes of the two sides: nothing, with a whitening.
    pub similarity: Similarity,
    /// The block looked at; none for all of them.
    pub block: Option<usize>,
    /// Samples listed on either side.
    pub count: usize,
    /// Whether each block's share of the listed scores is told. The tables' parts that hold these
    /// samples are read once more.
    pub shares: bool,
}

impl Default for TopOptions {
    /// Whitened with a damping of 0.1, all blocks, ten samples, without their shares: as
    /// [`OutputOptions`](crate::provenance::query::OutputOptions) where both say the same.
    fn default() -> Self {
        let (similarity, block) = (Similarity::Dot, None);
        Self { whitening: Some(0.1), similarity, block, count: 10, shares: false }
    }
}

/// The samples most for and most against an output, among all of an index.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// How it was asked.
    pub options: TopOptions,
    /// Names of the blocks that were asked, in the order of all shares.
    pub blocks: Vec<String>,
    /// How the index keeps sketches.
    pub precision: Precision,
    /// Samples that made the output more likely, the most helpful first.
    pub helpful: Vec<Ranked>,
    /// Samples that worked against it, the most harmful first.
    pub harmful: Vec<Ranked>,
    /// What this rests on.
    pub citation: Citation,
}

/// A sample and its score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranked {
    /// The sample.
    pub sample: u64,
    /// Its influence on the output, as [`Scorer::scores`](crate::provenance::Scorer::scores)
    /// defines it.
    pub score: f64,
    /// Each block's part of it, signed; absolute values add up to 1. Empty unless asked for.
    pub shares: Vec<f64>,
}

impl Index {
    /// The samples that helped an output most, and those that worked against it. `query [B, K]` is
    /// the sketch of the output's unrouted gradient, by the run's own projection. `progress` is
    /// told of blocks read, and of how many. Costs as [`Index::scores`] and [`Index::whitening`].
    ///
    /// # Errors
    /// As [`Index::scores`] and [`Index::whitening`]; [`Error::Argument`] for a whitening with any
    /// similarity but the inner product, since an index keeps the samples' plain squares alone.
    pub fn top(
        &self,
        query: &[f32],
        options: &TopOptions,
        progress: impl FnMut(usize, usize),
    ) -> Result<Ranking> {
        let TopOptions { whitening, similarity, block, count, shares } = *options;
        let query = match whitening {
            None => Cow::Borrowed(query),
            Some(_) if similarity != Similarity::Dot => {
                let expected = "the inner product, with a whitening";
                return Err(Error::argument("similarity", expected, format!("{similarity:?}")));
            }
            Some(damping) => self.whitening(damping)?.apply(query)?.into(),
        };
        let scores = self.scores(&query, similarity, block, progress)?;
        let listed = |ranked: Vec<(u64, f64)>, sign: f64| -> Vec<Ranked> {
            let within = ranked.into_iter().take_while(|(_, score)| *score > 0.0);
            let one = |(sample, score)| Ranked { sample, score: sign * score, shares: vec![] };
            within.map(one).collect()
        };
        // A sample whose sums are not finite is on neither side.
        let side = |sign: f64| {
            let turned = scores.values().iter().map(move |score| sign * score);
            let turned = turned.map(|score| if score.is_nan() { 0.0 } else { score });
            listed(ranked(scores.ids(), turned, count), sign)
        };
        let (mut helpful, mut harmful) = (side(1.0), side(-1.0));
        if shares {
            let all = helpful.iter_mut().chain(&mut harmful);
            self.share(&query, block, scores.ids(), all.collect())?;
        }
        let mut citation = self.citation().clone();
        citation.samples = helpful.iter().chain(&harmful).map(|it| it.sample).collect();
        citation.samples.sort_unstable();
        let (options, precision) = (*options, self.precision());
        let blocks = self.blocks()[self.range(block)?].to_vec();
        Ok(Ranking { options, blocks, precision, helpful, harmful, citation })
    }

    /// Notes each block's part of the scores.
    fn share(
        &self,
        query: &[f32],
        block: Option<usize>,
        ids: &[u64],
        mut listed: Vec<&mut Ranked>,
    ) -> Result<()> {
        let asked: HashMap<u64, usize> =
            listed.iter().enumerate().map(|(at, it)| (it.sample, at)).collect();
        let mut places = vec![0; listed.len()];
        for (place, id) in ids.iter().enumerate() {
            if let Some(&at) = asked.get(id) {
                places[at] = place;
            }
        }
        let blocks = self.range(block)?.into_par_iter();
        let products: Vec<Vec<f64>> =
            blocks.map(|at| self.products(at, query, &places)).collect::<Result<_>>()?;
        for (at, it) in listed.iter_mut().enumerate() {
            let all: f64 = products.iter().map(|block| block[at].abs()).sum();
            it.shares = products.iter().map(|block| block[at] / all).collect();
        }
        Ok(())
    }
}
