//! How many hardware registers a kernel would need, estimated: the most 32-bit values alive at once.
//!
//! ptxas may do better by computing values again, or worse by pipelining; the estimate says whether a
//! launch would fit, not what ptxas would print.

use crate::ir::{Control, Inst, Op, Reg};

/// Registers an instruction reads and writes.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    pub reads: Vec<Reg>,
    pub writes: Vec<Reg>,
}

/// What every kernel needs beside its values, and what an instruction can name at most.
const LEAST: u32 = 16;
const MOST: u32 = 255;

/// Estimated registers per thread; `slots` as in [`crate::ir::Kernel::slots`].
///
/// Backward liveness over basic blocks (Aho, Lam, Sethi, Ullman: Compilers, section 9.2.5).
pub fn estimate(code: &[Inst], uses: &[Uses], slots: [u32; 3]) -> u32 {
    let space = Numbering { r: 0, d: slots[1] as usize, end: (slots[1] + slots[2]) as usize };
    let blocks = blocks(code);
    let mut live_in: Vec<Bits> = blocks.iter().map(|_| Bits::new(space.end)).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (index, block) in blocks.iter().enumerate().rev() {
            let mut live = block.live_out(&live_in, space.end);
            for pc in block.range() {
                space.step(&mut live, &code[pc], &uses[pc]);
            }
            if live != live_in[index] {
                live_in[index] = live;
                changed = true;
            }
        }
    }
    let mut most = 0;
    for block in &blocks {
        let mut live = block.live_out(&live_in, space.end);
        let mut size = space.size(&live);
        for pc in block.range() {
            // What is written must lie somewhere even if nobody reads it.
            most = most.max(size);
            size = (i64::from(size) + space.step(&mut live, &code[pc], &uses[pc])) as u32;
        }
        most = most.max(size);
    }
    (most + 4).clamp(LEAST, MOST)
}

struct Block {
    from: usize,
    to: usize,
    next: Vec<usize>,
}

impl Block {
    /// Its instructions, last first.
    fn range(&self) -> impl Iterator<Item = usize> {
        (self.from..self.to).rev()
    }

    fn live_out(&self, live_in: &[Bits], size: usize) -> Bits {
        let mut live = Bits::new(size);
        self.next.iter().for_each(|&next| live.join(&live_in[next]));
        live
    }
}

fn blocks(code: &[Inst]) -> Vec<Block> {
    let mut begins = vec![false; code.len() + 1];
    begins[0] = true;
    for (pc, inst) in code.iter().enumerate() {
        let Op::Control(control) = &inst.op else { continue };
        targets(control).for_each(|target| begins[target] = true);
        if !matches!(control, Control::Nop | Control::Yield | Control::Call(_)) {
            begins[pc + 1] = true;
        }
    }
    let mut starts: Vec<usize> = (0..code.len()).filter(|&pc| begins[pc]).collect();
    let at = |starts: &[usize], pc: usize| starts.binary_search(&pc).ok();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([code.len()]);
    let block = |(&from, to): (&usize, usize)| {
        let last = &code[to - 1];
        let mut next = Vec::new();
        let mut falls = true;
        if let Op::Control(control) = &last.op {
            next.extend(targets(control).filter_map(|target| at(&starts, target)));
            let ends = !matches!(control, Control::Nop | Control::Yield | Control::Call(_));
            falls = !ends || last.guard.is_some();
        }
        if falls {
            next.extend(at(&starts, to));
        }
        Block { from, to, next }
    };
    starts.iter().zip(ends).map(block).collect()
}

fn targets(control: &Control) -> impl Iterator<Item = usize> {
    let many: &[u32] = match control {
        Control::Branch { target } => std::slice::from_ref(target),
        Control::BranchTable { targets, .. } => targets,
        _ => &[],
    };
    many.iter().map(|&target| target as usize)
}

/// Numbers 32- and 64-bit registers in one row; predicates have a file of their own.
struct Numbering {
    r: usize,
    d: usize,
    end: usize,
}

impl Numbering {
    fn numbers(&self, reg: Reg) -> impl Iterator<Item = usize> {
        let (first, n) = match reg {
            Reg::P(_) => (0, 0),
            Reg::R(slot) => (self.r + slot as usize, 1),
            Reg::D(slot) => (self.d + slot as usize, 1),
            Reg::Q(slot) => (self.d + slot as usize, 2),
        };
        first..first + n
    }

    fn width(&self, number: usize) -> i64 {
        if number < self.d { 1 } else { 2 }
    }

    /// Steps backward over an instruction; by how many 32-bit values that changes what is alive.
    fn step(&self, live: &mut Bits, inst: &Inst, uses: &Uses) -> i64 {
        let mut change = 0;
        // A guarded write leaves the old value in some lanes.
        if inst.guard.is_none() {
            for number in uses.writes.iter().flat_map(|&reg| self.numbers(reg)) {
                change -= if live.remove(number) { self.width(number) } else { 0 };
            }
        }
        for number in uses.reads.iter().flat_map(|&reg| self.numbers(reg)) {
            change += if live.insert(number) { self.width(number) } else { 0 };
        }
        change
    }

    fn size(&self, live: &Bits) -> u32 {
        (0..self.end).filter(|&n| live.has(n)).map(|n| self.width(n) as u32).sum()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Self {
        Self(vec![0; n.div_ceil(64)])
    }

    fn has(&self, n: usize) -> bool {
        self.0[n / 64] >> (n % 64) & 1 == 1
    }

    /// True if it was not in.
    fn insert(&mut self, n: usize) -> bool {
        let new = !self.has(n);
        self.0[n / 64] |= 1 << (n % 64);
        new
    }

    /// True if it was in.
    fn remove(&mut self, n: usize) -> bool {
        let old = self.has(n);
        self.0[n / 64] &= !(1 << (n % 64));
        old
    }

    fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}
