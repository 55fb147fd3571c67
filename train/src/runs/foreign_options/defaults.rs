//! The defaults of other programs that differ from reel's defaults (`defaults.txt`).

use std::sync::LazyLock;

/// A default value of another program that differs from reel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDefault {
    /// The program's name as in `options.txt`.
    pub program: &'static str,
    /// The command of reel: `sft`, `grpo` or `serve`.
    pub command: &'static str,
    /// The name of reel's option, as a field name.
    pub option: &'static str,
    /// The program's default, converted to a value of reel's option.
    pub value: &'static str,
    /// The default as the program itself writes it.
    pub words: &'static str,
}

/// The programs in the table of defaults, each with its full name and version.
pub static PROGRAMS: LazyLock<Vec<(&'static str, &'static str)>> =
    LazyLock::new(|| lines().filter_map(|line| line.split_once(" := ")).collect());

static DEFAULTS: LazyLock<Vec<ForeignDefault>> = LazyLock::new(|| {
    let default = |line: &'static str| {
        let columns: Vec<&'static str> = line.split('|').map(str::trim).collect();
        let [program, command, option, value, words] = columns[..] else { return None };
        Some(ForeignDefault { program, command, option, value, words })
    };
    lines().filter_map(default).collect()
});

/// Returns all rows of the table of defaults, program by program.
pub fn foreign_defaults() -> &'static [ForeignDefault] {
    &DEFAULTS
}

fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("defaults.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_parsed_and_names_a_program_with_a_version() {
        assert_eq!(lines().count(), PROGRAMS.len() + foreign_defaults().len());
        for default in foreign_defaults() {
            assert!(PROGRAMS.iter().any(|(program, _)| *program == default.program), "{default:?}");
        }
    }
}
