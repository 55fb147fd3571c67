//! Matrix products on a GPU by cuBLASLt, which is opened at run time.
//!
//! The matrices of this project are row-major, those of cuBLASLt column-major. So `C[m, n] = A · Bᵀ` is computed as
//! `Cᵀ = B · Aᵀ`: cuBLASLt's first operand is B, its second operand is A, and a bias of n elements lies along its
//! rows. The algorithm is the first one that cuBLASLt's heuristic returns for the shape, dtypes, alignment and
//! epilogue. So the same GPU, driver and library give the same bits every time. Partial sums are never added by
//! atomics.
//!
//! No binding crate is used, because the library must be opened from a folder found at run time. That folder takes
//! precedence over an older library in the loader's search path. cuBLASLt 13 is used, or cuBLASLt 12, which a driver
//! of CUDA 12 needs. Source: NVIDIA's cuBLAS manual 13.0, "Using the cuBLASLt API"; the constants are those of
//! cublasLt.h and library_types.h. The headers of cuBLAS 12.0 and 13.0 agree in all constants, types and functions
//! that are used here.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::Mutex;

use super::algorithms::{AlgorithmFingerprint, ProductShape};
use super::blas::{Blas, WORKSPACE_BYTES, product_error, unsupported_reason};
use super::context::Context;
use super::error::CudaError;
use super::types::StreamHandle;
use crate::DType;
use crate::compile::toolkit::Toolkit;
use crate::launch::Matmul;
use reel_support::shared_library::SharedLibrary;

type Status = c_int;
type Handle = *mut c_void;
type Desc = *mut c_void;
type Layout = *mut c_void;
type Preference = *mut c_void;
type Set = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> Status;
type Destroy = unsafe extern "C" fn(*mut c_void) -> Status;

#[repr(C)]
#[derive(Clone, Copy)]
struct Algorithm([u64; 8]);

#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const OK: Status = 0;
const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
const OP_T: c_int = 1;
const EPILOGUE_BIAS: c_int = 4;
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTIONS: c_int = 3;
const PREFERENCE_ALIGNMENT_A: c_int = 5;
/// The reduction scheme that keeps the partial sums of a split product in f32 in the workspace.
const REDUCTION_COMPUTE_TYPE: u32 = 2;

/// The loaded cuBLASLt library with a handle for one GPU.
pub struct CublasLt {
    functions: Functions,
    handle: Handle,
    /// The GPU context for which the handle was made. Each product makes this context current, because the library
    /// computes in the context of the calling thread, and a thread without a context gets the context of GPU 0.
    context: Context,
    known: Mutex<HashMap<ProductShape, Prepared>>,
}

// SAFETY: any thread may use the handle, one at a time; the lock of `known` is held during each product.
unsafe impl Send for CublasLt {}
// SAFETY: shared access to the handle is serialised by the lock of `known`.
unsafe impl Sync for CublasLt {}

struct Functions {
    version: unsafe extern "C" fn() -> usize,
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy: Destroy,
    desc_create: unsafe extern "C" fn(*mut Desc, c_int, c_int) -> Status,
    desc_set: Set,
    desc_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Layout, c_int, u64, u64, i64) -> Status,
    layout_destroy: Destroy,
    preference_create: unsafe extern "C" fn(*mut Preference) -> Status,
    preference_set: Set,
    preference_destroy: Destroy,
    heuristic: unsafe extern "C" fn(
        Handle,
        Desc,
        Layout,
        Layout,
        Layout,
        Layout,
        Preference,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Desc,
        *const c_void,
        *const c_void,
        Layout,
        *const c_void,
        Layout,
        *const c_void,
        *const c_void,
        Layout,
        *mut c_void,
        Layout,
        *const Algorithm,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
    // Keeps the library open, because the function pointers above point into it.
    _library: SharedLibrary,
}

/// cuBLASLt's descriptors and the algorithm for one product shape.
struct Prepared {
    desc: Desc,
    first: Layout,
    second: Layout,
    result: Layout,
    algorithm: Algorithm,
}

