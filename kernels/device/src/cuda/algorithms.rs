//! A fingerprint of the algorithms that computed a run's matrix products. Two runs can only have the same bits if
//! their fingerprints are equal.

use twox_hash::XxHash3_64;

use crate::launch::Matmul;
use crate::{Addr, DType};

/// The properties of a matrix product that determine its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    pub(super) sizes: [usize; 3],
    pub(super) transposed: [bool; 2],
    pub(super) types: [DType; 3],
    pub(super) bias: bool,
    pub(super) accumulate: bool,
    /// Alignment of the addresses of a, b and c in bytes, at most 256.
    pub(super) alignment: [u32; 3],
}

impl ProductShape {
    /// Returns the shape of a matrix product.
    pub fn new(p: &Matmul) -> ProductShape {
        ProductShape {
            sizes: [p.m, p.n, p.k],
            transposed: [p.a.transposed, p.b.transposed],
            types: [p.a.dtype, p.b.dtype, p.c_dtype],
            bias: !p.bias.is_null(),
            accumulate: p.accumulate,
            alignment: [p.a.addr, p.b.addr, p.c].map(alignment),
        }
    }
}

impl ProductShape {
    /// Returns the shape as text in a stable format:
    /// `m=5 n=3 k=7 a=bf16 b=bf16t c=f32 bias=0 add=1 align=256,256,256`.
    pub fn to_text(self) -> String {
        let ProductShape { sizes: [m, n, k], transposed: [at, bt], types: [a, b, c], bias, accumulate, alignment } =
            self;
        let t = |transposed| if transposed { "t" } else { "" };
        let [of_a, of_b, of_c] = alignment;
        format!(
            "m={m} n={n} k={k} a={a}{} b={b}{} c={c} bias={} add={} align={of_a},{of_b},{of_c}",
            t(at),
            t(bt),
            u8::from(bias),
            u8::from(accumulate)
        )
    }
}

fn alignment(at: Addr) -> u32 {
    1 << at.0.trailing_zeros().min(8)
}

/// A summary of the algorithms that products have used so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlgorithmFingerprint {
    /// Number of different product shapes.
    pub count: usize,
    /// A hash of all shapes with their algorithms. It does not depend on the order in which the shapes were used.
    pub hash: u64,
}

impl AlgorithmFingerprint {
    /// Summarises pairs of a shape and its algorithm. The eight numbers are the contents of `cublasLtMatmulAlgo_t`.
    /// NVIDIA's manual allows storing them and using them again with the same version of the library.
    pub fn new(chosen: impl IntoIterator<Item = (ProductShape, [u64; 8])>) -> AlgorithmFingerprint {
        let mut lines: Vec<String> =
            chosen.into_iter().map(|(shape, algorithm)| format!("{} {algorithm:016x?}\n", shape.to_text())).collect();
        lines.sort_unstable();
        AlgorithmFingerprint { count: lines.len(), hash: XxHash3_64::oneshot(lines.concat().as_bytes()) }
    }
}
