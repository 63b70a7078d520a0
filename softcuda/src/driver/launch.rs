//! Launches: parameters, limits, and what becomes of a fault.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::boundary::{HostFunction, In, call, read_host};
use super::context::Health;
use super::error::{Error, Outcome, Status};
use super::function::{Function, function};
use super::report;
use super::state::{Handle, driver};
use super::stream::stream;
use super::work::Work;
use crate::architecture::{Architecture, BlockNeeds, MAX_BLOCK, MAX_GRID, MAX_THREADS, REGISTERS};
use crate::fault::Check;
use crate::machine::{self, Launch};

/// Shape and options of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: Option<[u32; 3]>,
    pub shared: u32,
    pub cooperative: bool,
}

/// A launch that was found right, with its parameters.
#[derive(Debug)]
pub struct Prepared {
    function: Arc<Function>,
    shape: Shape,
    parameters: Vec<u8>,
}

/// Says on stderr why a launch was refused.
fn refuse<T>(function: &Function, error: Error, why: impl AsRef<str>) -> Outcome<T> {
    eprintln!("softcuda: launch of {} refused: {}", function.kernel.name, why.as_ref());
    Err(error)
}

fn product(dims: [u32; 3]) -> u64 {
    dims.iter().map(|&n| u64::from(n)).product()
}

impl Shape {
    /// What one block takes up.
    fn needs(&self, function: &Function) -> BlockNeeds {
        BlockNeeds {
            threads: product(self.block) as u32,
            registers: function.registers(),
            shared: function.kernel.shared_bytes + self.shared,
        }
    }

    fn check(&self, function: &Function, device: &Architecture) -> Outcome {
        let invalid = |why: String| refuse(function, Error::InvalidValue, why);
        let within = |dims: [u32; 3], most: [u32; 3]| {
            (0..3).all(|axis| (1..=most[axis]).contains(&dims[axis]))
        };
        if !within(self.grid, MAX_GRID) {
            return invalid(format!("grid {:?} is not within {MAX_GRID:?}", self.grid));
        }
        let threads = product(self.block);
        if !within(self.block, MAX_BLOCK) || threads > u64::from(MAX_THREADS) {
            let block = self.block;
            return invalid(format!("block {block:?} is not within {MAX_BLOCK:?}, 1024 in all"));
        }
        let kernel = &function.kernel;
        if let Some(most) = kernel.max_threads.filter(|&most| threads > u64::from(most)) {
            return invalid(format!(
                "{threads} threads; the kernel is compiled for {most} at most"
            ));
        }
        if let Some(required) = kernel.required_block.filter(|&required| required != self.block) {
            return invalid(format!("block {:?}; the kernel requires {required:?}", self.block));
        }
        self.check_shared(function, device)?;
        let registers = function.registers();
        let taken = Architecture::registers_of_block(threads as u32, registers);
        if taken > REGISTERS {
            let why =
                format!("{threads} threads of {registers} registers take {taken} of {REGISTERS}");
            return refuse(function, Error::LaunchOutOfResources, why);
        }
        self.check_cluster(function, device)?;
        let resident = u64::from(device.resident_blocks(self.needs(function)));
        let room = resident * u64::from(device.multiprocessors);
        if self.cooperative && product(self.grid) > room {
            let why = format!("{} blocks, of which {room} can be resident", product(self.grid));
            return refuse(function, Error::CooperativeLaunchTooLarge, why);
        }
        Ok(())
    }

    fn check_shared(&self, function: &Function, device: &Architecture) -> Outcome {
        let fixed = function.kernel.shared_bytes;
        if self.shared > function.shared_limit() {
            let why = format!(
                "{} bytes of dynamic shared memory, {} allowed: see \
                 CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
                self.shared,
                function.shared_limit()
            );
            return refuse(function, Error::InvalidValue, why);
        }
        if u64::from(fixed) + u64::from(self.shared) > u64::from(device.shared_opt_in) {
            let why = format!("{} bytes of shared memory in all", fixed + self.shared);
            return refuse(function, Error::InvalidValue, why);
        }
        Ok(())
    }

