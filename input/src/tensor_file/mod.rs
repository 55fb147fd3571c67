//! Safetensors files: reads and validates their headers, writes files of tensors in host memory, and names the
//! checkpoints of other programs that have none.

mod dtype;
mod foreign;
mod header;
mod write;

pub use dtype::StoredDType;
pub use foreign::foreign_checkpoint;
pub use header::{HeaderTensor, read_header};
pub use write::{HeaderEntry, StoredTensor, write_safetensors, write_safetensors_header};
