//! Unpacks the archives of a data set (`x.zip`, `x.tar`, `x.tar.gz` and `x.tgz`) into the folder that contains them,
//! like the scripts of VideoRFT and Video-R1.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path, PathBuf};

use crate::diagnostic::{catch_panic, note};
use crate::error::{Error, Result};
use crate::files::{AtomicFile, FinishedFile};
use flate2::read::MultiGzDecoder;

/// The maximum number of files in an archive.
const MAX_FILES: usize = 10_000_000;

/// The numbers of files and bytes after which the file system is synced and the written files get their final names.
/// An interrupted unpacking repeats at most this many files or bytes.
const MAX_UNNAMED_FILES: usize = 4096;
const MAX_UNNAMED_BYTES: u64 = 1 << 30;

/// Tells by a file's name whether the file is an archive.
pub(crate) fn is_archive(path: &str) -> bool {
    unpacker_of(path).is_some()
}

/// Unpacks an archive. Existing files whose size equals the size in the archive are kept, so an interrupted unpacking
/// can continue.
///
/// # Errors
/// The archive is damaged, contains a file outside its folder, or needs more space than the disk has.
pub(crate) fn unpack(path: &Path) -> Result<()> {
    let Some(unpack) = unpacker_of(&path.to_string_lossy()) else { return Ok(()) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = File::open(path).map_err(|e| Error::cannot_read(path, &e))?;
    let unpacked = catch_panic(|| {
        let mut unpacker = Unpacker { archive: path, folder, files: 0, links: 0, unnamed: BTreeMap::new(), bytes: 0 };
        unpack(file, &mut unpacker)?;
        unpacker.name_files()
    });
    unpacked.unwrap_or_else(|panic| Err(damaged(path, format!("is damaged ({panic})"))))
}

/// Returns the function that unpacks an archive of this name.
fn unpacker_of(path: &str) -> Option<fn(File, &mut Unpacker) -> Result<()>> {
    let path = path.to_ascii_lowercase();
    match () {
        () if path.ends_with(".zip") => Some(unpack_zip),
        () if path.ends_with(".tar") => Some(unpack_tar),
        () if path.ends_with(".tar.gz") || path.ends_with(".tgz") => Some(unpack_tar_gz),
        () => None,
    }
}

/// Writes the files of one archive.
struct Unpacker<'a> {
    archive: &'a Path,
    folder: &'a Path,
    files: usize,
    /// The number of links, devices and other entries that are neither files nor folders. They are not unpacked.
    links: usize,
    /// Complete files by their final path. They have a temporary name until the file system is synced.
    unnamed: BTreeMap<PathBuf, FinishedFile>,
    /// The total size in bytes of the files in `unnamed`.
    bytes: u64,
}

