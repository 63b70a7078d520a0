//! `cp.async.bulk` and `cp.reduce.async.bulk`, with and without a tensor map.
//!
//! What a transfer reads is read when it is issued, as by a unit of its own: whoever changes it must be
//! ordered after the transfer's end. What it writes to shared memory is marked until its mbarrier is waited
//! for; global memory is written at once.

use std::collections::VecDeque;

use super::barriers::{self, Arriving};
use super::place::{addresses, aligned, global, own_shared, shared};
use super::tensor::{self, Inside, Row};
use super::work::{Work, combine};
use crate::fault::{Check, Fault};
use crate::ir::{Addr, LANES, Mask, SHARED_WINDOW, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer};
use crate::machine::Context;
use crate::memory::{Clock, Operation, cluster_address, read_generic};
use crate::ptx::ast::{Instruction, Operand};
use crate::registers::lanes;
use crate::tensor_map::{self, TensorMap};

/// An address and the space it is in.
pub type At = (Addr, Space);

/// A transfer of a lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Transfer {
    pub extent: Extent,
    /// In shared memory: the source of a store, the destination of a load.
    pub shared: At,
    pub way: Way,
    /// Added (or otherwise combined) instead of written.
    pub reduce: Option<Reduce>,
}

/// How elements are combined; a tensor map says their type itself.
pub type Reduce = (Operation, Option<Ty>);

