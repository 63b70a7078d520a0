//! The CUDA driver and the crate's kernels. The only home of `unsafe`.
