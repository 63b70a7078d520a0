//! Lowering of the instructions on mbarriers.

use super::{Action, Operation, Until};
use crate::bulk::mbarrier::Kind;
use crate::ir::{Reg, Space, Src, Ty};
use crate::lower::{Lowered, Lowerer, operands};
use crate::ptx::ast::{Instruction, Operand};

impl Operation {
    pub fn lower<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let mut space = Space::Generic;
        let (mut relaxed, mut expect, mut complete, mut parity) = (false, false, true, false);
        for &part in i.parts.get(2..).unwrap_or_default() {
            match part {
                "shared" | "shared::cta" => space = Space::Shared,
                "shared::cluster" => space = Space::Cluster,
                "relaxed" => relaxed = true,
                "expect_tx" => expect = true,
                "noComplete" => complete = false,
                "parity" => parity = true,
                "b64" | "release" | "acquire" | "cta" | "cluster" => {}
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let one = |l: &mut Lowerer<'a>| -> Lowered<(&'a Operand<'a>, Src)> {
            let [address, count] = operands(i)?;
            Ok((address, l.src(Ty::U32, count)?))
        };
        let (address, kind) = match i.parts[1] {
            "init" => one(l).map(|(address, count)| (address, Action::Init(count)))?,
            "expect_tx" => one(l).map(|(address, bytes)| (address, Action::Expect(bytes)))?,
            "complete_tx" => one(l).map(|(address, bytes)| (address, Action::Complete(bytes)))?,
            "inval" => {
                let [address] = operands(i)?;
                (address, Action::Invalidate)
            }
            "arrive" | "arrive_drop" => {
                let [state, address, rest @ ..] = i.operands.as_slice() else {
                    return l.error("expected a state and an address");
                };
                let state = match state {
                    Operand::Sink => None,
                    register => Some(l.dst(Ty::B64, register)?),
                };
                let number = match rest {
                    [] => Src::Imm(1),
                    [count] => l.src(Ty::U32, count)?,
                    _ => return l.error("too many operands"),
                };
                let (count, expect) =
                    if expect { (Src::Imm(1), Some(number)) } else { (number, None) };
                let kind = match (i.parts[1], complete) {
                    ("arrive", true) => Kind::Arrive,
                    ("arrive", false) => Kind::NoComplete,
                    (_, true) => Kind::Drop,
                    (_, false) => Kind::DropNoComplete,
                };
                (address, Action::Arrive { state, kind, count, expect, release: !relaxed })
            }
            "test_wait" | "try_wait" => {
                let patient = i.parts[1] == "try_wait";
                let (done, address, until) = match i.operands.as_slice() {
                    [done, address, until] => (done, address, until),
                    [done, address, until, _hint] if patient => (done, address, until),
                    _ => return l.error("expected a predicate, an address and what to wait for"),
                };
                let Reg::P(done) = l.dst(Ty::Pred, done)? else {
                    return l.error("expected a predicate");
                };
                let until = match parity {
                    true => Until::Parity(l.src(Ty::U32, until)?),
                    false => Until::State(l.src(Ty::B64, until)?),
                };
                (address, Action::Wait { done, until, patient, acquire: !relaxed })
            }
            _ => return l.error(format!("unknown form {}", i.parts.join("."))),
        };
        let (addr, space) = l.address(address, space)?;
        Ok(Self { addr, space, kind })
    }

    /// `cp.async.mbarrier.arrive{.noinc}{.shared}.b64 [addr]`.
    pub fn lower_copies<'a>(l: &mut Lowerer<'a>, i: &'a Instruction<'a>) -> Lowered<Self> {
        let (mut increment, mut space) = (true, Space::Generic);
        for &part in &i.parts[4..] {
            match part {
                "noinc" => increment = false,
                "shared" | "shared::cta" => space = Space::Shared,
                "b64" => {}
                _ => return l.error(format!("unknown form {}", i.parts.join("."))),
            }
        }
        let [address] = operands(i)?;
        let (addr, space) = l.address(address, space)?;
        Ok(Self { addr, space, kind: Action::CopiesArrive { increment } })
    }
}
