//! What an attenuation did, from losses on both checkpoints.

use serde::Serialize;

use crate::error::expect_len;
use crate::{Error, Result};

/// One side of a measurement: the question is put to both checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is to fade.
    Forget,
    /// What is to stay.
    Retain,
}

/// How a mean loss changed, over paired answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// Mean loss of the checkpoint as it was.
    pub before: f64,
    /// Mean loss of the attenuated one.
    pub after: f64,
    /// Standard error of `after − before`, by the paired differences.
    pub standard_error: f64,
    /// Pairs.
    pub count: usize,
}

impl Change {
    /// `after − before`.
    pub fn rise(&self) -> f64 {
        self.after - self.before
    }

    fn new(name: &str, before: &[f64], after: &[f64]) -> Result<Self> {
        expect_len(name, before.len(), after.len())?;
        let count = before.len();
        if count < 2 {
            return Err(Error::argument(name, "at least 2 losses", count));
        }
        if let Some(bad) = before.iter().chain(after).find(|loss| !loss.is_finite()) {
            return Err(Error::argument(name, "finite losses", bad));
        }
        let mean = |of: &[f64]| of.iter().sum::<f64>() / count as f64;
        let (mean_before, mean_after) = (mean(before), mean(after));
        let rise = mean_after - mean_before;
        let squares: f64 = before.iter().zip(after).map(|(b, a)| (a - b - rise).powi(2)).sum();
        let standard_error = (squares / (count - 1) as f64 / count as f64).sqrt();
        Ok(Self { before: mean_before, after: mean_after, standard_error, count })
    }
}

/// The measured effect of an attenuation; there is no other way to come by one than by losses
/// on both checkpoints.
///
/// ```
/// use gradroute::provenance::{Measured, Question};
/// // The "checkpoints" are one number, and the loss is its distance from what a question wants.
/// let measured = Measured::new(&[4], &[2], |checkpoint, question| {
///     let wanted = if question == Question::Forget { [4.0, 4.5] } else { [2.0, 3.0] };
///     Ok(wanted.iter().map(|want| (want - f64::from(checkpoint[0])).abs()).collect())
/// })?;
/// assert_eq!((measured.forget().rise(), measured.retain().rise()), (2.0, -1.0));
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    forget: Change,
    retain: Change,
}

impl Measured {
    /// Asks `losses` for the loss of every question of a side, for the checkpoint as it was and
    /// for the attenuated one. For a diffusion model the noise levels and the noise must be the
    /// same each time (common random numbers), or the standard error says little.
    ///
    /// # Errors
    /// What `losses` returns; [`Error::Argument`] for fewer than two losses, another number of
    /// them for the second checkpoint, or one that is not finite.
    pub fn new(
        before: &[u8],
        after: &[u8],
        mut losses: impl FnMut(&[u8], Question) -> Result<Vec<f64>>,
    ) -> Result<Self> {
        let mut change = |name, question| {
            Change::new(name, &losses(before, question)?, &losses(after, question)?)
        };
        let forget = change("losses of Forget", Question::Forget)?;
        let retain = change("losses of Retain", Question::Retain)?;
        Ok(Self { forget, retain })
    }

    /// On what was to fade.
    pub fn forget(&self) -> Change {
        self.forget
    }

    /// On what was to stay: the collateral.
    pub fn retain(&self) -> Change {
        self.retain
    }
}
