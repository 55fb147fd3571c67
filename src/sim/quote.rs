//! Source lines to quote beside findings and counts.

use std::path::{Path, PathBuf};

use reel_sim::finding;
use reel_sim::program::Program;

/// The text that lines are of.
#[derive(Debug)]
pub struct Quotes {
    /// Its file, as it is shown.
    pub name: String,
    /// It is CUDA, not PTX.
    pub cuda: bool,
    lines: Vec<String>,
}

impl Quotes {
    /// The main CUDA file of a kernel where its PTX has line information and the file is there, else the PTX. `given` is the file that was
    /// run, `ptx` its text or what it was compiled to.
    pub fn new(program: &Program, kernel: &str, given: &Path, ptx: &str) -> Quotes {
        let of = |name: String, cuda: bool, text: &str| Quotes {
            name,
            cuda,
            lines: text.lines().map(str::to_string).collect(),
        };
        let Some(main) = finding::main_file_name(program, kernel) else {
            return of(given.display().to_string(), false, ptx);
        };
        // A relative name is of the compiler's folder, which is likely that of the PTX.
        let beside = given.parent().unwrap_or(Path::new("")).join(main);
        let found = [PathBuf::from(main), beside].into_iter().find_map(|p| std::fs::read(p).ok());
        of(main.to_string(), true, &found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default())
    }

    /// A line, numbered from 1, without the space around it.
    pub fn line(&self, number: u32) -> Option<&str> {
        self.lines.get((number as usize).checked_sub(1)?).map(|l| l.trim())
    }
}
