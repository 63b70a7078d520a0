//! Which parameters the last step observed, and which it did not.

use std::collections::HashMap;
use std::fmt;

use candle_core::TensorId;

use super::{Parameters, Recorder};

/// Whether a step observed a parameter's per-sample gradients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Routed and recorded, as part of this block.
    Observed {
        /// Name of the block.
        block: String,
    },
    /// Its routed layer was not reached by the step's backward pass.
    NotReached {
        /// Path of the layer.
        layer: String,
    },
    /// No routed layer has it: whatever trains it is neither routed nor recorded.
    Unrouted,
}

/// One parameter of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterCoverage {
    /// Its name in [`Parameters`].
    pub name: String,
    /// Numbers it holds.
    pub numbers: usize,
    /// What became of it.
    pub observation: Observation,
}

/// Every parameter of a model, in the order they were made; shown as the share observed and the
/// list of those that were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// One entry per parameter.
    pub parameters: Vec<ParameterCoverage>,
}

impl Coverage {
    /// Share of all numbers that were observed, `0..=1`; 1 for a model without parameters.
    pub fn share(&self) -> f64 {
        let observed: usize =
            self.parameters.iter().filter(|p| p.observed()).map(|p| p.numbers).sum();
        match self.numbers() {
            0 => 1.0,
            all => observed as f64 / all as f64,
        }
    }

    /// The parameters that were not observed.
    pub fn unobserved(&self) -> impl Iterator<Item = &ParameterCoverage> {
        self.parameters.iter().filter(|parameter| !parameter.observed())
    }

    fn numbers(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.numbers).sum()
    }
}

impl ParameterCoverage {
    /// Whether it was observed.
    pub fn observed(&self) -> bool {
        matches!(self.observation, Observation::Observed { .. })
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let missing: Vec<_> = self.unobserved().collect();
        let numbers = self.numbers() - missing.iter().map(|p| p.numbers).sum::<usize>();
        write!(
            f,
            "{:.2} % of the parameters observed: {} of {} numbers, {} of {} tensors",
            100.0 * self.share(),
            numbers,
            self.numbers(),
            self.parameters.len() - missing.len(),
            self.parameters.len(),
        )?;
        for parameter in missing {
            write!(f, "\nnot observed: {} ({} numbers), ", parameter.name, parameter.numbers)?;
            match &parameter.observation {
                Observation::NotReached { layer } => {
                    write!(f, "layer {layer} was not reached by the backward pass")?;
                }
                _ => write!(f, "it belongs to no routed layer")?,
            }
        }
        Ok(())
    }
}

impl Recorder {
    /// What the last finished step observed of these parameters; before the first, nothing was
    /// reached.
    ///
    /// ```
    /// use candle_core::{DType, Device, Module, Tensor};
    /// use gradroute::candle::{Batch, Init, Parameters, Recorder, RoutedLinear, Scope};
    /// let (parameters, recorder) = (Parameters::new(DType::F32, 1), Recorder::silent());
    /// let head = RoutedLinear::new(3, 1, false, &Scope::new(&parameters, &recorder).at("head"))?;
    /// let scale = parameters.create("scale", 1, Init::Ones)?;
    ///
    /// recorder.begin_step(Batch::new(vec![1], vec![0]))?;
    /// let x = Tensor::ones((1, 3), DType::F32, &Device::Cpu)?;
    /// recorder.backward(&head.forward(&x)?.broadcast_mul(&scale)?.mean_all()?)?;
    /// recorder.finish_step()?;
    /// let coverage = recorder.coverage(&parameters);
    /// assert_eq!(coverage.share(), 0.75);
    /// assert_eq!(coverage.unobserved().next().unwrap().name, "scale");
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn coverage(&self, parameters: &Parameters) -> Coverage {
        let mut state = self.lock();
        let blocks = state.governance().blocks();
        let block_of: Vec<Option<usize>> =
            (0..state.layers.len()).map(|layer| state.governance().block_of(layer)).collect();
        let mut layer_of: HashMap<TensorId, usize> = HashMap::new();
        for (index, layer) in state.layers.iter().enumerate() {
            layer_of.extend(
                [Some(layer.weight), layer.bias].into_iter().flatten().map(|id| (id, index)),
            );
        }
        let observe = |id: TensorId| match layer_of.get(&id) {
            None => Observation::Unrouted,
            Some(&layer) => match block_of[layer] {
                Some(block) if state.reached.get(layer) == Some(&true) => {
                    Observation::Observed { block: blocks[block].clone() }
                }
                _ => Observation::NotReached { layer: state.layers[layer].spec.path.clone() },
            },
        };
        let entry = |(name, var): (String, candle_core::Var)| ParameterCoverage {
            name,
            numbers: var.elem_count(),
            observation: observe(var.id()),
        };
        Coverage { parameters: parameters.all().into_iter().map(entry).collect() }
    }
}
