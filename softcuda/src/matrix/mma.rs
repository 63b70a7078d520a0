//! `mma.sync`: a warp's matrix product out of registers.

use super::element::{Element, each, from_f16, to_f16};
use super::fragment::{COLUMNS, gather, scatter};
use super::product::{Half, canonical, multiply, multiply_bits, multiply_f64};
use crate::ir::{LANES, Mask, Reg, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::ptx::ast::{Instruction, Operand};
use crate::registers::{Place, Registers};

/// The type of C and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulator {
    F16,
    F32,
    S32,
    F64,
}

impl Accumulator {
    pub fn parse(part: &str) -> Option<Accumulator> {
        Some(match part {
            "f16" => Accumulator::F16,
            "f32" => Accumulator::F32,
            "s32" => Accumulator::S32,
            "f64" => Accumulator::F64,
            _ => return None,
        })
    }

    /// How its registers are declared; `f16` come in pairs.
    pub fn register(self) -> Ty {
        match self {
            Accumulator::F16 => Ty::B32,
            Accumulator::F32 => Ty::F32,
            Accumulator::S32 => Ty::S32,
            Accumulator::F64 => Ty::F64,
        }
    }

    /// Values in a register.
    pub fn per_register(self) -> usize {
        if self == Accumulator::F16 { 2 } else { 1 }
    }
}

/// Groups of eight rows and columns in the largest product.
const MAX_HALVES: usize = 4;
/// Registers of the largest factor.
const MAX_WORDS: usize = 8;

/// How two bits are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    Xor,
    And,
}

/// `d = a × b + c`. A product of more than 16 rows or 8 columns (`wmma`) is one of tiles: their fragments
/// follow each other, those of D by row of tiles.
#[derive(Debug, Clone, PartialEq)]
pub struct Mma {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Element,
    pub b: Element,
    pub c: Accumulator,
    pub d: Accumulator,
    pub saturate: bool,
    pub bits: Bits,
    pub d_regs: Vec<Reg>,
    pub a_regs: Vec<Src>,
    pub b_regs: Vec<Src>,
    pub c_regs: Vec<Src>,
}

