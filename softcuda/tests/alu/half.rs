//! The 16-bit formats: exact integer arithmetic rounded once, and searches over all values.

use super::bench::{cases, check, generator};
use softcuda::alu::{Exact, Format, Rounding};

/// A 16-bit format with its PTX name.
#[derive(Clone, Copy)]
struct Short {
    name: &'static str,
    format: Format,
    exponent: u64,
    one: u64,
}

const HALF: Short = Short { name: "f16", format: Format::F16, exponent: 0x7c00, one: 0x3c00 };
const BRAIN: Short = Short { name: "bf16", format: Format::BF16, exponent: 0x7f80, one: 0x3f80 };

impl Short {
    fn values(self) -> Vec<u64> {
        let (e, one) = (self.exponent, self.one);
        let least_normal = e & !(e << 1);
        let positive = [0, 1, 2, least_normal - 1, least_normal, least_normal + 1, one - 1, one];
        let more = [one + 1, one + 0x123, e - 1, e, e + 1, 0x7fff, least_normal * 3 + 5, 0x1234];
        positive.into_iter().chain(more).flat_map(|bits| [bits, bits | 0x8000]).collect()
    }

    fn value(self, bits: u64) -> f64 {
        self.format.widen(bits & 0xffff)
    }

    fn round(self, exact: Option<Exact>, zero: f64) -> u64 {
        match exact {
            Some(exact) => exact.round(self.format, Rounding::Nearest),
            None => self.format.narrow(zero, Rounding::Nearest),
        }
    }

    /// `a * b + c`; special numbers by native arithmetic.
    fn fma(self, a: u64, b: u64, c: u64) -> u64 {
        let [a, b, c] = [a, b, c].map(|bits| self.value(bits));
        let native = a.mul_add(b, c);
        match (Exact::of(a), Exact::of(b), Exact::of(c)) {
            (Some(a), Some(b), Some(c)) => self.round(a.times(b).plus(c), native),
            (Some(a), Some(b), None) if c == 0.0 => self.round(Some(a.times(b)), native),
            // A zero product leaves `c`, or a zero.
            _ => self.format.narrow(native, Rounding::Nearest),
        }
    }

    fn flush(self, bits: u64) -> u64 {
        if bits & self.exponent == 0 { bits & 0x8000 } else { bits & 0xffff }
    }

    fn nan(self, bits: u64) -> bool {
        bits & 0x7fff > self.exponent
    }

    fn sat(self, bits: u64) -> u64 {
        if self.nan(bits) || bits & 0x8000 != 0 { 0 } else { bits.min(self.one) }
    }

    fn relu(self, bits: u64) -> u64 {
        if bits & 0x8000 != 0 && !self.nan(bits) { 0 } else { bits }
    }

    /// Checks the single form, and the packed one on two cases at once.
    fn run(self, op: &str, sources: usize, cases: &[[u64; 3]], f: &dyn Fn([u64; 3]) -> u64) {
        let operands =
            |bank: char| format!(", %{bank}0, %{bank}1, %{bank}2")[..5 * sources].to_owned();
        let name = self.name;
        check(&format!("{op}.{name} %h8{};", operands('h')), cases, |abc| {
            f(abc.map(|x| x & 0xffff))
        });
        let both: Vec<[u64; 3]> = (cases.iter().zip(cases.iter().rev()))
            .map(|(low, high)| [0, 1, 2].map(|n| (high[n] & 0xffff) << 16 | low[n] & 0xffff))
            .collect();
        check(&format!("{op}.{name}x2 %r8{};", operands('r')), &both, |abc| {
            f(abc.map(|x| x >> 16)) << 16 | f(abc.map(|x| x & 0xffff))
        });
    }
}

#[test]
fn sums_and_products_are_rounded_once() {
    for short in [HALF, BRAIN] {
        let all = cases::<3>(&short.values(), 60_000);
        let minus_zero = 0x8000;
        short.run("fma.rn", 3, &all, &|[a, b, c]| short.fma(a, b, c));
        short.run("add", 2, &all, &|[a, b, _]| short.fma(a, short.one, b));
        short.run("add.rn", 2, &all, &|[a, b, _]| short.fma(a, short.one, b));
        let negate = |b: u64| if short.nan(b) { b } else { b ^ 0x8000 };
        short.run("sub", 2, &all, &|[a, b, _]| short.fma(a, short.one, negate(b)));
        // Adding −0 changes nothing, the product's sign of zero included.
        short.run("mul", 2, &all, &|[a, b, _]| short.fma(a, b, minus_zero));
        short.run("fma.rn.relu", 3, &all, &|[a, b, c]| short.relu(short.fma(a, b, c)));
    }
    let all = cases::<3>(&HALF.values(), 10_000);
    HALF.run("fma.rn.sat", 3, &all, &|[a, b, c]| HALF.sat(HALF.fma(a, b, c)));
    HALF.run("add.sat", 2, &all, &|[a, b, _]| HALF.sat(HALF.fma(a, HALF.one, b)));
    let ftz = |a, b, c| HALF.flush(HALF.fma(HALF.flush(a), HALF.flush(b), HALF.flush(c)));
    HALF.run("fma.rn.ftz", 3, &all, &|[a, b, c]| ftz(a, b, c));
    HALF.run("mul.ftz", 2, &all, &|[a, b, _]| ftz(a, b, 0x8000));
}

