//! Matrix products of the fake driver, computed by the code of device `cpu`.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::sync::Mutex;

use super::{FakeDriver, Op};
use crate::cuda::algorithms::{AlgorithmFingerprint, ProductShape};
use crate::cuda::blas::{self, Blas, WORKSPACE_BYTES};
use crate::cuda::error::CudaError;
use crate::cuda::types::StreamHandle;
use crate::launch::Matmul;

/// Computes matrix products by the CPU's code.
pub(super) struct FakeBlas {
    fake: FakeDriver,
    known: Mutex<HashSet<ProductShape>>,
}

impl FakeBlas {
    pub(super) fn new(fake: FakeDriver) -> FakeBlas {
        FakeBlas { fake, known: Mutex::default() }
    }
}

impl Blas for FakeBlas {
    fn version(&self) -> String {
        "fake products 1.0.0".into()
    }

    /// All product shapes have the same algorithm, number 0.
    fn algorithms(&self) -> AlgorithmFingerprint {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        AlgorithmFingerprint::new(known.iter().map(|shape| (*shape, [0; 8])))
    }

    // cublasLtMatmul: operands are in GPU memory and aligned to their elements; the workspace is aligned to 16 bytes.
    unsafe fn product(&self, p: &Matmul, workspace: u64, stream: StreamHandle) -> Result<(), CudaError> {
        if let Some(why) = blas::unsupported_reason(p) {
            return Err(blas::product_error(p, why));
        }
        self.fake.count_launch();
        let mut s = self.fake.0.state_unless_faulted("launching a product")?;
        let mut operands = vec![
            (p.a.addr.0, p.m * p.k * p.a.dtype.size(), p.a.dtype.size()),
            (p.b.addr.0, p.n * p.k * p.b.dtype.size(), p.b.dtype.size()),
            (p.c.0, p.m * p.n * p.c_dtype.size(), p.c_dtype.size()),
            (workspace, WORKSPACE_BYTES, 16),
        ];
        if !p.bias.is_null() {
            operands.push((p.bias.0, p.n * p.c_dtype.size(), p.c_dtype.size()));
        }
        if !operands.iter().all(|&(at, bytes, align)| at.is_multiple_of(align as u64) && s.is_backed(at, bytes)) {
            return Err(blas::product_error(p, "cuBLASLt: CUBLAS_STATUS_INVALID_VALUE"));
        }
        self.known.lock().unwrap_or_else(|e| e.into_inner()).insert(ProductShape::new(p));
        s.enqueue("launching a product", stream, Op::Product(*p))
    }
}
