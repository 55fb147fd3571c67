//! What a device does well, as data. Code above the ops reads these fields and never asks which device it is on, so a
//! new device needs one more constant here.

/// Which implementation of the kernels a device runs. CPU and CUDA kernels need different workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// The Rust code for the CPU.
    Cpu,
    /// The CUDA kernels, on a GPU or on the simulator.
    Cuda,
}

/// What a device does well, and the sizes of work that suit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Launches return before their work is done. Then it is faster to enqueue further steps before the result of a
    /// step is read.
    pub async_launches: bool,
    /// The times of launches are those of a real machine; on the simulator they are not.
    pub real_times: bool,
    /// A row of a matrix product has the same bits for every number of rows in the product. False on a GPU, because
    /// cuBLASLt chooses its algorithm by the number of rows.
    pub batch_invariant_products: bool,
    /// A decode step of a continuous batch always computes all slots, so the bits of a sequence depend on the number of
    /// slots and not on the other requests. A CPU computes occupied slots only, and no bit depends on their number.
    pub fixed_decode_batch: bool,
    /// The number of sequences that decode together if no option says it.
    pub decode_batch_size: usize,
    /// The most tokens of prompts that a forward pass computes between two decode steps if no option says it.
    pub prefill_chunk_tokens: usize,
    /// The fastest matrix products need rows that begin at multiples of this number of bytes: tensor copies (TMA) of a
    /// GPU need 16.
    pub row_alignment_bytes: usize,
    /// Kernels copy keys and values in whole boxes of rows, which may include rows behind the last token of a KV block.
    /// So these unused rows must be finite.
    pub reads_unused_kv_rows: bool,
    /// The device's memory serves this process alone. The memory of a CPU also serves other processes, the media
    /// workers and copies of checkpoints.
    pub own_memory: bool,
    /// The maximum bytes of keys and values, if there is one. The simulator has a maximum because it keeps a record of
    /// every byte.
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

    /// The simulated GPU computes matrix products on the CPU or by kernels, and both add up a row in one fixed order.
    pub(crate) const SIMULATED_GPU: Self = Self {
        async_launches: false,
        real_times: false,
        batch_invariant_products: true,
        max_kv_bytes: Some(64 << 20),
        ..Self::GPU
    };

    /// The capabilities of a real device that runs these kernels.
    pub(crate) fn of_kernels(kernels: Kernels) -> Self {
        match kernels {
            Kernels::Cpu => Self::CPU,
            Kernels::Cuda => Self::GPU,
        }
    }
}
