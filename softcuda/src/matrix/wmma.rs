//! `wmma.load`, `wmma.store`, `wmma.mma`. The ISA leaves open where a fragment's elements lie; here a
//! fragment is those of the `mma` tiles it is made of, one behind the other.

use std::ops::Range;

use super::element::Element;
use super::fragment::{place_a, place_b, place_c};
use super::mma::{Accumulator, Bits, Mma, shape, sources, targets};
use crate::bulk::place::{addresses, own_shared};
use crate::fault::{Check, Fault};
use crate::ir::{Addr, LANES, Mask, Reg, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::Context;
use crate::memory::{
    Located, count_global, count_shared, generic, global_read, global_write, shared_read,
    shared_write,
};
use crate::ptx::ast::{Instruction, Operand};

/// Which matrix a fragment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    A(Element),
    B(Element),
    C(Accumulator),
}

/// A matrix in memory and its fragment.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    pub role: Role,
    /// `m`, `n`, `k`.
    pub shape: (usize, usize, usize),
    /// Rows lie one behind the other, else columns.
    pub row_major: bool,
    pub addr: Addr,
    pub space: Space,
    /// Elements from one line to the next; without it the lines touch.
    pub stride: Option<Src>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub from: Fragment,
    pub regs: Vec<Reg>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub to: Fragment,
    pub regs: Vec<Src>,
}

impl Role {
    fn bits(self) -> usize {
        match self {
            Role::A(element) | Role::B(element) => element.bits() as usize,
            Role::C(Accumulator::F16) => 16,
            Role::C(Accumulator::F32 | Accumulator::S32) => 32,
            Role::C(Accumulator::F64) => 64,
        }
    }

    fn register(self) -> Ty {
        match self {
            Role::A(Element::F64) | Role::B(Element::F64) => Ty::F64,
            Role::A(_) | Role::B(_) => Ty::B32,
            Role::C(accumulator) => accumulator.register(),
        }
    }
}

impl Fragment {
    /// Rows and columns.
    fn extent(&self) -> (usize, usize) {
        let (m, n, k) = self.shape;
        match self.role {
            Role::A(_) => (m, k),
            Role::B(_) => (k, n),
            Role::C(_) => (m, n),
        }
    }

    /// Elements in a register.
    fn per(&self) -> usize {
        (32 / self.role.bits()).max(1)
    }

    /// Registers with elements of their own.
    fn distinct(&self) -> usize {
        let (rows, columns) = self.extent();
        rows * columns / (LANES * self.per())
    }

    /// Registers of the operand: `f16` factors have eight, whatever the shape, the rest being copies.
    fn registers(&self) -> usize {
        match self.role {
            Role::A(Element::F16) | Role::B(Element::F16) => 8,
            _ => self.distinct(),
        }
    }

    /// Row and column of element `j` of a lane's register `r`.
    fn place(&self, lane: usize, r: usize, j: usize) -> (usize, usize) {
        let (m, n, k) = self.shape;
        let r = r % self.distinct();
        match self.role {
            Role::A(_) => {
                let tile_rows = m.min(16);
                let per_tile = tile_rows * k / (LANES * self.per());
                let (row, column) = place_a(tile_rows, self.per(), lane, r % per_tile);
                (r / per_tile * tile_rows + row, column + j)
            }
            Role::B(_) => {
                let per_tile = 8 * k / (LANES * self.per());
                let (row, column) = place_b(self.per(), lane, r % per_tile);
                (row + j, r / per_tile * 8 + column)
            }
            Role::C(_) => {
                let values = m.min(16) * 8 / LANES;
                let value = r * self.per() + j;
                let (tile, (row, column)) = (value / values, place_c(lane, value % values));
                let across = n / 8;
                (tile / across * 16 + row, tile % across * 8 + column)
            }
        }
    }

