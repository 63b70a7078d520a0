//! Logic, shifts and bit fields against the ISA's definitions, bit by bit.

use super::bench::{cases, check};

const WORDS: [u64; 9] =
    [0, 1, u64::MAX, 0x8000_0000, 0x7fff_ffff, 1 << 63, 0x8000, 0xaaaa_aaaa_aaaa_aaaa, 0x0f1e_2d3c];
const AMOUNTS: [u64; 14] = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 0xffff_ffff];

fn bit(word: u64, n: u64) -> bool {
    n < 64 && word >> n & 1 == 1
}

/// A word from its bits.
fn word(width: u64, f: impl Fn(u64) -> bool) -> u64 {
    (0..width).fold(0, |word, n| word | u64::from(f(n)) << n)
}

/// Pairs of a word and an amount.
fn shifted() -> Vec<[u64; 2]> {
    let mut all = cases::<2>(&WORDS, 500);
    for a in WORDS.into_iter().chain([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]) {
        all.extend(AMOUNTS.map(|n| [a, n]));
    }
    all
}

#[test]
fn logic() {
    let all = cases::<3>(&WORDS, 1000);
    for (ty, bank, width) in
        [("b16", 'h', 16), ("b32", 'r', 32), ("b64", 'd', 64), ("pred", 'p', 1)]
    {
        let ones = u64::MAX >> (64 - width);
        let run = |op: &str, f: fn(u64, u64) -> u64| {
            check(&format!("{op}.{ty} %{bank}8, %{bank}0, %{bank}1;"), &all, |[a, b, _]| {
                f(a, b) & ones
            });
        };
        run("and", |a, b| a & b);
        run("or", |a, b| a | b);
        run("xor", |a, b| a ^ b);
        check(&format!("not.{ty} %{bank}8, %{bank}0;"), &all, |[a, ..]| !a & ones);
        if width > 1 {
            check(&format!("cnot.{ty} %{bank}8, %{bank}0;"), &all, |[a, ..]| {
                u64::from(a & ones == 0)
            });
        }
    }
    for table in [0x80u8, 0x96, 0xe8, 0x1b, 0xca, 0x00, 0xff, 0xf0] {
        check(&format!("lop3.b32 %r8, %r0, %r1, %r2, {table};"), &all, |[a, b, c]| {
            word(32, |n| {
                let index = u8::from(bit(a, n)) * 4 + u8::from(bit(b, n)) * 2 + u8::from(bit(c, n));
                table >> index & 1 == 1
            })
        });
    }
    // The predicate: the result is not zero, combined with another one.
    check(
        "lop3.or.b32 %r9|%p8, %r0, %r1, %r2, 0x80, %p3;",
        &cases::<4>(&WORDS, 500),
        |[a, b, c, p]| u64::from(a & b & c & 0xffff_ffff != 0 || p & 1 == 1),
    );
    check(
        "lop3.and.b32 _|%p8, %r0, %r1, %r2, 0xfe, !%p3;",
        &cases::<4>(&WORDS, 500),
        |[a, b, c, p]| u64::from((a | b | c) & 0xffff_ffff != 0 && p & 1 == 0),
    );
}

#[test]
fn shifts() {
    let all = shifted();
    for (ty, bank, width) in [("16", 'h', 16u64), ("32", 'r', 32), ("64", 'd', 64)] {
        let source = |a: u64, n: i128| (0..i128::from(width)).contains(&n) && bit(a, n as u64);
        let amount = |n: u64| i128::from(n & 0xffff_ffff);
        check(&format!("shl.b{ty} %{bank}8, %{bank}0, %r1;"), &all, |[a, n]| {
            word(width, |at| source(a, i128::from(at) - amount(n)))
        });
        for kind in ["b", "u"] {
            check(&format!("shr.{kind}{ty} %{bank}8, %{bank}0, %r1;"), &all, |[a, n]| {
                word(width, |at| source(a, i128::from(at) + amount(n)))
            });
        }
        check(&format!("shr.s{ty} %{bank}8, %{bank}0, %r1;"), &all, |[a, n]| {
            let last = i128::from(width) - 1;
            word(width, |at| source(a, (i128::from(at) + amount(n)).min(last)))
        });
    }
}

