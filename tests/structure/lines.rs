//! Counts the lines of the product and of its proof: Rust and CUDA files, without tests and checks.
//!
//! Tests are files in folders `tests`, files `tests.rs`, `testing.rs` and `*_tests.rs`, and items under `#[cfg(test)]`;
//! checks are `check` and `checks` in `kernels/src`. Proof is the simulator with its commands, the fake driver and its
//! rules, formulas, examples of kernel calls, fuzz targets and benchmarks.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders below the repository that have no files of the project.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// The lines of the product and of its proof.
#[derive(Debug, Default, PartialEq)]
pub struct CodeLines {
    pub product: usize,
    pub proof: usize,
}

/// Counts the lines of all files below `repository`.
pub fn count(repository: &Path) -> CodeLines {
    let (mut files, mut lines) = (Vec::new(), CodeLines::default());
    find_source_files(repository, Path::new(""), &mut files);
    for file in files.iter().filter(|file| !is_test_or_check(file)) {
        let text = fs::read_to_string(repository.join(file)).expect("a source file");
        let own = if file.ends_with(".rs") { lines_without_tests(&text) } else { text.lines().count() };
        *(if is_proof(file) { &mut lines.proof } else { &mut lines.product }) += own;
    }
    lines
}

fn find_source_files(repository: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(repository.join(folder)).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path: PathBuf = folder.join(entry.file_name());
        let name = path.display().to_string();
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() && !LEFT_OUT.contains(&name.as_str()) => find_source_files(repository, &path, found),
            kind if kind.is_file() && [".rs", ".cu", ".cuh"].iter().any(|end| name.ends_with(end)) => found.push(name),
            _ => {}
        }
    }
}

fn is_test_or_check(file: &str) -> bool {
    let (folders, name) = file.rsplit_once('/').unwrap_or(("", file));
    let is_test = folders.split('/').any(|folder| folder == "tests")
        || ["tests.rs", "testing.rs"].contains(&name)
        || ["_tests.rs", "_test.rs"].iter().any(|end| name.ends_with(end));
    let is_check = file.starts_with("kernels/src/")
        && (folders.split('/').any(|folder| ["check", "checks"].contains(&folder)) || name == "check.rs");
    is_test || is_check
}

fn is_proof(file: &str) -> bool {
    let folders = ["sim/", "tools/benches/", "tools/fuzz/"];
    let parts = ["/cuda/fake", "/cuda/rules", "/amx_emulator", "/formula/", "/formula.rs", "/examples.rs"];
    folders.iter().any(|folder| file.starts_with(folder)) || parts.iter().any(|part| file.contains(part))
}

/// Returns the number of lines outside of items under `#[cfg(test)]`.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let (mut count, mut at) = (0, 0);
    while at < lines.len() {
        let line = lines[at].trim_start();
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            at = end_of_item(&lines, at + 1);
        } else {
            (count, at) = (count + 1, at + 1);
        }
    }
    count
}

/// Returns the index after the item whose first line, or first attribute, is line `at`.
fn end_of_item(lines: &[&str], mut at: usize) -> usize {
    while lines.get(at).is_some_and(|line| line.trim_start().starts_with("#[")) {
        at += 1;
    }
    if lines.get(at).is_some_and(|line| line.trim_end().ends_with(';')) {
        return at + 1;
    }
    let (mut depth, mut has_begun) = (0, false);
    while let Some(line) = lines.get(at) {
        depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
        has_begun |= line.contains('{');
        at += 1;
        if has_begun && depth <= 0 {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_checks_and_proof_are_told_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"x\"]\nmod more {\n  fn b() {}\n}\nfn c() {}\n";
        assert_eq!(lines_without_tests(text), 2);
        for file in ["tests/a.rs", "x/src/tests.rs", "x/src/a_tests.rs", "kernels/src/rows/check.rs", "a/tests/b/c.rs"]
        {
            assert!(is_test_or_check(file), "{file}");
        }
        assert!(!is_test_or_check("x/src/checks/a.rs") && !is_test_or_check("build.rs"));
        for (file, proof) in
            [("sim/src/a.rs", true), ("kernels/device/src/cuda/fake/mod.rs", true), ("src/simple.rs", false)]
        {
            assert_eq!(is_proof(file), proof, "{file}");
        }
    }
}
