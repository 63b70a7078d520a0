//! Influence by the phases of a run, side by side.
//!
//! A model at the beginning of its training and the same model at the end have other gradients and other
//! curvature. One sum over the whole run mixes them, and the first steps, which are the largest, outweigh
//! the rest. A few phases, each judged by what the model was then, keep them apart.
//!
//! Every question goes on as before, with the blocks of each phase for blocks: a whitening is one of each
//! block anyway, and so one of each phase; scores add up over both.
//!
//! ```
//! use gradroute::provenance::{Accumulator, Scorer, Similarity, StepRecord};
//!
//! let step = |step_size, sketch: [f32; 4]| StepRecord {
//!     step_size,
//!     optimizer_scale: 1.0,
//!     blocks: 1,
//!     samples: vec![1, 2],
//!     noise_levels: vec![0.0; 2],
//!     gates: vec![1.0; 2],
//!     route: vec![1.0; 2],
//!     flow: vec![1.0; 2],
//!     sq_norm: vec![1.0; 2],
//!     sketch: sketch.to_vec(),
//!     ..StepRecord::default()
//! };
//! let mut phases = [Accumulator::new(1, 2)?, Accumulator::new(1, 2)?];
//! phases[0].add(&step(1.0, [1.0, 0.0, 0.0, 1.0]))?;
//! phases[1].add(&step(0.01, [0.0, 2.0, 2.0, 0.0]))?; // small steps, later
//! let influence = Accumulator::side_by_side(&phases)?;
//! let queries = [[1.0, 0.0], [1.0, 0.0]]; // the query's sketch at the end of each
//! let scorer = Scorer::whitened(&influence, 0.3)?;
//! let scores = scorer.scores(&queries.concat(), Similarity::Dot)?;
//! let totals: Vec<f64> = scores.total().collect();
//! assert!(totals[1] > 0.1 * totals[0]); // a hundredth of the size, not of the score
//! # Ok::<(), gradroute::Error>(())
//! ```

use super::influence::{dot, expect_shape};
use super::{Accumulator, BlockTotals, NormTrace, Query};
use crate::{Error, Result};

impl Accumulator {
    /// The accumulated influence of `P` phases of a run, `[samples, P · B, K]`: the blocks of the first phase,
    /// then those of the second. Samples come in the order in which they were first seen.
    ///
    /// Each phase's sums are divided by their root mean square: how large steps were is no measure of how
    /// much of them is left at the end. Compare with the query's gradient at the end of each phase
    /// ([`Query::side_by_side`]), from the checkpoints that a run leaves anyway, by [`Scorer::whitened`].
    /// This is the cut into segments of Bae et al. (2024, arXiv 2405.12186), with sketches for gradients and
    /// each segment taken as trained until it stood still.
    ///
    /// Costs `P · samples · B · K`.
    ///
    /// [`Scorer::whitened`]: super::Scorer::whitened
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no phase, or their shapes or noise-level bins differ.
    pub fn side_by_side(phases: &[Self]) -> Result<Self> {
        let Some(first) = phases.first() else {
            return Err(Error::argument("phases", "at least one", 0));
        };
        phases.iter().try_for_each(|phase| first.expect_like("phases", phase))?;
        let mut all = first.widened(phases.len())?;
        let scales: Vec<f32> = phases.iter().map(inverse_root_mean_square).collect();
        let blocks = first.blocks();
        let empty = vec![0.0; blocks * first.sketch_len()];
        for &id in phases.iter().flat_map(Self::ids) {
            if all.sketch(id).is_some() {
                continue;
            }
            let (mut sketch, mut totals) = (Vec::new(), Vec::new());
            let mut norms = vec![NormTrace::default(); first.bins()];
            for (phase, scale) in phases.iter().zip(&scales) {
                let own = phase.sketch(id).unwrap_or(&empty);
                sketch.extend(own.iter().map(|value| scale * value));
                match phase.totals(id) {
                    Some(own) => totals.extend(own),
                    None => totals.resize(totals.len() + blocks, BlockTotals::default()),
                }
                let later = phase.norms(id).unwrap_or_default();
                norms.iter_mut().zip(later).for_each(|(sum, later)| sum.add(later));
            }
            all.merge_row(id, &sketch, &totals, &norms)?;
        }
        Ok(all)
    }
}

