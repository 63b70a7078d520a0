//! The boundary to C: panics stop here, and every pointer that C hands over is read or written here.
//!
//! Pointer parameters have types of their own ([`Out`], [`In`], [`Text`]) that Rust code cannot make: they
//! come into being only as arguments of a call from C, whose documentation promises what they point to. So
//! using one is safe, and the reason stands here once.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::{Error, Outcome, SUCCESS, Status};

/// Runs the body of an exported function; no panic leaves it.
pub fn call(name: &str, body: impl FnOnce() -> Outcome) -> Status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(error)) => error as Status,
        Err(_) => {
            eprintln!("softcuda: {name} panicked; please report this");
            Error::Unknown as Status
        }
    }
}

/// Where a result goes: null, or memory of a `T`.
#[derive(Debug)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    pub fn null() -> Self {
        Self(std::ptr::null_mut())
    }

    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Fails early, before there is a result that nobody would take.
    pub fn check(self) -> Outcome {
        if self.0.is_null() || !self.0.is_aligned() { Err(Error::InvalidValue) } else { Ok(()) }
    }

    pub fn set(self, value: T) -> Outcome {
        self.set_at(0, value)
    }

    /// For results that the caller may leave out.
    pub fn set_if_wanted(self, value: T) -> Outcome {
        if self.0.is_null() { Ok(()) } else { self.set(value) }
    }

    /// One element of an array whose length the caller gave.
    pub fn set_at(self, index: usize, value: T) -> Outcome {
        self.check()?;
        // SAFETY: the caller of the C function promises room for its result (type's documentation);
        // null and misaligned pointers were refused.
        unsafe { self.0.add(index).write(value) };
        Ok(())
    }

    pub fn address(self) -> usize {
        self.0 as usize
    }
}

impl<T: Copy> Out<T> {
    /// What the caller left there, for parameters that go both ways.
    pub fn get(self) -> Outcome<T> {
        In(self.0.cast_const()).get()
    }
}

/// What the caller hands in: null, or one or more `T`.
#[derive(Debug)]
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<T> {}

impl<T: Copy> In<T> {
    pub fn null() -> Self {
        Self(std::ptr::null())
    }

    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    pub fn get(self) -> Outcome<T> {
        self.get_at(0)
    }

    /// One element of an array whose length the caller gave.
    pub fn get_at(self, index: usize) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller of the C function promises that so many elements are there (type's
        // documentation); null was refused, and alignment is not assumed.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// A copy of an array.
    pub fn array(self, length: usize) -> Outcome<Vec<T>> {
        (0..length).map(|index| self.get_at(index)).collect()
    }

    pub fn address(self) -> usize {
        self.0 as usize
    }
}

/// A string of the caller's: null, or ended by a zero byte.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    pub fn get(self) -> Outcome<String> {
        if self.0.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller of the C function promises a zero-terminated string; null was refused.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Error::InvalidValue)
    }
}

/// Shows memory of the host's that a copy reads.
///
/// # Errors
///
/// For a null address or an impossible length.
pub fn with_host<R>(from: usize, bytes: usize, look: impl FnOnce(&[u8]) -> R) -> Outcome<R> {
    if bytes == 0 {
        return Ok(look(&[]));
    }
    if from == 0 || isize::try_from(bytes).is_err() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller of a copy function promises that so many bytes are there, and that nobody writes
    // them until the copy is done.
    Ok(look(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }))
}

/// Hands out memory of the host's that a copy writes.
///
/// # Errors
///
/// For a null address or an impossible length.
pub fn with_host_mut<R>(to: usize, bytes: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Outcome<R> {
    if bytes == 0 {
        return Ok(fill(&mut []));
    }
    if to == 0 || isize::try_from(bytes).is_err() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller of a copy function promises that so many bytes are there, and that nobody else
    // uses them until the copy is done.
    Ok(fill(unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) }))
}

pub fn read_host(from: usize, into: &mut [u8]) -> Outcome {
    with_host(from, into.len(), |bytes| into.copy_from_slice(bytes))
}

pub fn write_host(to: usize, bytes: &[u8]) -> Outcome {
    with_host_mut(to, bytes.len(), |into| into.copy_from_slice(bytes))
}

/// The bytes of a module image, which comes without a length: a container tells its own, text ends with a
/// zero byte.
pub fn image(at: usize) -> Outcome<Vec<u8>> {
    if at == 0 {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller of a load function promises a zero-terminated text or a whole container. The first
    // bytes are read one by one, so that a short text is not left.
    let byte = |n: usize| unsafe { ((at + n) as *const u8).read() };
    let mut head = [0; 64];
    let binary = [byte(0), if byte(0) == 0 { 0 } else { byte(1) }];
    if matches!(binary, [0x50, 0xed] | [0x7f, b'E']) {
        (0..64).for_each(|n| head[n] = byte(n));
        if let Some(bytes) = crate::container::extent(&head) {
            if bytes > crate::container::MAX_TEXT as u64 {
                return Err(Error::InvalidImage);
            }
            let mut image = vec![0; bytes as usize];
            read_host(at, &mut image)?;
            return Ok(image);
        }
    }
    if binary == [0xb1, 0x43] {
        // The wrapper of a compiled program: magic, version, pointer.
        let mut wrapper = [0; 16];
        read_host(at, &mut wrapper)?;
        let magic = u32::from_le_bytes([wrapper[0], wrapper[1], wrapper[2], wrapper[3]]);
        let inner = u64::from_le_bytes(wrapper[8..].try_into().expect("eight bytes")) as usize;
        let nested = inner != 0 && {
            // SAFETY: as above; the wrapper's documentation says where its pointer leads.
            let first = unsafe { (inner as *const u8).read() };
            first != 0xb1
        };
        if magic == crate::container::WRAPPER_MAGIC && nested {
            return image(inner);
        }
        return Err(Error::InvalidImage);
    }
    let length = (0..=crate::container::MAX_TEXT).find(|&n| byte(n) == 0);
    let length = length.ok_or(Error::InvalidImage)?;
    Ok((0..length).map(byte).collect())
}

/// A function of the host's that a stream calls with its user data.
pub type HostFunction = extern "C" fn(usize);
/// A stream callback: stream, status, user data.
pub type StreamCallback = extern "C" fn(usize, Status, usize);
/// Dynamic shared memory for a block of so many threads.
pub type SharedOfBlock = extern "C" fn(i32) -> usize;
