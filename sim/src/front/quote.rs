//! Reads the lines of CUDA or PTX source that a report quotes beside its findings and counts.

use std::path::{Path, PathBuf};

use crate::finding::{self, SourceLine};
use crate::kernel_check::read_file;
use crate::program::Program;

/// A source file and its lines.
#[derive(Debug)]
pub struct SourceQuotes {
    /// The file's name in reports.
    pub name: String,
    /// True for CUDA, false for PTX.
    pub cuda: bool,
    lines: Vec<String>,
}

impl SourceQuotes {
    /// Opens the source file from which a report quotes lines: the kernel's main CUDA file if the PTX has line
    /// information, else the PTX. `given` is the file that the user named; `ptx` is the text of this file, or the
    /// compiler's output.
    pub fn new(program: &Program, kernel: &str, given: &Path, ptx: &str) -> SourceQuotes {
        let of = |name: String, cuda: bool, text: &str| SourceQuotes {
            name,
            cuda,
            lines: text.lines().map(str::to_string).collect(),
        };
        let Some(main) = finding::main_file_name(program, kernel) else {
            return of(given.display().to_string(), false, ptx);
        };
        // The path in the line information may be relative to the folder in which the compiler ran. That is probably
        // the folder of the PTX.
        let beside = given.parent().unwrap_or(Path::new("")).join(main);
        let read = |path: PathBuf| read_file(&path).ok();
        let found = [PathBuf::from(main), beside].into_iter().find_map(read);
        of(main.to_string(), true, &found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default())
    }

    /// Returns all lines of the file, unchanged.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Returns the location of a line as `file:line`, and its text if the line is in the quoted file. If the kernel
    /// has line information, a line of its PTX is shown as `ptx:line`.
    pub fn location_and_text(&self, line: &SourceLine) -> (String, Option<&str>) {
        match &line.file {
            Some(file) => (format!("{file}:{}", line.line), None),
            None if line.cuda == self.cuda => (format!("{}:{}", self.name, line.line), self.source_line(line.line)),
            None => (format!("ptx:{}", line.line), None),
        }
    }

    /// Returns a line, numbered from 1, without surrounding white space.
    pub fn source_line(&self, number: u32) -> Option<&str> {
        self.lines.get((number as usize).checked_sub(1)?).map(|l| l.trim())
    }
}
