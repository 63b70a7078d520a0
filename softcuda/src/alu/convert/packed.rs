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
    /// Where the bits of [`Rounding::Random`] come from.
    pub random: Option<Src>,
    pub relu: bool,
    pub satfinite: bool,
}

/// What is converted, from the lowest element up.
#[derive(Debug, Clone, PartialEq)]
pub enum Elements {
    Single(Vec<Src>),
    Packed { src: Src, format: Format, stride: u32 },
}

/// Element format, stride and number of elements of a packed type's suffix.
pub(super) fn packed(part: &str) -> Option<(Format, u32, usize)> {
    Some(match part {
        "f16x2" => (Format::F16, 16, 2),
        "bf16x2" => (Format::BF16, 16, 2),
        "e4m3x2" => (Format::E4M3, 8, 2),
        "e5m2x2" => (Format::E5M2, 8, 2),
        "e3m2x2" => (Format::E3M2, 8, 2),
        "e2m3x2" => (Format::E2M3, 8, 2),
        "e2m1x2" => (Format::E2M1, 4, 2),
        "e4m3x4" => (Format::E4M3, 8, 4),
        "e5m2x4" => (Format::E5M2, 8, 4),
        "e3m2x4" => (Format::E3M2, 8, 4),
        "e2m3x4" => (Format::E2M3, 8, 4),
        "e2m1x4" => (Format::E2M1, 4, 4),
        _ => return None,
    })
}

/// The register of so many elements.
fn register(stride: u32, count: usize) -> Ty {
    match stride * count as u32 {
        8 => Ty::B8,
        16 => Ty::B16,
        _ => Ty::B32,
    }
}

pub(super) fn lower<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    mut s: Suffixes<'a>,
) -> Lowered<Convert> {
    let random = s.take("rs");
    let rounding = if random { Some(Rounding::Random(0)) } else { s.rounding() };
    let Some(rounding) = rounding else { return refuse(l, i) };
    let (relu, satfinite) = (s.take("relu"), s.take("satfinite"));
    let Some((format, stride, count)) = s.find(packed) else { return refuse(l, i) };
    let source = s.find(packed);
    let single = source.is_none() && s.take("f32");
    s.end(l, i)?;
    let narrow = stride < 16;
    let nearest = rounding == Rounding::Nearest;
    let known = match rounding {
        Rounding::Nearest => count == 2,
        Rounding::Zero => !narrow,
        Rounding::Random(_) => narrow == (count == 4),
        _ => false,
    };
    let [dst, rest @ ..] = i.operands.as_slice() else { return refuse(l, i) };
    if !known || narrow && !satfinite {
        return refuse(l, i);
    }
    let dst = l.dst(register(stride, count), dst)?;
    let (rest, random) = match rest {
        [rest @ .., bits] if random => (rest, Some(suffix::src(l, Ty::B32, bits)?)),
        _ => (rest, None),
    };
    let from = match (source, rest) {
        (None, [elements]) if single && count == 4 => {
            let elements = l.vector(elements).iter().rev();
            Elements::Single(elements.map(|e| l.src(Ty::F32, e)).collect::<Lowered<_>>()?)
        }
        (None, [high, low]) if single => {
            Elements::Single(vec![l.src(Ty::F32, low)?, l.src(Ty::F32, high)?])
        }
        // One of the two has 16-bit elements, the other fewer.
        (Some((from, of, 2)), [a])
            if (of < 16) != narrow
                && nearest
                && (narrow || !satfinite || format == Format::BF16) =>
        {
            Elements::Packed { src: l.src(register(of, 2), a)?, format: from, stride: of }
        }
        _ => return refuse(l, i),
    };
    if matches!(&from, Elements::Single(elements) if elements.len() != count) {
        return refuse(l, i);
    }
    let to = Target { format, stride, rounding, random, relu, satfinite };
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
    let plain = to.rounding == Rounding::Nearest && !to.relu && !to.satfinite;
    let random = to.random.map(|src| lanes.read::<u32>(src));
    let mut packed = [0; LANES];
    for n in 0..from.count() {
        let values = from.read(n, lanes);
        let bits = match to.format {
            Format::F16 if plain => values.map(|x| u64::from(F16::narrow_wide(x))),
            Format::BF16 if plain => values.map(|x| u64::from(Bf16::narrow_wide(x))),
            format => match random {
                None => values.map(|x| finish(x, format, &to.how(to.rounding))),
                Some(random) => std::array::from_fn(|lane| {
                    let rounding = Rounding::Random(random_bits(random[lane], to, n));
                    finish(values[lane], format, &to.how(rounding))
                }),
            },
        };
        for (packed, bits) in packed.iter_mut().zip(bits) {
            *packed |= bits << (n as u32 * to.stride);
        }
    }
    u64::write(lanes.regs, dst, lanes.mask, &packed);
}

/// The random bits of an element, counted from the lowest, out of the operand of `cvt.rs`. PTX gives each of
/// two elements its half, f16 the lower 13 bits of it, and each half to two of four elements; four of four
/// bits share the lower and the upper bytes of the halves. Of the two that share, the upper one takes the
/// bits in reverse: PTX leaves that open, and B200 devices do it so.
fn random_bits(operand: u32, to: &Target, n: usize) -> u16 {
    let half = |upper: usize| (operand >> (16 * upper)) as u16;
    let byte = |at: usize| operand >> (8 * at) & 0xff;
    let shared = |bits: u16| if n % 2 == 1 { bits.reverse_bits() } else { bits };
    match (to.format, to.stride) {
        (Format::F16, _) => half(n) << 3,
        (_, 16) => half(n),
        (_, 8) => shared(half(n / 2)),
        _ => shared((byte(2 + n / 2) << 8 | byte(n / 2)) as u16),
    }
}

impl Elements {
    fn count(&self) -> usize {
        match self {
            Elements::Single(elements) => elements.len(),
            Elements::Packed { .. } => 2,
        }
    }

    /// The values of an element, counted from the lowest.
    pub(super) fn read(&self, n: usize, lanes: &Lanes<'_>) -> [f64; LANES] {
        match self {
            Elements::Single(src) => lanes.read::<f32>(src[n]).map(f64::from),
            Elements::Packed { src, format, stride } => {
                let (shift, mask) = (n as u32 * stride, (1 << stride) - 1);
                lanes.read::<u64>(*src).map(|word| format.widen(word >> shift & mask))
            }
        }
    }
}

impl Target {
    fn how(&self, rounding: Rounding) -> How {
        let Self { relu, satfinite, .. } = *self;
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