    /// How many lines there are and the bytes of one.
    fn lines(&self) -> (usize, usize) {
        let (rows, columns) = self.extent();
        let (lines, elements) = if self.row_major { (rows, columns) } else { (columns, rows) };
        (lines, elements * self.role.bits() / 8)
    }

    /// First bit of an element when the lines lie one behind the other.
    fn bit(&self, (row, column): (usize, usize)) -> usize {
        let (line, element) = if self.row_major { (row, column) } else { (column, row) };
        8 * line * self.lines().1 + element * self.role.bits()
    }

    /// Does `access(ctx, lane, address, bytes of the matrix)` for all pieces of the matrix, and counts.
    fn pieces(
        &self,
        ctx: &mut Context<'_>,
        mut access: impl FnMut(&mut Context<'_>, usize, Located, Range<usize>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (lines, bytes) = self.lines();
        let stride = match self.stride {
            None => bytes as u64,
            Some(src) => {
                let elements = ctx.warp.regs.read32(src, &ctx.warp.place)[0];
                u64::from(elements) * self.role.bits() as u64 / 8
            }
        };
        let (begin, shared) = self.begin(ctx)?;
        // As large as address and stride are aligned.
        let size = 1 << (begin | stride | bytes as u64 | 16).trailing_zeros();
        let pieces: Vec<(u64, usize)> = (0..lines)
            .flat_map(|line| (0..bytes).step_by(size).map(move |from| (line, from)))
            .map(|(line, from)| {
                let offset = (line as u64).wrapping_mul(stride).wrapping_add(from as u64);
                (begin.wrapping_add(offset), line * bytes + from)
            })
            .collect();
        for pieces in pieces.chunks(LANES) {
            let at = std::array::from_fn(|lane| pieces.get(lane).map_or(0, |&(at, _)| at));
            let mask = Mask::MAX >> (LANES - pieces.len());
            match shared {
                true => count_shared(ctx, &at, mask, size),
                false => count_global(ctx, &at, mask, size),
            }
            for (lane, &(at, offset)) in pieces.iter().enumerate() {
                let located = match shared {
                    true => Located::Shared { rank: ctx.rank, addr: at as u32 },
                    false => Located::Global(at),
                };
                access(ctx, lane, located, offset..offset + size)?;
            }
        }
        Ok(())
    }

    /// Where the matrix begins, and whether that is in shared memory. All lanes must give the same.
    fn begin(&self, ctx: &Context<'_>) -> Result<(u64, bool), Fault> {
        let at = addresses(ctx, self.addr, self.space);
        if let Some(lane) = at.iter().position(|&address| address != at[0]) {
            let what = "the lanes of a matrix instruction give different addresses";
            return Err(Fault::new(Check::Trap, what).lane(lane));
        }
        match (self.space, generic(ctx, at[0])) {
            (Space::Global, _) | (Space::Generic, Located::Global(_)) => Ok((at[0], false)),
            _ => Ok((u64::from(own_shared(ctx, self.space, 0, at[0])?), true)),
        }
    }
}

impl Load {
    pub fn execute(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let from = &self.from;
        let (lines, line_bytes) = from.lines();
        let mut bytes = vec![0; lines * line_bytes];
        from.pieces(ctx, |ctx, lane, at, range| {
            let into = &mut bytes[range];
            match at {
                Located::Shared { rank, addr } => shared_read(ctx, rank, lane, addr, into),
                Located::Global(addr) => global_read(ctx, lane, addr, into),
                _ => unreachable!("a matrix lies in one of the two"),
            }
        })?;
        let bits = from.role.bits();
        let element = |place: (usize, usize)| -> u64 {
            let bit = from.bit(place);
            let mut word = [0; 8];
            let have = &bytes[bit / 8..(bit / 8 + bits.div_ceil(8)).min(bytes.len())];
            word[..have.len()].copy_from_slice(have);
            let value = u64::from_le_bytes(word) >> (bit % 8);
            if bits == 64 { value } else { value & ((1 << bits) - 1) }
        };
        for (r, &reg) in self.regs.iter().enumerate() {
            let values: [u64; LANES] = std::array::from_fn(|lane| {
                (0..from.per())
                    .fold(0, |word, j| word | element(from.place(lane, r, j)) << (j * bits))
            });
            ctx.warp.regs.write64(reg, Mask::MAX, &values);
        }
        Ok(())
    }
}

impl Store {
    /// Only accumulators are stored: whole bytes.
    pub fn execute(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let to = &self.to;
        let (lines, line_bytes) = to.lines();
        let mut bytes = vec![0; lines * line_bytes];
        let size = to.role.bits() / 8;
        for (r, &src) in self.regs.iter().enumerate() {
            let words = ctx.warp.regs.read64(src, &ctx.warp.place);
            for (lane, word) in words.into_iter().enumerate() {
                for j in 0..to.per() {
                    let at = to.bit(to.place(lane, r, j)) / 8;
                    let value = (word >> (8 * j * size)).to_le_bytes();
                    bytes[at..at + size].copy_from_slice(&value[..size]);
                }
            }
        }
        to.pieces(ctx, |ctx, lane, at, range| {
            let from = &bytes[range];
            match at {
                Located::Shared { rank, addr } => shared_write(ctx, rank, lane, addr, from),
                Located::Global(addr) => global_write(ctx, lane, addr, from),
                _ => unreachable!("a matrix lies in one of the two"),
            }
        })
    }
}

// Lowering.

/// What an opcode's parts say, in whatever order.
#[derive(Default)]
struct Form<'a> {
    shape: Option<(usize, usize, usize)>,
    layouts: Vec<bool>,
    types: Vec<&'a str>,
    space: Option<Space>,
    saturate: bool,
    bits: Option<Bits>,
}

