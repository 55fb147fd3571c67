//! The matrix product `C[m, n] = scale · A · Bᵀ (+ bias) (+ C)` as plain data, and the table of the code that computes
//! it. The documentation of the crate `reel-kernels`, module `matmul`, has the numerics.

use super::{Addr, Arch, Cost, DType, KernelLaunch, Launch};
use crate::Team;

/// Number of rows in a group of an int8 operand, which is stored as `[n / 16][k][16]`.
pub const INT8_GROUP: usize = 16;
/// Number of rows in a group of an f32 or bf16 operand that is stored in groups, see [`WeightGroups`].
pub const GROUP_ROWS: usize = 32;

/// The number of elements of a matrix `[n, k]` of this dtype, F32 or BF16, that is stored in groups.
pub fn group_elements(dtype: DType, n: usize, k: usize) -> usize {
    n.next_multiple_of(GROUP_ROWS) * k.next_multiple_of(4 / dtype.size())
}

/// A matrix operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Where it lies.
    pub addr: Addr,
    /// F32 or BF16; B may be I8.
    pub dtype: DType,
    /// True if the operand is stored transposed: k is the first dimension in memory.
    pub transposed: bool,
}

/// How operand B is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RightLayout {
    /// As [`Operand`] says.
    Plain,
    /// f32 or bf16 in groups, see [`WeightGroups`].
    Groups,
    /// Quantised, and dequantised to f32 or bf16 by the product. The address is that of the parameters of the kernel
    /// `dequantize`, which [`ProductCode::cpu`] reads, without a result.
    Quantized {
        /// The bytes of codes, scales and zero points.
        bytes: usize,
    },
}

/// The sizes and operands of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// `[m, k]`, or `[k, m]` if transposed.
    pub a: Operand,
    /// `[n, k]`, or `[k, n]` if transposed; I8: `[n / 16][k][16]`, never transposed; see also `b_layout`.
    pub b: Operand,
    /// f32 `[n]`, the scales of an I8 B; otherwise null.
    pub b_scale: Addr,
    /// How B is stored. Layouts other than [`RightLayout::Plain`] are for the CPU alone, and B is then not transposed.
    pub b_layout: RightLayout,
    /// `[m, n]`, written.
    pub c: Addr,
    /// F32 or BF16.
    pub c_dtype: DType,
    /// `[n]` of C's dtype, added to each row; absent if null.
    pub bias: Addr,
    /// Whether the product is added to the old C. If false, the product replaces C.
    pub accumulate: bool,
    /// Factor by which the finished sums are multiplied; a factor of 1 leaves their bits as they are.
    pub scale: f32,
    /// The code that computes it.
    pub code: &'static ProductCode,
}

impl Matmul {
    /// Returns the name of the product in profiles. It names the role that a product with these operands (transposed or
    /// not) has in a linear layer: `matmul_fwd`, `matmul_dx` or `matmul_dw`.
    pub fn name(&self) -> &'static str {
        match (self.a.transposed, self.b.transposed) {
            (false, false) => "matmul_fwd",
            (false, true) => "matmul_dx",
            (true, true) => "matmul_dw",
            (true, false) => "matmul_tt",
        }
    }

    /// Whether this is a forward product by its operands, which are not stored transposed.
    pub fn is_forward(&self) -> bool {
        !(self.a.transposed || self.b.transposed)
    }

    /// Returns the address and the bytes of the right operand, B. In a model it is mostly a weight.
    pub fn right_operand(&self) -> (Addr, f64) {
        (self.b.addr, self.bytes_of_b() + self.scale_bytes())
    }

    /// Returns the cost: 2·m·n·k operations, and the bytes of each operand once (of C twice if the product is added
    /// to it).
    pub fn cost(&self) -> Cost {
        let (m, n, k) = (self.m as f64, self.n as f64, self.k as f64);
        let c = m * n * self.c_dtype.size() as f64 * if self.accumulate { 2.0 } else { 1.0 };
        Cost {
            flops: 2.0 * m * n * k,
            bytes: m * k * self.a.dtype.size() as f64 + self.bytes_of_b() + self.scale_bytes() + c,
        }
    }

    fn bytes_of_b(&self) -> f64 {
        match self.b_layout {
            RightLayout::Quantized { bytes } => bytes as f64,
            _ => self.n as f64 * self.k as f64 * self.b.dtype.size() as f64,
        }
    }

    fn scale_bytes(&self) -> f64 {
        if self.b_scale.is_null() { 0.0 } else { 4.0 * self.n as f64 }
    }

    /// Returns the number of elements of B in memory. If B is stored in groups, rows of zeros fill the last group.
    pub fn elements_of_b(&self) -> usize {
        if self.b_layout == RightLayout::Groups {
            return group_elements(self.b.dtype, self.n, self.k);
        }
        let rows = if self.b.dtype == DType::I8 { self.n.next_multiple_of(INT8_GROUP) } else { self.n };
        rows * self.k
    }
}

