//! Progress of `reel bench op` on stderr: what is being timed, and how many remain.

use std::io::{IsTerminal, Write};

use reel_support::diagnostic::note;

/// Prints on stderr what is being timed. On a terminal, each line replaces the previous one; elsewhere, each is
/// printed as a new line.
pub struct BenchmarkProgress {
    is_quiet: bool,
    is_terminal: bool,
}

impl BenchmarkProgress {
    /// Creates a progress display on stderr. It prints nothing if `is_quiet`.
    pub fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_terminal: std::io::stderr().is_terminal() }
    }

    /// Prints a progress line on stderr.
    pub fn show(&self, text: &str) {
        match (self.is_quiet, self.is_terminal) {
            (true, _) => {}
            (false, false) => note!("bench: {text}"),
            (false, true) => self.replace_line(&format!("bench: {text} …")),
        }
    }

    /// Erases the progress line on a terminal, so that other output can follow.
    pub fn clear(&self) {
        if !self.is_quiet && self.is_terminal {
            self.replace_line("");
        }
    }

    fn replace_line(&self, text: &str) {
        // Returns the cursor to the start of the line and erases the line. Write errors are ignored, because a closed
        // terminal must not end the measurement.
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
    }
}

impl Drop for BenchmarkProgress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the progress line about benchmark `n` of `count`, counted from 1.
pub fn timing_line(name: &str, n: usize, count: usize) -> String {
    match count - n {
        0 => format!("timing {name} ({n} of {count})"),
        1 => format!("timing {name} ({n} of {count}, 1 remains)"),
        left => format!("timing {name} ({n} of {count}, {left} remain)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_says_how_many_remain() {
        assert_eq!(timing_line("add_f32", 1, 4), "timing add_f32 (1 of 4, 3 remain)");
        assert_eq!(timing_line("add_f32", 3, 4), "timing add_f32 (3 of 4, 1 remains)");
        assert_eq!(timing_line("add_f32", 4, 4), "timing add_f32 (4 of 4)");
    }
}
