//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as
//! easy as 1, 2, 3" (SC 2011).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// [`philox4x32`] at `L` counters at once, `counters[word][lane]`: written so that a compiler
/// told of vector instructions uses them.
#[inline(always)]
pub(crate) fn philox4x32_lanes<const L: usize>(
    counters: [[u32; L]; 4],
    key: [u32; 2],
) -> [[u32; L]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counters;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for l in 0..L {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[l]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[l]);
            (c0[l], c1[l]) = ((p1 >> 32) as u32 ^ c1[l] ^ k0, p1 as u32);
            (c2[l], c3[l]) = ((p0 >> 32) as u32 ^ c3[l] ^ k1, p0 as u32);
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// Ten rounds of Philox4x32: 128 random bits for this counter under this key.
///
/// ```
/// // A known-answer vector of the Random123 distribution.
/// let words = gradroute::projection::philox4x32([0; 4], [0; 2]);
/// assert_eq!(words, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
/// ```
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox4x32_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}
