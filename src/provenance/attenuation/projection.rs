//! For models without regions: taking a direction out of a linear layer's input.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};

use super::checkpoint::Checkpoint;
use crate::error::expect_len;
use crate::{Error, Result};

const NOTE: &str = "gradroute.projection";

/// Second moment `E[x xᵀ]` of a linear layer's inputs, in `f64`: `8 · I²` bytes.
#[derive(Clone, Debug)]
pub struct Covariance {
    sum: Mat<f64>,
    rows: u64,
}

impl Covariance {
    /// Of inputs with this many features.
    ///
    /// # Errors
    /// [`Error::Argument`] for none.
    pub fn new(features: usize) -> Result<Self> {
        match features {
            0 => Err(Error::argument("features", "at least 1", 0)),
            _ => Ok(Self { sum: Mat::zeros(features, features), rows: 0 }),
        }
    }

    /// Features, `I`.
    pub fn features(&self) -> usize {
        self.sum.nrows()
    }

    /// Rows added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds inputs, `[rows, I]`; costs `rows · I²`.
    ///
    /// # Errors
    /// [`Error::Argument`] for part of a row, or a number that is not finite.
    pub fn add(&mut self, x: &[f32]) -> Result<()> {
        let features = self.features();
        expect_len("x", x.len() / features * features, x.len())?;
        if let Some(bad) = x.iter().find(|value| !value.is_finite()) {
            return Err(Error::argument("x", "finite inputs", bad));
        }
        let rows = x.len() / features;
        let x: Vec<f64> = x.iter().map(|&value| value.into()).collect();
        let x = MatRef::from_row_major_slice(&x, rows, features);
        self.sum += x.transpose() * x;
        self.rows += rows as u64;
        Ok(())
    }

    fn mean(&self, name: &str) -> Result<Mat<f64>> {
        match self.rows {
            0 => Err(Error::argument(name, "at least one row", 0)),
            rows => Ok(&self.sum * (1.0 / rows as f64)),
        }
    }
}

/// An approximation of attenuation for a linear layer that was trained without regions.
///
/// Among all `M`, this one keeps what the layer does with the inputs to keep while quieting
/// what it does with those to forget: `W' = W M` with
/// `M = argmin E_r‖M x − x‖² + s · E_f‖M x‖² = C_r (C_r + s C_f)⁻¹`, `C` the second moments of
/// the layer's inputs and `s` the strength. Directions that only the samples to forget use go to
/// 0, those only the others use stay. What both use is a compromise: nothing here is the
/// category's alone, so there always is collateral, unlike with a region.
///
/// ```
/// use gradroute::provenance::{Covariance, Projection};
/// let (mut forget, mut retain) = (Covariance::new(2)?, Covariance::new(2)?);
/// forget.add(&[1.0, 0.0])?;
/// retain.add(&[0.0, 1.0])?;
/// let projection = Projection::new(&forget, &retain, 1e3, 1e-6)?;
/// let change = projection.output_change(&[1.0, 1.0])?; // a layer with one output
/// assert!(change.forget > 0.99 && change.retain < 0.01);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Projection {
    forget: Mat<f64>,
    retain: Mat<f64>,
    /// `[I, I]`.
    m: Mat<f64>,
}

/// Measured on the inputs that were given, in the layer's own output; what the model's loss
/// makes of it is for [`super::Measured`] to say.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct OutputChange {
    /// `E‖(W' − W) x‖² / E‖W x‖²` over the inputs to forget.
    pub forget: f64,
    /// The same over the inputs to keep: the collateral.
    pub retain: f64,
}

impl Projection {
    /// `strength` is `s`, 0 changes nothing; `damping` times the mean diagonal of `C_r` is added
    /// to `C_r`, so that what neither side uses stays. Costs `I³`.
    ///
    /// # Errors
    /// [`Error::Argument`] when sizes differ, a side has no rows or nothing but zeros to keep, or
    /// `strength < 0` or `damping ≤ 0` or one is not finite.
    pub fn new(
        forget: &Covariance,
        retain: &Covariance,
        strength: f64,
        damping: f64,
    ) -> Result<Self> {
        expect_len("retain", forget.features(), retain.features())?;
        if !(strength.is_finite() && strength >= 0.0) {
            return Err(Error::argument("strength", "a finite number from 0", strength));
        }
        if !(damping.is_finite() && damping > 0.0) {
            return Err(Error::argument("damping", "a positive finite number", damping));
        }
        let (forget, retain) = (forget.mean("forget")?, retain.mean("retain")?);
        let features = forget.nrows();
        let mean = (0..features).map(|i| retain[(i, i)]).sum::<f64>() / features as f64;
        let mut kept = retain.clone();
        (0..features).for_each(|i| kept[(i, i)] += damping * mean);
        // M = C_r (C_r + s C_f)⁻¹, so Mᵀ solves (C_r + s C_f) Mᵀ = C_r.
        let both = &kept + &forget * strength;
        let factor = both.llt(Side::Lower).map_err(|_| {
            Error::argument("damping", "one that makes C_r + s C_f definite", damping)
        })?;
        let m = factor.solve(&kept).transpose().to_owned();
        Ok(Self { forget, retain, m })
    }

    /// What it does to the output of a layer with weight `[O, I]`.
    ///
    /// # Errors
    /// [`Error::Argument`] when the weight is of another width.
    pub fn output_change(&self, weight: &[f32]) -> Result<OutputChange> {
        let weight: Vec<f64> = weight.iter().map(|&value| value.into()).collect();
        self.change_of(self.matrix("weight", &weight)?)
    }

    /// Puts `W M` in the place of a checkpoint's tensor `[O, I]`. The metadata says so.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the tensor that is missing or of another shape or type.
    pub fn apply(&self, checkpoint: &[u8], tensor: &str) -> Result<(Vec<u8>, OutputChange)> {
        let mut checkpoint = Checkpoint::read(checkpoint)?;
        let shape = checkpoint.shape(tensor)?.to_vec();
        let features = self.m.nrows();
        if shape.len() != 2 || shape[1] != features {
            let expected = format!("shape [_, {features}]");
            return Err(Error::argument(tensor, expected, format!("{shape:?}")));
        }
        let values = checkpoint.values(tensor)?;
        let weight = self.matrix(tensor, &values)?;
        let (projected, change) = (weight * &self.m, self.change_of(weight)?);
        let places = (0..values.len()).map(|at| (at, projected[(at / features, at % features)]));
        checkpoint.set(tensor, places)?;
        let line = format!("{tensor}, approximation by input covariances");
        Ok((checkpoint.finish(NOTE, &line)?, change))
    }

    fn matrix<'w>(&self, name: &str, weight: &'w [f64]) -> Result<MatRef<'w, f64>> {
        let features = self.m.nrows();
        expect_len(name, weight.len() / features * features, weight.len())?;
        Ok(MatRef::from_row_major_slice(weight, weight.len() / features, features))
    }

    fn change_of(&self, weight: MatRef<f64>) -> Result<OutputChange> {
        let difference = weight * &self.m - weight;
        let energy = |w: MatRef<f64>, moment: &Mat<f64>| -> f64 {
            let through = w * moment;
            let rows = through.row_iter().zip(w.row_iter());
            rows.map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>()).sum()
        };
        let share = |moment: &Mat<f64>| {
            let all = energy(weight, moment);
            if all > 0.0 { energy(difference.as_ref(), moment) / all } else { 0.0 }
        };
        Ok(OutputChange { forget: share(&self.forget), retain: share(&self.retain) })
    }
}
