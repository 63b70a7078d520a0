//! Modules, libraries, the linker, and attributes of functions.

use std::ffi::{CString, c_void};

use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;

use super::kernels::{ADD, BUMP, GLOBALS, hopper, module};
use super::with_driver;

#[test]
fn modules_know_their_kernels() {
    with_driver("modules::modules_know_their_kernels", || {
        let context = CudaContext::new(0).unwrap();
        let loaded = context.load_module(Ptx::from_src(module(&[ADD, BUMP]))).unwrap();
        let add = loaded.load_function("add").unwrap();
        assert!(add.num_regs().unwrap() >= 16);
        assert_eq!(add.shared_size_bytes(), Ok(0));
        assert_eq!(add.ptx_version(), Ok(80));
        assert!(loaded.load_function("bump").is_ok());
        assert_eq!(
            loaded.load_function("missing").unwrap_err().0,
            sys::CUresult::CUDA_ERROR_NOT_FOUND
        );
    });
}

#[test]
fn variables_have_their_initial_values() {
    with_driver("modules::variables_have_their_initial_values", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let text = CString::new(module(&[GLOBALS])).unwrap();
        let loaded = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        let global = |name: &str| {
            let name = CString::new(name).unwrap();
            unsafe { result::module::get_global(loaded, name) }.unwrap()
        };
        let ((table, size), (copy, _)) = (global("table"), global("copy"));
        assert_eq!(size, 16);
        let mut addresses = [0u64; 2];
        unsafe { result::memcpy_dtoh_sync(&mut addresses, global("where").0) }.unwrap();
        assert_eq!(addresses, [copy, table + 8]);
        let mut values = [1f32; 4];
        unsafe { result::memcpy_dtoh_sync(&mut values, copy) }.unwrap();
        assert_eq!(values, [0.0; 4], "zero where nothing else is said");
        let name = CString::new("spread").unwrap();
        let spread = unsafe { result::module::get_function(loaded, name) }.unwrap();
        let null = stream.cu_stream();
        let none: &mut [*mut c_void] = &mut [];
        unsafe { result::launch_kernel(spread, (1, 1, 1), (4, 1, 1), 0, null, none) }.unwrap();
        unsafe { result::memcpy_dtoh_sync(&mut values, copy) }.unwrap();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0]);
        unsafe { result::module::unload(loaded) }.unwrap();
        assert!(unsafe { result::memcpy_dtoh_sync(&mut values, copy) }.is_err());
    });
}

#[test]
fn containers_of_nvcc_load() {
    with_driver("modules::containers_of_nvcc_load", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
        for name in ["none.fatbin", "speed.fatbin", "balance.fatbin", "size.fatbin", "lines.cubin"]
        {
            let image = std::fs::read(format!("{folder}{name}")).unwrap();
            // From memory, which tells no length, and from the file.
            for ptx in [Ptx::from_binary(image.clone()), Ptx::from_file(format!("{folder}{name}"))]
            {
                let loaded = context.load_module(ptx).unwrap();
                let add = loaded.load_function("add").unwrap();
                let mut a = stream.clone_htod(&[1f32; 100]).unwrap();
                let b = stream.clone_htod(&[3f32; 100]).unwrap();
                let mut launch = stream.launch_builder(&add);
                launch.arg(&mut a).arg(&b).arg(&100i32);
                unsafe { launch.launch(LaunchConfig::for_num_elems(100)) }.unwrap();
                assert_eq!(stream.clone_dtoh(&a).unwrap(), [7.0; 100], "{name}");
            }
        }
        for name in ["machine.fatbin", "machine.cubin"] {
            let error = context.load_module(Ptx::from_file(format!("{folder}{name}"))).unwrap_err();
            assert_eq!(error.0, sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, "{name}");
        }
    });
}

/// Loads with an error log of some bytes.
fn load_with_log(text: &str, room: usize) -> (sys::CUresult, String) {
    let text = CString::new(text).unwrap();
    let mut log = vec![0xffu8; room];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), room as *mut c_void];
    let mut module = std::ptr::null_mut();
    let code = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    let length = values[1] as usize;
    assert_eq!(log[length], 0, "the log ends with a zero byte");
    (code, String::from_utf8(log[..length].to_vec()).unwrap())
}

