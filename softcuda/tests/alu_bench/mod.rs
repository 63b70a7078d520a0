//! A bench of registers on which single instructions run.

use softcuda::alu;
use softcuda::ir::{LANES, Mask, Op};
use softcuda::lower::{self, Symbols};
use softcuda::ptx::parse;
use softcuda::registers::{Place, Registers};

/// Registers `%r0…` (32 bits), `%h0…` (16), `%d0…` (64), `%p0…`, `%q0…` (128), sixteen of each, four of the last.
pub struct Bench {
    pub regs: Registers,
    pub mask: Mask,
}

const DECLARATIONS: &str = ".reg .pred %p<16>; .reg .b32 %r<16>; .reg .b16 %h<16>;
    .reg .b64 %d<16>; .reg .b128 %q<4>;";

/// Slots of the 16-bit and the 128-bit registers.
const HALVES: usize = 16;
const QUADS: usize = 16;

#[allow(dead_code)]
impl Bench {
    pub fn new() -> Self {
        Self { regs: Registers::new([64, 64, 64]), mask: Mask::MAX }
    }

    /// Lowers and executes a few instructions.
    ///
    /// # Errors
    ///
    /// The lowering's refusal.
    pub fn try_run(&mut self, text: &str) -> Result<(), String> {
        let text = format!(
            ".version 8.7\n.target sm_100a\n.address_size 64\n.visible .entry k()\n{{\n{DECLARATIONS}\n{text}\n}}"
        );
        let module = parse(&text).map_err(|error| error.to_string())?;
        let kernels =
            lower::kernels(&module, &Symbols::new()).map_err(|error| error.to_string())?;
        for inst in &kernels[0].code {
            if let Op::Alu(op) = &inst.op {
                alu::execute(op, &mut self.regs, &place(), self.mask).map_err(|f| f.detail)?;
            }
        }
        Ok(())
    }

    pub fn run(&mut self, text: &str) {
        self.try_run(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    pub fn set32(&mut self, register: usize, f: impl Fn(usize) -> u32) -> &mut Self {
        self.regs.r[register] = std::array::from_fn(f);
        self
    }

    pub fn set16(&mut self, register: usize, f: impl Fn(usize) -> u16) -> &mut Self {
        self.regs.r[HALVES + register] = std::array::from_fn(|n| u32::from(f(n)));
        self
    }

    pub fn set64(&mut self, register: usize, f: impl Fn(usize) -> u64) -> &mut Self {
        self.regs.d[register] = std::array::from_fn(f);
        self
    }

    pub fn get32(&self, register: usize) -> [u32; LANES] {
        self.regs.r[register]
    }

    /// Checks that the upper half of the slot is zero.
    pub fn get16(&self, register: usize) -> [u16; LANES] {
        self.regs.r[HALVES + register].map(|bits| bits.try_into().expect("16 bits"))
    }

    pub fn get64(&self, register: usize) -> [u64; LANES] {
        self.regs.d[register]
    }

    pub fn get128(&self, register: usize) -> [u128; LANES] {
        let slot = QUADS + 2 * register;
        let (low, high) = (self.regs.d[slot], self.regs.d[slot + 1]);
        std::array::from_fn(|n| u128::from(high[n]) << 64 | u128::from(low[n]))
    }
}

fn place() -> Place {
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
