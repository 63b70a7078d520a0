//! Two-dimensional convolution: groups, dilation, stride remainders, any padding.

use super::{GradientShape, product};
use crate::{Error, Result};

/// What stands outside the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingMode {
    /// Zeros.
    #[default]
    Zeros,
    /// The image repeated; the padding may not exceed the image.
    Circular,
}

/// Positions added on each side, not necessarily the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// `vertical` above and below, `horizontal` left and right.
    pub fn symmetric(vertical: usize, horizontal: usize) -> Self {
        Self { top: vertical, bottom: vertical, left: horizontal, right: horizontal }
    }

    /// Padding that keeps the size at stride 1; an odd total puts the extra position below and
    /// to the right, as PyTorch's `padding="same"` does.
    pub fn same(kernel: [usize; 2], dilation: [usize; 2]) -> Self {
        let total = |axis: usize| dilation[axis] * kernel[axis].saturating_sub(1);
        let (v, h) = (total(0), total(1));
        Self { top: v / 2, bottom: v - v / 2, left: h / 2, right: h - h / 2 }
    }
}

/// The parameters of a convolution, to be checked by [`Conv2d::new`].
///
/// ```
/// use gradroute::problem::{Conv2d, Conv2dSpec, Padding};
/// let conv = Conv2d::new(Conv2dSpec {
///     samples: 2,
///     in_channels: 8,
///     out_channels: 16,
///     size: [9, 7],
///     kernel: [3, 3],
///     stride: [2, 2],
///     padding: Padding::symmetric(1, 1),
///     ..Conv2dSpec::default()
/// })?;
/// assert_eq!(conv.out_size(), [5, 4]);
/// # Ok::<(), gradroute::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dSpec {
    /// `N`.
    pub samples: usize,
    /// `C`.
    pub in_channels: usize,
    /// `O`.
    pub out_channels: usize,
    /// Input `[height, width]`.
    pub size: [usize; 2],
    /// `[kh, kw]`.
    pub kernel: [usize; 2],
    /// Step `[vertical, horizontal]`.
    pub stride: [usize; 2],
    /// Distance between kernel elements.
    pub dilation: [usize; 2],
    /// Positions added on each side.
    pub padding: Padding,
    /// What stands there.
    pub padding_mode: PaddingMode,
    /// Channel groups; divides both channel counts. `C` groups make it depthwise.
    pub groups: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
}

impl Default for Conv2dSpec {
    /// A 1×1 convolution of nothing: stride, dilation and groups 1, no padding, no bias.
    fn default() -> Self {
        Self {
            samples: 0,
            in_channels: 0,
            out_channels: 0,
            size: [0, 0],
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            padding: Padding::default(),
            padding_mode: PaddingMode::Zeros,
            groups: 1,
            bias: false,
        }
    }
}

/// A checked convolution: `X [N, C, H, W]`, `W [O, C / groups, kh, kw]`, `dY [N, O, Ho, Wo]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    spec: Conv2dSpec,
    out_size: [usize; 2],
    gradient: GradientShape,
}

impl Conv2d {
    /// # Errors
    /// [`Error::Argument`] naming the field that is out of range.
    pub fn new(spec: Conv2dSpec) -> Result<Self> {
        for (name, pair) in
            [("kernel", spec.kernel), ("stride", spec.stride), ("dilation", spec.dilation)]
        {
            if pair.contains(&0) {
                return Err(Error::argument(name, "at least 1 each way", format!("{pair:?}")));
            }
        }
        for (name, channels) in
            [("in_channels", spec.in_channels), ("out_channels", spec.out_channels)]
        {
            if spec.groups == 0 || !channels.is_multiple_of(spec.groups) {
                let expected = format!("a divisor of {name} = {channels}");
                return Err(Error::argument("groups", expected, spec.groups));
            }
        }
        let pads = spec.padding;
        let out_size = [
            extent("height", spec, 0, pads.top, pads.bottom)?,
            extent("width", spec, 1, pads.left, pads.right)?,
        ];
        let [h, w] = spec.size;
        product("x", &[spec.samples, spec.in_channels, h, w])?;
        product("dy", &[spec.samples, spec.out_channels, out_size[0], out_size[1]])?;
        let per_group = spec.in_channels / spec.groups;
        let inputs = product("kernel", &[per_group, spec.kernel[0], spec.kernel[1]])?;
        let mut gradient = GradientShape::new(spec.out_channels, inputs, spec.bias)?;
        gradient.taps = spec.kernel[0] * spec.kernel[1];
        Ok(Self { spec, out_size, gradient })
    }