#[test]
fn wrong_modules_are_refused_with_their_line() {
    with_driver("modules::wrong_modules_are_refused_with_their_line", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let kernel =
            |body: &str| module(&[&format!(".visible .entry k()\n{{\n{body}\nret;\n}}\n")]);
        let (code, log) = load_with_log(&kernel("frobnicate.sync.u32 1;"), 200);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(log.contains("PTX line 6") && log.contains("frobnicate"), "{log}");
        let (_, cut) = load_with_log(&kernel("frobnicate.sync.u32 1;"), 10);
        assert_eq!(cut, log[..9]);
        let (code, log) = load_with_log(&kernel(""), 200);
        assert_eq!((code, log.as_str()), (sys::CUresult::CUDA_SUCCESS, ""));
        let (code, _) = load_with_log(&kernel("").replace("sm_80", "sm_100"), 200);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let (code, _) = load_with_log(&kernel("").replace("sm_80", "sm_80a"), 200);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let (code, _) = load_with_log("no module at all", 200);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_INVALID_IMAGE);
        let (code, log) = load_with_log(&module(&[".extern .global .u32 elsewhere;\n"]), 200);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND);
        assert!(log.contains("elsewhere"), "{log}");
    });
}

#[test]
fn attributes_of_functions() {
    with_driver("modules::attributes_of_functions", || {
        let context = CudaContext::new(0).unwrap();
        let shared = ".visible .entry k(.param .u64 a, .param .u32 b) .maxntid 128, 1, 1\n\
                      {\n.shared .align 4 .b8 s[1024];\nret;\n}\n";
        let loaded = context.load_module(Ptx::from_src(hopper(&[shared]))).unwrap();
        let k = loaded.load_function("k").unwrap();
        assert_eq!(k.max_threads_per_block(), Ok(128));
        let limit = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(k.get_attribute(limit), Ok(47 << 10));
        k.set_attribute(limit, 226 << 10).unwrap();
        assert_eq!(k.get_attribute(limit), Ok(226 << 10));
        assert!(k.set_attribute(limit, 227 << 10).is_err(), "1 KiB is static");
        assert_eq!(k.binary_version(), Ok(90));
        let most = k.occupancy_max_active_blocks_per_multiprocessor(128, 0, None).unwrap();
        assert_eq!(most, 16);
        let (grid, block) = k.occupancy_max_potential_block_size(no_shared, 0, 0, None).unwrap();
        assert_eq!((grid, block), (132 * 16, 128));
    });
}

extern "C" fn no_shared(_: i32) -> usize {
    0
}

#[test]
fn linked_texts_call_each_other() {
    with_driver("modules::linked_texts_call_each_other", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let caller = module(&[".extern .func (.param .b32 r) twice(.param .b32 x);
.visible .entry k(.param .u64 out)
{
    .reg .b32 %r1;
    .reg .b64 %rd1;
    .param .b32 x;
    .param .b32 r;
    ld.param.u64 %rd1, [out];
    st.param.b32 [x], 21;
    call.uni (r), twice, (x);
    ld.param.b32 %r1, [r];
    st.global.u32 [%rd1], %r1;
    ret;
}
"]);
        let callee = module(&[".visible .func (.param .b32 r) twice(.param .b32 x)
{
    .reg .b32 %r<3>;
    ld.param.b32 %r1, [x];
    add.u32 %r2, %r1, %r1;
    st.param.b32 [r], %r2;
    ret;
}
"]);
        let link = |texts: &[&str]| unsafe {
            let mut state = std::ptr::null_mut();
            let null = std::ptr::null_mut;
            sys::cuLinkCreate_v2(0, null(), null().cast(), &mut state).result()?;
            for text in texts {
                let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
                let (at, bytes) = (text.as_ptr().cast_mut().cast(), text.len());
                let name = c"text".as_ptr();
                sys::cuLinkAddData_v2(
                    state,
                    kind,
                    at,
                    bytes,
                    name,
                    0,
                    null().cast(),
                    null().cast(),
                )
                .result()?;
            }
            let (mut image, mut bytes) = (std::ptr::null_mut(), 0);
            sys::cuLinkComplete(state, &mut image, &mut bytes).result()?;
            let loaded = result::module::load_data(image);
            sys::cuLinkDestroy(state).result()?;
            loaded
        };
        let loaded = link(&[&caller, &callee]).unwrap();
        let k = unsafe { result::module::get_function(loaded, c"k".into()) }.unwrap();
        let mut out = unsafe { result::malloc_sync(4) }.unwrap();
        let mut arguments = [(&raw mut out).cast::<c_void>()];
        let null = std::ptr::null_mut();
        unsafe { result::launch_kernel(k, (1, 1, 1), (1, 1, 1), 0, null, &mut arguments) }.unwrap();
        let mut found = [0u32];
        unsafe { result::memcpy_dtoh_sync(&mut found, out) }.unwrap();
        assert_eq!(found, [42]);
        let invalid = sys::CUresult::CUDA_ERROR_INVALID_PTX;
        assert_eq!(link(&[&callee, &callee]).unwrap_err().0, invalid, "defined twice");
        assert_eq!(link(&[&caller]).unwrap_err().0, invalid, "defined nowhere");
    });
}
