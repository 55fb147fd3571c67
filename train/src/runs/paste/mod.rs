//! Translates commands that were written for other programs. The words after `reel sft`, `reel grpo`, `reel serve`,
//! `reel eval` and `reel bench serve` may be options of TRL, ms-swift, LLaMA-Factory, Axolotl, verl, EasyR1,
//! VideoRFT, Video-R1, vLLM, SGLang, LMDeploy, lmms-eval or VLMEvalKit, and `--config` may name their configuration
//! files.
//!
//! `options.txt` says what each option is here. An option with the same meaning is accepted, options without effect are
//! named in one note, and all others are refused together, in one message that ends with the corrected command.
//! `rules.txt` has what one row of that table cannot say, and `defaults.txt` the defaults of the programs.
//! [`translate_command`] does not run anything; it works on words alone.
//!
//! Read in this order: `words` (words to options), `reading` (options to options of reel), `rules` and `terms` (the
//! interpreter of `rules.txt`), `repair` (values and combinations that reel refuses), `message`.

mod message;
mod reading;
mod repair;
mod rules;
mod state;
pub mod table;
mod terms;
#[cfg(test)]
mod tests;
mod words;

use std::path::Path;

use clap::Command;
use serde_json::Value;

pub use message::{explain_defaults, with_explain_option};
use state::CommandTranslation;
use table::command_of_subcommand;
use terms::Scope;

/// What a command depends on beside its words.
pub struct CommandEnvironment<'a> {
    /// Returns the value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The number of processes of this run; 1 without a launcher.
    pub processes: usize,
    /// Reads a configuration file.
    pub read_config_file: &'a dyn Fn(&Path) -> Result<ConfigEntries, String>,
    /// Returns the message for an error of the parser (`location: what; help`), given the words after the program's
    /// name.
    pub usage_error: &'a dyn Fn(&clap::Error, &Command, &[String]) -> String,
}

/// The keys and values of a configuration file.
pub struct ConfigEntries {
    /// The keys with their values, in the order of the file.
    pub entries: Vec<(String, Value)>,
    /// Whether the file is the `run.json` of a run.
    pub is_run_record: bool,
}

/// The result of translating a command that may have been written for another program.
#[derive(Debug, PartialEq, Eq)]
pub enum TranslationOutcome {
    /// The command has only options of reel.
    Unchanged,
    /// The command, translated into options of reel, with notes to print.
    Translated {
        /// The words after the program's name.
        words: Vec<String>,
        /// Notes about options that have no effect, and about defaults that differ between the programs.
        notes: Vec<String>,
    },
    /// The command is refused, because options cannot be used as given.
    Refused {
        /// The text to print: all problems, the corrected command, and the notes.
        message: String,
    },
}

/// Translates a command that may have been written for another program into options of reel. `words` are the words of
/// the command line after the program's name.
pub fn translate_command(root: &Command, words: &[String], surroundings: &CommandEnvironment) -> TranslationOutcome {
    let asks_for_help = words.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h");
    let Some(line) = words::split_command_line(root, words).filter(|_| !asks_for_help) else {
        return TranslationOutcome::Unchanged;
    };
    let path = line.path.join(" ");
    // Only `bench serve` has a counterpart in other programs (a load test). The parsers of the other benchmarks lack
    // common options of `reel bench` such as --compare, so the translation would refuse these options.
    if path.starts_with("bench") && path != "bench serve" {
        return TranslationOutcome::Unchanged;
    }
    let mut t = CommandTranslation::new(line, command_of_subcommand(&path).to_string(), surroundings);
    t.read_options();
    let is_plain = !t.is_foreign && t.problems.len() < 2;
    let has_python_names = t.trains() && !path.starts_with("plan") && t.has_underscores && t.problems.is_empty();
    let has_own_options_only = is_plain && !has_python_names;
    if has_own_options_only && !t.problems.is_empty() {
        return TranslationOutcome::Unchanged;
    }
    let before = t.settings.len();
    rules::run_rule("environment", &mut Scope::default(), &mut t);
    // To a command with options of reel alone, only environment variables can add options.
    if has_own_options_only && t.settings.len() == before && !t.is_changed {
        return TranslationOutcome::Unchanged;
    }
    for fallback in std::mem::take(&mut t.fallbacks) {
        if !t.is_set(&fallback.name) {
            t.settings.push(fallback);
        }
    }
    rules::run_rule("combine", &mut Scope::default(), &mut t);
    if t.is_foreign {
        repair::repair_until_accepted(&mut t, root);
        message::note_different_defaults(&mut t);
    }
    message::translation_outcome(&t)
}
