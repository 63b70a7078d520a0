//! The model's parameters by name, and where in the model a layer is being built.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};

use super::Recorder;
use super::tensors::check_operand;
use crate::projection::philox4x32;
use crate::{Error, Result};

/// How a new parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Uniform in `-bound..bound`; PyTorch's default of linear and convolution is
    /// `1 / √fan_in`.
    Uniform {
        /// Half the width.
        bound: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

impl Init {
    /// `length` values drawn by Philox; the same key draws the same values.
    fn draw(self, length: usize, key: [u32; 2]) -> Vec<f32> {
        let words = |at: usize| philox4x32([at as u32, (at >> 32) as u32, 0, 0], key);
        // 24 bits fill an f32's mantissa; the half keeps the ends (and ln 0) out.
        let unit = |word: u32| ((word >> 8) as f32 + 0.5) / (1 << 24) as f32;
        match self {
            Self::Zeros => vec![0.0; length],
            Self::Ones => vec![1.0; length],
            Self::Uniform { bound } => {
                (0..length).map(|at| (2.0 * unit(words(at)[0]) - 1.0) * bound).collect()
            }
            Self::Normal { std } => {
                let normal = |at| {
                    let [u, v, ..] = words(at);
                    let angle = std::f32::consts::TAU * unit(v);
                    (-2.0 * unit(u).ln()).sqrt() * angle.cos() * std
                };
                (0..length).map(normal).collect()
            }
        }
    }
}

/// Named parameters in the order they were made; clones share them.
///
/// A parameter's initial values depend on the seed and its name only, so that two models that
/// differ in one layer start alike in all others.
///
/// ```
/// use candle_core::DType;
/// use gradroute::candle::{Init, Parameters};
/// let parameters = Parameters::new(DType::F32, 1);
/// parameters.create("head.weight", (2, 3), Init::Normal { std: 0.1 })?;
/// assert_eq!(parameters.numbers(), 6);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parameters(Arc<Mutex<Store>>);

#[derive(Debug)]
struct Store {
    dtype: DType,
    seed: u32,
    entries: Vec<(String, Var)>,
    index: HashMap<String, usize>,
}

impl Parameters {
    /// An empty store on the CPU; new parameters get `dtype`.
    pub fn new(dtype: DType, seed: u32) -> Self {
        let store = Store { dtype, seed, entries: Vec::new(), index: HashMap::new() };
        Self(Arc::new(Mutex::new(store)))
    }

    /// Makes a parameter.
    ///
    /// # Errors
    /// [`Error::Argument`] when the name is taken.
    pub fn create(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> candle_core::Result<Var> {
        let shape = shape.into();
        let (dtype, seed) = {
            let store = self.lock();
            (store.dtype, store.seed)
        };
        let digest = blake3::hash(name.as_bytes());
        let word = u32::from_le_bytes(digest.as_bytes()[..4].try_into().expect("four bytes"));
        let values = init.draw(shape.elem_count(), [seed, word]);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
        let var = Var::from_tensor(&tensor)?;
        self.insert(name, var.clone())?;
        Ok(var)
    }

    /// Adds a parameter made elsewhere.
    ///
    /// # Errors
    /// [`Error::Argument`] when the name is taken, the variable stored already under another one,
    /// or of a format or device that routed layers do not take.
    pub fn insert(&self, name: &str, var: Var) -> Result<()> {
        check_operand(name, &var)?;
        let mut store = self.lock();
        if store.index.contains_key(name) {
            return Err(Error::argument("name", "a name not yet taken", name));
        }
        if let Some((other, _)) = store.entries.iter().find(|(_, known)| known.id() == var.id()) {
            let given = format!("the variable of {other}, which would be trained twice");
            return Err(Error::argument(name, "a variable not yet stored", given));
        }
        let at = store.entries.len();
        store.index.insert(name.to_owned(), at);
        store.entries.push((name.to_owned(), var));
        Ok(())
    }

    /// Whether this variable is stored, under whatever name.
    fn holds(&self, tensor: &Tensor) -> bool {
        self.lock().entries.iter().any(|(_, known)| known.id() == tensor.id())
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<Var> {
        let store = self.lock();
        store.index.get(name).map(|&at| store.entries[at].1.clone())
    }

    /// All parameters in the order they were made.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().entries.clone()
    }

    /// Numbers in all parameters together.
    pub fn numbers(&self) -> usize {
        self.lock().entries.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Writes all parameters as safetensors.
    ///
    /// # Errors
    /// Candle's, when the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> candle_core::Result<()> {
        let tensors: HashMap<String, Tensor> =
            self.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        candle_core::safetensors::save(&tensors, path)
    }

    /// Reads all parameters from safetensors, in place.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the parameter that is missing, superfluous or of another
    /// shape or format; nothing is changed in that case.
    pub fn load(&self, path: impl AsRef<Path>) -> candle_core::Result<()> {
        self.assign(&candle_core::safetensors::load(path, &Device::Cpu)?)
    }

    /// A copy of all parameters as they are now, for [`Parameters::assign`].
    ///
    /// # Errors
    /// Candle's.
    pub fn snapshot(&self) -> candle_core::Result<HashMap<String, Tensor>> {
        self.all().into_iter().map(|(name, var)| Ok((name, var.as_tensor().copy()?))).collect()
    }

    /// Sets all parameters, in place.
    ///
    /// # Errors
    /// As [`Parameters::load`].
    pub fn assign(&self, tensors: &HashMap<String, Tensor>) -> candle_core::Result<()> {
        let all = self.all();
        for (name, var) in &all {
            let found = tensors.get(name);
            let fits = |t: &&Tensor| t.shape() == var.shape() && t.dtype() == var.dtype();
            if found.is_none_or(|tensor| !fits(&tensor)) {
                let expected = format!("{:?} {:?}", var.dtype(), var.shape());
                let given = found.map_or("nothing".into(), |tensor| format!("{tensor:?}"));
                return Err(Error::argument(name, expected, given).into());
            }
        }
        if let Some(name) = tensors.keys().find(|name| self.get(name).is_none()) {
            return Err(Error::argument("tensors", "the model's parameters", name).into());
        }
        all.iter().try_for_each(|(name, var)| var.set(&tensors[name]))
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a layer is built: the parameters it is kept in, the recorder it reports to, its path.
///
/// ```
/// use candle_core::DType;
/// use gradroute::candle::{Parameters, Recorder, Scope};
/// let parameters = Parameters::new(DType::F32, 1);
/// let scope = Scope::new(&parameters, &Recorder::silent());
/// assert_eq!(scope.at("down.0").at("conv1").path(), "down.0.conv1");
/// ```
#[derive(Clone, Debug)]
pub struct Scope {
    parameters: Parameters,
    recorder: Recorder,
    path: String,
    reads: Vec<String>,
    zeros: bool,
}

impl Scope {
    /// The root of a model.
    pub fn new(parameters: &Parameters, recorder: &Recorder) -> Self {
        Self {
            parameters: parameters.clone(),
            recorder: recorder.clone(),
            path: String::new(),
            reads: Vec::new(),
            zeros: false,
        }
    }

    /// One step down; names are joined by dots.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let path =
            if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { path, reads: Vec::new(), zeros: false, ..self.clone() }
    }

    /// Says that the layer built here reads the output features of the layer at `path` one for
    /// one, possibly through activations: regions are carried along. Called several times, it
    /// reads their sum ([`crate::routing::LayerSpec::reads`]).
    pub fn reads(mut self, path: impl Into<String>) -> Self {
        self.reads.push(path.into());
        self
    }

    /// The layer built here starts with weight and bias 0 (the last layer of a residual
    /// branch, say).
    pub fn zeros(mut self) -> Self {
        self.zeros = true;
        self
    }

    /// The path so far.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The store new parameters go to.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The recorder layers report to.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) fn sources(&self) -> &[String] {
        &self.reads
    }

    /// Makes `path.name`.
    pub(super) fn create(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> candle_core::Result<Tensor> {
        let init = if self.zeros { Init::Zeros } else { init };
        let var = self.parameters.create(&format!("{}.{name}", self.path), shape, init)?;
        Ok(var.into_inner())
    }

    /// Keeps a tensor given by the caller as `path.name`, if it is a variable.
    pub(super) fn adopt(&self, name: &str, tensor: &Tensor) -> candle_core::Result<()> {
        let name = format!("{}.{name}", self.path);
        check_operand(&name, tensor)?;
        if !tensor.is_contiguous() {
            return Err(Error::argument(name, "a contiguous tensor", "another").into());
        }
        if !tensor.is_variable() {
            if tensor.track_op() {
                return Err(Error::Refused {
                    what: format!("{name}, a tensor computed from variables"),
                    reason: "a routed layer's parameter is a variable, or a plain tensor that \
                             stays frozen"
                        .into(),
                }
                .into());
            }
            return Ok(());
        }
        // One that the store has under a name of its own is trained by it.
        match self.parameters.holds(tensor) {
            true => Ok(()),
            false => Ok(self.parameters.insert(&name, Var::from_tensor(tensor)?)?),
        }
    }
}
