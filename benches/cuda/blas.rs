//! Products by cuBLASLt, row-major, as a user of the library would queue them.

use std::ffi::c_void;
use std::mem::size_of_val;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream};

use crate::layer::address;

/// The names under which the library is found, all of them known to `cudarc` too, which panics if none
/// loads.
#[cfg(windows)]
const LIBRARIES: [&str; 2] = ["cublasLt64_13.dll", "cublasLt64_12.dll"];
#[cfg(not(windows))]
const LIBRARIES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
/// What the library recommends for its newest devices.
const WORKSPACE: usize = 32 << 20;

/// The library, on a stream.
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    /// Asked for once: each time, cudarc queues a wait and an event, which would be timed too.
    workspace: CUdeviceptr,
    /// Keeps it.
    _workspace: CudaSlice<u8>,
}

/// `C [m, n] = A [m, k] · B [k, n]`, all row-major and dense, for each of a batch. A turned operand is
/// stored the other way round, `[k, m]` or `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub turned: [bool; 2],
    pub batch: usize,
    /// Numbers from one of the batch to the next, of `A` and `B`; 0: they share it. `C`'s lie dense.
    pub strides: [usize; 2],
    /// `C` in f32; else in bf16, as `A` and `B` are.
    pub wide: bool,
}

impl Shape {
    /// One product of upright operands to f32.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, turned: [false; 2], batch: 1, strides: [0; 2], wide: true }
    }

    /// The library counts by columns, and sees each matrix turned over: it is asked for Cᵀ = Bᵀ · Aᵀ.
    /// Rows and columns as it stores them, and whether it must turn them: of B, A, C.
    fn stored(&self) -> [(usize, usize, bool); 3] {
        let Self { m, n, k, turned: [a, b], .. } = *self;
        let of = |turned, rows, columns| {
            if turned { (columns, rows, true) } else { (rows, columns, false) }
        };
        [of(b, n, k), of(a, k, m), (n, m, false)]
    }
}

/// A product that is ready to be queued.
pub struct Product<'a> {
    blas: &'a Blas,
    operation: sys::cublasLtMatmulDesc_t,
    /// Of B, A, C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    at: [CUdeviceptr; 3],
}

impl Blas {
    /// Loads the library, or says why not.
    pub fn open(stream: &Arc<CudaStream>) -> Result<Self, String> {
        // SAFETY: the library's initialisers need nothing of us.
        let loads = |name: &&str| unsafe { libloading::Library::new(*name) }.is_ok();
        if !LIBRARIES.iter().any(loads) {
            return Err(format!("no cuBLASLt ({})", LIBRARIES.join(", ")));
        }
        let handle = result::create_handle().map_err(|error| format!("cuBLASLt: {error}"))?;
        let owned = stream.alloc_zeros::<u8>(WORKSPACE).map_err(|error| error.to_string())?;
        let workspace = address(stream, &owned);
        Ok(Self { handle, stream: stream.clone(), workspace, _workspace: owned })
    }

