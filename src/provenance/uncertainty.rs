//! How far an inner product of two sketches may lie from that of the gradients.

use super::influence::dot;
use crate::projection::SketchKind;

/// Standard deviation of `⟨a, b⟩` over the random projections, from the two sketches themselves.
///
/// For a count sketch of `K` buckets the variance is `(‖G‖² ‖G'‖² + ⟨G, G'⟩²) / K` but for what
/// the gradients' single large elements take off (Charikar et al., 2002; the same as of a
/// Johnson–Lindenstrauss projection), and the sketches estimate each term without bias. A
/// two-sided sketch varies more where the gradients have few rows, down to `1 / √K` of it
/// being averaged. There the products `z_ab = a_ab · b_ab` share randomness along rows and along
/// columns, and the variance is taken from them as from any array with two-way clusters (Cameron,
/// Gelbach and Miller, 2011): rows, plus columns, less cells; never less than the former. Layers with a side that
/// fits ([`SignMatrix`](crate::projection::SignMatrix)) vary less than this says.
///
/// Costs `K`; 0 when one of the sketches is.
pub fn deviation(kind: SketchKind, a: &[f32], b: &[f32]) -> f64 {
    let product = dot(a, b);
    let plain = (dot(a, a) * dot(b, b) + product * product) / a.len().max(1) as f64;
    let SketchKind::TwoSided { outputs, inputs } = kind else { return plain.sqrt() };
    if outputs < 2 || inputs < 2 {
        return plain.sqrt();
    }
    let cell = |o: usize, i: usize| f64::from(a[o * inputs + i]) * f64::from(b[o * inputs + i]);
    let rows = spread((0..outputs).map(|o| (0..inputs).map(|i| cell(o, i)).sum()), product);
    let columns = spread((0..inputs).map(|i| (0..outputs).map(|o| cell(o, i)).sum()), product);
    let cells = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    (rows + columns - spread(cells, product)).max(plain).sqrt()
}

/// Variance of a sum from its terms, taken as independent and alike.
fn spread(terms: impl ExactSizeIterator<Item = f64>, sum: f64) -> f64 {
    let count = terms.len() as f64;
    let mean = sum / count;
    terms.map(|term| (term - mean).powi(2)).sum::<f64>() * count / (count - 1.0)
}

/// A number read off sketches, with its standard deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Its standard deviation.
    pub deviation: f64,
}

// Queries to a ledger read them.
#[cfg(feature = "ledger")]
impl Estimate {
    /// `‖A‖` of a vector of sketches `[B, K]`, its blocks' squares added up.
    pub(crate) fn norm(kind: SketchKind, sketch: &[f32], len: usize) -> Self {
        let (mut square, mut variance) = (0.0, 0.0);
        for part in sketch.chunks_exact(len) {
            square += dot(part, part);
            variance += deviation(kind, part, part).powi(2);
        }
        let value = square.sqrt();
        // d‖A‖ = d‖A‖² / 2‖A‖
        let deviation = if value > 0.0 { variance.sqrt() / (2.0 * value) } else { 0.0 };
        Self { value, deviation }
    }

    /// `⟨A, B⟩` of two vectors of sketches `[B, K]`.
    pub(crate) fn product(kind: SketchKind, a: &[f32], b: &[f32], len: usize) -> Self {
        let (mut value, mut variance) = (0.0, 0.0);
        for (a, b) in a.chunks_exact(len).zip(b.chunks_exact(len)) {
            value += dot(a, b);
            variance += deviation(kind, a, b).powi(2);
        }
        Self { value, deviation: variance.sqrt() }
    }

    /// The same of a whitened product, `⟨A, W S⟩` with `seen = W S`, where `squares` holds the
    /// whitened squares of both sides in each block. The variance is that of sketches whose
    /// coordinates are as independent and alike as whitening makes them, with the whitening itself
    /// taken as given; the two-sided sketch's excess is that of the product as it stands.
    pub(crate) fn whitened(
        kind: SketchKind,
        a: &[f32],
        seen: &[f32],
        len: usize,
        squares: impl Iterator<Item = [f64; 2]>,
    ) -> Self {
        let (mut value, mut variance) = (0.0, 0.0);
        let parts = a.chunks_exact(len).zip(seen.chunks_exact(len));
        for ((a, seen), [a_sq, seen_sq]) in parts.zip(squares) {
            let product = dot(a, seen);
            let plain = dot(a, a) * dot(seen, seen) + product * product;
            if plain > 0.0 {
                let excess = deviation(kind, a, seen).powi(2) / plain;
                variance += (a_sq * seen_sq + product * product) * excess;
            }
            value += product;
        }
        Self { value, deviation: variance.sqrt() }
    }

    /// Both divided by a number; 0 when that is 0.
    pub(crate) fn over(self, divisor: f64) -> Self {
        if divisor > 0.0 {
            return Self { value: self.value / divisor, deviation: self.deviation / divisor };
        }
        Self::default()
    }

