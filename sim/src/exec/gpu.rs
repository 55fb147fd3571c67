//! The GPUs whose limits and rates runs and models apply.

/// Limits and rates of a GPU. Source: CUDA C++ programming guide, "Compute capabilities"; multiprocessors from the data
/// sheets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuSpec {
    /// Name of the GPU.
    pub name: &'static str,
    /// Compute capability × 10.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have.
    pub shared_per_block: u32,
    /// Bytes of shared memory of a multiprocessor; each block takes a reserved KiB of it.
    pub shared: u32,
    /// Threads that a multiprocessor holds.
    pub threads: u32,
    /// Blocks that a multiprocessor holds.
    pub blocks: u32,
    /// Dense bf16 tensor throughput, operations per second.
    pub bf16_flops: f64,
    /// f32 throughput outside the tensor cores, operations per second.
    pub f32_flops: f64,
    /// Memory bandwidth in bytes per second.
    pub bandwidth: f64,
    /// Clock in Hz under load.
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

    /// The GPU that stands for a compute capability (times 10).
    pub fn for_sm(sm: u32) -> GpuSpec {
        if sm >= 90 { GpuSpec::H100 } else { GpuSpec::A100 }
    }
}
