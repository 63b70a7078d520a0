//! The durable record of a run and the questions it answers.

mod record;

pub use record::StepRecord;
