//! Matrix products by a BLAS that the caller has, such as MKL where PyTorch has it as well.
//!
//! Loaded at run time, so that neither the build nor a machine without it needs to know of it.

use std::error::Error as _;
use std::ffi::{c_int, c_long};
use std::path::Path;
use std::sync::OnceLock;

use faer::{MatMut, MatRef};
use libloading::Library;

use super::gemm::Write;
use crate::{Error, Result};

/// `cblas_sgemm` with 32-bit integers: layout, two transpositions, three extents, `alpha`, two
/// operands with their leading dimensions, `beta`, result with its leading dimension.
#[rustfmt::skip]
type Sgemm = unsafe extern "C" fn(
    c_int, c_int, c_int, c_int, c_int, c_int, f32, *const f32, c_int, *const f32, c_int, f32,
    *mut f32, c_int,
);

/// Values of the CBLAS interface.
const ROW_MAJOR: c_int = 101;
const AS_STORED: c_int = 111;
const TRANSPOSED: c_int = 112;

/// The library in use, which stays loaded until the process ends.
static IN_USE: OnceLock<(Library, Sgemm)> = OnceLock::new();

/// Lets the BLAS in this shared library compute the large matrix products of every
/// [`Cpu`](super::Cpu) of the process, instead of the crate's own choice of libraries. Worth it
/// for Intel's MKL on Intel's processors with AVX-512 (`docs/performance.md`).
///
/// `library` is a path, or a name that the system's loader finds: `libmkl_rt.so.3`,
/// `libopenblas.so.0`, `libblis.so.4`. Needed of it is `cblas_sgemm` with 32-bit integers. Call
/// this before the process uses the library otherwise: MKL's, OpenBLAS' and BLIS' own threads are
/// switched off for the whole process, since products are cut between the threads of rayon's pool
/// here.
///
/// The number of threads changes no bit of a result if, of up to 512 terms of an element's sum, the
/// library adds in an order that does not depend on the product's other extents; MKL 2026.2 does so
/// on every shape that was tried.
///
/// ```no_run
/// // SAFETY: the library is Intel's, whose `cblas_sgemm` has 32-bit integers by default.
/// unsafe { gradroute::cpu::use_blas("libmkl_rt.so.3") }?;
/// # Ok::<(), gradroute::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Refused`] if the library cannot be loaded, lacks `cblas_sgemm`, or another one is in
/// use already.
///
/// # Safety
///
/// Loading a library runs code of it, and its `cblas_sgemm` must have the interface named above.
#[allow(unsafe_code)]
pub unsafe fn use_blas(library: impl AsRef<Path>) -> Result<()> {
    let path = library.as_ref();
    let refused =
        |reason: String| Error::Refused { what: format!("the BLAS {}", path.display()), reason };
    // SAFETY: the caller vouches for the library and for its `cblas_sgemm`.
    let (loaded, sgemm) = unsafe {
        let loaded = Library::new(path).map_err(|error| refused(told(&error)))?;
        let found = loaded.get::<Sgemm>(b"cblas_sgemm").map(|sgemm| *sgemm);
        (found.map(|sgemm| (loaded, sgemm))).map_err(|error| refused(told(&error)))?
    };
    // SAFETY: these are the libraries' own functions, by their documented signatures.
    unsafe { keep_to_one_thread(&loaded) };
    let taken =
        |_| refused("a BLAS is in use already, and stays for the life of the process".into());
    IN_USE.set((loaded, sgemm)).map_err(taken)
}

