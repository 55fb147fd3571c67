//! The weights of a model folder, memory-mapped: one safetensors file or shards, with classic or nested tensor names.
//!
//! [`Checkpoint::open`] validates every header ([`read_header`]): each tensor lies inside its file, has the size of its
//! shape and dtype, and overlaps no other tensor. [`Checkpoint::check`] compares all names and shapes with a config.

pub(crate) mod expected;
mod quantized;
mod shards;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use reel_device::MappedFile;
use reel_input::config::{Family, ModelConfig, WeightQuantization};
use reel_input::tensor_file::{HeaderTensor, StoredDType, read_header};
use reel_support::diagnostic::print_note_once;

use crate::error::{Error, Result};
use crate::tensor_parallel::RowShare;

pub use expected::expected_tensors;
pub(crate) use quantized::MatrixLayout;
pub use quantized::QuantizedWeight;
pub(crate) use quantized::{AWQ_POSITION, FP8_BLOCK};

/// The naming scheme of the tensors in weight files. The program itself uses classic names only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TensorNaming {
    /// Classic names: `model.layers…`, `visual.blocks…`, as on the hub.
    #[default]
    Classic,
    /// Nested names: `model.language_model.layers…`, `model.visual.blocks…`.
    Nested,
}

impl TensorNaming {
    /// Converts a tensor name in either naming scheme to the classic name, which the hub uses.
    pub fn to_classic_name(name: &str) -> String {
        if let Some(rest) = name.strip_prefix("model.language_model.") {
            return format!("model.{rest}");
        }
        name.strip_prefix("model.").filter(|rest| rest.starts_with("visual.")).unwrap_or(name).to_string()
    }

    /// Converts a classic name, which the hub uses, to this naming scheme.
    pub fn from_classic_name(self, name: &str) -> String {
        match (self, name.strip_prefix("model.")) {
            (TensorNaming::Classic, _) => name.to_string(),
            (TensorNaming::Nested, Some(rest)) => format!("model.language_model.{rest}"),
            (TensorNaming::Nested, None) if name.starts_with("visual.") => format!("model.{name}"),
            (TensorNaming::Nested, None) => name.to_string(),
        }
    }

    /// The naming scheme of the published folders of a model family.
    pub(crate) fn of_family(family: Family) -> Self {
        match family {
            Family::Qwen25Vl => TensorNaming::Classic,
            Family::Qwen3Vl => TensorNaming::Nested,
        }
    }

    /// The naming scheme of tensors or modules with these names.
    pub(crate) fn of(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let nested = |name: &str| name.starts_with("model.language_model.") || name.starts_with("model.visual.");
        match names.into_iter().any(|name| nested(name.as_ref())) {
            true => TensorNaming::Nested,
            false => TensorNaming::Classic,
        }
    }
}

/// A stored tensor in its memory-mapped file.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// The element type.
    pub dtype: StoredDType,
    /// The shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The elements, row-major, little-endian. They may begin at any address: the format pads no header.
    pub bytes: &'a [u8],
    /// The mapped file, which stays mapped even if the checkpoint is dropped.
    pub file: Arc<MappedFile>,
    /// The byte offset of the elements in the file.
    pub offset: usize,
}

