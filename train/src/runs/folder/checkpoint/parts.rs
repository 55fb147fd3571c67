//! Writes byte ranges of a file that is created with its full length. Each rank writes its own byte ranges at their
//! offsets.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use crate::Result;
use crate::tensor_bytes::tensor_byte_parts;
use reel_input::tensor_file::StoredDType;
use reel_model::checkpoint::Checkpoint;
use reel_model::save::{TensorSpec, TensorWriter};
use reel_model::widen::widen_to_f32;
use reel_runtime::Tensor;

/// Tests whether `bytes` bytes can be allocated. Without this test a failed allocation would end the process.
pub(super) fn has_memory_for(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// The bytes of a tensor without padding: either a copy, or the tensor from which they are read later.
#[derive(Debug)]
pub(super) enum TensorBytes {
    /// A copy of the bytes.
    Copy(Vec<u8>),
    /// A tensor. Its bytes are read when the checkpoint is written.
    Tensor(Tensor),
}

impl TensorBytes {
    /// Copies the bytes of `t`. Returns `None` if `has_memory_for` returns false.
    pub fn copy(t: &Tensor, has_memory_for: &dyn Fn(usize) -> bool) -> Result<Option<Self>> {
        // Copying a padded tensor takes more memory, because the tensor is read with its padding first.
        let padded = if t.bytes() == t.unpadded_bytes() { 0 } else { t.bytes() };
        match has_memory_for(t.unpadded_bytes().saturating_add(padded)) {
            true => Ok(Some(Self::Copy(t.read_unpadded_bytes()?))),
            false => Ok(None),
        }
    }

    /// Number of bytes without padding.
    pub fn len(&self) -> usize {
        match self {
            Self::Copy(bytes) => bytes.len(),
            Self::Tensor(t) => t.unpadded_bytes(),
        }
    }

    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Copy(bytes) => to.write_all(bytes),
            Self::Tensor(t) => tensor_byte_parts(t).try_for_each(|part| to.write_all(&part.map_err(io::Error::other)?)),
        }
    }
}

/// A range of bytes of a file: its contents, and its position.
pub(super) struct FilePart<'a> {
    /// The position of the first byte of the part in the file.
    pub offset: u64,
    /// The number of bytes.
    pub bytes: u64,
    pub contents: PartContents<'a>,
}

/// The contents of a part of a file.
pub(super) enum PartContents<'a> {
    /// A trained weight or optimizer state.
    Held(&'a TensorBytes),
    /// A weight that is not trained, read from the files of the model from which the run started.
    Original(&'a Checkpoint, &'a TensorSpec),
}

/// Writes byte ranges of an existing file, in the order of their positions, and flushes them to the disk.
///
/// # Errors
/// The file cannot be written; a part has another number of bytes than it states.
pub(super) fn write_parts<'a>(path: &Path, parts: impl IntoIterator<Item = FilePart<'a>>) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::options().write(true).open(path)?);
    let mut position = 0;
    for FilePart { offset, bytes, contents } in parts {
        if position != offset {
            file.seek(SeekFrom::Start(offset))?;
        }
        let mut to = TensorWriter::new(&mut file, bytes);
        match contents {
            PartContents::Held(held) => held.write(&mut to)?,
            PartContents::Original(files, spec) => write_untrained(files, spec, &mut to)?,
        }
        to.check()?;
        position = offset + bytes;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Writes a weight that is not trained: copies it from the original weight file, converted to the dtype of the new
/// folder.
fn write_untrained(files: &Checkpoint, spec: &TensorSpec, to: &mut dyn Write) -> io::Result<()> {
    let missing = || io::Error::other(format!("{} is no longer in the model's files", spec.name));
    let view = files.tensor(&spec.name).ok_or_else(missing)?;
    if view.dtype == spec.dtype {
        return to.write_all(view.bytes);
    }
    let wide = widen_to_f32(view.dtype, view.bytes).ok_or_else(missing)?;
    match spec.dtype {
        StoredDType::Bf16 => {
            to.write_all(bytemuck::cast_slice(&wide.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()))
        }
        _ => to.write_all(bytemuck::cast_slice(&wide)),
    }
}