    /// `⟨A, B⟩ / ‖B‖²` from the product and the squares of both. What is random in the product is partly
    /// so in the divisor too and cancels: `(1 − c²) ‖A‖² / (K ‖B‖²)` of variance with cosine `c`, where
    /// the product alone has `1 + c²`.
    pub(crate) fn part(product: Self, [own_sq, divisor_sq]: [f64; 2]) -> Self {
        let raw = product.over(divisor_sq);
        let square = product.over((own_sq * divisor_sq).sqrt()).value.powi(2).min(1.0);
        Self { deviation: raw.deviation * ((1.0 - square) / (1.0 + square)).sqrt(), ..raw }
    }

    /// Each one's share of their sum, when they are independent; 0 of nothing.
    pub(crate) fn shares(amounts: &[Self]) -> Vec<Self> {
        let sum: f64 = amounts.iter().map(|it| it.value).sum();
        let all: f64 = amounts.iter().map(|it| it.deviation.powi(2)).sum();
        let share = |it: &Self| {
            let (share, own) = (it.value / sum, it.deviation.powi(2));
            // Its own part raises both sides of the fraction, the others' the lower one.
            let variance = (1.0 - share).powi(2) * own + share.powi(2) * (all - own).max(0.0);
            Self { value: share, deviation: variance.sqrt() / sum }
        };
        amounts.iter().map(|it| if sum > 0.0 { share(it) } else { Self::default() }).collect()
    }

    /// A cosine from its inner product and the two norms. What is random in the product is partly
    /// so in the norms too and cancels: `(1 - c²)² / K` of variance instead of `(1 + c²) / K`.
    pub(crate) fn cosine(product: Self, norms: f64) -> Self {
        let raw = product.over(norms);
        let square = raw.value.powi(2).min(1.0);
        Self { deviation: raw.deviation * (1.0 - square) / (1.0 + square).sqrt(), ..raw }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::philox4x32;

    const K: usize = 128;

    /// Normal numbers by Box and Muller's transform.
    fn normal(seed: u32, len: usize) -> Vec<f64> {
        let uniform = |word: u32| (f64::from(word) + 0.5) / f64::from(u32::MAX);
        (0..len as u32)
            .map(|at| philox4x32([at, seed, 0, 0], [3, 5]))
            .map(|words| {
                let angle = std::f64::consts::TAU * uniform(words[1]);
                (-2.0 * uniform(words[0]).ln()).sqrt() * angle.cos()
            })
            .collect()
    }

    /// Sketches of two unit vectors of this cosine by a normal projection.
    fn pair(seed: u32, cosine: f64) -> [Vec<f32>; 2] {
        let (along, across) = (normal(2 * seed, K), normal(2 * seed + 1, K));
        let sine = (1.0 - cosine * cosine).sqrt();
        let mixed = along.iter().zip(&across).map(|(g, h)| cosine * g + sine * h);
        let small = |it: f64| (it / (K as f64).sqrt()) as f32;
        [mixed.map(small).collect(), along.iter().map(|&g| small(g)).collect()]
    }

    /// Root mean squares of the errors and of what is told of them.
    fn compared(truth: f64, told: impl Fn(u32) -> Estimate) -> [f64; 2] {
        let (mut errors, mut deviations) = (0.0, 0.0);
        for seed in 0..400 {
            let it = told(seed);
            errors += (it.value - truth).powi(2);
            deviations += it.deviation.powi(2);
        }
        [errors, deviations].map(|sum| (sum / 400.0).sqrt())
    }

    #[test]
    fn quotients_tell_what_cancels() {
        let kind = SketchKind::Count { buckets: K };
        for cosine in [0.0, 0.5, 0.9, 0.98] {
            let [real, told] = compared(cosine, |seed| {
                let [a, b] = pair(seed, cosine);
                let product = Estimate::product(kind, &a, &b, K);
                Estimate::part(product, [dot(&a, &a), dot(&b, &b)])
            });
            assert!((0.85..1.15).contains(&(told / real)), "{cosine}: {real} told as {told}");
        }
        for large in [1.0, 9.0] {
            let [real, told] = compared(large / (large + 1.0), |seed| {
                let [a, b] = pair(seed, 0.0);
                let [a, b] = [Estimate::norm(kind, &a, K), Estimate::norm(kind, &b, K)];
                let a = Estimate { value: large * a.value, deviation: large * a.deviation };
                Estimate::shares(&[a, b])[0]
            });
            assert!((0.85..1.15).contains(&(told / real)), "{large}: {real} told as {told}");
        }
        let alone = Estimate { value: 3.0, deviation: 0.2 };
        assert_eq!(Estimate::shares(&[alone])[0], Estimate { value: 1.0, deviation: 0.0 });
        assert_eq!(Estimate::shares(&[Estimate::default()])[0], Estimate::default());
    }
}
