//! The devices softcuda can report itself as, and their limits.
//!
//! Sources: CUDA C++ Programming Guide, technical specifications per compute capability, and occupancy in
//! the tuning guides of Ampere, Hopper and Blackwell; clocks, caches and buses as the data-centre devices
//! of each generation report them.
//!
//! ```
//! use softcuda::architecture::{Architecture, BlockNeeds};
//!
//! let h100 = Architecture::find(90).expect("a known device");
//! // 64 registers a thread let half of the 2048 threads reside.
//! let block = BlockNeeds { threads: 256, registers: 64, shared: 0 };
//! assert_eq!(h100.resident_blocks(block), 4);
//! ```

/// A device model.
#[derive(Debug)]
pub struct Architecture {
    /// 90 for compute capability 9.0.
    pub number: u32,
    pub name: &'static str,
    pub multiprocessors: u32,
    /// Shared memory of a multiprocessor, and of a block that opted in, in bytes.
    pub shared_per_multiprocessor: u32,
    pub shared_opt_in: u32,
    pub clock_khz: u32,
    pub memory_clock_khz: u32,
    pub bus_bits: u32,
    pub l2_bytes: u32,
    pub copy_engines: u32,
    /// Blocks of a cluster: portable, and with the kernel's consent.
    pub cluster: Option<[u32; 2]>,
    /// How many times faster single than double precision is.
    pub double_ratio: u32,
}

pub const WARP: u32 = 32;
pub const MAX_THREADS: u32 = 1024;
pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
pub const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
pub const BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
pub const REGISTERS: u32 = 65536;
pub const MAX_REGISTERS_PER_THREAD: u32 = 255;
/// Registers are handed out to a warp in steps of so many.
const REGISTER_STEP: u32 = 256;
/// Static shared memory, or dynamic without consent.
pub const SHARED_PER_BLOCK: u32 = 48 << 10;
/// Shared memory that the system keeps for itself in every block.
pub const SHARED_RESERVED: u32 = 1 << 10;
const SHARED_STEP: u32 = 128;
pub const CONSTANT_BYTES: u32 = 64 << 10;

const MODELS: [Architecture; 3] = [
    Architecture {
        number: 80,
        name: "softcuda sm_80 (NVIDIA A100)",
        multiprocessors: 108,
        shared_per_multiprocessor: 164 << 10,
        shared_opt_in: 163 << 10,
        clock_khz: 1_410_000,
        memory_clock_khz: 1_215_000,
        bus_bits: 5120,
        l2_bytes: 40 << 20,
        copy_engines: 3,
        cluster: None,
        double_ratio: 2,
    },
    Architecture {
        number: 90,
        name: "softcuda sm_90 (NVIDIA H100)",
        multiprocessors: 132,
        shared_per_multiprocessor: 228 << 10,
        shared_opt_in: 227 << 10,
        clock_khz: 1_980_000,
        memory_clock_khz: 2_619_000,
        bus_bits: 5120,
        l2_bytes: 50 << 20,
        copy_engines: 3,
        cluster: Some([8, 16]),
        double_ratio: 2,
    },
    Architecture {
        number: 100,
        name: "softcuda sm_100 (NVIDIA B200)",
        multiprocessors: 148,
        shared_per_multiprocessor: 228 << 10,
        shared_opt_in: 227 << 10,
        clock_khz: 1_965_000,
        memory_clock_khz: 3_996_000,
        bus_bits: 7680,
        l2_bytes: 253 << 19,
        copy_engines: 3,
        cluster: Some([8, 16]),
        double_ratio: 2,
    },
];

/// What a block of a launch takes up.
#[derive(Debug, Clone, Copy)]
pub struct BlockNeeds {
    pub threads: u32,
    pub registers: u32,
    /// Static and dynamic shared memory.
    pub shared: u32,
}

