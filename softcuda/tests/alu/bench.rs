//! A bench of registers on which single instructions run.

use softcuda::alu::{self, Alu};
use softcuda::ir::{LANES, Mask, Op, Reg};
use softcuda::lower::{self, Symbols};
use softcuda::ptx::parse;
use softcuda::registers::{Place, Registers};

/// Registers `%r0…` (32 bits), `%h0…` (16), `%d0…` (64), `%p0…`, sixteen of each, and `%q0…%q3` (128).
pub struct Bench {
    pub regs: Registers,
    pub mask: Mask,
}

const DECLARATIONS: &str = ".reg .pred %p<16>; .reg .b32 %r<16>; .reg .b16 %h<16>;
    .reg .b64 %d<16>; .reg .b128 %q<4>;";

/// First slots of the 16-bit and the 128-bit registers.
const HALVES: usize = 16;
pub const QUADS: usize = 16;

/// Where `check` expects the result.
const RESULT: usize = 8;

impl Bench {
    pub fn new() -> Self {
        Self { regs: Registers::new([64, 64, 64]), mask: Mask::MAX }
    }

    pub fn execute(&mut self, ops: &[Alu]) {
        for op in ops {
            alu::execute(op, &mut self.regs, &place(), self.mask).expect("no fault");
        }
    }

    pub fn run(&mut self, text: &str) {
        self.execute(&lowered(text).unwrap_or_else(|error| panic!("{text}: {error}")));
    }

    /// Sets the register of an index in all banks; predicates get the lowest bit.
    pub fn set(&mut self, index: usize, f: impl Fn(usize) -> u64) {
        let values: [u64; LANES] = std::array::from_fn(f);
        self.regs.write64(Reg::D(index as u32), Mask::MAX, &values);
        self.regs.write64(Reg::R(index as u32), Mask::MAX, &values);
        let half = Reg::R((HALVES + index) as u32);
        self.regs.write64(half, Mask::MAX, &values.map(|value| u64::from(value as u16)));
        self.regs.p[index] = (0..LANES).fold(0, |mask, n| mask | (values[n] as u32 & 1) << n);
    }

    pub fn get(&self, bank: char, index: usize) -> [u64; LANES] {
        match bank {
            'p' => std::array::from_fn(|n| u64::from(self.regs.p[index] >> n & 1)),
            'r' => self.regs.r()[index].map(u64::from),
            'h' => self.regs.r()[HALVES + index].map(u64::from),
            _ => self.regs.d()[index],
        }
    }

    pub fn get128(&self, index: usize) -> [u128; LANES] {
        let slot = QUADS + 2 * index;
        let (low, high) = (self.regs.d()[slot], self.regs.d()[slot + 1]);
        std::array::from_fn(|n| u128::from(high[n]) << 64 | u128::from(low[n]))
    }
}

/// Runs an instruction from register 0 and up into register 8 on all cases, 32 at a time.
pub fn check<const N: usize>(text: &str, cases: &[[u64; N]], oracle: impl Fn([u64; N]) -> u64) {
    let ops = lowered(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let found = ['h', 'r', 'd', 'p'].into_iter().find(|b| text.contains(&format!("%{b}{RESULT}")));
    let bank = found.expect("a result in register 8");
    for chunk in cases.chunks(LANES) {
        let mut bench = Bench::new();
        let source = |lane: usize, n: usize| chunk[lane % chunk.len()][n];
        (0..N).for_each(|n| bench.set(n, |lane| source(lane, n)));
        bench.execute(&ops);
        let results = bench.get(bank, RESULT);
        for (case, result) in chunk.iter().zip(results) {
            let expected = oracle(*case);
            assert!(result == expected, "{text} of {case:x?}: {result:#x}, expected {expected:#x}");
        }
    }
}

/// All combinations of some values, and as many of random bits mixed with them.
pub fn cases<const N: usize>(values: &[u64], random: usize) -> Vec<[u64; N]> {
    let all = values.len().pow(N as u32);
    let mut next = generator(0x9e37_79b9_7f4a_7c15 ^ all as u64);
    let combination = |index: usize| {
        std::array::from_fn(|n| values[index / values.len().pow(n as u32) % values.len()])
    };
    let mut cases: Vec<[u64; N]> = match all {
        ..=20_000 => (0..all).map(combination).collect(),
        _ => (0..20_000).map(|_| combination(next() as usize % all)).collect(),
    };
    for _ in 0..random {
        cases.push(std::array::from_fn(|_| match next() % 4 {
            0 => values[next() as usize % values.len()],
            _ => next(),
        }));
    }
    cases
}

/// Random bits, the same in every run.
pub fn generator(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

pub fn lowered(text: &str) -> Result<Vec<Alu>, String> {
    let text = format!(
        ".version 8.7\n.target sm_100a\n.address_size 64\n.global .b32 symbol;
         .visible .entry k(.param .u64 a)\n{{\n{DECLARATIONS}\n.local .b32 place[4];\n{text}\n}}"
    );
    let module = parse(&text).map_err(|error| error.to_string())?;
    let symbols = Symbols::from([("symbol", 0x0a00_1234_5678_9abc)]);
    let kernels = lower::kernels(&module, &symbols).map_err(|error| error.to_string())?;
    let ops = kernels[0].code.iter().filter_map(|inst| match &inst.op {
        Op::Alu(op) => Some((**op).clone()),
        _ => None,
    });
    Ok(ops.collect())
}

pub fn place() -> Place {
    Place {
        tid: [std::array::from_fn(|n| n as u32), [0; LANES], [0; LANES]],
        block_dim: [32, 1, 1],
        block: [5, 6, 7],
        grid: [8, 9, 10],
        warp: 0,
        warps: 1,
        linear_block: 0,
        cluster_dim: [1; 3],
        cluster_rank: 0,
        explicit_cluster: false,
        launch: 1,
        static_shared: 1024,
        dynamic_shared: 64,
        multiprocessors: 4,
        clock: 99,
        frame: 256,
    }
}
