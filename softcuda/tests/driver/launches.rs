//! Launches: parameters, limits, clusters, cooperative ones.

use std::ffi::c_void;

use cudarc::driver::{
    CudaContext, CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::kernels::{ADD, RANKS, REVERSE, WIDTHS, hopper, module};
use super::with_driver;

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

fn kernel(context: &std::sync::Arc<CudaContext>, text: &str, name: &str) -> CudaFunction {
    context.load_module(Ptx::from_src(text)).unwrap().load_function(name).unwrap()
}

#[test]
fn adds_vectors() {
    with_driver("launches::adds_vectors", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let add = kernel(&context, &module(&[ADD]), "add");
        for n in [1, 31, 32, 1000, 70_000] {
            let host: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let a = stream.clone_htod(&host).unwrap();
            let mut out = stream.alloc_zeros::<f32>(n).unwrap();
            let mut launch = stream.launch_builder(&add);
            let length = n as u32;
            launch.arg(&mut out).arg(&a).arg(&a).arg(&length);
            unsafe { launch.launch(LaunchConfig::for_num_elems(length)) }.unwrap();
            let found = stream.clone_dtoh(&out).unwrap();
            assert!(found.iter().zip(&host).all(|(found, x)| *found == 2.0 * x), "{n}");
        }
    });
}

/// A struct of 24 bytes, passed by value.
#[repr(C)]
struct Three([u64; 3]);

unsafe impl DeviceRepr for Three {}

#[test]
fn parameters_of_every_width() {
    with_driver("launches::parameters_of_every_width", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let widths = kernel(&context, &module(&[WIDTHS]), "widths");
        let mut out = stream.alloc_zeros::<u64>(5).unwrap();
        let three = Three([1, 2, u64::MAX - 7]);
        let mut launch = stream.launch_builder(&widths);
        launch.arg(&mut out).arg(&0xfeu8).arg(&0xfedcu16).arg(&0xfedc_ba98u32).arg(&u64::MAX);
        launch.arg(&three);
        unsafe { launch.launch(config(1, 1, 0)) }.unwrap();
        let expected = [0xfe, 0xfedc, 0xfedc_ba98, u64::MAX, u64::MAX - 7];
        assert_eq!(stream.clone_dtoh(&out).unwrap(), expected);
    });
}

#[test]
fn parameters_from_a_buffer() {
    with_driver("launches::parameters_from_a_buffer", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let text = std::ffi::CString::new(module(&[WIDTHS])).unwrap();
        let loaded = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        let widths = unsafe { result::module::get_function(loaded, c"widths".into()) }.unwrap();
        let out = unsafe { result::malloc_sync(40) }.unwrap();
        let mut buffer = [0u8; 48];
        buffer[..8].copy_from_slice(&out.to_le_bytes());
        buffer[8] = 1;
        buffer[10..12].copy_from_slice(&2u16.to_le_bytes());
        buffer[12..16].copy_from_slice(&3u32.to_le_bytes());
        buffer[16..24].copy_from_slice(&4u64.to_le_bytes());
        buffer[40..48].copy_from_slice(&5u64.to_le_bytes());
        let launch = |size: usize| {
            let mut size = size;
            let mut extra: [*mut c_void; 5] = [
                std::ptr::without_provenance_mut(1),
                buffer.as_ptr().cast_mut().cast(),
                std::ptr::without_provenance_mut(2),
                (&raw mut size).cast(),
                std::ptr::null_mut(),
            ];
            let (null, none) = (std::ptr::null_mut(), std::ptr::null_mut());
            let extra = extra.as_mut_ptr();
            unsafe { sys::cuLaunchKernel(widths, 1, 1, 1, 1, 1, 1, 0, null, none, extra) }.result()
        };
        launch(48).unwrap();
        let mut found = [0u64; 5];
        unsafe { result::memcpy_dtoh_sync(&mut found, out) }.unwrap();
        assert_eq!(found, [1, 2, 3, 4, 5]);
        assert_eq!(launch(40).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    });
}

#[test]
fn dynamic_shared_memory_needs_consent() {
    with_driver("launches::dynamic_shared_memory_needs_consent", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let reverse = kernel(&context, &module(&[REVERSE]), "reverse");
        let host: Vec<u32> = (0..256).collect();
        let mut data = stream.clone_htod(&host).unwrap();
        let mut run = |shared: u32| {
            let mut launch = stream.launch_builder(&reverse);
            launch.arg(&mut data);
            unsafe { launch.launch(config(1, 256, shared)) }.map(drop)
        };
        run(1024).unwrap();
        let too_much = run(49 << 10).unwrap_err().0;
        assert_eq!(too_much, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        reverse.set_attribute(limit, 49 << 10).unwrap();
        run(49 << 10).unwrap();
        // Twice reversed is as before.
        assert_eq!(stream.clone_dtoh(&data).unwrap(), host);
    });
}

