//! Where the box of a tensor copy lies in global memory.

use crate::fault::{Check, Fault};
use crate::tensor_map::{DataType, Interleave, Mode, Swizzle, TensorMap};

/// A line of a box: contiguous in shared and in global memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it begins in the box.
    pub at: usize,
    pub bytes: usize,
    /// The part of it inside the tensor.
    pub inside: Option<Inside>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// Where it begins in the row.
    pub at: usize,
    pub bytes: usize,
    pub address: u64,
}

/// The rows of the box that begins at these coordinates, innermost first.
///
/// # Errors
///
/// [`Check::Trap`] for maps that are not supported.
pub fn rows(map: &TensorMap, coordinates: &[i32]) -> Result<Vec<Row>, Fault> {
    let refuse = |what: &str| Err(Fault::new(Check::Trap, what));
    let Mode::Tiled { extent } = map.mode else {
        return refuse("a tile of a tensor map for im2col");
    };
    if coordinates.len() != map.rank {
        return refuse("the instruction and the tensor map have different numbers of dimensions");
    }
    if map.interleave != Interleave::None {
        return refuse("interleaved tensors are not supported");
    }
    let size = match map.data_type {
        DataType::F32Ftz
        | DataType::Tf32
        | DataType::Tf32Ftz
        | DataType::Packed4Align8
        | DataType::Packed4Align16
        | DataType::Packed6Align16 => return refuse("tensors of this type are not supported"),
        other => i64::from(other.bits() / 8),
    };
    // A traversal stride leaves elements out; innermost there is none.
    let steps = |n: usize| if n == 0 { 1 } else { map.element_strides[n].max(1) };
    let counts: Vec<u32> = (0..map.rank).map(|n| extent[n].div_ceil(steps(n))).collect();
    let bytes = (i64::from(counts[0]) * size) as usize;
    let (low, width) = (i64::from(coordinates[0]), map.sizes[0] as i64);
    let (from, end) = (low.clamp(0, width), (low + i64::from(counts[0])).clamp(0, width));
    let lines: u32 = counts[1..].iter().product();
    let row = |line: u32| {
        let (mut rest, mut address, mut outside) = (line, map.address, from >= end);
        for n in 1..map.rank {
            let at = i64::from(coordinates[n]) + i64::from(rest % counts[n] * steps(n));
            rest /= counts[n];
            outside |= at < 0 || at >= map.sizes[n] as i64;
            address = address.wrapping_add_signed(at.wrapping_mul(map.strides[n - 1] as i64));
        }
        let inside = Inside {
            at: ((from - low) * size) as usize,
            bytes: ((end - from).max(0) * size) as usize,
            address: address.wrapping_add_signed(from * size),
        };
        Row { at: line as usize * bytes, bytes, inside: (!outside).then_some(inside) }
    };
    Ok((0..lines).map(row).collect())
}

/// How many address bits the chunks of a map's box are exchanged by.
///
/// # Errors
///
/// [`Check::Trap`] for patterns that are not supported.
pub fn swizzle_bits(map: &TensorMap, row_bytes: usize) -> Result<u32, Fault> {
    let bits = match map.swizzle {
        Swizzle::None => return Ok(0),
        Swizzle::Bytes32 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes128 => 3,
        _ => return Err(Fault::new(Check::Trap, "this swizzle is not supported")),
    };
    if row_bytes != 16 << bits {
        let what =
            format!("rows of {row_bytes} bytes, narrower than the swizzle, are not supported");
        return Err(Fault::new(Check::Trap, what));
    }
    Ok(bits)
}

/// An element that stands for those outside the tensor, repeated over a row.
pub fn fill(map: &TensorMap, row: &mut [u8]) {
    if !map.fill_nan {
        return row.fill(0);
    }
    let element: &[u8] = match map.data_type {
        DataType::F64 => &0x7fff_ffff_ffff_ffffu64.to_le_bytes(),
        DataType::F32 => &0x7fff_ffffu32.to_le_bytes(),
        _ => &0x7fffu16.to_le_bytes(),
    };
    for (byte, of) in row.iter_mut().zip(element.iter().cycle()) {
        *byte = *of;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_map::MAX_RANK;

    fn map(extent: [u32; MAX_RANK], element_strides: [u32; MAX_RANK]) -> TensorMap {
        TensorMap {
            data_type: DataType::F16,
            rank: 3,
            address: 0x1000,
            sizes: [20, 10, 4, 1, 1],
            strides: [48, 512, 0, 0],
            mode: Mode::Tiled { extent },
            element_strides,
            interleave: Interleave::None,
            swizzle: Swizzle::None,
            promotion: 0,
            fill_nan: false,
        }
    }

    #[test]
    fn boxes_are_cut_at_the_tensors_edges() {
        let map = map([8, 3, 2, 1, 1], [1; 5]);
        let found = rows(&map, &[16, 8, 3]).unwrap();
        assert_eq!(found.len(), 6);
        let inside = |row: &Row| row.inside.map(|i| (i.at, i.bytes, i.address));
        let base = 0x1000 + 3 * 512 + 8 * 48 + 32;
        assert_eq!(inside(&found[0]), Some((0, 8, base)));
        assert_eq!(inside(&found[1]), Some((0, 8, base + 48)));
        assert!(found[2..].iter().all(|row| row.inside.is_none()));
        assert_eq!((found[5].at, found[5].bytes), (80, 16));
        let found = rows(&map, &[-3, -1, 0]).unwrap();
        assert_eq!(inside(&found[0]), None);
        assert_eq!(inside(&found[1]), Some((6, 10, 0x1000)));
        assert_eq!(inside(&found[5]), Some((6, 10, 0x1000 + 512 + 48)));
        assert!(rows(&map, &[20, 0, 0]).unwrap().iter().all(|row| row.inside.is_none()));
        assert!(rows(&map, &[0, 0]).is_err());
    }

    #[test]
    fn traversal_strides_leave_out_elements() {
        let found = rows(&map([8, 5, 1, 1, 1], [1, 2, 1, 1, 1]), &[0, 1, 2]).unwrap();
        let lines: Vec<u64> = found.iter().map(|row| row.inside.unwrap().address).collect();
        let base = 0x1000 + 2 * 512;
        assert_eq!(lines, [base + 48, base + 3 * 48, base + 5 * 48]);
    }
}