/// What is moved outside of `Transfer::shared`.
#[derive(Debug, Clone, PartialEq)]
pub enum Extent {
    Bytes { at: At, bytes: Src },
    Box { map: At, coordinates: Vec<Src> },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Way {
    /// Into shared memory; bytes are counted at an mbarrier.
    Load {
        barrier: At,
        /// Blocks of the cluster, a bit each.
        multicast: Option<Src>,
    },
    /// From shared memory to global memory, in a bulk group.
    Store,
}

/// The bulk groups of a warp's lanes.
#[derive(Debug, Default)]
pub struct Groups {
    /// As whom the warp's stores read shared memory.
    unit: Option<usize>,
    lanes: [Group; LANES],
}

#[derive(Debug, Default)]
struct Group {
    open: Clock,
    committed: VecDeque<Clock>,
}

impl Transfer {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let form = Form::of(l, i)?;
        let unknown = || l.error(format!("unknown form {}", i.parts.join(".")));
        let [to, from] = form.spaces[..] else { return unknown() };
        let load = matches!(to, Space::Shared | Space::Cluster);
        let tensor = form.rank.is_some();
        let ways = match (to, from) {
            (Space::Shared | Space::Cluster, Space::Global) => {
                form.barrier && form.reduce.is_none()
            }
            (Space::Cluster, Space::Shared) => form.barrier && !tensor,
            (Space::Global, Space::Shared) => !form.barrier,
            _ => false,
        };
        if !ways || form.multicast && to != Space::Cluster {
            return unknown();
        }
        let mut operands = i.operands.as_slice();
        let mut next = |l: &Lowerer<'a>| match operands.split_first() {
            Some((first, rest)) => {
                operands = rest;
                Ok(first)
            }
            None => l.error("an operand is missing"),
        };
        let (first, second) = (next(l)?, next(l)?);
        let (outer, inner) = if load { (second, first) } else { (first, second) };
        let shared = l.address(inner, if load { to } else { from })?;
        let extent = match form.rank {
            Some(rank) => {
                let map = l.address(outer, Space::Generic)?;
                Extent::Box { map, coordinates: coordinates(l, outer, rank)? }
            }
            None => {
                let at = l.address(outer, if load { from } else { to })?;
                Extent::Bytes { at, bytes: l.src(Ty::U32, next(l)?)? }
            }
        };
        let way = if load {
            // The mbarrier is in the same space as the destination.
            let barrier = l.address(next(l)?, to)?;
            let multicast = match form.multicast {
                true => Some(l.src(Ty::U16, next(l)?)?),
                false => None,
            };
            Way::Load { barrier, multicast }
        } else {
            Way::Store
        };
        if form.hint {
            next(l)?;
        }
        if !operands.is_empty() {
            return l.error("too many operands");
        }
        Ok(Self { extent, shared, way, reduce: form.reduce })
    }

    /// True if the order in which blocks do it can be seen.
    pub fn talks(&self) -> bool {
        let float = |&(_, ty): &Reduce| ty.is_none_or(Ty::float);
        self.way == Way::Store && self.reduce.as_ref().is_some_and(float)
    }

    pub fn execute(&self, ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
        for lane in lanes(mask) {
            let work = self.rows(ctx, lane)?;
            match &self.way {
                Way::Load { barrier, multicast } => {
                    self.load(ctx, lane, &work, *barrier, *multicast)?;
                }
                Way::Store => self.store(ctx, lane, &work)?,
            }
        }
        Ok(())
    }

    fn rows(&self, ctx: &mut Context<'_>, lane: usize) -> Result<Work, Fault> {
        match &self.extent {
            Extent::Bytes { at: (addr, space), bytes } => {
                let bytes = ctx.warp.regs.read32(*bytes, &ctx.warp.place)[lane];
                if !bytes.is_multiple_of(16) {
                    let what = format!("a bulk copy of {bytes} bytes, no multiple of 16");
                    return Err(Fault::new(Check::Trap, what).lane(lane));
                }
                let address = addresses(ctx, *addr, *space)[lane];
                aligned(lane, address, 16)?;
                let address = match *space {
                    Space::Shared => u64::from(own_shared(ctx, *space, lane, address)?),
                    _ => global(ctx, *space, lane, address)?,
                };
                let bytes = bytes as usize;
                let inside = Some(Inside { at: 0, bytes, address });
                let rows = vec![Row { at: 0, bytes, inside }];
                let from_shared = *space == Space::Shared;
                Ok(Work { rows, bytes, swizzle: 0, map: None, from_shared })
            }
            Extent::Box { map: (addr, space), coordinates } => {
                let address = addresses(ctx, *addr, *space)[lane];
                aligned(lane, address, 64)?;
                let mut bytes = [0; tensor_map::BYTES];
                read_generic(ctx, lane, address, &mut bytes)?;
                let map = TensorMap::decode(&bytes).map_err(|refused| {
                    Fault::new(Check::Trap, refused.to_string()).lane(lane).address(address)
                })?;
                let (regs, place) = (&ctx.warp.regs, &ctx.warp.place);
                let at: Vec<i32> =
                    coordinates.iter().map(|&c| regs.read32(c, place)[lane] as i32).collect();
                let rows = tensor::rows(&map, &at).map_err(|fault| fault.lane(lane))?;
                let swizzle = tensor::swizzle_bits(&map, rows[0].bytes);
                let swizzle = swizzle.map_err(|fault| fault.lane(lane))?;
                let bytes = rows.iter().map(|row| row.bytes).sum();
                Ok(Work { rows, bytes, swizzle, map: Some(map), from_shared: false })
            }
        }
    }

    fn load(
        &self,
        ctx: &mut Context<'_>,
        lane: usize,
        work: &Work,
        (barrier, barrier_space): At,
        multicast: Option<Src>,
    ) -> Result<(), Fault> {
        let at = addresses(ctx, self.shared.0, self.shared.1)[lane];
        aligned(lane, at, if work.map.is_some() { 128 } else { 16 })?;
        let (rank, to) = shared(ctx, self.shared.1, lane, at)?;
        let barrier = addresses(ctx, barrier, barrier_space)[lane];
        let (barrier_rank, barrier) = shared(ctx, barrier_space, lane, barrier)?;
        if rank != barrier_rank {
            let what = "the mbarrier of a copy is in another block than its destination";
            return Err(Fault::new(Check::Trap, what).lane(lane).address(at));
        }
        let blocks = match multicast {
            None => 1 << rank,
            Some(src) => ctx.warp.regs.read32(src, &ctx.warp.place)[lane] & 0xffff,
        };
        let first = lanes(blocks).next().unwrap_or(rank);
        let image = work.gather(ctx, lane, (first, barrier))?;
        for rank in lanes(blocks) {
            let bytes = work.bytes as u32;
            let (writer, range) = match self.reduce {
                None => {
                    let unit = barriers::unit(ctx, rank, lane, barrier)?;
                    work.put(ctx, (rank, lane, unit), to, &image)?;
                    (unit, vec![(to, bytes)])
                }
                // Others may combine with the same place meanwhile.
                Some(with) => {
                    let base = SHARED_WINDOW + u64::from(cluster_address(rank, to));
                    combine(ctx, lane, base, work.elements(with), &image)?;
                    (ctx.unit(), Vec::new())
                }
            };
            barriers::send(ctx, (rank, barrier), lane, writer, Arriving { range, bytes })?;
        }
        Ok(())
    }

    fn store(&self, ctx: &mut Context<'_>, lane: usize, work: &Work) -> Result<(), Fault> {
        let at = addresses(ctx, self.shared.0, self.shared.1)[lane];
        aligned(lane, at, if work.map.is_some() { 128 } else { 16 })?;
        let from = own_shared(ctx, self.shared.1, lane, at)?;
        let unit = ctx.warp.asyncs.groups.unit;
        let unit = unit.unwrap_or_else(|| ctx.cluster.order.add_unit());
        ctx.warp.asyncs.groups.unit = Some(unit);
        let image = work.get(ctx, lane, unit, from)?;
        work.scatter(ctx, lane, &image, self.reduce)?;
        let clock = ctx.cluster.order.release(unit);
        ctx.warp.asyncs.groups.lanes[lane].open.join(&clock);
        Ok(())
    }
}

