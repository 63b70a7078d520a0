//! Memory, copies and fills.

use cudarc::driver::{CudaContext, result, sys};

use super::with_driver;

#[test]
fn copies_there_and_back() {
    with_driver("copies::copies_there_and_back", || {
        let context = CudaContext::new(0).unwrap();
        for stream in [context.default_stream(), context.new_stream().unwrap()] {
            let host: Vec<u32> = (0..100_003).collect();
            let first = stream.clone_htod(&host).unwrap();
            let mut second = stream.alloc_zeros::<u32>(host.len()).unwrap();
            assert!(stream.clone_dtoh(&second).unwrap().iter().all(|&n| n == 0));
            stream.memcpy_dtod(&first, &mut second).unwrap();
            assert_eq!(stream.clone_dtoh(&second).unwrap(), host);
            let part = stream.clone_dtoh(&second.slice(17..1000)).unwrap();
            assert_eq!(part, host[17..1000]);
            stream.memset_zeros(&mut second).unwrap();
            assert!(stream.clone_dtoh(&second).unwrap().iter().all(|&n| n == 0));
        }
    });
}

#[test]
fn fills_of_every_width() {
    with_driver("copies::fills_of_every_width", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let at = unsafe { result::malloc_sync(64) }.unwrap();
        let read = || {
            let mut bytes = [0u8; 64];
            unsafe { result::memcpy_dtoh_sync(&mut bytes, at) }.unwrap();
            bytes
        };
        let null = std::ptr::null_mut();
        unsafe {
            sys::cuMemsetD8_v2(at, 7, 64).result().unwrap();
            sys::cuMemsetD16Async(at + 2, 0x1234, 3, null).result().unwrap();
            sys::cuMemsetD32_v2(at + 8, 0xdead_beef, 2).result().unwrap();
            // Two rows of two elements, 16 bytes apart.
            sys::cuMemsetD2D16_v2(at + 32, 16, 0xabcd, 2, 2).result().unwrap();
        }
        let mut expected = [7u8; 64];
        expected[2..8].copy_from_slice(&[0x34, 0x12, 0x34, 0x12, 0x34, 0x12]);
        expected[8..16].copy_from_slice(&[0xef, 0xbe, 0xad, 0xde, 0xef, 0xbe, 0xad, 0xde]);
        expected[32..36].copy_from_slice(&[0xcd, 0xab, 0xcd, 0xab]);
        expected[48..52].copy_from_slice(&[0xcd, 0xab, 0xcd, 0xab]);
        assert_eq!(read(), expected);
        // Misaligned, and beyond the end.
        assert!(unsafe { sys::cuMemsetD32_v2(at + 2, 0, 1) }.result().is_err());
        assert!(unsafe { sys::cuMemsetD8_v2(at, 0, 65) }.result().is_err());
        assert_eq!(read(), expected);
        unsafe { result::free_sync(at) }.unwrap();
    });
}

#[test]
fn rectangles_keep_to_their_rows() {
    with_driver("copies::rectangles_keep_to_their_rows", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let (mut at, mut pitch) = (0, 0);
        unsafe { sys::cuMemAllocPitch_v2(&mut at, &mut pitch, 10, 4, 4) }.result().unwrap();
        assert!(pitch >= 10 && pitch.is_multiple_of(512));
        let host: Vec<u8> = (0..40).collect();
        let host_side = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        let empty = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: host_side,
            srcHost: std::ptr::null(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: host_side,
            dstHost: std::ptr::null_mut(),
            dstDevice: 0,
            dstArray: std::ptr::null_mut(),
            dstPitch: 0,
            WidthInBytes: 0,
            Height: 0,
        };
        let mut copy = empty;
        copy.srcHost = host.as_ptr().cast();
        copy.srcPitch = 10;
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstDevice = at;
        copy.dstPitch = pitch;
        (copy.WidthInBytes, copy.Height) = (10, 4);
        unsafe { sys::cuMemcpy2D_v2(&copy) }.result().unwrap();
        // Back: columns 2 to 5 of rows 1 and 2, through unified addressing.
        let mut back = [0u8; 8];
        let mut copy = empty;
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED;
        copy.srcDevice = at;
        (copy.srcXInBytes, copy.srcY, copy.srcPitch) = (2, 1, pitch);
        copy.dstHost = back.as_mut_ptr().cast();
        copy.dstPitch = 4;
        (copy.WidthInBytes, copy.Height) = (4, 2);
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, std::ptr::null_mut()) }.result().unwrap();
        assert_eq!(back, [12, 13, 14, 15, 22, 23, 24, 25]);
        copy.Height = 4;
        assert!(unsafe { sys::cuMemcpy2D_v2(&copy) }.result().is_err(), "row 4 does not exist");
        unsafe { result::free_sync(at) }.unwrap();
    });
}

