//! Routed embedding.

use candle_core::{DType, Result, Tensor};

use super::layers::Layer;
use super::parameters::{Init, Scope};
use super::problem::Problem;
use crate::Error;
use crate::problem::{Embedding, Rows};
use crate::routing::LayerSpec;

/// Table lookup: tokens `[N, …]` of an integer type, output `[N, …, features]`.
#[derive(Clone, Debug)]
pub struct RoutedEmbedding(Layer);

impl RoutedEmbedding {
    /// A new table, standard normal as PyTorch's.
    ///
    /// # Errors
    /// When the scope's path is taken, or the recorder is in use already.
    pub fn new(vocabulary: usize, features: usize, scope: &Scope) -> Result<Self> {
        let spec = LayerSpec::embedding(scope.path(), vocabulary, features);
        let init = Init::Normal { std: 1.0 };
        Ok(Self(Layer::create(scope, spec, &[vocabulary, features], init, Init::Zeros)?))
    }

    /// Of a given table `[vocabulary, features]`: a variable is trained, a plain tensor stays
    /// frozen.
    ///
    /// # Errors
    /// As [`RoutedEmbedding::new`].
    pub fn from_tensors(weight: &Tensor, scope: &Scope) -> Result<Self> {
        let (vocabulary, features) = weight.dims2()?;
        let spec = LayerSpec::embedding(scope.path(), vocabulary, features);
        Ok(Self(Layer::adopt(scope, spec, weight, None)?))
    }

    /// `[vocabulary, features]`.
    pub fn weight(&self) -> &Tensor {
        &self.0.weight
    }

    /// Path of the layer.
    pub fn path(&self) -> &str {
        self.0.path()
    }
}

impl candle_core::Module for RoutedEmbedding {
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (vocabulary, features) = self.0.weight.dims2()?;
        let argument = || format!("tokens of {}", self.path());
        if !tokens.dtype().is_int() || tokens.rank() == 0 {
            let given = format!("{tokens:?}");
            return Err(Error::argument(argument(), "integers [N, …]", given).into());
        }
        let mut dims = tokens.dims().to_vec();
        let rows = Rows::uniform(dims[0], dims[1..].iter().product())?;
        let ids = tokens.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        if let Some(&given) = ids.iter().find(|&&id| id < 0 || id as usize >= vocabulary) {
            let expected = format!("at least 0 and below {vocabulary}");
            return Err(Error::argument(argument(), expected, given).into());
        }
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        dims.push(features);
        let problem = Embedding::new(rows, vocabulary, features)?;
        self.0.call(Problem::Embedding(problem, ids.into()), None, dims)
    }
}