impl<'a> Form<'a> {
    fn of(parts: &[&'a str]) -> Self {
        let mut form = Form::default();
        for &part in parts {
            match part {
                "sync" | "aligned" | "popc" | "rn" => {}
                "row" | "col" => form.layouts.push(part == "row"),
                "global" => form.space = Some(Space::Global),
                "shared" | "shared::cta" => form.space = Some(Space::Shared),
                "satfinite" => form.saturate = true,
                "xor" => form.bits = Some(Bits::Xor),
                "and" => form.bits = Some(Bits::And),
                _ => match shape(part) {
                    Some(found) => form.shape = Some(found),
                    None => form.types.push(part),
                },
            }
        }
        form
    }
}

/// The shapes of each type of factor.
fn supported(element: Element, shape: (usize, usize, usize)) -> bool {
    let wide = matches!(shape, (16, 16, 16) | (8, 32, 16) | (32, 8, 16));
    match element {
        Element::F16 | Element::Bf16 | Element::S8 | Element::U8 => wide,
        Element::Tf32 => shape == (16, 16, 8),
        Element::F64 => shape == (8, 8, 4),
        Element::S4 | Element::U4 => shape == (8, 8, 32),
        Element::B1 => shape == (8, 8, 128),
        Element::E4m3 | Element::E5m2 => false,
    }
}

/// The shapes of each accumulator.
fn supported_sums(c: Accumulator, shape: (usize, usize, usize)) -> bool {
    let of: &[Element] = match c {
        Accumulator::F16 => &[Element::F16],
        Accumulator::F32 => &[Element::F16, Element::Tf32],
        Accumulator::S32 => &[Element::S8, Element::S4, Element::B1],
        Accumulator::F64 => &[Element::F64],
    };
    of.iter().any(|&element| supported(element, shape))
}

fn fragment<'a>(
    l: &mut Lowerer<'a>,
    i: &'a Instruction<'a>,
    address: &'a Operand<'a>,
    stride: Option<&'a Operand<'a>>,
) -> Lowered<Fragment> {
    let form = Form::of(i.parts.get(3..).unwrap_or_default());
    let unknown = || l.error(format!("unknown form {}", i.parts.join(".")));
    let (&[row_major], &[ty], Some(shape)) = (&*form.layouts, &*form.types, form.shape) else {
        return unknown();
    };
    let role = match i.parts[2] {
        "a" => Element::parse(ty).map(Role::A),
        "b" => Element::parse(ty).map(Role::B),
        _ => Accumulator::parse(ty).map(Role::C),
    };
    let fits = |role: &Role| match *role {
        // Less than a byte goes along k only.
        Role::A(element) => supported(element, shape) && (element.bits() >= 8 || row_major),
        Role::B(element) => supported(element, shape) && (element.bits() >= 8 || !row_major),
        Role::C(accumulator) => supported_sums(accumulator, shape),
    };
    let plain = !form.saturate && form.bits.is_none();
    let Some(role) = role.filter(fits).filter(|_| plain) else { return unknown() };
    let (addr, space) = l.address(address, form.space.unwrap_or(Space::Generic))?;
    let stride = stride.map(|operand| l.src(Ty::U32, operand)).transpose()?;
    Ok(Fragment { role, shape, row_major, addr, space, stride })
}

