//! Writing: safetensors files and hub folders that transformers and vLLM load as they are.
//!
//! Everything goes to a temporary name beside the target and is renamed when it is whole, so a full disk or a Ctrl-C leaves no
//! half file under a final name, and a program that has the old file mapped keeps its content.

mod atomic;
mod hub_folder;
mod tensors;
#[cfg(test)]
mod tests;

pub(crate) use atomic::Unfinished;
pub use atomic::{AtomicFile, remove_unfinished};
pub use hub_folder::{HubFolder, SHARD_BYTES, hub_folder, write_weights};
pub(crate) use hub_folder::{copy_companions, same_folder, write_file, write_whole};
pub use tensors::{StoredTensor, TensorSpec, write_safetensors};
