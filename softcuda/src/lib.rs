//! A CUDA driver that will execute PTX on the CPU, to test kernels without a GPU. So far it reads PTX:
//! see [`ptx`].

pub mod ptx;
