//! Reads and validates the header of a safetensors file: 8 bytes of length, a JSON header of that length, then the
//! tensors without gaps.

use std::path::Path;

use reel_support::diagnostic::input::{self, SIGNATURE_BYTES};
use safetensors::tensor::TensorInfo;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A tensor as the header describes it.
#[derive(Debug)]
pub struct HeaderTensor {
    /// The name of the tensor in the file.
    pub name: String,
    /// The name of the dtype in the safetensors format: `F32`, `I64`, `U8`, ….
    pub dtype: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The byte offset of the first element from the start of the file.
    pub begin: usize,
    /// The byte offset after the last element from the start of the file.
    pub end: usize,
}

/// Reads and validates the header of the file `path`, whose content is `bytes`: each tensor lies inside the file, has
/// the size of its shape and dtype, and overlaps no other tensor. Returns all tensors in file order.
///
/// # Errors
/// The file is not a safetensors file, or is damaged.
pub fn read_header(path: &Path, bytes: &[u8]) -> Result<Vec<HeaderTensor>> {
    const COPY_AGAIN: &str = "copy or download the file again";
    let broken = |what: String| Error::input(path.display().to_string(), what, COPY_AGAIN);
    if bytes.get(8) != Some(&b'{')
        && let Some(other) = input::recognise(&bytes[..bytes.len().min(SIGNATURE_BYTES)])
    {
        return Err(Error::cannot_read(path, std::io::Error::from(other)));
    }
    if bytes.len() < 8 {
        return Err(broken(format!("is only {} bytes long, so it is not a safetensors file", bytes.len())));
    }
    if bytes.get(8).is_some_and(|&byte| byte != b'{') {
        let what = "has no header that begins with `{`; the file is not a safetensors file or is damaged";
        return Err(broken(what.to_string()));
    }
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| {
        if let Some((name, what)) = damaged_entry(bytes) {
            return Error::input(format!("{}: {name}", path.display()), what, COPY_AGAIN);
        }
        let what = match e {
            SafeTensorError::InvalidHeaderLength => "has a header that ends after the file; the file is cut off",
            SafeTensorError::MetadataIncompleteBuffer => "is cut off, or has bytes after its last tensor",
            _ => "has a damaged header",
        };
        broken(format!("{what} ({e})"))
    })?;
    let start = 8 + header_bytes;
    let tensors = metadata.offset_keys().into_iter().filter_map(|name| {
        let info = metadata.info(&name)?;
        let (begin, end) = (start + info.data_offsets.0, start + info.data_offsets.1);
        Some(HeaderTensor { dtype: info.dtype.to_string(), shape: info.shape.clone(), name, begin, end })
    });
    Ok(tensors.collect())
}

/// The first tensor whose entry in the header is damaged, and what is wrong with it. The crate safetensors names no
/// tensor in its errors about dtypes and sizes.
fn damaged_entry(bytes: &[u8]) -> Option<(String, String)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let text = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let entries: Map<String, Value> = serde_json::from_slice(text).ok()?;
    entries.into_iter().filter(|(name, _)| name != "__metadata__").find_map(|(name, entry)| {
        let what = match serde_json::from_value::<TensorInfo>(entry) {
            Ok(TensorInfo { dtype, shape, data_offsets: (begin, end) }) => {
                let elements = shape.iter().try_fold(1, |n: usize, &length| n.checked_mul(length));
                let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
                let fits = end.checked_sub(begin).and_then(|n| n.checked_mul(8)) == bits && bits.is_some();
                (!fits).then(|| {
                    format!("has data_offsets [{begin}, {end}], which do not fit its shape {shape:?} and dtype {dtype}")
                })?
            }
            Err(e) => format!("has a damaged entry in the header ({e})"),
        };
        Some((name, what))
    })
}