    fn check_cluster(&self, function: &Function, device: &Architecture) -> Outcome {
        let Some(cluster) = self.cluster else { return Ok(()) };
        let why = |why: String| refuse(function, Error::InvalidClusterSize, why);
        let Some([portable, most]) = device.cluster else {
            return why(format!("sm_{} has no clusters", device.number));
        };
        if let Some(required) = function.kernel.required_cluster.filter(|&r| r != cluster) {
            return why(format!("cluster {cluster:?}; the kernel requires {required:?}"));
        }
        let large = function.large_cluster.load(Ordering::Relaxed);
        let limit = if large { most } else { portable };
        let blocks = product(cluster);
        if !(1..=u64::from(limit)).contains(&blocks) {
            return why(format!("cluster {cluster:?} of {blocks} blocks, {limit} allowed"));
        }
        if (0..3).any(|axis| !self.grid[axis].is_multiple_of(cluster[axis])) {
            let grid = self.grid;
            let text = format!("grid {grid:?} is no multiple of cluster {cluster:?}");
            return refuse(function, Error::InvalidValue, text);
        }
        Ok(())
    }
}

/// Blocks of a launch that a multiprocessor, and clusters that the device holds at once.
pub fn resident(function: &Function, shape: &Shape) -> Outcome<(u32, u32)> {
    let device = driver()?.architecture;
    let blocks = device.resident_blocks(shape.needs(function));
    let cluster = product(shape.cluster.unwrap_or([1; 3])).max(1) as u32;
    // Clusters lie within groups of multiprocessors; the size of these differs from part to part.
    Ok((blocks, blocks * device.multiprocessors / cluster))
}

/// Parameters as an array of pointers, or packed in a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub pointers: In<usize>,
    pub extra: In<usize>,
}

impl Given {
    fn pack(&self, function: &Function) -> Outcome<Vec<u8>> {
        let kernel = &function.kernel;
        let mut packed = vec![0; kernel.parameter_bytes as usize];
        if kernel.parameters.is_empty() {
            return Ok(packed);
        }
        if !self.pointers.is_null() {
            for (index, &(offset, bytes)) in kernel.parameters.iter().enumerate() {
                let (from, to) = (offset as usize, (offset + bytes) as usize);
                read_host(self.pointers.get_at(index)?, &mut packed[from..to])?;
            }
            return Ok(packed);
        }
        if self.extra.is_null() {
            return refuse(function, Error::InvalidValue, "no parameters were given");
        }
        let (mut buffer, mut size) = (0, None);
        const END: usize = 0;
        const POINTER: usize = 1;
        const SIZE: usize = 2;
        for pair in 0..2 {
            let value = || self.extra.get_at(2 * pair + 1);
            match self.extra.get_at(2 * pair)? {
                POINTER => buffer = value()?,
                SIZE => {
                    let mut bytes = [0; size_of::<usize>()];
                    read_host(value()?, &mut bytes)?;
                    size = Some(usize::from_le_bytes(bytes));
                }
                END => break,
                _ => return Err(Error::InvalidValue),
            }
        }
        // A struct's end may be padded.
        let length = packed.len();
        if !size.is_some_and(|size| (length..length + 16).contains(&size)) {
            let why = format!("parameters of {size:?} bytes, the kernel takes {length}");
            return refuse(function, Error::InvalidValue, why);
        }
        read_host(buffer, &mut packed)?;
        Ok(packed)
    }
}

/// Checks a launch and hands it to its stream.
pub fn launch(handle: Handle, mut shape: Shape, on: Handle, given: Given) -> Outcome {
    let stream = stream(on)?;
    stream.health.check()?;
    let function = function(handle)?;
    shape.cluster = shape.cluster.or(function.cluster());
    shape.check(&function, driver()?.architecture)?;
    let parameters = given.pack(&function)?;
    stream.submit(Work::Launch(Arc::new(Prepared { function, shape, parameters })))
}

