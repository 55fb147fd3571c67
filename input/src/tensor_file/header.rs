//! Reads and validates the header of a safetensors file: 8 bytes of length, a JSON header of that length, then the
//! tensors without gaps.

use std::path::Path;

use safetensors::{SafeTensorError, SafeTensors};

use crate::error::{InputError, Result};

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
    let broken =
        |what: String| InputError::tensor_file(path.display().to_string(), what, "copy or download the file again");
    if bytes.len() < 8 {
        return Err(broken(format!("is only {} bytes long, so it is not a safetensors file", bytes.len())));
    }
    if bytes.get(8).is_some_and(|&byte| byte != b'{') {
        let what = "has no header that begins with `{`; the file is not a safetensors file or is damaged";
        return Err(broken(what.to_string()));
    }
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| {
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
