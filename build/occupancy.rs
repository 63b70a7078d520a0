//! How many blocks of a kernel a multiprocessor holds at once: NVIDIA's occupancy rules.

/// What a multiprocessor has, by compute capability.
struct Limits {
    threads: u32,
    blocks: u32,
    /// Shared memory of all blocks, in bytes.
    shared: u32,
}

const REGISTERS: u32 = 65536;
const PARTITIONS: u32 = 4;
const WARP: u32 = 32;
/// Registers are handed to a warp, shared memory to a block, in units of so many.
const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;
/// The driver's own part of each block's shared memory.
const SHARED_RESERVED: u32 = 1 << 10;

fn limits(arch: u32) -> Option<Limits> {
    let (threads, blocks, shared) = match arch {
        80 => (2048, 32, 164),
        86 => (1536, 16, 100),
        89 => (1536, 24, 100),
        90 | 100 => (2048, 32, 228),
        120 => (1536, 24, 100),
        _ => return None,
    };
    Some(Limits { threads, blocks, shared: shared << 10 })
}

/// Blocks of so many threads, registers a thread and bytes of shared memory; `None` if the
/// architecture is not known here.
pub fn resident(arch: u32, threads: u32, registers: u32, shared: u32) -> Option<u32> {
    let limits = limits(arch)?;
    let warps = threads.div_ceil(WARP);
    let registers = (registers * WARP).next_multiple_of(REGISTER_UNIT);
    // A warp's registers lie in one of the partitions.
    let by_registers = (REGISTERS / PARTITIONS / registers.max(1)) * PARTITIONS / warps;
    let by_shared = limits.shared / (shared + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
    let by_threads = limits.threads / (warps * WARP);
    Some(limits.blocks.min(by_threads).min(by_registers).min(by_shared))
}
