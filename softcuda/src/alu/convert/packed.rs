//! Conversions of elements that lie side by side in a register, and `cvt.pack`.

use super::{Convert, How, finish};
use crate::alu::lanes::{Lane, Lanes};
use crate::alu::round::{Format, Rounding};
use crate::alu::short::{Bf16, F16, Short};
use crate::alu::suffix::{self, Suffixes, refuse};
use crate::ir::{LANES, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

/// What each element is rounded to, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub format: Format,
    pub stride: u32,
    pub rounding: Rounding,
    pub relu: bool,
    pub satfinite: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    Single(Vec<Src>),
    Packed { src: Src, format: Format, stride: u32 },
}

/// Element format and stride of a packed type's suffix.
pub(super) fn packed(part: &str) -> Option<(Format, u32)> {
    Some(match part {
        "f16x2" => (Format::F16, 16),
        "bf16x2" => (Format::BF16, 16),
        "e4m3x2" => (Format::E4M3, 8),
        "e5m2x2" => (Format::E5M2, 8),
        "e3m2x2" => (Format::E3M2, 8),
        "e2m3x2" => (Format::E2M3, 8),
        "e2m1x2" => (Format::E2M1, 4),
        _ => return None,
    })
}

fn register(stride: u32) -> Ty {
    match stride {
        4 => Ty::B8,
        8 => Ty::B16,
        _ => Ty::B32,
    }
}

pub(super) fn lower<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    mut s: Suffixes<'a>,
) -> Lowered<Convert> {
    let Some(rounding) = s.rounding() else { return refuse(l, i) };
    let (relu, satfinite) = (s.take("relu"), s.take("satfinite"));
    let Some((format, stride)) = s.find(packed) else { return refuse(l, i) };
    let source = s.find(packed);
    let single = source.is_none() && s.take("f32");
    s.end(l, i)?;
    let narrow = stride < 16;
    let to = Target { format, stride, rounding, relu, satfinite };
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    let nearest = rounding == Rounding::Nearest;
    if !nearest && (narrow || rounding != Rounding::Zero) || narrow && !satfinite {
        return refuse(l, i);
    }
    let dst = l.dst(register(stride), dst)?;
    let from = match (source, rest) {
        (None, [high, low]) if single => {
            Elements::Single(vec![l.src(Ty::F32, low)?, l.src(Ty::F32, high)?])
        }
        // One of the two has 16-bit elements, the other fewer.
        (Some((from, of)), [a])
            if (of < 16) != narrow
                && nearest
                && (narrow || !satfinite && format == Format::F16) =>
        {
            Elements::Packed { src: l.src(register(of), a)?, format: from, stride: of }
        }
        _ => return refuse(l, i),
    };
    Ok(Convert::Packed { from, to, dst })
}

pub(super) fn lower_pack<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    mut s: Suffixes<'a>,
) -> Lowered<Convert> {
    let element = s.find(|part| {
        Some(match part {
            "u16" => (16, false),
            "s16" => (16, true),
            "u8" => (8, false),
            "s8" => (8, true),
            "u4" => (4, false),
            "s4" => (4, true),
            "u2" => (2, false),
            "s2" => (2, true),
            _ => return None,
        })
    });
    let sat = s.take("sat") && s.take("s32");
    let onto = s.take("b32");
    s.end(l, i)?;
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    let Some((bits, signed)) = element.filter(|(bits, _)| sat && (*bits == 16) != onto) else {
        return refuse(l, i);
    };
    let types = [Ty::S32, Ty::S32, Ty::B32];
    let src = suffix::sources(l, i, rest, &types[..2 + usize::from(onto)])?;
    Ok(Convert::Pack { bits, signed, dst: l.dst(Ty::B32, dst)?, src })
}

pub(super) fn elements(from: &Elements, to: &Target, lanes: &mut Lanes<'_>, dst: Reg) {
    let sources: [[f64; LANES]; 2] = match from {
        Elements::Single(src) => [0, 1].map(|n: usize| lanes.read::<f32>(src[n]).map(f64::from)),
        Elements::Packed { src, format, stride } => {
            let words = lanes.read::<u64>(*src);
            [0, 1]
                .map(|n| words.map(|word| format.widen(word >> (n * stride) & ((1 << stride) - 1))))
        }
    };
    let plain = to.rounding == Rounding::Nearest && !to.relu && !to.satfinite;
    let [low, high] = sources.map(|values| match to.format {
        Format::F16 if plain => values.map(|x| u64::from(F16::narrow_wide(x))),
        Format::BF16 if plain => values.map(|x| u64::from(Bf16::narrow_wide(x))),
        format => values.map(|x| finish(x, format, &to.how())),
    });
    let packed: [u64; LANES] = std::array::from_fn(|n| high[n] << to.stride | low[n]);
    u64::write(lanes.regs, dst, lanes.mask, &packed);
}

impl Target {
    fn how(&self) -> How {
        let Self { rounding, relu, satfinite, .. } = *self;
        How { rounding, relu, satfinite, integral: false, ftz: false, sat: false, width: 0 }
    }
}

pub(super) fn pack(bits: u32, signed: bool, lanes: &mut Lanes<'_>, dst: Reg, src: &[Src; 3]) {
    let (a, b) = (lanes.read::<i32>(src[0]), lanes.read::<i32>(src[1]));
    let c = lanes.read::<u32>(src[2]);
    let (low, high) =
        if signed { (-1i64 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    let element = |x: i32| i64::from(x).clamp(low, high) as u64 & ((1 << bits) - 1);
    let values: [u32; LANES] = std::array::from_fn(|n| {
        (u64::from(c[n]) << (2 * bits) | element(a[n]) << bits | element(b[n])) as u32
    });
    lanes.write(dst, &values);
}
