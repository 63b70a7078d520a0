//! The contract between host and device, and the comparison of both sides' view of it.

use std::mem::{offset_of, size_of};

use cudarc::driver::DeviceRepr;

use super::generated::{
    GRADROUTE_ABI_VERSION, GRADROUTE_PROBE_WORDS, GradrouteConv, GradrouteLayer, GradrouteNorm,
    GradrouteProbeParams,
};
use crate::{Error, Result};

/// Number of words that the probe kernel reports.
pub(super) const WORDS: usize = GRADROUTE_PROBE_WORDS as usize;

// SAFETY: a plain C struct without padding or pointers, shared with the device by its header.
unsafe impl DeviceRepr for GradrouteProbeParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradrouteLayer {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradrouteNorm {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradrouteConv {}

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
    let at = |offset: usize| offset as u32;
    [
        ("ABI version", GRADROUTE_ABI_VERSION),
        ("size of GradrouteProbeParams", at(size_of::<GradrouteProbeParams>())),
        ("offset of `rows`", at(offset_of!(GradrouteProbeParams, rows))),
        ("offset of `offset`", at(offset_of!(GradrouteProbeParams, offset))),
        ("offset of `features`", at(offset_of!(GradrouteProbeParams, features))),
        ("offset of `shift`", at(offset_of!(GradrouteProbeParams, shift))),
        ("offset of `scale`", at(offset_of!(GradrouteProbeParams, scale))),
        ("offset of `flags`", at(offset_of!(GradrouteProbeParams, flags))),
        ("low word of `rows`", rows.0),
        ("high word of `rows`", rows.1),
        ("low word of `offset`", offset.0),
        ("high word of `offset`", offset.1),
        ("`features`", params.features),
        ("`shift`", params.shift.cast_unsigned()),
        ("bits of `scale`", params.scale.to_bits()),
        ("`flags`", u32::from_le_bytes(params.flags)),
    ]
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
        assert_eq!(layout[1..8], [32, 0, 8, 16, 20, 24, 28]);
    }
}
