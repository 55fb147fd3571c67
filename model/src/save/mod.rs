//! Writes safetensors files and model folders, which transformers and vLLM load without conversion.
//!
//! Each file is written under a temporary name and renamed when it is complete. So a full disk or Ctrl-C leaves no
//! incomplete file under a final name, and a program that has mapped the old file keeps its content. A command that
//! writes a whole folder locks it first ([`FolderLock`]).

mod atomic;
mod folder_format;
mod hub_folder;
mod lock;
mod tensors;
#[cfg(test)]
mod tests;

pub use atomic::AtomicFile;
pub use folder_format::FolderFormat;
pub use hub_folder::{HubFolder, MAX_SHARD_BYTES, SmallFiles, write_hub_folder, write_weights};
pub(crate) use hub_folder::{write_atomically, write_tensor_file_and, write_unfinished};
pub use lock::{FOLDER_LOCK_FILE, FileLock, FolderLock, LockError, LockHolder};
pub use tensors::{HeaderEntry, StoredTensor, TensorSpec, write_safetensors, write_safetensors_header};
