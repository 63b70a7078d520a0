//! The contract between host and device, and the comparison of both sides' view of it.

use std::mem::{offset_of, size_of};

use cudarc::driver::DeviceRepr;

use super::generated::{
    GRADROUTE_ABI_VERSION, GRADROUTE_PROBE_WORDS, GRADROUTE_THREADS, GRADROUTE_TILE,
    GRADROUTE_WARPS, GradrouteConv, GradrouteDivisor, GradrouteLayer, GradrouteNorm,
    GradrouteProbeParams,
};
use crate::{Error, Result};

/// Number of words that the probe kernel reports.
pub(super) const WORDS: usize = GRADROUTE_PROBE_WORDS as usize;
/// Words before the structs' layout.
const BEFORE: usize = 12;

/// The structs that kernels take, in the order of the probe kernel's report. A new one is added here, there,
/// and to `GRADROUTE_PROBE_WORDS`.
macro_rules! structs {
    ($($name:ident { $($field:ident),* })*) => {
        $(
            // SAFETY: a C struct of plain data, shared with the device by its header.
            unsafe impl DeviceRepr for $name where $name: bytemuck::Pod {}
        )*
        const LAYOUT: [(&str, u32); WORDS - BEFORE] = [
            $(
                (concat!("size of ", stringify!($name)), size_of::<$name>() as u32),
                $((
                    concat!("offset of `", stringify!($field), "` in ", stringify!($name)),
                    offset_of!($name, $field) as u32,
                ),)*
            )*
        ];
    };
}

structs! {
    GradrouteProbeParams { rows, offset, features, shift, scale, flags }
    GradrouteLayer {
        rows, samples, outputs, inputs, features, taps, regions, output_spans, input_spans, flags, sketch,
        sketch_outputs, sketch_inputs, seed, layer, sample_scale, reserved
    }
    GradrouteNorm { length, kind, groups, channels, eps }
    GradrouteDivisor { by, multiplier, shift }
    GradrouteConv {
        height, width, kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x,
        pad_top, pad_left, groups, circular, out_height, out_width, positions, pixels, group_tiles
    }
}

/// Parameters with a value in every byte that no other byte has.
pub(super) fn sample() -> GradrouteProbeParams {
    GradrouteProbeParams {
        rows: 0x0102_0304_0506_0708,
        offset: -0x1112_1314_1516_1718,
        features: 0x2122_2324,
        shift: -0x3132_3334,
        scale: 0.15625,
        flags: [0x41, 0x42, 0x43, 0x44],
    }
}

/// What the probe kernel must report for [`sample`], with a name for each word.
fn expected() -> [(&'static str, u32); WORDS] {
    let params = sample();
    let halves = |wide: u64| (wide as u32, (wide >> 32) as u32);
    let (rows, offset) = (halves(params.rows), halves(params.offset.cast_unsigned()));
    let before: [(&str, u32); BEFORE] = [
        ("low word of `rows`", rows.0),
        ("high word of `rows`", rows.1),
        ("low word of `offset`", offset.0),
        ("high word of `offset`", offset.1),
        ("`features`", params.features),
        ("`shift`", params.shift.cast_unsigned()),
        ("bits of `scale`", params.scale.to_bits()),
        ("`flags`", u32::from_le_bytes(params.flags)),
        ("ABI version", GRADROUTE_ABI_VERSION),
        ("edge of a tile", GRADROUTE_TILE),
        ("threads of a block", GRADROUTE_THREADS),
        ("warps of a block", GRADROUTE_WARPS),
    ];
    std::array::from_fn(|at| before.get(at).copied().unwrap_or_else(|| LAYOUT[at - BEFORE]))
}

/// Compares the device's report with this side's view.
pub(super) fn compare(report: &[u32]) -> Result<()> {
    for ((what, host), &device) in expected().into_iter().zip(report) {
        if host != device {
            return Err(Error::AbiMismatch { what, host, device });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_counts() {
        let right = expected().map(|(_, word)| word);
        compare(&right).unwrap();
        for place in 0..WORDS {
            let mut report = right;
            report[place] ^= 1;
            let error = compare(&report).unwrap_err();
            assert!(matches!(error, Error::AbiMismatch { .. }));
            assert!(error.to_string().contains(expected()[place].0), "{error}");
        }
    }

    #[test]
    fn layout_is_the_c_compilers() {
        // Worked out by hand from the header: fields in order, each aligned to its own size.
        let layout = expected().map(|(_, word)| word);
        let from = |at: usize| &layout[BEFORE + at..];
        assert_eq!(from(0)[..7], [32, 0, 8, 16, 20, 24, 28]);
        assert_eq!(from(7)[..5], [72, 0, 8, 12, 16]);
        assert_eq!(from(25)[..6], [24, 0, 8, 12, 16, 20]);
        assert_eq!(from(31)[..4], [12, 0, 4, 8]);
        assert_eq!(from(35)[14..], [52, 64, 68, 72]);
    }

    #[test]
    fn parameters_are_plain_data() {
        let bytes = bytemuck::bytes_of(&sample()).to_vec();
        assert_eq!(bytes[..3], [8, 7, 6]);
        assert_eq!(bytemuck::pod_read_unaligned::<GradrouteProbeParams>(&bytes), sample());
    }
}
