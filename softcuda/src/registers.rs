//! A warp's registers, 32 lanes wide, and the special registers its instructions read.
//!
//! ```
//! use softcuda::ir::{LANES, Reg};
//! use softcuda::registers::Registers;
//!
//! // One register of 32 bits, written by the lanes of a mask.
//! let mut registers = Registers::new([0, 1, 0]);
//! registers.write32(Reg::R(0), 0b101, &[9; LANES]);
//! assert_eq!(registers.r()[0][..4], [9, 0, 9, 0]);
//! ```

use crate::ir::{LANES, Mask, PredSrc, Reg, Special, Src};

/// Registers of one warp. A register of 8 or 16 bits lies zero-extended in its 32-bit slot.
#[derive(Debug, Clone)]
pub struct Registers {
    pub p: Vec<Mask>,
    r: Bank<u32>,
    d: Bank<u64>,
}

/// Registers of one width. Compilers declare thousands, of which a block may write a few: only what was
/// written needs to be zeroed before others use it.
#[derive(Debug, Clone)]
struct Bank<T> {
    values: Vec<[T; LANES]>,
    /// By group of [`GROUP`] slots: whether one may differ from zero.
    written: Vec<bool>,
}

const GROUP: usize = 8;

impl<T: Copy + Default> Bank<T> {
    fn new(slots: usize) -> Self {
        let values = vec![[T::default(); LANES]; slots];
        Self { values, written: vec![false; slots.div_ceil(GROUP)] }
    }

    fn reset(&mut self, slots: usize) {
        let zeros = [T::default(); LANES];
        for (group, written) in self.values.chunks_mut(GROUP).zip(&mut self.written) {
            if std::mem::take(written) {
                group.fill(zeros);
            }
        }
        self.values.resize(slots, zeros);
        self.written.resize(slots.div_ceil(GROUP), false);
    }

    fn write(&mut self, slot: u32, mask: Mask, values: &[T; LANES]) {
        let slot = slot as usize;
        self.written[slot / GROUP] = true;
        select(&mut self.values[slot], mask, values);
    }

    fn bytes(&self) -> usize {
        self.values.capacity() * size_of::<[T; LANES]>() + self.written.capacity()
    }
}

/// What special registers read; dimensions are `[x, y, z]`.
#[derive(Debug, Clone)]
pub struct Place {
    /// Thread index of each lane, by axis.
    pub tid: [[u32; LANES]; 3],
    pub block_dim: [u32; 3],
    /// Block index in the grid.
    pub block: [u32; 3],
    pub grid: [u32; 3],
    pub warp: u32,
    pub warps: u32,
    /// Linear index of the block in the grid.
    pub linear_block: u32,
    pub cluster_dim: [u32; 3],
    /// Rank of the block in its cluster.
    pub cluster_rank: u32,
    pub explicit_cluster: bool,
    pub launch: u64,
    pub static_shared: u32,
    pub dynamic_shared: u32,
    pub multiprocessors: u32,
    /// Warp instructions this warp has executed: its clock.
    pub clock: u64,
    /// Where the current function's frame begins in local memory.
    pub frame: u32,
}

impl Place {
    /// Linear thread index in the block.
    pub fn thread(&self, lane: usize) -> u32 {
        self.warp * LANES as u32 + lane as u32
    }

    fn special(&self, special: Special) -> [u64; LANES] {
        let all = |value: u32| [u64::from(value); LANES];
        let each = |f: fn(u32) -> u32| std::array::from_fn(|lane| u64::from(f(lane as u32)));
        let axis = |dims: &[u32; 3], axis: u8| all(dims[usize::from(axis)]);
        let cluster = |n: usize| self.block[n] / self.cluster_dim[n];
        match special {
            Special::Tid(n) => self.tid[usize::from(n)].map(u64::from),
            Special::Ntid(n) => axis(&self.block_dim, n),
            Special::Ctaid(n) => axis(&self.block, n),
            Special::Nctaid(n) => axis(&self.grid, n),
            Special::Laneid => each(|lane| lane),
            Special::Warpid => all(self.warp),
            Special::Nwarpid => all(self.warps),
            Special::Smid => all(self.linear_block % self.multiprocessors),
            Special::Nsmid => all(self.multiprocessors),
            Special::Gridid => [self.launch; LANES],
            Special::LanemaskEq => each(|lane| 1 << lane),
            Special::LanemaskLt => each(|lane| (1 << lane) - 1),
            Special::LanemaskLe => each(|lane| u32::MAX >> (31 - lane)),
            Special::LanemaskGe => each(|lane| u32::MAX << lane),
            Special::LanemaskGt => each(|lane| (u32::MAX << lane) & !(1 << lane)),
            Special::Clock => [self.clock; LANES],
            Special::ClockHigh => [self.clock >> 32; LANES],
            Special::DynamicSmemSize => all(self.dynamic_shared),
            Special::DynamicSmemBegin => all(self.static_shared),
            Special::TotalSmemSize => all(self.static_shared + self.dynamic_shared),
            Special::Clusterid(n) => all(cluster(usize::from(n))),
            Special::Nclusterid(n) => {
                let n = usize::from(n);
                all(self.grid[n].div_ceil(self.cluster_dim[n]))
            }
            Special::ClusterCtaid(n) => {
                let n = usize::from(n);
                all(self.block[n] % self.cluster_dim[n])
            }
            Special::ClusterNctaid(n) => axis(&self.cluster_dim, n),
            Special::ClusterCtarank => all(self.cluster_rank),
            Special::ClusterNctarank => all(self.cluster_dim.iter().product()),
            Special::IsExplicitCluster => all(u32::from(self.explicit_cluster)),
            Special::Zero => all(0),
        }
    }
}

