//! Exponential moving average of the parameters.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use rayon::prelude::*;

use super::Parameters;
use super::tensors::{by_dtype, check_on_cpu, slice};
use crate::Error;

/// Averages of all parameters, kept in `f32`: what is evaluated and drawn from.
///
/// ```
/// use candle_core::DType;
/// use gradroute::candle::{Ema, Init, Parameters};
/// let parameters = Parameters::new(DType::F32, 1);
/// let x = parameters.create("x", 1, Init::Zeros)?;
/// let mut average = Ema::new(&parameters)?;
/// x.set(&x.ones_like()?)?;
/// average.update(0.75)?;
/// let trained = parameters.snapshot()?;
/// average.apply()?;
/// assert_eq!(x.to_vec1::<f32>()?, [0.25]);
/// parameters.assign(&trained)?; // and on with the training
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ema {
    averages: Vec<(String, Var, Vec<f32>)>,
}

impl Ema {
    /// Starts at the parameters as they are.
    ///
    /// # Errors
    /// [`Error::Argument`] for a parameter that is not on the CPU.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        let start = |(name, var): (String, Var)| {
            check_on_cpu(&name, &var)?;
            let values = var.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            Ok((name, var, values))
        };
        Ok(Self { averages: parameters.all().into_iter().map(start).collect::<Result<_>>()? })
    }

    /// `average ← decay · average + (1 − decay) · parameter`.
    ///
    /// # Errors
    /// [`Error::Argument`] when `decay` is not in `0..=1`.
    pub fn update(&mut self, decay: f64) -> Result<()> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::argument("decay", "a number in 0..=1", decay).into());
        }
        let share = (1.0 - decay) as f32;
        self.averages.par_iter_mut().try_for_each(|(_, var, average)| {
            let (storage, layout) = var.storage_and_layout();
            by_dtype!(var.dtype(), T => {
                let now = slice::<T>(&storage, layout)?;
                for (average, now) in average.iter_mut().zip(now) {
                    *average += (crate::problem::Element::to_f32(*now) - *average) * share;
                }
                Ok(())
            })
        })
    }

    /// Sets the parameters to their averages; [`Parameters::snapshot`] and
    /// [`Parameters::assign`] bring the trained ones back.
    ///
    /// # Errors
    /// Candle's.
    pub fn apply(&self) -> Result<()> {
        self.averages.iter().try_for_each(|(_, var, average)| {
            let tensor = Tensor::from_slice(average, var.shape(), var.device())?;
            var.set(&tensor.to_dtype(var.dtype())?)
        })
    }

    /// Writes the averages as safetensors, under the parameters' names.
    ///
    /// # Errors
    /// Candle's, when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let entry = |(name, var, average): &(String, Var, Vec<f32>)| {
            Ok((name.clone(), Tensor::from_slice(average, var.shape(), &Device::Cpu)?))
        };
        let tensors: HashMap<_, _> = self.averages.iter().map(entry).collect::<Result<_>>()?;
        candle_core::safetensors::save(&tensors, path)
    }

    /// Reads what [`Ema::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the parameter that is missing or of another shape; nothing is
    /// changed in that case.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let find = |(name, var, _): &(String, Var, Vec<f32>)| {
            let found = tensors.get(name);
            let fits = |t: &&Tensor| t.shape() == var.shape() && t.dtype() == DType::F32;
            let Some(tensor) = found.filter(fits) else {
                let given = found.map_or("nothing".into(), |tensor| format!("{tensor:?}"));
                return Err(Error::argument(name, format!("f32 {:?}", var.shape()), given).into());
            };
            tensor.flatten_all()?.to_vec1()
        };
        let read: Vec<Vec<f32>> = self.averages.iter().map(find).collect::<Result<_>>()?;
        for ((.., average), read) in self.averages.iter_mut().zip(read) {
            *average = read;
        }
        Ok(())
    }
}
