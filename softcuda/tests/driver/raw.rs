//! The library itself: what it exports, and that wrong calls end in a code.

use std::ffi::{CStr, c_char, c_void};
use std::process::Command;

use cudarc::driver::{CudaContext, result, sys};

use super::with_driver;

const FOUND: sys::CUdriverProcAddressQueryResult =
    sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS;

#[test]
fn everything_exported_can_be_looked_up() {
    with_driver("raw::everything_exported_can_be_looked_up", || {
        result::init().unwrap();
        for (name, _) in softcuda::driver::exported() {
            let symbol = std::ffi::CString::new(name).unwrap();
            let (mut found, mut status) = (std::ptr::null_mut(), FOUND);
            let code = unsafe {
                sys::cuGetProcAddress_v2(symbol.as_ptr(), &mut found, 13020, 0, &mut status)
            };
            assert_eq!(code, sys::CUresult::CUDA_SUCCESS);
            assert!(!found.is_null(), "{name}");
        }
        // A plain name means the form of the version.
        let find = |name: &CStr, version: i32| {
            let mut found = std::ptr::null_mut();
            let null = std::ptr::null_mut();
            unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut found, version, 0, null) }
                .result()
                .map(|()| found as usize)
        };
        let version = |name| find(name, 13000).unwrap();
        assert_eq!(version(c"cuMemAlloc"), version(c"cuMemAlloc_v2"));
        assert_eq!(version(c"cuMemAdvise"), version(c"cuMemAdvise_v2"));
        assert_ne!(find(c"cuMemAdvise", 12010), find(c"cuMemAdvise_v2", 12010));
        assert!(find(c"cuNothing", 13000).is_err());
    });
}

/// The names that the shared library exports.
#[test]
fn the_library_exports_the_list() {
    let deps = std::env::current_exe().unwrap();
    let library = deps.parent().unwrap().join("libsoftcuda.so");
    let image = std::fs::read(&library).unwrap();
    let holds = |name: &str| {
        let entry = [b"\0", name.as_bytes(), b"\0"].concat();
        image.windows(entry.len()).any(|window| window == entry)
    };
    for (name, _) in softcuda::driver::exported() {
        assert!(holds(name), "{name} is not exported");
    }
}

#[test]
fn unsupported_calls_say_so() {
    if !super::is_child() {
        let output = super::child("raw::unsupported_calls_say_so", &[]);
        super::assert_passed(&output);
        let told = super::text(&output);
        assert!(told.contains("softcuda: cuTexObjectDestroy is not supported"), "{told}");
        return;
    }
    let _context = CudaContext::new(0).unwrap();
    let code = unsafe { sys::cuTexObjectDestroy(0) };
    assert_eq!(code, sys::CUresult::CUDA_ERROR_NOT_SUPPORTED);
    let mut table = std::ptr::null();
    let id = sys::CUuuid { bytes: [1; 16] };
    assert!(unsafe { sys::cuGetExportTable(&mut table, &id) }.result().is_err());
}

