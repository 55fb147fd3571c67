//! Writes model folders, which transformers and vLLM load without conversion.
//!
//! All files of a folder are written under temporary names and renamed together when they are complete
//! ([`reel_support::files::AtomicFile`]).

mod dequantize;
mod draft;
mod folder_format;
mod hub_folder;
mod quantize;
#[cfg(test)]
mod tests;
mod weight_files;

pub use dequantize::dequantize_model;
pub(crate) use dequantize::{StoredValues, rounded};
pub(crate) use draft::{Draft, copy_into, copy_others};
pub use folder_format::FolderFormat;
pub use hub_folder::{
    ConfigAndTokenizerFiles, HubFolder, MAX_SHARD_BYTES, TensorWriter, create_hub_folder, move_hub_files, write_weights,
};
pub(crate) use hub_folder::{set_unquantized, untie_embeddings, write_tensor_file_and_finish};
pub use quantize::ModelQuantizer;
pub use weight_files::{FileDType, TensorSpec, WeightFiles};