/// `m16n8k16` → `(16, 8, 16)`.
pub fn shape(part: &str) -> Option<(usize, usize, usize)> {
    let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

/// The shapes of each type, and the accumulators it goes with.
fn supported(a: Element, b: Element, c: Accumulator, (m, n, k): (usize, usize, usize)) -> bool {
    use Accumulator::{F16, F32, F64, S32};
    let pairs = a == b || a.fp8() && b.fp8() || a.integer() && b.integer() && a.bits() == b.bits();
    let (accumulators, small, large): (&[_], &[usize], &[usize]) = match a {
        Element::F16 => (&[F16, F32], &[], &[8, 16]),
        Element::Bf16 => (&[F32], &[], &[8, 16]),
        Element::Tf32 => (&[F32], &[], &[4, 8]),
        Element::E4m3 | Element::E5m2 => (&[F16, F32], &[], &[16, 32]),
        Element::S8 | Element::U8 => (&[S32], &[16], &[16, 32]),
        Element::S4 | Element::U4 => (&[S32], &[32], &[32, 64]),
        Element::B1 => (&[S32], &[128], &[128, 256]),
        Element::F64 => (&[F64], &[4], &[4, 8, 16]),
    };
    let depths = if m == 8 { small } else { large };
    pairs && accumulators.contains(&c) && n == 8 && (m == 8 || m == 16) && depths.contains(&k)
}

pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Mma> {
    let mut dims = None;
    let (mut types, mut saturate, mut bits) = (Vec::new(), false, None);
    let mut layouts = Vec::new();
    for &part in &i.parts[1..] {
        match part {
            "sync" | "aligned" | "popc" => {}
            "row" | "col" => layouts.push(part),
            "satfinite" => saturate = true,
            "xor" => bits = Some(Bits::Xor),
            "and" => bits = Some(Bits::And),
            _ => match shape(part) {
                Some(found) => dims = Some(found),
                None => types.push(part),
            },
        }
    }
    let unknown = || l.error(format!("unknown form {}", i.parts.join(".")));
    let ([d, a, b, c], Some(dims)) = (types.as_slice(), dims) else { return unknown() };
    let (Some(a), Some(b)) = (Element::parse(a), Element::parse(b)) else { return unknown() };
    let Some(accumulator) = Accumulator::parse(c).filter(|_| d == c) else { return unknown() };
    let odd = bits.is_some() != (a == Element::B1) || saturate && !a.integer();
    if odd || layouts != ["row", "col"] || !supported(a, b, accumulator, dims) {
        return unknown();
    }
    let (m, n, k) = dims;
    let words = |element: Element, rows: usize| rows * k / (LANES * element.per_word());
    let values = m * n / (LANES * accumulator.per_register());
    let factor = if a == Element::F64 { Ty::F64 } else { Ty::B32 };
    let [d_operand, a_operand, b_operand, c_operand] = operands(i)?;
    Ok(Mma {
        m,
        n,
        k,
        a,
        b,
        c: accumulator,
        d: accumulator,
        saturate,
        bits: bits.unwrap_or(Bits::And),
        d_regs: targets(l, accumulator.register(), d_operand, values)?,
        a_regs: sources(l, factor, a_operand, words(a, m))?,
        b_regs: sources(l, factor, b_operand, words(b, n))?,
        c_regs: sources(l, accumulator.register(), c_operand, values)?,
    })
}

/// A vector of exactly `count` sources.
pub fn sources<'a>(
    l: &mut Lowerer<'a>,
    ty: Ty,
    operand: &'a Operand<'a>,
    count: usize,
) -> Lowered<Vec<Src>> {
    let elements = l.vector(operand);
    if elements.len() != count {
        return l.error(format!("expected {count} registers, found {}", elements.len()));
    }
    elements.iter().map(|element| l.src(ty, element)).collect()
}

/// A vector of exactly `count` registers to write.
pub fn targets<'a>(
    l: &mut Lowerer<'a>,
    ty: Ty,
    operand: &'a Operand<'a>,
    count: usize,
) -> Lowered<Vec<Reg>> {
    let elements = l.vector(operand);
    if elements.len() != count {
        return l.error(format!("expected {count} registers, found {}", elements.len()));
    }
    elements.iter().map(|element| l.dst(ty, element)).collect()
}

impl Mma {
    /// Multiply-adds of one instruction.
    pub fn operations(&self) -> u64 {
        (self.m * self.n * self.k) as u64
    }

    pub fn execute(&self, regs: &mut Registers, place: &Place) {
        if self.a == Element::F64 {
            return self.double(regs, place);
        }
        let (mut a, mut b) = ([[0; LANES]; MAX_WORDS], [[0; LANES]; MAX_WORDS]);
        let (a, b) = (&mut a[..self.a_regs.len()], &mut b[..self.b_regs.len()]);
        for (words, sources) in [(&mut *a, &self.a_regs), (&mut *b, &self.b_regs)] {
            for (words, &src) in words.iter_mut().zip(sources) {
                *words = regs.read32(src, place);
            }
        }
        let mut sums = [[[0.0; COLUMNS]; 8]; MAX_HALVES];
        let sums = &mut sums[..self.m * self.n / 64];
        load_sums(self.c, &self.c_regs, regs, place, sums);
        let halves = if self.m == 8 { 1 } else { 2 };
        let (rows, columns) = (self.m / (8 * halves), self.n / COLUMNS);
        let mut tiles = sums.chunks_mut(halves);
        for a in a.chunks(a.len() / rows) {
            for (b, sums) in b.chunks(b.len() / columns).zip(&mut tiles) {
                match self.a {
                    Element::B1 => multiply_bits(self.bits, a, b, sums),
                    _ => multiply((self.a, self.b), a, b, sums),
                }
            }
        }
        if self.d == Accumulator::S32 {
            store_integers(&self.d_regs, &self.c_regs, self.saturate, regs, place, sums);
        } else {
            store_sums(self.d, &self.d_regs, regs, sums);
        }
    }

