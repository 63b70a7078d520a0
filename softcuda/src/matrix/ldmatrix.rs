//! `ldmatrix`, `stmatrix`, `movmatrix`: matrices of 8 × 8 elements of 16 bits between shared memory, where
//! each row is 16 bytes at an address of its own, and registers, where lane `4 * row + c` holds columns
//! `2 * c` and `2 * c + 1`. Lanes `8 * i` to `8 * i + 7` give the addresses of matrix `i`.

use super::mma::{sources, targets};
use crate::bulk::place::{addresses, own_shared};
use crate::fault::{Check, Fault};
use crate::ir::{Addr, LANES, Mask, Reg, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::Context;
use crate::memory::{WIDEST, count_shared, shared_read_lanes, shared_write_lanes};
use crate::ptx::ast::{Instruction, Operand};

/// Bytes of a row.
const ROW: usize = 16;

/// What the two instructions that touch memory have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrices {
    pub count: usize,
    pub transposed: bool,
    pub addr: Addr,
    pub space: Space,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub from: Matrices,
    pub regs: Vec<Reg>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub to: Matrices,
    pub regs: Vec<Src>,
}

/// `movmatrix`: transposes a matrix that lies in registers.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    pub to: Reg,
    pub from: Src,
}

impl Matrices {
    fn lower<'a>(
        l: &mut Lowerer<'a>,
        i: &'a Instruction<'a>,
        address: &'a Operand<'a>,
    ) -> Lowered<Self> {
        let (mut count, mut transposed, mut space) = (None, false, Space::Generic);
        let mut shape = None;
        for &part in &i.parts[1..] {
            match part {
                "sync" | "aligned" | "b16" => {}
                "m8n8" => shape = Some(part),
                "x1" => count = Some(1),
                "x2" => count = Some(2),
                "x4" => count = Some(4),
                "trans" => transposed = true,
                "shared" | "shared::cta" => space = Space::Shared,
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let (Some(count), Some(_)) = (count, shape) else {
            return l.error(format!("unknown form {}", i.parts.join(".")));
        };
        let (addr, space) = l.address(address, space)?;
        Ok(Self { count, transposed, addr, space })
    }

    /// The address of every row, which is counted.
    fn rows(&self, ctx: &mut Context<'_>) -> Result<[u32; LANES], Fault> {
        let at = addresses(ctx, self.addr, self.space);
        let mut rows = [0; LANES];
        for (lane, row) in rows.iter_mut().enumerate().take(8 * self.count) {
            *row = own_shared(ctx, self.space, lane, at[lane])?;
        }
        let mask = Mask::MAX >> (LANES - 8 * self.count);
        count_shared(ctx, &rows.map(u64::from), mask, ROW);
        Ok(rows)
    }
}

impl Load {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let [to, address] = operands(i)?;
        let from = Matrices::lower(l, i, address)?;
        let regs = targets(l, Ty::B32, to, from.count)?;
        Ok(Self { from, regs })
    }

    pub fn execute(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let rows = self.from.rows(ctx)?;
        for (matrix, &reg) in self.regs.iter().enumerate() {
            let addrs = holders(&rows, matrix);
            let mut bytes = [[0; WIDEST]; LANES];
            shared_read_lanes(ctx, ctx.rank, &addrs, HOLDERS, ROW, &mut bytes)
                .map_err(|fault| blame(fault, matrix))?;
            let words: [u32; LANES] = std::array::from_fn(|lane| {
                let (words, _) = bytes[lane / 4 * 4].as_chunks::<4>();
                u32::from_le_bytes(words[lane % 4])
            });
            let words = if self.from.transposed { transpose(&words) } else { words };
            ctx.warp.regs.write32(reg, Mask::MAX, &words);
        }
        Ok(())
    }
}

impl Store {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let [address, from] = operands(i)?;
        let to = Matrices::lower(l, i, address)?;
        let regs = sources(l, Ty::B32, from, to.count)?;
        Ok(Self { to, regs })
    }

    pub fn execute(&self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let rows = self.to.rows(ctx)?;
        for (matrix, &src) in self.regs.iter().enumerate() {
            let words = ctx.warp.regs.read32(src, &ctx.warp.place);
            let words = if self.to.transposed { transpose(&words) } else { words };
            let mut bytes = [[0; WIDEST]; LANES];
            for (lane, word) in words.iter().enumerate() {
                let (words, _) = bytes[lane / 4 * 4].as_chunks_mut::<4>();
                words[lane % 4] = word.to_le_bytes();
            }
            let addrs = holders(&rows, matrix);
            shared_write_lanes(ctx, ctx.rank, &addrs, HOLDERS, ROW, &bytes)
                .map_err(|fault| blame(fault, matrix))?;
        }
        Ok(())
    }
}

impl Move {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        if i.parts[1..] != ["sync", "aligned", "m8n8", "trans", "b16"] {
            return l.error(format!("unknown form {}", i.parts.join(".")));
        }
        let [to, from] = operands(i)?;
        Ok(Self { to: l.dst(Ty::B32, to)?, from: l.src(Ty::B32, from)? })
    }

    pub fn execute(&self, ctx: &mut Context<'_>) {
        let words = ctx.warp.regs.read32(self.from, &ctx.warp.place);
        ctx.warp.regs.write32(self.to, Mask::MAX, &transpose(&words));
    }
}

/// The first lanes that hold a part of each row. A row counts as read or written by it, not by the lane that
/// gives its address: lanes must be ordered with those they get data from.
const HOLDERS: Mask = 0x1111_1111;

/// The addresses of a matrix's rows at their holders.
fn holders(rows: &[u32; LANES], matrix: usize) -> [u32; LANES] {
    std::array::from_fn(|lane| rows[8 * matrix + lane / 4])
}

/// A wrong address is its giver's fault.
fn blame(fault: Fault, matrix: usize) -> Fault {
    match (fault.check, fault.lane) {
        (Check::SharedRace, _) | (_, None) => fault,
        (_, Some(holder)) => fault.lane(8 * matrix + holder as usize / 4),
    }
}

/// A matrix as registers hold it, transposed.
fn transpose(words: &[u32; LANES]) -> [u32; LANES] {
    let element =
        |row: usize, column: usize| words[4 * row + column / 2] >> (column % 2 * 16) & 0xffff;
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        element(column, row) | element(column + 1, row) << 16
    })
}
