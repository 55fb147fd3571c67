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
    /// A row of a matrix product has the same bits whatever the number of rows. On a GPU it has not, because cuBLASLt
    /// chooses its algorithm by that number.
    pub batch_invariant_products: bool,
    /// A continuous batch computes all its slots in every decode step, so its bits depend on their number and not on
    /// the other requests. A CPU computes occupied slots only, and no bit depends on their number.
    pub fixed_decode_batch: bool,
    /// The number of sequences that decode together if no option says it.
    pub decode_batch_size: usize,
    /// The most tokens of prompts that a forward pass computes between two decode steps if no option says it.
    pub prefill_chunk_tokens: usize,
    /// The multiple of bytes at which rows of a matrix begin for the fastest products: tensor copies (TMA) of a GPU
    /// need 16.
    pub row_alignment_bytes: usize,
    /// Kernels copy whole boxes of rows of bf16, of which some may lie behind the last token of a KV block. So unused
    /// rows must be finite.
    pub reads_unused_kv_rows: bool,
    /// The memory serves this process alone. The memory of a CPU has other users, and holds the media workers and
    /// copies of checkpoints, too.
    pub own_memory: bool,
    /// The most bytes of keys and values; the simulator keeps a record of every byte.
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

    /// The simulated GPU computes products on the CPU, or by kernels of which each row has one order of summation.
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
