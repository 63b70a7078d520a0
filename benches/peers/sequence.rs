//! Layers in a row, their input, and the gradient that arrives at their output.

use anyhow::{Context, Result};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Module, Shape, Tensor, Var, bail};
use gradroute::candle::{
    RoutedConv2d, RoutedEmbedding, RoutedGroupNorm, RoutedLayerNorm, RoutedLinear, RoutedLora,
    Scope, silu,
};
use gradroute::problem::{Conv2dSpec, Padding, PaddingMode};
use half::bf16;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::Deserialize;

use crate::task::Workload;

/// One layer of a workload.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(clippy::enum_variant_names)] // a layer normalisation is called so
pub enum Layer {
    Linear {
        inputs: usize,
        outputs: usize,
        #[serde(default)]
        bias: bool,
    },
    Silu,
    Conv2d(Conv),
    LayerNorm {
        features: usize,
    },
    GroupNorm {
        groups: usize,
        channels: usize,
    },
    Embedding {
        vocabulary: usize,
        features: usize,
    },
    /// Low-rank adapter of a frozen linear layer, scaled by 1.
    Lora {
        inputs: usize,
        outputs: usize,
        rank: usize,
    },
    /// The whole of the example's model.
    GlyphUnet,
}

/// A convolution; what is left out is PyTorch's default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    inputs: usize,
    outputs: usize,
    kernel: [usize; 2],
    #[serde(default = "ones")]
    stride: [usize; 2],
    #[serde(default = "ones")]
    dilation: [usize; 2],
    /// Above and below, left and right.
    #[serde(default)]
    padding: [usize; 2],
    /// As much padding as keeps the size.
    #[serde(default)]
    same: bool,
    #[serde(default)]
    circular: bool,
    #[serde(default = "one")]
    groups: usize,
    #[serde(default)]
    pub bias: bool,
}

fn one() -> usize {
    1
}

fn ones() -> [usize; 2] {
    [1, 1]
}

impl Conv {
    pub fn spec(&self) -> Conv2dSpec {
        let padding = match self.same {
            true => Padding::same(self.kernel, self.dilation),
            false => Padding::symmetric(self.padding[0], self.padding[1]),
        };
        let padding_mode = match self.circular {
            true => PaddingMode::Circular,
            false => PaddingMode::Zeros,
        };
        Conv2dSpec {
            in_channels: self.inputs,
            out_channels: self.outputs,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            padding,
            padding_mode,
            groups: self.groups,
            bias: self.bias,
            ..Conv2dSpec::default()
        }
    }
}

type Call = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor>>;

/// The layers as modules.
pub struct Sequence {
    calls: Vec<Call>,
    x: Tensor,
    dy: Tensor,
    /// Parameters that stay as they are, by name.
    frozen: Vec<(String, Tensor)>,
}

impl Sequence {
    pub fn new(scope: &Scope, workload: &Workload, dtype: DType) -> Result<Self> {
        let mut frozen = Vec::new();
        let mut call = |(at, layer): (usize, &Layer)| -> Result<Call> {
            build(layer, &scope.at(at), dtype, &mut frozen).with_context(|| format!("layer {at}"))
        };
        let calls: Vec<Call> =
            workload.layers.iter().enumerate().map(&mut call).collect::<Result<_>>()?;
        let mut dims = vec![workload.samples];
        dims.extend(&workload.input);
        let x = match workload.layers.first() {
            Some(Layer::Embedding { vocabulary, .. }) => tokens(&dims, *vocabulary)?,
            _ => normal(&dims, 1)?.to_dtype(dtype)?,
        };
        let x = if workload.dx { Var::from_tensor(&x)?.into_inner() } else { x };
        let mut sequence = Self { calls, dy: x.clone(), x, frozen };
        sequence.dy = normal(sequence.forward()?.dims(), 2)?.to_dtype(dtype)?;
        Ok(sequence)
    }

    fn forward(&self) -> candle_core::Result<Tensor> {
        self.calls.iter().try_fold(self.x.clone(), |x, call| call(&x))
    }

    /// `⟨y, dy⟩`, whose gradient is `dy`.
    pub fn loss(&self) -> Result<Tensor> {
        Ok(self.forward()?.apply_op1(Inner { dy: self.dy.clone() })?)
    }

    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let ends = [("x", &self.x), ("dy", &self.dy)];
        let ends = ends.map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        ends.into_iter().chain(self.frozen.iter().cloned()).collect()
    }
}

