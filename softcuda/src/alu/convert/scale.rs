//! Pairs of scales, `.ue8m0x2`: powers of two, each as an exponent of eight bits with the bias of f32, of which
//! 255 is NaN. Of a number only the magnitude counts; what is below the least scale becomes that one.

use super::packed::Elements;
use crate::alu::lanes::Lanes;
use crate::alu::round::{Format, Rounding};
use crate::alu::suffix::{Suffixes, refuse};
use crate::ir::{LANES, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    To {
        from: Elements,
        /// To the next power of two, else to the one before.
        up: bool,
        satfinite: bool,
        dst: Reg,
    },
    /// To bfloat16, in which they are exact.
    From { src: Src, dst: Reg },
}

const NAN: u64 = 255;
const BIAS: u64 = 127;

pub(super) fn lower<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    mut s: Suffixes<'a>,
) -> Lowered<Scales> {
    let rounding = s.rounding();
    let satfinite = s.take("satfinite");
    let widens = i.parts.last() == Some(&"ue8m0x2");
    s.take("ue8m0x2");
    let (single, pair) = (s.take("f32"), s.take("bf16x2"));
    s.end(l, i)?;
    let up = match rounding {
        Some(Rounding::Nearest) if widens && pair && !single && !satfinite => {
            let [dst, src] = crate::lower::operands(i)?;
            return Ok(Scales::From { src: l.src(Ty::B16, src)?, dst: l.dst(Ty::B32, dst)? });
        }
        Some(Rounding::Up) if !widens => true,
        Some(Rounding::Zero) if !widens => false,
        _ => return refuse(l, i),
    };
    let (from, dst) = match i.operands.as_slice() {
        [dst, high, low] if single && !pair => {
            (Elements::Single(vec![l.src(Ty::F32, low)?, l.src(Ty::F32, high)?]), dst)
        }
        [dst, a] if pair && !single => {
            let src = l.src(Ty::B32, a)?;
            (Elements::Packed { src, format: Format::BF16, stride: 16 }, dst)
        }
        _ => return refuse(l, i),
    };
    Ok(Scales::To { from, up, satfinite, dst: l.dst(Ty::B16, dst)? })
}

pub(super) fn execute(this: &Scales, lanes: &mut Lanes<'_>) {
    match this {
        Scales::To { from, up, satfinite, dst } => {
            let [low, high] = [0, 1].map(|n| from.read(n, lanes));
            let one = |x| scale(x, *up, *satfinite);
            let pairs: [u64; LANES] = std::array::from_fn(|n| one(high[n]) << 8 | one(low[n]));
            lanes.write(*dst, &pairs);
        }
        Scales::From { src, dst } => {
            let pairs = lanes.read::<u64>(*src);
            lanes.write(*dst, &pairs.map(|pair| power(pair >> 8) << 16 | power(pair & 0xff)));
        }
    }
}

/// The scale next to a number. An infinity, and what is rounded up beyond the greatest scale, become that one or
/// NaN.
fn scale(x: f64, up: bool, satfinite: bool) -> u64 {
    if x.is_nan() {
        return NAN;
    }
    let bits = x.abs().to_bits();
    // f64 holds all sources as normal numbers.
    let (exponent, exact) = (bits >> 52, bits << 12 == 0);
    let beyond = exponent + u64::from(up && !exact);
    beyond.saturating_sub(1023 - BIAS).min(if satfinite { NAN - 1 } else { NAN })
}

/// A scale in bfloat16.
fn power(scale: u64) -> u64 {
    match scale {
        0 => 0x40,
        NAN => 0x7fff,
        _ => scale << 7,
    }
}