pub fn lower_load<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Load> {
    let [to, address, stride @ ..] = &*i.operands else {
        return l.error("expected registers and an address");
    };
    let from = fragment(l, i, address, stride.first())?;
    let regs = targets(l, from.role.register(), to, from.registers())?;
    Ok(Load { from, regs })
}

pub fn lower_store<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Store> {
    let [address, from, stride @ ..] = &*i.operands else {
        return l.error("expected an address and registers");
    };
    let to = fragment(l, i, address, stride.first())?;
    let regs = sources(l, to.role.register(), from, to.registers())?;
    Ok(Store { to, regs })
}

pub fn lower_mma<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Mma> {
    let form = Form::of(&i.parts[2..]);
    let unknown = || l.error(format!("unknown form {}", i.parts.join(".")));
    // Only f16 leaves out the factors' types.
    let (d, a, b, c) = match *form.types {
        [d, c] => (d, "f16", "f16", c),
        [d, a, b, c] => (d, a, b, c),
        _ => return unknown(),
    };
    let types =
        (Accumulator::parse(d), Element::parse(a), Element::parse(b), Accumulator::parse(c));
    let ((Some(d), Some(a), Some(b), Some(c)), Some(shape)) = (types, form.shape) else {
        return unknown();
    };
    let sums: &[Accumulator] = match a {
        Element::F16 => &[Accumulator::F16, Accumulator::F32],
        Element::F64 => &[Accumulator::F64],
        _ if a.integer() || a == Element::B1 => &[Accumulator::S32],
        _ => &[Accumulator::F32],
    };
    let bits = form.bits.is_some() == (a == Element::B1);
    let known = a == b && bits && supported(a, shape) && form.layouts.len() == 2;
    if !known || !sums.contains(&c) || !sums.contains(&d) || form.space.is_some() {
        return unknown();
    }
    let [d_operand, a_operand, b_operand, c_operand] = operands(i)?;
    let mut take = |role: Role, operand: &'a Operand<'a>| -> Lowered<Vec<Src>> {
        let any = Addr { base: Src::Imm(0), offset: 0 };
        let (space, stride) = (Space::Generic, None);
        let fragment = Fragment { role, shape, row_major: true, addr: any, space, stride };
        let mut regs = sources(l, role.register(), operand, fragment.registers())?;
        regs.truncate(fragment.distinct());
        Ok(regs)
    };
    let (m, n, k) = shape;
    let a_regs = take(Role::A(a), a_operand)?;
    let b_regs = take(Role::B(b), b_operand)?;
    let c_regs = take(Role::C(c), c_operand)?;
    let values = m * n / (LANES * d.per_register());
    let d_regs = targets(l, d.register(), d_operand, values)?;
    let bits = form.bits.unwrap_or(Bits::And);
    Ok(Mma { m, n, k, a, b, c, d, saturate: form.saturate, bits, d_regs, a_regs, b_regs, c_regs })
}
