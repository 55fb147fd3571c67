//! Commands of other programs, pasted: the words after `reel sft`, `reel grpo`, `reel serve`, `reel eval` and
//! `reel bench serve` may be those of TRL, ms-swift, LLaMA-Factory, Axolotl, verl, EasyR1, VideoRFT, Video-R1, vLLM,
//! SGLang, LMDeploy, lmms-eval or VLMEvalKit, and `--config` may name their configuration files.
//!
//! The table of `reel_runs::foreign_options` says what each option is here. An option with the same meaning is
//! accepted, options without effect are named in one note, and all others are refused together, in one message that
//! ends with the corrected command. [`translate`] does not run anything; it works on words alone.
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
mod meaning_tests;
#[cfg(test)]
mod published_tests;
#[cfg(test)]
mod tests;

use clap::Command;
use reel_runs::foreign_options::command_of_subcommand;

pub use explain::{explain_defaults, with_explain_option};
use translation::Translation;

/// What surrounds a command: variables of the environment, and the number of processes that a launcher has started.
pub struct Surroundings<'a> {
    /// The value of a variable of the environment.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The number of processes of this run; 1 without a launcher.
    pub processes: usize,
}

/// The result of reading a command that may be one of another program.
#[derive(Debug, PartialEq, Eq)]
pub enum TranslationOutcome {
    /// The command has only options of reel.
    Unchanged,
    /// The command in reel's options, with notes to print.
    Translated {
        /// The words after the program's name.
        words: Vec<String>,
        /// Notes about options without effect, and defaults that differ.
        notes: Vec<String>,
    },
    /// The command is refused.
    Refused {
        /// All problems, the corrected command, and the notes.
        message: String,
    },
}

/// Translates the words of a command line after the program's name into options of reel.
pub fn translate(root: &Command, words: &[String], surroundings: &Surroundings) -> TranslationOutcome {
    let asks_for_help =
        words.iter().take_while(|word| *word != "--").any(|word| ["--help", "-h"].contains(&word.as_str()));
    let Some(line) = words::split_command_line(root, words).filter(|_| !asks_for_help) else {
        return TranslationOutcome::Unchanged;
    };
    let path = line.path.join(" ");
    // Other programs have no commands like the other measurements of `reel bench`. Their parsers lack the options that
    // all measurements share, such as --with, so these would be refused here.
    if path.starts_with("bench") && path != "bench serve" {
        return TranslationOutcome::Unchanged;
    }
    let mut translation = Translation::new(line, command_of_subcommand(&path).to_string(), surroundings);
    translation.read_options();
    let is_plain = !translation.is_foreign && translation.problems.len() < 2;
    let trains = ["sft", "grpo"].contains(&translation.command.as_str()) && !path.starts_with("plan");
    if is_plain && !(trains && translation.has_underscores && translation.problems.is_empty()) {
        return environment::outcome_with_variables_only(translation);
    }
    environment::add_environment_options(&mut translation);
    totals::combine_options(&mut translation);
    if translation.is_foreign {
        repair::repair_until_accepted(&mut translation, root);
    }
    peers::note_different_defaults(&mut translation);
    message::translation_outcome(&translation)
}
