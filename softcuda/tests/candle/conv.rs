//! Convolutions, pooling and resampling of images, `batch × channels × height × width`, and of lines.

use super::family::{Family, Output, scalar, size};
use super::number::Dtype::{self, Bf16, F16, F32, F64, U8, U32};
use super::number::Tolerance::Exact;
use super::number::Value::{self, Float, Int};
use crate::common::Arg;

pub fn conv(family: &mut Family) {
    for dtype in [Bf16, F16, F32, F64, U8, U32] {
        for reversed in [false, true] {
            let mut case = Case { family, dtype, reversed };
            case.line(false);
            case.line(true);
            case.plane(false);
            case.plane(true);
            case.columns_of_line();
            case.columns_of_plane();
            case.pool();
            case.nearest();
            case.bilinear();
        }
        back_to_line(family, dtype);
    }
}

/// A tensor as it lies in memory.
struct Tensor {
    dims: Vec<usize>,
    strides: Vec<usize>,
    memory: Vec<Value>,
}

impl Tensor {
    /// With the last dimension contiguous, or else the first.
    fn new(dims: &[usize], reversed: bool, memory: Vec<Value>) -> Self {
        let mut strides = vec![1; dims.len()];
        if reversed {
            (1..dims.len()).for_each(|i| strides[i] = strides[i - 1] * dims[i - 1]);
        } else {
            (1..dims.len()).rev().for_each(|i| strides[i - 1] = strides[i] * dims[i]);
        }
        Self { dims: dims.to_vec(), strides, memory }
    }

    fn at(&self, place: &[usize]) -> Value {
        self.memory[place.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum::<usize>()]
    }

    /// The element at a place that may lie in the padding.
    fn padded(&self, outer: &[usize], inner: &[usize], padding: usize) -> Option<Value> {
        let shifted = inner.iter().map(|i| i.checked_sub(padding)).collect::<Option<Vec<_>>>()?;
        let place = [outer, &shifted].concat();
        place.iter().zip(&self.dims).all(|(i, dim)| i < dim).then(|| self.at(&place))
    }

    fn info(&self) -> Vec<usize> {
        [self.dims.clone(), self.strides.clone()].concat()
    }
}

/// All places of a tensor, in order.
fn places(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let dims = dims.to_vec();
    (0..dims.iter().product()).map(move |mut i: usize| {
        let mut place = vec![0; dims.len()];
        for (at, dim) in place.iter_mut().zip(&dims).rev() {
            (*at, i) = (i % dim, i / dim);
        }
        place
    })
}

/// Small numbers, whose sums of products are exact; what remains is rounding to the type.
fn sum(products: impl Iterator<Item = (Value, Value)>, dtype: Dtype) -> Value {
    let zero = if dtype.is_float() { Float(0.0) } else { Int(0) };
    products.fold(zero, |sum, pair| match (sum, pair) {
        (Int(sum), (Int(x), Int(y))) => Int(sum.wrapping_add(x.wrapping_mul(y))),
        (sum, (x, y)) => Float(sum.float() + x.float() * y.float()),
    })
}

struct Case<'a> {
    family: &'a mut Family,
    dtype: Dtype,
    reversed: bool,
}

const BATCH: usize = 2;
const CHANNELS: usize = 3;
const FILTERS: usize = 5;
const STRIDE: usize = 2;
const PADDING: usize = 2;