impl Architecture {
    pub fn find(number: u32) -> Option<&'static Architecture> {
        MODELS.iter().find(|model| model.number == number)
    }

    /// Registers that a block of so many threads is given.
    pub fn registers_of_block(threads: u32, registers: u32) -> u32 {
        let warp = (registers * WARP).next_multiple_of(REGISTER_STEP);
        // Warps are spread over four schedulers, each with a quarter of the registers.
        warp * threads.div_ceil(WARP).next_multiple_of(4)
    }

    /// Blocks that a multiprocessor holds at once.
    pub fn resident_blocks(&self, needs: BlockNeeds) -> u32 {
        let BlockNeeds { threads, registers, shared } = needs;
        if threads == 0 || threads > MAX_THREADS {
            return 0;
        }
        let by_threads = THREADS_PER_MULTIPROCESSOR / threads.next_multiple_of(WARP);
        let warp = (registers.max(1) * WARP).next_multiple_of(REGISTER_STEP);
        let warps = 4 * (REGISTERS / 4 / warp);
        let by_registers = warps / threads.div_ceil(WARP);
        let used = (shared + SHARED_RESERVED).next_multiple_of(SHARED_STEP);
        let by_shared = self.shared_per_multiprocessor / used;
        BLOCKS_PER_MULTIPROCESSOR.min(by_threads).min(by_registers).min(by_shared)
    }

    /// Dynamic shared memory that lets `blocks` of so many threads be resident, at most.
    pub fn dynamic_shared(&self, blocks: u32, fixed: u32) -> u32 {
        let each = self.shared_per_multiprocessor / blocks.max(1) / SHARED_STEP * SHARED_STEP;
        each.saturating_sub(SHARED_RESERVED + fixed).min(self.shared_opt_in - fixed)
    }

    /// A `CU_DEVICE_ATTRIBUTE` by number; `None` for one that doesn't exist. Features that softcuda lacks
    /// (textures, arrays, virtual memory, sharing between processes) read 0.
    pub fn attribute(&self, number: i32) -> Option<i32> {
        const EMPTY: u32 = 0;
        let hopper = u32::from(self.number >= 90);
        let value: u32 = match number {
            1 => MAX_THREADS,
            2..=4 => MAX_BLOCK[number as usize - 2],
            5..=7 => MAX_GRID[number as usize - 5],
            8 => SHARED_PER_BLOCK,
            9 => CONSTANT_BYTES,
            10 => WARP,
            // Pitch.
            11 => i32::MAX as u32,
            12 | 82 => REGISTERS,
            13 => self.clock_khz,
            // Alignment of textures, their pitch, surfaces.
            14 | 30 => 512,
            51 => 32,
            // Copies that overlap kernels, and concurrent kernels.
            15 | 31 => 1,
            16 => self.multiprocessors,
            // Mapped host memory, ECC, unified addressing.
            19 | 32 | 41 => 1,
            36 => self.memory_clock_khz,
            37 => self.bus_bits,
            38 => self.l2_bytes,
            39 => THREADS_PER_MULTIPROCESSOR,
            40 => self.copy_engines,
            75 => self.number / 10,
            76 => self.number % 10,
            // Stream priorities, L1 for global and local, managed memory.
            78..=80 | 83 => 1,
            81 => self.shared_per_multiprocessor,
            87 => self.double_ratio,
            // Preemption, cooperative launches.
            90 | 95 => 1,
            // Managed memory is one memory for both: concurrent access is no matter.
            89 => 1,
            97 => self.shared_opt_in,
            99 => 1,
            106 => BLOCKS_PER_MULTIPROCESSOR,
            111 => SHARED_RESERVED,
            // Memory pools.
            115 => 1,
            120 | 127 => hopper,
            // Unified function pointers would need host addresses of kernels.
            126 => {
                if hopper == 1 {
                    4
                } else {
                    1
                }
            }
            // All others up to the last one known.
            17..=161 => EMPTY,
            _ => return None,
        };
        Some(value as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of NVIDIA's occupancy calculator.
    #[test]
    fn occupancy_follows_the_calculator() {
        let h100 = Architecture::find(90).unwrap();
        let resident = |threads, registers, shared| {
            h100.resident_blocks(BlockNeeds { threads, registers, shared })
        };
        assert_eq!(resident(256, 32, 0), 8);
        assert_eq!(resident(256, 64, 0), 4);
        assert_eq!(resident(256, 65, 0), 3);
        assert_eq!(resident(1024, 64, 0), 1);
        assert_eq!(resident(1024, 65, 0), 0);
        assert_eq!(resident(32, 16, 0), 32);
        assert_eq!(resident(128, 32, 48 << 10), 4);
        assert_eq!(resident(128, 32, 227 << 10), 1);
        assert_eq!(resident(1025, 16, 0), 0);
        let a100 = Architecture::find(80).unwrap();
        let needs = BlockNeeds { threads: 128, registers: 32, shared: 48 << 10 };
        assert_eq!(a100.resident_blocks(needs), 3);
    }

    #[test]
    fn attributes_are_the_models() {
        let h100 = Architecture::find(90).unwrap();
        assert_eq!(h100.attribute(75), Some(9));
        assert_eq!(h100.attribute(97), Some(232_448));
        assert_eq!(h100.attribute(5), Some(i32::MAX));
        assert_eq!(h100.attribute(0), None);
        assert_eq!(h100.attribute(500), None);
        assert!(Architecture::find(70).is_none());
    }
}