/// `cp.async.bulk.commit_group`.
pub fn commit(ctx: &mut Context<'_>, mask: Mask) {
    for lane in lanes(mask) {
        let group = &mut ctx.warp.asyncs.groups.lanes[lane];
        group.committed.push_back(std::mem::take(&mut group.open));
    }
}

/// `cp.async.bulk.wait_group`: what the finished groups read may be written from now on.
pub fn wait(ctx: &mut Context<'_>, mask: Mask, allowed: u32) {
    let unit = ctx.unit();
    for lane in lanes(mask) {
        while ctx.warp.asyncs.groups.lanes[lane].committed.len() > allowed as usize {
            let finished = ctx.warp.asyncs.groups.lanes[lane].committed.pop_front();
            let clock = finished.unwrap_or_default();
            ctx.cluster.order.acquire_lanes(unit, 1 << lane, &clock);
        }
    }
}

/// What the parts of an opcode say.
#[derive(Default)]
struct Form {
    /// Destination, source.
    spaces: Vec<Space>,
    rank: Option<usize>,
    barrier: bool,
    multicast: bool,
    hint: bool,
    reduce: Option<Reduce>,
}

impl Form {
    fn of<'a>(l: &Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let mut form = Form::default();
        let (mut group, mut op, mut ty) = (false, None, None);
        let reducing = i.parts[1] == "reduce";
        for &part in &i.parts[if reducing { 4 } else { 3 }..] {
            match part {
                "tensor" | "tile" | "noftz" => {}
                "1d" | "2d" | "3d" | "4d" | "5d" => {
                    form.rank = part[..1].parse().ok();
                }
                "shared::cluster" => form.spaces.push(Space::Cluster),
                "shared::cta" => form.spaces.push(Space::Shared),
                "global" => form.spaces.push(Space::Global),
                "mbarrier::complete_tx::bytes" => form.barrier = true,
                "bulk_group" => group = true,
                "multicast::cluster" => form.multicast = true,
                "L2::cache_hint" => form.hint = true,
                "add" => op = Some(Operation::Add),
                "min" => op = Some(Operation::Min),
                "max" => op = Some(Operation::Max),
                "inc" => op = Some(Operation::Inc),
                "dec" => op = Some(Operation::Dec),
                "and" => op = Some(Operation::And),
                "or" => op = Some(Operation::Or),
                "xor" => op = Some(Operation::Xor),
                _ => match Ty::parse(part) {
                    Some(found) => ty = Some(found),
                    None => return l.error(format!("unknown form {}", i.parts.join("."))),
                },
            }
        }
        form.reduce = op.map(|op| (op, ty));
        let tensor = i.parts.contains(&"tensor");
        let right = form.barrier != group
            && reducing == op.is_some()
            && (reducing && !tensor) == ty.is_some()
            && tensor == form.rank.is_some();
        match right {
            true => Ok(form),
            false => l.error(format!("unknown form {}", i.parts.join("."))),
        }
    }
}

/// The coordinates of `[map, {x, y}]`.
fn coordinates<'a>(
    l: &mut Lowerer<'a>,
    operand: &'a Operand<'a>,
    rank: usize,
) -> Lowered<Vec<Src>> {
    let Operand::Address { coordinates: Some(coordinates), .. } = operand else {
        return l.error("expected a tensor map and coordinates");
    };
    if coordinates.len() != rank {
        return l.error(format!("expected {rank} coordinates, found {}", coordinates.len()));
    }
    coordinates.iter().map(|coordinate| l.src(Ty::S32, coordinate)).collect()
}
