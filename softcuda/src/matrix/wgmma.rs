//! `wgmma`: products of 64 rows by four warps. Each warp computes its own 16 rows, whose fragments are those of
//! `mma`.
//!
//! Operands in shared memory are read when the instruction is issued, by a unit that stands for the
//! warp's unfinished products: whoever writes them must be ordered after `wgmma.wait_group`. Results are
//! in the registers at once; hardware puts them there by the wait.

use std::collections::VecDeque;

use super::descriptor::{CHUNK, Descriptor};
use super::element::Element;
use super::fragment::{COLUMNS, place_a, place_b};
use super::mma::{
    Accumulator, Bits, load_sums, shape, sources, store_integers, store_sums, targets, words,
};
use super::product::{Half, multiply, multiply_bits};
use crate::fault::{Check, Fault};
use crate::ir::{LANES, Mask, PredSrc, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::machine::Context;
use crate::memory::{Clock, shared_read_async};
use crate::ptx::ast::{Instruction, Operand};

/// Bytes of `k`, whatever the type.
const DEPTH: usize = 32;
/// Rows of a warp.
const ROWS: usize = 16;

#[derive(Debug, Clone, PartialEq)]
pub struct Wgmma {
    pub n: usize,
    pub a: Element,
    pub b: Element,
    pub d: Accumulator,
    pub saturate: bool,
    pub d_regs: Vec<Reg>,
    pub a_from: From,
    /// Descriptor, and whether rows instead of `k` lie contiguous.
    pub b_from: (Src, bool),
    /// Whether D is added to.
    pub scale_d: Scale,
    pub negate: bool,
}

/// Where A comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum From {
    Registers(Vec<Src>),
    Shared(Src, bool),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    Constant(bool),
    Predicate(PredSrc),
}

/// The products a warp has issued.
#[derive(Debug, Default)]
pub struct Groups {
    unit: Option<usize>,
    open: Clock,
    committed: VecDeque<Clock>,
}

