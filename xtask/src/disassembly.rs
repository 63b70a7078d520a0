//! What the disassembly of a GEMM kernel says of its main loop.
//!
//! The main loop is the shortest way round through the flow of control that passes the block with the
//! most matrix instructions and a 16-byte load from global memory. So neither what runs once a
//! sample, which lies inside the same loop, nor paths for misaligned rows belong to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// One machine instruction.
#[derive(Clone, Debug, PartialEq)]
struct Instruction {
    address: u64,
    /// Without its predicate.
    text: String,
    predicated: bool,
}

/// A stretch of instructions that is entered at its first and left at its last only.
#[derive(Debug)]
struct Block {
    instructions: Vec<Instruction>,
    /// Where it may continue: places in the list of blocks.
    next: Vec<usize>,
}

/// What a main loop holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MainLoop {
    pub instructions: usize,
    pub matrix: usize,
    /// Loads of 16 bytes from global memory, asynchronous copies among them.
    pub wide_loads: usize,
    /// Scalar f32 multiplications and additions.
    pub scalar: usize,
}

/// Whether the kernel, by its name, is a GEMM on matrix instructions. Those with an f32 operand, between
/// LoRA's factors, are not.
pub fn is_gemm(kernel: &str) -> bool {
    let families = ["linear_", "conv2d_"];
    let steps = ["_wgrad_", "_dgrad_"];
    !kernel.contains("_narrow_")
        && families.iter().any(|family| kernel.starts_with(family))
        && steps.iter().any(|step| kernel.contains(step))
        && (kernel.ends_with("f16"))
}

/// The main loop of each function in the text that `cuobjdump -sass` prints of one architecture.
pub fn main_loops(text: &str) -> BTreeMap<String, Option<MainLoop>> {
    let functions = text.split("Function : ").skip(1);
    let named = functions.filter_map(|body| Some((body.lines().next()?.trim(), body)));
    named.map(|(name, body)| (name.to_string(), main_loop(&instructions(body)))).collect()
}

/// What is wrong with a main loop, if anything.
pub fn complaint(found: Option<MainLoop>) -> Option<String> {
    match found {
        None => Some("no loop over matrix instructions and 16-byte global loads".into()),
        Some(MainLoop { scalar: 0, .. }) => None,
        Some(MainLoop { scalar, .. }) => {
            Some(format!("{scalar} scalar multiplications and additions in the main loop"))
        }
    }
}

