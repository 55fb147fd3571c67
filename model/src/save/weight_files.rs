//! The weight files of a model folder: `model.safetensors`, or several shards with an index. They are written tensor by
//! tensor (`hub_folder.rs`), or created with their full length and then filled by several writers ([`WeightFiles`]).

use std::fs::{self, File};
use std::io;
use std::path::Path;

use reel_input::tensor_file::{HeaderEntry, StoredDType, write_safetensors_header};
use serde_json::{Map, json};

use crate::checkpoint::TensorNaming;
use crate::error::{Error, Result};

/// The name of the file that lists which shard has which tensor.
pub(super) const SHARD_INDEX_FILE: &str = "model.safetensors.index.json";

/// The element type of a tensor to write.
pub trait FileDType: Copy {
    /// The dtype's name in safetensors headers, and the size of an element in bytes.
    fn name_and_bytes(self) -> (&'static str, usize);
}

impl FileDType for StoredDType {
    fn name_and_bytes(self) -> (&'static str, usize) {
        (self.safetensors_name(), self.element_bytes())
    }
}

/// The name, dtype and shape of a weight, or of a part of a quantised weight, to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec<D = StoredDType> {
    /// The classic name (`model.layers.0…`, `visual.blocks.0…`).
    pub name: String,
    /// The dtype of the weight in the file.
    pub dtype: D,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl<D: FileDType> TensorSpec<D> {
    /// The size in the file, in bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product::<u64>() * self.dtype.name_and_bytes().1 as u64
    }
}

/// Assigns tensors to weight files.
#[derive(Debug)]
pub struct WeightFiles<'a, D = StoredDType> {
    naming: TensorNaming,
    /// The name and the tensors of each weight file.
    shards: Vec<(String, &'a [TensorSpec<D>])>,
}

impl<'a, D: FileDType> WeightFiles<'a, D> {
    /// Divides the tensors, in order, into files. A file has at most `shard_bytes`, unless it has a single larger
    /// tensor.
    pub fn new(naming: TensorNaming, tensors: &'a [TensorSpec<D>], shard_bytes: u64) -> Self {
        let shards = cut(tensors, shard_bytes);
        let name = |i: usize| match shards.len() {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let names: Vec<String> = (0..shards.len()).map(name).collect();
        Self { naming, shards: names.into_iter().zip(shards).collect() }
    }

    /// The name and the tensors of each weight file.
    pub(super) fn shards(&self) -> &[(String, &'a [TensorSpec<D>])] {
        &self.shards
    }

    /// The JSON text of the shard index; `None` if there is a single weight file.
    pub(super) fn index_json(&self) -> Option<String> {
        if self.shards.len() == 1 {
            return None;
        }
        let mut map = Map::new();
        for (file, tensors) in &self.shards {
            map.extend(tensors.iter().map(|tensor| (self.naming.from_classic_name(&tensor.name), json!(file))));
        }
        let total: u64 = self.shards.iter().flat_map(|(_, tensors)| *tensors).map(TensorSpec::bytes).sum();
        Some(format!("{:#}\n", json!({"metadata": {"total_size": total}, "weight_map": map})))
    }

    /// Where each tensor begins: its name, the file and the position of the first byte, in the order of the tensors.
    ///
    /// # Errors
    /// A header cannot be made.
    pub fn tensor_positions(&self) -> io::Result<Vec<(&'a TensorSpec<D>, &str, u64)>> {
        let mut places = Vec::new();
        for (file, tensors) in &self.shards {
            let mut at = header_bytes(|name| self.naming.from_classic_name(name), tensors)?.len() as u64;
            for tensor in *tensors {
                places.push((tensor, file.as_str(), at));
                at += tensor.bytes();
            }
        }
        Ok(places)
    }

    /// Creates the files in `folder` with their headers and their full length. The contents of the tensors are then
    /// written at their [`Self::tensor_positions`].
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(&self, folder: &Path) -> Result<()> {
        for (file, tensors) in &self.shards {
            let path = folder.join(file);
            let create = || {
                let header = header_bytes(|name| self.naming.from_classic_name(name), tensors)?;
                fs::write(&path, &header)?;
                let len = header.len() as u64 + tensors.iter().map(TensorSpec::bytes).sum::<u64>();
                File::options().write(true).open(&path)?.set_len(len)
            };
            create().map_err(|e| Error::cannot_write(&path, e))?;
        }
        let Some(index) = self.index_json() else { return Ok(()) };
        let path = folder.join(SHARD_INDEX_FILE);
        reel_support::files::write_synced(&path, index.as_bytes()).map_err(|e| Error::cannot_write(&path, e))
    }
}

/// The header of a safetensors file of these tensors. `rename` gives each tensor its name in the file.
pub(super) fn header_bytes<D: FileDType>(
    rename: impl Fn(&str) -> String,
    tensors: &[TensorSpec<D>],
) -> io::Result<Vec<u8>> {
    let names: Vec<String> = tensors.iter().map(|t| rename(&t.name)).collect();
    let entries = names.iter().zip(tensors).map(|(name, t)| HeaderEntry {
        name,
        dtype: t.dtype.name_and_bytes().0,
        shape: &t.shape,
        bytes: t.bytes(),
    });
    let mut header = Vec::new();
    write_safetensors_header(&mut header, entries)?;
    Ok(header)
}

/// Splits the tensors, in order, into shards. A shard has at most `shard_bytes`, unless it is a single larger tensor.
fn cut<D: FileDType>(tensors: &[TensorSpec<D>], shard_bytes: u64) -> Vec<&[TensorSpec<D>]> {
    let mut shards = Vec::new();
    let (mut first, mut size) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > first && size + tensor.bytes() > shard_bytes {
            shards.push(&tensors[first..i]);
            (first, size) = (i, 0);
        }
        size += tensor.bytes();
    }
    shards.push(&tensors[first..]);
    shards
}