impl Registers {
    /// Zeroed registers: predicate, 32-bit and 64-bit slots.
    pub fn new(slots: [u32; 3]) -> Self {
        let [p, r, d] = slots.map(|n| n as usize);
        Self { p: vec![0; p], r: Bank::new(r), d: Bank::new(d) }
    }

    /// Zeroes them, for a kernel with these slots.
    pub fn reset(&mut self, slots: [u32; 3]) {
        let [p, r, d] = slots.map(|n| n as usize);
        self.p.clear();
        self.p.resize(p, 0);
        self.r.reset(r);
        self.d.reset(d);
    }

    /// The memory they hold.
    pub fn bytes(&self) -> usize {
        self.p.capacity() * size_of::<Mask>() + self.r.bytes() + self.d.bytes()
    }

    /// Those of 32 bits.
    pub fn r(&self) -> &[[u32; LANES]] {
        &self.r.values
    }

    /// Those of 64 bits.
    pub fn d(&self) -> &[[u64; LANES]] {
        &self.d.values
    }

    /// A source's low 32 bits. A predicate reads as 0 or 1.
    pub fn read32(&self, src: Src, place: &Place) -> [u32; LANES] {
        match src {
            Src::Reg(Reg::R(slot)) => self.r.values[slot as usize],
            Src::Imm(bits) => [bits as u32; LANES],
            Src::Reg(Reg::D(slot) | Reg::Q(slot)) => {
                self.d.values[slot as usize].map(|bits| bits as u32)
            }
            Src::Reg(Reg::P(slot)) => lanes_of(self.p[slot as usize]),
            Src::Special(special) => place.special(special).map(|bits| bits as u32),
            Src::Frame(offset) => [place.frame + offset; LANES],
        }
    }

    /// A source's 64 bits, 32-bit registers zero-extended.
    pub fn read64(&self, src: Src, place: &Place) -> [u64; LANES] {
        match src {
            Src::Reg(Reg::D(slot) | Reg::Q(slot)) => self.d.values[slot as usize],
            Src::Imm(bits) => [bits; LANES],
            Src::Special(special) => place.special(special),
            other => self.read32(other, place).map(u64::from),
        }
    }

    pub fn predicate(&self, src: PredSrc) -> Mask {
        self.p[src.slot as usize] ^ if src.negated { Mask::MAX } else { 0 }
    }

    /// Writes the lanes of `mask`; a 64-bit register gets the value zero-extended.
    pub fn write32(&mut self, reg: Reg, mask: Mask, values: &[u32; LANES]) {
        match reg {
            Reg::R(slot) => self.r.write(slot, mask, values),
            Reg::D(slot) | Reg::Q(slot) => {
                self.d.write(slot, mask, &values.map(u64::from));
            }
            Reg::P(slot) => self.write_predicate(slot, mask, mask_of(values)),
        }
    }

    /// Writes the lanes of `mask`; a 32-bit register gets the low half.
    pub fn write64(&mut self, reg: Reg, mask: Mask, values: &[u64; LANES]) {
        match reg {
            Reg::D(slot) | Reg::Q(slot) => self.d.write(slot, mask, values),
            other => self.write32(other, mask, &values.map(|bits| bits as u32)),
        }
    }

    pub fn write_predicate(&mut self, slot: u32, mask: Mask, values: Mask) {
        let old = &mut self.p[slot as usize];
        *old = (*old & !mask) | (values & mask);
    }
}

/// The lanes of a mask, in order.
pub fn lanes(mask: Mask) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

fn select<T: Copy>(old: &mut [T; LANES], mask: Mask, new: &[T; LANES]) {
    if mask == Mask::MAX {
        *old = *new;
        return;
    }
    for lane in 0..LANES {
        old[lane] = if mask >> lane & 1 == 1 { new[lane] } else { old[lane] };
    }
}

fn lanes_of(mask: Mask) -> [u32; LANES] {
    std::array::from_fn(|lane| mask >> lane & 1)
}

fn mask_of(values: &[u32; LANES]) -> Mask {
    (0..LANES).fold(0, |mask, lane| mask | u32::from(values[lane] != 0) << lane)
}
