//! One vectorised pass over a formed gradient tile: square it, sketch it, drop it.
//!
//! A tile is row-major, its extents padded to multiples of 8 with zeros, and starts at a
//! multiple of 8 on both sides of the gradient matrix, so that it consists of whole
//! micro-blocks of the count sketch. Zeros add nothing, so padding is never told apart.

use crate::projection::{MicroBlock, micro_blocks};

/// Edge of a micro-block.
pub(crate) const EDGE: usize = 8;
const BLOCK: usize = EDGE * EDGE;
/// Copies of the buckets, taken in turn, so that a block does not wait for the stores of the
/// one before it.
const COPIES: usize = 4;

/// Bucket sums of one sample's count sketch while it is being built. A block's 64 buckets run
/// past the end unbroken; [`Buckets::fold_into`] wraps them round once, at the end.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    sums: Vec<f32>,
    padded: usize,
}

impl Buckets {
    /// All `buckets` at 0.
    pub(crate) fn reset(&mut self, buckets: usize) {
        self.padded = buckets + BLOCK;
        self.sums.clear();
        self.sums.resize(COPIES * self.padded, 0.0);
    }

    /// Adds `scale ·` the sums to `out [buckets]`, in a fixed order.
    pub(crate) fn fold_into(&self, scale: f32, out: &mut [f32]) {
        let buckets = out.len();
        debug_assert_eq!(buckets + BLOCK, self.padded);
        for copy in self.sums.chunks_exact(self.padded) {
            for (out, sum) in out.iter_mut().zip(copy) {
                *out += scale * sum;
            }
            for (out, sum) in out.iter_mut().zip(&copy[buckets..]) {
                *out += scale * sum;
            }
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<f32>() * self.sums.capacity()
    }
}

/// The hashes of a tile's micro-blocks, row-major, kept while the samples pass through it.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    blocks: Vec<MicroBlock>,
    width: usize,
}

impl Hashes {
    /// Those of the `rows × columns` elements from `(output, input)`, both multiples of 8.
    pub(crate) fn set(
        &mut self,
        key: [u32; 2],
        buckets: usize,
        [output, input]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) {
        debug_assert!(output.is_multiple_of(EDGE) && input.is_multiple_of(EDGE));
        self.width = columns.div_ceil(EDGE);
        self.blocks.clear();
        self.blocks.reserve_exact(rows.div_ceil(EDGE) * self.width);
        let inputs = (input / EDGE) as u32..(input / EDGE + self.width) as u32;
        pulp::Arch::new().dispatch(|| {
            for o in 0..rows.div_ceil(EDGE) {
                let o = (output / EDGE + o) as u32;
                micro_blocks(key, o, inputs.clone(), buckets, |hash| self.blocks.push(hash));
            }
        });
    }

    /// Blocks of a band of 8 rows.
    pub(crate) fn band(&self, band: usize) -> &[MicroBlock] {
        &self.blocks[band * self.width..][..self.width]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<MicroBlock>() * self.blocks.capacity()
    }
}

/// Sum of squares of a band: 8 rows of `8 · blocks` elements.
pub(crate) fn square(band: &[f32]) -> f64 {
    debug_assert!(band.len().is_multiple_of(BLOCK));
    measure::<true, false>(band, band.len() / BLOCK, &[], &mut Buckets::default())
}

/// Adds a band to the count sketch.
pub(crate) fn count(band: &[f32], hashes: &[MicroBlock], buckets: &mut Buckets) {
    measure::<false, true>(band, hashes.len(), hashes, buckets);
}

/// [`count`] and [`square`] in one pass.
pub(crate) fn count_and_square(band: &[f32], hashes: &[MicroBlock], buckets: &mut Buckets) -> f64 {
    measure::<true, true>(band, hashes.len(), hashes, buckets)
}

/// Sum of squares of any row.
pub(crate) fn square_row(row: &[f32]) -> f64 {
    let (cells, rest) = row.as_chunks::<EDGE>();
    pulp::Arch::new().dispatch(|| {
        // A lane adds up a limited stretch in f32 before it goes to f64.
        let stretches = cells.chunks(64).map(|stretch| {
            let mut lanes = [0.0_f32; EDGE];
            for cell in stretch {
                lanes.iter_mut().zip(cell).for_each(|(lane, g)| *lane += g * g);
            }
            lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>()
        });
        let tail = rest.iter().map(|&g| f64::from(g) * f64::from(g));
        stretches.sum::<f64>() + tail.sum::<f64>()
    })
}

