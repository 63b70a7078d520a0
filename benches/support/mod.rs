//! What the benchmarks share: pools, paired timings and the table they are written to.

#[path = "../../xtask/src/machine.rs"]
mod machine;

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};

/// Runs a benchmark: `--table [WORD]` writes the table of ratios, for the layers whose name holds
/// the word if there is one; otherwise criterion times.
pub fn run(table: impl FnOnce(Option<&str>), criterion: impl FnOnce(&mut Criterion)) {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--table") {
        let word = arguments.get(at + 1).filter(|word| !word.starts_with('-'));
        return table(word.map(String::as_str));
    }
    let mut timer = Criterion::default().configure_from_args();
    criterion(&mut timer);
    timer.final_summary();
}

/// A criterion group of few and short samples.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(600));
    group
}

/// Times `run` inside a pool.
pub fn time(
    group: &mut BenchmarkGroup<WallTime>,
    pool: &rayon::ThreadPool,
    what: &str,
    mut run: impl FnMut() + Send,
) {
    group.bench_function(format!("{what}, {} threads", pool.current_num_threads()), |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            pool.install(|| (0..iterations).for_each(|_| run()));
            start.elapsed()
        });
    });
}

/// A pool of `threads` threads.
pub fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
}

/// Repeatable noise in -1..1.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| (rng.next_u32() as f32 / u32::MAX as f32) * 2.0 - 1.0).collect()
}

/// Time spent on this thread's processor where the kernel tells, which other work on the machine
/// does not lengthen; else wall-clock time. On a pool of several threads always the latter.
fn now() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let wall = START.elapsed();
    if rayon::current_num_threads() > 1 {
        return wall;
    }
    // Giving way makes the kernel bring its account of the thread up to date.
    std::thread::yield_now();
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let spent = account.and_then(|text| text.split(' ').next()?.parse().ok());
    spent.map_or(wall, Duration::from_nanos)
}

/// Ratios of `fused` over `plain`, timed in turn in this process.
pub struct Ratios {
    pub plain: Duration,
    /// Sorted.
    ratios: Vec<f64>,
}

impl Ratios {
    /// Alternates the two until at least seven pairs and `least` have passed.
    pub fn measure(least: Duration, mut plain: impl FnMut(), mut fused: impl FnMut()) -> Self {
        let time = |run: &mut dyn FnMut()| {
            let start = now();
            run();
            now() - start
        };
        // Warm caches, workspace and clocks.
        plain();
        fused();
        let start = Instant::now();
        let (mut plains, mut ratios) = (Vec::new(), Vec::new());
        while plains.len() < 7 || start.elapsed() < least {
            let before = time(&mut plain);
            let fused = time(&mut fused);
            ratios.push(fused.as_secs_f64() / before.as_secs_f64());
            plains.push(before);
        }
        plains.sort_unstable();
        ratios.sort_unstable_by(f64::total_cmp);
        Self { plain: plains[plains.len() / 2], ratios }
    }

    fn at(&self, share: f64) -> f64 {
        self.ratios[((self.ratios.len() - 1) as f64 * share).round() as usize]
    }

    /// Median and quartiles, as a table cell.
    pub fn cell(&self) -> String {
        format!("{:.3} ({:.3}–{:.3})", self.at(0.5), self.at(0.25), self.at(0.75))
    }
}

/// A Markdown table that is printed as it grows and written at the end.
pub struct Table {
    text: String,
}

impl Table {
    /// With a title, a line about this machine's processor and the day, and the columns.
    pub fn new(title: &str, about: &str, columns: &[&str]) -> Self {
        Self::of(title, &machine::processor(), about, columns)
    }

    /// The same of another machine.
    pub fn of(title: &str, machine: &str, about: &str, columns: &[&str]) -> Self {
        let mut table =
            Self { text: format!("# {title}\n\n{machine}, {}.\n{about}\n\n", machine::today()) };
        table.row(columns.iter().map(|column| (*column).to_owned()));
        table.row(columns.iter().map(|_| "---".to_owned()));
        table
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        let line = format!("| {} |", cells.join(" | "));
        println!("{line}");
        writeln!(self.text, "{line}").expect("writing to a string");
    }

    /// Writes `benches/record/<name>-<date>.md`.
    pub fn save(&self, name: &str) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/record");
        let path = format!("{folder}/{name}-{}.md", machine::today());
        std::fs::create_dir_all(folder).expect("the record's folder");
        std::fs::write(&path, &self.text).expect("the record");
        println!("written to benches/record/{name}-{}.md", machine::today());
    }
}
