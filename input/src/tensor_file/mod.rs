//! Safetensors files: reads and validates their headers, and writes files of tensors in host memory.

mod dtype;
mod header;
mod write;

pub use dtype::StoredDType;
pub use header::{HeaderTensor, read_header};
pub use write::{HeaderEntry, StoredTensor, write_safetensors, write_safetensors_header};