/// `out += weight · row`.
pub(crate) fn add_scaled(out: &mut [f32], weight: f32, row: &[f32]) {
    pulp::Arch::new().dispatch(|| {
        for (out, g) in out.iter_mut().zip(row) {
            *out += weight * g;
        }
    });
}

/// Adds the outer product `dy · xᵀ` of 8 outputs and `8 · hashes` inputs to the count sketch,
/// without ever writing it down.
pub(crate) fn count_outer(
    dy: &[f32; EDGE],
    x: &[f32],
    hashes: &[MicroBlock],
    buckets: &mut Buckets,
) {
    let (x, _) = x.as_chunks::<EDGE>();
    let (hashes, x) = (&hashes[..x.len()], x);
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(avx2::Outer { simd, dy, x, hashes, buckets });
    }
    portable_outer(dy, x, hashes, buckets);
}

fn portable_outer(
    dy: &[f32; EDGE],
    x: &[[f32; EDGE]],
    hashes: &[MicroBlock],
    buckets: &mut Buckets,
) {
    for (j, (x, hash)) in x.iter().zip(hashes).enumerate() {
        let sums = window(buckets, hash, j);
        for e in 0..BLOCK {
            sums[e ^ hash.xor as usize] += hash.sign(e) * dy[e / EDGE] * x[e % EDGE];
        }
    }
}

fn measure<const SQUARE: bool, const COUNT: bool>(
    band: &[f32],
    blocks: usize,
    hashes: &[MicroBlock],
    buckets: &mut Buckets,
) -> f64 {
    if blocks == 0 {
        return 0.0;
    }
    let (cells, _) = band.as_chunks::<EDGE>();
    let mut rows = cells.chunks_exact(blocks);
    let rows: [&[[f32; EDGE]]; EDGE] = std::array::from_fn(|_| rows.next().expect("8 rows"));
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(avx2::Measure::<SQUARE, COUNT> { simd, rows, hashes, buckets });
    }
    portable::<SQUARE, COUNT>(rows, hashes, buckets)
}

fn portable<const SQUARE: bool, const COUNT: bool>(
    rows: [&[[f32; EDGE]]; EDGE],
    hashes: &[MicroBlock],
    buckets: &mut Buckets,
) -> f64 {
    let mut total = 0.0;
    for (r, row) in rows.iter().enumerate() {
        for (j, cell) in row.iter().enumerate() {
            if SQUARE {
                let squares = cell.iter().map(|&g| f64::from(g) * f64::from(g));
                total += squares.sum::<f64>();
            }
            if COUNT {
                let sums = window(buckets, &hashes[j], j);
                for (c, g) in cell.iter().enumerate() {
                    let e = EDGE * r + c;
                    sums[e ^ hashes[j].xor as usize] += hashes[j].sign(e) * g;
                }
            }
        }
    }
    total
}

