//! Files that no other user can have written: those that decide which code runs (compiled kernels), or which processes
//! take part in a job (the rendezvous file).
//!
//! A file is read if it is a regular file and no symbolic link, belongs to this user or root, and only its owner may
//! write to it. Its folder must not let every user replace files (writable by others, without the sticky bit). A folder
//! that its group may write to is allowed, such as the output folder of a job with umask 002: the group can replace the
//! file, but not by a file of this user.
//!
//! Some file systems show other owners or permissions than those of a new file: NFS with `root_squash` or `all_squash`,
//! CIFS, many FUSE file systems. Before a file is refused, a new file beside it shows what the file system makes of
//! owner and mode; what this user's own new file has, too, is no reason.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::diagnostic::input::UnsuitableFile;
use crate::diagnostic::{Diagnostic, create_temporary};
use rustix::fs::OFlags;
use rustix::process::geteuid;
use tempfile::{Builder, TempDir};

/// The permissions by which others than the owner may write: those of the group and those of all other users.
const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const OTHERS_WRITE: u32 = 0o002;
/// In a folder with this bit, only the owner of a file can replace it.
const STICKY: u32 = 0o1000;

/// The owner and the permissions of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    owner: u32,
    mode: u32,
}

impl Access {
    fn of(facts: &Metadata) -> Self {
        Self { owner: facts.uid(), mode: facts.mode() & 0o7777 }
    }

    /// Returns why another user than `user` and root may have written a file with this access. `shown` returns the
    /// access that the file system shows for a new file of `user` with the mode 0600.
    fn refusal(self, user: u32, shown: impl FnOnce() -> Option<Self>) -> Option<UnsuitableFile> {
        let is_own = self.owner == user || self.owner == 0;
        let is_protected = self.mode & GROUP_OR_OTHERS_WRITE == 0;
        if is_own && is_protected {
            return None;
        }
        let shown = shown().unwrap_or(Self { owner: user, mode: 0o600 });
        if !is_own && self.owner != shown.owner {
            Some(UnsuitableFile::OtherOwner { owner: self.owner })
        } else if !is_protected && shown.mode & GROUP_OR_OTHERS_WRITE == 0 {
            Some(UnsuitableFile::WritableByOthers { mode: self.mode })
        } else {
            None
        }
    }
}

/// Reads a file that only this user or root can have written. `None` if it does not exist.
///
/// # Errors
/// The file is no regular file, belongs to another user, can be changed by other users, or has more than `limit` bytes;
/// reading fails.
pub fn read_own_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Diagnostic> {
    let failed = |e: io::Error| match e.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(why @ (UnsuitableFile::Folder | UnsuitableFile::Special)) => {
            Diagnostic::new(path.display().to_string(), why.to_string(), "remove it, or choose another folder")
        }
        _ => Diagnostic::cannot_read(path, &e),
    };
    let file = match open_without_link(path, File::options().read(true)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let facts = file.metadata().map_err(failed)?;
    if let Some(why) = Access::of(&facts).refusal(user(), || access_of_new_file(folder_of(path))) {
        return Err(failed(why.into()));
    }
    if facts.len() > limit {
        return Err(failed(UnsuitableFile::TooLong { bytes: facts.len(), limit }.into()));
    }
    let mut bytes = Vec::with_capacity(facts.len() as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Checks that not every user can replace files in a folder. A folder that does not exist is no error here.
///
/// # Errors
/// The folder is writable by all users without the sticky bit.
pub fn check_folder_of_own_files(folder: &Path) -> Result<(), Diagnostic> {
    let Ok(facts) = fs::metadata(folder) else { return Ok(()) };
    let access = Access::of(&facts);
    let is_open = |mode| mode & OTHERS_WRITE != 0 && mode & STICKY == 0;
    if !is_open(access.mode) || access_of_new_file(folder).is_some_and(|shown| is_open(shown.mode)) {
        return Ok(());
    }
    let what = format!("every user can replace files in this folder (mode {:04o})", access.mode);
    let help = "take this right from them (chmod o-w), or choose another folder";
    Err(Diagnostic::new(folder.display().to_string(), what, help))
}

/// Creates a folder that only this user can read and write (mode 0700), or checks that an existing one is such a
/// folder.
///
/// # Errors
/// The folder cannot be created; it is a symbolic link or no folder; it belongs to another user; other users have rights
/// to it.
pub fn create_private_folder(folder: &Path) -> Result<(), Diagnostic> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created.map_err(|e| Diagnostic::cannot_write(folder, &e)),
    }
    let facts = fs::symlink_metadata(folder).map_err(|e| Diagnostic::cannot_read(folder, &e))?;
    let Access { owner, mode } = Access::of(&facts);
    let (what, help) = if facts.is_symlink() {
        (UnsuitableFile::Link.to_string(), "remove the link")
    } else if !facts.is_dir() {
        ("is a file, not a folder".into(), "remove the file")
    } else if owner != user() {
        (UnsuitableFile::OtherOwner { owner }.to_string(), "set TMPDIR to a folder of this user")
    } else if mode & 0o077 != 0 {
        (format!("other users have rights to this folder (mode {mode:04o})"), "take them away (chmod 700)")
    } else {
        return Ok(());
    };
    Err(Diagnostic::new(folder.display().to_string(), what, help))
}

