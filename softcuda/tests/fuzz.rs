//! Damaged modules: loading ends in an error or a module, never in a panic, a hang or a huge allocation.
//!
//! Deterministic: case `n` is always the same. `SOFTCUDA_FUZZ_SECONDS` says how long (2 by default), and
//! `SOFTCUDA_FUZZ_FIRST` where to begin.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use softcuda::container::ptx;
use softcuda::memory::Device;
use softcuda::module::Module;

#[allow(dead_code)]
#[path = "driver/kernels.rs"]
mod kernels;

/// No load of these small modules takes so long, however damaged, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What nvcc writes, what it extracts to, and the texts of the driver's tests.
fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let files = std::fs::read_dir(folder).expect("the samples").flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.sort();
    let kept = ["fatbin", "cubin", "o"];
    paths.retain(|path| path.extension().is_some_and(|end| kept.iter().any(|kept| end == *kept)));
    let mut seeds: Vec<Vec<u8>> =
        paths.iter().map(|path| std::fs::read(path).expect("a sample")).collect();
    let texts: Vec<_> = seeds.iter().filter_map(|image| ptx(image, 90).ok()).collect();
    seeds.extend(texts.into_iter().map(String::into_bytes));
    use kernels::{ADD, BUMP, GLOBALS, RANKS, REVERSE, WIDTHS, hopper};
    for part in [ADD, BUMP, GLOBALS, RANKS, REVERSE, WIDTHS] {
        seeds.push(hopper(&[part]).into_bytes());
    }
    seeds
}

/// Pieces that mean something to the loader.
const PIECES: [&str; 32] = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "<",
    ">",
    ";",
    ",",
    "+",
    "-",
    "%r",
    "%p<",
    ".reg .b32 ",
    ".global .align 16 .b8 x[",
    "4294967295",
    "18446744073709551615",
    "-1",
    "0f7FFFFFFF",
    ".v4",
    ".param",
    ".shared",
    ".extern",
    ".func",
    ".entry",
    "call",
    "bra",
    "@%p",
    "/*",
    "\"",
    "\0",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut image = random.pick(seeds).clone();
    for _ in 0..=random.below(6) {
        let at = random.below(image.len());
        match random.below(9) {
            0 => image.truncate(at),
            1 if at < image.len() => image[at] = random.next() as u8,
            2 if at < image.len() => image[at] ^= 1 << random.below(8),
            3 => {
                let piece = random.pick(&PIECES).bytes();
                image.splice(at..at, piece);
            }
            4 => {
                let end = (at + random.below(64)).min(image.len());
                image.drain(at..end);
            }
            5 => {
                // A part again, elsewhere.
                let end = (at + random.below(256)).min(image.len());
                let part = image[at..end].to_vec();
                let to = random.below(image.len());
                image.splice(to..to, part);
            }
            6 => {
                // A part of another one.
                let other = random.pick(seeds);
                let from = random.below(other.len());
                let end = (from + random.below(256)).min(other.len());
                image.splice(at..at, other[from..end].iter().copied());
            }
            7 if at + 8 <= image.len() => {
                let number = *random.pick(&[0u64, 1, 0x7fff_ffff, u64::MAX, 1 << 40, 0xffff_ffff]);
                let width = *random.pick(&[1, 2, 4, 8]);
                image[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            8 => {
                // Two lines change places.
                let mut lines: Vec<&[u8]> = image.split(|&byte| byte == b'\n').collect();
                let (a, b) = (random.below(lines.len()), random.below(lines.len()));
                lines.swap(a, b);
                image = lines.join(&b'\n');
            }
            _ => {}
        }
        if image.is_empty() {
            image.push(b'.');
        }
    }
    image
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn damaged_modules_are_refused_or_harmless() {
    let seeds = seeds();
    let seconds = number("SOFTCUDA_FUZZ_SECONDS").unwrap_or(2);
    let first = number("SOFTCUDA_FUZZ_FIRST").unwrap_or(0);
    let start = Instant::now();
    let device = Device::new(64 << 20);
    let (mut case, mut loaded) = (first, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        let image = mutate(&mut Random(case.wrapping_mul(0x2545_f491_4f6c_dd1d)), &seeds);
        let begun = Instant::now();
        let outcome = catch_unwind(|| Module::load(&device, &image, 90));
        let taken = begun.elapsed();
        let Ok(outcome) = outcome else {
            let path = std::env::temp_dir().join(format!("softcuda-fuzz-{case}"));
            std::fs::write(&path, &image).expect("room for the case");
            panic!("case {case} panicked; it is in {}", path.display());
        };
        assert!(taken < PATIENCE, "case {case} took {taken:?}");
        if let Ok(module) = outcome {
            loaded += 1;
            module.unload(&device);
        }
        assert_eq!(device.used(), 0, "case {case} left memory behind");
        case += 1;
    }
    println!("{} cases, {loaded} of them loaded", case - first);
    assert!(loaded > 0 && loaded < case - first, "some are harmless, some are not");
}
