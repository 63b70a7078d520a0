//! `st.async` and `red.async`: stores to another block's shared memory that an mbarrier there counts.

use super::barriers::{self, Arriving};
use super::place::{addresses, aligned, shared};
use crate::counters::Counter;
use crate::fault::{Check, Fault};
use crate::ir::{Addr, Mask, SHARED_WINDOW, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::machine::Context;
use crate::memory::{Operation, cluster_address, reduce, shared_write};
use crate::ptx::ast::Instruction;
use crate::registers::lanes;

#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    pub to: Addr,
    pub space: Space,
    pub barrier: Addr,
    pub ty: Ty,
    pub values: Vec<Src>,
    pub reduce: Option<Operation>,
}

impl Remote {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let (mut space, mut ty, mut count) = (Space::Generic, None, 1);
        let (mut counted, mut op) = (false, None);
        for &part in &i.parts[2..] {
            match part {
                "weak" | "relaxed" | "cluster" => {}
                "shared::cluster" => space = Space::Cluster,
                "mbarrier::complete_tx::bytes" => counted = true,
                "v2" => count = 2,
                "v4" => count = 4,
                "inc" => op = Some(Operation::Inc),
                "dec" => op = Some(Operation::Dec),
                "min" => op = Some(Operation::Min),
                "max" => op = Some(Operation::Max),
                "and" => op = Some(Operation::And),
                "or" => op = Some(Operation::Or),
                "xor" => op = Some(Operation::Xor),
                "add" => op = Some(Operation::Add),
                _ => match Ty::parse(part).filter(|ty| matches!(ty.bits(), 32 | 64)) {
                    Some(found) => ty = Some(found),
                    None => return l.error(format!("unknown form {}", i.parts.join("."))),
                },
            }
        }
        let reducing = i.parts[0] == "red";
        let (Some(ty), true) = (ty, counted && reducing == op.is_some()) else {
            return l.error(format!("unknown form {}", i.parts.join(".")));
        };
        let [to, values, barrier] = operands(i)?;
        let (to, space) = l.address(to, space)?;
        let (barrier, _) = l.address(barrier, space)?;
        let values = l.vector(values);
        if values.len() != count || reducing && count > 1 {
            return l.error(format!("expected {count} values, found {}", values.len()));
        }
        let values = values.iter().map(|value| l.src(ty, value)).collect::<Lowered<_>>()?;
        Ok(Self { to, space, barrier, ty, values, reduce: op })
    }

    pub fn execute(&self, ctx: &mut Context<'_>, mask: Mask) -> Result<(), Fault> {
        let to = addresses(ctx, self.to, self.space);
        let barriers = addresses(ctx, self.barrier, self.space);
        let values: Vec<_> =
            self.values.iter().map(|&src| ctx.warp.regs.read64(src, &ctx.warp.place)).collect();
        let size = self.ty.bytes() as usize;
        for lane in lanes(mask) {
            let bytes: Vec<u8> =
                values.iter().flat_map(|v| v[lane].to_le_bytes()[..size].to_vec()).collect();
            aligned(lane, to[lane], bytes.len() as u64)?;
            let (rank, addr) = shared(ctx, self.space, lane, to[lane])?;
            let (barrier_rank, barrier) = shared(ctx, self.space, lane, barriers[lane])?;
            if rank != barrier_rank {
                let what = "the mbarrier of a store is in another block than its destination";
                return Err(Fault::new(Check::Trap, what).lane(lane).address(to[lane]));
            }
            let range = match self.reduce {
                None => {
                    shared_write(ctx, rank, lane, addr, &bytes)?;
                    vec![(addr, bytes.len() as u32)]
                }
                // Others may combine with the same place meanwhile.
                Some(op) => {
                    let address = SHARED_WINDOW + u64::from(cluster_address(rank, addr));
                    reduce(ctx, lane, address, op, self.ty, &bytes)?;
                    ctx.count(Counter::Atomics, 1);
                    Vec::new()
                }
            };
            let arriving = Arriving { range, bytes: bytes.len() as u32 };
            barriers::send(ctx, (rank, barrier), lane, ctx.unit(), arriving)?;
        }
        Ok(())
    }
}