/// Creates a folder of a random name in `parent`, which only this user can use (mode 0700). Its name begins with
/// `prefix` and ends with `suffix`. Dropping the value removes the folder.
///
/// # Errors
/// The folder cannot be created.
pub fn temporary_folder_in(parent: &Path, prefix: &str, suffix: &str) -> io::Result<TempDir> {
    Builder::new().prefix(prefix).suffix(suffix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent)
}

/// Creates a folder for temporary files that only this user can use (mode 0700). Dropping the value removes it.
///
/// # Errors
/// The folder cannot be created.
pub fn temporary_folder() -> io::Result<TempDir> {
    temporary_folder_in(&std::env::temp_dir(), ".reel-", ".part")
}

/// Opens a regular file. Follows no symbolic link in the file's name, and does not wait for the other end of a pipe.
///
/// # Errors
/// The path is a link, a folder, a pipe, a socket or a device (an [`UnsuitableFile`]); the file cannot be opened.
pub fn open_without_link(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // The type is checked before opening, because opening a device can have an effect. It is checked again afterwards,
    // because another file may have got the name in between.
    if let Ok(facts) = fs::symlink_metadata(path) {
        check_type(&facts)?;
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = options.clone().custom_flags(flags).open(path)?;
    check_type(&file.metadata()?)?;
    Ok(file)
}

fn check_type(facts: &Metadata) -> io::Result<()> {
    if facts.is_file() {
        return Ok(());
    }
    let is_link = facts.is_symlink();
    Err(if is_link {
        UnsuitableFile::Link
    } else if facts.is_dir() {
        UnsuitableFile::Folder
    } else {
        UnsuitableFile::Special
    }
    .into())
}

fn user() -> u32 {
    geteuid().as_raw()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a file with the mode 0600 in a folder, and returns the access that the file system shows for it; `None` if
/// it cannot be created.
fn access_of_new_file(folder: &Path) -> Option<Access> {
    let create = |path: &Path| File::options().write(true).create_new(true).mode(0o600).open(path);
    let (file, path, _unfinished) =
        create_temporary(|random| folder.join(format!(".access.{random}.part")), create).ok()?;
    let facts = file.metadata();
    let _ = fs::remove_file(&path);
    Some(Access::of(&facts.ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Writes a file with the mode 0600 in a new folder.
    fn own_file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "text").unwrap();
        set_mode(&path, 0o600);
        (dir, path)
    }

    fn refused(path: &Path) -> String {
        let error = read_own_file(path, 100).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())) && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn own_file_is_read_whatever_its_group_may_do_in_the_folder() {
        let (dir, path) = own_file();
        for mode in [0o700, 0o755, 0o775, 0o1777] {
            set_mode(dir.path(), mode);
            assert_eq!(read_own_file(&path, 4).unwrap().as_deref(), Some(&b"text"[..]));
            check_folder_of_own_files(dir.path()).unwrap();
        }
        set_mode(&path, 0o444);
        assert!(read_own_file(&path, 4).is_ok());
        assert_eq!(read_own_file(&dir.path().join("none"), 4).unwrap(), None);
        check_folder_of_own_files(&dir.path().join("none")).unwrap();
        assert!(read_own_file(&path, 3).unwrap_err().to_string().contains("above the limit of 3 bytes"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no file is left beside it");
    }

    #[test]
    fn file_that_others_can_change_is_refused() {
        let (dir, path) = own_file();
        for mode in [0o666, 0o620, 0o602] {
            set_mode(&path, mode);
            assert!(refused(&path).contains(&format!("(mode {mode:04o}); take this right from them (chmod go-w)")));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no file is left beside it");
    }

    #[test]
    fn file_of_another_user_is_refused() {
        let (_dir, path) = own_file();
        // Only root can give files away. The table below has the same case for other users.
        if geteuid().is_root() {
            chown(&path, Some(12_345), None).unwrap();
            assert!(refused(&path).contains("belongs to another user (id 12345); remove it"));
        }
        let access = |owner, mode| Access { owner, mode };
        let new_file = || Some(access(7, 0o600));
        let other = Some(UnsuitableFile::OtherOwner { owner: 9 });
        assert_eq!(access(9, 0o600).refusal(7, new_file), other);
        assert_eq!(access(9, 0o600).refusal(7, || None), other, "the folder cannot be written");
        assert_eq!(access(0, 0o644).refusal(7, new_file), None, "a file of root");
        // The file system shows all files as those of one user (root_squash), or all permissions as set.
        assert_eq!(access(65_534, 0o600).refusal(0, || Some(access(65_534, 0o600))), None);
        assert_eq!(access(7, 0o777).refusal(7, || Some(access(7, 0o777))), None);
        assert_eq!(access(9, 0o600).refusal(0, || Some(access(65_534, 0o600))), other);
        let writable = Some(UnsuitableFile::WritableByOthers { mode: 0o660 });
        assert_eq!(access(65_534, 0o660).refusal(0, || Some(access(65_534, 0o600))), writable);
    }

    #[test]
    fn link_pipe_and_folder_are_refused_at_once() {
        let (dir, path) = own_file();
        let [link, pipe, folder] = ["link", "pipe", "folder"].map(|name| dir.path().join(name));
        symlink(&path, &link).unwrap();
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(refused(&link).contains("is a symbolic link"));
        assert!(refused(&pipe).contains("is not a regular file; remove it"));
        assert!(refused(&folder).contains("is a folder, not a regular file; remove it"));
        let write = || File::options().read(true).write(true).create(true).truncate(false).to_owned();
        for path in [&link, &pipe, &folder] {
            assert!(open_without_link(path, &write()).is_err());
        }
        assert!(open_without_link(&dir.path().join("new"), &write()).is_ok());
    }

    #[test]
    fn folder_of_all_users_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o777);
        let error = check_folder_of_own_files(dir.path()).unwrap_err().to_string();
        assert!(error.contains("every user can replace files in this folder (mode 0777); take"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn private_folder_is_created_or_checked() {
        let dir = temporary_folder().unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
        let [folder, link, file] = ["folder", "link", "file"].map(|name| dir.path().join(name));
        for _ in 0..2 {
            create_private_folder(&folder).unwrap();
            assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        }
        let refused = |path: &Path| create_private_folder(path).unwrap_err().to_string();
        symlink(&folder, &link).unwrap();
        fs::write(&file, "").unwrap();
        assert!(refused(&link).contains("is a symbolic link"));
        assert!(refused(&file).contains("is a file, not a folder"));
        set_mode(&folder, 0o750);
        assert!(refused(&folder).contains("other users have rights to this folder (mode 0750)"));
        if geteuid().is_root() {
            set_mode(&folder, 0o700);
            chown(&folder, Some(12_345), None).unwrap();
            assert!(refused(&folder).contains("belongs to another user (id 12345); set TMPDIR"));
        }
    }
}
