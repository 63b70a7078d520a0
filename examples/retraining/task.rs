//! What the protocols need of a model and its data.

use anyhow::Result;
use gradroute::provenance::Accumulator;

/// A model that is cheap to train, and questions about it.
pub trait Task {
    /// Training samples.
    fn samples(&self) -> usize;

    /// Questions: examples the model was not trained on.
    fn queries(&self) -> usize;

    /// Category of each training sample and of each query, and the categories' names.
    fn categories(&self) -> Categories;

    /// What defines the results, for people and to tell one setup from another.
    fn setup(&self) -> serde_json::Value;

    /// Loss on each query of a model trained on the samples present, all else following from the
    /// seed.
    fn retrain(&self, present: &[bool], seed: u64) -> Result<Vec<f32>>;

    /// One training run on all samples with the run's own record of it, by each storage.
    fn record(&self) -> Result<Vec<Evidence>>;
}

/// Who belongs where.
pub struct Categories {
    pub names: Vec<String>,
    pub samples: Vec<usize>,
    pub queries: Vec<usize>,
}

/// What one way of storing gradients kept of a training run.
pub struct Evidence {
    pub storage: String,
    /// Whether it is a reference to compare with, for which the costly scores are left out.
    pub reference: bool,
    /// Blocks of different sizes lie in parts of their own.
    pub parts: Vec<Part>,
}

/// Sample ids are the places of the training samples.
pub struct Part {
    /// Written by the training loop.
    pub record: Accumulator,
    /// Gradients of all samples at the end of training: another pass over the data.
    pub end: Accumulator,
    /// The record by phases of the run that end at its checkpoints, side by side; none where it was not
    /// kept so.
    pub phases: Option<Accumulator>,
    /// The queries' gradients, `[queries][checkpoints]`, the last one at the end of training.
    pub asked: Vec<Vec<Vec<f32>>>,
}

/// `[checkpoints][queries]` as a [`Part`] has it.
pub fn by_query(checkpoints: &[Vec<Vec<f32>>]) -> Vec<Vec<Vec<f32>>> {
    let queries = checkpoints.first().map_or(0, Vec::len);
    (0..queries).map(|q| checkpoints.iter().map(|it| it[q].clone()).collect()).collect()
}

/// Mean of vectors of the same length.
pub fn average(vectors: &[Vec<f32>]) -> Vec<f32> {
    let count = vectors.len() as f32;
    let mut mean = Vec::new();
    for vector in vectors {
        mean.resize(vector.len(), 0.0);
        mean.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value / count);
    }
    mean
}
