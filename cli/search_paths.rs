//! Takes the current folder out of the search paths of programs and libraries, before anything else happens.
//!
//! An empty entry of `PATH` or `LD_LIBRARY_PATH` means the current folder, and a relative entry a folder below it. Such
//! entries are mostly accidents: `LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/opt/lib` has an empty entry if the variable was not
//! set. A program or library in an unpacked data set or a shared folder would then run in place of the system's. A
//! program that the user names by its path, also a relative one, is run from there.
//!
//! The system's loader searches the libraries that the program is linked with before this code runs, as for every
//! program: libc, libgcc_s and, with the feature `mpi`, libmpi.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::fail::failed;

/// The value of `PATH` if nothing is left of it. Without the variable, some shells search the current folder.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A variable with a list of folders.
struct SearchPath {
    name: &'static str,
    /// The characters that separate the folders.
    separators: &'static [u8],
    /// Whether an entry stays.
    stays: fn(&[u8]) -> bool,
}

const SEARCH_PATHS: [SearchPath; 3] = [
    SearchPath { name: "PATH", separators: b":", stays: |entry| entry.starts_with(b"/") },
    SearchPath {
        name: "LD_LIBRARY_PATH",
        separators: b":;",
        // `$ORIGIN` is the folder of the program or library that is loaded.
        stays: |entry| [&b"/"[..], b"$ORIGIN", b"${ORIGIN}"].iter().any(|start| entry.starts_with(start)),
    },
    // Python searches all modules in these folders first, also those of its own library. A relative entry is a choice of
    // the user, who names modules in it.
    SearchPath { name: "PYTHONPATH", separators: b":", stays: |entry| !entry.is_empty() },
];

impl SearchPath {
    /// Returns the value without the entries that do not stay; `None` if all stay. An empty `PATH` has one empty entry;
    /// the other variables have no meaning if they are empty.
    fn without_current_folder(&self, value: &OsStr) -> Option<OsString> {
        if value.is_empty() && self.name != "PATH" {
            return None;
        }
        let entries: Vec<&[u8]> = value.as_bytes().split(|byte| self.separators.contains(byte)).collect();
        let kept: Vec<&[u8]> = entries.iter().copied().filter(|entry| (self.stays)(entry)).collect();
        (kept.len() < entries.len()).then(|| OsString::from_vec(kept.join(&b':')))
    }
}

/// Starts this program again in this process, without the current folder in its search paths, if they have it. The
/// loader reads `LD_LIBRARY_PATH` once at the start of a program, so a changed variable would have no effect.
///
/// # Errors
/// The program cannot be started again.
pub fn leave_out_current_folder() -> Result<()> {
    let changed = |path: &SearchPath| Some((path.name, path.without_current_folder(&env::var_os(path.name)?)?));
    let changes: Vec<(&str, OsString)> = SEARCH_PATHS.iter().filter_map(changed).collect();
    if changes.is_empty() {
        return Ok(());
    }
    // The path of the file gives the process its name. If an update has removed the file, the process still has it.
    let program = env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut words = env::args_os();
    let mut command = Command::new(&program);
    command.arg0(words.next().unwrap_or_default()).args(words);
    for (name, value) in &changes {
        match (*name, value.is_empty()) {
            ("PATH", true) => command.env(name, DEFAULT_PATH),
            (_, true) => command.env_remove(name),
            (_, false) => command.env(name, value),
        };
    }
    let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
    let error = command.exec();
    let what = format!("cannot be started again without the current folder in {}: {error}", names.join(" and "));
    Err(failed(program.display(), what, "remove the empty and relative entries from these variables"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_relative_entries_are_left_out() {
        let of = |name: &str, value: &str| {
            let path = SEARCH_PATHS.into_iter().find(|path| path.name == name).unwrap();
            path.without_current_folder(OsStr::new(value)).map(|value| value.into_string().unwrap())
        };
        for (name, value) in [("PATH", "/usr/bin:/bin"), ("LD_LIBRARY_PATH", "/a;$ORIGIN/../lib"), ("PYTHONPATH", ".")]
        {
            assert_eq!(of(name, value), None, "{name}={value}");
        }
        for (name, value, kept) in [
            ("PATH", ":/usr/bin::/bin:", "/usr/bin:/bin"),
            ("PATH", "~/bin:./x:..:/bin", "/bin"),
            ("PATH", "", ""),
            ("PATH", ".", ""),
            ("LD_LIBRARY_PATH", ";/a;lib:/b", "/a:/b"),
            ("LD_LIBRARY_PATH", "$LIB:${ORIGIN}", "${ORIGIN}"),
            ("PYTHONPATH", ":src:/x", "src:/x"),
        ] {
            assert_eq!(of(name, value).as_deref(), Some(kept), "{name}={value}");
        }
    }
}
