//! Small integers in the types of matrix operands, and the table of layouts.
#![allow(dead_code)] // every test file uses a part

/// `places[thread][value]` of an instruction's operand in `layouts.txt`.
pub fn layout(name: &str, operand: &str) -> Vec<Vec<usize>> {
    let begin = format!("{name} {operand} ");
    let mut lines = include_str!("layouts.txt").lines();
    let rest = lines.find_map(|line| line.strip_prefix(&begin)).expect("a line of the table");
    let numbers: Vec<usize> = rest.split(' ').map(|word| word.parse().expect("a number")).collect();
    numbers[2..].chunks(numbers[1]).map(<[usize]>::to_vec).collect()
}

/// A number's bits in a type.
pub fn encode(ty: &str, value: i32) -> u64 {
    let small = |table: &[u64]| {
        let bits = table[value.unsigned_abs() as usize];
        bits | if value < 0 { 1 << (if ty == "f16" { 15 } else { 7 }) } else { 0 }
    };
    match ty {
        "f32" | "tf32" => u64::from((value as f32).to_bits()),
        "bf16" => u64::from((value as f32).to_bits() >> 16),
        "f64" => f64::from(value).to_bits(),
        // 0 to 4 in each of the formats.
        "f16" if value.abs() < 5 => small(&[0, 0x3c00, 0x4000, 0x4200, 0x4400]),
        "e4m3" => small(&[0, 0x38, 0x40, 0x44, 0x48]),
        "e5m2" => small(&[0, 0x3c, 0x40, 0x42, 0x44]),
        "f16" => {
            let bits = (value.unsigned_abs() as f32).to_bits();
            u64::from((bits - (112 << 23)) >> 13 | if value < 0 { 0x8000 } else { 0 })
        }
        "s4" | "u4" => value as u64 & 15,
        "s8" | "u8" => value as u64 & 0xff,
        "b1" => value as u64 & 1,
        _ => value as u32 as u64,
    }
}

pub fn width(ty: &str) -> usize {
    match ty {
        "f64" => 64,
        "f32" | "s32" | "tf32" => 32,
        "f16" | "bf16" => 16,
        "s4" | "u4" => 4,
        "b1" => 1,
        _ => 8,
    }
}

/// Small numbers without a pattern.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn matrix(&mut self, n: usize, ty: &str) -> Vec<i32> {
        let (low, count) = match ty {
            "u4" | "u8" => (0, 5),
            "b1" => (0, 2),
            "s4" => (-4, 9),
            _ => (-4, 9),
        };
        (0..n).map(|_| low + (self.next() % count) as i32).collect()
    }
}
