//! Runs PTX texts on the machine, without the driver in between.
#![allow(dead_code)] // every test file uses a part

use softcuda::counters::Counters;
use softcuda::fault::Report;
use std::sync::Arc;

use softcuda::ir::Kernel;
use softcuda::machine::{Launch, Schedule, Settings, run};
use softcuda::memory::Device;
use softcuda::module::{LoadError, Module};

pub mod nvcc;

/// A module with a device of its own, and the kernel that `launch` runs.
pub struct Program {
    pub module: Module,
    kernel: Arc<Kernel>,
    pub device: Device,
    pub settings: Settings,
}

/// The architecture modules are loaded for.
const ARCH: u32 = 90;

/// An argument of a launch.
#[derive(Clone)]
pub enum Arg {
    U32(u32),
    F32(f32),
    U64(u64),
    I32(i32),
    Bytes(Vec<u8>),
}

impl Program {
    /// A module and its first kernel by name.
    pub fn module(text: &str) -> Self {
        Self::load(text).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, where it may be refused.
    pub fn load(text: &str) -> Result<Self, LoadError> {
        let device = Device::new(1 << 30);
        let module = Module::load(&device, text.as_bytes(), ARCH)?;
        let kernel = module.kernels.values().next().expect("a kernel").clone();
        let settings = Settings { threads: 1, ..Settings::default() };
        Ok(Self { module, kernel, device, settings })
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Makes the kernel of that name the one to launch, or else the first whose name contains it.
    pub fn select(&mut self, name: &str) {
        let kernels = &self.module.kernels;
        let part = || kernels.values().find(|kernel| kernel.name.contains(name));
        let found = kernels.get(name).or_else(part);
        self.kernel = found.unwrap_or_else(|| panic!("no kernel {name}")).clone();
    }

    /// A kernel with up to four 64-bit parameters `a`, `b`, `c`, `d` and a body of instructions, which
    /// finds `%p<32> %h<32> %r<64> %f<64> %rd<64> %fd<32>` declared, the parameters in `%rd60…%rd63`,
    /// the thread index in `%r63`, the global thread index in `%r62`.
    pub fn body(target: &str, body: &str) -> Self {
        Self::module(&format!(
            ".version 8.7\n.target {target}\n.address_size 64\n\
             .visible .entry test(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)\n{{\n\
             .reg .pred %p<32>;\n.reg .b16 %h<32>;\n.reg .b32 %r<64>;\n.reg .f32 %f<64>;\n\
             .reg .b64 %rd<64>;\n.reg .f64 %fd<32>;\n\
             ld.param.u64 %rd60, [a];\nld.param.u64 %rd61, [b];\nld.param.u64 %rd62, [c];\n\
             ld.param.u64 %rd63, [d];\nmov.u32 %r63, %tid.x;\nmov.u32 %r61, %ctaid.x;\n\
             mov.u32 %r60, %ntid.x;\nmad.lo.u32 %r62, %r61, %r60, %r63;\n{body}\nret;\n}}\n"
        ))
    }

    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.settings.schedule = schedule;
        self
    }

    /// A buffer on the device holding these bytes.
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let address = self.device.allocate(bytes.len().max(1) as u64).expect("room");
        self.device.write(address, bytes).expect("inside");
        address
    }

    pub fn u32s(&self, values: &[u32]) -> u64 {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn i32s(&self, values: &[i32]) -> u64 {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn f32s(&self, values: &[f32]) -> u64 {
        self.bytes(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A buffer nothing has written yet.
    pub fn unwritten(&self, bytes: u64) -> u64 {
        self.device.allocate(bytes).expect("room")
    }

    pub fn read_bytes(&self, from: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.device.read(from, &mut bytes).expect("inside");
        bytes
    }

    pub fn read_u32s(&self, from: u64, n: usize) -> Vec<u32> {
        let bytes = self.read_bytes(from, n * 4);
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4"))).collect()
    }

    pub fn read_f32s(&self, from: u64, n: usize) -> Vec<f32> {
        self.read_u32s(from, n).into_iter().map(f32::from_bits).collect()
    }

    pub fn launch(&self, grid: u32, block: u32, args: &[Arg]) -> Result<Counters, Box<Report>> {
        self.launch_shared(grid, block, 0, args)
    }

    pub fn launch_shared(
        &self,
        grid: u32,
        block: u32,
        dynamic_shared: u32,
        args: &[Arg],
    ) -> Result<Counters, Box<Report>> {
        self.launch_3d([grid, 1, 1], [block, 1, 1], [1; 3], dynamic_shared, args)
    }

    pub fn launch_3d(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        cluster: [u32; 3],
        dynamic_shared: u32,
        args: &[Arg],
    ) -> Result<Counters, Box<Report>> {
        let kernel = self.kernel();
        let mut parameters = vec![0; kernel.parameter_bytes as usize];
        for (arg, &(offset, bytes)) in args.iter().zip(&kernel.parameters) {
            let value = match arg {
                Arg::U32(value) => value.to_le_bytes().to_vec(),
                Arg::I32(value) => value.to_le_bytes().to_vec(),
                Arg::F32(value) => value.to_le_bytes().to_vec(),
                Arg::U64(value) => value.to_le_bytes().to_vec(),
                Arg::Bytes(bytes) => bytes.clone(),
            };
            assert_eq!(value.len(), bytes as usize, "parameter at {offset}");
            parameters[offset as usize..][..bytes as usize].copy_from_slice(&value);
        }
        let launch = Launch {
            kernel,
            device: &self.device,
            parameters: &parameters,
            grid,
            block,
            cluster,
            dynamic_shared,
            cooperative: false,
            multiprocessors: 4,
            number: 1,
        };
        run(&launch, &self.settings)
    }
}

/// The message of a load that must fail.
pub fn refused(text: &str) -> String {
    match Module::load(&Device::new(1 << 20), text.as_bytes(), ARCH) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("accepted:\n{text}"),
    }
}
