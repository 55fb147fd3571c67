//! Translates commands that were written for other programs. The words after `reel sft`, `reel grpo`, `reel serve`,
//! `reel eval` and `reel bench serve` may be options of TRL, ms-swift, LLaMA-Factory, Axolotl, verl, EasyR1,
//! VideoRFT, Video-R1, vLLM, SGLang, LMDeploy, lmms-eval or VLMEvalKit, and `--config` may name their configuration
//! files.
//!
//! The table of `reel_train::runs::foreign_options` says what each option is here. An option with the same meaning is
//! accepted, options without effect are named in one note, and all others are refused together, in one message that
//! ends with the corrected command. [`translate_command`] does not run anything; it works on words alone.
//!
//! Read in this order: `words` (words to options), `translation` (options to options of reel), `rules` and its
//! neighbours (what one row of the table cannot say), `repair` (values and combinations that reel refuses), `message`.

mod config;
mod environment;
mod explain;
mod message;
mod peers;
mod places;
mod repair;
mod rules;
mod rules_data;
mod rules_eval;
mod rules_serve;
mod rules_train;
mod totals;
mod translation;
mod weights;
mod words;

#[cfg(test)]
mod effect_tests;
#[cfg(test)]
mod meaning_tests;
#[cfg(test)]
mod published_tests;
#[cfg(test)]
mod tests;

use clap::Command;
use reel_train::runs::foreign_options::command_of_subcommand;

pub use explain::{explain_defaults, with_explain_option};
use translation::CommandTranslation;

/// The environment of a command: environment variables, and the number of processes that a launcher has started.
pub struct CommandEnvironment<'a> {
    /// Returns the value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The number of processes of this run; 1 without a launcher.
    pub processes: usize,
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
    let asks_for_help =
        words.iter().take_while(|word| *word != "--").any(|word| ["--help", "-h"].contains(&word.as_str()));
    let Some(line) = words::split_command_line(root, words).filter(|_| !asks_for_help) else {
        return TranslationOutcome::Unchanged;
    };
    let path = line.path.join(" ");
    // Only `bench serve` has a counterpart in other programs (a load test). The other benchmarks are not translated,
    // because their parsers lack common options of `reel bench` such as --compare, so the translation would refuse these
    // options.
    if path.starts_with("bench") && path != "bench serve" {
        return TranslationOutcome::Unchanged;
    }
    let mut translation = CommandTranslation::new(line, command_of_subcommand(&path).to_string(), surroundings);
    translation.read_options();
    let is_plain = !translation.is_foreign && translation.problems.len() < 2;
    let trains = ["sft", "grpo"].contains(&translation.command.as_str()) && !path.starts_with("plan");
    if is_plain && !(trains && translation.has_underscores && translation.problems.is_empty()) {
        return environment::outcome_with_environment_options_only(translation);
    }
    environment::add_environment_options(&mut translation);
    totals::combine_options(&mut translation);
    if translation.is_foreign {
        repair::repair_until_accepted(&mut translation, root);
    }
    peers::note_different_defaults(&mut translation);
    message::translation_outcome(&translation)
}