/// Wrong handles and null pointers everywhere they are easily got wrong.
#[test]
fn wrong_arguments_end_in_a_code() {
    with_driver("raw::wrong_arguments_end_in_a_code", || {
        let _context = CudaContext::new(0).unwrap();
        let wrong = 0xdead_0000_usize as *mut c_void;
        let null = std::ptr::null_mut::<c_void>;
        use sys::CUresult::{CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE};
        unsafe {
            let is = |code: sys::CUresult, expected| assert_eq!(code, expected);
            is(sys::cuStreamSynchronize(wrong.cast()), CUDA_ERROR_INVALID_HANDLE);
            is(sys::cuEventQuery(wrong.cast()), CUDA_ERROR_INVALID_HANDLE);
            is(sys::cuEventQuery(null().cast()), CUDA_ERROR_INVALID_HANDLE);
            is(sys::cuModuleUnload(wrong.cast()), CUDA_ERROR_INVALID_HANDLE);
            is(sys::cuModuleLoadData(null().cast(), wrong), CUDA_ERROR_INVALID_VALUE);
            let mut module = std::ptr::null_mut();
            is(sys::cuModuleLoadData(&mut module, null()), CUDA_ERROR_INVALID_VALUE);
            is(
                sys::cuModuleGetFunction(null().cast(), wrong.cast(), null().cast::<c_char>()),
                CUDA_ERROR_INVALID_VALUE,
            );
            is(sys::cuMemAlloc_v2(null().cast(), 16), CUDA_ERROR_INVALID_VALUE);
            is(sys::cuMemcpyHtoD_v2(16, null(), 4), CUDA_ERROR_INVALID_VALUE);
            is(sys::cuMemcpyDtoH_v2(null(), 16, 4), CUDA_ERROR_INVALID_VALUE);
            is(sys::cuGraphDestroy(wrong.cast()), CUDA_ERROR_INVALID_VALUE);
            is(sys::cuStreamCreate(null().cast(), 0), CUDA_ERROR_INVALID_VALUE);
            let mut stream = std::ptr::null_mut();
            is(sys::cuStreamCreate(&mut stream, 99), CUDA_ERROR_INVALID_VALUE);
            let launched = sys::cuLaunchKernel(
                wrong.cast(),
                1,
                1,
                1,
                1,
                1,
                1,
                0,
                null().cast(),
                null().cast(),
                null().cast(),
            );
            is(launched, CUDA_ERROR_INVALID_HANDLE);
            is(sys::cuLaunchHostFunc(null().cast(), None, null()), CUDA_ERROR_INVALID_VALUE);
            is(sys::cuLinkDestroy(wrong.cast()), CUDA_ERROR_INVALID_HANDLE);
        }
    });
}

#[test]
fn tensor_maps_are_checked() {
    with_driver("raw::tensor_maps_are_checked", || {
        let _context = CudaContext::new(0).unwrap();
        let address = unsafe { result::malloc_sync(1 << 16) }.unwrap();
        let encode = |width: u32, swizzle| {
            let mut map: sys::CUtensorMap = unsafe { std::mem::zeroed() };
            let code = unsafe {
                sys::cuTensorMapEncodeTiled(
                    &mut map,
                    sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    2,
                    address as *mut c_void,
                    [128u64, 64].as_ptr(),
                    [256u64].as_ptr(),
                    [width, 16].as_ptr(),
                    [1u32, 1].as_ptr(),
                    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    swizzle,
                    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            };
            (code, map)
        };
        let swizzle = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let (code, mut map) = encode(64, swizzle);
        assert_eq!(code, sys::CUresult::CUDA_SUCCESS);
        let moved = unsafe { sys::cuTensorMapReplaceAddress(&mut map, (address + 32) as *mut _) };
        assert_eq!(moved, sys::CUresult::CUDA_SUCCESS);
        let odd = unsafe { sys::cuTensorMapReplaceAddress(&mut map, (address + 8) as *mut _) };
        assert_eq!(odd, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let (code, _) = encode(128, swizzle);
        assert_eq!(code, sys::CUresult::CUDA_ERROR_INVALID_VALUE, "wider than the swizzle");
    });
}

#[test]
fn the_runner_passes_on_the_status() {
    if super::is_child() {
        return;
    }
    let runner = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_softcuda")).args(arguments).output().unwrap()
    };
    let script = "case $LD_LIBRARY_PATH in *softcuda-driver*) exit 7;; esac";
    assert_eq!(runner(&["sh", "-c", script]).status.code(), Some(7));
    assert_eq!(runner(&["--", "sh", "-c", "test \"$SOFTCUDA\" = 1"]).status.code(), Some(0));
    assert_eq!(runner(&[]).status.code(), Some(2));
    assert_eq!(runner(&["no-such-program-anywhere"]).status.code(), Some(1));
    assert_eq!(runner(&["--help"]).status.code(), Some(0));
}
