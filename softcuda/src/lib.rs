//! A CUDA driver that executes PTX on the CPU, to test kernels without a GPU.

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
