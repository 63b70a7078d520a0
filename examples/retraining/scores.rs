//! Scores of every training sample for every query.

use anyhow::{Context, Result};
use gradroute::provenance::{Accumulator, Influence, Scorer, Similarity};
use rayon::prelude::*;
use serde::Serialize;

use crate::task::{Evidence, Part, average};

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
    /// The record phase by phase, with queries at the end of each.
    Phases,
    End,
}

impl Seen {
    fn sums(self, part: &Part) -> Result<&Accumulator> {
        match self {
            Self::Record | Self::Averaged => Ok(&part.record),
            Self::End => Ok(&part.end),
            Self::Phases => part.phases.as_ref().context("the record was kept by phases"),
        }
    }

    /// The query they are compared with; `asked`: its gradients at the checkpoints.
    fn query(self, asked: &[Vec<f32>]) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Record | Self::End => asked.last().context("asked at the end")?.clone(),
            Self::Averaged => average(asked),
            Self::Phases => asked.concat(),
        })
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
        if evidence.parts.iter().all(|part| part.phases.is_some()) {
            add("whitened, by phases", damping, Seen::Phases, Similarity::Dot)?;
        }
    }
    Ok(scores)
}

/// Scores `[queries][samples]`, the parts added up.
fn compare(
    evidence: &Evidence,
    damping: Option<f64>,
    seen: Seen,
    similarity: Similarity,
) -> Result<Vec<Vec<f64>>> {
    let first = &evidence.parts[0];
    let mut values = vec![vec![0.0; first.record.len()]; first.asked.len()];
    for part in &evidence.parts {
        let judge = Judge::new(part, damping, seen)?;
        values.par_iter_mut().zip(&part.asked).try_for_each(|(values, asked)| {
            let influence = judge.scores(asked, similarity)?;
            for (&id, score) in influence.ids().iter().zip(influence.total()) {
                values[id as usize] += score;
            }
            anyhow::Ok(())
        })?;
    }
    Ok(values)
}

/// Shares of groups whitened by everybody else: the first, like the sum of a group's samples' scores,
/// `[groups][queries]`; the second, for which nothing need be asked, what the group moved alone, `[groups][1]`. Empty
/// for methods that don't whiten, or scale scores.
pub fn held_out(
    evidence: &Evidence,
    method: &Method,
    groups: &[Vec<usize>],
) -> Result<Vec<(Method, Vec<Vec<f64>>)>> {
    let (names, seen) = match method.name {
        "whitened" => (["whitened by the rest", "moved alone"], Seen::Record),
        "whitened, by phases" => {
            (["whitened by the rest, by phases", "moved alone, by phases"], Seen::Phases)
        }
        _ => return Ok(Vec::new()),
    };
    let Some(damping) = method.damping else { return Ok(Vec::new()) };
    let queries = evidence.parts[0].asked.len();
    let (mut shares, mut alone) = (vec![vec![0.0; queries]; groups.len()], vec![0.0; groups.len()]);
    let group_of = |id: u64| groups.iter().position(|group| group.contains(&(id as usize)));
    for part in &evidence.parts {
        let sums = seen.sums(part)?;
        let held_out = sums.held_out(groups.len(), group_of, damping)?;
        for group in 0..groups.len() {
            for (share, asked) in shares[group].iter_mut().zip(&part.asked) {
                *share += held_out.score(group, &seen.query(asked)?)?;
            }
            alone[group] += (0..sums.blocks()).map(|b| held_out.alone(group, b)).sum::<f64>();
        }
    }
    let alone = alone.into_iter().map(|share| vec![share]).collect();
    let named = names.map(|name| Method { name, ..method.clone() });
    Ok(named.into_iter().zip([shares, alone]).collect())
}

/// What compares a part's samples with queries.
struct Judge<'a> {
    scorer: Scorer<'a>,
    seen: Seen,
}

impl<'a> Judge<'a> {
    fn new(part: &'a Part, damping: Option<f64>, seen: Seen) -> Result<Self> {
        let sums = seen.sums(part)?;
        let scorer = match damping {
            Some(damping) => Scorer::whitened(sums, damping)?,
            None => Scorer::plain(sums),
        };
        Ok(Self { scorer, seen })
    }

    /// `asked`: the query's gradients at the checkpoints.
    fn scores(&self, asked: &[Vec<f32>], similarity: Similarity) -> Result<Influence> {
        Ok(self.scorer.scores(&self.seen.query(asked)?, similarity)?)
    }
}
