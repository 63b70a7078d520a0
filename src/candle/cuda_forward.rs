//! Forward passes of layers whose tensors live on a CUDA device, by candle's own operations.

use candle_core::{D, DType, Result, Tensor};

use super::problem::Problem;
use super::recorder::refused;
use crate::problem::{Conv2d, Lora, Norm, NormKind, PaddingMode};

impl Problem {
    /// The output, in whatever shape; none of candle's backward passes belongs to it.
    pub fn forward_tensors(
        &self,
        x: Option<&Tensor>,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (weight, bias) = (weight.detach(), bias.map(Tensor::detach));
        let x = x.map_or_else(|| weight.clone(), Tensor::detach);
        match self {
            Self::Linear(problem) => {
                let rows = x.reshape((problem.rows().total(), problem.in_features()))?;
                let y = rows.matmul(&weight.t()?)?;
                bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(&bias))
            }
            Self::Conv2d(problem) => conv2d(problem, &x, &weight, bias.as_ref()),
            Self::Norm(problem) => norm(problem, &x, &weight, bias.as_ref()),
            Self::Embedding(_, tokens) => {
                let tokens = Tensor::from_slice(tokens, tokens.len(), weight.device())?;
                weight.index_select(&tokens, 0)
            }
        }
    }
}

impl Lora {
    /// The branch's output, likewise.
    pub(super) fn forward_tensors(&self, x: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let rows = x.detach().reshape((self.rows().total(), self.in_features()))?;
        let hidden = rows.matmul(&a.detach().t()?)?;
        hidden.matmul(&b.detach().t()?)? * f64::from(self.scale())
    }
}

/// `before` and `after` more positions on one axis, zeros or the image again.
fn padded(
    x: &Tensor,
    axis: usize,
    [before, after]: [usize; 2],
    mode: PaddingMode,
) -> Result<Tensor> {
    if before + after == 0 {
        return Ok(x.clone());
    }
    if mode != PaddingMode::Circular {
        return x.pad_with_zeros(axis, before, after);
    }
    let size = x.dim(axis)?;
    let mut parts = vec![x.clone()];
    if before > 0 {
        parts.insert(0, x.narrow(axis, size - before, before)?);
    }
    if after > 0 {
        parts.push(x.narrow(axis, 0, after)?);
    }
    Tensor::cat(&parts, axis)
}

fn conv2d(problem: &Conv2d, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let spec = problem.spec();
    if spec.stride[0] != spec.stride[1] || spec.dilation[0] != spec.dilation[1] {
        let reason = "candle's own convolution has one stride and one dilation for both axes";
        let what = "a convolution on CUDA with two strides or two dilations".to_string();
        return Err(refused(what, reason).into());
    }
    let (padding, mode) = (spec.padding, spec.padding_mode);
    let x = padded(x, 2, [padding.top, padding.bottom], mode)?;
    let x = padded(&x, 3, [padding.left, padding.right], mode)?;
    let y = x.conv2d(weight, 0, spec.stride[0], spec.dilation[0], spec.groups)?;
    match bias {
        None => Ok(y),
        Some(bias) => y.broadcast_add(&bias.reshape((1, spec.out_channels, 1, 1))?),
    }
}

