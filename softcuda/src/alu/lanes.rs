//! How an operation on one lane's values becomes one on all 32: read arrays, map, write under the mask.

use crate::ir::{LANES, Mask, Reg, Src};
use crate::registers::{Place, Registers};

/// The registers and sources of an instruction with one result; sources it lacks are zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operands {
    pub dst: Reg,
    pub src: [Src; 3],
}

/// A value of one lane, as a register holds it.
pub trait Lane: Copy {
    fn read(regs: &Registers, place: &Place, src: Src) -> [Self; LANES];
    fn write(regs: &mut Registers, reg: Reg, mask: Mask, values: &[Self; LANES]);
}

macro_rules! lane32 {
    ($($value:ty, $unsigned:ty);*) => {$(
        impl Lane for $value {
            fn read(regs: &Registers, place: &Place, src: Src) -> [Self; LANES] {
                regs.read32(src, place).map(|bits| bits as $value)
            }

            fn write(regs: &mut Registers, reg: Reg, mask: Mask, values: &[Self; LANES]) {
                regs.write32(reg, mask, &values.map(|value| value as $unsigned as u32));
            }
        }
    )*};
}

lane32!(u8, u8; i8, u8; u16, u16; i16, u16; u32, u32; i32, u32);

macro_rules! lane64 {
    ($($value:ty),*) => {$(
        impl Lane for $value {
            fn read(regs: &Registers, place: &Place, src: Src) -> [Self; LANES] {
                regs.read64(src, place).map(|bits| bits as $value)
            }

            fn write(regs: &mut Registers, reg: Reg, mask: Mask, values: &[Self; LANES]) {
                regs.write64(reg, mask, &values.map(|value| value as u64));
            }
        }
    )*};
}

lane64!(u64, i64);

impl Lane for f32 {
    fn read(regs: &Registers, place: &Place, src: Src) -> [Self; LANES] {
        regs.read32(src, place).map(f32::from_bits)
    }

    fn write(regs: &mut Registers, reg: Reg, mask: Mask, values: &[Self; LANES]) {
        regs.write32(reg, mask, &values.map(f32::to_bits));
    }
}

impl Lane for f64 {
    fn read(regs: &Registers, place: &Place, src: Src) -> [Self; LANES] {
        regs.read64(src, place).map(f64::from_bits)
    }

    fn write(regs: &mut Registers, reg: Reg, mask: Mask, values: &[Self; LANES]) {
        regs.write64(reg, mask, &values.map(f64::to_bits));
    }
}

/// The warp's registers while an instruction executes for the lanes of `mask`.
pub struct Lanes<'a> {
    pub regs: &'a mut Registers,
    pub place: &'a Place,
    pub mask: Mask,
}

impl Lanes<'_> {
    pub fn read<A: Lane>(&self, src: Src) -> [A; LANES] {
        A::read(self.regs, self.place, src)
    }

    pub fn write<R: Lane>(&mut self, reg: Reg, values: &[R; LANES]) {
        R::write(self.regs, reg, self.mask, values);
    }

    pub fn unary<A: Lane, R: Lane>(&mut self, o: &Operands, f: impl Fn(A) -> R) {
        let a = self.read::<A>(o.src[0]);
        self.write(o.dst, &std::array::from_fn(|n| f(a[n])));
    }

    pub fn binary<A: Lane, B: Lane, R: Lane>(&mut self, o: &Operands, f: impl Fn(A, B) -> R) {
        let (a, b) = (self.read::<A>(o.src[0]), self.read::<B>(o.src[1]));
        self.write(o.dst, &std::array::from_fn(|n| f(a[n], b[n])));
    }

    pub fn ternary<A: Lane, B: Lane, C: Lane, R: Lane>(
        &mut self,
        o: &Operands,
        f: impl Fn(A, B, C) -> R,
    ) {
        let (a, b) = (self.read::<A>(o.src[0]), self.read::<B>(o.src[1]));
        let c = self.read::<C>(o.src[2]);
        self.write(o.dst, &std::array::from_fn(|n| f(a[n], b[n], c[n])));
    }

    /// A predicate source, one bit per lane.
    pub fn mask_of(&self, src: Src) -> Mask {
        match src {
            Src::Reg(Reg::P(slot)) => self.regs.p[slot as usize],
            Src::Imm(bits) => 0u32.wrapping_sub(bits as u32 & 1),
            other => bits_of(self.read::<u32>(other).map(|value| value != 0)),
        }
    }

    pub fn write_mask(&mut self, reg: Reg, values: Mask) {
        match reg {
            Reg::P(slot) => self.regs.write_predicate(slot, self.mask, values),
            other => self.write(other, &std::array::from_fn(|n| values >> n & 1)),
        }
    }
}

/// One bit per lane.
pub fn bits_of(values: [bool; LANES]) -> Mask {
    (0..LANES).fold(0, |mask, n| mask | u32::from(values[n]) << n)
}