/// The loader's own words, which its error keeps as a cause.
fn told(error: &libloading::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Switches a library's own threads off, if it is one that has any.
#[allow(unsafe_code)]
unsafe fn keep_to_one_thread(library: &Library) {
    type ByInt = unsafe extern "C" fn(c_int) -> c_int;
    type ByLong = unsafe extern "C" fn(c_long);
    const SEQUENTIAL: c_int = 1;
    // SAFETY: the caller's.
    unsafe {
        if let Ok(layer) = library.get::<ByInt>(b"MKL_Set_Threading_Layer") {
            layer(SEQUENTIAL);
        }
        if let Ok(threads) = library.get::<unsafe extern "C" fn(c_int)>(b"openblas_set_num_threads")
        {
            threads(1);
        }
        if let Ok(threads) = library.get::<ByLong>(b"bli_thread_set_num_threads") {
            threads(1);
        }
    }
}

/// Whether one is in use.
pub(super) fn in_use() -> bool {
    IN_USE.get().is_some()
}

/// `c (+)= alpha · a · b`; whether it was done. Not if none is in use, or a view is none that BLAS
/// knows.
#[allow(unsafe_code)]
pub(super) fn multiply(
    c: MatMut<f32>,
    write: Write,
    alpha: f32,
    a: MatRef<f32>,
    b: MatRef<f32>,
) -> bool {
    if c.col_stride() != 1 && c.row_stride() == 1 {
        return multiply(c.transpose_mut(), write, alpha, b.transpose(), a.transpose());
    }
    let (m, n, k) = (c.nrows(), c.ncols(), a.ncols());
    assert!(a.nrows() == m && b.nrows() == k && b.ncols() == n, "extents of a product agree");
    let [Ok(rows), Ok(columns), Ok(inner)] = [m, n, k].map(c_int::try_from) else { return false };
    let (
        Some((_, sgemm)),
        Some((a_order, a_lead)),
        Some((b_order, b_lead)),
        Some((AS_STORED, lead)),
    ) = (IN_USE.get(), stored(a), stored(b), stored(c.as_ref()))
    else {
        return false;
    };
    if rows.min(columns).min(inner) == 0 {
        return false;
    }
    let beta = if write == Write::Add { 1.0 } else { 0.0 };
    // SAFETY: `use_blas` vouches for the function; leading dimensions and extents reach the
    // elements within the views and no others, and `c` is borrowed by nobody else.
    unsafe {
        #[rustfmt::skip]
        sgemm(
            ROW_MAJOR, a_order, b_order, rows, columns, inner, alpha, a.as_ptr(), a_lead,
            b.as_ptr(), b_lead, beta, c.as_ptr_mut(), lead,
        );
    }
    true
}

/// How a view lies in memory, for a call by rows, and its leading dimension; nothing if neither
/// its rows nor its columns are contiguous, or they overlap.
fn stored(view: MatRef<f32>) -> Option<(c_int, c_int)> {
    let lead = |stride: isize, length: usize, of_them: usize| {
        let stride = if of_them > 1 { usize::try_from(stride).ok()? } else { length.max(1) };
        if stride < length.max(1) { None } else { c_int::try_from(stride).ok() }
    };
    let (rows, columns) = (view.nrows(), view.ncols());
    if view.col_stride() == 1 || columns <= 1 {
        Some((AS_STORED, lead(view.row_stride(), columns, rows)?))
    } else if view.row_stride() == 1 || rows <= 1 {
        Some((TRANSPOSED, lead(view.col_stride(), rows, columns)?))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gemm::view;

    #[test]
    fn views_are_described_as_blas_does() {
        let data = vec![0.0; 100];
        let rows = view(&data, 4, 6, 10);
        assert_eq!(stored(rows), Some((AS_STORED, 10)));
        assert_eq!(stored(rows.transpose()), Some((TRANSPOSED, 10)));
        let column = rows.col(2).as_mat();
        assert_eq!(stored(column), Some((AS_STORED, 10)));
        assert_eq!(stored(column.transpose()), Some((TRANSPOSED, 10)));
        assert_eq!(stored(rows.subrows(1, 1)), Some((AS_STORED, 6)));
        let every_other = MatRef::from_column_major_slice_with_stride(&data, 6, 4, 12);
        assert_eq!(stored(every_other), Some((TRANSPOSED, 12)));
        assert_eq!(stored(rows.reverse_rows()), None, "from below");
    }

    #[test]
    #[allow(unsafe_code)]
    fn what_is_no_blas_is_refused() {
        // SAFETY: nothing of that name; a library that every process here has loaded.
        let missing = unsafe { use_blas("libgradroute-no-such-library.so") };
        assert!(matches!(missing, Err(Error::Refused { what, .. }) if what.contains("no-such")));
        // SAFETY: as above.
        let other = unsafe { use_blas("libc.so.6") }.unwrap_err().to_string();
        assert!(other.contains("libc.so.6") && other.contains("cblas_sgemm"), "{other}");
        assert!(!in_use());
    }
}
