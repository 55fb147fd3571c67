//! Fuzz targets for texts that users and clients write: messages, requests, addresses, rows of data, configuration
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use reel_input::chat::CHAT_TEMPLATE;
use reel_input::fetch::decode_data_uri;
use reel_input::media::image;
use reel_input::messages::{Conversation, MediaSource};
use reel_input::request::ChatRequest;
use reel_samples::dataset::Dataset;
use reel_samples::quarantine::{ScanJournal, journal_path, read_quarantine_list};
use reel_samples::rows::SupervisedRow;
use reel_support::diagnostic::{escape_controls, escape_controls_in_json, redact_urls};
use reel_train::options::{Recipe, TrainingOptions};
use reel_train::runs::config_file::ConfigFile;
use reel_train::{GrpoOptions, SftOptions};
use serde_json::{Value, json};

use super::{Runner, accepted, first_part_of, run, text_of, write};

/// A messages file: a JSON list of messages, or the body of a chat request.
pub fn messages(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let request = accepted(ChatRequest::parse("m.json", input))?;
        let conversation = accepted(request.conversation(Path::new("/root")))?;
        let is_answered = conversation.check_tool_results().is_ok();
        std::hint::black_box((conversation.media_parts().count(), conversation.to_template_value(), is_answered));
        Some(())
    })
}

/// Addresses and other text of unknown origin. Checks that escaped text has no control characters, that escaping in
/// JSON keeps the strings, and that hiding the secrets of an address twice gives the same text as hiding them once.
pub fn urls(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let text = text_of(input);
        let printable = escape_controls(&text);
        let is_unsafe = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!printable.contains(is_unsafe), "escape_controls keeps a control character");
        let redacted = redact_urls(&text);
        assert_eq!(redact_urls(&redacted), redacted, "a second redaction");
        let escaped: Option<String> = serde_json::from_str(&escape_controls_in_json(&json!(text).to_string())).ok();
        assert!(escaped.as_ref() == Some(&text), "escape_controls_in_json changes the parsed text");
        std::hint::black_box(MediaSource::parse(&text, Path::new("/root")).path_or_address());
        accepted(decode_data_uri(&text));
        accepted(image::from_data_uri(&text, image::ExifOrientation::Apply));
        Some(())
    })
}

/// Rows of training data in all layouts, as JSONL and as a JSON list.
pub fn rows(folder: PathBuf) -> Result<Runner> {
    run(move |input| {
        let path = folder.join("rows.jsonl");
        write(&path, input);
        let rows = accepted(Dataset::open(&path))?;
        let count = rows.len().min(100);
        let accepted_rows = (0..count).filter(|&index| check_row(&rows, index).is_some()).count();
        (accepted_rows == count).then_some(())
    })
}

fn check_row(rows: &Dataset, index: usize) -> Option<()> {
    let row = accepted(rows.row(index))?;
    for recipe in [Recipe::Paper, Recipe::VideoR1] {
        let chat = match accepted(row.to_supervised_row(recipe)) {
            Some(SupervisedRow::Chat { messages, tools, .. }) => Some((Value::Array(messages), tools)),
            Some(SupervisedRow::Text { .. }) | None => None,
        };
        let prompt = accepted(row.prompt_and_columns(recipe)).map(|(content, _)| (content.into_json(), Value::Null));
        for (messages, tools) in [chat, prompt].into_iter().flatten() {
            let (location, base) = (rows.location(index), Path::new("/root"));
            let read = Conversation::from_row(&location, &messages, base, Some(CHAT_TEMPLATE));
            accepted(read.and_then(|conversation| conversation.with_tools_column(tools)));
        }
    }
    Some(())
}

/// Configuration files of training in TOML, YAML and JSON. An input is the file's name and its text.
pub fn run_config(folder: PathBuf) -> Result<Runner> {
    run(move |input| {
        let (name, text) = first_part_of(input);
        let names = ["c.yaml", "c.json", "c.toml"];
        let path = folder.join(names.iter().find(|known| known.as_bytes() == name).unwrap_or(&"c.toml"));
        write(&path, text);
        let file = accepted(ConfigFile::read(&path))?;
        let sft = accepted(file.apply(&SftOptions::default(), |name| name == "seed"));
        let grpo = accepted(file.apply(&GrpoOptions::default(), |_| false));
        let sft = sft.and_then(|options| accepted(options.validate_values()));
        let grpo = grpo.and_then(|options| accepted(options.validate_values()));
        accepted(file.start_flags())?;
        sft.or(grpo)
    })
}

/// The files of a check of training data: the list of unusable rows, and the journal from which an interrupted check
/// continues.
pub fn quarantine(folder: PathBuf) -> Result<Runner> {
    let list = folder.join("list.jsonl");
    let journal = journal_path(&list);
    fs::create_dir_all(journal.parent().unwrap_or(Path::new(".")))?;
    run(move |input| {
        let (list_text, journal_text) = first_part_of(input);
        write(&list, list_text);
        write(&journal, journal_text);
        let is_read = accepted(read_quarantine_list(&list, |row| row.checked_add(1))).is_some();
        let journal = accepted(ScanJournal::open(&list, "f", true))?;
        (is_read && journal.earlier_checks().contains_key(&0)).then_some(())
    })
}
