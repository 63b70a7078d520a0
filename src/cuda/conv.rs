//! Plan and launches of a convolution.
//!
//! The kernels are implicit products over images whose channels come last. Images with channels first
//! are turned over on their way in and out, once each; patches are never written.

use std::fmt;

use cudarc::driver::sys::CUdeviceptr;

use super::buffers::Operand;
use super::call::{Call, launch};
use super::device::Grid;
use super::formed::{Extent, FormedPlan, plan_formed, tiles};
use super::generated::{GRADROUTE_THREADS, GRADROUTE_TILE, GradrouteConv, GradrouteDivisor};
use super::linear::dgrad_bytes;
use super::plan::{Common, Parts, Properties, Wish};
use super::queue::{Plan, Queue};
use crate::problem::{Conv2d, Dtype, PaddingMode, Rows};
use crate::{Error, Result};

/// Order of the axes of a convolution's buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageLayout {
    /// `x [N, C, H, W]`, `dy [N, O, Ho, Wo]`, weight and `dw` `[O, C / groups, kh, kw]`.
    #[default]
    ChannelsFirst,
    /// `x [N, H, W, C]`, `dy [N, Ho, Wo, O]`, weight and `dw` `[O, kh, kw, C / groups]`.
    ChannelsLast,
}

/// A batch of matrices to turn over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    batch: u64,
    rows: u32,
    columns: u32,
    /// Where the workspace holds the result.
    at: u64,
}

impl Turn {
    fn sides(self) -> [u64; 3] {
        [self.batch, u64::from(self.rows), u64::from(self.columns)]
    }
}

/// How a convolution's backward pass runs on a device. `Display` puts it into words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvPlan {
    common: Common,
    conv: GradrouteConv,
    formed: FormedPlan,
    /// `x`, `dy`, weight and `dx`, where they are to be turned over.
    turns: [Option<Turn>; 4],
    bias: u64,
    workspace_bytes: u64,
}

/// Plans a convolution's backward pass.
///
/// # Errors
/// [`Error::Argument`] for a layer or batch larger than a launch can be.
pub fn plan_conv2d(
    problem: &Conv2d,
    layout: ImageLayout,
    dtype: Dtype,
    wish: Wish,
    properties: &Properties,
) -> Result<ConvPlan> {
    let (spec, shape) = (problem.spec(), problem.gradient());
    let positions = problem.out_size().iter().product();
    let rows = Rows::uniform(spec.samples, positions)?;
    let mut common = Common::new(shape, &rows, dtype, wish)?;
    let pixels = spec.samples * spec.in_channels * spec.size.iter().product::<usize>();
    common.operands.x = Operand { elements: pixels as u64, ..common.operands.x };
    if layout == ImageLayout::ChannelsLast {
        common.layer.taps = 1;
    }
    let outputs = spec.out_channels / spec.groups;
    // Tiles begin at whole micro-blocks of a sketch, so that a group may begin within a tile.
    let whole = spec.groups == 1 || outputs.is_multiple_of(8);
    let group_tiles = tiles(if whole || outputs == 0 { outputs } else { outputs + 7 });
    let conv = geometry(problem, group_tiles)?;
    let mut take = Parts::default();
    let extent = Extent::of(&rows, dtype.size() == 2 && spec.groups == 1, false);
    let sides = [spec.groups * group_tiles, tiles(shape.inputs())];
    let formed = plan_formed(&mut common, sides, extent, properties, &mut take)?;
    let bias = take.bias(&common);
    let forms = common.forms();
    let request = common.wish.request;
    let (samples, channels) = (spec.samples as u64, spec.in_channels as u32);
    let turns = [
        (forms, samples, channels, conv.pixels),
        (forms || request.dx || common.bias_asked(), samples, common.layer.outputs, conv.positions),
        (request.dx, u64::from(common.layer.outputs), common.layer.features, shape.taps() as u32),
        (request.dx, samples, conv.pixels, channels),
    ]
    .map(|(needed, batch, rows, columns)| {
        // A matrix of one row or column lies the same either way.
        let turned = needed && layout == ImageLayout::ChannelsFirst && rows > 1 && columns > 1;
        let bytes = batch * u64::from(rows) * u64::from(columns) * dtype.size() as u64;
        turned.then(|| Turn { batch, rows, columns, at: take.take(true, bytes) })
    });
    Ok(ConvPlan { common, conv, formed, turns, bias, workspace_bytes: take.bytes })
}

/// The kernels' view of a convolution.
fn geometry(problem: &Conv2d, group_tiles: usize) -> Result<GradrouteConv> {
    let (spec, out) = (problem.spec(), problem.out_size());
    // Coordinates with the padding, and their sums, are 32-bit numbers with a sign.
    let small = |name: &str, number: usize| {
        let most = i32::MAX as usize / 4;
        let fits = u32::try_from(number).ok().filter(|_| number <= most);
        fits.ok_or_else(|| Error::argument(name, format!("at most {most} on cuda"), number))
    };
    let [height, width] = spec.size;
    let padding = spec.padding;
    small("size", height * width)?;
    small("padding", height + padding.top + padding.bottom)?;
    small("padding", width + padding.left + padding.right)?;
    small("kernel", spec.dilation[0] * spec.kernel[0] + spec.stride[0] * out[0])?;
    small("kernel", spec.dilation[1] * spec.kernel[1] + spec.stride[1] * out[1])?;
    let positions = small("size", out[0] * out[1])?;
    Ok(GradrouteConv {
        height: height as u32,
        width: width as u32,
        kernel_height: small("kernel", spec.kernel[0])?,
        kernel_width: small("kernel", spec.kernel[1])?,
        stride_y: small("stride", spec.stride[0])?,
        stride_x: small("stride", spec.stride[1])?,
        dilation_y: small("dilation", spec.dilation[0])?,
        dilation_x: small("dilation", spec.dilation[1])?,
        pad_top: padding.top as u32,
        pad_left: padding.left as u32,
        groups: small("groups", spec.groups)?,
        circular: u32::from(spec.padding_mode == PaddingMode::Circular),
        out_height: out[0] as u32,
        out_width: divisor(out[1].max(1) as u32),
        positions,
        pixels: (height * width) as u32,
        group_tiles: small("out_channels", group_tiles)?,
    })
}