impl TensorView<'_> {
    /// Restricts the elements to a share of the rows. `shape` remains the shape of the whole tensor.
    pub(crate) fn share_of_rows(self, share: RowShare) -> Self {
        let rows = self.shape.first().copied().unwrap_or(1).max(1);
        let (own, row_bytes) = (share.row_range(rows), self.bytes.len() / rows);
        let (begin, end) = (own.start * row_bytes, own.end * row_bytes);
        TensorView { bytes: &self.bytes[begin..end], offset: self.offset + begin, ..self }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    shard: usize,
    dtype: StoredDType,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// A tensor of a quantised weight, which may have any dtype of the safetensors format.
#[derive(Debug)]
struct PartEntry {
    shard: usize,
    dtype: String,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// The weights of a model folder.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<Arc<MappedFile>>,
    tensors: BTreeMap<String, Entry>,
    /// How linear layers are quantised, if they are, and the tensors that store them, by classic name.
    quantization: Option<WeightQuantization>,
    parts: BTreeMap<String, PartEntry>,
    naming: TensorNaming,
    is_copied: bool,
}

pub(crate) const EMBEDDINGS: &str = "model.embed_tokens.weight";
pub(crate) const LM_HEAD: &str = "lm_head.weight";
const COPY_AGAIN: &str = "copy or download the file again";

impl Checkpoint {
    /// Maps and validates the weight files of a folder: the shards of `model.safetensors.index.json`, or
    /// `model.safetensors`, or all `*.safetensors` files.
    pub fn open(folder: &Path) -> Result<Self> {
        let listing = shards::find_weight_files(folder)?;
        let mut checkpoint = Self {
            folder: folder.to_path_buf(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            quantization: WeightQuantization::open(folder)?,
            parts: BTreeMap::new(),
            naming: TensorNaming::Classic,
            is_copied: false,
        };
        for path in &listing.files {
            checkpoint.add_shard(path)?;
        }
        checkpoint.check_index(&listing)?;
        Ok(checkpoint)
    }

    /// Sets whether weights are copied to the device's own memory even if the device could read them in the mapped
    /// file. On a CPU the copies lie on large pages, and linear layers that are not trained may have copies in a
    /// layout for inference only ([`reel_runtime::ops::PackedWeight`]): decoding reads such copies faster than the
    /// pages of a mapped file. The embedding table stays in its file, unless it is also the weight of the output
    /// layer in its plain layout.
    pub fn with_copied_weights(self, is_copied: bool) -> Self {
        Self { is_copied, ..self }
    }

    pub(crate) fn is_copied(&self) -> bool {
        self.is_copied
    }

    /// The total size of all weight files in bytes.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.as_bytes().len() as u64).sum()
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path).map_err(|e| Error::cannot_read(path, e))?;
        let tensors = read_header(path, file.as_bytes())?;
        if TensorNaming::of(tensors.iter().map(|t| &t.name)) == TensorNaming::Nested {
            self.naming = TensorNaming::Nested;
        }
        let shard = self.shards.len();
        for tensor in tensors {
            let name = TensorNaming::to_classic_name(&tensor.name);
            if is_harmless(&name) {
                continue;
            }
            let duplicate = |other: usize| {
                let first = self.shards.get(other).map_or(path, |file| file.path());
                let what = format!("is also in {}", first.display());
                Err(fault(path, &tensor.name, what, "remove the weight file that does not belong to this model"))
            };
            let HeaderTensor { begin, end, .. } = tensor;
            if self.is_part(&name, &tensor.dtype) {
                let entry = PartEntry { shard, dtype: tensor.dtype, shape: tensor.shape, begin, end };
                match self.parts.insert(name, entry) {
                    Some(other) => return duplicate(other.shard),
                    None => continue,
                }
            }
            let Some(dtype) = StoredDType::from_safetensors_name(&tensor.dtype) else {
                let what = format!("is stored as {}; only F32, BF16 and F16 are supported", tensor.dtype);
                let help =
                    "use the unquantised model, or the config.json with the quantization_config of these weights";
                return Err(fault(path, &tensor.name, what, help));
            };
            let entry = Entry { shard, dtype, shape: tensor.shape, begin, end };
            if let Some(other) = self.tensors.insert(name, entry) {
                return duplicate(other.shard);
            }
        }
        self.shards.push(file);
        Ok(())
    }

    /// Gives the tensor `from` a second name.
    pub(crate) fn copy_entry(&mut self, from: &str, to: &str) {
        self.tensors.extend(self.tensors.get(from).cloned().map(|entry| (to.to_string(), entry)));
    }

    /// Adds tensors of another file. They replace tensors of the same classic names.
    pub(crate) fn replace_tensors<'a>(
        &mut self,
        file: &Arc<MappedFile>,
        tensors: impl IntoIterator<Item = (String, StoredDType, &'a HeaderTensor)>,
    ) {
        let shard = self.shards.len();
        let entry = |(name, dtype, &HeaderTensor { ref shape, begin, end, .. })| {
            (name, Entry { shard, dtype, shape: shape.clone(), begin, end })
        };
        self.tensors.extend(tensors.into_iter().map(entry));
        self.shards.push(file.clone());
    }

    fn check_index(&self, listing: &shards::WeightFilePaths) -> Result<()> {
        for (name, file) in &listing.indexed_tensors {
            let classic = TensorNaming::to_classic_name(name);
            if is_harmless(&classic) {
                continue;
            }
            let at = |shard: usize| self.shards[shard].path() == file.as_path();
            let plain = self.tensors.get(&classic).map(|entry| entry.shard);
            if !plain.or_else(|| Some(self.parts.get(&classic)?.shard)).is_some_and(at) {
                let what = "is not in this file, although model.safetensors.index.json lists it there";
                return Err(fault(file, name, what, "copy or download the folder again"));
            }
        }
        Ok(())
    }

    /// The naming scheme of the files.
    pub fn tensor_naming(&self) -> TensorNaming {
        self.naming
    }

    /// The mapped weight files.
    pub fn mapped_files(&self) -> &[Arc<MappedFile>] {
        &self.shards
    }

    /// The classic names (as on the hub) of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor with this classic name (as on the hub), if it exists.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let entry = self.tensors.get(name)?;
        let file = self.shards.get(entry.shard)?;
        let bytes = file.as_bytes().get(entry.begin..entry.end)?;
        Some(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes, file: file.clone(), offset: entry.begin })
    }

    /// The tensor with this classic name (as on the hub); fails unless it exists and has this shape.
    pub fn tensor_with_shape(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let stored = self.naming.from_classic_name(name);
        let Some(view) = self.tensor(name) else {
            if self.quantized_names().any(|quantized| quantized == name) {
                let what = "is quantised, so it cannot be trained or replaced";
                let help = "train a LoRA adapter (--lora-r), or use the folder that `reel dequantize` writes";
                return Err(fault(&self.folder, &stored, what, help));
            }
            let what = format!("is missing; expected shape {shape:?}");
            return Err(fault(&self.folder, &stored, what, "use the weights that belong to this config.json"));
        };
        if view.shape != shape {
            let what = format!("has shape {:?}, but config.json requires {shape:?}", view.shape);
            return Err(fault(view.file.path(), &stored, what, "use the weights that belong to this config.json"));
        }
        Ok(view)
    }

    /// Checks the files against a config: every tensor of the model must exist with its shape, and there must be no
    /// other tensor. With tied embeddings there may be an output layer, which is not used; a note names the layer if it
    /// differs from the embedding table.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let is_tied = config.tie_word_embeddings;
        let expected = expected_tensors(config);
        self.check_quantized(&expected)?;
        let quantized: BTreeSet<String> = self.quantized_names().collect();
        let is_harmless =
            |name: &str| (is_tied && name == LM_HEAD) || quantized.contains(name) || self.is_unused_bias(name);
        self.check_tensor_list(&expected, is_harmless)?;
        if let (true, Some(head), Some(table)) = (is_tied, self.tensor(LM_HEAD), self.tensor(EMBEDDINGS))
            && (head.dtype, head.bytes) != (table.dtype, table.bytes)
        {
            let file = head.file.path().display();
            print_note_once(format!(
                "{file}: {LM_HEAD} is not used, although it differs from the embedding table: config.json has \
                 tie_word_embeddings = true"
            ));
        }
        Ok(())
    }

    /// The classic names and shapes of all weights, sorted by name, quantised ones included; with the output layer, if
    /// the files have one.
    pub(crate) fn weights(&self, config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let untied = ModelConfig { tie_word_embeddings: !self.tensors.contains_key(LM_HEAD), ..config.clone() };
        let mut weights = expected_tensors(&untied);
        weights.sort();
        weights
    }

    /// Checks that every weight is finite. Training with a NaN weight would give a NaN loss in the first step,
    /// without a hint at the cause.
    ///
    /// # Errors
    /// The first tensor, by name, with a value that is NaN or infinite.
    pub fn check_values(&self) -> Result<()> {
        for name in self.tensors.keys() {
            let Some(view) = self.tensor(name) else { continue };
            if let Some(index) = first_non_finite(&view) {
                let at: String = index_in_shape(index, view.shape).iter().map(|i| format!("[{i}]")).collect();
                let what = format!("has a value that is NaN or infinite, at {at}");
                let help = "copy or download the weights again, or train from a model without such values";
                return Err(fault(view.file.path(), &self.naming.from_classic_name(name), what, help));
            }
        }
        Ok(())
    }

    /// Checks the files against a list of names and shapes. A tensor for which `optional` returns true may be
    /// missing, or may exist although it is not in the list.
    pub(crate) fn check_tensor_list(
        &self,
        expected: &[(String, Vec<usize>)],
        optional: impl Fn(&str) -> bool,
    ) -> Result<()> {
        for (name, shape) in expected.iter().filter(|(name, _)| !optional(name) || self.tensors.contains_key(name)) {
            self.tensor_with_shape(name, shape)?;
        }
        let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let strangers: Vec<&str> =
            self.tensor_names().filter(|name| !known.contains(name) && !optional(name)).collect();
        let Some(first) = strangers.first() else { return Ok(()) };
        let shown: Vec<String> = strangers.iter().take(5).map(|name| self.naming.from_classic_name(name)).collect();
        let more = if strangers.len() > 5 { format!(" and {} more", strangers.len() - 5) } else { String::new() };
        let file = self.tensor(first).map_or_else(|| self.folder.clone(), |view| view.file.path().to_path_buf());
        let what = format!("has tensors that the model of config.json does not have: {}{more}", shown.join(", "));
        Err(Error::failed(file.display().to_string(), what, "use the weights that belong to this config.json"))
    }
}