impl Functions {
    fn open(path: &Path) -> Result<Functions, CudaError> {
        let failed = |reason: String| CudaError::library_error(path.as_os_str(), reason);
        let library = SharedLibrary::open(path).map_err(failed)?;
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the field's type is the function's type in cublasLt.h of CUDA 12 and 13.
                unsafe { library.function($name) }.map_err(failed)?
            };
        }
        Ok(Functions {
            version: get!(c"cublasLtGetVersion"),
            create: get!(c"cublasLtCreate"),
            destroy: get!(c"cublasLtDestroy"),
            desc_create: get!(c"cublasLtMatmulDescCreate"),
            desc_set: get!(c"cublasLtMatmulDescSetAttribute"),
            desc_destroy: get!(c"cublasLtMatmulDescDestroy"),
            layout_create: get!(c"cublasLtMatrixLayoutCreate"),
            layout_destroy: get!(c"cublasLtMatrixLayoutDestroy"),
            preference_create: get!(c"cublasLtMatmulPreferenceCreate"),
            preference_set: get!(c"cublasLtMatmulPreferenceSetAttribute"),
            preference_destroy: get!(c"cublasLtMatmulPreferenceDestroy"),
            heuristic: get!(c"cublasLtMatmulAlgoGetHeuristic"),
            matmul: get!(c"cublasLtMatmul"),
            _library: library,
        })
    }
}

/// The descriptors created so far for a product. Dropping this value destroys the descriptors that were not moved
/// out.
struct Parts<'a> {
    functions: &'a Functions,
    desc: Desc,
    layouts: [Layout; 3],
    preference: Preference,
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        let f = self.functions;
        let layouts = self.layouts.map(|l| (l, f.layout_destroy));
        for (part, destroy) in
            [(self.desc, f.desc_destroy), (self.preference, f.preference_destroy)].iter().chain(&layouts)
        {
            if !part.is_null() {
                // SAFETY: the descriptor was made by its create function and is destroyed once.
                unsafe { destroy(*part) };
            }
        }
    }
}

