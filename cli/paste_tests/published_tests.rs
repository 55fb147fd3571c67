//! Tests the translation of published commands of other programs (`tests/paste/README.md` lists the sources) and of
//! all their option names.

use std::fs;
use std::path::Path;

use reel_train::runs::paste::{TranslationOutcome, table};
use serde_json::Value;

use super::tests::{
    assert_corrected_command_is_accepted, expect_refused, expect_translated, outcome_of_line, outcome_of_words, parser,
    reel_argument,
};

/// A published command of another program, from `tests/paste/commands.json`. `tests/paste/README.md` says how that
/// file was made.
struct Published {
    id: String,
    /// The words after `reel`, with paths to the files of the test.
    words: Vec<String>,
    environment: Vec<(String, String)>,
}

const COMMANDS: &str = include_str!("../../tests/paste/commands.json");
const FURTHER_COMMANDS: &str = include_str!("../../tests/paste/further.json");

/// Reads the published commands of a JSON file. Their data and media are the files in `tests/paste/rows`; their
/// configuration files are written to `folder`.
fn published(commands: &str, folder: &Path) -> Vec<Published> {
    let first: Value = serde_json::from_str(COMMANDS).unwrap();
    let all: Value = serde_json::from_str(commands).unwrap();
    let rows = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/paste/rows");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let all = all.as_array().unwrap().iter().map(|entry| {
        let data = format!("{rows}/{}", text(&entry["rows"]));
        let fill = |word: &str| match word {
            "DATA" => data.clone(),
            "MEDIA" => rows.to_string(),
            _ => word.replace("=DATA", &format!("={data}")).replace("=MODEL", "=tiny").replace("MODEL", "tiny"),
        };
        let id = text(&entry["id"]);
        let mut words: Vec<String> = text(&entry["command"]).split(' ').map(String::from).collect();
        // The entry that has the configuration file: this one, or the one that its field `base` names.
        let base = first.as_array().unwrap().iter().find(|other| other["id"] == entry["base"]).unwrap_or(entry);
        let path = folder.join(format!("{id}.yaml"));
        if let Some(config) = base["config"].as_str() {
            let config = config.replace("DATA", &data).replace("MODEL", "tiny").replace("hiyouga/math12k@train", &data);
            fs::write(&path, config.replace("Qwen/Qwen2.5-7B-Instruct", "tiny")).unwrap();
        }
        match entry["words"].as_array() {
            Some(list) => words.extend(list.iter().map(|word| match fill(word.as_str().unwrap_or_default()) {
                word if word == "config=run.yaml" => format!("config={}", path.display()),
                word => word,
            })),
            None => words.extend(["--config".to_string(), path.display().to_string()]),
        }
        // These commands name no data set, because the script that they come from sets it.
        if ["C08", "D25"].contains(&id.as_str()) {
            words.extend(["--dataset_name".into(), data.clone()]);
        }
        let environment = entry["environment"].as_object().unwrap();
        Published { id, words, environment: environment.iter().map(|(k, v)| (k.clone(), text(v))).collect() }
    });
    all.collect()
}

/// Returns the ids of the commands that are accepted as published. Checks for every other command that its one error
/// message has a corrected command that is accepted.
fn accepted_at_once(commands: &[Published]) -> String {
    let mut at_once = Vec::new();
    for command in commands {
        match outcome_of_words(&command.words, &command.environment) {
            TranslationOutcome::Refused { message } => {
                assert_corrected_command_is_accepted(&command.id, &message, &command.environment)
            }
            TranslationOutcome::Unchanged => at_once.push(command.id.as_str()),
            TranslationOutcome::Translated { words, .. } => {
                let words = std::iter::once("reel".to_string()).chain(words);
                let parsed = parser().clone().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{}: {}", command.id, parsed.unwrap_err());
                at_once.push(&command.id);
            }
        }
    }
    at_once.join(" ")
}

#[test]
fn published_commands_are_accepted_or_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    let all = published(COMMANDS, folder.path());
    assert_eq!(all.len(), 29);
    assert_eq!(accepted_at_once(&all), "C01 C05 C07 C08 C09 C11 C15 C18 C20 C27 C32 C37");
    let further = published(FURTHER_COMMANDS, folder.path());
    assert!(further.len() >= 24);
    assert_eq!(accepted_at_once(&further), "D09 D10 D12 D13 D15 D16 D17 D20 D21 D22 D23 D24 D25");
}

