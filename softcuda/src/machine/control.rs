//! Branches, calls and returns: execution.

use super::context::WarpState;
use super::warp::{Machine, Split};
use crate::fault::{Check, Fault};
use crate::ir::{Call, Callee, Control, FUNCTION_WINDOW, FunctionCode, LANES, Mask};
use crate::memory;
use crate::registers::lanes;

/// Where lanes go.
#[derive(Debug, Clone, PartialEq)]
pub enum Jump {
    To(u32),
    Call(Box<Entered>),
    Return,
    Exit,
}

/// A function about to be entered.
#[derive(Debug, Clone, PartialEq)]
pub struct Entered {
    pub target: u32,
    /// Where its frame begins.
    pub base: u32,
    pub frame: Frame,
}

/// What a return needs: one entry of a call stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    return_pc: u32,
    /// The caller's frame.
    base: u32,
    /// `(from in the callee's frame, to in the caller's, bytes)`.
    returns: Vec<(u32, u32, u32)>,
    saved: Option<Box<Saved>>,
}

/// Registers of a recursive function, kept over a call.
#[derive(Debug, Clone, PartialEq)]
struct Saved {
    first: [usize; 3],
    p: Vec<Mask>,
    r: Vec<[u32; LANES]>,
    d: Vec<[u64; LANES]>,
}

pub(super) fn execute(
    op: &Control,
    machine: &mut Machine<'_, '_>,
    warp: &mut WarpState,
    split: &mut Split,
    mask: Mask,
) -> Result<Vec<(Mask, Jump)>, Fault> {
    let next = split.pc + 1;
    Ok(match op {
        Control::Branch { target } => vec![(mask, Jump::To(*target))],
        Control::BranchTable { index, targets } => {
            let indices = warp.regs.read32(*index, &warp.place);
            by_value(&indices, mask)
                .into_iter()
                .map(|(mask, index)| match targets.get(index as usize) {
                    Some(&target) => Ok((mask, Jump::To(target))),
                    None => {
                        let what = format!("branch table has no entry {index}");
                        Err(Fault::new(Check::Trap, what).lane(first(mask)))
                    }
                })
                .collect::<Result<_, _>>()?
        }
        Control::Call(call) => return self::call(call, machine, warp, split, mask),
        Control::Return if split.frames.is_empty() => vec![(mask, Jump::Exit)],
        Control::Return => vec![(mask, Jump::Return)],
        Control::Exit => vec![(mask, Jump::Exit)],
        Control::Trap => return Err(Fault::new(Check::Trap, "trap").lane(first(mask))),
        Control::Nop | Control::Yield => vec![(mask, Jump::To(next))],
    })
}

fn call(
    call: &Call,
    machine: &mut Machine<'_, '_>,
    warp: &mut WarpState,
    split: &Split,
    mask: Mask,
) -> Result<Vec<(Mask, Jump)>, Fault> {
    let next = vec![(mask, Jump::To(split.pc + 1))];
    let kernel = machine.launch.kernel;
    match &call.callee {
        Callee::Printf => {
            let mut token = None;
            let mut context = machine.context(warp, &mut token, split.pc);
            super::printf::printf(call, &mut context, mask)?;
            Ok(next)
        }
        Callee::AssertFail => {
            let mut token = None;
            let mut context = machine.context(warp, &mut token, split.pc);
            Err(super::printf::assertion(call, &mut context, first(mask)))
        }
        Callee::Function(index) => {
            let function = &kernel.functions[*index as usize];
            Ok(vec![(mask, enter(call, function, warp, split, mask)?)])
        }
        Callee::Indirect(address) => {
            let addresses = warp.regs.read64(*address, &warp.place);
            let index = addresses.map(|address| address.wrapping_sub(FUNCTION_WINDOW));
            let mut parts = Vec::new();
            for (mask, index) in by_value(&index, mask) {
                let function = usize::try_from(index).ok().and_then(|i| kernel.functions.get(i));
                let Some(function) = function else {
                    let what = "call through a pointer that is no function's";
                    let fault = Fault::new(Check::Trap, what).lane(first(mask));
                    return Err(fault.address(addresses[first(mask)]));
                };
                parts.push((mask, enter(call, function, warp, split, mask)?));
            }
            Ok(parts)
        }
    }
}