#[test]
fn funnel_shifts() {
    let mut all = cases::<3>(&WORDS, 300);
    for n in AMOUNTS {
        all.push([0x0123_4567, 0x89ab_cdef, n]);
    }
    for (mode, limit) in [("wrap", None), ("clamp", Some(32))] {
        let amount = |c: u64| match limit {
            None => c & 31,
            Some(limit) => (c & 0xffff_ffff).min(limit),
        };
        let pair = |a: u64, b: u64| u128::from(b & 0xffff_ffff) << 32 | u128::from(a & 0xffff_ffff);
        check(&format!("shf.l.{mode}.b32 %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
            ((pair(a, b) << amount(c) >> 32) & 0xffff_ffff) as u64
        });
        check(&format!("shf.r.{mode}.b32 %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
            (pair(a, b) >> amount(c) & 0xffff_ffff) as u64
        });
    }
}

#[test]
fn counting_and_finding() {
    let all = cases::<1>(&WORDS, 3000);
    for (width, bank) in [(32, 'r'), (64, 'd')] {
        let set = |a: u64| (0..width).filter(move |&n| bit(a, n));
        check(&format!("popc.b{width} %r8, %{bank}0;"), &all, |[a]| set(a).count() as u64);
        check(&format!("clz.b{width} %r8, %{bank}0;"), &all, |[a]| {
            set(a).next_back().map_or(width, |n| width - 1 - n)
        });
        check(&format!("brev.b{width} %{bank}8, %{bank}0;"), &all, |[a]| {
            word(width, |n| bit(a, width - 1 - n))
        });
        for (ty, signed) in [("u", false), ("s", true)] {
            let highest = |a: u64| {
                let inverted = signed && bit(a, width - 1);
                set(if inverted { !a } else { a }).next_back()
            };
            check(&format!("bfind.{ty}{width} %r8, %{bank}0;"), &all, |[a]| {
                highest(a).unwrap_or(0xffff_ffff)
            });
            check(&format!("bfind.shiftamt.{ty}{width} %r8, %{bank}0;"), &all, |[a]| {
                highest(a).map_or(0xffff_ffff, |n| width - 1 - n)
            });
        }
    }
}

#[test]
fn nth_set_bit() {
    let mut all = Vec::new();
    for mask in [0, 0xaaaa_aaaa, 0xffff_ffff, 1, 0x8000_0000, 0x1234_5678] {
        for base in [0u64, 1, 2, 3, 16, 31] {
            for offset in [0i32, 1, -1, 2, -2, 16, -16, 33, i32::MIN, i32::MAX] {
                all.push([mask, base, u64::from(offset as u32)]);
            }
        }
    }
    check("fns.b32 %r8, %r0, %r1, %r2;", &all, |[mask, base, offset]| {
        let offset = i64::from(offset as u32 as i32);
        if offset == 0 {
            return if bit(mask, base) { base } else { 0xffff_ffff };
        }
        let (mut at, mut count) = (base as i64, offset.abs() - 1);
        while (0..32).contains(&at) {
            if bit(mask, at as u64) {
                if count == 0 {
                    return at as u64;
                }
                count -= 1;
            }
            at += offset.signum();
        }
        0xffff_ffff
    });
}

#[test]
fn fields() {
    let mut all = Vec::new();
    for a in [0x8123_4567_89ab_cdef, 0x7fff_0000_ffff_8000, u64::MAX, 0x5555_5555_5555_5555] {
        for position in [0u64, 1, 5, 8, 31, 32, 33, 63, 64, 200, 255, 256 + 4] {
            for length in [0u64, 1, 5, 8, 31, 32, 33, 63, 64, 65, 255, 256 + 8] {
                all.push([a, position, length]);
            }
        }
    }
    for (width, bank) in [(32u64, 'r'), (64, 'd')] {
        for (ty, signed) in [("u", false), ("s", true)] {
            check(&format!("bfe.{ty}{width} %{bank}8, %{bank}0, %r1, %r2;"), &all, |[a, b, c]| {
                let (position, length, top) = (b & 0xff, c & 0xff, width - 1);
                let sign = signed && length > 0 && bit(a, (position + length - 1).min(top));
                word(width, |n| {
                    if n < length && position + n <= top { bit(a, position + n) } else { sign }
                })
            });
        }
        let text = format!("bfi.b{width} %{bank}8, %{bank}0, %{bank}3, %r1, %r2;");
        let all: Vec<[u64; 4]> =
            all.iter().map(|&[a, b, c]| [a, b, c, 0x0f0f_3333_1248_9abc]).collect();
        check(&text, &all, |[a, b, c, into]| {
            let (position, length) = (b & 0xff, c & 0xff);
            word(width, |n| match n.checked_sub(position) {
                Some(from) if from < length => bit(a, from),
                _ => bit(into, n),
            })
        });
    }
}

