//! Drop-in routed modules for [candle](candle_core): forward through candle, backward through
//! [`crate::ops`], records through a shared [`Recorder`].
//!
//! The model is built of routed modules in a [`Scope`], which names them and makes their
//! [`Parameters`]; then, every step, the batch is announced, the loss goes through
//! [`Recorder::backward`], and the record is collected. Without a policy everything trains
//! everything, and each layer is a block of its own.
//!
//! With the feature `candle-cuda`, layers of given tensors (`from_tensors`) may live on a CUDA device:
//! they run forward through candle, backward through [`crate::cuda`] on candle's stream. [`AdamW`] and
//! [`Ema`] stay on the CPU.
//!
//! A sample is the first dimension of every activation. A layer may be called several times in a
//! step: its gradients are added per sample before they are measured. Refused by name are a
//! backward pass outside a step or repeated in one, parameters shared between layers, batches of
//! another size, and BatchNorm ([`crate::problem::Norm::batch`]).
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use gradroute::candle::*;
//! use gradroute::projection::SketchKind;
//! use gradroute::routing::{Categories, Policy};
//!
//! let recorder = Recorder::new(SketchKind::Count { buckets: 64 }, 7)?;
//! let parameters = Parameters::new(DType::F32, 1);
//! let scope = Scope::new(&parameters, &recorder);
//! let first = RoutedLinear::new(4, 12, true, &scope.at("first"))?;
//! let second = RoutedLinear::new(12, 2, true, &scope.at("second").reads("first"))?;
//!
//! // The last four hidden features belong to the scripts, and nobody else sees them.
//! let policy = Policy::from_toml(r#"
//!     [[block]]
//!     name = "all"
//!     layers = "*"
//!     [[region]]
//!     name = "script"
//!     owner = "style/script"
//!     switch = "strict"
//!     parts = [{ layers = "first", outputs = "-4.." }]
//!     [[profile]]
//!     category = "style"
//!     [[profile]]
//!     category = "style/script"
//!     route = 0.0
//! "#)?;
//! let categories = Categories::new(["style/serif", "style/script"])?;
//! let policy = policy.compile(&recorder.layout()?, &categories)?;
//! recorder.govern(&policy)?;
//! let mut optimizer = AdamW::new(&parameters, &recorder, AdamWConfig::default())?;
//!
//! let (ids, labels) = (vec![100, 101], vec![0, 1]);
//! let switches = Some(policy.switches(3, 0, &ids, &labels)?);
//! recorder.begin_step(Batch { switches, step_size: 1e-3, ..Batch::new(ids, labels) })?;
//! let x = Tensor::ones((2, 4), DType::F32, &Device::Cpu)?;
//! let hidden = recorder.switch(&silu(&first.forward(&x)?)?, "second")?;
//! let loss = second.forward(&hidden)?.sqr()?.mean_all()?;
//! let gradients = recorder.backward(&loss)?;
//! let record = recorder.finish_step()?;
//! optimizer.step(&gradients, 1e-3)?;
//! assert!(record.route[0] > record.route[1]); // of the serif and the script sample
//! # Ok::<(), candle_core::Error>(())
//! ```

mod adamw;
mod backward;
mod batch;
mod conv2d;
mod coverage;
#[cfg(feature = "candle-cuda")]
mod cuda;
#[cfg(any(test, feature = "candle-cuda"))]
mod cuda_forward;
mod elementwise;
mod ema;
mod embedding;
mod governance;
mod layers;
mod linear;
mod lora;
mod norm;
mod op;
mod parameters;
mod problem;
mod recorder;
mod slot;
mod switch;
mod tensors;

pub use adamw::{AdamW, AdamWConfig};
pub use batch::Batch;
pub use conv2d::RoutedConv2d;
pub use coverage::{Coverage, Observation, ParameterCoverage};
pub use elementwise::{silu, upsample_nearest};
pub use ema::Ema;
pub use embedding::RoutedEmbedding;
pub use linear::RoutedLinear;
pub use lora::RoutedLora;
pub use norm::{RoutedGroupNorm, RoutedLayerNorm, RoutedRmsNorm};
pub use parameters::{Init, Parameters, Scope};
pub use recorder::{ProbeRecord, Recorder};
pub use tensors::cause;
