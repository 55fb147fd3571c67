//! The least arithmetic and memory traffic that a launch needs. Benchmarks compute from it the shortest possible time,
//! and compare measured times with it.

/// Arithmetic and memory traffic of one launch, each operand read or written once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two. The kernels count an exponential, a root or a quotient
    /// differently, which does not matter: bytes bound the time of these kernels.
    pub flops: f64,
    /// Bytes read from and written to memory.
    pub bytes: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}
