//! Medians and quartiles.

/// Lower quartile, median and upper quartile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

impl Spread {
    /// Of at least one number, each by the nearest rank.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| sorted[(last as f64 * share).round() as usize];
        Some(Self { low: at(0.25), middle: at(0.5), high: at(0.75) })
    }

    /// `median (lower–upper)`.
    pub fn cell(&self, digits: usize) -> String {
        let Self { low, middle, high } = self;
        format!("{middle:.digits$} ({low:.digits$}–{high:.digits$})")
    }
}

/// Each number over the one measured beside it; the shorter list ends it.
pub fn ratios(values: &[f64], over: &[f64]) -> Vec<f64> {
    values.iter().zip(over).map(|(value, over)| value / over).collect()
}

/// The largest relative distance of norms, given both squared; infinite where the numbers of
/// samples differ or one is not a number.
pub fn distance(squares: &[f64], truth: &[f64]) -> f64 {
    if squares.len() != truth.len() {
        return f64::INFINITY;
    }
    let each = squares.iter().zip(truth).map(|(square, truth)| {
        let off = (square.sqrt() / truth.sqrt() - 1.0).abs();
        if off.is_nan() { f64::INFINITY } else { off }
    });
    each.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_any_order() {
        let spread = Spread::of(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(spread, Spread { low: 2.0, middle: 3.0, high: 4.0 });
        assert_eq!(spread.cell(1), "3.0 (2.0–4.0)");
        assert_eq!(Spread::of(&[7.0]).unwrap().high, 7.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_pair_by_round() {
        assert_eq!(ratios(&[2.0, 9.0, 5.0], &[1.0, 3.0]), [2.0, 3.0]);
    }

    #[test]
    fn distances_are_of_norms_and_never_not_a_number() {
        assert!((distance(&[4.0, 1.21], &[4.0, 1.0]) - 0.1).abs() < 1e-12);
        assert_eq!(distance(&[f64::NAN], &[1.0]), f64::INFINITY);
        assert_eq!(distance(&[], &[1.0]), f64::INFINITY);
        assert_eq!(distance(&[0.0], &[0.0]), f64::INFINITY);
    }
}
