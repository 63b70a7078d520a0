//! In which order warps have their turns. A correct kernel gives the same results under every schedule.

use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    #[default]
    Forward,
    Reverse,
    /// Shuffled anew each round, from a seed.
    Random(u64),
}

impl Schedule {
    /// The order of the next round over `n` warps.
    pub fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        match self {
            Schedule::Forward => {}
            Schedule::Reverse => order.reverse(),
            Schedule::Random(state) => {
                for i in (1..n).rev() {
                    order.swap(i, (next(state) % (i as u64 + 1)) as usize);
                }
            }
        }
        order
    }

    /// The schedule of a part of the launch: its own random numbers, so that it doesn't matter which
    /// core runs it.
    pub fn of_part(self, part: u64) -> Self {
        match self {
            Schedule::Random(seed) => {
                Schedule::Random(seed ^ (part + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            }
            other => other,
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl FromStr for Schedule {
    type Err = String;

    /// `forward`, `reverse` or `random:SEED`.
    fn from_str(text: &str) -> Result<Self, String> {
        let random = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
        match (text, random) {
            ("forward", _) => Ok(Schedule::Forward),
            ("reverse", _) => Ok(Schedule::Reverse),
            (_, Some(seed)) => Ok(Schedule::Random(seed)),
            _ => Err(format!("schedule {text}: expected forward, reverse or random:SEED")),
        }
    }
}