    /// Prepares a product of the buffers at `[A, B, C]` by the algorithm that the library thinks fastest.
    pub fn product(&self, shape: Shape, at: [CUdeviceptr; 3]) -> Result<Product<'_>, String> {
        self.prepare(shape, at).map_err(|error| format!("cuBLASLt: {error}"))
    }

    fn prepare(
        &self,
        shape: Shape,
        at: [CUdeviceptr; 3],
    ) -> Result<Product<'_>, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Operation;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let (half, single) = (sys::cudaDataType_t::CUDA_R_16BF, sys::cudaDataType_t::CUDA_R_32F);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, single)?;
        let stored = shape.stored();
        let [a, b] = shape.strides;
        let kinds =
            [(half, b), (half, a), (if shape.wide { single } else { half }, shape.m * shape.n)];
        let mut layouts = [std::ptr::null_mut(); 3];
        for (layout, ((rows, columns, _), (kind, stride))) in
            layouts.iter_mut().zip(stored.into_iter().zip(kinds))
        {
            *layout = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)?;
            batch(*layout, shape.batch as i32, stride as i64)?;
        }
        let turns =
            [Operation::CUBLASLT_MATMUL_DESC_TRANSA, Operation::CUBLASLT_MATMUL_DESC_TRANSB];
        for (attribute, (_, _, turned)) in turns.into_iter().zip(stored) {
            let turned = i32::from(turned);
            // SAFETY: the attribute is a number of this size, which is copied.
            unsafe {
                let value = (&raw const turned).cast();
                result::set_matmul_desc_attribute(
                    operation,
                    attribute,
                    value,
                    size_of_val(&turned),
                )?;
            }
        }
        let preference = result::create_matmul_pref()?;
        let room = WORKSPACE;
        // SAFETY: as above; the descriptors were made above and live on.
        let found = unsafe {
            let attribute = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let value = (&raw const room).cast();
            result::set_matmul_pref_attribute(preference, attribute, value, size_of_val(&room))?;
            let [b, a, c] = layouts;
            let found =
                result::get_matmul_algo_heuristic(self.handle, operation, b, a, c, c, preference);
            result::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Product { blas: self, operation, layouts, algorithm: found.algo, at })
    }
}

/// Makes a batch of a layout.
fn batch(
    layout: sys::cublasLtMatrixLayout_t,
    count: i32,
    stride: i64,
) -> Result<(), result::CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Layout;
    let (number, offset) = (
        Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
        Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
    );
    // SAFETY: the attributes are numbers of these sizes, which are copied.
    unsafe {
        let value = (&raw const count).cast();
        result::set_matrix_layout_attribute(layout, number, value, size_of_val(&count))?;
        let value = (&raw const stride).cast();
        result::set_matrix_layout_attribute(layout, offset, value, size_of_val(&stride))
    }
}

impl Product<'_> {
    /// Queues it.
    pub fn queue(&self) {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let factor = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let ([a, b, c], [b_layout, a_layout, c_layout]) = (self.at, self.layouts);
        // SAFETY: the buffers are those that the product was prepared for.
        let queued = unsafe {
            result::matmul(
                self.blas.handle,
                self.operation,
                factor(&one),
                factor(&zero),
                b as *const c_void,
                b_layout,
                a as *const c_void,
                a_layout,
                c as *const c_void,
                c_layout,
                c as *mut c_void,
                c_layout,
                &raw const self.algorithm,
                self.blas.workspace as *mut c_void,
                WORKSPACE,
                self.blas.stream.cu_stream().cast(),
            )
        };
        queued.expect("the product is queued");
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing uses them any more. What fails here, fails at the end of a benchmark.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Checks, without the library, that what it is asked for is the product that is meant.
pub fn check_layouts() {
    let number = |at: usize| (at * 7 % 11) as f64 - 5.0;
    for turned in [[false, false], [true, false], [false, true], [true, true]] {
        let shape = Shape { turned, ..Shape::new(2, 3, 4) };
        let (a, b): (Vec<f64>, Vec<f64>) =
            ((0..8).map(number).collect(), (3..15).map(number).collect());
        let [b_stored, a_stored, (rows, columns, _)] = shape.stored();
        // Element (row, column) of what the library sees after it turned what it must.
        let seen = |values: &[f64], (rows, _, turned): (usize, usize, bool), row, column| {
            let (row, column) = if turned { (column, row) } else { (row, column) };
            values[column * rows + row]
        };
        let Shape { m, n, k, turned: [turned_a, turned_b], .. } = shape;
        let meant = |row: usize, column: usize| -> f64 {
            let left = |step: usize| a[if turned_a { step * m + row } else { row * k + step }];
            let right =
                |step: usize| b[if turned_b { column * k + step } else { step * n + column }];
            (0..k).map(|step| left(step) * right(step)).sum()
        };
        for column in 0..columns {
            for row in 0..rows {
                let product =
                    |step| seen(&b, b_stored, row, step) * seen(&a, a_stored, step, column);
                let sum: f64 = (0..k).map(product).sum();
                let at = column * rows + row;
                assert_eq!(sum, meant(at / n, at % n), "{shape:?}");
            }
        }
    }
}
