//! Extended-precision integer arithmetic: the carry flag between `add.cc`, `addc`, `madc` and so on. The flag
//! lies in a predicate slot of the kernel's own. Source: PTX ISA, section 9.7.2.

use super::lanes::{Lanes, Operands};
use super::suffix::{Suffixes, operands, refuse};
use crate::ir::{LANES, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::ptx::ast::Instruction;

#[derive(Debug, Clone, PartialEq)]
pub struct Carry {
    pub op: Op,
    pub ty: Ty,
    /// Slot of the flag.
    pub flag: u32,
    pub carry_in: bool,
    pub carry_out: bool,
    pub operands: Operands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    /// The low or the high half of the product, plus the third source.
    MadLo,
    MadHi,
}

/// True for the instructions that this module handles.
pub fn is_carry(i: &Instruction<'_>) -> bool {
    matches!(i.parts[0], "addc" | "subc" | "madc") || i.parts.contains(&"cc")
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Carry> {
    let mut s = Suffixes::new(i);
    let carry_out = s.take("cc");
    let (low, high) = (s.take("lo"), s.take("hi"));
    let ty = s.ty(l)?;
    s.end(l, i)?;
    let op = match (i.parts[0], low, high) {
        ("add" | "addc", false, false) => Op::Add,
        ("sub" | "subc", false, false) => Op::Sub,
        ("mad" | "madc", true, false) => Op::MadLo,
        ("mad" | "madc", false, true) => Op::MadHi,
        _ => return refuse(l, i),
    };
    let carry_in = i.parts[0].ends_with('c');
    // The last of a chain may have 16 bits: ptxas takes that, though the PTX ISA doesn't name it.
    let short = matches!(ty, Ty::U16 | Ty::S16) && carry_in && !carry_out && op != Op::MadHi;
    if !(short || matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64)) {
        return refuse(l, i);
    }
    let sources = if matches!(op, Op::MadLo | Op::MadHi) { 3 } else { 2 };
    let operands = operands(l, i, ty, &[ty; 3][..sources])?;
    Ok(Carry { op, ty, flag: l.carry_flag()?, carry_in, carry_out, operands })
}

pub fn execute(this: &Carry, lanes: &mut Lanes<'_>) {
    let bits = this.ty.bits();
    let ones = u128::MAX >> (128 - bits);
    let [a, b, c] = this.operands.src.map(|src| lanes.read::<u64>(src));
    let flags = if this.carry_in { lanes.regs.p[this.flag as usize] } else { 0 };
    let unsigned = |value: u64| u128::from(value) & ones;
    let signed = |value: u64| i128::from((value << (64 - bits)) as i64 >> (64 - bits));
    let mut out = 0;
    let values: [u64; LANES] = std::array::from_fn(|n| {
        let flag = u128::from(flags >> n & 1);
        let total = match this.op {
            Op::Add => unsigned(a[n]) + unsigned(b[n]) + flag,
            // A borrow shows above the word.
            Op::Sub => unsigned(a[n]).wrapping_sub(unsigned(b[n])).wrapping_sub(flag),
            Op::MadLo => ((unsigned(a[n]) * unsigned(b[n])) & ones) + unsigned(c[n]) + flag,
            Op::MadHi => {
                let product = if this.ty.signed() {
                    (signed(a[n]) * signed(b[n])) as u128
                } else {
                    unsigned(a[n]) * unsigned(b[n])
                };
                (product >> bits & ones) + unsigned(c[n]) + flag
            }
        };
        out |= u32::from(total & !ones != 0) << n;
        (total & ones) as u64
    });
    lanes.write(this.operands.dst, &values);
    if this.carry_out {
        lanes.regs.write_predicate(this.flag, lanes.mask, out);
    }
}
