//! Rank correlation and bootstrap intervals.

use std::ops::Range;

/// Ranks from 1, equal values sharing the mean of theirs.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut smaller) = (vec![0.0; values.len()], 0);
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = smaller as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&at| ranks[at] = rank);
        smaller += tied.len();
    }
    ranks
}

/// Pearson's correlation; 0 where either side is constant.
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut product, mut squares) = (0.0, [0.0; 2]);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        product += x * y;
        squares[0] += x * x;
        squares[1] += y * y;
    }
    let norms = (squares[0] * squares[1]).sqrt();
    if norms > 0.0 { product / norms } else { 0.0 }
}

/// Spearman's rank correlation; 0 where either side is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    correlation(&ranks(a), &ranks(b))
}

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Draws with replacement behind an interval.
const RESAMPLES: usize = 2000;

/// The 95 % percentile interval of a statistic of `count` units, which are drawn with
/// replacement (Efron 1979): `statistic` is given the units drawn. Draws in which it is not
/// finite are left out. The same whenever it is asked for.
pub fn bootstrap(count: usize, statistic: impl Fn(&[usize]) -> f64) -> Range<f64> {
    let mut state = 0;
    let mut drawn = vec![0; count];
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for unit in &mut drawn {
                *unit = (next(&mut state) % count as u64) as usize;
            }
            statistic(&drawn)
        })
        .filter(|value| value.is_finite())
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * (values.len() as f64 - 1.0)).round().max(0.0) as usize;
        values.get(place).copied().unwrap_or(f64::NAN)
    };
    at(0.025)..at(0.975)
}

/// [`bootstrap`] of the mean.
pub fn mean_interval(values: &[f64]) -> Range<f64> {
    bootstrap(values.len(), |drawn| mean_of(values, drawn))
}

/// Mean of the units drawn.
pub fn mean_of(values: &[f64], drawn: &[usize]) -> f64 {
    drawn.iter().map(|&unit| values[unit]).sum::<f64>() / drawn.len() as f64
}

/// SplitMix64 (Steele, Lea & Flood 2014): random enough to draw indices with.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn ranks_share_ties() {
        assert_eq!(ranks(&[10.0, 20.0, 20.0, 5.0]), [2.0, 3.5, 3.5, 1.0]);
        assert_eq!(ranks(&[1.0, 1.0, 1.0]), [2.0; 3]);
        assert!(ranks(&[]).is_empty());
    }

    #[test]
    fn spearman_has_its_known_values() {
        // IQ and hours of television of ten people, the usual worked example: −29/165.
        let iq = [106., 100., 86., 101., 99., 103., 97., 113., 112., 110.];
        let hours = [7., 27., 2., 50., 28., 29., 20., 12., 6., 17.];
        close(spearman(&iq, &hours), -29.0 / 165.0);
        // With a tie, as scipy.stats.spearmanr has it.
        close(spearman(&[1., 2., 3., 4.], &[1., 3., 3., 2.]), 0.316_227_766_016_837_94);
        close(spearman(&[1., 2., 3.], &[-8., 0., 1000.]), 1.0);
        close(spearman(&[1., 2., 3.], &[3., 2., -100.]), -1.0);
        close(spearman(&[1., 2., 3.], &[5., 5., 5.]), 0.0);
    }

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors() {
        let values: Vec<f64> = (0..400).map(|k| f64::from(k % 20)).collect();
        let interval = mean_interval(&values);
        // Mean 9.5, deviation 5.766, so a standard error of 0.2883.
        assert!((interval.start - (9.5 - 1.96 * 0.2883)).abs() < 0.06, "{interval:?}");
        assert!((interval.end - (9.5 + 1.96 * 0.2883)).abs() < 0.06, "{interval:?}");
        assert_eq!(interval, mean_interval(&values));
    }

    #[test]
    fn constants_have_no_spread_and_nothing_has_no_interval() {
        assert_eq!(mean_interval(&[3.0; 9]), 3.0..3.0);
        assert!(mean_interval(&[]).start.is_nan());
    }
}
