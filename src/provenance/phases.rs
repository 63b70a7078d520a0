//! Influence over the phases of a run, each by its own whitening.
//!
//! A model at the beginning of its training and the same model at the end have other gradients and other
//! curvature. One sum over the whole run mixes them, and the first steps, which are the largest, outweigh
//! the rest. A few phases, each judged by what the model was then, keep them apart.

use super::influence::expect_shape;
use super::{Accumulator, Influence, Scorer, Similarity};
use crate::error::expect_len;
use crate::{Error, Result};

/// Scores summed over phases of a run.
///
/// In each phase the query is compared with what the samples did in that phase, whitened by that phase's
/// second moment, after the phase's sums were divided by their root mean square: how large steps were is no
/// measure of how much of them is left at the end. This is the cut into segments of Bae et al. (2024, arXiv
/// 2405.12186), with sketches for gradients and each segment taken as trained until it stood still.
///
/// The query's gradient is that at the end of each phase, from the checkpoints that a run leaves anyway.
///
/// ```
/// use gradroute::provenance::{Accumulator, PhasedScorer, Similarity, StepRecord};
///
/// let step = |step_size, sketch: [f32; 4]| StepRecord {
///     step_size,
///     optimizer_scale: 1.0,
///     blocks: 1,
///     samples: vec![1, 2],
///     noise_levels: vec![0.0; 2],
///     gates: vec![1.0; 2],
///     route: vec![1.0; 2],
///     flow: vec![1.0; 2],
///     sq_norm: vec![1.0; 2],
///     sketch: sketch.to_vec(),
///     ..StepRecord::default()
/// };
/// let mut phases = [Accumulator::new(1, 2)?, Accumulator::new(1, 2)?];
/// phases[0].add(&step(1.0, [1.0, 0.0, 0.0, 1.0]))?;
/// phases[1].add(&step(0.01, [0.0, 2.0, 2.0, 0.0]))?; // small steps, later
/// let queries = [[1.0, 0.0], [1.0, 0.0]]; // the query's sketch at the end of each
/// let scores = PhasedScorer::whitened(&phases, 0.3)?.scores(&queries, Similarity::Dot)?;
/// let totals: Vec<f64> = scores.total().collect();
/// assert!(totals[1] > 0.1 * totals[0]); // a hundredth of the size, not of the score
/// # Ok::<(), gradroute::Error>(())
/// ```
pub struct PhasedScorer<'a> {
    /// Each with the root mean square of its sums.
    phases: Vec<(Scorer<'a>, f64)>,
}

impl<'a> PhasedScorer<'a> {
    /// Of the phases' own accumulated influence, `damping` as in [`Whitening::new`](super::Whitening::new)
    /// for each of them. Costs as much a phase as [`Scorer::whitened`].
    ///
    /// # Errors
    /// [`Error::Argument`] when there is no phase, their shapes differ, or the damping is refused.
    pub fn whitened(phases: &'a [Accumulator], damping: f64) -> Result<Self> {
        let Some(first) = phases.first() else {
            return Err(Error::argument("phases", "at least one", 0));
        };
        phases.iter().try_for_each(|phase| expect_shape("phases", first, phase))?;
        let scorer = |phase| Ok((Scorer::whitened(phase, damping)?, root_mean_square(phase)));
        Ok(Self { phases: phases.iter().map(scorer).collect::<Result<_>>()? })
    }

    /// Scores of all samples for the sketches `[B, K]` of a query's unrouted gradient at the end of each
    /// phase. Samples come in the order in which they were first seen. `similarity` is that within a phase.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are not as many as phases, or one is refused by [`Scorer::scores`].
    pub fn scores<Q: AsRef<[f32]>>(
        &self,
        queries: &[Q],
        similarity: Similarity,
    ) -> Result<Influence> {
        expect_len("queries", self.phases.len(), queries.len())?;
        let parts = self.phases.iter().zip(queries).map(|((scorer, scale), query)| {
            Ok((scorer.scores(query.as_ref(), similarity)?, *scale))
        });
        Ok(Influence::sum(parts.collect::<Result<Vec<_>>>()?))
    }
}

