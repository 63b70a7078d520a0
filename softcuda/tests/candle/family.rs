//! A module of candle's, its launches and the comparison of their results.

use std::collections::BTreeSet;
use std::path::Path;

use super::number::{Dtype, Random, Tolerance, Value};
use crate::common::{Arg, Program};
use softcuda::fault::Check;
use softcuda::module::LoadError;

/// Threads of a block where candle leaves the choice to cudarc.
const BLOCK: u32 = 1024;

pub struct Family {
    pub program: Program,
    pub random: Random,
    /// Names of kernels whose results were compared.
    pub ran: BTreeSet<String>,
    pub failures: Vec<String>,
}

/// Memory that a kernel is to write.
#[derive(Clone, Copy)]
pub struct Output {
    pub address: u64,
    pub dtype: Dtype,
    pub count: usize,
}

impl Output {
    pub fn arg(self) -> Arg {
        Arg::U64(self.address)
    }
}

/// A scalar argument.
pub fn scalar(dtype: Dtype, value: Value) -> Arg {
    Arg::Bytes(dtype.encode(&[value]))
}

pub fn size(n: usize) -> Arg {
    Arg::U64(n as u64)
}

impl Family {
    /// Loads a module, of which every kernel must be known from beginning to end.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).expect("readable");
        let program = Program::load(&text)?;
        let kernels = &program.module.kernels;
        assert_eq!(kernels.len(), text.matches(".entry ").count(), "{}", path.display());
        assert!(kernels.values().all(|kernel| !kernel.code.is_empty()), "{}", path.display());
        let (ran, failures) = Default::default();
        Ok(Self { program, random: Random::new(3), ran, failures })
    }

    pub fn input(&self, dtype: Dtype, values: &[Value]) -> Arg {
        Arg::U64(self.program.bytes(&dtype.encode(values)))
    }

    /// Dimensions, strides and other numbers of 64 bits.
    pub fn sizes(&self, numbers: &[usize]) -> Arg {
        let bytes: Vec<u8> = numbers.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
        Arg::U64(self.program.bytes(&bytes))
    }

    /// Memory that nothing has written, exactly as large as the result.
    pub fn output(&self, dtype: Dtype, count: usize) -> Output {
        let address = self.program.unwritten((count * dtype.bytes()) as u64);
        Output { address, dtype, count }
    }

    /// Memory that the kernel adds to or overwrites in part.
    pub fn filled(&self, dtype: Dtype, values: &[Value]) -> Output {
        let address = self.program.bytes(&dtype.encode(values));
        Output { address, dtype, count: values.len() }
    }

    /// Launches one thread per element, as cudarc does.
    pub fn launch(&mut self, kernel: &str, elements: usize, args: &[Arg]) -> bool {
        let grid = (elements as u32).div_ceil(BLOCK);
        self.launch_blocks(kernel, [grid, 1, 1], [BLOCK, 1, 1], 0, args)
    }

    /// Whether the kernel ran without a fault.
    pub fn launch_blocks(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg],
    ) -> bool {
        self.program.select(kernel);
        let found = self.program.kernel();
        assert_eq!(found.parameters.len(), args.len(), "parameters of {kernel}");
        let launched = self.program.launch_3d(grid, block, [1; 3], shared, args);
        if let Err(report) = &launched {
            self.failures.push(report.to_string());
        }
        launched.is_ok()
    }

    /// Launches what candle gets wrong: the check that must find it.
    pub fn faults(
        &mut self,
        kernel: &str,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        args: &[Arg],
        check: Check,
    ) {
        self.program.select(kernel);
        match self.program.launch_3d(grid, block, [1; 3], shared, args) {
            Err(report) if report.check == check => {}
            Err(report) => self.failures.push(format!("not {check:?} but {report}")),
            Ok(_) => self.failures.push(format!("{kernel}: no {check:?}")),
        }
    }

    /// Compares what the kernel launched last has written.
    pub fn check(&mut self, what: &str, out: Output, expected: &[Value], tolerance: Tolerance) {
        let bytes = self.program.read_bytes(out.address, out.count * out.dtype.bytes());
        self.check_values(what, out.dtype, &out.dtype.decode(&bytes), expected, tolerance);
    }

    pub fn check_values(
        &mut self,
        what: &str,
        dtype: Dtype,
        got: &[Value],
        expected: &[Value],
        tolerance: Tolerance,
    ) {
        assert_eq!(got.len(), expected.len());
        let kernel = self.program.kernel().name.clone();
        let mut wrong = (got.iter().zip(expected).enumerate())
            .filter(|(_, (got, expected))| !dtype.accepts(**got, **expected, tolerance));
        if let Some((at, (got, expected))) = wrong.next() {
            let more = wrong.count();
            self.failures.push(format!(
                "{kernel} ({what}): element {at} is {got:?}, not {expected:?}, and {more} more"
            ));
        }
        self.ran.insert(kernel);
    }
}
