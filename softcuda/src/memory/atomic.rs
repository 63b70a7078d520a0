//! `atom` and `red`.
//!
//! Lanes take their turns in order; a launch in which blocks see each other's results runs its blocks in a
//! fixed order (see [`super::Access::talks`]), so results repeat.

use super::access::{self, Located, generic};
use super::by_lane::{self, Part};
use super::elements::{Buffer, Target, WIDEST, put, take};
use super::global::Toucher;
use super::{Memory, strong, traffic};
use crate::alu::float::flush;
use crate::alu::{Format, Rounding};
use crate::counters::Counter;
use crate::fault::Fault;
use crate::ir::{LANES, Mask, Src, Ty};
use crate::machine::{Context, Executed, Flow};
use crate::registers::lanes;

#[derive(Debug, Clone, PartialEq)]
pub struct Atomic {
    pub at: Memory,
    pub op: Operation,
    pub ty: Ty,
    /// Where the old values go; empty if nobody asks.
    pub old: Vec<Target>,
    pub operands: Vec<Src>,
    /// The value to swap in, of `cas`.
    pub swap: Option<Src>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Add,
    Inc,
    Dec,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

impl Atomic {
    /// True if the order in which blocks come to it can be seen.
    pub fn talks(&self) -> bool {
        use Operation::{Add, And, Max, Min, Or, Xor};
        let commutes = matches!(self.op, Add | Min | Max | And | Or | Xor) && !self.ty.float();
        self.at.may_be_global() && (!self.old.is_empty() || !commutes)
    }

    fn width(&self) -> usize {
        self.ty.bytes() as usize
    }

