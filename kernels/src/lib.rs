//! The kernels of `reel`: hand-written CUDA, the same computation for the CPU, and the checks that compare the two.
//!
//! Each kernel has a folder. `kernel_folder!` in the folder's `mod.rs` registers source, checks and examples
//! ([`folder`]); only the list below names the folder once more. A part that needs several files is a subfolder
//! (`cpu/`, `check/`).
//!
//! - What does it compute, on which shapes, how exactly, and what bounds its speed? The head of `mod.rs`; `reel kernels
//!   show SYMBOL` prints it.
//! - How many bytes and operations does a launch have? [`Cost`](reel_device::Cost), in the functions of `mod.rs` that
//!   return a [`Launch`](reel_device::Launch).
//! - What is right? `formula.rs`, in f64.
//! - Where is the code? `cpu.rs` for device `cpu`; `sm80.cu` and `*.cuh` for GPUs and the simulator.
//! - Where are the tests? `check.rs`: a check is a test `FOLDER::check::cpu::NAME` and another
//!   `FOLDER::check::sim::NAME`. `check/tests.rs` has tests of one device. [`compare`] has the comparisons with the
//!   formula.
//! - Which sizes do models call it with? `examples.rs`.
//!
//! A kernel is called through a [`Launch`](reel_device::Launch): plain data that a device executes. Nothing in this
//! crate owns device memory. Read [`reel_device::launch`] next, then `rms_norm` as an example of a folder.

pub mod bench;
pub mod catalogue;
pub mod checks;
pub mod compare;
pub mod cuh;
pub mod folder;
pub mod int8;
pub mod limits;
mod norm_rows;
pub mod tuning;

/// Declares the module of each kernel folder and collects what the folders register. `cargo fmt` does not look for
/// modules inside a macro's braces: `./x format` names them.
macro_rules! kernels {
    ($($name:ident)*) => {
        $(pub mod $name;)*

        /// Every kernel folder, in alphabetical order.
        pub const FOLDERS: &[folder::KernelFolder] = &[$($name::FOLDER),*];
    };
}

// A new kernel adds its folder's name here.
kernels! {
    adamw
    add_rows
    advance
    attention
    block_copy
    column_sum
    dequantize
    elementwise
    embedding
    fingerprint
    gelu
    grpo_loss
    layer_norm
    log_prob
    lora_rows
    matmul
    normalise
    paged_attention
    patch_embedding
    patch_merge
    patches
    pool_attention
    position_add
    reduce
    rms_norm
    rope
    rope_kv_write
    rope_kv_write_norm
    rows
    sample
    skinny
    swiglu
    weighted_rows
}
