//! Scores of every training sample for every query.

use anyhow::Result;
use gradroute::provenance::{Accumulator, Influence, PhasedScorer, Scorer, Similarity};
use rayon::prelude::*;
use serde::Serialize;

use crate::task::{Evidence, Part};

/// Damping is tried at these multiples of the mean diagonal.
const DAMPINGS: [f64; 7] = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// How samples were compared with queries.
#[derive(Clone, Debug, Serialize)]
pub struct Method {
    pub storage: String,
    pub name: &'static str,
    /// Of whitened scores.
    pub damping: Option<f64>,
    /// Whether it needs another pass over the training data.
    pub extra_pass: bool,
}

/// A score of every sample for every query.
pub struct Scores {
    pub method: Method,
    /// `[queries][samples]`.
    pub values: Vec<Vec<f64>>,
}

/// Which of a part's vectors are compared.
#[derive(Clone, Copy)]
enum Seen {
    Record,
    /// The record, with queries averaged over checkpoints.
    Averaged,
    End,
}

impl Seen {
    fn accumulator(self, part: &Part) -> &Accumulator {
        if let Self::End = self { &part.end } else { &part.record }
    }

    fn queries(self, part: &Part) -> &[Vec<f32>] {
        if let Self::Averaged = self { &part.averaged } else { &part.queries }
    }
}

/// All scores of one storage.
pub fn all(evidence: &Evidence) -> Result<Vec<Scores>> {
    let mut scores = Vec::new();
    let mut add = |name, damping, seen, similarity| -> Result<()> {
        let method = Method {
            storage: evidence.storage.clone(),
            name,
            damping,
            extra_pass: matches!(seen, Seen::End),
        };
        let values = compare(evidence, damping, seen, similarity)?;
        scores.push(Scores { method, values });
        Ok(())
    };
    add("grad-dot", None, Seen::End, Similarity::Dot)?;
    add("dot", None, Seen::Record, Similarity::Dot)?;
    if evidence.parts.len() == 1 {
        add("cosine", None, Seen::Record, Similarity::Cosine)?;
    }
    for damping in DAMPINGS.map(Some) {
        add("whitened", damping, Seen::Record, Similarity::Dot)?;
        if evidence.reference {
            continue;
        }
        add("whitened, by self-influence", damping, Seen::Record, Similarity::SelfInfluence)?;
        add("whitened, queries at checkpoints", damping, Seen::Averaged, Similarity::Dot)?;
        add("TRAK", damping, Seen::End, Similarity::Dot)?;
    }
    let phased = evidence.parts.iter().all(|part| !part.phases.is_empty());
    for damping in DAMPINGS.into_iter().filter(|_| phased) {
        let (storage, name) = (evidence.storage.clone(), "whitened, by phases");
        let method = Method { storage, name, damping: Some(damping), extra_pass: false };
        scores.push(Scores { method, values: by_phases(evidence, damping)? });
    }
    Ok(scores)
}

/// Scores `[queries][samples]` by phases of the run, the parts added up.
fn by_phases(evidence: &Evidence, damping: f64) -> Result<Vec<Vec<f64>>> {
    let mut values = nothing(evidence);
    for part in &evidence.parts {
        let scorer = PhasedScorer::whitened(&part.phases, damping)?;
        values.par_iter_mut().zip(&part.asked).try_for_each(|(values, queries)| {
            add_to(values, &scorer.scores(queries, Similarity::Dot)?);
            anyhow::Ok(())
        })?;
    }
    Ok(values)
}

/// A score of 0 of every sample for every query.
fn nothing(evidence: &Evidence) -> Vec<Vec<f64>> {
    let first = &evidence.parts[0];
    vec![vec![0.0; first.record.len()]; first.queries.len()]
}

fn add_to(values: &mut [f64], influence: &Influence) {
    for (&id, score) in influence.ids().iter().zip(influence.total()) {
        values[id as usize] += score;
    }
}

/// Scores `[queries][samples]`, the parts added up.
fn compare(
    evidence: &Evidence,
    damping: Option<f64>,
    seen: Seen,
    similarity: Similarity,
) -> Result<Vec<Vec<f64>>> {
    let mut values = nothing(evidence);
    for part in &evidence.parts {
        let accumulator = seen.accumulator(part);
        let scorer = match damping {
            Some(damping) => Scorer::whitened(accumulator, damping)?,
            None => Scorer::plain(accumulator),
        };
        values.par_iter_mut().zip(seen.queries(part)).try_for_each(|(values, query)| {
            add_to(values, &scorer.scores(query, similarity)?);
            anyhow::Ok(())
        })?;
    }
    Ok(values)
}