impl Wgmma {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let unknown = || l.error(format!("unknown form {}", i.parts.join(".")));
        let (mut dims, mut types) = (None, Vec::new());
        let (mut saturate, mut and) = (false, false);
        for &part in &i.parts[2..] {
            match part {
                "sync" | "aligned" | "popc" => {}
                "satfinite" => saturate = true,
                "and" => and = true,
                _ => match shape(part) {
                    Some(found) => dims = Some(found),
                    None => types.push(part),
                },
            }
        }
        let ([d, a, b], Some((64, n, k))) = (types.as_slice(), dims) else { return unknown() };
        let types = (Accumulator::parse(d), Element::parse(a), Element::parse(b));
        let (Some(d), Some(a), Some(b)) = types else { return unknown() };
        if !supported(d, a, b, n) || k * a.bits() as usize != 8 * DEPTH {
            return unknown();
        }
        if and != (a == Element::B1) || saturate && !a.integer() {
            return unknown();
        }
        let [to, a_operand, b_operand, scale_d, rest @ ..] = i.operands.as_slice() else {
            return l.error("operands are missing");
        };
        let numbers: Option<Vec<i64>> = rest
            .iter()
            .map(|operand| match operand {
                Operand::Int(bits) => Some(*bits as i64),
                _ => None,
            })
            .collect();
        let in_registers = matches!(a_operand, Operand::Vector(_));
        let halves = matches!(a, Element::F16 | Element::Bf16);
        let (scales, transposed) = match (numbers.as_deref(), halves, in_registers) {
            (Some([]), false, _) if d == Accumulator::S32 => ([1, 1], [0, 0]),
            (Some(&[x, y]), false, _) if d != Accumulator::S32 => ([x, y], [0, 0]),
            (Some(&[x, y, b]), true, true) => ([x, y], [0, b]),
            (Some(&[x, y, a, b]), true, false) => ([x, y], [a, b]),
            _ => return l.error("expected other scales and transpositions"),
        };
        if scales.iter().any(|s| s.abs() != 1) || transposed.iter().any(|t| !(0..=1).contains(t)) {
            return l.error("a scale is 1 or -1, a transposition 0 or 1");
        }
        let scale_d = match scale_d {
            Operand::Int(bits) => Scale::Constant(*bits != 0),
            operand => Scale::Predicate(l.predicate(operand)?),
        };
        let a_from = match in_registers {
            true => From::Registers(sources(l, Ty::B32, a_operand, 4)?),
            false => From::Shared(l.src(Ty::B64, a_operand)?, transposed[0] == 1),
        };
        let values = n * ROWS / (LANES * d.per_register());
        Ok(Self {
            n,
            a,
            b,
            d,
            saturate,
            d_regs: targets(l, d.register(), to, values)?,
            a_from,
            b_from: (l.src(Ty::B64, b_operand)?, transposed[1] == 1),
            scale_d,
            negate: scales[0] != scales[1],
        })
    }

    /// Multiply-adds of a warp's share.
    pub fn operations(&self) -> u64 {
        (ROWS * self.n * DEPTH * 8) as u64 / u64::from(self.a.bits())
    }

    pub fn execute(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let warp = ctx.warp.place.warp as usize;
        if warp / 4 * 4 + 4 > ctx.warp.place.warps as usize {
            let what = "wgmma needs four warps, the first a multiple of four";
            return Err(Fault::new(Check::InactiveLane, what));
        }
        let unit = match ctx.warp.asyncs.products.unit {
            Some(unit) => unit,
            None => ctx.cluster.order.add_unit(),
        };
        ctx.warp.asyncs.products.unit = Some(unit);
        let mut a = match &self.a_from {
            From::Registers(regs) => words(regs, &ctx.warp.regs, &ctx.warp.place),
            From::Shared(descriptor, transposed) => {
                let first = warp % 4 * ROWS;
                let rows = operand(ctx, unit, *descriptor, *transposed, first..first + ROWS)?;
                let place = |lane, r| place_a(ROWS, 4, lane, r);
                (0..4).map(|r| fragment(&rows, |lane| place(lane, r))).collect()
            }
        };
        if self.negate {
            let signs = match self.a.per_word() {
                1 => 0x8000_0000,
                2 => 0x8000_8000,
                _ => 0x8080_8080,
            };
            a.iter_mut().flatten().for_each(|word| *word ^= signs);
        }
        let (descriptor, transposed) = self.b_from;
        let columns = operand(ctx, unit, descriptor, transposed, 0..self.n)?;
        let clock = ctx.cluster.order.release(unit);
        ctx.warp.asyncs.products.open.join(&clock);
        self.multiply(ctx, &a, &columns)
    }

    fn multiply(
        &self,
        ctx: &mut Context<'_>,
        a: &[[u32; LANES]],
        columns: &[[u8; DEPTH]],
    ) -> Result<(), Fault> {
        let adds = match self.scale_d {
            Scale::Constant(adds) => adds,
            Scale::Predicate(predicate) => match ctx.warp.regs.predicate(predicate) {
                0 => false,
                Mask::MAX => true,
                _ => {
                    let what = "the lanes of wgmma disagree about scale-d";
                    return Err(Fault::new(Check::Trap, what));
                }
            },
        };
        let before: Vec<Src> = match adds {
            true => self.d_regs.iter().map(|&reg| Src::Reg(reg)).collect(),
            false => vec![Src::Imm(0); self.d_regs.len()],
        };
        let (regs, place) = (&mut ctx.warp.regs, &ctx.warp.place);
        let mut sums: Vec<Half<f32>> = vec![[[0.0; COLUMNS]; 8]; 2 * self.n / COLUMNS];
        load_sums(self.d, &before, regs, place, &mut sums);
        for (columns, sums) in columns.chunks(COLUMNS).zip(sums.chunks_mut(2)) {
            let b: [[u32; LANES]; 2] = std::array::from_fn(|r| {
                fragment(columns, |lane| {
                    let (byte, column) = place_b(4, lane, r);
                    (column, byte)
                })
            });
            match self.a {
                Element::B1 => multiply_bits(Bits::And, a, &b, sums),
                _ => multiply((self.a, self.b), a, &b, sums),
            }
        }
        if self.d == Accumulator::S32 {
            store_integers(&self.d_regs, &before, self.saturate, regs, place, &sums);
        } else {
            store_sums(self.d, &self.d_regs, regs, &sums);
        }
        Ok(())
    }
}