/// Takes random subsets of the options of published commands, in random order: each is accepted, or refused once with
/// a corrected command that is accepted.
#[test]
fn parts_of_published_commands_are_refused_at_most_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut tried = 0;
    for command in
        published(COMMANDS, folder.path()).iter().filter(|command| !command.words.contains(&"--config".to_string()))
    {
        let path = if command.words[0] == "bench" { 2 } else { 1 };
        let mut groups: Vec<Vec<String>> = Vec::new();
        for word in &command.words[path..] {
            match groups.last_mut().filter(|_| !word.starts_with("--") && !word.contains(".yaml")) {
                Some(group) if group[0].starts_with("--") => group.push(word.clone()),
                _ => groups.push(vec![word.clone()]),
            }
        }
        for _ in 0..12 {
            let mut part: Vec<Vec<String>> = groups.iter().filter(|_| random(3) > 0).cloned().collect();
            for at in (1..part.len()).rev() {
                part.swap(at, random(at + 1));
            }
            // Arguments such as the model come first, because after a switch they would be read as its value.
            part.sort_by_key(|group| group[0].starts_with("--"));
            let words: Vec<String> = command.words[..path].iter().cloned().chain(part.concat()).collect();
            if let TranslationOutcome::Refused { message } = outcome_of_words(&words, &command.environment) {
                assert_corrected_command_is_accepted(
                    &format!("{} {words:?}", command.id),
                    &message,
                    &command.environment,
                );
            }
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
}

/// Every option of the other programs is in the option table or is an option of reel. None is unknown, for which reel
/// would suggest a similar name.
#[test]
fn every_option_of_the_peers_is_known() {
    let mut unknown = Vec::new();
    let mut known = 0;
    for text in include_str!("../../tests/paste/names.txt").lines().filter(|line| !line.starts_with('#')) {
        let Some((command, names)) = text.split_once(": ") else { continue };
        let own = parser().find_subcommand(command).expect("a command");
        for name in names.split(' ') {
            let has_row = table::ROWS.iter().any(|row| {
                row.applies_to_command(command) && row.names.iter().any(|(own, _)| table::matches(own, name))
            });
            match reel_argument(own, name).is_some() || has_row {
                true => known += 1,
                false => unknown.push(format!("{command} {name}")),
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(known > 1000, "{known}");
}

/// A suggested option takes values of the same kind as the unknown option. An option of another command of reel gets
/// no suggestion.
#[test]
fn advice_is_of_the_same_kind() {
    for (words, wanted) in [
        ("sft --model m --data d --out o --bf16 --allowed-local-media-path x", "what `reel serve` does"),
        ("grpo --model m --data d --out o --bf16 --gpu-memory-utilization 0.5", "what `reel serve` does"),
        ("sft --model m --data d --out o --bf16 --no-auth", "it is an option of reel serve"),
        ("sft --model m --data d --out o --bf16 --save_step true", "nor known as an option of another program"),
        ("sft --model m --data d --out o --bf16 --report_t 5", "nor known as an option of another program"),
        ("sft --model m --data d --out o --bf16 --mode 5", "what `reel eval` does"),
        ("sft --model m --data d --out o --bf16 --save_step 5", "did you mean --save-steps?"),
        ("serve m --gpu_memory_utilisation 0.5 --api-key k", "nor known as an option of another program"),
        ("serve m --max-model-lens 5 --api-key k", "did you mean --max-model-len?"),
    ] {
        let message = expect_refused(outcome_of_line(words), words);
        assert!(message.contains(wanted), "{words}: {message}");
        assert_corrected_command_is_accepted(words, &message, &[]);
    }
    for words in [
        "serve m --allowed-local-media-path /media --gpu-memory-utilization 0.9",
        "sft --model m --data d --out o --bf16 false --freeze_llm true",
        "grpo --model m --data d --out o --use_vllm --bf16 false",
    ] {
        expect_translated(outcome_of_line(words), words);
    }
}
