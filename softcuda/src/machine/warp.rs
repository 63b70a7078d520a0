//! A warp: its lanes' places in the program, and the loop that executes them.
//!
//! Lanes that go different ways are *splits*, each with its own program counter and call stack. The split
//! with the lowest counter runs first, and splits meet again when their counters and stacks are equal:
//! reconvergence as early as the order of the code allows. A split that jumps backward often lets the
//! others go first for a while, so that a lane that spins cannot starve the one it waits for.

use super::context::{Cluster, Context, Executed, Flow, Launch, WarpState, Why};
use super::control::{self, Frame, Jump};
use crate::alu;
use crate::counters::{Counter, Counters};
use crate::fault::Fault;
use crate::ir::{Mask, Op};
use crate::{bulk, collective, matrix, memory};

/// Backward jumps after which a split waits for the others of its warp.
const PATIENCE: u32 = 32;

/// Lanes at one place of the program.
#[derive(Debug, Clone)]
pub struct Split {
    pub pc: u32,
    pub mask: Mask,
    pub frames: Vec<Frame>,
    /// Where the current function's frame begins.
    pub frame: u32,
    /// Why it could not go on when last tried.
    pub waiting: Option<Why>,
    token: Option<u64>,
    /// Backward jumps since all splits last had their turn.
    jumps: u32,
}

#[derive(Debug)]
pub struct Warp {
    pub state: WarpState,
    pub splits: Vec<Split>,
}

/// How a warp's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// All lanes have exited.
    Done,
    /// Every split waits for something outside the warp.
    Blocked,
    /// Its time was over.
    Spent,
}

impl Warp {
    pub fn new(state: WarpState) -> Self {
        let split = Split {
            pc: 0,
            mask: state.alive,
            frames: Vec::new(),
            frame: 0,
            waiting: None,
            token: None,
            jumps: 0,
        };
        Self { state, splits: vec![split] }
    }

    pub fn done(&self) -> bool {
        self.splits.is_empty()
    }

    /// Executes up to `budget` instructions.
    ///
    /// # Errors
    ///
    /// The fault and the position of the instruction that raised it.
    pub(super) fn turn(
        &mut self,
        machine: &mut Machine<'_, '_>,
        budget: &mut u64,
    ) -> Result<Turn, (u32, Fault)> {
        self.splits.iter_mut().for_each(|split| split.waiting = None);
        let end = budget.saturating_sub(TURN);
        while *budget > end {
            if self.splits.is_empty() {
                return Ok(Turn::Done);
            }
            let Some(chosen) = self.choose() else { return Ok(Turn::Blocked) };
            let others = self.splits.len() > 1;
            // Alone, a split runs on; among others, each step may bring it to where another one is.
            loop {
                *budget = budget.saturating_sub(1);
                let pc = self.splits[chosen].pc;
                let changed = self.step(chosen, machine).map_err(|fault| (pc, fault))?;
                if changed || others || *budget <= end {
                    break;
                }
            }
            if self.splits.len() > 1 {
                self.merge();
            }
        }
        Ok(Turn::Spent)
    }

    /// The split to run: lowest position among those that can go on and still have patience.
    fn choose(&mut self) -> Option<usize> {
        if let [split] = self.splits.as_slice() {
            return split.waiting.is_none().then_some(0);
        }
        let lowest = |splits: &[Split], patience: u32| {
            let ready = splits.iter().enumerate();
            ready
                .filter(|(_, split)| split.waiting.is_none() && split.jumps < patience)
                .min_by_key(|(_, split)| (split.pc, split.mask.trailing_zeros()))
                .map(|(index, _)| index)
        };
        lowest(&self.splits, PATIENCE).or_else(|| {
            self.splits.iter_mut().for_each(|split| split.jumps = 0);
            lowest(&self.splits, PATIENCE)
        })
    }

    /// Executes one instruction of a split; true if the set of splits or their readiness changed.
    fn step(&mut self, chosen: usize, machine: &mut Machine<'_, '_>) -> Result<bool, Fault> {
        let split = &mut self.splits[chosen];
        let pc = split.pc;
        let inst = &machine.launch.kernel.code[pc as usize];
        let mask = match inst.guard {
            None => split.mask,
            Some(guard) => split.mask & self.state.regs.predicate(guard),
        };
        self.state.place.frame = split.frame;
        if mask == 0 {
            machine.counters.add(pc, Counter::Issued, 1);
            self.state.place.clock += 1;
            split.pc += 1;
            return Ok(false);
        }
        if let Op::Control(op) = &inst.op {
            machine.counters.add(pc, Counter::Issued, 1);
            machine.counters.add(pc, Counter::Lanes, u64::from(mask.count_ones()));
            self.state.place.clock += 1;
            return self.control(chosen, op, mask, machine);
        }
        let whole = split.mask;
        let mut context = machine.context(&mut self.state, &mut split.token, pc);
        match execute(&inst.op, &mut context, mask)? {
            Flow::Next => {
                // Counted when done: how often it had to be tried is the schedule's affair.
                machine.counters.add(pc, Counter::Issued, 1);
                machine.counters.add(pc, Counter::Lanes, u64::from(mask.count_ones()));
                self.state.place.clock += 1;
                split.token = None;
                split.pc += 1;
                if std::mem::take(&mut self.state.wake) {
                    self.splits.iter_mut().for_each(|split| split.waiting = None);
                }
                Ok(false)
            }
            Flow::Wait(why) => {
                // A guard may leave some lanes out: they go on.
                if mask != whole {
                    let mut rest = split.clone();
                    rest.mask = whole & !mask;
                    rest.pc += 1;
                    rest.token = None;
                    split.mask = mask;
                    self.splits.push(rest);
                }
                self.splits[chosen].waiting = Some(why);
                Ok(true)
            }
        }
    }

