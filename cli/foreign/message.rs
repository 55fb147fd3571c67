//! The text that a user sees about a translated command: the notes; or, if the command is refused, all problems and
//! the corrected command.

use std::collections::BTreeMap;

use super::TranslationOutcome;
use super::translation::{CommandTranslation, OptionSetting};
use super::words::{option_words, quoted_for_shell};

/// Maximum number of columns of a line of the corrected command.
const WIDTH: usize = 100;

/// Returns the outcome of a translation: the translated command, or the error message.
pub fn translation_outcome(t: &CommandTranslation) -> TranslationOutcome {
    if !t.problems.is_empty() {
        return TranslationOutcome::Refused { message: refusal(t) };
    }
    TranslationOutcome::Translated { words: t.translated_words(), notes: notes(t) }
}

/// Returns all notes. One of them lists all options without effect, sorted by kind.
fn notes(t: &CommandTranslation) -> Vec<String> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, group) in &t.harmless {
        groups.entry(group).or_default().push(name);
    }
    let mut notes = t.notes.clone();
    if !groups.is_empty() {
        let groups: Vec<String> =
            groups.iter().map(|(group, names)| format!("{} ({group})", names.join(", "))).collect();
        let count = t.harmless.len();
        let options = if count == 1 { "option has" } else { "options have" };
        notes.insert(0, format!("note: {count} {options} no effect here: {}", groups.join("; ")));
    }
    notes
}

fn refusal(t: &CommandTranslation) -> String {
    let path = t.line.path.join(" ");
    let count = t.problems.len();
    let options =
        if count == 1 { "1 option cannot be used".to_string() } else { format!("{count} options cannot be used") };
    let mut text = format!("reel {path}: {options} as given; use the command below\n");
    for problem in &t.problems {
        text += &format!("  {}: {}; {}\n", problem.shown, problem.what, problem.help);
    }
    text += &format!("\n{}", corrected_command(t));
    if t.settings.iter().any(|setting| setting.name == "api_key") {
        text += "\nnote: messages do not show keys: FILE is a file with one key per line, or set VLLM_API_KEY to the key and \
                 leave --api-key-file out";
    }
    for note in notes(t) {
        text += &format!("\n{note}");
    }
    text
}

/// Returns the corrected command, with line breaks, ready to paste into a shell.
pub fn corrected_command(t: &CommandTranslation) -> String {
    let start: Vec<String> = std::iter::once("reel".to_string())
        .chain(t.line.before.iter().chain(&t.line.path).map(|word| quoted_for_shell(word)))
        .collect();
    // Messages must not show API keys, so `--api-key-file FILE` replaces all keys.
    let keys = t.settings.iter().position(|setting| setting.name == "api_key");
    let is_shown =
        |(at, s): &(usize, &OptionSetting)| s.name != "api_key" || (Some(*at) == keys && !t.is_set("api_key_file"));
    let words = |(_, s): (usize, &OptionSetting)| match s.name.as_str() {
        "api_key" => option_words(t.parser(), "api_key_file", &["FILE".to_string()]),
        name => option_words(t.parser(), name, &s.values),
    };
    let options = t.settings.iter().enumerate().filter(is_shown).map(words).filter(|words| !words.is_empty());
    let arguments = t.line.arguments.iter().map(|word| vec![word.clone()]);
    let parts =
        options.chain(arguments).map(|words| words.iter().map(|w| quoted_for_shell(w)).collect::<Vec<_>>().join(" "));
    let mut text = String::new();
    let mut line = format!("  {}", start.join(" "));
    for part in parts {
        if line.len() + 1 + part.len() + 2 > WIDTH {
            text += &format!("{line} \\\n");
            line = format!("    {part}");
        } else {
            line += &format!(" {part}");
        }
    }
    text + &line + "\n"
}
