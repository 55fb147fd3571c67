//! Reads input files, and writes output files that are complete or absent.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

use super::error::{InputError, failed};

/// The size limit of an input file in bytes.
const MAX_INPUT_BYTES: u64 = 4 << 30;

/// Reads a file that the user named. Refuses pipes and devices, which may never end, and files above 4 GiB.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let location = path.display();
    let cannot_read = |e: io::Error| {
        let (what, help) = match e.kind() {
            io::ErrorKind::NotFound => ("there is no such file or folder".to_string(), "check the path"),
            io::ErrorKind::PermissionDenied => ("permission denied".to_string(), "make it readable for this user"),
            _ => (e.to_string(), "check the file and the disk it is on"),
        };
        failed(&location, format!("cannot be read: {what}"), help)
    };
    let facts = fs::metadata(path).map_err(cannot_read)?;
    if facts.is_dir() {
        return Err(failed(&location, "is a folder, not a regular file", "give a file"));
    }
    if !facts.is_file() {
        return Err(failed(&location, "is not a regular file", "copy its content to a file"));
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(cannot_read)?;
    file.take(MAX_INPUT_BYTES + 1).read_to_end(&mut content).map_err(cannot_read)?;
    if content.len() as u64 > MAX_INPUT_BYTES {
        let what = format!("is above the limit of {MAX_INPUT_BYTES} bytes");
        return Err(failed(&location, what, "check that it is the file you mean"));
    }
    Ok(content)
}

/// Writes a file under a temporary name and renames it when it is complete. If the write fails, an existing file at
/// this path stays unchanged. A device or pipe is written directly.
pub fn write_file(to: &Path, bytes: &[u8]) -> Result<()> {
    write(to, bytes).map_err(|e| {
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let (what, help) = match (e.kind(), folder) {
            (io::ErrorKind::NotFound, Some(folder)) => {
                (format!("the folder {} does not exist", folder.display()), "create it, or choose another folder")
            }
            (io::ErrorKind::IsADirectory, _) => ("it is a folder".to_string(), "give the name of a file"),
            (io::ErrorKind::PermissionDenied, _) => {
                ("permission denied".to_string(), "choose a folder that this user may write")
            }
            (io::ErrorKind::StorageFull, _) => {
                ("the disk is full".to_string(), "free space on that disk, or choose another folder")
            }
            _ => (e.to_string(), "check the folder and the disk it is on"),
        };
        // The error of the system is kept, so that the caller recognises a closed pipe.
        anyhow::Error::from(e).context(InputError::new(to.display(), format!("cannot be written: {what}"), help))
    })
}

fn write(to: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(to).is_ok_and(|facts| !facts.is_file() && !facts.is_dir()) {
        return File::options().write(true).open(to)?.write_all(bytes);
    }
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = format!(".{}.", to.file_name().unwrap_or_default().to_string_lossy());
    // The mode of a new file before the process's umask is applied.
    let mode = Permissions::from_mode(0o666);
    let mut draft = tempfile::Builder::new().prefix(&prefix).suffix(".part").permissions(mode).tempfile_in(folder)?;
    draft.write_all(bytes)?;
    draft.as_file().sync_data()?;
    draft.persist(to).map_err(|e| e.error).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_without_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("x.bin");
        write_file(&to, b"before").unwrap();
        write_file(&to, b"after").unwrap();
        assert_eq!(read_file(&to).unwrap(), b"after");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_file(Path::new("/dev/null"), b"after").unwrap();
    }

    #[test]
    fn errors_are_one_line_with_a_help() {
        let e = write_file(Path::new("no/such/folder/x"), b"").unwrap_err().to_string();
        assert_eq!(
            e,
            "no/such/folder/x: cannot be written: the folder no/such/folder does not exist; create it, or choose another folder"
        );
        for (path, wanted) in [
            ("/dev/zero", "/dev/zero: is not a regular file; copy its content to a file"),
            ("/", "/: is a folder, not a regular file; give a file"),
            ("no/file", "no/file: cannot be read: there is no such file or folder; check the path"),
        ] {
            assert_eq!(read_file(Path::new(path)).unwrap_err().to_string(), wanted);
        }
    }
}