/// Of all of the accumulated sketches' numbers; 0 where there is none.
fn inverse_root_mean_square(phase: &Accumulator) -> f32 {
    let numbers = phase.len() * phase.blocks() * phase.sketch_len();
    let square: f64 = (0..phase.len()).map(|n| dot(phase.sketch_at(n), phase.sketch_at(n))).sum();
    if square > 0.0 { (numbers as f64 / square).sqrt() as f32 } else { 0.0 }
}

impl Query {
    /// The gradients of one output at the end of each phase of a run, for
    /// [`Accumulator::side_by_side`]: the blocks of the first, then those of the second.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none, or they are not of the same shape and the same draws.
    pub fn side_by_side(phases: &[Self]) -> Result<Self> {
        let Some(first) = phases.first() else {
            return Err(Error::argument("queries", "at least one", 0));
        };
        let mut all = Self::new(phases.len() * first.blocks(), first.sketch_len());
        for query in phases {
            expect_shape("queries", first.shape(), query.shape())?;
            if !query.same_draws(first) {
                let given = format!("{} others", query.draws().len());
                return Err(Error::argument("queries", "the same draws in every phase", given));
            }
        }
        for (n, &draw) in first.draws().iter().enumerate() {
            let sketches = phases.iter().filter_map(|query| query.sketches().nth(n));
            all.add(draw, &sketches.collect::<Vec<_>>().concat())?;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::{Draw, Scorer, Similarity, StepRecord};

    fn phase(step_size: f32, samples: &[u64], sketch: &[f32]) -> Accumulator {
        let (count, blocks) = (samples.len(), 2);
        let mut phase = Accumulator::new(blocks, 2).unwrap();
        let record = StepRecord {
            step_size,
            optimizer_scale: 1.0,
            blocks,
            samples: samples.to_vec(),
            noise_levels: vec![0.0; count],
            gates: vec![1.0; count],
            route: vec![1.0; count * blocks],
            flow: vec![1.0; count * blocks],
            sq_norm: vec![1.0; count * blocks],
            sketch: sketch.to_vec(),
            ..StepRecord::default()
        };
        phase.add(&record).unwrap();
        phase
    }

    fn scores(phases: &[Accumulator], queries: &[[f32; 4]]) -> Vec<f64> {
        let all = Accumulator::side_by_side(phases).unwrap();
        let scorer = Scorer::whitened(&all, 0.3).unwrap();
        scorer.scores(&queries.concat(), Similarity::Dot).unwrap().total().collect()
    }

    const FIRST: [f32; 8] = [1.0, 2.0, -1.0, 0.5, 0.0, 1.0, 3.0, 1.0];
    const SECOND: [f32; 12] = [2.0, 0.0, 1.0, 1.0, -1.0, 1.0, 0.5, 0.0, 4.0, 2.0, 0.0, -3.0];

    #[test]
    fn scores_are_the_sum_over_phases_in_their_own_units() {
        let phases = [phase(1.0, &[7, 9], &FIRST), phase(0.5, &[9, 4, 7], &SECOND)];
        let queries = [[1.0, -1.0, 2.0, 0.5], [0.5, 1.0, -1.0, 2.0]];
        let all = Accumulator::side_by_side(&phases).unwrap();
        assert_eq!((all.ids(), all.blocks()), (&[7, 9, 4][..], 4));
        let mut want = [0.0; 3];
        for (phase, query) in phases.iter().zip(&queries) {
            let own = Scorer::whitened(phase, 0.3).unwrap();
            let own = own.scores(query, Similarity::Dot).unwrap();
            let numbers = phase.ids().iter().flat_map(|&id| phase.sketch(id).unwrap());
            let squares: Vec<f64> = numbers.map(|&value| f64::from(value).powi(2)).collect();
            let scale = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
            for (&id, score) in own.ids().iter().zip(own.total()) {
                // Whitening divides by the square of a unit, and the sums themselves are in it once.
                want[[7, 9, 4].iter().position(|&it| it == id).unwrap()] += scale * score;
            }
        }
        for (have, want) in scores(&phases, &queries).into_iter().zip(want) {
            assert!((have - want).abs() < 1e-6 * want.abs().max(1.0), "{have} {want}");
        }
    }

    #[test]
    fn running_sums_are_those_of_the_phases() {
        let phases = [phase(1.0, &[7, 9], &FIRST), phase(0.5, &[9, 4, 7], &SECOND)];
        let all = Accumulator::side_by_side(&phases).unwrap();
        let (nine, four) = (all.totals(9).unwrap(), all.totals(4).unwrap());
        assert_eq!(nine[..2], *phases[0].totals(9).unwrap());
        assert_eq!(nine[2..], *phases[1].totals(9).unwrap());
        assert_eq!((four[0], four[2]), (BlockTotals::default(), phases[1].totals(4).unwrap()[0]));
        let events = |id| all.norms(id).unwrap().iter().map(|it| it.events).sum::<u32>();
        assert_eq!([events(7), events(4)], [2, 1]);
    }

    #[test]
    fn the_size_of_steps_does_not_matter() {
        let of = |sizes: [f32; 2]| {
            let phases = [phase(sizes[0], &[7, 9], &FIRST), phase(sizes[1], &[9, 4, 7], &SECOND)];
            scores(&phases, &[[1.0, -1.0, 2.0, 0.5]; 2])
        };
        for (a, b) in of([1.0, 1.0]).iter().zip(of([1.0, 0.0625])) {
            assert!((a - b).abs() < 1e-6 * a.abs(), "{a} {b}");
        }
    }

    #[test]
    fn a_phase_in_which_nothing_was_done_adds_nothing() {
        let (one, query) = (phase(1.0, &[7, 9], &FIRST), [1.0, -1.0, 2.0, 0.5]);
        let both = [one.clone(), one.like()];
        assert_eq!(scores(&both, &[query; 2]), scores(&both[..1], &[query]));
    }

    #[test]
    fn queries_keep_their_draws() {
        let query = |first: f32, noise: u64| {
            let mut query = Query::new(1, 2);
            for n in 0..2 {
                let draw = Draw { level: 0.5, noise: noise + n };
                query.add(draw, &[first, n as f32]).unwrap();
            }
            query
        };
        let both = Query::side_by_side(&[query(1.0, 5), query(2.0, 5)]).unwrap();
        assert_eq!((both.blocks(), both.draws()), (2, query(1.0, 5).draws()));
        let sketches: Vec<&[f32]> = both.sketches().collect();
        assert_eq!(sketches, [[1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 2.0, 1.0]]);
        let other = Query::side_by_side(&[query(1.0, 5), query(2.0, 6)]).unwrap_err().to_string();
        assert!(other.contains("draws"), "{other}");
        let wide = Query::side_by_side(&[query(1.0, 5), Query::new(2, 2)]).unwrap_err().to_string();
        assert!(wide.contains("2 × 2"), "{wide}");
        assert!(Query::side_by_side(&[]).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let none = Accumulator::side_by_side(&[]).unwrap_err().to_string();
        assert!(none.contains("phases"), "{none}");
        let phases = [Accumulator::new(2, 2).unwrap(), Accumulator::new(2, 3).unwrap()];
        let differ = Accumulator::side_by_side(&phases).unwrap_err().to_string();
        assert!(differ.contains("2 × 3"), "{differ}");
    }
}
