//! Backward passes that keep the gradients of parameters out of candle's sums.

use std::thread::{self, ThreadId};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};

use super::op::Grads;
use super::recorder::{Recorder, State};

impl Recorder {
    /// As `loss.backward()`, in less time: candle adds every gradient to a fresh tensor of zeros,
    /// which for a large weight can take a fifth of the pass. Here the layers' parameter gradients
    /// wait until candle is through.
    ///
    /// # Errors
    /// As `loss.backward()`; then no gradient is left over. What layers have recorded by then goes with
    /// the step ([`Recorder::abandon`]).
    pub fn backward(&self, loss: &Tensor) -> Result<GradStore> {
        let pass = Pass::begin(self);
        let mut gradients = loss.backward()?;
        // Adds where a parameter was reached by another way as well.
        gradients.extend(pass.gathered())?;
        Ok(gradients)
    }

    /// What candle is given of an op's gradients, of which the last two are its parameters': while a
    /// pass gathers, all but these. Candle does not miss them, since parameters are variables: what
    /// was computed from others is refused when a layer is made of it.
    pub(super) fn gather(
        &self,
        parameters: [Option<&Tensor>; 2],
        gradients: Grads,
    ) -> Result<Grads> {
        let mut state = self.lock();
        let Some(gathered) = state.gathered() else { return Ok(gradients) };
        let [dx, first, second] = gradients;
        for (parameter, gradient) in parameters.into_iter().zip([first, second]) {
            let Some((parameter, gradient)) = parameter.zip(gradient) else { continue };
            let sum = match gathered.get(parameter) {
                Some(before) => before.add(&gradient)?,
                None => gradient,
            };
            gathered.insert(parameter, sum);
        }
        Ok([dx, None, None])
    }
}

impl State {
    /// Place of this thread's innermost pass.
    fn pass(&self) -> Option<usize> {
        let here = thread::current().id();
        self.passes.iter().rposition(|(thread, _)| *thread == here)
    }

    fn gathered(&mut self) -> Option<&mut GradStore> {
        let pass = self.pass()?;
        Some(&mut self.passes[pass].1)
    }
}

/// Gradients that a pass has gathered, and the thread that it runs on: what others do meanwhile is
/// not its own.
pub(super) type Passes = Vec<(ThreadId, GradStore)>;

/// A pass under way; its end takes along what it gathered, be it an error or a panic.
struct Pass<'a>(&'a Recorder);

impl<'a> Pass<'a> {
    fn begin(recorder: &'a Recorder) -> Self {
        recorder.lock().passes.push((thread::current().id(), GradStore::default()));
        Self(recorder)
    }

    fn gathered(self) -> GradStore {
        self.0.lock().gathered().map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(pass) = state.pass() {
            state.passes.remove(pass);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Module};

    use super::*;
    use crate::candle::{Batch, Parameters, RoutedLinear, RoutedLora, Scope};

    /// By the results alone one could not tell.
    #[test]
    fn candle_never_sees_what_is_gathered() {
        let (parameters, recorder) = (Parameters::new(DType::F32, 1), Recorder::silent());
        let scope = Scope::new(&parameters, &recorder);
        let base = RoutedLinear::new(3, 2, true, &scope.at("base")).unwrap();
        let layer = RoutedLora::new(base, 1, 1.0, &scope.at("l")).unwrap();
        recorder.begin_step(Batch::new(vec![1], vec![0])).unwrap();
        let x = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
        let loss = layer.forward(&x).unwrap().sum_all().unwrap();
        let pass = Pass::begin(&recorder);
        let (candles, gathered) = (loss.backward().unwrap(), pass.gathered());
        for (name, var) in parameters.all() {
            assert!(candles.get(&var).is_none() && gathered.get(&var).is_some(), "{name}");
        }
        assert!(recorder.lock().passes.is_empty());
    }
}