/// `fma` of bfloat16 in all directions, and mixed precision, against exact numbers.
#[test]
fn directions_and_mixed_precision() {
    let modes = [
        ("rn", Rounding::Nearest),
        ("rz", Rounding::Zero),
        ("rm", Rounding::Down),
        ("rp", Rounding::Up),
    ];
    let all: Vec<[u64; 3]> = cases::<3>(&BRAIN.values(), 10_000)
        .into_iter()
        .filter(|abc| abc.iter().all(|&bits| Exact::of(BRAIN.value(bits)).is_some()))
        .collect();
    for (name, mode) in modes {
        let exact = |[a, b, c]: [f64; 3], format: Format| {
            let [a, b, c] = [a, b, c].map(|x| Exact::of(x).expect("finite, not zero"));
            let zero = if mode == Rounding::Down { format.sign() } else { 0 };
            a.times(b).plus(c).map_or(zero, |sum| sum.round(format, mode))
        };
        let brain = |abc: [u64; 3]| exact(abc.map(|bits| BRAIN.value(bits)), Format::BF16);
        BRAIN.run(&format!("fma.{name}"), 3, &all, &brain);
        BRAIN.run(&format!("fma.{name}.relu"), 3, &all, &|abc| BRAIN.relu(brain(abc)));
        for short in [HALF, BRAIN] {
            let wide = |bits: u64| f64::from(f32::from_bits(bits as u32));
            let finite = |&[a, b, c]: &[u64; 3]| {
                let values = [short.value(a), short.value(b), wide(c)];
                values.iter().all(|&x| Exact::of(x).is_some())
            };
            let mut next = generator(41);
            let mut all: Vec<[u64; 3]> =
                (0..5000).map(|_| [next(), next(), (next() & 0x87ff_ffff) + 0x3c00_0000]).collect();
            all.retain(finite);
            let text = format!("fma.{name}.f32.{} %r8, %h0, %h1, %r2;", short.name);
            check(&text, &all, |[a, b, c]| {
                exact([short.value(a), short.value(b), wide(c)], Format::F32)
            });
            let text = format!("add.{name}.f32.{} %r8, %h0, %r2;", short.name);
            check(&text, &all, |[a, _, c]| exact([short.value(a), 1.0, wide(c)], Format::F32));
            let text = format!("sub.{name}.f32.{} %r8, %h0, %r2;", short.name);
            check(&text, &all, |[a, _, c]| exact([short.value(a), 1.0, -wide(c)], Format::F32));
        }
    }
}

/// Two rounding steps would give another result here.
#[test]
fn fused_results_are_not_rounded_twice() {
    // 2^-11 (1 + 2^-10) (1 - 2^-10) + 1 + 2^-10: below the tie only by 2^-31, which f32 cannot hold.
    check("fma.rn.f16 %h8, %h0, %h1, %h2;", &[[0x1001, 0x3bfe, 0x3c01]], |_| 0x3c01);
    // The tie itself goes to the even neighbour.
    check("fma.rn.f16 %h8, %h0, %h1, %h2;", &[[0x1000, 0x3c00, 0x3c01]], |_| 0x3c02);
    // bf16: 2^-134 + 2^-160 lies above half of the least subnormal number.
    let small = |e: i32| BRAIN.format.narrow(2f64.powi(e), Rounding::Nearest);
    let a = BRAIN.format.narrow(2f64.powi(-67) * (1.0 + 1.0 / 128.0), Rounding::Nearest);
    check("mul.bf16 %h8, %h0, %h1;", &[[a, small(-67)]], |_| 1);
    check("mul.bf16 %h8, %h0, %h1;", &[[small(-67), small(-67)]], |_| 0);
}