impl Unpacker<'_> {
    /// Syncs the file system, then gives the files written so far their final names. Syncing the file system once
    /// takes much less time than syncing each of many small files.
    fn name_files(&mut self) -> Result<()> {
        if self.unnamed.is_empty() {
            return Ok(());
        }
        let synced = File::open(self.folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
        synced.map_err(|e| Error::cannot_write(self.folder, &e))?;
        self.bytes = 0;
        std::mem::take(&mut self.unnamed).into_values().try_for_each(FinishedFile::rename_to_final_name)
    }

    /// Returns the path to which the file `name` of the archive is written.
    fn target(&self, name: &Path) -> Result<PathBuf> {
        let parts = name.components().filter(|part| *part != Component::CurDir);
        let parts: Vec<Component> = parts.collect();
        let is_safe = !parts.is_empty() && parts.iter().all(|part| matches!(part, Component::Normal(_)));
        let has_links = |target: &Path| {
            let below = target.ancestors().take_while(|path| *path != self.folder);
            below.into_iter().any(|path| path.symlink_metadata().is_ok_and(|found| found.is_symlink()))
        };
        let target = self.folder.join(parts.iter().collect::<PathBuf>());
        match is_safe && !has_links(&target) {
            true => Ok(target),
            false => {
                let what = format!("has the file \"{}\", which is outside the archive's folder", name.display());
                Err(damaged(self.archive, crate::diagnostic::one_line(&what).to_string()))
            }
        }
    }

    fn folder(&self, name: &Path) -> Result<()> {
        // The entry of the archive's own folder may be named `./`.
        if name.components().all(|part| part == Component::CurDir) {
            return Ok(());
        }
        let target = self.target(name)?;
        fs::create_dir_all(&target).map_err(|e| Error::cannot_write(&target, &e))
    }

    fn file(&mut self, name: &Path, bytes: u64, content: &mut dyn Read) -> Result<()> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(damaged(self.archive, format!("has more than {MAX_FILES} files")));
        }
        let target = self.target(name)?;
        if target == self.archive {
            return Err(damaged(self.archive, "has a file with the archive's own name"));
        }
        if self.unnamed.contains_key(&target) {
            // The archive contains the file twice.
            self.name_files()?;
        }
        if fs::metadata(&target).is_ok_and(|found| found.is_file() && found.len() == bytes) {
            return Ok(());
        }
        let parent = target.parent().unwrap_or(self.folder);
        fs::create_dir_all(parent).map_err(|e| Error::cannot_write(parent, &e))?;
        let mut out = AtomicFile::create(&target)?;
        // One more byte is read than the archive states, to detect an entry that is too long.
        let written = io::copy(&mut content.take(bytes.saturating_add(1)), &mut out);
        match written {
            Ok(written) if written == bytes => {
                self.unnamed.insert(target, out.close_without_sync()?);
                self.bytes += bytes;
            }
            Ok(_) => {
                let what = format!("is damaged: {} does not have its stated size", name.display());
                return Err(damaged(self.archive, what));
            }
            Err(e) if crate::diagnostic::disk_full_help(e.kind()).is_some() => {
                return Err(Error::cannot_write(&target, &e));
            }
            Err(e) => return Err(damaged(self.archive, format!("is damaged at {} ({e})", name.display()))),
        }
        match self.unnamed.len() >= MAX_UNNAMED_FILES || self.bytes >= MAX_UNNAMED_BYTES {
            true => self.name_files(),
            false => Ok(()),
        }
    }

    fn tell_links(&self) {
        if self.links > 0 {
            let (archive, links) = (self.archive.display(), self.links);
            note!("{archive}: {links} entries that are neither files nor folders were left out");
        }
    }
}

fn damaged(archive: &Path, what: impl Into<String>) -> Error {
    let help = "remove the archive and run the command again, or unpack it by hand";
    Error::failed(archive.display().to_string(), what, help)
}

fn unpack_zip(file: File, to: &mut Unpacker) -> Result<()> {
    let archive = to.archive;
    let broken = |e: &dyn std::fmt::Display| damaged(archive, format!("is not a ZIP archive that can be read ({e})"));
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| broken(&e))?;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| broken(&e))?;
        // The name is used as it is in the archive. An unsafe name is an error and is not repaired.
        let name = PathBuf::from(entry.name().map_err(|e| broken(&e))?.into_owned());
        let bytes = entry.size();
        match () {
            () if entry.is_dir() => to.folder(&name)?,
            () if entry.is_file() => to.file(&name, bytes, &mut entry)?,
            () => to.links += 1,
        }
    }
    to.tell_links();
    Ok(())
}

fn unpack_tar_gz(file: File, to: &mut Unpacker) -> Result<()> {
    read_tar(MultiGzDecoder::new(BufReader::new(file)), to)
}

fn unpack_tar(mut file: File, to: &mut Unpacker) -> Result<()> {
    // Some data sets use the name `.tar` for a compressed archive.
    let mut magic = [0; 2];
    let read = file.read(&mut magic).and_then(|n| file.rewind().map(|()| n));
    match read.map_err(|e| Error::cannot_read(to.archive, &e))? {
        2 if magic == [0x1f, 0x8b] => unpack_tar_gz(file, to),
        _ => read_tar(BufReader::new(file), to),
    }
}