fn build(
    layer: &Layer,
    scope: &Scope,
    dtype: DType,
    frozen: &mut Vec<(String, Tensor)>,
) -> Result<Call> {
    Ok(match *layer {
        Layer::Silu => Box::new(silu),
        Layer::Linear { inputs, outputs, bias } => {
            let linear = RoutedLinear::new(inputs, outputs, bias, scope)?;
            Box::new(move |x| linear.forward(x))
        }
        Layer::Conv2d(ref conv) => {
            let conv = RoutedConv2d::new(conv.spec(), scope)?;
            Box::new(move |x| conv.forward(x))
        }
        Layer::LayerNorm { features } => {
            let norm = RoutedLayerNorm::new(features, 1e-5, scope)?;
            Box::new(move |x| norm.forward(x))
        }
        Layer::GroupNorm { groups, channels } => {
            let norm = RoutedGroupNorm::new(groups, channels, 1e-5, scope)?;
            Box::new(move |x| norm.forward(x))
        }
        Layer::Embedding { vocabulary, features } => {
            let table = RoutedEmbedding::new(vocabulary, features, scope)?;
            Box::new(move |x| table.forward(x))
        }
        Layer::Lora { inputs, outputs, rank } => {
            let base = scope.at("base");
            let weight = (normal(&[outputs, inputs], 3)? / (inputs as f64).sqrt())?;
            let weight = weight.to_dtype(dtype)?;
            frozen.push((format!("{}.weight", base.path()), weight.clone()));
            let base = RoutedLinear::from_tensors(&weight, None, &base)?;
            let lora = RoutedLora::new(base, rank, rank as f64, scope)?;
            // It would start at 0, and the first factor's gradient with it.
            let name = format!("{}.lora_b.weight", scope.path());
            let b = scope.parameters().get(&name).context("the second factor")?;
            b.set(&(normal(&[outputs, rank], 4)? / (rank as f64).sqrt())?.to_dtype(dtype)?)?;
            Box::new(move |x| lora.forward(x))
        }
        Layer::GlyphUnet => anyhow::bail!("the U-Net is a workload of its own"),
    })
}

fn normal(dims: &[usize], seed: u64) -> candle_core::Result<Tensor> {
    let mut rng = StdRng::seed_from_u64(seed);
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.sample(StandardNormal)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)
}

/// Some of which repeat within a sample.
fn tokens(dims: &[usize], vocabulary: usize) -> candle_core::Result<Tensor> {
    let mut rng = StdRng::seed_from_u64(1);
    let drawn = (0..dims.iter().product()).map(|_| rng.random_range(0..vocabulary as u32));
    Tensor::from_vec(drawn.collect::<Vec<_>>(), dims, &Device::Cpu)
}

/// Inner product with a constant. Spelt with candle's own ops it would cost several passes on
/// one thread, which PyTorch's `backward(dy)` does not.
struct Inner {
    dy: Tensor,
}

impl CustomOp1 for Inner {
    fn name(&self) -> &'static str {
        "inner"
    }

    fn cpu_fwd(&self, y: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("y is contiguous") };
        let (dy, _) = self.dy.storage_and_layout();
        let candle_core::Storage::Cpu(dy) = &*dy else { bail!("dy is on the CPU") };
        let sum = match (y, dy) {
            (CpuStorage::F32(y), CpuStorage::F32(dy)) => inner(&y[from..to], dy, |value| value),
            (CpuStorage::BF16(y), CpuStorage::BF16(dy)) => inner(&y[from..to], dy, bf16::to_f32),
            _ => bail!("f32 or bf16"),
        };
        let sum = match y {
            CpuStorage::F32(_) => CpuStorage::F32(vec![sum]),
            _ => CpuStorage::BF16(vec![bf16::from_f32(sum)]),
        };
        Ok((sum, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}

/// `⟨a, b⟩`, on all threads as PyTorch's sum is.
pub fn inner<T: Copy + Sync>(a: &[T], b: &[T], wide: impl Fn(T) -> f32 + Sync) -> f32 {
    const PART: usize = 1 << 16;
    let parts = a.par_chunks(PART).zip(b.par_chunks(PART));
    parts.map(|(a, b)| part(a, b, &wide)).collect::<Vec<_>>().iter().sum()
}

fn part<T: Copy>(a: &[T], b: &[T], wide: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0_f32; 32];
    let (a, b) = (a.chunks_exact(32), b.chunks_exact(32));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(&a, &b)| wide(a) * wide(b)).sum();
    // Of a fixed length, so that it is done in vectors.
    for (a, b) in a.zip(b) {
        for at in 0..32 {
            sums[at] += wide(a[at]) * wide(b[at]);
        }
    }
    sums.iter().sum::<f32>() + rest
}
