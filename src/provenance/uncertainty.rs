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
/// Gelbach and Miller, 2011): rows, plus columns, less cells; never less than the former.
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

    /// A cosine from its inner product and the two norms. What is random in the product is partly
    /// so in the norms too and cancels: `(1 - c²)² / K` of variance instead of `(1 + c²) / K`.
    pub(crate) fn cosine(product: Self, norms: f64) -> Self {
        let raw = product.over(norms);
        let square = raw.value.powi(2).min(1.0);
        Self { deviation: raw.deviation * (1.0 - square) / (1.0 + square).sqrt(), ..raw }
    }
}
