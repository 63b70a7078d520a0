//! Which samples a model is retrained on.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Half of `0..count` (rounded down), ascending; the same for the same index.
pub fn half(count: usize, index: u64) -> Vec<usize> {
    let mut half = draw(count, count / 2, 0x6861_6c66 ^ index << 32);
    half.sort_unstable();
    half
}

/// [`half`] as a mask.
pub fn present(count: usize, index: u64) -> Vec<bool> {
    let mut present = vec![false; count];
    half(count, index).into_iter().for_each(|k| present[k] = true);
    present
}

/// Everything but these.
pub fn without(count: usize, absent: &[usize]) -> Vec<bool> {
    let mut present = vec![true; count];
    absent.iter().for_each(|&k| present[k] = false);
    present
}

/// `size` of `0..count`, in the order drawn; the same for the same index.
pub fn random(count: usize, size: usize, index: u64) -> Vec<usize> {
    draw(count, size.min(count), 0x6472_6177 ^ index << 32)
}

fn draw(count: usize, size: usize, seed: u64) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all: Vec<usize> = (0..count).collect();
    for k in 0..size {
        all.swap(k, rng.random_range(k..count));
    }
    all.truncate(size);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_halves() {
        for count in [0, 1, 2, 7, 100] {
            let subset = half(count, 3);
            assert_eq!(subset.len(), count / 2);
            assert!(subset.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(subset.iter().all(|&k| k < count));
        }
    }

    #[test]
    fn masks_say_the_same() {
        let present = present(9, 4);
        let listed: Vec<usize> = (0..9).filter(|&k| present[k]).collect();
        assert_eq!(listed, half(9, 4));
        assert_eq!(without(4, &[2, 0]), [false, true, false, true]);
    }

    #[test]
    fn random_draws_do_not_repeat_a_sample() {
        let mut drawn = random(30, 12, 1);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 12);
        assert_eq!(random(5, 9, 1).len(), 5);
    }

    #[test]
    fn halves_repeat_and_differ_by_index() {
        assert_eq!(half(100, 5), half(100, 5));
        assert_ne!(half(100, 5), half(100, 6));
    }

    #[test]
    fn every_sample_is_in_about_half_of_them() {
        let mut seen = vec![0; 50];
        for index in 0..1000 {
            half(50, index).into_iter().for_each(|k| seen[k] += 1);
        }
        // Five standard deviations of 15.8.
        assert!(seen.iter().all(|&times| (421..=579).contains(&times)), "{seen:?}");
    }
}
