//! The noise predictor: a small U-Net over 16×16 glyphs, told noise level, character and style.
//!
//! Three levels (16², 8², 4²), one residual block each on the way down and up, attention at
//! 4². Every residual block has more channels ([`Size::own`]) between its two convolutions than it
//! needs: the last ones, a normalisation group of their own, which a policy may give to a
//! category. The region switch stands before the second convolution.

use candle_core::{D, Device, Module, Result, Tensor};
use gradroute::candle::{
    RoutedConv2d, RoutedEmbedding, RoutedGroupNorm, RoutedLinear, Scope, silu, upsample_nearest,
};
use gradroute::problem::{Conv2dSpec, Padding};

use crate::data::{CHARACTERS, Conditions};

/// How large the model is; [`GROUP`] divides all channels.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Channels at 16², 8² and 4².
    pub widths: [usize; 3],
    /// More channels between the convolutions of a level's residual blocks, which may be owned.
    pub own: [usize; 3],
    /// Width of the embeddings.
    pub embed: usize,
}

impl Size {
    /// The example's.
    pub const FULL: Self = Self { widths: [24, 48, 64], own: [8, 16, 16], embed: 96 };
}

/// Channels of a normalisation group.
const GROUP: usize = 8;
/// Attention heads at 4².
const HEADS: usize = 4;
const EPS: f32 = 1e-5;

/// The model; its parameters live in the scope's store.
pub struct UNet {
    time: [RoutedLinear; 2],
    character: RoutedEmbedding,
    style: RoutedEmbedding,
    stem: RoutedConv2d,
    down: [ResBlock; 3],
    shrink: [RoutedConv2d; 2],
    attention: Attention,
    middle: ResBlock,
    up: [ResBlock; 3],
    head_norm: RoutedGroupNorm,
    head: RoutedConv2d,
    /// Width of the embeddings.
    embed: usize,
    /// Row of the style table that names none.
    no_style: f64,
}

impl UNet {
    /// Builds the layers in forward order, which is the order of their blocks.
    pub fn new(scope: &Scope, size: &Size, typefaces: usize) -> Result<Self> {
        let ([w16, w8, w4], embed) = (size.widths, size.embed);
        let condition = scope.at("condition");
        let time = [
            RoutedLinear::new(embed, embed, true, &condition.at("time1"))?,
            RoutedLinear::new(embed, embed, true, &condition.at("time2"))?,
        ];
        let character =
            RoutedEmbedding::new(CHARACTERS.len() + 1, embed, &condition.at("character"))?;
        let style = RoutedEmbedding::new(typefaces + 1, embed, &condition.at("style"))?;
        let stem = conv3(&scope.at("stem"), 1, w16, 1)?;
        let down = scope.at("down");
        let down16 = ResBlock::new(&down.at("16"), size, w16, 0)?;
        let shrink16 = conv3(&down.at("16.shrink"), w16, w8, 2)?;
        let down8 = ResBlock::new(&down.at("8"), size, w8, 1)?;
        let shrink8 = conv3(&down.at("8.shrink"), w8, w4, 2)?;
        let down4 = ResBlock::new(&down.at("4"), size, w4, 2)?;
        let middle = scope.at("middle");
        let attention = Attention::new(&middle.at("attention"), w4)?;
        let middle = ResBlock::new(&middle, size, w4, 2)?;
        let up = scope.at("up");
        let up = [
            ResBlock::new(&up.at("4"), size, 2 * w4, 2)?,
            ResBlock::new(&up.at("8"), size, w4 + w8, 1)?,
            ResBlock::new(&up.at("16"), size, w8 + w16, 0)?,
        ];
        let head = scope.at("head");
        let head_norm = norm(&head.at("norm"), w16)?;
        let head = conv3(&head.at("conv").zeros(), w16, 1, 1)?;
        Ok(Self {
            time,
            character,
            style,
            stem,
            down: [down16, down8, down4],
            shrink: [shrink16, shrink8],
            attention,
            middle,
            up,
            head_norm,
            head,
            embed,
            no_style: typefaces as f64,
        })
    }

    /// The noise in `x [N, 1, 16, 16]` at the given noise levels.
    pub fn forward(&self, x: &Tensor, levels: &[f32], conditions: &Conditions) -> Result<Tensor> {
        let told = self.condition(levels, conditions, x.device())?;
        let x = self.stem.forward(x)?;
        let skip16 = self.down[0].forward(&x, &told)?;
        let skip8 = self.down[1].forward(&self.shrink[0].forward(&skip16)?, &told)?;
        let skip4 = self.down[2].forward(&self.shrink[1].forward(&skip8)?, &told)?;
        let x = self.middle.forward(&self.attention.forward(&skip4)?, &told)?;
        let x = self.up[0].forward(&Tensor::cat(&[&x, &skip4], 1)?, &told)?;
        let x =
            self.up[1].forward(&Tensor::cat(&[&upsample_nearest(&x, 2)?, &skip8], 1)?, &told)?;
        let x =
            self.up[2].forward(&Tensor::cat(&[&upsample_nearest(&x, 2)?, &skip16], 1)?, &told)?;
        self.head.forward(&silu(&self.head_norm.forward(&x)?)?)
    }