#[test]
fn signs_minima_and_maxima() {
    for short in [HALF, BRAIN] {
        let all = cases::<3>(&short.values(), 5000);
        short.run("neg", 1, &all, &|[a, ..]| a ^ 0x8000);
        short.run("abs", 1, &all, &|[a, ..]| a & 0x7fff);
        let key = |x: u64| if x & 0x8000 != 0 { -(x as i64 & 0x7fff) - 1 } else { x as i64 };
        let choose = |max: bool, nan: bool, a: u64, b: u64| match (short.nan(a), short.nan(b)) {
            (false, false) => {
                if (key(a) < key(b)) != max {
                    a
                } else {
                    b
                }
            }
            (true, false) if !nan => b,
            (false, true) if !nan => a,
            _ => 0x7fff,
        };
        for (op, max) in [("min", false), ("max", true)] {
            short.run(op, 2, &all, &|[a, b, _]| choose(max, false, a, b));
            short.run(&format!("{op}.NaN"), 2, &all, &|[a, b, _]| choose(max, true, a, b));
            short.run(&format!("{op}.NaN.xorsign.abs"), 2, &all, &|[a, b, _]| {
                let chosen = choose(max, true, a & 0x7fff, b & 0x7fff);
                if short.nan(chosen) { chosen } else { chosen | (a ^ b) & 0x8000 }
            });
        }
    }
}

/// Every value of both formats widens and narrows back; between neighbours, the nearer one wins.
#[test]
fn all_values_and_the_points_between() {
    for short in [HALF, BRAIN] {
        let name = short.name;
        let every: Vec<[u64; 1]> = (0..0x1_0000).map(|bits| [bits]).collect();
        check(&format!("cvt.f32.{name} %r8, %h0;"), &every, |[a]| {
            // The definition: sign, exponent, fraction.
            let m = short.format.mantissa_bits;
            let (e, fraction) = ((a & short.exponent) >> m, a & ((1 << m) - 1));
            let least = 2f64.powi(2 - (1 << (short.format.exponent_bits - 1)) - m as i32);
            let magnitude = match e {
                0 => fraction as f64 * least,
                _ if e == short.exponent >> m => f64::INFINITY,
                _ => (fraction + (1 << m)) as f64 * least * 2f64.powi(e as i32 - 1),
            };
            if short.nan(a) {
                return 0x7fff_ffff;
            }
            u64::from((magnitude as f32).to_bits()) | (a & 0x8000) << 16
        });
        let canonical = |a: u64| if short.nan(a) { 0x7fff } else { a };
        let through = format!("cvt.f32.{name} %r1, %h0; cvt.rn.{name}.f32 %h8, %r1;");
        check(&through, &every, |[a]| canonical(a));
        let mut between = Vec::new();
        let mut expected = Vec::new();
        for low in 0..short.exponent {
            let (x, y) = (short.value(low), short.value(low + 1));
            // Beyond the largest number, the next one would be twice the last step away.
            let y = if y.is_infinite() { 2.0 * x - short.value(low - 1) } else { y };
            let middle = ((x + y) / 2.0) as f32;
            let even = low + (low & 1);
            for (point, nearest) in
                [(middle.next_down(), low), (middle, even), (middle.next_up(), low + 1)]
            {
                for sign in [0, 1] {
                    between.push([u64::from(point.to_bits()) | sign << 31]);
                    expected.push(nearest | sign << 15);
                }
            }
        }
        let known: std::collections::HashMap<u64, u64> =
            between.iter().map(|&[x]| x).zip(expected).collect();
        check(&format!("cvt.rn.{name}.f32 %h8, %r0;"), &between, |[a]| known[&a]);
        check(&format!("cvt.rz.{name}.f32 %h8, %r0;"), &between, |[a]| {
            let x = f64::from(f32::from_bits(a as u32));
            // The nearest one, or its inner neighbour.
            let near = known[&a];
            if short.value(near).abs() > x.abs() { near - 1 } else { near }
        });
    }
}

#[test]
fn approximations() {
    let mut next = generator(5);
    for short in [HALF, BRAIN] {
        let mut all: Vec<[u64; 3]> = short.values().into_iter().map(|a| [a, 0, 0]).collect();
        all.extend((0..4000).map(|_| [next(), 0, 0]));
        let of = |f: fn(f64) -> f64, a| short.format.narrow(f(short.value(a)), Rounding::Nearest);
        short.run("tanh.approx", 1, &all, &|[a, ..]| of(f64::tanh, a));
        if short.name == "f16" {
            short.run("ex2.approx", 1, &all, &|[a, ..]| of(f64::exp2, a));
        } else {
            short.run("ex2.approx.ftz", 1, &all, &|[a, ..]| {
                short.flush(of(f64::exp2, short.flush(a)))
            });
        }
    }
}
