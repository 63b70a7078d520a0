//! The bytes of a bulk transfer: out of their source, through shared memory's swizzle, into their destination.

use super::barriers;
use super::place::swizzled;
use super::tensor::{self, Row};
use super::transfer::Reduce;
use crate::counters::Counter;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::machine::Context;
use crate::memory::{
    Operation, global_read, global_write, reduce, shared_read_async, shared_write_async,
};
use crate::tensor_map::{DataType, TensorMap};

/// What a transfer moves.
pub struct Work {
    pub rows: Vec<Row>,
    pub bytes: usize,
    /// Bits by which chunks are exchanged in shared memory.
    pub swizzle: u32,
    pub map: Option<TensorMap>,
    /// The rows' addresses are in the block's shared memory.
    pub from_shared: bool,
}

impl Work {
    /// Reads the source of a load; `barrier` is where it will end.
    pub fn gather(
        &self,
        ctx: &mut Context<'_>,
        lane: usize,
        (rank, barrier): (usize, u32),
    ) -> Result<Vec<u8>, Fault> {
        let mut image = vec![0; self.bytes];
        for row in &self.rows {
            let into = &mut image[row.at..row.at + row.bytes];
            if let Some(map) = self
                .map
                .as_ref()
                .filter(|_| row.inside.is_none_or(|inside| inside.bytes < row.bytes))
            {
                tensor::fill(map, into);
            }
            let Some(inside) = row.inside else { continue };
            let into = &mut into[inside.at..inside.at + inside.bytes];
            if self.from_shared {
                let unit = barriers::unit(ctx, rank, lane, barrier)?;
                let own = ctx.rank;
                pieces(inside.address, into.len(), |at, range| {
                    shared_read_async(ctx, own, lane, unit, at as u32, &mut into[range])
                })?;
                count_shared(ctx, into.len());
            } else {
                pieces(inside.address, into.len(), |at, range| {
                    global_read(ctx, lane, at, &mut into[range])
                })?;
            }
        }
        self.count_global(ctx);
        Ok(image)
    }

    /// Writes the destination of a load.
    pub fn put(
        &self,
        ctx: &mut Context<'_>,
        (rank, lane, unit): (usize, usize, usize),
        to: u32,
        image: &[u8],
    ) -> Result<(), Fault> {
        count_shared(ctx, image.len());
        let step = if self.swizzle > 0 { 16 } else { image.len().max(1) };
        for (n, chunk) in image.chunks(step).enumerate() {
            let addr = swizzled(to + (n * step) as u32, self.swizzle);
            pieces(u64::from(addr), chunk.len(), |at, range| {
                shared_write_async(ctx, rank, lane, unit, at as u32, &chunk[range])
            })?;
        }
        Ok(())
    }

    /// Reads the source of a store.
    pub fn get(
        &self,
        ctx: &mut Context<'_>,
        lane: usize,
        unit: usize,
        from: u32,
    ) -> Result<Vec<u8>, Fault> {
        count_shared(ctx, self.bytes);
        let mut image = vec![0; self.bytes];
        let step = if self.swizzle > 0 { 16 } else { self.bytes.max(1) };
        let rank = ctx.rank;
        for (n, chunk) in image.chunks_mut(step).enumerate() {
            let addr = swizzled(from + (n * step) as u32, self.swizzle);
            pieces(u64::from(addr), chunk.len(), |at, range| {
                shared_read_async(ctx, rank, lane, unit, at as u32, &mut chunk[range])
            })?;
        }
        Ok(image)
    }

    /// Writes the destination of a store; what is outside a tensor is dropped.
    pub fn scatter(
        &self,
        ctx: &mut Context<'_>,
        lane: usize,
        image: &[u8],
        with: Option<Reduce>,
    ) -> Result<(), Fault> {
        for row in &self.rows {
            let Some(inside) = row.inside else { continue };
            let from = &image[row.at + inside.at..][..inside.bytes];
            match with {
                None => pieces(inside.address, from.len(), |at, range| {
                    global_write(ctx, lane, at, &from[range])
                })?,
                Some(with) => combine(ctx, lane, inside.address, self.elements(with), from)?,
            }
        }
        self.count_global(ctx);
        Ok(())
    }

    /// Operation and type of a reduction.
    pub fn elements(&self, (op, ty): Reduce) -> (Operation, Ty) {
        let of_map = self.map.as_ref().map(|map| match map.data_type {
            DataType::U16 => Ty::U16,
            DataType::I32 => Ty::S32,
            DataType::U64 => Ty::U64,
            DataType::I64 => Ty::S64,
            DataType::F16 => Ty::F16,
            DataType::Bf16 => Ty::Bf16,
            DataType::F32 => Ty::F32,
            DataType::F64 => Ty::F64,
            _ => Ty::U32,
        });
        (op, ty.or(of_map).unwrap_or(Ty::U32))
    }

    fn count_global(&self, ctx: &mut Context<'_>) {
        if self.from_shared {
            return;
        }
        ctx.count(Counter::GlobalRequests, 1);
        for inside in self.rows.iter().filter_map(|row| row.inside) {
            let end = inside.address + inside.bytes as u64;
            ctx.count(Counter::GlobalBytes, inside.bytes as u64);
            ctx.count(Counter::GlobalNeeded, inside.bytes as u64);
            ctx.count(Counter::GlobalSectors, end.div_ceil(32) - inside.address / 32);
        }
    }
}

/// Bulk transfers meet no bank conflicts.
fn count_shared(ctx: &mut Context<'_>, bytes: usize) {
    let wavefronts = bytes.div_ceil(128) as u64;
    ctx.count(Counter::SharedWavefronts, wavefronts);
    ctx.count(Counter::SharedIdeal, wavefronts);
}

/// Does something to parts that are aligned as accesses of their size must be.
fn pieces(
    address: u64,
    bytes: usize,
    mut act: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut at = 0;
    while at < bytes {
        let here = address + at as u64;
        let rest = bytes - at;
        let odd = rest <= 32 && rest.is_power_of_two() && !here.is_multiple_of(rest as u64);
        let step = if odd { 1 << here.trailing_zeros() } else { rest };
        act(here, at..at + step)?;
        at += step;
    }
    Ok(())
}

/// Combines element by element.
pub fn combine(
    ctx: &mut Context<'_>,
    lane: usize,
    address: u64,
    (op, ty): (Operation, Ty),
    image: &[u8],
) -> Result<(), Fault> {
    let size = ty.bytes() as usize;
    for (n, element) in image.chunks(size).enumerate() {
        reduce(ctx, lane, address + (n * size) as u64, op, ty, element)?;
        ctx.count(Counter::Atomics, 1);
    }
    Ok(())
}
