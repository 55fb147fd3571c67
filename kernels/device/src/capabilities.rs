//! Capabilities of a device, as plain data. Code above the ops reads these fields and never asks which device it runs
//! on, so a new device needs only one more constant here.

/// The implementation of the kernels that a device runs. CPU and CUDA kernels need different workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The kernels in Rust, for the CPU.
    Cpu,
    /// The CUDA kernels, on a GPU or on the simulator.
    Cuda,
}

/// The capabilities of a device, and the batch sizes that suit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether launches return before their work is done. On such a device it is faster to enqueue the next steps
    /// before reading the result of a step.
    pub async_launches: bool,
    /// Whether measured launch times are those of real hardware. False on the simulator.
    pub real_times: bool,
    /// Whether a row of a matrix product has the same bits for every number of rows in the product. False on a GPU,
    /// because cuBLASLt chooses its algorithm by the number of rows.
    pub batch_invariant_products: bool,
    /// Whether a decode step always computes all slots, also the unused ones. If so, the bits of a sequence depend on
    /// the number of slots, but not on the other requests. A CPU computes only the occupied slots, and no bit depends
    /// on their number.
    pub fixed_decode_batch: bool,
    /// The default number of sequences that decode together, used if no option sets it.
    pub decode_batch_size: usize,
    /// The default maximum of prompt tokens per forward pass between two decode steps, used if no option sets it.
    pub prefill_chunk_tokens: usize,
    /// The row alignment in bytes that the fastest matrix products need. Tensor copies (TMA) of a GPU need 16.
    pub row_alignment_bytes: usize,
    /// Whether kernels read rows behind the last token of a KV block, because they copy keys and values in whole TMA
    /// boxes. The values in these unused rows must then be finite.
    pub reads_unused_kv_rows: bool,
    /// Whether the device's memory serves this process alone. A CPU's memory also serves other processes, the media
    /// workers and copies of checkpoints.
    pub own_memory: bool,
    /// The maximum bytes of the KV cache, if the device has one. The simulator has a maximum because it keeps a
    /// record of every byte.
    pub max_kv_bytes: Option<u64>,
}

impl Capabilities {
    const CPU: Self = Self {
        async_launches: false,
        real_times: true,
        batch_invariant_products: true,
        fixed_decode_batch: false,
        decode_batch_size: 32,
        prefill_chunk_tokens: 512,
        row_alignment_bytes: 1,
        reads_unused_kv_rows: false,
        own_memory: false,
        max_kv_bytes: None,
    };

    const GPU: Self = Self {
        async_launches: true,
        real_times: true,
        batch_invariant_products: false,
        fixed_decode_batch: true,
        decode_batch_size: 256,
        prefill_chunk_tokens: 4096,
        row_alignment_bytes: 16,
        reads_unused_kv_rows: true,
        own_memory: true,
        max_kv_bytes: None,
    };

    /// The simulated GPU computes matrix products on the CPU or by kernels. Both add up a row in one fixed order, so
    /// products are batch invariant.
    pub(crate) const SIMULATED_GPU: Self = Self {
        async_launches: false,
        real_times: false,
        batch_invariant_products: true,
        max_kv_bytes: Some(64 << 20),
        ..Self::GPU
    };

    /// The capabilities of a real device with this implementation of the kernels.
    pub(crate) fn for_kernels(kernels: Kernels) -> Self {
        match kernels {
            Kernels::Cpu => Self::CPU,
            Kernels::Cuda => Self::GPU,
        }
    }
}