    /// The parameters as given.
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// Output `[Ho, Wo]`; a stride that does not divide drops the remainder.
    pub fn out_size(&self) -> [usize; 2] {
        self.out_size
    }

    /// Input channels each output channel sees.
    pub fn channels_per_group(&self) -> usize {
        self.spec.in_channels / self.spec.groups
    }

    /// Shape of the parameter gradient; inputs count channels last.
    pub fn gradient(&self) -> GradientShape {
        self.gradient
    }

    /// Where matrix element `(o, i)`, `i` channels last, stands in `W [O, C / groups, kh, kw]`.
    pub fn weight_index(&self, o: usize, i: usize) -> usize {
        let per_group = self.channels_per_group();
        let taps = self.spec.kernel[0] * self.spec.kernel[1];
        let (tap, c) = (i / per_group, i % per_group);
        (o * per_group + c) * taps + tap
    }

    /// Input coordinate read by output coordinate `out` at kernel offset `tap` on `axis`
    /// (0 vertical, 1 horizontal); `None` in zero padding.
    pub fn source(&self, axis: usize, out: usize, tap: usize) -> Option<usize> {
        let spec = &self.spec;
        let before = if axis == 0 { spec.padding.top } else { spec.padding.left };
        let size = spec.size[axis];
        let padded = out * spec.stride[axis] + tap * spec.dilation[axis];
        match spec.padding_mode {
            PaddingMode::Zeros => padded.checked_sub(before).filter(|&at| at < size),
            // The padding is at most the size, so one size added keeps this non-negative.
            PaddingMode::Circular => Some((padded + size - before) % size),
        }
    }
}

/// Output extent of one axis.
fn extent(name: &str, spec: Conv2dSpec, axis: usize, before: usize, after: usize) -> Result<usize> {
    let size = spec.size[axis];
    if spec.padding_mode == PaddingMode::Circular && before.max(after) > size {
        let expected = format!("circular padding of at most the {name}, {size}");
        return Err(Error::argument("padding", expected, before.max(after)));
    }
    let too_large = || Error::argument("size", "a padded size that fits", format!("{spec:?}"));
    let padded =
        size.checked_add(before).and_then(|sum| sum.checked_add(after)).ok_or_else(too_large)?;
    let reach = spec.dilation[axis].checked_mul(spec.kernel[axis] - 1).ok_or_else(too_large)?;
    if padded <= reach {
        // Nothing to see is a zero-size problem, unless an image was meant to be there.
        if size == 0 {
            return Ok(0);
        }
        let expected = format!("a padded {name} of at least {}", reach + 1);
        return Err(Error::argument("kernel", expected, padded));
    }
    // Zero padding of an empty image is still empty.
    if size == 0 {
        return Ok(0);
    }
    Ok((padded - reach - 1) / spec.stride[axis] + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Conv2dSpec {
        Conv2dSpec {
            samples: 1,
            in_channels: 4,
            out_channels: 6,
            size: [5, 6],
            ..Default::default()
        }
    }

    #[test]
    fn sizes_follow_the_usual_formula() {
        let size = |spec| Conv2d::new(spec).unwrap().out_size();
        assert_eq!(size(Conv2dSpec { kernel: [3, 3], ..spec() }), [3, 4]);
        assert_eq!(size(Conv2dSpec { kernel: [2, 3], stride: [2, 2], ..spec() }), [2, 2]);
        for kernel in [[3, 3], [2, 4]] {
            let padding = Padding::same(kernel, [1, 1]);
            assert_eq!(size(Conv2dSpec { kernel, padding, ..spec() }), [5, 6]);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = |spec| Conv2d::new(spec).unwrap_err().to_string();
        assert!(text(Conv2dSpec { groups: 3, ..spec() }).contains("groups"));
        assert!(text(Conv2dSpec { stride: [0, 1], ..spec() }).contains("stride"));
        assert!(text(Conv2dSpec { kernel: [6, 1], ..spec() }).contains("kernel"));
        let padding = Padding::symmetric(6, 0);
        let padding_mode = PaddingMode::Circular;
        assert!(text(Conv2dSpec { padding, padding_mode, ..spec() }).contains("padding"));
    }

    #[test]
    fn circular_padding_wraps_both_ways() {
        let conv = Conv2d::new(Conv2dSpec {
            kernel: [3, 1],
            padding: Padding::symmetric(1, 0),
            padding_mode: PaddingMode::Circular,
            ..spec()
        })
        .unwrap();
        assert_eq!(conv.source(0, 0, 0), Some(4));
        assert_eq!(conv.source(0, 4, 2), Some(0));
    }
}