fn read_tar(from: impl Read, to: &mut Unpacker) -> Result<()> {
    let archive = to.archive;
    let broken = |e: io::Error| damaged(archive, format!("is not a tar archive that can be read ({e})"));
    let mut tar = tar::Archive::new(from);
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        let bytes = entry.size();
        match entry.header().entry_type() {
            tar::EntryType::Directory => to.folder(&name)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => to.file(&name, bytes, &mut entry)?,
            tar::EntryType::XGlobalHeader => {}
            _ => to.links += 1,
        }
    }
    to.tell_links();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, content) in files {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            // `set_path` rejects names that leave the folder, so the test writes the name directly.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gz_of(bytes: &[u8]) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn unpacked(name: &str, archive: &[u8]) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("below");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), archive).unwrap();
        let result = unpack(&folder.join(name));
        (dir, result)
    }

    const FILES: [(&str, &[u8]); 3] = [("a.mp4", b"frames"), ("b/c.png", b""), ("./b/d.txt", b"text")];

    #[test]
    fn archives_of_all_kinds_are_unpacked_beside_themselves() {
        for (name, archive) in [
            ("x.zip", zip_of(&FILES)),
            ("x.tar", tar_of(&FILES)),
            ("X.TAR", gz_of(&tar_of(&FILES))),
            ("x.tar.gz", gz_of(&tar_of(&FILES))),
            ("x.tgz", gz_of(&tar_of(&FILES))),
        ] {
            let (dir, result) = unpacked(name, &archive);
            result.unwrap();
            for (file, content) in FILES {
                assert_eq!(fs::read(dir.path().join("below").join(file)).unwrap(), content, "{name}: {file}");
            }
            // The second call finds all files unpacked.
            unpack(&dir.path().join("below").join(name)).unwrap();
        }
    }

    /// The archive has more files than one sync handles, and contains the file `a.mp4` twice, with different sizes.
    #[test]
    fn archives_of_many_files_are_unpacked_whole() {
        let names: Vec<String> = (0..MAX_UNNAMED_FILES + 10).map(|i| format!("{}/{i}.txt", i % 7)).collect();
        let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, name.as_bytes())).collect();
        files.insert(0, ("a.mp4", b"first"));
        files.push(("a.mp4", b"second"));
        let (dir, result) = unpacked("x.tar", &tar_of(&files));
        result.unwrap();
        let folder = dir.path().join("below");
        for name in &names {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), *name);
        }
        assert_eq!(fs::read(folder.join("a.mp4")).unwrap(), b"second");
        let files_in = |folder: &Path| fs::read_dir(folder).unwrap().count();
        // No other files are left. An archive that is damaged at its end leaves no temporary file.
        assert_eq!((0..7).map(|i| files_in(&folder.join(i.to_string()))).sum::<usize>(), names.len());
        let mut archive = tar_of(&FILES);
        archive.truncate(archive.len() - 1200);
        let (dir, result) = unpacked("x.tar", &archive);
        assert!(result.is_err());
        assert!(
            fs::read_dir(dir.path().join("below"))
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".part") })
        );
    }

    #[test]
    fn files_outside_the_folder_are_refused() {
        for name in ["../x", "/tmp/x", "a/../../x"] {
            for (file, archive) in [("x.zip", zip_of(&[(name, b"bad")])), ("x.tar", tar_of(&[(name, b"bad")]))] {
                let (dir, result) = unpacked(file, &archive);
                let error = result.unwrap_err().to_string();
                assert!(error.contains("outside the archive's folder") && !error.contains('\n'), "{error}");
                assert!(!dir.path().join("x").exists());
            }
        }
    }

    #[test]
    fn files_are_not_written_through_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("below/link")).unwrap();
        let archive = dir.path().join("below/x.zip");
        fs::write(&archive, zip_of(&[("link/x", b"bad")])).unwrap();
        assert!(unpack(&archive).unwrap_err().to_string().contains("outside"));
        assert!(!dir.path().join("x").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn damaged_archives_end_with_one_line(at in 0usize..400, value: u8, cut in 0usize..400) {
            for (name, archive) in [("x.zip", zip_of(&FILES)), ("x.tgz", gz_of(&tar_of(&FILES)))] {
                let mut archive = archive;
                let at = at % archive.len();
                archive[at] = value;
                archive.truncate(archive.len() - cut % archive.len());
                if let (_, Err(error)) = unpacked(name, &archive) {
                    prop_assert!(!error.to_string().contains('\n'), "{}", error);
                }
            }
        }
    }
}
