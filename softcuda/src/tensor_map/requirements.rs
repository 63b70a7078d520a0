//! What makes a tensor map valid, from the documentation of `cuTensorMapEncodeTiled` and
//! `cuTensorMapEncodeIm2col`.

use super::{Checked, DataType, Interleave, MAX_RANK, Mode, Swizzle, TensorMap, refuse};

impl TensorMap {
    /// # Errors
    ///
    /// Names the requirement that the map does not meet.
    pub fn validate(&self) -> Checked<()> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            return refuse(format!("rank {} is not in 1..=5", self.rank));
        }
        if self.interleave != Interleave::None && self.rank < 3 {
            return refuse("an interleaved tensor has rank 3 or more");
        }
        self.validate_memory()?;
        match self.mode {
            Mode::Tiled { extent } => self.validate_box(&extent)?,
            Mode::Im2col { lower, upper, channels, pixels } => {
                self.validate_columns(&lower, &upper, channels, pixels)?;
            }
        }
        let first = usize::from(self.interleave == Interleave::None);
        if self.element_strides[first.min(self.rank)..self.rank]
            .iter()
            .any(|n| !(1..=8).contains(n))
        {
            return refuse("an element stride is not in 1..=8");
        }
        if self.fill_nan && !self.data_type.float() {
            return refuse("only floating-point tensors can be filled with NaN");
        }
        self.validate_swizzle()
    }

    fn validate_memory(&self) -> Checked<()> {
        let wide = self.interleave == Interleave::Bytes32 || self.data_type.spread();
        let align = if wide { 32 } else { 16 };
        if !self.address.is_multiple_of(align) {
            return refuse(format!("address {:#x} is not aligned to {align} bytes", self.address));
        }
        let sizes = &self.sizes[..self.rank];
        if let Some(size) = sizes.iter().find(|size| !(1..=1 << 32).contains(*size)) {
            return refuse(format!("dimension of size {size}"));
        }
        let multiple = match self.data_type {
            DataType::Packed4Align16 | DataType::Packed6Align16 => 128,
            DataType::Packed4Align8 => 2,
            _ => 1,
        };
        if !self.sizes[0].is_multiple_of(multiple) {
            return refuse(format!(
                "innermost size {} is no multiple of {multiple}",
                self.sizes[0]
            ));
        }
        for (n, &stride) in self.strides[..self.rank - 1].iter().enumerate() {
            if !stride.is_multiple_of(align) || stride >= 1 << 40 {
                return refuse(format!(
                    "stride {stride} of dimension {} is no multiple of {align} below 2^40",
                    n + 1
                ));
            }
        }
        Ok(())
    }

    /// Bytes of `elements` along the innermost dimension.
    fn inner_bytes(&self, elements: u32) -> u32 {
        elements * self.data_type.bits() / 8
    }

    fn validate_box(&self, extent: &[u32; MAX_RANK]) -> Checked<()> {
        if let Some(n) = extent[..self.rank].iter().find(|n| !(1..=256).contains(*n)) {
            return refuse(format!("box size {n} is not in 1..=256"));
        }
        let inner = self.inner_bytes(extent[0]);
        if self.interleave == Interleave::None && !inner.is_multiple_of(16) {
            return refuse(format!("the box is {inner} bytes wide, no multiple of 16"));
        }
        if self.data_type.spread() && extent[0] != 128 {
            return refuse("the box of this packed type is 128 elements wide");
        }
        self.validate_inner(inner)
    }

    fn validate_columns(
        &self,
        lower: &[i32; 3],
        upper: &[i32; 3],
        channels: u32,
        pixels: u32,
    ) -> Checked<()> {
        if self.rank < 3 {
            return refuse("an im2col tensor has rank 3, 4 or 5");
        }
        let limit = [1 << 15, 1 << 7, 1 << 4][self.rank - 3];
        for axis in 0..self.rank - 2 {
            let inside = |corner: i32| (-limit..limit).contains(&corner);
            if !inside(lower[axis]) || !inside(upper[axis]) {
                return refuse(format!("a corner is not in {}..={}", -limit, limit - 1));
            }
            let size = self.sizes[axis + 1] as i64;
            if size + i64::from(upper[axis]) - i64::from(lower[axis]) <= 0 {
                return refuse("the bounding box of the pixels is empty");
            }
        }
        if !(1..=256).contains(&channels) || !(1..=1024).contains(&pixels) {
            return refuse("more than 256 channels or 1024 pixels, or none");
        }
        if self.data_type.spread() && channels != 128 {
            return refuse("the column of this packed type is 128 channels wide");
        }
        self.validate_inner(self.inner_bytes(channels))
    }

    fn validate_inner(&self, bytes: u32) -> Checked<()> {
        let span = self.swizzle.span();
        if self.interleave == Interleave::None && span > 0 && bytes > span {
            return refuse(format!("the box is {bytes} bytes wide, the swizzle only {span}"));
        }
        Ok(())
    }

    fn validate_swizzle(&self) -> Checked<()> {
        if self.interleave == Interleave::Bytes32 && self.swizzle != Swizzle::Bytes32 {
            return refuse("32-byte interleaving needs the 32-byte swizzle");
        }
        use Swizzle::{Bytes128, Bytes128Atom32, Bytes128Atom64, None};
        let allowed = match self.data_type {
            DataType::Packed6Align16 => {
                self.interleave == Interleave::None
                    && [None, Bytes128, Bytes128Atom32, Bytes128Atom64].contains(&self.swizzle)
            }
            DataType::Packed4Align16 => [None, Bytes128, Bytes128Atom32].contains(&self.swizzle),
            _ => true,
        };
        if allowed {
            Ok(())
        } else {
            refuse("this packed type has no such swizzle or interleaving")
        }
    }
}