/// A launch that arranges a plain weight `[n, k]` in groups of 32 rows. The layout of f32 is `[n / 32][k][32]`. The
/// layout of bf16 is `[n / 32][k / 2][32][2]`, with the pairs of neighbouring k of 32 rows side by side. Zeros fill the
/// last group and the last pair. Only on the CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightGroups {
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// F32 or BF16.
    pub dtype: DType,
    /// `[n, k]`, read.
    pub from: Addr,
    /// The address to which the weight in groups is written: [`group_elements`] elements.
    pub to: Addr,
    /// The code that arranges it.
    pub code: &'static ProductCode,
}

impl WeightGroups {
    /// Returns the cost: each element is read and written once.
    pub fn cost(&self) -> Cost {
        let elements = self.n * self.k + group_elements(self.dtype, self.n, self.k);
        Cost { flops: 0.0, bytes: (elements * self.dtype.size()) as f64 }
    }
}

/// The code that executes matrix products. It is part of the kernels, in a crate above the devices, so devices cannot
/// name it. Instead each product carries its code, as a kernel call carries its [`Kernel`](super::Kernel).
pub struct ProductCode {
    /// Computes a product on device `cpu`.
    ///
    /// # Safety
    /// The addresses cover the shapes that [`Matmul`] documents, and nothing else uses C.
    pub cpu: unsafe fn(&Matmul, &Team),
    /// Computes on the CPU a product that no kernel of the simulated GPU supports, with the same f32 multiply-adds as
    /// the simulated kernels.
    ///
    /// # Safety
    /// The conditions of [`ProductCode::cpu`].
    pub simulated: unsafe fn(&Matmul, &Team),
    /// Arranges a weight in groups of rows on device `cpu`.
    ///
    /// # Safety
    /// The addresses cover the shapes that [`WeightGroups`] documents, and nothing else uses the groups.
    pub arrange: unsafe fn(&WeightGroups, &Team),
    /// Returns the call of a kernel that computes a product on a GPU of this architecture; `None` if none does.
    pub gpu_kernel: fn(&Matmul, &Arch) -> Option<KernelLaunch>,
    /// Returns the share of whole waves that this kernel reaches: the elements of C divided by the elements that all
    /// multiprocessors could compute in the time of the busiest one. `None` if there is no kernel.
    pub wave_share: fn(&Matmul, &Arch) -> Option<f64>,
    /// Returns the launch that casts elements of a dtype, at the first address, to f32, at the second address; the last
    /// argument is their number.
    pub cast_to_f32: fn(DType, Addr, Addr, usize) -> Launch,
}

impl std::fmt::Debug for ProductCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProductCode")
    }
}

impl PartialEq for ProductCode {
    fn eq(&self, other: &ProductCode) -> bool {
        std::ptr::eq(self, other)
    }
}