/// A multiplier and a shift that divide numbers below 2³¹ (Granlund and Montgomery, 1994, section 4).
fn divisor(by: u32) -> GradrouteDivisor {
    let shift = u32::BITS - (by - 1).leading_zeros();
    let above = (1_u64 << shift) - u64::from(by);
    GradrouteDivisor { by, multiplier: ((above << 32) / u64::from(by) + 1) as u32, shift }
}

impl ConvPlan {
    /// How weight gradients arise.
    pub fn formed(&self) -> &FormedPlan {
        &self.formed
    }

    /// Queues the turning over of a buffer, where there is any, and returns where the result is.
    fn turned(&self, call: &Call, which: usize, from: CUdeviceptr) -> Result<CUdeviceptr> {
        let Some(turn) = self.turns[which] else { return Ok(from) };
        let to = call.work(turn.at);
        call.transpose(from, to, turn.sides())?;
        Ok(to)
    }

    /// Whether 16 bytes of a group's channels lie together, and rows of these buffers begin at such.
    fn flags(&self, call: &Call, buffers: &[CUdeviceptr]) -> u32 {
        let layer = &self.common.layer;
        let widths = [layer.outputs, layer.outputs / self.conv.groups, layer.features];
        let all = buffers.iter().flat_map(|&at| widths.map(|width| (at, width)));
        call.aligned(&all.collect::<Vec<_>>()).flags
    }

    fn dgrad(&self, call: &Call, dy: CUdeviceptr) -> Result<()> {
        let (mut layer, at, [_, flow, map]) = (call.layer(), call.at, call.tables);
        let pixels = u64::from(layer.samples) * u64::from(self.conv.pixels);
        if pixels == 0 || layer.features == 0 {
            return Ok(());
        }
        let weight = self.turned(call, 2, at.weight)?;
        let dx = self.turns[3].map_or(at.dx, |turn| call.work(turn.at));
        layer.flags = self.flags(call, &[dy, weight]);
        let conv =
            GradrouteConv { group_tiles: tiles(layer.features as usize) as u32, ..self.conv };
        let rows = pixels.div_ceil(u64::from(GRADROUTE_TILE));
        let blocks =
            [conv.groups * conv.group_tiles, rows.min(32768) as u32, rows.div_ceil(32768) as u32];
        let shared = dgrad_bytes(self.common.dtype.size() as u32);
        let grid = Grid { blocks, threads: GRADROUTE_THREADS, shared };
        launch! { call, "conv2d_dgrad", &call.name("conv2d_dgrad"), grid;
        layer, conv, dy, weight, at.categories, flow, map, dx }?;
        self.turns[3].map_or(Ok(()), |turn| call.transpose(dx, at.dx, turn.sides()))
    }
}

impl Queue for ConvPlan {
    fn common(&self) -> &Common {
        &self.common
    }

    fn queue(&self, call: &Call) -> Result<()> {
        let (forms, dx) = (self.common.forms(), self.common.wish.request.dx);
        if !forms && !dx && !self.common.bias_asked() {
            return Ok(());
        }
        let dy = self.turned(call, 1, call.at.dy)?;
        if dx {
            self.dgrad(call, dy)?;
        }
        let bias = call.work(self.bias);
        if forms {
            let x = self.turned(call, 0, call.at.x)?;
            let mut layer = call.layer();
            layer.flags = self.flags(call, &[x, dy]);
            let kernel = "conv2d_wgrad";
            call.form(&self.formed, kernel, kernel, (layer, self.conv, x, dy), bias)?;
        }
        call.bias_of_rows(&self.formed, dy, bias)
    }
}

impl Plan for ConvPlan {
    fn workspace_bytes(&self) -> u64 {
        self.workspace_bytes
    }
}

impl fmt::Display for ConvPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.formed)?;
        let turned = self.turns.iter().flatten().count();
        if turned > 0 {
            write!(f, ", {turned} buffers turned over")?;
        }
        write!(f, ", {} KiB of workspace", self.workspace_bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_divide() {
        let divide = |n: u32, d: &GradrouteDivisor| {
            let high = ((u64::from(n) * u64::from(d.multiplier)) >> 32) as u32;
            (high + n) >> d.shift
        };
        for by in (1..200).chain([4095, 4096, 4097, 65_537, i32::MAX as u32]) {
            let d = divisor(by);
            for n in (0..1000).chain([by - 1, by, i32::MAX as u32 - 1, i32::MAX as u32]) {
                assert_eq!(divide(n, &d), n / by, "{n} / {by}");
            }
        }
    }
}
