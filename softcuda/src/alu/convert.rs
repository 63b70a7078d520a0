//! `cvt`: between integers, between floating-point formats, and from one to the other; one element or
//! several packed into a register. Source: PTX ISA, section 9.7.9 (`cvt`, `cvt.pack`).

use super::float::flush;
use super::lanes::{Lane, Lanes};
use super::round::{Format, Rounding, odd_from};
use super::short::{Bf16, F16, Short};
use super::suffix::{Suffixes, refuse};
use crate::ir::{LANES, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub enum Convert {
    Scalar {
        from: Ty,
        to: Ty,
        how: How,
        dst: Reg,
        src: Src,
    },
    /// Elements side by side, the lowest first.
    Packed {
        from: Elements,
        to: Target,
        dst: Reg,
    },
    /// `cvt.pack`: two saturated integers above what `c` holds.
    Pack {
        bits: u32,
        signed: bool,
        dst: Reg,
        src: [Src; 3],
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct How {
    pub rounding: Rounding,
    /// To an integral value: `.rni` and so on.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub satfinite: bool,
    /// Bits of the destination register, which signed results are extended to.
    pub width: u32,
}

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

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Convert> {
    let mut s = Suffixes::new(i);
    if s.take("pack") {
        return lower_pack(l, i, s);
    }
    if i.parts.iter().any(|part| packed(part).is_some()) {
        return lower_packed(l, i, s);
    }
    let float = s.rounding().or_else(|| s.take("rna").then_some(Rounding::Away));
    let integral = s.find(|part| {
        Some(match part {
            "rni" => Rounding::Nearest,
            "rzi" => Rounding::Zero,
            "rmi" => Rounding::Down,
            "rpi" => Rounding::Up,
            _ => return None,
        })
    });
    let (ftz, sat) = (s.take("ftz"), s.take("sat"));
    let (relu, satfinite) = (s.take("relu"), s.take("satfinite"));
    let (to, from) = (s.ty(l)?, s.ty(l)?);
    s.end(l, i)?;
    let how = How {
        rounding: float.or(integral).unwrap_or(Rounding::Nearest),
        integral: integral.is_some(),
        ftz,
        sat,
        relu,
        satfinite,
        width: 0,
    };
    if !allowed(from, to, float, &how) {
        return refuse(l, i);
    }
    let [d, a] = crate::lower::operands(i)?;
    let width = l.register_type(d).map_or(to.bits(), Ty::bits);
    let how = How { width, ..how };
    let register = if to == Ty::Tf32 { Ty::B32 } else { to };
    Ok(Convert::Scalar { from, to, how, dst: l.dst(register, d)?, src: l.src(from, a)? })
}

/// Which modifiers go with which types; `float` is the rounding of a floating-point result.
fn allowed(from: Ty, to: Ty, float: Option<Rounding>, how: &How) -> bool {
    let (to_tf32, half) = (to == Ty::Tf32, matches!(to, Ty::F16 | Ty::Bf16));
    let single = from == Ty::F32 || to == Ty::F32;
    if from == Ty::Tf32 || to_tf32 && (from != Ty::F32 || how.sat || how.ftz) {
        return false;
    }
    let clamps = how.relu || how.satfinite;
    let two = matches!(float, Some(Rounding::Nearest | Rounding::Zero));
    let away = float == Some(Rounding::Away);
    if clamps && !(from == Ty::F32 && (half || to_tf32) && !how.ftz && (two || away && !how.relu)) {
        return false;
    }
    if how.ftz && !single || away && !to_tf32 || to_tf32 && !(two || away) {
        return false;
    }
    // bfloat16 has no `.sat`.
    if how.sat && (to == Ty::Bf16 || from == Ty::Bf16) {
        return false;
    }
    match (number(from), number(to)) {
        (true, true) => {
            let loses = to.bits() < from.bits() || to_tf32 || half && to != from;
            match float {
                // An exact result has no direction, but for bfloat16 one may be written.
                Some(_) => !how.integral && (loses || from == Ty::Bf16 && to != from),
                None => !loses && (!how.integral || from == to),
            }
        }
        (true, false) => whole(to) && how.integral && float.is_none(),
        (false, true) => whole(from) && !how.integral && float.is_some(),
        (false, false) => {
            let ((low, high), (to_low, to_high)) = (range(from), range(to));
            // Saturation must be possible.
            let clampable = low < to_low || high > to_high;
            whole(from) && whole(to) && !how.integral && float.is_none() && (clampable || !how.sat)
        }
    }
}

fn number(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::Tf32 | Ty::F32 | Ty::F64)
}

fn whole(ty: Ty) -> bool {
    matches!(ty, Ty::U8 | Ty::U16 | Ty::U32 | Ty::U64 | Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
}

/// Element format and stride of a packed type's suffix.
fn packed(part: &str) -> Option<(Format, u32)> {
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

fn lower_packed<'a>(
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

fn lower_pack<'a>(
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
    let src = super::suffix::sources(l, i, rest, &types[..2 + usize::from(onto)])?;
    Ok(Convert::Pack { bits, signed, dst: l.dst(Ty::B32, dst)?, src })
}

pub fn execute(this: &Convert, lanes: &mut Lanes<'_>) {
    match this {
        Convert::Scalar { from, to, how, dst, src } => match (number(*from), number(*to)) {
            (false, false) => between_integers(*from, *to, how, lanes, *dst, *src),
            (true, false) => to_integer(*from, *to, how, lanes, *dst, *src),
            (false, true) => from_integer(*from, *to, how, lanes, *dst, *src),
            (true, true) => between_floats(*from, *to, how, lanes, *dst, *src),
        },
        Convert::Packed { from, to, dst } => elements(from, to, lanes, *dst),
        Convert::Pack { bits, signed, dst, src } => pack(*bits, *signed, lanes, *dst, src),
    }
}

/// An integer source, extended to 64 bits.
fn integers(ty: Ty, lanes: &Lanes<'_>, src: Src) -> [i64; LANES] {
    match ty {
        Ty::U8 => lanes.read::<u8>(src).map(i64::from),
        Ty::S8 => lanes.read::<i8>(src).map(i64::from),
        Ty::U16 => lanes.read::<u16>(src).map(i64::from),
        Ty::S16 => lanes.read::<i16>(src).map(i64::from),
        Ty::U32 => lanes.read::<u32>(src).map(i64::from),
        Ty::S32 => lanes.read::<i32>(src).map(i64::from),
        _ => lanes.read::<i64>(src),
    }
}

/// The range of an integer type.
fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Writes integers of type `to` into a register that may be wider.
fn write_integers(to: Ty, width: u32, lanes: &mut Lanes<'_>, dst: Reg, values: &[i64; LANES]) {
    let (unused, seen) = (64 - to.bits(), u64::MAX >> (64 - width.clamp(to.bits(), 64)));
    let signed = to.signed();
    let extended = values.map(|value| {
        let top = value << unused;
        (if signed { top >> unused } else { (top as u64 >> unused) as i64 }) as u64 & seen
    });
    lanes.write(dst, &extended);
}

fn between_integers(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let mut values = integers(from, lanes, src);
    if how.sat {
        let (low, high) = range(to);
        let exact =
            |value: i64| if from == Ty::U64 { i128::from(value as u64) } else { value.into() };
        values = values.map(|value| exact(value).clamp(low, high) as i64);
    }
    write_integers(to, how.width, lanes, dst, &values);
}

/// A floating-point source; exact in f64.
fn floats(ty: Ty, ftz: bool, lanes: &Lanes<'_>, src: Src) -> [f64; LANES] {
    match ty {
        Ty::F16 => lanes.read::<u32>(src).map(|bits| f64::from(F16::widen(bits))),
        Ty::Bf16 => lanes.read::<u32>(src).map(|bits| f64::from(Bf16::widen(bits))),
        Ty::F32 if ftz => lanes.read::<f32>(src).map(|x| f64::from(flush(x))),
        Ty::F32 => lanes.read::<f32>(src).map(f64::from),
        _ => lanes.read::<f64>(src),
    }
}

fn integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Away => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

fn to_integer(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let values = floats(from, how.ftz, lanes, src);
    let rounding = how.rounding;
    let of_nan = if from == Ty::F64 || to.bits() == 64 { 1i64 << (to.bits() - 1) } else { 0 };
    let (low, high) = range(to);
    let (low, high) = (low as i64, high as u64);
    let signed = to.signed();
    let convert = |x: f64| {
        let x = if rounding == Rounding::Zero { x } else { integral(x, rounding) };
        if x.is_nan() {
            of_nan
        } else if signed {
            (x as i64).clamp(low, high as i64)
        } else {
            (x as u64).min(high) as i64
        }
    };
    write_integers(to, how.width, lanes, dst, &values.map(convert));
}

fn from_integer(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let values = integers(from, lanes, src);
    let unsigned = from == Ty::U64;
    let widest =
        move |value: i64| if unsigned { i128::from(value as u64) } else { i128::from(value) };
    match (to, how.rounding, how.sat) {
        (Ty::F32, Rounding::Nearest, false) if unsigned => {
            lanes.write(dst, &values.map(|value| value as u64 as f32));
        }
        (Ty::F32, Rounding::Nearest, false) => lanes.write(dst, &values.map(|value| value as f32)),
        (Ty::F64, Rounding::Nearest, false) if unsigned => {
            lanes.write(dst, &values.map(|value| value as u64 as f64));
        }
        (Ty::F64, Rounding::Nearest, false) => lanes.write(dst, &values.map(|value| value as f64)),
        (Ty::F64, rounding, false) => {
            let exact = |value| directed_double(widest(value), rounding);
            lanes.write(dst, &values.map(exact));
        }
        (to, ..) if from.bits() < 64 => {
            rounded(to, how, lanes, dst, &values.map(|value| value as f64));
        }
        (to, ..) => rounded(to, how, lanes, dst, &values.map(|value| odd_from(widest(value)))),
    }
}

/// An integer rounded to f64 in a given direction.
fn directed_double(value: i128, rounding: Rounding) -> u64 {
    let exact =
        super::round::Exact { negative: value < 0, exponent: 0, mantissa: value.unsigned_abs() };
    if value == 0 { 0 } else { exact.round(Format::F64, rounding) }
}

fn format(ty: Ty) -> Format {
    match ty {
        Ty::F16 => Format::F16,
        Ty::Bf16 => Format::BF16,
        Ty::Tf32 => Format::TF32,
        Ty::F32 => Format::F32,
        _ => Format::F64,
    }
}

/// Bits of a number rounded to a format, clamped as asked.
fn finish(x: f64, format: Format, how: &How) -> u64 {
    let x = if how.relu && x < 0.0 { 0.0 } else { x };
    let bits = if format == Format::F64 {
        super::float::canonical(x).to_bits()
    } else {
        format.narrow(x, how.rounding)
    };
    let magnitude = bits & (format.sign() - 1);
    let negative = bits & format.sign() != 0;
    let nan = x.is_nan();
    if how.sat {
        let one = (format.bias() as u64) << format.mantissa_bits;
        return if negative || nan { 0 } else { magnitude.min(one) };
    }
    if how.relu && negative && !nan {
        return 0;
    }
    if how.satfinite && !nan && magnitude > format.max {
        return bits & format.sign() | format.max;
    }
    bits
}

/// Rounds numbers that are exact or rounded to odd, and writes them.
fn rounded(to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, values: &[f64; LANES]) {
    let plain = how.rounding == Rounding::Nearest && !how.sat && !how.relu && !how.satfinite;
    match to {
        Ty::F16 if plain => lanes.write(dst, &values.map(F16::narrow_wide)),
        Ty::Bf16 if plain => lanes.write(dst, &values.map(Bf16::narrow_wide)),
        _ => {
            let (format, how) = (format(to), *how);
            let shift = if to == Ty::Tf32 { 13 } else { 0 };
            let flushes = how.ftz && to == Ty::F32;
            let bits = values.map(|x| match finish(x, format, &how) << shift {
                bits if flushes => u64::from(flush(f32::from_bits(bits as u32)).to_bits()),
                bits => bits,
            });
            lanes.write(dst, &bits);
        }
    }
}

fn between_floats(from: Ty, to: Ty, how: &How, lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let mut values = floats(from, how.ftz, lanes, src);
    let mut how = *how;
    if how.integral {
        values = values.map(|x| integral(x, how.rounding));
        how.rounding = Rounding::Nearest;
    }
    if to == Ty::F32 && how.rounding == Rounding::Nearest {
        let (flushes, sat) = (how.ftz, how.sat);
        lanes.write(dst, &values.map(|x| super::float::finish(x as f32, flushes, sat)));
    } else {
        rounded(to, &how, lanes, dst, &values);
    }
}

fn elements(from: &Elements, to: &Target, lanes: &mut Lanes<'_>, dst: Reg) {
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

fn pack(bits: u32, signed: bool, lanes: &mut Lanes<'_>, dst: Reg, src: &[Src; 3]) {
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
