//! The record `tests/folders.proved`: the kernel folders whose checks passed on the simulator under all interleavings,
//! and whose mutants were all found.
//!
//! Both results depend on source files only, so they need no second proof while these files are unchanged. A line of
//! the record has a folder's name and a hash of the files: the folder, the folders whose headers it includes, the code
//! that kernels share, the tests, the simulator, and the parts of `device` that make a launch, compile it and run it.
//! Comments do not count. With its recorded hash, a folder's mutants and its early launches (`dependent.rs`) are left
//! out, and its checks run under one interleaving in place of eight.

use std::collections::BTreeSet;
use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use twox_hash::XxHash3_64;

use crate::catalogue::{FOLDERS, KernelFolder};

/// The path of the record below the crate's folder.
pub const RECORD_PATH: &str = "tests/folders.proved";

/// The folders whose present hash is in the record.
static PROVED: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    let record = package().join(RECORD_PATH);
    let text = fs::read_to_string(&record).unwrap_or_else(|e| panic!("{}: {e}", record.display()));
    let lines: BTreeSet<&str> = text.lines().collect();
    FOLDERS
        .iter()
        .filter(|folder| lines.contains(record_line_of_folder(folder).as_str()))
        .map(|folder| folder.name)
        .collect()
});

/// Whether the record holds the hash that `folder` has now.
///
/// # Panics
/// The record or a source file cannot be read: the program must run where it was built.
pub fn is_proved(folder: &KernelFolder) -> bool {
    PROVED.contains(folder.name)
}

/// The line of a folder in the record: its name, and the hash of the names and the texts of all files that decide
/// whether its checks pass and its mutants are found. Lines that are comments do not count, except those that mark an
/// instruction as redundant, because the mutants of that instruction are not tried.
///
/// # Panics
/// A source file cannot be read.
pub fn record_line_of_folder(folder: &KernelFolder) -> String {
    let kernels = package().join("src");
    let owners: Vec<&str> = folder.source.header_owners.iter().map(|source| source.name).collect();
    let is_of_another = |path: &Path| {
        let name = path.strip_prefix(&kernels).ok().and_then(|path| path.components().next());
        let name = name.and_then(|name| name.as_os_str().to_str()).unwrap_or_default();
        FOLDERS.iter().any(|other| other.name == name) && name != folder.name && !owners.contains(&name)
    };
    let mut hash = XxHash3_64::with_seed(0);
    let below =
        ["launch", "compile", "cpu", "simulate.rs", "team.rs"].map(|part| package().join("device/src").join(part));
    let own = [kernels.clone(), package().join("tests/mutants.rs"), package().join("../sim/src")];
    for root in own.into_iter().chain(below) {
        for file in files(&root).into_iter().filter(|path| !is_of_another(path)) {
            let name = file.strip_prefix(package()).unwrap_or(&file).to_str().expect("a name in UTF-8");
            let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
            let counts = |line: &&str| !line.trim_start().starts_with("//") || line.contains("redundant");
            let code: Vec<&str> = text.split('\n').filter(counts).collect();
            [name, "\0", &code.join("\n"), "\0"].iter().for_each(|part| hash.write(part.as_bytes()));
        }
    }
    format!("{} {:016x}", folder.name, hash.finish())
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all files of a folder, sorted by path, or the file itself.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut inside: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    inside.sort();
    inside.iter().flat_map(|path| files(path)).collect()
}
