//! Launches that run at once on one device: each counts and checks as if it were alone.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::Program;
use softcuda::counters::Counters;
use softcuda::fault::{Check, Report};
use softcuda::machine::{Launch, Settings, run};

/// Launches of `grid` blocks of 32 threads, which get one address.
struct Launcher {
    program: Program,
    numbers: AtomicU64,
}

impl Launcher {
    /// The body finds the address in `%rd60`, as those of [`Program::body`] do.
    fn new(body: &str) -> Self {
        Self { program: Program::body("sm_80", body), numbers: AtomicU64::new(0) }
    }

    fn launch(&self, grid: u32, address: u64, threads: usize) -> Result<Counters, Box<Report>> {
        let kernel = self.program.kernel();
        let mut parameters = vec![0; kernel.parameter_bytes as usize];
        parameters[..8].copy_from_slice(&address.to_le_bytes());
        let launch = Launch {
            kernel,
            device: &self.program.device,
            parameters: &parameters,
            grid: [grid, 1, 1],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            cooperative: false,
            multiprocessors: 4,
            number: self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
        };
        run(&launch, &Settings { threads, limit: 20_000_000, ..Settings::default() })
    }
}

/// Each thread adds up the first words, then writes its own behind them if its block is not the first.
const SUM: &str = "mov.u32 %r0, 0;\nmov.u32 %r1, 0;\n\
    LOOP:\nmul.wide.u32 %rd0, %r0, 4;\nadd.s64 %rd0, %rd0, %rd60;\nld.global.u32 %r2, [%rd0];\n\
    add.u32 %r1, %r1, %r2;\nadd.u32 %r0, %r0, 1;\nsetp.lt.u32 %p0, %r0, 32;\n@%p0 bra LOOP;\n\
    mul.wide.u32 %rd1, %r62, 4;\nadd.s64 %rd1, %rd1, %rd60;\nsetp.ne.u32 %p1, %r61, 0;\n\
    @%p1 st.global.u32 [%rd1], %r1;\n";

#[test]
fn each_counts_as_if_it_were_alone() {
    let launcher = Launcher::new(SUM);
    let data = || launcher.program.u32s(&[1; 32 * 9]);
    let alone = launcher.launch(9, data(), 1).unwrap();
    let many = || {
        let data = data();
        for _ in 0..30 {
            assert!(launcher.launch(9, data, 2).unwrap() == alone);
        }
        assert_eq!(launcher.program.read_u32s(data + 4 * 32, 32 * 8), [32; 32 * 8]);
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(many);
        }
    });
}

#[test]
fn launches_meet() {
    // Says that it is there and waits for the other, plainly: the machine takes it for computing.
    let launcher = Launcher::new(
        "mov.u32 %r0, 1;\nst.global.u32 [%rd60], %r0;\nxor.b64 %rd0, %rd60, 64;\n\
         LOOP:\nld.global.u32 %r1, [%rd0];\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra LOOP;\n",
    );
    let words = launcher.program.u32s(&[0; 32]);
    std::thread::scope(|scope| {
        for mine in [words, words + 64] {
            let launcher = &launcher;
            scope.spawn(move || launcher.launch(1, mine, 1).unwrap());
        }
    });
}

#[test]
fn none_makes_another_forget_who_touched_a_page() {
    // Block 0 writes a word and waits for the other launch, which touches the same page; then block 1 writes
    // that word too. The other waits for the first and says when it has read.
    let racing = "setp.ne.u32 %p1, %r61, 0;\n@%p1 bra SECOND;\n\
        st.global.u32 [%rd60], %r63;\nst.global.u32 [%rd60+128], %r60;\n\
        A:\nld.global.u32 %r1, [%rd60+256];\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra A;\nbra END;\n\
        SECOND:\nst.global.u32 [%rd60], %r62;\nEND:\n";
    let other = "setp.ne.u32 %p1, %r61, 0;\n@%p1 bra END;\n\
        A:\nld.global.u32 %r1, [%rd60+128];\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra A;\n\
        st.global.u32 [%rd60+256], %r60;\nEND:\n";
    // One kernel for both, told apart by the address' lowest bit.
    let body = format!(
        "and.b64 %rd1, %rd60, 1;\nsetp.ne.u64 %p2, %rd1, 0;\nsub.s64 %rd60, %rd60, %rd1;\n\
         @%p2 bra OTHER;\n{racing}\nret;\nOTHER:\n{}",
        other.replace("A:", "B:").replace("bra A", "bra B").replace("END", "DONE")
    );
    // One lane writes: the others would race among themselves.
    let launcher = Launcher::new(&format!("setp.ne.u32 %p9, %r63, 0;\n@%p9 ret;\n{body}"));
    let words = launcher.program.u32s(&[0; 128]);
    std::thread::scope(|scope| {
        scope.spawn(|| launcher.launch(2, words + 1, 1).unwrap());
        let report = launcher.launch(2, words, 1).unwrap_err();
        assert_eq!((report.check, report.block), (Check::GlobalRace, [1, 0, 0]));
        assert_eq!(report.other.unwrap().block, [0; 3]);
    });
}

#[test]
fn a_race_is_found_beside_launches_that_read_the_same() {
    let racy = Launcher::new("st.global.u32 [%rd60], %r61;\n");
    let word = racy.program.u32s(&[7]);
    let reading = "ld.global.u32 %r0, [%rd60];\n";
    let device = &racy.program.device;
    let reader = Program::body("sm_80", reading);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let launch = Launch {
                    kernel: reader.kernel(),
                    device,
                    parameters: &[word.to_le_bytes(), [0; 8], [0; 8], [0; 8]].concat(),
                    grid: [8, 1, 1],
                    block: [32, 1, 1],
                    cluster: [1; 3],
                    dynamic_shared: 0,
                    cooperative: false,
                    multiprocessors: 4,
                    number: 1 << 40,
                };
                run(&launch, &Settings::default()).unwrap();
            }
        });
        let race = |report: Box<Report>| report.check == Check::GlobalRace;
        let found = (0..200).all(|_| racy.launch(4, word, 1).is_err_and(race));
        done.store(true, Ordering::Relaxed);
        assert!(found);
    });
}
