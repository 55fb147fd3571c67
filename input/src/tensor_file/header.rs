//! Reads and validates the header of a safetensors file: 8 bytes of length, a JSON header of that length, then the
//! tensors without gaps.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{InputError, Result};

const COPY_AGAIN: &str = "copy or download the file again";

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

/// The header of a safetensors file.
#[derive(Debug)]
pub struct SafetensorsHeader {
    /// All tensors in file order.
    pub tensors: Vec<HeaderTensor>,
}

/// The longest header that the format allows, in bytes.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Reads and validates the header of the file `path`, whose content is `bytes`: each tensor lies inside the file, has
/// the size of its shape and dtype, and overlaps no other tensor.
///
/// # Errors
/// The file is not a safetensors file, or is damaged.
pub fn read_header(path: &Path, bytes: &[u8]) -> Result<SafetensorsHeader> {
    let text = header_text(path, bytes)?;
    let raw: RawHeader =
        serde_json::from_slice(text).map_err(|e| broken(path, format!("has a header that is not valid JSON ({e})")))?;
    let start = 8 + text.len();
    let mut tensors = Vec::with_capacity(raw.0.len());
    for (name, entry) in raw.0 {
        tensors.push(locate(path, name, entry, start, bytes.len())?);
    }
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
    check_end_to_end(path, &tensors, start, bytes.len())?;
    check_names(path, &tensors)?;
    Ok(SafetensorsHeader { tensors })
}

fn header_text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(broken(path, format!("is only {} bytes long, so it is not a safetensors file", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err(broken(
            path,
            format!(
                "claims a header of {length} bytes, more than the {MAX_HEADER_BYTES} that the format allows; the file is not a safetensors file or is damaged"
            ),
        ));
    }
    match rest.get(..length as usize) {
        Some(text) if text.first() == Some(&b'{') => Ok(text),
        Some(_) => {
            Err(broken(path, "has no header that begins with `{`; the file is not a safetensors file or is damaged"))
        }
        None => Err(broken(
            path,
            format!("claims a header of {length} bytes, but only {} bytes follow; the file is cut off", rest.len()),
        )),
    }
}

/// Converts one header entry to file offsets and checks this entry alone; [`check_end_to_end`] compares all entries.
fn locate(path: &Path, name: String, entry: RawEntry, start: usize, file_len: usize) -> Result<HeaderTensor> {
    let [from, to] = entry.data_offsets;
    let (begin, end) = match (start.checked_add(from), start.checked_add(to)) {
        (Some(begin), Some(end)) if from <= to => (begin, end),
        _ => {
            return Err(fault(
                path,
                &name,
                format!("has data_offsets [{from}, {to}], which end before they begin"),
                COPY_AGAIN,
            ));
        }
    };
    if end > file_len {
        let what = format!("ends at byte {end}, but the file has {file_len} bytes; the file is cut off");
        return Err(fault(path, &name, what, COPY_AGAIN));
    }
    // A tensor of unknown dtype is accepted here and refused only when it is used.
    if let Some(size) = element_size(&entry.dtype) {
        let needed = entry.shape.iter().try_fold(size, |product, &length| product.checked_mul(length));
        if needed != Some(end - begin) {
            let what = format!(
                "has {} bytes, which does not match shape {:?} and dtype {}",
                end - begin,
                entry.shape,
                entry.dtype
            );
            return Err(fault(path, &name, what, COPY_AGAIN));
        }
    }
    Ok(HeaderTensor { name, dtype: entry.dtype, shape: entry.shape, begin, end })
}

/// Checks that the tensors fill the file from the header to the end, without overlaps and gaps.
fn check_end_to_end(path: &Path, tensors: &[HeaderTensor], start: usize, file_len: usize) -> Result<()> {
    let mut at = start;
    for tensor in tensors {
        if tensor.begin < at {
            return Err(fault(path, &tensor.name, "has data_offsets that overlap the previous tensor", COPY_AGAIN));
        }
        if tensor.begin > at {
            let what =
                format!("has data_offsets that leave a gap of {} bytes after the previous tensor", tensor.begin - at);
            return Err(fault(path, &tensor.name, what, COPY_AGAIN));
        }
        at = tensor.end;
    }
    if at != file_len {
        return Err(broken(path, format!("has {} bytes after its last tensor", file_len - at)));
    }
    Ok(())
}

fn check_names(path: &Path, tensors: &[HeaderTensor]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(fault(path, pair[0], "is in the header twice", COPY_AGAIN)),
        None => Ok(()),
    }
}

/// The size in bytes of an element of this dtype; `None` if the dtype is unknown, or its elements are smaller than a
/// byte.
fn element_size(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

fn fault(path: &Path, tensor: &str, what: impl Into<String>, help: &str) -> InputError {
    InputError::tensor_file(format!("{}: {tensor}", path.display()), what, help)
}

fn broken(path: &Path, what: impl Into<String>) -> InputError {
    InputError::tensor_file(path.display().to_string(), what, COPY_AGAIN)
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in file order, without `__metadata__`. They are kept in a list because a map would hide
/// duplicate names.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map.next_value()?;
                        entries.push((name, entry));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
