//! A cache of compiled kernels on disk. The key of an entry is a hash of everything that influences the compilation.
//! An entry is used only if no other user can have written it ([`reel_support::files::read_own_file`]).
//!
//! Processes and threads that need the same unit at the same time take turns by a lock file: the first one compiles it,
//! the others read its entry. An entry is written under a temporary name and then renamed, so that it is always
//! complete. A checksum reveals damaged entries, which are compiled and written again.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use reel_support::diagnostic::{Diagnostic, note};
use reel_support::files::{check_folder_of_own_files, open_without_link, read_own_file, replace_synced};
use twox_hash::XxHash3_128;

use super::{CompilerOutput, Unit};

/// First bytes of an entry; the number increases when the format changes.
const MAGIC: &str = "reel-kernel 1";

/// The maximum size of an entry in bytes. The largest kernel folder has 3 MB of PTX and machine code.
const MAX_ENTRY_BYTES: u64 = 256 << 20;

/// A cache folder, with one file per compiled unit.
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes a cache in this folder, which is created when the first entry is stored. `None`, after a note, if every
    /// user can replace files in the folder.
    pub fn open(folder: PathBuf) -> Option<Cache> {
        if !folder.exists() {
            return Some(Cache { folder });
        }
        let is_safe = check_folder_of_own_files(&folder);
        // A program before this version has created the folder with the permissions of umask, such as 0775.
        let mode = fs::metadata(&folder).map_or(0, |facts| facts.mode());
        if is_safe.is_ok() && mode & 0o022 != 0 {
            let _ = fs::set_permissions(&folder, Permissions::from_mode(mode & 0o7755));
        }
        is_safe.map_err(|e| note_refusal(&e)).ok().map(|()| Cache { folder })
    }

    /// Returns the key of the entry for `unit`, compiled by the NVRTC library at path `compiler`.
    pub fn entry_key(unit: &Unit, compiler: &Path) -> String {
        // The version number that NVRTC reports lacks the patch level, and asking for it would load 100 MB. The key
        // contains the file's size and modification time instead.
        let version = fs::metadata(compiler).and_then(|m| Ok((m.len(), m.modified()?)));
        hashed(unit, &[MAGIC, &format!("{} {version:?}", compiler.display())])
    }

    /// Returns a hash of the unit's name, text, options and headers, independent of the compiler.
    pub fn content_hash(unit: &Unit) -> String {
        hashed(unit, &[])
    }

    /// Returns the stored output for a key. `None` if the file is missing or damaged; and, after a note, if another
    /// user can have written it.
    pub fn load(&self, key: &str) -> Option<CompilerOutput> {
        let read = read_own_file(&self.folder.join(key), MAX_ENTRY_BYTES);
        let bytes = read.unwrap_or_else(|e| {
            note_refusal(&e);
            None
        })?;
        let end = bytes.iter().position(|&b| b == b'\n')?;
        let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let [ptx, log, cubin, sum] = head.strip_prefix(MAGIC)?.split_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        let [ptx, log, cubin] = [ptx.parse::<usize>().ok()?, log.parse().ok()?, cubin.parse().ok()?];
        if sum != checksum(body) || ptx.checked_add(log)?.checked_add(cubin)? != body.len() {
            return None;
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (ptx, rest) = body.split_at(ptx);
        let (log, cubin) = rest.split_at(log);
        Some(CompilerOutput { ptx: text(ptx)?, log: text(log)?, cubin: cubin.to_vec() })
    }

    /// Waits until no other process or thread holds the lock of a key, and takes it. `None` if the folder cannot be
    /// written or cannot hold locks; the caller then compiles without a lock.
    pub fn lock(&self, key: &str) -> Option<KeyLock> {
        let path = self.folder.join(format!(".{key}.lock"));
        self.create_folder().ok()?;
        // Another user who could open the file could hold its lock forever.
        let options = File::options().write(true).create(true).truncate(false).mode(0o600).to_owned();
        let file = open_without_link(&path, &options).ok()?;
        file.lock().ok()?;
        Some(KeyLock { path, _file: file })
    }

    /// Stores the output for a key. If that fails (read-only home, full disk), the next run compiles again.
    pub fn store(&self, key: &str, output: &CompilerOutput) {
        let body = [output.ptx.as_bytes(), output.log.as_bytes(), &output.cubin].concat();
        let lengths = format!("{} {} {}", output.ptx.len(), output.log.len(), output.cubin.len());
        let head = format!("{MAGIC} {lengths} {}\n", checksum(&body));
        let entry = [head.as_bytes(), &body].concat();
        let _ = self.create_folder().and_then(|()| replace_synced(&self.folder.join(key), &entry, true));
    }

    /// Creates the folder, which only this user can use (mode 0700), if it does not exist.
    fn create_folder(&self) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }
}

/// Says once per process why a file or folder of the cache is not used.
fn note_refusal(why: &Diagnostic) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| note!("note: {why}; until then kernels that it has are compiled anew"));
}

