//! The CUDA driver API: the functions that `libcuda.so` exports, over the machine of this crate.
//!
//! Only here is code unsafe: the attributes that export a function under its C name, and the use of pointers
//! that C hands over, which is all in `boundary`. Objects are known to C by handles, never by address.
//! What softcuda lacks is exported too and says so (`unsupported`).
//!
//! Streams do their work in the caller's thread, those of several threads at once, so a launch returns its own fault, as on hardware under
//! `CUDA_LAUNCH_BLOCKING=1`. With `CUDA_LAUNCH_BLOCKING=0` kernels run beside the caller and faults surface
//! in a later call.
//!
//! ```
//! use softcuda::driver;
//!
//! // What `libcuda.so` exports, found by name as a program finds it.
//! let find = |name| driver::exported().into_iter().find(|(exported, _)| *exported == name);
//! assert!(find("cuLaunchKernel").is_some());
//! assert!(find("cuFlyToTheMoon").is_none());
//! ```

#![allow(unsafe_code)]
// The names are C's.
#![allow(non_snake_case)]
// As many parameters as C has.
#![allow(clippy::too_many_arguments)]

/// Lists a file's exported functions with their addresses.
macro_rules! exports {
    ($($name:ident),* $(,)?) => {
        pub(super) fn exported() -> Vec<(&'static str, usize)> {
            vec![$((stringify!($name), $name as *const () as usize)),*]
        }
    };
}
use exports;

mod boundary;
mod capture;
mod context;
mod copy;
mod device;
mod error;
mod event;
mod fill;
mod function;
mod graph;
mod launch;
mod link;
mod lookup;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod report;
mod state;
mod stream;
mod streams;
mod tensor;
mod unsupported;
mod work;

pub use report::{keep_counters, last_report, row, take_counters};

/// Every exported function by name.
pub fn exported() -> Vec<(&'static str, usize)> {
    [
        capture::exported(),
        context::exported(),
        copy::exported(),
        device::exported(),
        event::exported(),
        fill::exported(),
        function::exported(),
        graph::exported(),
        launch::exported(),
        link::exported(),
        lookup::exported(),
        memory::exported(),
        module::exported(),
        occupancy::exported(),
        pointer::exported(),
        pool::exported(),
        report::exported(),
        streams::exported(),
        tensor::exported(),
        unsupported::exported(),
    ]
    .concat()
}