    /// What one lane's memory holds afterwards.
    fn next(&self, old: &[u8], operand: &[u8], swap: &[u8], global: bool) -> [u8; WIDEST] {
        let mut new = [0; WIDEST];
        // Elements of packed types are computed on their own.
        let width = if self.ty.bits() == 32 && packed(self.ty) { 2 } else { self.width() };
        for at in (0..old.len()).step_by(width) {
            let part = |bytes: &[u8]| {
                let mut wide = [0; 16];
                wide[..width].copy_from_slice(&bytes[at..at + width]);
                u128::from_le_bytes(wide)
            };
            let value = self.element(part(old), part(operand), part(swap), global);
            new[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        new
    }

    fn element(&self, old: u128, operand: u128, swap: u128, global: bool) -> u128 {
        match self.op {
            Operation::Exchange => return operand,
            Operation::CompareAndSwap => return if old == operand { swap } else { old },
            Operation::And => return old & operand,
            Operation::Or => return old | operand,
            Operation::Xor => return old ^ operand,
            _ => {}
        }
        match self.ty {
            Ty::F32 => {
                let number = |bits: u128| f32::from_bits(bits as u32);
                let (a, b) = (number(old), number(operand));
                let sum = if global { flush(flush(a) + flush(b)) } else { a + b };
                u128::from(if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() })
            }
            Ty::F64 => {
                let number = |bits: u128| f64::from_bits(bits as u64);
                let sum = number(old) + number(operand);
                u128::from(if sum.is_nan() { 0x7ff8_0000_0000_0000 } else { sum.to_bits() })
            }
            Ty::F16 | Ty::F16x2 => self.half(Format::F16, old, operand),
            Ty::Bf16 | Ty::Bf16x2 => self.half(Format::BF16, old, operand),
            Ty::S32 => self.signed(i128::from(old as i32), i128::from(operand as i32)),
            Ty::S64 => self.signed(i128::from(old as i64), i128::from(operand as i64)),
            _ => self.unsigned(old, operand),
        }
    }

    fn signed(&self, old: i128, operand: i128) -> u128 {
        (match self.op {
            Operation::Min => old.min(operand),
            Operation::Max => old.max(operand),
            _ => old + operand,
        }) as u128
    }

    fn unsigned(&self, old: u128, operand: u128) -> u128 {
        match self.op {
            Operation::Min => old.min(operand),
            Operation::Max => old.max(operand),
            Operation::Inc if old >= operand => 0,
            Operation::Inc => old + 1,
            Operation::Dec if old == 0 || old > operand => operand,
            Operation::Dec => old - 1,
            // Cut to its width when stored.
            _ => old.wrapping_add(operand),
        }
    }

    /// Of a sum in f64 one rounding is left: it has more than twice the bits.
    fn half(&self, format: Format, old: u128, operand: u128) -> u128 {
        let (a, b) = (format.widen(old as u64), format.widen(operand as u64));
        let value = match self.op {
            Operation::Add => a + b,
            _ if a.is_nan() => b,
            _ if b.is_nan() => a,
            // −0 is less than +0.
            Operation::Min if a < b || a == b && a.is_sign_negative() => a,
            Operation::Max if a > b || a == b && b.is_sign_negative() => a,
            _ => b,
        };
        u128::from(format.narrow(value, Rounding::Nearest))
    }
}

fn packed(ty: Ty) -> bool {
    matches!(ty, Ty::F16x2 | Ty::Bf16x2)
}

/// What the lanes bring and what they find.
struct Exchange {
    bytes: usize,
    operands: Buffer,
    swaps: Buffer,
    old: Buffer,
    /// Lanes that changed memory.
    changed: Mask,
}

pub fn execute(op: &Atomic, ctx: &mut Context<'_>, mask: Mask) -> Executed {
    let addresses = by_lane::addresses(ctx, &op.at, mask)?;
    let width = op.width();
    let empty = [[0; WIDEST]; LANES];
    let bytes = width * op.operands.len();
    let mut all = Exchange { bytes, operands: empty, swaps: empty, old: empty, changed: 0 };
    for (index, &source) in op.operands.iter().enumerate() {
        take(ctx, source, width, &mut all.operands, index * width);
    }
    if let Some(source) = op.swap {
        take(ctx, source, width, &mut all.swaps, 0);
    }
    ctx.count(Counter::Atomics, u64::from(mask.count_ones()));
    strong::loads(&op.at, ctx, &addresses, mask);
    for (part, mask) in by_lane::parts(op.at.space, &addresses, mask) {
        match part {
            _ if mask == 0 => {}
            Part::Global => global(op, ctx, &addresses, mask, &mut all)?,
            Part::Shared => shared(op, ctx, &addresses, mask, &mut all)?,
            Part::Local | Part::Parameters => {
                let what = "an atomic operation outside global and shared memory";
                return Err(by_lane::misplaced(what, &addresses, mask));
            }
        }
    }
    strong::stores(&op.at, ctx, &addresses, all.changed, true);
    if all.changed == 0 {
        ctx.warp.polls += 1;
    } else {
        ctx.cluster.changes += 1;
    }
    for (index, target) in op.old.iter().enumerate() {
        put(ctx, *target, width, mask, &all.old, index * width);
    }
    Ok(Flow::Next)
}

fn global(
    op: &Atomic,
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    all: &mut Exchange,
) -> Result<(), Fault> {
    let Exchange { bytes, operands, swaps, old, changed } = all;
    traffic::global(ctx, addresses, mask, *bytes);
    let toucher = Toucher::new(ctx, op.at.global_kind());
    toucher.each(addresses, mask, *bytes, |toucher, held, offsets, mask| {
        for lane in lanes(mask) {
            let offset = offsets[lane] as usize;
            let old = &mut old[lane][..*bytes];
            toucher.initialised(held, offset, lane, *bytes)?;
            held.words.read(offset, old);
            let new = op.next(old, &operands[lane], &swaps[lane], true);
            let changes = new[..*bytes] != *old;
            toucher.touch(held, offset, lane, *bytes, changes, changes)?;
            if changes {
                held.words.write(offset, &new[..*bytes]);
                *changed |= 1 << lane;
            }
        }
        Ok(())
    })
}

fn shared(
    op: &Atomic,
    ctx: &mut Context<'_>,
    addresses: &[u64; LANES],
    mask: Mask,
    all: &mut Exchange,
) -> Result<(), Fault> {
    let Exchange { bytes, operands, swaps, old, changed } = all;
    traffic::shared(ctx, addresses, mask, *bytes);
    let unit = ctx.unit();
    for lane in lanes(mask) {
        let (rank, addr) = by_lane::shared_place(ctx, op.at.space, addresses[lane]);
        let old = &mut old[lane][..*bytes];
        let next = |old: &[u8]| op.next(old, &operands[lane], &swaps[lane], false);
        let one = access::with_shared(
            ctx,
            (unit, rank, lane, addr, op.at.kind()),
            *bytes,
            |shared, by| shared.modify(addr, old, lane, by, next),
        )?;
        *changed |= u32::from(one) << lane;
    }
    Ok(())
}

/// Adds to a number in global or shared memory as the asynchronous proxy does for `red.async` and bulk
/// reductions: atomically, for one lane.
pub fn reduce(
    ctx: &mut Context<'_>,
    lane: usize,
    address: u64,
    op: Operation,
    ty: Ty,
    operand: &[u8],
) -> Result<(), Fault> {
    let at = Memory {
        space: crate::ir::Space::Generic,
        addr: crate::ir::Addr { base: Src::Imm(address), offset: 0 },
        semantics: super::Semantics::Relaxed,
        scope: super::Scope::System,
    };
    let count = operand.len() / ty.bytes() as usize;
    let op = Atomic { at, op, ty, old: Vec::new(), operands: vec![Src::Imm(0); count], swap: None };
    let empty = [[0; WIDEST]; LANES];
    let bytes = operand.len();
    let mut all = Exchange { bytes, operands: empty, swaps: empty, old: empty, changed: 0 };
    all.operands[lane][..bytes].copy_from_slice(operand);
    let addresses = [address; LANES];
    ctx.cluster.changes += 1;
    match generic(ctx, address) {
        Located::Shared { .. } => shared(&op, ctx, &addresses, 1 << lane, &mut all),
        _ => global(&op, ctx, &addresses, 1 << lane, &mut all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Addr, Space};
    use crate::memory::{Scope, Semantics};

    fn next(op: Operation, ty: Ty, old: u64, operand: u64) -> u64 {
        let addr = Addr { base: Src::Imm(0), offset: 0 };
        let (semantics, scope) = (Semantics::Relaxed, Scope::Gpu);
        let at = Memory { space: Space::Global, addr, semantics, scope };
        let atomic = Atomic { at, op, ty, old: Vec::new(), operands: Vec::new(), swap: None };
        let bytes = |value: u64| value.to_le_bytes();
        let width = ty.bytes() as usize;
        let new = atomic.next(&bytes(old)[..width], &bytes(operand), &bytes(77), true);
        u64::from_le_bytes(new[..8].try_into().expect("eight"))
    }

    #[test]
    fn integers() {
        use Operation::*;
        let minus = |n: i64| n as u64 & 0xffff_ffff;
        for (op, ty, old, operand, expected) in [
            (Add, Ty::U32, 0xffff_ffff, 2, 1),
            (Add, Ty::S32, minus(-3), 2, minus(-1)),
            (Add, Ty::U64, u64::MAX, 2, 1),
            (Inc, Ty::U32, 4, 5, 5),
            (Inc, Ty::U32, 5, 5, 0),
            (Inc, Ty::U32, 9, 5, 0),
            (Dec, Ty::U32, 4, 5, 3),
            (Dec, Ty::U32, 0, 5, 5),
            (Dec, Ty::U32, 9, 5, 5),
            (Min, Ty::S32, minus(-3), 2, minus(-3)),
            (Min, Ty::U32, minus(-3), 2, 2),
            (Max, Ty::S64, -3i64 as u64, 2, 2),
            (Max, Ty::U64, -3i64 as u64, 2, -3i64 as u64),
            (And, Ty::B32, 0b1100, 0b1010, 0b1000),
            (Or, Ty::B32, 0b1100, 0b1010, 0b1110),
            (Xor, Ty::B64, 0b1100, 0b1010, 0b0110),
            (Exchange, Ty::B64, 1, 2, 2),
            (CompareAndSwap, Ty::B32, 5, 5, 77),
            (CompareAndSwap, Ty::B16, 5, 6, 5),
        ] {
            assert_eq!(next(op, ty, old, operand), expected, "{op:?} {ty:?} {old} {operand}");
        }
    }

    #[test]
    fn floats() {
        use Operation::*;
        let f = |x: f32| u64::from(x.to_bits());
        assert_eq!(next(Add, Ty::F32, f(1.5), f(2.25)), f(3.75));
        // Global f32 sums flush subnormals; f64 and halves don't.
        assert_eq!(next(Add, Ty::F32, f(1e-39), f(-0.0)), 0);
        assert_eq!(next(Add, Ty::F32, f(f32::INFINITY), f(f32::NEG_INFINITY)), 0x7fff_ffff);
        let d = |x: f64| x.to_bits();
        assert_eq!(next(Add, Ty::F64, d(5e-324), d(5e-324)), 2);
        // f16: 1 + 2⁻¹¹ is a tie, to even; the halves don't carry into each other.
        assert_eq!(next(Add, Ty::F16x2, 0x3c00_3c00, 0x1000_1400), 0x3c00_3c01);
        assert_eq!(next(Add, Ty::F16, 1, 1), 2);
        assert_eq!(next(Add, Ty::Bf16, 0x3f80, 0x3f80), 0x4000);
        assert_eq!(next(Min, Ty::F16, 0x7e00, 0xbc00), 0xbc00);
        assert_eq!(next(Max, Ty::F16, 0x8000, 0x0000), 0x0000);
        assert_eq!(next(Min, Ty::F16, 0x0000, 0x8000), 0x8000);
    }
}