#[test]
fn masks_and_extensions() {
    let mut all = Vec::new();
    for a in AMOUNTS {
        all.extend(AMOUNTS.map(|b| [a, b]));
    }
    for (mode, clamp) in [("clamp", true), ("wrap", false)] {
        let limit = |n: u64| if clamp { n.min(32) } else { n & 31 };
        check(&format!("bmsk.{mode}.b32 %r8, %r0, %r1;"), &all, |[a, b]| {
            word(32, |n| (limit(a)..limit(a) + limit(b)).contains(&n))
        });
        let all = shifted();
        for (ty, signed) in [("u32", false), ("s32", true)] {
            check(&format!("szext.{mode}.{ty} %r8, %r0, %r1;"), &all, |[a, b]| {
                let bits = limit(b & 0xffff_ffff);
                word(32, |n| match n < bits {
                    true => bit(a, n),
                    false => signed && bits > 0 && bit(a, bits - 1),
                })
            });
        }
    }
}

#[test]
fn byte_permutation() {
    let mut all = cases::<3>(&WORDS, 2000);
    for selector in [0x3210, 0x0123, 0x7654, 0xfedc, 0x5410, 0x7632, 0x8080, 0x9c4f] {
        all.push([0x8391_a2b3, 0xc4d5_0617, selector]);
    }
    let byte = |a: u64, b: u64, n: u64| {
        ((b & 0xffff_ffff) << 32 | a & 0xffff_ffff).to_le_bytes()[n as usize]
    };
    let bytes = |f: &dyn Fn(u64) -> u8| (0..4).fold(0, |w, n| w | u64::from(f(n)) << (8 * n));
    check("prmt.b32 %r8, %r0, %r1, %r2;", &all, |[a, b, c]| {
        bytes(&|n| {
            let selector = c >> (4 * n) & 15;
            let chosen = byte(a, b, selector & 7);
            if selector < 8 { chosen } else { (chosen as i8 >> 7) as u8 }
        })
    });
    // The ISA's tables: bytes 3 to 0 of the result for c = 0, 1, 2, 3.
    let tables = [
        ("f4e", ["3210", "4321", "5432", "6543"]),
        ("b4e", ["5670", "6701", "7012", "0123"]),
        ("rc8", ["0000", "1111", "2222", "3333"]),
        ("ecl", ["3210", "3211", "3222", "3333"]),
        ("ecr", ["0000", "1110", "2210", "3210"]),
        ("rc16", ["1010", "3232", "1010", "3232"]),
    ];
    for (mode, table) in tables {
        check(&format!("prmt.b32.{mode} %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
            let row = table[(c & 3) as usize].as_bytes();
            bytes(&|n| byte(a, b, u64::from(row[3 - n as usize] - b'0')))
        });
    }
}

#[test]
fn dot_products() {
    let all = cases::<3>(&WORDS, 2000);
    let part = |a: u64, bits: u32, n: u32, signed: bool| {
        let value = (a >> (bits * n)) as i64 & ((1 << bits) - 1);
        if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
    };
    for (ta, sa) in [("u32", false), ("s32", true)] {
        for (tb, sb) in [("u32", false), ("s32", true)] {
            check(&format!("dp4a.{ta}.{tb} %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
                let sum: i64 = (0..4).map(|n| part(a, 8, n, sa) * part(b, 8, n, sb)).sum();
                (c as i64).wrapping_add(sum) as u64 & 0xffff_ffff
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                check(&format!("dp2a.{mode}.{ta}.{tb} %r8, %r0, %r1, %r2;"), &all, |[a, b, c]| {
                    let term = |n| part(a, 16, n, sa) * part(b, 8, first + n, sb);
                    (c as i64).wrapping_add(term(0) + term(1)) as u64 & 0xffff_ffff
                });
            }
        }
    }
}