    fn condition(&self, levels: &[f32], told: &Conditions, device: &Device) -> Result<Tensor> {
        let (characters, styles) = told.tensors(device)?;
        let time = silu(&self.time[0].forward(&waves(levels, self.embed, device)?)?)?;
        let time = self.time[1].forward(&time)?;
        let mut style = self.style.forward(&styles)?;
        if let Some(share) = &told.style_share {
            let share = Tensor::from_slice(share, (share.len(), 1), device)?;
            let none = self.style.forward(&(styles.zeros_like()? + self.no_style)?)?;
            style = (style.broadcast_mul(&share)? + none.broadcast_mul(&(1.0 - share)?)?)?;
        }
        silu(&(time + self.character.forward(&characters)? + style)?)
    }
}

/// Sines and cosines of the noise level, `[N, width]` (Vaswani et al. 2017).
fn waves(levels: &[f32], width: usize, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let angles = |t: f32| {
        (0..half).map(move |k| 1000.0 * t * (-(10_000f32.ln()) * k as f32 / half as f32).exp())
    };
    let values: Vec<f32> = levels
        .iter()
        .flat_map(|&t| angles(t).map(f32::sin).chain(angles(t).map(f32::cos)))
        .collect();
    Tensor::from_vec(values, (levels.len(), width), device)
}

/// Normalise, convolve, add what the model is told, normalise, convolve, add the input.
struct ResBlock {
    norm1: RoutedGroupNorm,
    conv1: RoutedConv2d,
    told: RoutedLinear,
    norm2: RoutedGroupNorm,
    conv2: RoutedConv2d,
    skip: Option<RoutedConv2d>,
    scope: Scope,
}

impl ResBlock {
    fn new(scope: &Scope, size: &Size, inputs: usize, level: usize) -> Result<Self> {
        let outputs = size.widths[level];
        let inner = outputs + size.own[level];
        let (conv1, told) = (scope.at("conv1"), scope.at("told"));
        let norm2 = scope.at("norm2").reads(conv1.path()).reads(told.path());
        let skip = || conv(&scope.at("skip"), [inputs, outputs], 1, 1);
        Ok(Self {
            norm1: norm(&scope.at("norm1"), inputs)?,
            conv1: conv3(&conv1, inputs, inner, 1)?,
            told: RoutedLinear::new(size.embed, inner, true, &told)?,
            norm2: norm(&norm2, inner)?,
            conv2: conv3(&scope.at("conv2").reads(norm2.path()), inner, outputs, 1)?,
            skip: (inputs != outputs).then(skip).transpose()?,
            scope: scope.clone(),
        })
    }

    fn forward(&self, x: &Tensor, told: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&silu(&self.norm1.forward(x)?)?)?;
        let told = self.told.forward(told)?.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?;
        let h = silu(&self.norm2.forward(&h.broadcast_add(&told)?)?)?;
        let h = self.scope.recorder().switch(&h, self.scope.at("conv2").path())?;
        let h = self.conv2.forward(&h)?;
        match &self.skip {
            Some(skip) => skip.forward(x)? + h,
            None => x + h,
        }
    }
}

/// Multi-head self-attention over positions, added to its input.
struct Attention {
    norm: RoutedGroupNorm,
    qkv: RoutedLinear,
    out: RoutedLinear,
}

impl Attention {
    fn new(scope: &Scope, width: usize) -> Result<Self> {
        Ok(Self {
            norm: norm(&scope.at("norm"), width)?,
            qkv: RoutedLinear::new(width, 3 * width, true, &scope.at("qkv"))?,
            out: RoutedLinear::new(width, width, true, &scope.at("out").zeros())?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let tokens = self.norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let qkv = self.qkv.forward(&tokens)?.reshape((n, h * w, 3, HEADS, c / HEADS))?;
        // [3][N, HEADS, positions, c / HEADS]
        let part = |k| qkv.narrow(2, k, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.matmul(&k.t()?)? / ((c / HEADS) as f64).sqrt())?;
        // The scores are small numbers of a small model: no need to subtract the maximum.
        let weights = scores.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((n, h * w, c))?;
        let mixed = self.out.forward(&mixed)?.transpose(1, 2)?.reshape((n, c, h, w))?;
        x + mixed
    }
}

fn norm(scope: &Scope, channels: usize) -> Result<RoutedGroupNorm> {
    RoutedGroupNorm::new(channels / GROUP, channels, EPS, scope)
}

fn conv3(scope: &Scope, inputs: usize, outputs: usize, stride: usize) -> Result<RoutedConv2d> {
    conv(scope, [inputs, outputs], 3, stride)
}

fn conv(scope: &Scope, channels: [usize; 2], size: usize, stride: usize) -> Result<RoutedConv2d> {
    let spec = Conv2dSpec {
        in_channels: channels[0],
        out_channels: channels[1],
        kernel: [size, size],
        stride: [stride, stride],
        padding: Padding::symmetric(size / 2, size / 2),
        bias: true,
        ..Conv2dSpec::default()
    };
    RoutedConv2d::new(spec, scope)
}