/// The lock of a key in the cache. Dropping it releases the lock and removes its file.
pub(super) struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // A process that waits for the lock keeps the removed file open and then finds the entry; a later process
        // creates a new file.
        let _ = fs::remove_file(&self.path);
    }
}

/// Hashes the strings `first` and everything in the unit.
fn hashed(unit: &Unit, first: &[&str]) -> String {
    let mut hash = XxHash3_128::new();
    let mut add = |part: &str| {
        hash.write(&(part.len() as u64).to_le_bytes());
        hash.write(part.as_bytes());
    };
    first.iter().for_each(|part| add(part));
    add(&unit.name);
    add(&unit.text);
    unit.options.iter().for_each(|o| add(o));
    for (name, text) in &unit.headers {
        add(name);
        add(text);
    }
    format!("{:032x}", hash.finish_128())
}

fn checksum(body: &[u8]) -> String {
    format!("{:032x}", XxHash3_128::oneshot(body))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn output() -> CompilerOutput {
        CompilerOutput { ptx: ".version 9.0\n".repeat(9), log: "ptxas".into(), cubin: vec![0, 10, 255, 7] }
    }

    fn unit(text: &str, option: &str) -> Unit {
        Unit {
            name: "k.cu".into(),
            text: text.into(),
            headers: vec![("a".into(), "b".into())],
            options: vec![option.into()],
        }
    }

    #[test]
    fn a_second_thread_waits_for_the_lock_and_finds_the_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("folder")).unwrap();
        let lock = cache.lock("k").expect("a lock");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _lock = cache.lock("k").expect("a lock");
                cache.load("k").is_some()
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            cache.store("k", &output());
            drop(lock);
            assert!(second.join().unwrap());
        });
        let names: Vec<_> = fs::read_dir(&cache.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["k"]);
    }

    /// An entry that others can have written, or that is no file, is not used, does not block, and is replaced.
    #[test]
    fn an_entry_that_others_can_have_written_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("kernels");
        let cache = Cache::open(folder.clone()).unwrap();
        let path = folder.join("k");
        let set_mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let victim = dir.path().join("victim");
        let spoil: [&dyn Fn(); 4] = [
            &|| set_mode(&path, 0o666),
            &|| fs::rename(&path, &victim).and_then(|()| std::os::unix::fs::symlink(&victim, &path)).unwrap(),
            &|| {
                fs::remove_file(&path).unwrap();
                assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            },
            // Only root can give a file away.
            &|| match std::os::unix::fs::chown(&path, Some(12_345), None) {
                Ok(()) => {}
                Err(_) => set_mode(&path, 0o622),
            },
        ];
        for spoil in spoil {
            cache.store("k", &output());
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
            assert_eq!(cache.load("k"), Some(output()));
            spoil();
            assert_eq!(cache.load("k"), None);
        }
        cache.store("k", &output());
        assert_eq!(cache.load("k"), Some(output()));
        // The lock does not follow a link either, and truncates nothing.
        std::os::unix::fs::symlink(&victim, folder.join(".k.lock")).unwrap();
        assert!(cache.lock("k").is_none() && fs::metadata(&victim).unwrap().len() > 0);

        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        set_mode(&folder, 0o775);
        assert!(Cache::open(folder.clone()).is_some(), "a folder of a program before this version, with umask 002");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o755);
        set_mode(&folder, 0o777);
        assert!(Cache::open(folder).is_none());
    }

    #[test]
    fn the_key_depends_on_all_that_is_compiled() {
        let compiler = tempfile::NamedTempFile::new().unwrap();
        let key = |u: &Unit| Cache::entry_key(u, compiler.path());
        let base = key(&unit("x", "-o"));
        assert_eq!(base, key(&unit("x", "-o")));
        let mut others = [unit("y", "-o"), unit("x", "-p"), unit("x-", "o"), unit("x", "-o"), unit("x", "-o")];
        others[3].headers[0].1 = "c".into();
        others[4].name = "l.cu".into();
        let mut keys: Vec<String> = others.iter().map(key).chain([base.clone()]).collect();
        fs::write(compiler.path(), "another version").unwrap();
        keys.push(key(&unit("x", "-o")));
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 7);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_entry_is_not_found(place: prop::sample::Index, bit in 0..8u32, cut: bool) {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(dir.path().join("new/folder")).unwrap();
            cache.store("k", &output());
            let whole = cache.load("k").expect("an entry just written");
            prop_assert_eq!(&whole, &output());

            let path = dir.path().join("new/folder/k");
            let mut bytes = fs::read(&path).unwrap();
            let at = place.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit };
            fs::write(&path, &bytes).unwrap();
            // If the changed bit is in the header, the header may still be valid. The cache must never return changed
            // contents.
            if let Some(found) = cache.load("k") {
                prop_assert_eq!(found, whole);
            }
            cache.store("k", &output());
            prop_assert!(cache.load("k").is_some());
            prop_assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
    }
}
