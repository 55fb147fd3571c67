//! Writes one safetensors file: header, then the tensors without gaps, each aligned for its dtype.

use std::io::{self, Write};
use std::path::Path;

use reel_support::files::AtomicFile;
use serde_json::{Map, Value, json};

use crate::error::Result;

/// A tensor to write, with its elements in any dtype of the safetensors format.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    /// The name of the tensor in the file.
    pub name: &'a str,
    /// The name of the dtype in the safetensors format: `F32`, `I64`, `U8`, ….
    pub dtype: &'static str,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements, row-major, little-endian.
    pub bytes: &'a [u8],
}

/// The entry of one tensor in a safetensors header.
#[derive(Debug, Clone, Copy)]
pub struct HeaderEntry<'a> {
    /// The name of the tensor in the file.
    pub name: &'a str,
    /// The name of the dtype in the safetensors format.
    pub dtype: &'static str,
    /// The shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The size of the tensor's data, in bytes.
    pub bytes: u64,
}

/// Writes the length and the header for these tensors; the caller then writes their data in the same order. Pads the
/// header with spaces so that the data is aligned to 8 bytes.
pub fn write_safetensors_header<'a>(
    out: &mut impl Write,
    entries: impl IntoIterator<Item = HeaderEntry<'a>>,
) -> io::Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for HeaderEntry { name, dtype, shape, bytes } in entries {
        let begin = end;
        end += bytes;
        header.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
    }
    // `{text:<width$}` would fail: the header of a published model is longer than the largest width of std, 65 535.
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}

/// Writes tensors in host memory to one file, atomically.
///
/// # Errors
/// The file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[StoredTensor]) -> Result<()> {
    // Tensors with larger element types come first, so that every tensor is aligned for its dtype.
    let mut sorted: Vec<&StoredTensor> = tensors.iter().collect();
    let width = |tensor: &StoredTensor| tensor.bytes.len() / tensor.shape.iter().product::<usize>().max(1);
    sorted.sort_by_key(|tensor| std::cmp::Reverse(width(tensor)));
    let entries = sorted.iter().map(|t| HeaderEntry {
        name: t.name,
        dtype: t.dtype,
        shape: &t.shape,
        bytes: t.bytes.len() as u64,
    });
    let mut file = AtomicFile::create(path)?;
    let written = write_safetensors_header(&mut file, entries)
        .and_then(|()| sorted.iter().try_for_each(|t| file.write_all(t.bytes)));
    written.map_err(|e| file.write_error(e))?;
    file.commit()
}