/// Of all of the accumulated sketches' numbers; 0 where there is none.
fn root_mean_square(phase: &Accumulator) -> f64 {
    let numbers = phase.len() * phase.blocks() * phase.sketch_len();
    let square: f64 = Scorer::plain(phase).self_influence().iter().sum();
    (square / numbers.max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::StepRecord;

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

    const FIRST: [f32; 8] = [1.0, 2.0, -1.0, 0.5, 0.0, 1.0, 3.0, 1.0];
    const SECOND: [f32; 12] = [2.0, 0.0, 1.0, 1.0, -1.0, 1.0, 0.5, 0.0, 4.0, 2.0, 0.0, -3.0];

    #[test]
    fn it_is_the_sum_over_phases_in_their_own_units() {
        let phases = [phase(1.0, &[7, 9], &FIRST), phase(0.5, &[9, 4, 7], &SECOND)];
        let queries = [[1.0, -1.0, 2.0, 0.5], [0.5, 1.0, -1.0, 2.0]];
        let scorer = PhasedScorer::whitened(&phases, 0.3).unwrap();
        let scores = scorer.scores(&queries, Similarity::Dot).unwrap();
        assert_eq!(scores.ids(), [7, 9, 4]);
        let mut want = [0.0; 3];
        for (phase, query) in phases.iter().zip(&queries) {
            let own = Scorer::whitened(phase, 0.3).unwrap();
            let own = own.scores(query, Similarity::Dot).unwrap();
            let all = phase.ids().iter().flat_map(|&id| phase.sketch(id).unwrap());
            let squares: Vec<f64> = all.map(|&value| f64::from(value).powi(2)).collect();
            let scale = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
            for (&id, score) in own.ids().iter().zip(own.total()) {
                want[[7, 9, 4].iter().position(|&it| it == id).unwrap()] += scale * score;
            }
        }
        let blocks: Vec<f64> = scores.block(0).zip(scores.block(1)).map(|(a, b)| a + b).collect();
        for ((have, want), blocks) in scores.total().zip(want).zip(blocks) {
            assert!((have - want).abs() < 1e-9 * want.abs().max(1.0), "{have} {want}");
            assert!((have - blocks).abs() < 1e-9 * want.abs().max(1.0), "{have} {blocks}");
        }
    }

    #[test]
    fn the_size_of_steps_does_not_matter() {
        let scores = |sizes: [f32; 2]| {
            let phases = [phase(sizes[0], &[7, 9], &FIRST), phase(sizes[1], &[9, 4, 7], &SECOND)];
            let scorer = PhasedScorer::whitened(&phases, 0.3).unwrap();
            let query = [1.0, -1.0, 2.0, 0.5];
            let scores = scorer.scores(&[query; 2], Similarity::Dot).unwrap();
            scores.total().collect::<Vec<_>>()
        };
        for (a, b) in scores([1.0, 1.0]).iter().zip(scores([1.0, 0.0625])) {
            assert!((a - b).abs() < 1e-6 * a.abs(), "{a} {b}");
        }
    }

    #[test]
    fn a_phase_in_which_nothing_was_done_adds_nothing() {
        let (one, query) = (phase(1.0, &[7, 9], &FIRST), [1.0, -1.0, 2.0, 0.5]);
        let both = [one.clone(), one.like()];
        let all = PhasedScorer::whitened(&both, 0.3).unwrap();
        let alone = PhasedScorer::whitened(&both[..1], 0.3).unwrap();
        assert_eq!(
            all.scores(&[query; 2], Similarity::Dot).unwrap(),
            alone.scores(&[query], Similarity::Dot).unwrap()
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let none = PhasedScorer::whitened(&[], 0.3).err().unwrap().to_string();
        assert!(none.contains("phases"), "{none}");
        let phases = [Accumulator::new(2, 2).unwrap(), Accumulator::new(2, 3).unwrap()];
        let differ = PhasedScorer::whitened(&phases, 0.3).err().unwrap().to_string();
        assert!(differ.contains("2 × 3"), "{differ}");
        let scorer = PhasedScorer::whitened(&phases[..1], 0.3).unwrap();
        let few = scorer.scores::<[f32; 4]>(&[], Similarity::Dot).unwrap_err().to_string();
        assert!(few.contains("queries"), "{few}");
    }
}
