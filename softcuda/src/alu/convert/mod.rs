//! `cvt`: between integers, between floating-point formats, and from one to the other; one element or
//! several packed into a register. Source: PTX ISA, section 9.7.9 (`cvt`, `cvt.pack`).

mod packed;
mod scalar;
mod scale;

use super::lanes::Lanes;
use super::round::Rounding;
use super::suffix::{Suffixes, refuse};
use crate::ir::{Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

use packed::{Elements, Target};
use scalar::{finish, range};
use scale::Scales;

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
    /// To or from pairs of powers of two.
    Scales(Scales),
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

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Convert> {
    let mut s = Suffixes::new(i);
    if s.take("pack") {
        return packed::lower_pack(l, i, s);
    }
    if i.parts.contains(&"ue8m0x2") {
        return Ok(Convert::Scales(scale::lower(l, i, s)?));
    }
    if i.parts.iter().any(|part| packed::packed(part).is_some()) {
        return packed::lower(l, i, s);
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
                // Between the two 16-bit formats, none means to nearest.
                None => {
                    let between = half && matches!(from, Ty::F16 | Ty::Bf16) && to != from;
                    (!loses || between) && (!how.integral || from == to)
                }
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

pub fn execute(this: &Convert, lanes: &mut Lanes<'_>) {
    match this {
        Convert::Scalar { from, to, how, dst, src } => {
            scalar::execute(*from, *to, how, lanes, *dst, *src);
        }
        Convert::Packed { from, to, dst } => packed::elements(from, to, lanes, *dst),
        Convert::Scales(scales) => scale::execute(scales, lanes),
        Convert::Pack { bits, signed, dst, src } => packed::pack(*bits, *signed, lanes, *dst, src),
    }
}
