//! A command line as a list of words, which can be written as text for a shell.

use std::path::Path;

/// Maximum characters of a line of a command on the page.
const MAX_LINE: usize = 100;

/// The words of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The words of the command line. The first word is `reel`.
    pub words: Vec<String>,
}

impl CommandLine {
    /// Creates a command line: `reel`, then the words of `text`, which are separated by spaces.
    pub(crate) fn new(text: &str) -> Self {
        Self { words: std::iter::once("reel").chain(text.split(' ')).map(String::from).collect() }
    }

    /// Adds an option with a value, which may have spaces.
    #[must_use]
    pub(crate) fn with_option(mut self, option: &str, value: impl Into<String>) -> Self {
        self.words.extend([option.to_string(), value.into()]);
        self
    }

    /// Adds an option with a path.
    #[must_use]
    pub(crate) fn with_path(self, option: &str, path: &Path) -> Self {
        self.with_option(option, path.display().to_string())
    }

    /// Adds a switch.
    #[must_use]
    pub fn with_switch(mut self, switch: &str) -> Self {
        self.words.push(switch.to_string());
        self
    }

    /// The command line as text for a shell, in lines of about [`MAX_LINE`] characters.
    pub fn shell_text(&self) -> String {
        let mut lines = vec![String::new()];
        for (i, word) in self.words.iter().enumerate() {
            let quoted = shell_quoted(word);
            // A line break is allowed before an option, but not between an option and its value.
            let is_break = word.starts_with("--");
            let value = self.words.get(i + 1).filter(|next| is_break && !next.starts_with("--"));
            let width = quoted.chars().count() + value.map_or(0, |value| value.chars().count() + 1);
            match lines.last_mut().filter(|line| !is_break || line.chars().count() + width < MAX_LINE) {
                Some(line) if line.is_empty() => *line = quoted,
                Some(line) => *line += &format!(" {quoted}"),
                None => lines.push(format!("    {quoted}")),
            }
        }
        lines.join(" \\\n")
    }
}

/// A word as a shell reads it.
pub(crate) fn shell_quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_before_options_and_words_are_quoted() {
        let command = CommandLine::new("eval")
            .with_option("--out", "my demo")
            .with_option("--name", "x".repeat(80))
            .with_switch("--quiet");
        let text = command.shell_text();
        assert_eq!(text, format!("reel eval --out 'my demo' \\\n    --name {} --quiet", "x".repeat(80)));
        assert_eq!([shell_quoted("it's"), shell_quoted("")], ["'it'\\''s'", "''"]);
    }
}