#[test]
fn host_memory_is_one_for_both() {
    with_driver("copies::host_memory_is_one_for_both", || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let mut pinned = unsafe { context.alloc_pinned::<u32>(1000) }.unwrap();
        pinned.as_mut_slice().unwrap().iter_mut().zip(0..).for_each(|(to, n)| *to = n);
        let device = stream.clone_htod(&pinned).unwrap();
        assert!(stream.clone_dtoh(&device).unwrap().iter().copied().eq(0..1000));
        let mut managed = unsafe { context.alloc_unified::<u32>(1000, true) }.unwrap();
        stream.memcpy_dtod(&device, &mut managed).unwrap();
        assert!(managed.as_slice().unwrap().iter().copied().eq(0..1000));
        let mut attribute = 0u32;
        let which = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED;
        let pointer = managed.as_slice().unwrap().as_ptr() as u64;
        let asked =
            unsafe { sys::cuPointerGetAttribute((&raw mut attribute).cast(), which, pointer) };
        asked.result().unwrap();
        assert_eq!(attribute, 1);
    });
}

#[test]
fn pools_count_what_they_hand_out() {
    with_driver("copies::pools_count_what_they_hand_out", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let pool = unsafe { result::mem_pool::create(&properties) }.unwrap();
        let used = || {
            let mut bytes = 0u64;
            let which = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
            let to = (&raw mut bytes).cast();
            unsafe { result::mem_pool::get_attribute(pool, which, to) }.unwrap();
            bytes
        };
        let null = std::ptr::null_mut();
        let pointer = unsafe { result::mem_pool::alloc_async(pool, 1000, null) }.unwrap();
        assert_eq!(used(), 1000);
        unsafe { result::free_async(pointer, null) }.unwrap();
        assert_eq!(used(), 0);
        assert!(unsafe { result::free_async(pointer, null) }.is_err(), "freed twice");
        unsafe { result::mem_pool::destroy(pool) }.unwrap();
        assert!(unsafe { result::mem_pool::destroy(pool) }.is_err());
    });
}

#[test]
fn memory_ends_where_it_was_said() {
    with_driver("copies::memory_ends_where_it_was_said", || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let first = unsafe { result::malloc_sync(100) }.unwrap();
        let mut bytes = vec![0u8; 101];
        let code = |outcome: Result<(), result::DriverError>| outcome.unwrap_err().0;
        let invalid = sys::CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(code(unsafe { result::memcpy_dtoh_sync(&mut bytes, first) }), invalid);
        assert_eq!(code(unsafe { result::memcpy_htod_sync(first, &bytes) }), invalid);
        assert_eq!(code(unsafe { result::free_sync(first + 4) }), invalid);
        unsafe { result::free_sync(first) }.unwrap();
        assert_eq!(code(unsafe { result::free_sync(first) }), invalid);
        assert_eq!(code(unsafe { result::memcpy_htod_sync(first, &bytes[..4]) }), invalid);
        assert_eq!(unsafe { result::malloc_sync(0) }.unwrap_err().0, invalid);
        let full = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        assert_eq!(unsafe { result::malloc_sync(1 << 50) }.unwrap_err().0, full);
    });
}