fn code(check: Check) -> Error {
    match check {
        Check::OutOfBounds => Error::IllegalAddress,
        Check::Misaligned => Error::MisalignedAddress,
        Check::Assert => Error::Assert,
        Check::TooLong => Error::LaunchTimeout,
        Check::StackOverflow => Error::HardwareStack,
        _ => Error::LaunchFailed,
    }
}

impl Prepared {
    pub fn run(&self, health: &Health) -> Outcome {
        let driver = driver()?;
        let Self { function, shape, parameters } = self;
        let number = driver.launches.fetch_add(1, Ordering::Relaxed) + 1;
        let launch = Launch {
            kernel: &function.kernel,
            device: &driver.device,
            parameters,
            grid: shape.grid,
            block: shape.block,
            cluster: shape.cluster.unwrap_or([1; 3]),
            dynamic_shared: shape.shared,
            cooperative: shape.cooperative,
            multiprocessors: driver.architecture.multiprocessors,
            number,
        };
        let (_, resident) = resident(function, shape)?;
        let settings = machine::Settings { resident: u64::from(resident), ..driver.settings };
        match machine::run(&launch, &settings) {
            Ok(counters) => {
                report::count(&launch, &counters);
                Ok(())
            }
            Err(fault) => {
                report::publish(&fault);
                health.fail(code(fault.check))
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: Handle,
    pointers: In<usize>,
    extra: In<usize>,
) -> Status {
    call("cuLaunchKernel", || {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let shape = Shape { grid, block, cluster: None, shared, cooperative: false };
        launch(function, shape, stream, Given { pointers, extra })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: Handle,
    pointers: In<usize>,
) -> Status {
    call("cuLaunchCooperativeKernel", || {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let shape = Shape { grid, block, cluster: None, shared, cooperative: true };
        launch(function, shape, stream, Given { pointers, extra: In::null() })
    })
}

/// `CUlaunchConfig`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    pub stream: Handle,
    attributes: In<Attribute>,
    count: u32,
}

/// `CUlaunchAttribute`: its number, and 64 bytes that mean what the number says.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Attribute {
    number: u32,
    padding: u32,
    value: [u32; 16],
}

impl Config {
    pub fn shape(&self, function: &Function) -> Outcome<Shape> {
        let Self { grid, block, shared, .. } = *self;
        let mut shape = Shape { grid, block, cluster: None, shared, cooperative: false };
        for attribute in self.attributes.array(self.count as usize)? {
            let value = attribute.value;
            match attribute.number {
                2 => shape.cooperative = value[0] != 0,
                4 => shape.cluster = Some([value[0], value[1], value[2]]),
                // Hints: caches, scheduling, priorities, memory domains, and when the next kernel may
                // begin; here it begins when this one is done.
                0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 11 | 14 | 16 | 17 => {}
                number => {
                    let why = format!("launch attribute {number} is not supported");
                    return refuse(function, Error::NotSupported, why);
                }
            }
        }
        Ok(shape)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: In<Config>,
    handle: Handle,
    pointers: In<usize>,
    extra: In<usize>,
) -> Status {
    call("cuLaunchKernelEx", || {
        let config = config.get()?;
        let shape = config.shape(&*function(handle)?)?;
        launch(handle, shape, config.stream, Given { pointers, extra })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(on: Handle, function: Option<HostFunction>, data: usize) -> Status {
    call("cuLaunchHostFunc", || {
        let function = function.ok_or(Error::InvalidValue)?;
        stream(on)?.submit(Work::Host(function, data))
    })
}

super::exports![cuLaunchKernel, cuLaunchCooperativeKernel, cuLaunchKernelEx, cuLaunchHostFunc];
