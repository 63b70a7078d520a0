//! A CUDA driver that executes PTX on the CPU, to test kernels without a GPU.
//!
//! Programs load it as `libcuda.so` and need nothing of this crate. Rust code that links it finds what the
//! driver's launches found and counted in [`driver`], and can do without a driver: [`module`] loads PTX,
//! [`machine`] executes it.

pub mod alu;
pub mod architecture;
pub mod bulk;
pub mod collective;
pub mod container;
pub mod counters;
pub mod driver;
pub mod fault;
pub mod ir;
pub mod lower;
pub mod machine;
pub mod matrix;
pub mod memory;
pub mod module;
mod pressure;
pub mod ptx;
pub mod registers;
pub mod tensor_map;
