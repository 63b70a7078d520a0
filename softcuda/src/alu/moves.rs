//! `mov`: copies, addresses, special registers, and vectors packed into a register or taken from one.

use super::lanes::{Lane, Lanes};
use super::suffix::{self, Suffixes, refuse};
use crate::ir::{LANES, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::{Instruction, Operand};

#[derive(Debug, Clone, PartialEq)]
pub enum Move {
    Predicate {
        dst: Reg,
        src: Src,
    },
    Narrow {
        dst: Reg,
        src: Src,
    },
    Wide {
        dst: Reg,
        src: Src,
    },
    /// 128 bits.
    Quad {
        dst: Reg,
        src: Reg,
    },
    /// Elements of so many bits each, the lowest first, into one register.
    Pack {
        dst: Reg,
        bits: u32,
        src: Vec<Src>,
    },
    /// The reverse.
    Unpack {
        dst: Vec<Reg>,
        bits: u32,
        src: Src,
    },
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Move> {
    let mut s = Suffixes::new(i);
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let plain = matches!(ty, Ty::Pred | Ty::B16 | Ty::B32 | Ty::B64 | Ty::B128 | Ty::F32 | Ty::F64)
        || matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64);
    if !plain {
        return refuse(l, i);
    }
    let [dst, src] = crate::lower::operands(i)?;
    match (dst, src) {
        (dst, Operand::Vector(elements)) => {
            let (bits, element) = element(l, i, ty, elements.len())?;
            let src =
                elements.iter().map(|e| suffix::src(l, element, e)).collect::<Lowered<_>>()?;
            Ok(Move::Pack { dst: suffix::dst(l, ty, dst)?, bits, src })
        }
        (Operand::Vector(elements), src) => {
            let (bits, element) = element(l, i, ty, elements.len())?;
            let dst =
                elements.iter().map(|e| suffix::dst(l, element, e)).collect::<Lowered<_>>()?;
            Ok(Move::Unpack { dst, bits, src: suffix::src(l, ty, src)? })
        }
        _ => {
            let (dst, src) = (suffix::dst(l, ty, dst)?, suffix::src(l, ty, src)?);
            match (ty.bits(), src) {
                (1, src) => Ok(Move::Predicate { dst, src }),
                (128, Src::Reg(src @ Reg::Q(_))) => Ok(Move::Quad { dst, src }),
                (128, _) => refuse(l, i),
                (64, src) => Ok(Move::Wide { dst, src }),
                (_, src) => Ok(Move::Narrow { dst, src }),
            }
        }
    }
}

/// Bits and type of each of `n` elements of a vector of type `ty`.
fn element(l: &Lowerer<'_>, i: &Instruction<'_>, ty: Ty, n: usize) -> Lowered<(u32, Ty)> {
    Ok(match (ty.bits(), n) {
        (16, 2) | (32, 4) => (8, Ty::B8),
        (32, 2) | (64, 4) => (16, Ty::B16),
        (64, 2) | (128, 4) => (32, Ty::B32),
        (128, 2) => (64, Ty::B64),
        _ => return refuse(l, i),
    })
}

pub fn execute(this: &Move, lanes: &mut Lanes<'_>) {
    match this {
        Move::Predicate { dst, src } => {
            let values = lanes.mask_of(*src);
            lanes.write_mask(*dst, values);
        }
        Move::Narrow { dst, src } => copy::<u32>(lanes, *dst, *src),
        Move::Wide { dst, src } => copy::<u64>(lanes, *dst, *src),
        Move::Quad { dst, src } => {
            let [low, high] = halves(*src).map(|half| lanes.read::<u64>(Src::Reg(half)));
            let [to_low, to_high] = halves(*dst);
            lanes.write(to_low, &low);
            lanes.write(to_high, &high);
        }
        Move::Pack { dst, bits, src } => pack(lanes, *dst, *bits, src),
        Move::Unpack { dst, bits, src } => unpack(lanes, dst, *bits, *src),
    }
}

fn copy<T: Lane>(lanes: &mut Lanes<'_>, dst: Reg, src: Src) {
    let values = lanes.read::<T>(src);
    lanes.write(dst, &values);
}

/// The two 64-bit slots of a 128-bit register.
fn halves(reg: Reg) -> [Reg; 2] {
    match reg {
        Reg::Q(slot) => [Reg::D(slot), Reg::D(slot + 1)],
        other => [other; 2],
    }
}

fn pack(lanes: &mut Lanes<'_>, dst: Reg, bits: u32, src: &[Src]) {
    let mut words = [[0u64; LANES]; 2];
    let ones = u64::MAX >> (64 - bits);
    for (n, src) in src.iter().enumerate() {
        let at = n as u32 * bits;
        let values = lanes.read::<u64>(*src);
        let word = &mut words[(at / 64) as usize];
        for lane in 0..LANES {
            word[lane] |= (values[lane] & ones) << (at % 64);
        }
    }
    match dst {
        Reg::Q(_) => {
            let [low, high] = halves(dst);
            lanes.write(low, &words[0]);
            lanes.write(high, &words[1]);
        }
        _ => lanes.write(dst, &words[0]),
    }
}

fn unpack(lanes: &mut Lanes<'_>, dst: &[Reg], bits: u32, src: Src) {
    let words = match src {
        Src::Reg(reg @ Reg::Q(_)) => halves(reg).map(|half| lanes.read::<u64>(Src::Reg(half))),
        src => [lanes.read::<u64>(src), [0; LANES]],
    };
    let ones = u64::MAX >> (64 - bits);
    for (n, dst) in dst.iter().enumerate() {
        let at = n as u32 * bits;
        let word = &words[(at / 64) as usize];
        lanes.write(*dst, &word.map(|word| word >> (at % 64) & ones));
    }
}