impl Case<'_> {
    fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let count = dims.iter().product();
        let memory = if self.dtype.is_float() {
            (0..count).map(|_| Float(self.family.random.below(9) as f64 - 4.0)).collect()
        } else {
            // Below what eight of overflow a byte: candle's average does.
            (0..count).map(|_| Int(self.family.random.below(31) as i64)).collect()
        };
        Tensor::new(dims, self.reversed, memory)
    }

    fn pointer(&self, tensor: &Tensor) -> Arg {
        self.family.input(self.dtype, &tensor.memory)
    }

    fn output(&self, dims: &[usize]) -> Output {
        self.family.output(self.dtype, dims.iter().product())
    }

    fn run(&mut self, kernel: &str, out: Output, args: Vec<Arg>, expected: &[Value]) {
        let kernel = format!("{kernel}_{}", self.dtype.name());
        if self.family.launch(&kernel, out.count, &args) {
            self.family.check(&format!("reversed: {}", self.reversed), out, expected, Exact);
        }
    }

    /// Sizes, `info` of tensors, their pointers and the output.
    fn args(&self, sizes: &[usize], tensors: &[&Tensor], out: Output) -> Vec<Arg> {
        let mut args: Vec<Arg> = sizes.iter().map(|n| size(*n)).collect();
        let info: Vec<usize> = tensors.iter().flat_map(|tensor| tensor.info()).collect();
        args.push(self.family.sizes(&info));
        args.extend(tensors.iter().map(|tensor| self.pointer(tensor)));
        args.push(out.arg());
        args
    }

    fn line(&mut self, transposed: bool) {
        self.convolve(&[23], &[4], transposed);
    }

    fn plane(&mut self, transposed: bool) {
        self.convolve(&[9, 11], &[3, 4], transposed);
    }

    /// A filter over a line or a plane, or what has this as its gradient. The kernel for lines multiplies
    /// the stride with the dilation, so there both are not tried at once.
    fn convolve(&mut self, inner: &[usize], filter: &[usize], transposed: bool) {
        let dilation = if inner.len() == 1 && !transposed { 1 } else { 2 };
        let source = self.tensor(&[&[BATCH, CHANNELS], inner].concat());
        let two = if transposed { [CHANNELS, FILTERS] } else { [FILTERS, CHANNELS] };
        let kernel = self.tensor(&[&two, filter].concat());
        let length = |(n, k): (&usize, &usize)| match transposed {
            false => (n + 2 * PADDING - dilation * (k - 1) - 1) / STRIDE + 1,
            true => (n - 1) * STRIDE + dilation * (k - 1) + 2 - 2 * PADDING,
        };
        let result: Vec<usize> = inner.iter().zip(filter).map(length).collect();
        let dims = [&[BATCH, FILTERS], &result[..]].concat();
        // Where the filter's element meets the source for an element of the result.
        let meets = |at: &[usize], k: &[usize]| -> Option<Vec<usize>> {
            let one = |(at, k): (&usize, &usize)| match transposed {
                false => (at * STRIDE + k * dilation).checked_sub(PADDING),
                true => {
                    let moved = (at + PADDING).checked_sub(k * dilation)?;
                    (moved % STRIDE == 0).then_some(moved / STRIDE)
                }
            };
            let place = at.iter().zip(k).map(one).collect::<Option<Vec<_>>>()?;
            place.iter().zip(inner).all(|(i, n)| i < n).then_some(place)
        };
        let element = |at: Vec<usize>| {
            let mut products = Vec::new();
            for k in places(filter) {
                let Some(place) = meets(&at[2..], &k) else { continue };
                for channel in 0..CHANNELS {
                    let two = if transposed { [channel, at[1]] } else { [at[1], channel] };
                    let x = source.at(&[&[at[0], channel], &place[..]].concat());
                    products.push((x, kernel.at(&[&two, &k[..]].concat())));
                }
            }
            sum(products.into_iter(), self.dtype)
        };
        let expected: Vec<Value> = places(&dims).map(element).collect();
        let out = self.output(&dims);
        let mut sizes = vec![source.memory.len()];
        sizes.extend(result.iter().rev());
        sizes.extend([STRIDE, PADDING]);
        sizes.extend(transposed.then_some(1));
        sizes.push(dilation);
        let args = self.args(&sizes, &[&source, &kernel], out);
        let name = if transposed { "conv_transpose" } else { "conv" };
        self.run(&format!("{name}{}d", inner.len()), out, args, &expected);
    }

    /// For every element of the result what the filter sees, so that a product of matrices remains.
    fn columns_of_line(&mut self) {
        let (length, filter, dilation) = (23, 4, 2);
        let source = self.tensor(&[BATCH, CHANNELS, length]);
        let result = (length + 2 * PADDING - dilation * (filter - 1) - 1) / STRIDE + 1;
        let dims = [BATCH, result, CHANNELS, filter];
        let element = |at: Vec<usize>| {
            let place = at[1] * STRIDE + at[3] * dilation;
            source.padded(&[at[0], at[2]], &[place], PADDING).unwrap_or(self.dtype.round(Int(0)))
        };
        let expected: Vec<Value> = places(&dims).map(element).collect();
        let out = self.output(&dims);
        let threads = BATCH * result * CHANNELS;
        let sizes = [threads, result, filter, STRIDE, PADDING, dilation];
        let args = self.args(&sizes, &[&source], out);
        self.run("im2col1d", out, args, &expected);
    }

    fn columns_of_plane(&mut self) {
        let (plane, filter, dilation) = ([9, 11], [3, 4], 2);
        let source = self.tensor(&[BATCH, CHANNELS, plane[0], plane[1]]);
        let result =
            [0, 1].map(|i| (plane[i] + 2 * PADDING - dilation * (filter[i] - 1) - 1) / STRIDE + 1);
        let dims = [BATCH, result[0], result[1], CHANNELS, filter[0], filter[1]];
        let element = |at: Vec<usize>| {
            let place = [1, 2].map(|i| at[i] * STRIDE + at[i + 3] * dilation);
            source.padded(&[at[0], at[3]], &place, PADDING).unwrap_or(self.dtype.round(Int(0)))
        };
        let expected: Vec<Value> = places(&dims).map(element).collect();
        let out = self.output(&dims);
        let [h, w] = result;
        let sizes = [expected.len(), h, w, filter[0], filter[1], STRIDE, PADDING, dilation];
        let args = self.args(&sizes, &[&source], out);
        self.run("im2col", out, args, &expected);
    }

    /// Eight elements to their mean, cut off for integers, and to their largest.
    fn pool(&mut self) {
        let (window, stride) = ([4, 2], [3, 1]);
        let source = self.tensor(&[BATCH, CHANNELS, 13, 8]);
        let result = [0, 1].map(|i| (source.dims[i + 2] - window[i]) / stride[i] + 1);
        let dims = [BATCH, CHANNELS, result[0], result[1]];
        let seen = |at: &[usize]| -> Vec<f64> {
            let place = |k: Vec<usize>| [0, 1].map(|i| at[i + 2] * stride[i] + k[i]);
            let value = |[a, b]: [usize; 2]| source.at(&[at[0], at[1], a, b]).float();
            places(&window).map(|k| value(place(k))).collect()
        };
        let mean = |at: Vec<usize>| Float(seen(&at).iter().sum::<f64>() / 8.0);
        let largest = |at: Vec<usize>| Float(seen(&at).into_iter().fold(f64::MIN, f64::max));
        let sizes = [source.memory.len(), window[0], window[1], stride[0], stride[1]];
        let expected: Vec<Value> = places(&dims).map(mean).collect();
        let out = self.output(&dims);
        let args = self.args(&sizes, &[&source], out);
        self.run("avg_pool2d", out, args, &expected);
        let expected: Vec<Value> = places(&dims).map(largest).collect();
        let out = self.output(&dims);
        let args = self.args(&sizes, &[&source], out);
        self.run("max_pool2d", out, args, &expected);
    }

    fn nearest(&mut self) {
        let source = self.tensor(&[BATCH, CHANNELS, 5, 8]);
        let (result, scale) = ([12, 11], [5.0 / 12.0, 8.0 / 11.0]);
        let dims = [BATCH, CHANNELS, result[0], result[1]];
        let element = |at: Vec<usize>| {
            let place = [0, 1].map(|i| (at[i + 2] as f64 * scale[i]) as usize);
            source.at(&[at[0], at[1], place[0], place[1]])
        };
        let expected: Vec<Value> = places(&dims).map(element).collect();
        let out = self.output(&dims);
        let mut args: Vec<Arg> = result.iter().map(|n| size(*n)).collect();
        args.extend(scale.map(|scale| scalar(F64, Float(scale))));
        args.extend(self.args(&[], &[&source], out));
        self.run("upsample_nearest2d", out, args, &expected);
    }

    /// Between the centres of pixels, by a ratio or a given factor, or with corners on corners. All
    /// weights are quarters or halves, so that integers are cut off where they should be.
    fn bilinear(&mut self) {
        let source = self.tensor(&[BATCH, CHANNELS, 5, 3]);
        for (corners, given, result) in
            [(false, false, [10, 12]), (false, true, [10, 12]), (true, false, [9, 9])]
        {
            let dims = [BATCH, CHANNELS, result[0], result[1]];
            let step = |i: usize| match corners {
                true => (source.dims[i + 2] - 1) as f64 / (result[i] - 1) as f64,
                false => source.dims[i + 2] as f64 / result[i] as f64,
            };
            let element = |at: Vec<usize>| {
                let weights = [0, 1].map(|i| {
                    let x = at[i + 2] as f64;
                    let x = if corners { x * step(i) } else { (x + 0.5) * step(i) - 0.5 };
                    let low = x.max(0.0).floor() as usize;
                    (low, (low + 1).min(source.dims[i + 2] - 1), x.max(0.0).fract())
                });
                let [(top, bottom, down), (left, right, over)] = weights;
                let value = |y: usize, x: usize| source.at(&[at[0], at[1], y, x]).float();
                let row = |y: usize| value(y, left) * (1.0 - over) + value(y, right) * over;
                Float(row(top) * (1.0 - down) + row(bottom) * down)
            };
            let expected: Vec<Value> = places(&dims).map(element).collect();
            let out = self.output(&dims);
            let flag = |flag: bool| Arg::Bytes(vec![flag.into()]);
            let mut args = vec![size(result[1]), size(result[0]), flag(corners)];
            for i in [0, 1] {
                args.extend([flag(given), scalar(F64, Float(1.0 / step(i)))]);
            }
            args.extend(self.args(&[], &[&source], out));
            self.run("upsample_bilinear2d", out, args, &expected);
        }
    }
}

/// Adds the columns of a line up where they came from.
fn back_to_line(family: &mut Family, dtype: Dtype) {
    let (length, filter) = (11, 5);
    let result = (length - 1) * STRIDE + filter;
    let mut case = Case { family, dtype, reversed: false };
    let source = case.tensor(&[BATCH, length, CHANNELS, filter]);
    let dims = [BATCH, CHANNELS, result];
    let element = |at: Vec<usize>| {
        let terms = places(&[length, filter]).filter(|term| term[0] * STRIDE + term[1] == at[2]);
        let one = dtype.round(Int(1));
        sum(terms.map(|term| (source.at(&[at[0], term[0], at[1], term[1]]), one)), dtype)
    };
    let expected: Vec<Value> = places(&dims).map(element).collect();
    let out = case.output(&dims);
    let mut args: Vec<Arg> =
        [expected.len(), result, length, CHANNELS, filter, STRIDE].map(size).to_vec();
    args.extend([case.pointer(&source), out.arg()]);
    case.run("col2im1d", out, args, &expected);
}