/// The 64 buckets of the band's block `j`.
#[inline(always)]
fn window<'a>(buckets: &'a mut Buckets, hash: &MicroBlock, j: usize) -> &'a mut [f32; BLOCK] {
    let start = (j % COPIES) * buckets.padded + hash.base as usize;
    (&mut buckets.sums[start..start + BLOCK]).try_into().expect("64 buckets")
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256, __m256i};

    use bytemuck::cast;
    use pulp::{f32x8, u32x8, x86::V3};

    use super::{Buckets, EDGE, MicroBlock, window};

    /// Lane `c` of entry `q` brings bit `8q + c` to the sign position.
    const SHIFTS: [[u32; EDGE]; 4] = {
        let mut shifts = [[0; EDGE]; 4];
        let mut bit = 0;
        while bit < 32 {
            shifts[bit / EDGE][bit % EDGE] = 31 - bit as u32;
            bit += 1;
        }
        shifts
    };

    /// Entry `x` sends lane `c` to lane `c ^ x`.
    const PERMUTATIONS: [[u32; EDGE]; EDGE] = {
        let mut lanes = [[0; EDGE]; EDGE];
        let mut at = 0;
        while at < EDGE * EDGE {
            lanes[at / EDGE][at % EDGE] = ((at / EDGE) ^ (at % EDGE)) as u32;
            at += 1;
        }
        lanes
    };

    /// Entry `x` holds [`SHIFTS`] with lane `c` moved to lane `c ^ x`.
    const MOVED_SHIFTS: [[[u32; EDGE]; 4]; EDGE] = {
        let mut moved = [[[0; EDGE]; 4]; EDGE];
        let mut at = 0;
        while at < 4 * EDGE * EDGE {
            let (x, q, c) = (at / (4 * EDGE), at / EDGE % 4, at % EDGE);
            moved[x][q][c ^ x] = SHIFTS[q][c];
            at += 1;
        }
        moved
    };

    /// An outer product on AVX2: all 8 rows share one permuted stretch of `x`.
    pub(super) struct Outer<'a> {
        pub(super) simd: V3,
        pub(super) dy: &'a [f32; EDGE],
        pub(super) x: &'a [[f32; EDGE]],
        pub(super) hashes: &'a [MicroBlock],
        pub(super) buckets: &'a mut Buckets,
    }

    impl pulp::NullaryFnOnce for Outer<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self { simd, dy, x, hashes, buckets } = self;
            let dy: [f32x8; EDGE] = dy.map(|dy| simd.splat_f32x8(dy));
            let negative = simd.splat_u32x8(1 << 31);
            for (j, (x, hash)) in x.iter().zip(hashes).enumerate() {
                let words = [hash.signs as u32, (hash.signs >> 32) as u32];
                let words = words.map(|word| simd.splat_u32x8(word));
                let xor = hash.xor as usize % (EDGE * EDGE);
                let lanes: __m256i = cast(PERMUTATIONS[xor % EDGE]);
                let x: __m256 = simd.avx2._mm256_permutevar8x32_ps(cast(*x), lanes);
                let shifts = &MOVED_SHIFTS[xor % EDGE];
                let (sums, _) = window(buckets, hash, j).as_chunks_mut::<EDGE>();
                let sums: &mut [[f32; EDGE]; EDGE] = sums.try_into().expect("8 rows of 8");
                for r in 0..EDGE {
                    let sign = simd.shl_dyn_u32x8(words[r / 4], cast(shifts[r % 4]));
                    let signed = simd.xor_u32x8(cast(x), simd.and_u32x8(sign, negative));
                    let sum = &mut sums[r ^ (xor / EDGE)];
                    *sum = cast(simd.mul_add_f32x8(dy[r], cast(signed), cast(*sum)));
                }
            }
        }
    }

    /// A band on AVX2: the permutation within 8 lanes is one shuffle, the permutation of the 8
    /// rows is an address, a sign is an exclusive or.
    pub(super) struct Measure<'a, const SQUARE: bool, const COUNT: bool> {
        pub(super) simd: V3,
        pub(super) rows: [&'a [[f32; EDGE]]; EDGE],
        pub(super) hashes: &'a [MicroBlock],
        pub(super) buckets: &'a mut Buckets,
    }

    impl<const SQUARE: bool, const COUNT: bool> pulp::NullaryFnOnce for Measure<'_, SQUARE, COUNT> {
        type Output = f64;

        #[inline(always)]
        fn call(self) -> f64 {
            let Self { simd, rows, hashes, buckets } = self;
            let blocks = rows[0].len();
            let rows = rows.map(|row| &row[..blocks]);
            let shifts: [u32x8; 4] = SHIFTS.map(cast);
            let negative = simd.splat_u32x8(1 << 31);
            let mut squares = [simd.splat_f32x8(0.0); 4];
            for j in 0..blocks {
                if !COUNT {
                    for r in 0..EDGE {
                        let g: f32x8 = cast(rows[r][j]);
                        squares[r % 4] = simd.mul_add_f32x8(g, g, squares[r % 4]);
                    }
                    continue;
                }
                let hash = &hashes[j];
                let words = [hash.signs as u32, (hash.signs >> 32) as u32];
                let words = words.map(|word| simd.splat_u32x8(word));
                let lanes: __m256i = cast(PERMUTATIONS[hash.xor as usize % EDGE]);
                let row_xor = hash.xor as usize / EDGE;
                let (sums, _) = window(buckets, hash, j).as_chunks_mut::<EDGE>();
                let sums: &mut [[f32; EDGE]; EDGE] = sums.try_into().expect("8 rows of 8");
                for r in 0..EDGE {
                    let g: f32x8 = cast(rows[r][j]);
                    if SQUARE {
                        squares[r % 4] = simd.mul_add_f32x8(g, g, squares[r % 4]);
                    }
                    let sign = simd.shl_dyn_u32x8(words[r / 4], shifts[r % 4]);
                    let signed = simd.xor_u32x8(cast(g), simd.and_u32x8(sign, negative));
                    let moved: __m256 = simd.avx2._mm256_permutevar8x32_ps(cast(signed), lanes);
                    let sum = &mut sums[(r ^ row_xor) % EDGE];
                    *sum = cast(simd.add_f32x8(cast(*sum), cast(moved)));
                }
            }
            let lanes = squares.map(cast::<f32x8, [f32; EDGE]>);
            lanes.iter().flatten().map(|&lane| f64::from(lane)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::micro_block;

    /// Integers, so that every order of summation gives the same bits.
    fn tile(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|at| ((at * 7919) % 23) as f32 - 11.0).collect()
    }

    #[test]
    fn bands_match_the_definition_element_by_element() {
        let key = [3, 9];
        for buckets in [64, 128, 256, 320] {
            for (rows, columns) in [(8, 8), (16, 40), (24, 8), (8, 104)] {
                let (tile, origin) = (tile(rows, columns), [16, 24]);
                let mut expected = vec![0.0; buckets];
                for o in 0..rows {
                    for i in 0..columns {
                        let (at_o, at_i) = (origin[0] + o, origin[1] + i);
                        let hash = micro_block(key, at_o as u32 / 8, at_i as u32 / 8, buckets);
                        let e = 8 * (at_o % 8) + at_i % 8;
                        expected[hash.bucket(e, buckets)] += hash.sign(e) * tile[o * columns + i];
                    }
                }
                let squares: f32 = tile.iter().map(|g| g * g).sum();
                let (mut hashes, mut sums) = (Hashes::default(), Buckets::default());
                hashes.set(key, buckets, origin, [rows, columns]);
                let bands = || tile.chunks_exact(8 * columns).enumerate();
                for fused in [false, true] {
                    sums.reset(buckets);
                    let mut total = 0.0;
                    for (b, band) in bands() {
                        if fused {
                            total += count_and_square(band, hashes.band(b), &mut sums);
                        } else {
                            count(band, hashes.band(b), &mut sums);
                            total += square(band);
                        }
                    }
                    let mut sketch = vec![0.0; buckets];
                    sums.fold_into(1.0, &mut sketch);
                    assert_eq!(sketch, expected, "{rows} × {columns} into {buckets}");
                    assert_eq!(total as f32, squares);
                }
            }
        }
    }

    #[test]
    fn an_outer_product_is_sketched_as_if_it_had_been_formed() {
        let (buckets, columns) = (192, 72);
        let (dy, x) = ([3.0, -1.0, 0.0, 2.0, 5.0, -4.0, 1.0, 7.0], tile(1, columns));
        let band: Vec<f32> = dy.iter().flat_map(|dy| x.iter().map(move |x| dy * x)).collect();
        let mut hashes = Hashes::default();
        hashes.set([4, 5], buckets, [8, 0], [8, columns]);
        let sketch = |run: &dyn Fn(&mut Buckets)| {
            let (mut sums, mut sketch) = (Buckets::default(), vec![0.0; buckets]);
            sums.reset(buckets);
            run(&mut sums);
            sums.fold_into(1.0, &mut sketch);
            sketch
        };
        let formed = sketch(&|sums| count(&band, hashes.band(0), sums));
        assert_eq!(sketch(&|sums| count_outer(&dy, &x, hashes.band(0), sums)), formed);
        let (cells, _) = x.as_chunks();
        assert_eq!(sketch(&|sums| portable_outer(&dy, cells, hashes.band(0), sums)), formed);
    }

    #[test]
    fn the_portable_pass_gives_the_same_numbers() {
        let (buckets, columns) = (128, 48);
        let band = tile(8, columns);
        let (mut hashes, mut sums, mut plain) =
            (Hashes::default(), Buckets::default(), Buckets::default());
        hashes.set([1, 2], buckets, [0, 8], [8, columns]);
        sums.reset(buckets);
        plain.reset(buckets);
        let (cells, _) = band.as_chunks::<EDGE>();
        let mut rows = cells.chunks_exact(columns / 8);
        let rows = std::array::from_fn(|_| rows.next().unwrap());
        let total = portable::<true, true>(rows, hashes.band(0), &mut plain);
        assert_eq!(count_and_square(&band, hashes.band(0), &mut sums), total);
        assert_eq!(sums.sums, plain.sums);
    }
}