#[test]
fn limits_are_enforced() {
    with_driver("launches::limits_are_enforced", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let empty = |directives: &str| {
            kernel(
                &context,
                &hopper(&[&format!(".visible .entry k() {directives}\n{{ ret; }}\n")]),
                "k",
            )
        };
        let run = |function: &CudaFunction, grid: (u32, u32, u32), block: (u32, u32, u32)| {
            let shape = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: 0 };
            let launched = unsafe { stream.launch_builder(function).launch(shape) };
            launched.map(drop).map_err(|error| error.0)
        };
        let plain = empty("");
        let invalid = Err(sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(run(&plain, (1, 1, 1), (1024, 1, 1)), Ok(()));
        assert_eq!(run(&plain, (1, 1, 1), (1025, 1, 1)), invalid);
        assert_eq!(run(&plain, (1, 1, 1), (32, 32, 2)), invalid);
        assert_eq!(run(&plain, (1, 1, 1), (1, 1, 65)), invalid);
        assert_eq!(run(&plain, (0, 1, 1), (1, 1, 1)), invalid);
        assert_eq!(run(&plain, (1, 65536, 1), (1, 1, 1)), invalid);
        assert_eq!(run(&empty(".maxntid 64, 1, 1"), (1, 1, 1), (65, 1, 1)), invalid);
        assert_eq!(run(&empty(".reqntid 64, 1, 1"), (1, 1, 1), (32, 1, 1)), invalid);
        assert_eq!(run(&empty(".reqntid 64, 1, 1"), (1, 1, 1), (64, 1, 1)), Ok(()));
        // More registers than there are for 1024 threads: 100 values are alive at once.
        let loads = (0..100).map(|n| format!("ld.global.u32 %r{n}, [%rd1+{}];\n", 4 * n));
        let stores = (0..100).map(|n| format!("st.global.u32 [%rd1+{}], %r{n};\n", 4 * n));
        let heavy = format!(
            ".visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<100>;\n.reg .b64 %rd1;\n\
             ld.param.u64 %rd1, [p];\n{}{}ret;\n}}\n",
            loads.collect::<String>(),
            stores.collect::<String>()
        );
        let heavy = kernel(&context, &hopper(&[&heavy]), "k");
        assert_eq!(
            run(&heavy, (1, 1, 1), (1024, 1, 1)),
            Err(sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)
        );
        assert!(heavy.max_threads_per_block().unwrap() < 1024);
    });
}

#[test]
fn cooperative_grids_must_be_resident() {
    with_driver("launches::cooperative_grids_must_be_resident", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let empty = kernel(&context, &module(&[".visible .entry k()\n{ ret; }\n"]), "k");
        let run = |grid| {
            let mut launch = stream.launch_builder(&empty);
            unsafe { launch.launch_cooperative(config(grid, 1024, 0)) }.map(drop)
        };
        run(264).unwrap();
        assert_eq!(run(265).unwrap_err().0, sys::CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    });
}

#[test]
fn clusters_by_launch_attribute() {
    with_driver("launches::clusters_by_launch_attribute", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let text = std::ffi::CString::new(hopper(&[RANKS])).unwrap();
        let loaded = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        let ranks = unsafe { result::module::get_function(loaded, c"ranks".into()) }.unwrap();
        let mut out = unsafe { result::malloc_sync(48) }.unwrap();
        let run = |out: &mut u64, cluster: u32| {
            let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
            attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attribute.value.clusterDim.x = cluster;
            attribute.value.clusterDim.y = 1;
            attribute.value.clusterDim.z = 1;
            let config = sys::CUlaunchConfig {
                gridDimX: 12,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: 1,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: 0,
                hStream: stream.cu_stream(),
                attrs: &mut attribute,
                numAttrs: 1,
            };
            let mut arguments = [(out as *mut u64).cast::<c_void>()];
            let (arguments, extra) = (arguments.as_mut_ptr(), std::ptr::null_mut());
            unsafe { sys::cuLaunchKernelEx(&config, ranks, arguments, extra) }.result()
        };
        run(&mut out, 4).unwrap();
        let mut found = [9u32; 12];
        unsafe { result::memcpy_dtoh_sync(&mut found, out) }.unwrap();
        assert_eq!(found, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(run(&mut out, 5).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(
            run(&mut out, 12).unwrap_err().0,
            sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE
        );
    });
}