/// Converts an index in row-major order to the index in each dimension.
fn index_in_shape(index: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = index;
    let mut indices: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let own = rest % size.max(1);
            rest /= size.max(1);
            own
        })
        .collect();
    indices.reverse();
    indices
}

/// The index of the first NaN or infinite element of a stored tensor.
fn first_non_finite(view: &TensorView) -> Option<usize> {
    // In all three formats a value is NaN or infinite if all bits of its exponent are set.
    let f16s = |mask: u16| {
        let is_bad = |b: &[u8; 2]| u16::from_le_bytes(*b) & mask == mask;
        first_position(view.bytes.as_chunks::<2>().0, is_bad)
    };
    match view.dtype {
        StoredDType::Bf16 => f16s(0x7f80),
        StoredDType::F16 => f16s(0x7c00),
        StoredDType::F32 => {
            let is_bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000;
            first_position(view.bytes.as_chunks::<4>().0, is_bad)
        }
    }
}

/// The index of the first value for which `is_bad` returns true. Whole blocks are examined without a branch for each
/// value, so that the compiler vectorises them.
fn first_position<T: Sync>(values: &[T], is_bad: impl Fn(&T) -> bool + Sync) -> Option<usize> {
    const BLOCK: usize = 1 << 16;
    let has_bad = |block: &[T]| block.iter().fold(false, |any, value| any | is_bad(value));
    let begin = values.par_chunks(BLOCK).position_first(has_bad)? * BLOCK;
    values[begin..].iter().position(is_bad).map(|index| begin + index)
}

/// Whether a weight file may have this tensor although the model has no such weight. Old versions of transformers
/// stored these tensors, and the program computes their values itself.
fn is_harmless(name: &str) -> bool {
    ["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "embeddings.position_ids"].iter().any(|end| name.ends_with(end))
}

fn fault(file: &Path, tensor: &str, what: impl Into<String>, help: &str) -> Error {
    Error::failed(format!("{}: {tensor}", file.display()), what, help)
}