/// Reads lines of the form `/*0140*/ @!P0 BRA 0x1c0 ; /* 0x… */`.
fn instructions(body: &str) -> Vec<Instruction> {
    let read = |line: &str| {
        let (address, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let text = rest.split_once(';')?.0.trim();
        let predicated = text.starts_with('@');
        let text = if predicated { text.split_once(' ')?.1.trim() } else { text };
        Some(Instruction { address, text: text.to_string(), predicated })
    };
    body.lines().filter_map(read).collect()
}

impl Instruction {
    fn name(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// The name without its modifiers.
    fn stem(&self) -> &str {
        self.name().split('.').next().unwrap_or_default()
    }

    /// The address at the end of the instruction.
    fn target(&self) -> Option<u64> {
        let last = self.text.rsplit([' ', ',']).next()?;
        u64::from_str_radix(last.strip_prefix("0x")?, 16).ok()
    }

    fn matrix(&self) -> bool {
        ["HMMA", "WGMMA", "HGMMA", "UTCHMMA"].contains(&self.stem())
    }

    fn wide_load(&self) -> bool {
        ["LDG", "LDGSTS"].contains(&self.stem()) && self.name().split('.').any(|part| part == "128")
    }

    fn scalar(&self) -> bool {
        ["FFMA", "FMUL", "FADD"].iter().any(|stem| self.stem().starts_with(stem))
    }

    /// Whether control may go elsewhere than to the next instruction.
    fn branches(&self) -> bool {
        ["BRA", "BSYNC", "EXIT", "RET", "JMP"].contains(&self.stem())
    }

    /// Whether control may go to the next instruction.
    fn falls_through(&self) -> bool {
        let conditional = self.predicated || self.text.contains(',');
        self.stem() == "BSYNC" || !self.branches() || conditional
    }
}

/// Where a jump goes: its own target, or for a reconvergence that of the last `BSSY` before it with the
/// same register.
fn jumps(instructions: &[Instruction], place: usize) -> Option<u64> {
    let jump = &instructions[place];
    if jump.stem() != "BSYNC" {
        return if jump.branches() { jump.target() } else { None };
    }
    let register = jump.text.split_whitespace().last()?;
    let opens = |one: &&Instruction| {
        one.stem() == "BSSY" && one.text.split([' ', ',']).any(|part| part == register)
    };
    instructions[..place].iter().rev().find(opens)?.target()
}

/// Parts a function into blocks.
fn blocks(instructions: &[Instruction]) -> Vec<Block> {
    let targets: Vec<Option<u64>> =
        (0..instructions.len()).map(|place| jumps(instructions, place)).collect();
    let entered: BTreeSet<u64> = targets.iter().flatten().copied().collect();
    let begins = |place: usize| {
        place == 0
            || entered.contains(&instructions[place].address)
            || instructions[place - 1].branches()
    };
    let begin: Vec<usize> = (0..instructions.len()).filter(|&place| begins(place)).collect();
    let block_at: BTreeMap<u64, usize> = begin
        .iter()
        .enumerate()
        .map(|(block, &place)| (instructions[place].address, block))
        .collect();
    let ends = begin.iter().skip(1).copied().chain([instructions.len()]);
    let block = |(block, (&from, to)): (usize, (&usize, usize))| {
        let jump = targets[to - 1].and_then(|target| block_at.get(&target).copied());
        let after = instructions[to - 1].falls_through().then_some(block + 1);
        let next = jump.into_iter().chain(after).filter(|&next| next < begin.len()).collect();
        Block { instructions: instructions[from..to].to_vec(), next }
    };
    begin.iter().zip(ends).enumerate().map(block).collect()
}

/// The lengths, in instructions, of the shortest ways from a block to every other, with the block before
/// the last on each; the first and the last block do not count.
fn ways(blocks: &[Block], from: usize) -> BTreeMap<usize, (usize, usize)> {
    let mut found = BTreeMap::new();
    let mut open: BinaryHeap<_> =
        blocks[from].next.iter().map(|&next| Reverse((0, next, from))).collect();
    while let Some(Reverse((length, block, before))) = open.pop() {
        if found.contains_key(&block) {
            continue;
        }
        found.insert(block, (length, before));
        let length = length + blocks[block].instructions.len();
        open.extend(blocks[block].next.iter().map(|&next| Reverse((length, next, block))));
    }
    found
}

/// The blocks between two, the last among them, on the shortest way.
fn way(ways: &BTreeMap<usize, (usize, usize)>, from: usize, to: usize) -> Vec<usize> {
    let mut way = vec![to];
    let mut at = ways[&to].1;
    while at != from {
        way.push(at);
        at = ways[&at].1;
    }
    way
}

fn count(block: &Block, what: fn(&Instruction) -> bool) -> usize {
    block.instructions.iter().filter(|one| what(one)).count()
}

/// The main loop as the head of this file defines it.
fn main_loop(instructions: &[Instruction]) -> Option<MainLoop> {
    let blocks = blocks(instructions);
    let matrix = |&block: &usize| count(&blocks[block], Instruction::matrix);
    // Of blocks with equally many the shortest: it does nothing else.
    let length = |&block: &usize| Reverse(blocks[block].instructions.len());
    let hot = (0..blocks.len()).max_by_key(|block| (matrix(block), length(block)))?;
    if matrix(&hot) == 0 {
        return None;
    }
    let from_hot = ways(&blocks, hot);
    let rounds = (0..blocks.len()).filter(|&load| count(&blocks[load], Instruction::wide_load) > 0);
    let rounds = rounds.filter_map(|load| {
        if load == hot {
            return Some((from_hot.get(&hot)?.0, way(&from_hot, hot, hot)));
        }
        let (there, back) = (from_hot.get(&load)?.0, ways(&blocks, load));
        let length = there + blocks[load].instructions.len() + back.get(&hot)?.0;
        Some((length, [way(&from_hot, hot, load), way(&back, load, hot)].concat()))
    });
    let (_, round) = rounds.min_by_key(|(length, _)| *length)?;
    let round: BTreeSet<usize> = round.into_iter().collect();
    let total = |what: fn(&Instruction) -> bool| -> usize {
        round.iter().map(|&block| count(&blocks[block], what)).sum()
    };
    Some(MainLoop {
        instructions: total(|_| true),
        matrix: total(Instruction::matrix),
        wide_loads: total(Instruction::wide_load),
        scalar: total(Instruction::scalar),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of these instructions, 16 bytes each, as cuobjdump prints it.
    fn function(name: &str, lines: &[&str]) -> String {
        let mut text = format!("\t\tFunction : {name}\n\t.headerflags\t@\"EF_CUDA_SM80\"\n");
        for (place, line) in lines.iter().enumerate() {
            text +=
                &format!("        /*{:04x}*/   {line} ;   /* 0x00000a00ff017624 */\n", 16 * place);
            text += "                                       /* 0x000fe400078e00ff */\n";
        }
        text
    }

    fn of(lines: &[&str]) -> Option<MainLoop> {
        main_loops(&function("k", lines))["k"]
    }

    const MMA: &str = "HMMA.16816.F32.BF16 R116, R32.reuse, R124, R116";
    const COPY: &str = "@P0 LDGSTS.E.BYPASS.128 [R4], [R2.64]";

    #[test]
    fn the_loop_is_between_a_backward_branch_and_its_target() {
        let lines = [
            "FMUL R1, R2, R3",
            COPY,
            "LDSM.16.M88.4 R4, [R5]",
            MMA,
            MMA,
            "@!P1 BRA 0x10",
            "FADD R1, R1, R2",
            "EXIT",
        ];
        let found = MainLoop { instructions: 5, matrix: 2, wide_loads: 1, scalar: 0 };
        assert_eq!(of(&lines), Some(found));
        assert_eq!(complaint(of(&lines)), None);
    }

    #[test]
    fn what_runs_once_a_sample_is_left_out() {
        // 0x20: matrix; then either round again, or the flush at 0x40 and round again.
        let lines =
            [COPY, MMA, MMA, "@P0 BRA 0x0", "FFMA R1, R2, R3, R4", MMA, "@P1 BRA 0x0", "EXIT"];
        let found = of(&lines).unwrap();
        assert_eq!((found.matrix, found.scalar), (2, 0));
    }

    #[test]
    fn scalar_arithmetic_on_the_way_round_counts() {
        for scalar in [
            "FFMA R1, R2, R3, R4",
            "@P3 FMUL.FTZ R1, R2, R3",
            "FADD R1, R2, R3",
            "FFMA2 R2, R4, R6, R8",
        ] {
            let lines = [COPY, scalar, MMA, "BRA 0x0"];
            assert_eq!(of(&lines).unwrap().scalar, 1, "{scalar}");
            assert!(complaint(of(&lines)).unwrap().contains("1 scalar"));
        }
    }

    #[test]
    fn the_way_round_passes_a_wide_load() {
        // Two ways from the branch at 0x10: past a narrow load, or past a wide one with arithmetic.
        let lines = [
            MMA,
            "@P0 BRA 0x40",
            "LDG.E.64 R2, [R4]",
            "BRA 0x0",
            "LDG.E.128.CONSTANT R4, [R2.64]",
            "FADD R1, R2, R3",
            "BRA 0x0",
        ];
        let found = of(&lines).unwrap();
        assert_eq!((found.wide_loads, found.scalar, found.instructions), (1, 1, 5));
    }

    #[test]
    fn no_loop_no_matrix_or_no_wide_load_is_a_complaint() {
        for lines in [
            vec![COPY, MMA, "EXIT"],
            vec![COPY, "FFMA R1, R2, R3, R4", "BRA 0x0"],
            vec!["LDG.E.64 R2, [R4]", MMA, "BRA 0x0"],
            vec!["LDS.128 R4, [R2]", MMA, "BRA 0x0"],
            vec![COPY, "BRA 0x0", MMA, "EXIT"],
        ] {
            assert_eq!(of(&lines), None, "{lines:?}");
            assert!(complaint(of(&lines)).is_some());
        }
    }

    #[test]
    fn reconvergence_goes_where_it_was_announced() {
        let lines = ["BSSY B0, 0x40", MMA, "BRA 0x50", "EXIT", "BRA 0x0", COPY, "BSYNC B0"];
        assert_eq!(of(&lines).map(|found| found.wide_loads), Some(1));
        let other = ["BSSY B1, 0x40", MMA, "BRA 0x50", "EXIT", "BRA 0x0", COPY, "BSYNC B0"];
        assert_eq!(of(&other), None);
    }

    #[test]
    fn branches_under_a_second_predicate_may_fall_through() {
        let lines = [COPY, "BRA P1, 0x0", MMA, "BRA.U UP0, 0x0", "EXIT"];
        assert_eq!(of(&lines).map(|found| found.matrix), Some(1));
    }

    #[test]
    fn kernels_are_chosen_by_name() {
        for gemm in
            ["linear_wgrad_bf16", "linear_dgrad_f16", "conv2d_wgrad_f16", "linear_dgrad_wide_f16"]
        {
            assert!(is_gemm(gemm), "{gemm}");
        }
        for other in
            ["linear_wgrad_f32", "norm_dx_bf16", "lora_wgrad_f16", "linear_dgrad_narrow_f16"]
        {
            assert!(!is_gemm(other), "{other}");
        }
        let both = function("a", &[COPY, MMA, "BRA 0x0"]) + &function("b", &["EXIT"]);
        assert_eq!(main_loops(&both).len(), 2);
    }
}