impl CublasLt {
    /// Opens the library for a GPU's context, which is current on this thread. `driver` is the major version of the
    /// newest CUDA version that the driver supports. The caller keeps the context retained as long as it uses the
    /// library.
    ///
    /// # Errors
    /// [`CudaError::NoBlas`] if cuBLASLt is not installed, or the library's own error.
    pub(super) fn open(context: Context, driver: u32) -> Result<CublasLt, CudaError> {
        let path = Toolkit::from_environment().cublas_lt(driver).ok_or(CudaError::NoBlas { driver })?;
        let functions = Functions::open(&path)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` is writable.
        let status = unsafe { (functions.create)(&mut handle) };
        if status != OK {
            let call = format!("opening {}", path.display());
            return Err(CudaError::Call { call, what: status_name(status) });
        }
        Ok(CublasLt { functions, handle, context, known: Mutex::default() })
    }

    /// Creates the descriptors and chooses the algorithm for a shape that is used for the first time.
    fn prepare(&self, p: &Matmul, shape: &ProductShape) -> Result<Prepared, CudaError> {
        let null = std::ptr::null_mut();
        let f = &self.functions;
        let mut parts = Parts { functions: f, desc: null, layouts: [null; 3], preference: null };
        let check = |status: Status| match status {
            OK => Ok(()),
            _ => Err(product_error(p, format!("cuBLASLt: {}", status_name(status)))),
        };
        let number = |set: Set, of: *mut c_void, which: c_int, value: &[u8]| {
            // SAFETY: `of` is live; the library copies `value`, which has the attribute's size.
            check(unsafe { set(of, which, value.as_ptr().cast(), value.len()) })
        };
        // A row-major matrix [rows, columns] is a column-major matrix [columns, rows].
        let (types, [m, n, k]) = (shape.types.map(data_type), shape.sizes.map(|d| d as u64));
        let stored =
            |rows: u64, columns: u64, transposed: bool| if transposed { (columns, rows) } else { (rows, columns) };
        let matrices =
            [(types[1], stored(n, k, p.b.transposed)), (types[0], stored(m, k, p.a.transposed)), (types[2], (m, n))];
        // SAFETY: the pointers to descriptors are writable, and the arguments have the types of cublasLt.h.
        unsafe {
            check((f.desc_create)(&mut parts.desc, COMPUTE_32F, R_32F))?;
            for (layout, (kind, (rows, columns))) in parts.layouts.iter_mut().zip(matrices) {
                check((f.layout_create)(layout, kind, columns, rows, columns as i64))?;
            }
            check((f.preference_create)(&mut parts.preference))?;
        }
        // B is stored as row-major [n, k], which is column-major [k, n]. As the first operand, B must be [n, k].
        if !p.b.transposed {
            number(f.desc_set, parts.desc, DESC_TRANSA, &OP_T.to_ne_bytes())?;
        }
        if p.a.transposed {
            number(f.desc_set, parts.desc, DESC_TRANSB, &OP_T.to_ne_bytes())?;
        }
        if shape.bias {
            number(f.desc_set, parts.desc, DESC_EPILOGUE, &EPILOGUE_BIAS.to_ne_bytes())?;
            number(f.desc_set, parts.desc, DESC_BIAS_POINTER, &p.bias.0.to_ne_bytes())?;
        }
        number(f.preference_set, parts.preference, PREFERENCE_WORKSPACE, &WORKSPACE_BYTES.to_ne_bytes())?;
        number(f.preference_set, parts.preference, PREFERENCE_REDUCTIONS, &REDUCTION_COMPUTE_TYPE.to_ne_bytes())?;
        let [a, b, c] = shape.alignment;
        for (i, bytes) in [b, a, c, c].into_iter().enumerate() {
            number(f.preference_set, parts.preference, PREFERENCE_ALIGNMENT_A + i as c_int, &bytes.to_ne_bytes())?;
        }
        let [first, second, result] = parts.layouts;
        let mut found =
            Heuristic { algorithm: Algorithm([0; 8]), workspace: 0, state: OK, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        // SAFETY: the descriptors are live; `found` and `count` have room for the one result that is requested.
        let status = unsafe {
            let (desc, preference) = (parts.desc, parts.preference);
            (f.heuristic)(self.handle, desc, first, second, result, result, preference, 1, &mut found, &mut count)
        };
        check(status)?;
        if count == 0 || found.state != OK {
            return Err(product_error(p, "cuBLASLt has no algorithm for this matrix product"));
        }
        let prepared = Prepared { desc: parts.desc, first, second, result, algorithm: found.algorithm };
        (parts.desc, parts.layouts) = (null, [null; 3]);
        Ok(prepared)
    }
}

impl Blas for CublasLt {
    fn version(&self) -> String {
        // SAFETY: the function has no preconditions.
        let v = unsafe { (self.functions.version)() };
        format!("cuBLASLt {}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }

    fn algorithms(&self) -> AlgorithmFingerprint {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        AlgorithmFingerprint::new(known.iter().map(|(shape, prepared)| (*shape, prepared.algorithm.0)))
    }

    unsafe fn product(&self, p: &Matmul, workspace: u64, stream: StreamHandle) -> Result<(), CudaError> {
        if let Some(why) = unsupported_reason(p) {
            return Err(product_error(p, why));
        }
        // SAFETY: the code that opened the library keeps the context retained.
        unsafe { self.context.make_current() }?;
        let shape = ProductShape::new(p);
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        let prepared = match known.entry(shape) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(self.prepare(p, &shape)?),
        };
        let f = &self.functions;
        let (scale, old) = (p.scale, if p.accumulate { 1.0f32 } else { 0.0 });
        let [a, b, c] = [p.a.addr, p.b.addr, p.c].map(|at| at.0 as *mut c_void);
        // SAFETY: the caller guarantees operands and workspace; the library reads alpha and beta before the call
        // returns.
        let status = unsafe {
            if shape.bias {
                let bias = p.bias.0.to_ne_bytes();
                (f.desc_set)(prepared.desc, DESC_BIAS_POINTER, bias.as_ptr().cast(), bias.len());
            }
            (f.matmul)(
                self.handle,
                prepared.desc,
                (&raw const scale).cast(),
                b,
                prepared.first,
                a,
                prepared.second,
                (&raw const old).cast(),
                c,
                prepared.result,
                c,
                prepared.result,
                &prepared.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.0 as *mut c_void,
            )
        };
        match status {
            OK => Ok(()),
            _ => Err(product_error(p, format!("cuBLASLt: {}", status_name(status)))),
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let known = std::mem::take(self.known.get_mut().unwrap_or_else(|e| e.into_inner()));
        let f = &self.functions;
        // SAFETY: the library made the descriptors and the handle; each is destroyed once.
        unsafe {
            for prepared in known.into_values() {
                (f.desc_destroy)(prepared.desc);
                for layout in [prepared.first, prepared.second, prepared.result] {
                    (f.layout_destroy)(layout);
                }
            }
            (f.destroy)(self.handle);
        }
    }
}

fn data_type(dtype: DType) -> c_int {
    if dtype == DType::F32 { R_32F } else { R_16BF }
}

/// Returns the name of a status code, as in cublas_api.h.
fn status_name(status: Status) -> String {
    let name = match status {
        1 => "NOT_INITIALIZED",
        3 => "ALLOC_FAILED",
        7 => "INVALID_VALUE",
        8 => "ARCH_MISMATCH",
        11 => "MAPPING_ERROR",
        13 => "EXECUTION_FAILED",
        14 => "INTERNAL_ERROR",
        15 => "NOT_SUPPORTED",
        16 => "LICENSE_ERROR",
        _ => return format!("status {status}"),
    };
    format!("CUBLAS_STATUS_{name}")
}