    fn control(
        &mut self,
        chosen: usize,
        op: &crate::ir::Control,
        mask: Mask,
        machine: &mut Machine<'_, '_>,
    ) -> Result<bool, Fault> {
        let split = &mut self.splits[chosen];
        let pc = split.pc;
        let mut parts = control::execute(op, machine, &mut self.state, split, mask)?;
        let rest = split.mask & !mask;
        if rest != 0 {
            parts.push((rest, Jump::To(pc + 1)));
        }
        if let [(_, Jump::To(target))] = parts.as_slice() {
            split.jumps += u32::from(*target <= pc);
            split.pc = *target;
            return Ok(false);
        }
        if parts.len() > 1 && parts.iter().filter(|(_, jump)| *jump != Jump::Exit).count() > 1 {
            machine.counters.add(pc, Counter::Divergent, 1);
        }
        let origin = self.splits.swap_remove(chosen);
        for (mask, jump) in parts {
            let mut split = Split { mask, ..origin.clone() };
            match jump {
                Jump::To(target) => {
                    split.jumps += u32::from(target <= pc);
                    split.pc = target;
                }
                Jump::Call(call) => {
                    split.frame = call.base;
                    split.pc = call.target;
                    split.frames.push(call.frame);
                }
                Jump::Return => control::leave(&mut self.state, &mut split)?,
                Jump::Exit => {
                    self.state.alive &= !mask;
                    machine.cluster.changes += 1;
                    let warp = self.state.place.warp as usize;
                    machine.cluster.blocks[machine.rank].alive[warp] = self.state.alive;
                    continue;
                }
            }
            self.splits.push(split);
        }
        Ok(true)
    }

    /// Joins splits that stand at the same place.
    fn merge(&mut self) {
        let mut index = 0;
        while index < self.splits.len() {
            let mut other = index + 1;
            while other < self.splits.len() {
                let (a, b) = (&self.splits[index], &self.splits[other]);
                let same = a.pc == b.pc
                    && a.token == b.token
                    && control::same_frames(&a.frames, &b.frames);
                if !same {
                    other += 1;
                    continue;
                }
                let other = self.splits.swap_remove(other);
                let split = &mut self.splits[index];
                control::join_frames(&mut split.frames, &other.frames, other.mask);
                split.mask |= other.mask;
                split.waiting = None;
                split.jumps = split.jumps.min(other.jumps);
            }
            index += 1;
        }
    }
}

/// Instructions of a warp before the next one has its turn.
const TURN: u64 = 4096;

/// Everything outside the warp that its instructions may touch.
pub(super) struct Machine<'m, 'l> {
    pub launch: &'m Launch<'l>,
    pub cluster: &'m mut Cluster,
    pub rank: usize,
    pub counters: &'m mut Counters,
}

impl Machine<'_, '_> {
    pub fn context<'c>(
        &'c mut self,
        warp: &'c mut WarpState,
        token: &'c mut Option<u64>,
        pc: u32,
    ) -> Context<'c> {
        Context {
            launch: self.launch,
            inst: &self.launch.kernel.code[pc as usize],
            pc,
            rank: self.rank,
            warp,
            cluster: &mut *self.cluster,
            counters: &mut *self.counters,
            token,
        }
    }
}

fn execute(op: &Op, context: &mut Context<'_>, mask: Mask) -> Executed {
    match op {
        Op::Alu(op) => {
            alu::execute(op, &mut context.warp.regs, &context.warp.place, mask)?;
            Ok(Flow::Next)
        }
        Op::Memory(op) => memory::execute(op, context, mask),
        Op::Warp(op) => collective::execute(op, context, mask),
        Op::Matrix(op) => matrix::execute(op, context, mask),
        Op::Async(op) => bulk::execute(op, context, mask),
        Op::Control(_) => unreachable!("handled by the warp"),
    }
}
