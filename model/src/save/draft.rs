//! Model folders that are made from another one: a folder with a temporary name, and copies of all files but weights.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use reel_support::diagnostic::{TemporaryPaths, create_temporary};

use super::hub_folder::{MAX_SHARD_BYTES, write_weights};
use super::weight_files::{FileDType, TensorSpec};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A folder that is written under a hidden temporary name next to its final path. If the `Draft` is dropped before the
/// folder gets its final name, the folder is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) path: PathBuf,
    _unfinished: TemporaryPaths,
}

impl Draft {
    /// Creates the folder for the final path `out`, which must not exist or be an empty folder.
    pub(crate) fn begin(out: &Path) -> Result<Draft> {
        let help = "use a folder that does not exist yet, or an empty one";
        let refuse = |what: &str| Err(Error::input(out.display().to_string(), what, help));
        let Some(name) = out.file_name() else { return refuse("does not end with the name of a folder") };
        match fs::read_dir(out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return refuse("is not empty"),
            Ok(false) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return refuse("is a file"),
            Err(e) => return Err(Error::cannot_read(out, e)),
        }
        let failed = |e| Error::cannot_write(out, e);
        out.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let path_of = |random: &str| out.with_file_name(format!(".{}.{random}.part", name.to_string_lossy()));
        let ((), path, unfinished) = create_temporary(path_of, |path| fs::create_dir(path)).map_err(failed)?;
        Ok(Draft { path, _unfinished: unfinished })
    }

    /// Writes the weights of `files` with the bytes that `bytes_of` returns for each tensor.
    ///
    /// # Errors
    /// An error of `bytes_of`; the folder cannot be written.
    pub(crate) fn write_weights<'a, D: FileDType>(
        &self,
        files: &Checkpoint,
        specs: &[TensorSpec<D>],
        bytes_of: impl Fn(&TensorSpec<D>) -> Result<Cow<'a, [u8]>>,
    ) -> Result<()> {
        // The error that made `fill` fail. It is returned in place of the write error that results from it.
        let mut wrong = None;
        let fill = |spec: &TensorSpec<D>, to: &mut dyn Write| match bytes_of(spec) {
            Ok(bytes) => to.write_all(&bytes),
            Err(e) => {
                let said = io::Error::other(e.to_string());
                wrong = Some(e);
                Err(said)
            }
        };
        write_weights(&self.path, files.tensor_naming(), specs, MAX_SHARD_BYTES, fill)
            .map_err(|e| wrong.take().unwrap_or(e))
    }

    /// Gives the folder its final name.
    pub(crate) fn publish(self, out: &Path) -> Result<()> {
        // If the target is an empty folder, renaming replaces it.
        fs::rename(&self.path, out).map_err(|e| Error::cannot_write(out, e))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` no folder has the temporary name, so removing fails; a destructor can only ignore errors.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Copies the files of a folder, except weights of any format, hidden files, and sub-folders.
pub(crate) fn copy_others(base: &Path, out: &Path) -> Result<()> {
    const WEIGHTS: [&str; 9] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx"];
    for entry in fs::read_dir(base).map_err(|e| Error::cannot_read(base, e))? {
        let path = entry.map_err(|e| Error::cannot_read(base, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights =
            path.extension().is_some_and(|e| WEIGHTS.iter().any(|w| e == *w)) || name.ends_with(".index.json");
        if weights || name.starts_with('.') || !path.is_file() {
            continue;
        }
        copy_into(&path, out)?;
    }
    Ok(())
}

/// Copies a file into a folder, under its own name.
pub(crate) fn copy_into(file: &Path, folder: &Path) -> Result<()> {
    let to = folder.join(file.file_name().unwrap_or_default());
    fs::copy(file, &to).map(drop).map_err(|e| Error::cannot_write(to, e))
}