fn enter(
    call: &Call,
    function: &FunctionCode,
    warp: &mut WarpState,
    split: &Split,
    mask: Mask,
) -> Result<Jump, Fault> {
    let base = split.frame + call.frame;
    if u64::from(base) + u64::from(function.frame) > u64::from(memory::LOCAL_BYTES) {
        let what = format!("calling {} overflows the stack", function.name);
        return Err(Fault::new(Check::StackOverflow, what).lane(first(mask)));
    }
    if call.arguments.len() != function.parameters.len()
        || call.returns.len() > function.returns.len()
    {
        let what = format!("{} is called with another signature", function.name);
        return Err(Fault::new(Check::Trap, what).lane(first(mask)));
    }
    warp.local.clear(mask, base, function.frame);
    for (&(from, bytes), &(to, _)) in call.arguments.iter().zip(&function.parameters) {
        warp.local.copy(mask, split.frame + from, base + to, bytes);
    }
    let returns = (call.returns.iter().zip(&function.returns))
        .map(|(&(to, bytes), &(from, _))| (from, to, bytes))
        .collect();
    let saved = function.recursive.then(|| {
        let [p, r, d] = function.slots.map(|(from, to)| from as usize..to as usize);
        Box::new(Saved {
            first: [p.start, r.start, d.start],
            p: warp.regs.p[p].to_vec(),
            r: warp.regs.r()[r].to_vec(),
            d: warp.regs.d()[d].to_vec(),
        })
    });
    let frame = Frame { return_pc: split.pc + 1, base: split.frame, returns, saved };
    Ok(Jump::Call(Box::new(Entered { target: function.entry, base, frame })))
}

/// Returns from a function: results and saved registers go back to the caller.
pub(super) fn leave(warp: &mut WarpState, split: &mut Split) -> Result<(), Fault> {
    let frame = split.frames.pop().expect("a return without a frame exits");
    for &(from, to, bytes) in &frame.returns {
        warp.local.copy(split.mask, split.frame + from, frame.base + to, bytes);
    }
    if let Some(saved) = &frame.saved {
        for (i, &values) in saved.p.iter().enumerate() {
            warp.regs.write_predicate((saved.first[0] + i) as u32, split.mask, values);
        }
        for (i, values) in saved.r.iter().enumerate() {
            let slot = crate::ir::Reg::R((saved.first[1] + i) as u32);
            warp.regs.write32(slot, split.mask, values);
        }
        for (i, values) in saved.d.iter().enumerate() {
            let slot = crate::ir::Reg::D((saved.first[2] + i) as u32);
            warp.regs.write64(slot, split.mask, values);
        }
    }
    split.frame = frame.base;
    split.pc = frame.return_pc;
    Ok(())
}

/// Equal stacks apart from what the lanes saved.
pub(super) fn same_frames(a: &[Frame], b: &[Frame]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.return_pc == b.return_pc && a.base == b.base)
}

/// Takes over what the lanes of `mask` saved.
pub(super) fn join_frames(into: &mut [Frame], from: &[Frame], mask: Mask) {
    for (into, from) in into.iter_mut().zip(from) {
        let (Some(into), Some(from)) = (&mut into.saved, &from.saved) else { continue };
        for (into, from) in into.p.iter_mut().zip(&from.p) {
            *into = (*into & !mask) | (from & mask);
        }
        for lane in lanes(mask) {
            into.r.iter_mut().zip(&from.r).for_each(|(into, from)| into[lane] = from[lane]);
            into.d.iter_mut().zip(&from.d).for_each(|(into, from)| into[lane] = from[lane]);
        }
    }
}

/// Lanes grouped by equal values, in the order of their first lanes.
fn by_value<T: Copy + PartialEq>(values: &[T; LANES], mask: Mask) -> Vec<(Mask, T)> {
    let mut groups: Vec<(Mask, T)> = Vec::new();
    for lane in lanes(mask) {
        match groups.iter_mut().find(|(_, value)| *value == values[lane]) {
            Some((group, _)) => *group |= 1 << lane,
            None => groups.push((1 << lane, values[lane])),
        }
    }
    groups
}

fn first(mask: Mask) -> usize {
    mask.trailing_zeros() as usize
}
