//! The texts that a user sees: the notes about a translated command, all problems of a refused one with the corrected
//! command, and the defaults of other programs (`--explain-defaults PROGRAM`).

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Command};

use super::TranslationOutcome;
use super::rules::run_rule;
use super::state::{CommandTranslation, OptionSetting};
use super::table::{DEFAULTS, ForeignDefault, PROGRAMS};
use super::terms::Scope;
use super::words::{option_words, reel_argument};

/// Maximum number of columns of a line of the corrected command.
const WIDTH: usize = 100;

/// The id of `--explain-defaults` in the parser.
const EXPLAIN: &str = "explain_defaults";

/// Returns the outcome of a translation: the translated command, or the error message.
pub fn translation_outcome(t: &CommandTranslation) -> TranslationOutcome {
    match t.problems.is_empty() {
        true => TranslationOutcome::Translated { words: t.translated_words(), notes: notes(t) },
        false => TranslationOutcome::Refused { message: refusal(t) },
    }
}

/// Returns all notes. One of them lists all options without effect, sorted by kind.
fn notes(t: &CommandTranslation) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    t.harmless.iter().for_each(|(name, group)| groups.entry(group).or_default().push(name));
    let groups: Vec<String> = groups.iter().map(|(group, names)| format!("{} ({group})", names.join(", "))).collect();
    let options = if t.harmless.len() == 1 { "option has" } else { "options have" };
    let note = format!("note: {} {options} no effect here: {}", t.harmless.len(), groups.join("; "));
    Some(note).filter(|_| !groups.is_empty()).into_iter().chain(t.notes.iter().cloned()).collect()
}

fn refusal(t: &CommandTranslation) -> String {
    let (path, count) = (t.line.path.join(" "), t.problems.len());
    let options = if count == 1 { "option" } else { "options" };
    let mut text = format!("reel {path}: {count} {options} cannot be used as given; use the command below\n");
    for problem in &t.problems {
        text += &format!("  {}: {}; {}\n", problem.shown, problem.what, problem.help);
    }
    text += &format!("\n{}", corrected_command(t));
    if t.setting("api_key").is_some() {
        text += "\nnote: messages do not show keys: FILE is a file with one key per line, or set VLLM_API_KEY to the key and \
                 leave --api-key-file out";
    }
    notes(t).iter().for_each(|note| text += &format!("\n{note}"));
    text
}

/// Returns the corrected command, with line breaks, ready to paste into a shell.
fn corrected_command(t: &CommandTranslation) -> String {
    // Messages must not show API keys, so `--api-key-file FILE` replaces all keys.
    let keys = t.settings.iter().position(|setting| setting.name == "api_key");
    let is_shown =
        |(at, s): &(usize, &OptionSetting)| s.name != "api_key" || (Some(*at) == keys && !t.is_set("api_key_file"));
    let words = |(_, s): (usize, &OptionSetting)| match s.name.as_str() {
        "api_key" => option_words(t.parser(), "api_key_file", &["FILE".to_string()]),
        name => option_words(t.parser(), name, &s.values),
    };
    let quoted = |words: Vec<String>| words.iter().map(|w| quoted_for_shell(w)).collect::<Vec<_>>().join(" ");
    let options = t.settings.iter().enumerate().filter(is_shown).map(words).filter(|words| !words.is_empty());
    let arguments = t.line.arguments.iter().map(|word| vec![word.clone()]);
    let start = std::iter::once("reel").chain(t.line.before.iter().chain(&t.line.path).map(String::as_str));
    let (mut text, mut line) = (String::new(), format!("  {}", quoted(start.map(String::from).collect())));
    for part in options.chain(arguments).map(quoted) {
        if line.len() + 1 + part.len() + 2 > WIDTH {
            text += &format!("{line} \\\n");
            line = format!("    {part}");
        } else {
            line += &format!(" {part}");
        }
    }
    text + &line + "\n"
}

/// Quotes a word for a shell if it has special characters.
fn quoted_for_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Adds a note about options that the command does not set and whose defaults in the other program differ from reel's.
pub fn note_different_defaults(t: &mut CommandTranslation) {
    let program = t.most_likely_program();
    let Some((_, version)) = PROGRAMS.iter().find(|(name, _)| *name == program) else { return };
    let (command, mut listed) = (t.command.clone(), Vec::new());
    for default in DEFAULTS.iter().filter(|default| default.program == program && default.command == command) {
        let &ForeignDefault { option, words, .. } = default;
        let item = Some(option.to_string());
        let mut scope = Scope { item, key: Some(words.to_string()), ..Scope::default() };
        if !run_rule("default_counts", &mut scope, t) {
            continue;
        }
        run_rule("own_default", &mut scope, t);
        let argument = reel_argument(t.parser(), option);
        let default = argument.map(|a| if a.get_action().takes_values() { default_text(a) } else { "false".into() });
        let own = scope.names.remove("own").or(default).unwrap_or_default();
        listed.push(match option {
            "-" => format!("no such option ({words})"),
            option => format!("--{} {own} ({words})", option.replace('_', "-")),
        });
    }
    if !listed.is_empty() {
        let name = version.split(' ').next().unwrap_or(program);
        let (listed, command) = (listed.join(", "), if command == "grpo" { "grpo" } else { "sft" });
        t.notes.push(format!(
            "note: options that are not given and have another default in {name}: {listed}; \
             `reel {command} --explain-defaults {program}` shows the sources"
        ));
    }
}

/// Returns the default of an option as text.
fn default_text(argument: &Arg) -> String {
    argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
}

/// Adds `--explain-defaults` to a training command.
pub fn with_explain_option(command: Command) -> Command {
    let programs: Vec<&str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    let help = "Print the defaults of another program that differ from those of this command, and exit: trl, swift, \
                llamafactory, axolotl, verl, easyr1, qwen-finetune, 2u1, video-r1, vllm, sglang, lmdeploy or vllm-bench";
    let option = Arg::new(EXPLAIN).long("explain-defaults").alias(EXPLAIN).value_name("PROGRAM");
    command.arg(option.value_parser(programs).hide_possible_values(true).help(help).help_heading("Training options"))
}

/// Returns the table that `--explain-defaults` asks for; `None` if the option is not given. `root` is the parser of
/// the whole command line.
pub fn explain_defaults(root: &Command, matches: &ArgMatches) -> Option<String> {
    let program = matches.try_get_one::<String>(EXPLAIN).ok().flatten()?;
    let version = PROGRAMS.iter().find(|(name, _)| name == program).map_or("", |(_, version)| version);
    let mut text = format!("Defaults of {version}, where those of reel differ:\n");
    for (name, path) in [("sft", "sft"), ("grpo", "grpo"), ("serve", "serve"), ("bench", "bench serve")] {
        let command = path.split(' ').try_fold(root, |command, name| command.find_subcommand(name));
        let rows = DEFAULTS.iter().filter(|default| default.program == program && default.command == name);
        for (at, row) in rows.enumerate() {
            if at == 0 {
                text += &format!("\nreel {path}\n  {:<32} {:<16} {program}\n", "option", "reel");
            }
            let own = command.and_then(|c| reel_argument(c, row.option)).map(default_text);
            let own = own.map(|own| if own.is_empty() { "-".into() } else { own }).unwrap_or_default();
            let option = if row.option == "-" { "-".into() } else { format!("--{}", row.option.replace('_', "-")) };
            text += &format!("  {option:<32} {own:<16} {}\n", row.words);
        }
    }
    Some(text)
}