/// In f32, as the kernels' statistics are not the input's format either.
fn norm(problem: &Norm, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, features, eps) = (problem.rows(), problem.features(), problem.eps());
    let (sets, length, shape) = match problem.kind() {
        NormKind::Group { groups } => {
            let positions = rows.longest();
            let shape = vec![rows.samples(), features, positions];
            (rows.samples() * groups, features / groups * positions, shape)
        }
        NormKind::Layer | NormKind::Rms => (rows.total(), features, vec![rows.total(), features]),
    };
    let wide = x.to_dtype(DType::F32)?.reshape((sets, length))?;
    let centred = match problem.kind() {
        NormKind::Rms => wide,
        _ => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
    };
    let square = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (square + f64::from(eps))?.sqrt()?.recip()?;
    let normalised = centred.broadcast_mul(&inverse)?.reshape(shape.as_slice())?;
    let along: &[usize] = if shape.len() == 3 { &[1, features, 1] } else { &[1, features] };
    let parameter = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.reshape(along);
    let scaled = normalised.broadcast_mul(&parameter(weight)?)?;
    let y = match bias {
        None => scaled,
        Some(bias) => scaled.broadcast_add(&parameter(bias)?)?,
    };
    y.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::cpu::Cpu;
    use crate::problem::{Conv2dSpec, Embedding, Linear, Padding, Rows};

    /// Candle's way and the ops' way to the same numbers, on the CPU, where both can run.
    fn agree(problem: &Problem, x: &[usize], weight: &[usize], bias: Option<usize>) {
        let numbers = |shape: &[usize], seed: usize| {
            let length = shape.iter().product::<usize>();
            let values = (0..length).map(|at| ((at * 7 + seed) % 13) as f32 * 0.25 - 1.5);
            Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        let (x, weight) = (numbers(x, 1), numbers(weight, 2));
        let bias = bias.map(|length| numbers(&[length], 3));
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let ours = matches!(problem, Problem::Embedding(..));
        let operand = (!ours).then_some(&x);
        let tensors = flat(&problem.forward_tensors(operand, &weight, bias.as_ref()).unwrap());
        let mut expected = vec![0.0; tensors.len()];
        let (x, bias) = (if ours { vec![] } else { flat(&x) }, bias.as_ref().map(flat));
        problem
            .forward(&mut Cpu::new(), &x, &flat(&weight), bias.as_deref(), &mut expected)
            .unwrap();
        for (given, expected) in tensors.iter().zip(&expected) {
            assert!((given - expected).abs() < 1e-4, "{problem:?}: {given}, not {expected}");
        }
        assert!(tensors.iter().any(|&y| y != 0.0));
    }

    #[test]
    fn a_branch_is_both_factors_and_its_scale() {
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::from_slice(values, &shape, &Device::Cpu).unwrap()
        };
        let lora = Lora::new(Rows::uniform(2, 1).unwrap(), 2, 2, 1, 0.5).unwrap();
        let x = tensor(&[1.0, 2.0, 3.0, -1.0], [2, 2]);
        let (a, b) = (tensor(&[2.0, 4.0], [1, 2]), tensor(&[3.0, -1.0], [2, 1]));
        let y = lora.forward_tensors(&x, &a, &b).unwrap();
        // X Aᵀ is 10 and 2.
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[15.0, -5.0], [3.0, -1.0]]);
    }

    #[test]
    fn candles_forward_is_the_ops_forward() {
        let rows = Rows::uniform(2, 3).unwrap();
        let linear = Linear::new(rows.clone(), 4, 5).unwrap().with_bias(true);
        agree(&Problem::Linear(linear), &[2, 3, 4], &[5, 4], Some(5));
        for norm in [Norm::layer(rows.clone(), 6, 1e-5), Norm::rms(rows.clone(), 6, 1e-5)] {
            agree(&Problem::Norm(norm.unwrap().with_bias(true)), &[2, 3, 6], &[6], Some(6));
        }
        let group = Norm::group(2, 6, 4, 3, 1e-5).unwrap().with_bias(true);
        agree(&Problem::Norm(group), &[2, 6, 2, 2], &[6], Some(6));
        let embedding = Embedding::new(rows, 5, 4).unwrap();
        let tokens = [3, 0, 3, 4, 1, 2].as_slice().into();
        agree(&Problem::Embedding(embedding, tokens), &[0], &[5, 4], None);
        for padding_mode in [PaddingMode::Zeros, PaddingMode::Circular] {
            let spec = Conv2dSpec {
                samples: 2,
                in_channels: 4,
                out_channels: 6,
                size: [5, 6],
                kernel: [3, 3],
                stride: [2, 2],
                groups: 2,
                padding: Padding { top: 1, bottom: 2, left: 0, right: 1 },
                padding_mode,
                bias: true,
                ..Conv2dSpec::default()
            };
            let conv = Conv2d::new(spec).unwrap();
            agree(&Problem::Conv2d(conv), &[2, 4, 5, 6], &[6, 2, 3, 3], Some(6));
        }
    }
}
