//! How errors name the settings of a check: as options of a program, or as arguments of a function.

/// The form in which errors name a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// An option of the command line: `--max-memory`.
    CommandLine,
    /// An argument of a function: `max_memory`.
    Program,
}

impl Wording {
    /// Returns the name of a setting, which is given as the option's name without dashes before it.
    pub fn option(self, name: &str) -> String {
        match (self, name) {
            (Wording::CommandLine, name) => format!("--{name}"),
            (Wording::Program, "smem") => "shared".into(),
            (Wording::Program, "arg") => "args".into(),
            (Wording::Program, name) => name.replace('-', "_"),
        }
    }
}