    /// Of 64 bits there are no larger tiles.
    fn double(&self, regs: &mut Registers, place: &Place) {
        let read = |src: &Src| regs.read64(*src, place);
        let a: Vec<_> = self.a_regs.iter().map(read).collect();
        let b: Vec<_> = self.b_regs.iter().map(read).collect();
        let mut sums = [[[0.0; COLUMNS]; 8]; 2];
        let sums = &mut sums[..self.m / 8];
        for (pair, rows) in self.c_regs.as_chunks::<2>().0.iter().zip(&mut *sums) {
            scatter(rows, &pair.map(|src| each(&read(&src), f64::from_bits)));
        }
        multiply_f64(&a, &b, sums);
        for (pair, rows) in self.d_regs.as_chunks::<2>().0.iter().zip(&*sums) {
            for (&reg, values) in pair.iter().zip(gather(rows)) {
                regs.write64(reg, Mask::MAX, &each(&values, f64::to_bits));
            }
        }
    }
}

/// What registers hold.
pub fn words(sources: &[Src], regs: &Registers, place: &Place) -> Vec<[u32; LANES]> {
    sources.iter().map(|&src| regs.read32(src, place)).collect()
}

/// Accumulators from registers; integers are added afterwards, so that their sums stay exact.
pub fn load_sums(
    c: Accumulator,
    sources: &[Src],
    regs: &Registers,
    place: &Place,
    sums: &mut [Half<f32>],
) {
    match c {
        Accumulator::F16 => {
            for (&src, rows) in sources.iter().zip(sums) {
                let words = regs.read32(src, place);
                let low = each(&words, |word| from_f16(word & 0xffff));
                let high = each(&words, |word| from_f16(word >> 16));
                scatter(rows, &[low, high]);
            }
        }
        Accumulator::F32 => {
            for (pair, rows) in sources.as_chunks::<2>().0.iter().zip(sums) {
                scatter(rows, &pair.map(|src| each(&regs.read32(src, place), f32::from_bits)));
            }
        }
        Accumulator::S32 | Accumulator::F64 => {}
    }
}

/// Floating-point accumulators to registers.
pub fn store_sums(c: Accumulator, targets: &[Reg], regs: &mut Registers, sums: &[Half<f32>]) {
    if c == Accumulator::F16 {
        for (&reg, rows) in targets.iter().zip(sums) {
            let [low, high] = gather(rows).map(|values| each(&values, to_f16));
            let mut words = low;
            words.iter_mut().zip(high).for_each(|(word, high)| *word |= high << 16);
            regs.write32(reg, Mask::MAX, &words);
        }
        return;
    }
    for (pair, rows) in targets.as_chunks::<2>().0.iter().zip(sums) {
        for (&reg, values) in pair.iter().zip(gather(rows)) {
            regs.write32(reg, Mask::MAX, &each(&values, canonical));
        }
    }
}

/// Integer accumulators to registers, C added.
pub fn store_integers(
    targets: &[Reg],
    sources: &[Src],
    saturate: bool,
    regs: &mut Registers,
    place: &Place,
    sums: &[Half<f32>],
) {
    // D may share registers with C: read all before writing any.
    let before = words(sources, regs, place);
    let pairs = targets.as_chunks::<2>().0.iter().zip(before.as_chunks::<2>().0);
    for ((pair, before), rows) in pairs.zip(sums) {
        for ((&reg, before), sums) in pair.iter().zip(before).zip(gather(rows)) {
            let add = |lane: usize| {
                let (c, sum) = (before[lane] as i32, sums[lane] as i32);
                (if saturate { c.saturating_add(sum) } else { c.wrapping_add(sum) }) as u32
            };
            regs.write32(reg, Mask::MAX, &std::array::from_fn(add));
        }
    }
}
