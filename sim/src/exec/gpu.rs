//! Limits and rates of the GPUs that runs simulate and performance models assume.

/// Limits and rates of a GPU. Sources: CUDA C++ programming guide, "Compute capabilities"; the GPU's data sheet for
/// the rates and the number of multiprocessors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// Name of the GPU.
    pub name: &'static str,
    /// Compute capability without the point: 90 means 9.0.
    pub sm: u32,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Maximum bytes of shared memory per block.
    pub shared_per_block: u32,
    /// Bytes of shared memory per multiprocessor. CUDA reserves 1 KiB of it for each resident block.
    pub shared: u32,
    /// Maximum number of resident threads per multiprocessor.
    pub threads: u32,
    /// Maximum number of resident blocks per multiprocessor.
    pub blocks: u32,
    /// Dense bf16 tensor throughput, operations per second.
    pub bf16_flops: f64,
    /// f32 throughput outside the tensor cores, operations per second.
    pub f32_flops: f64,
    /// Memory bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Clock of the multiprocessors under load, in Hz.
    pub clock: f64,
}

impl GpuSpec {
    /// NVIDIA A100 SXM with 80 GB.
    pub const A100: GpuSpec = GpuSpec {
        name: "A100",
        sm: 80,
        multiprocessors: 108,
        shared_per_block: 163 << 10,
        shared: 164 << 10,
        threads: 2048,
        blocks: 32,
        bf16_flops: 312e12,
        f32_flops: 19.5e12,
        bandwidth: 2.039e12,
        clock: 1.41e9,
    };
    /// NVIDIA H100 SXM.
    pub const H100: GpuSpec = GpuSpec {
        name: "H100",
        sm: 90,
        multiprocessors: 132,
        shared_per_block: 227 << 10,
        shared: 228 << 10,
        threads: 2048,
        blocks: 32,
        bf16_flops: 989e12,
        f32_flops: 66.9e12,
        bandwidth: 3.35e12,
        clock: 1.83e9,
    };
    /// NVIDIA H200.
    pub const H200: GpuSpec = GpuSpec { name: "H200", bandwidth: 4.8e12, ..GpuSpec::H100 };

    /// Returns the GPU that is simulated for a compute capability, given without the point (90 means 9.0).
    pub fn for_sm(sm: u32) -> GpuSpec {
        if sm >= 90 { GpuSpec::H100 } else { GpuSpec::A100 }
    }
}