/// Types that go together, and the widths of their products.
fn supported(d: Accumulator, a: Element, b: Element, n: usize) -> bool {
    let pairs = a == b || a.fp8() && b.fp8() || a.integer() && b.integer();
    let sums: &[Accumulator] = match a {
        Element::F16 | Element::E4m3 | Element::E5m2 => &[Accumulator::F16, Accumulator::F32],
        Element::Bf16 | Element::Tf32 => &[Accumulator::F32],
        Element::S8 | Element::U8 | Element::B1 => &[Accumulator::S32],
        Element::S4 | Element::U4 | Element::F64 => &[],
    };
    // Integers come in fewer widths.
    let step = if d == Accumulator::S32 && n > 32 { 16 } else { 8 };
    pairs && sums.contains(&d) && (8..=256).contains(&n) && n.is_multiple_of(step)
}

/// Rows of an operand in shared memory, each 32 bytes of `k`.
fn operand(
    ctx: &mut Context<'_>,
    unit: usize,
    descriptor: Src,
    transposed: bool,
    rows: std::ops::Range<usize>,
) -> Result<Vec<[u8; DEPTH]>, Fault> {
    let bits = ctx.warp.regs.read64(descriptor, &ctx.warp.place);
    if let Some(lane) = bits.iter().position(|&other| other != bits[0]) {
        let what = "the lanes of wgmma give different descriptors";
        return Err(Fault::new(Check::Trap, what).lane(lane));
    }
    let descriptor = Descriptor::decode(bits[0])?;
    let rank = ctx.rank;
    let mut read = |addr: u32| -> Result<[u8; CHUNK], Fault> {
        let mut chunk = [0; CHUNK];
        shared_read_async(ctx, rank, 0, unit, addr, &mut chunk)?;
        Ok(chunk)
    };
    let first = rows.start;
    let mut image = vec![[0; DEPTH]; rows.len()];
    if !transposed {
        for (row, bytes) in image.iter_mut().enumerate() {
            for (chunk, bytes) in bytes.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
                *bytes = read(descriptor.along_k(first + row, chunk))?;
            }
        }
        return Ok(image);
    }
    for (chunk, rows) in image.chunks_mut(8).enumerate() {
        for k in 0..DEPTH / 2 {
            let elements = read(descriptor.along_rows(first / 8 + chunk, k))?;
            for (row, element) in rows.iter_mut().zip(elements.as_chunks::<2>().0) {
                row[2 * k..2 * k + 2].copy_from_slice(element);
            }
        }
    }
    Ok(image)
}

/// A register out of rows of bytes; `place` gives a lane's row and first byte.
fn fragment(rows: &[[u8; DEPTH]], place: impl Fn(usize) -> (usize, usize)) -> [u32; LANES] {
    std::array::from_fn(|lane| {
        let (row, byte) = place(lane);
        let bytes = rows[row].as_chunks::<4>().0[byte / 4];
        u32::from_le_bytes(bytes)
    })
}

/// `wgmma.commit_group`.
pub fn commit(ctx: &mut Context<'_>) {
    let groups = &mut ctx.warp.asyncs.products;
    groups.committed.push_back(std::mem::take(&mut groups.open));
}

/// `wgmma.wait_group`: the operands of finished groups may be written from now on.
pub fn wait(ctx: &mut Context<'_>, allowed: u32) {
    let unit = ctx.unit();
    while ctx.warp.asyncs.products.committed.len() > allowed as usize {
        let clock = ctx.warp.asyncs.products.committed.pop_front().unwrap_or_default();
        ctx.cluster.order.acquire(unit, &clock);
    }
}
