//! Fuzz targets for texts that users and clients write: messages, requests, addresses, rows of data, configuration
//! files.

use std::fs;
use std::path::Path;

use reel_input::chat::CHAT_TEMPLATE;
use reel_input::fetch::decode_data_uri;
use reel_input::messages::{Conversation, MediaSource};
use reel_input::request::ChatRequest;
use reel_media::image;
use reel_samples::dataset::Dataset;
use reel_samples::quarantine::{ScanJournal, journal_path, read_quarantine_list};
use reel_samples::rows::SupervisedRow;
use reel_support::diagnostic::{escape_controls, escape_controls_in_json, redact_urls};
use reel_train::options::{Recipe, TrainingOptions};
use reel_train::runs::config_file::ConfigFile;
use reel_train::{GrpoOptions, SftOptions};
use serde_json::{Value, json};

use super::{FuzzTarget, scratch_folder, text_of};
use crate::mutate::{PartFormat, Seed, split_into_parts};
use crate::verdict::{require, value_if_accepted, verdict_of};

const MESSAGE_WORDS: &[&str] = &[
    "role",
    "content",
    "type",
    "text",
    "image",
    "video",
    "image_url",
    "video_url",
    "url",
    "user",
    "assistant",
    "system",
    "fps",
    "nframes",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "video_start",
    "video_end",
    "min_frames",
    "max_frames",
    "messages",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "tool_calls",
    "tool_call_id",
    "tool",
    "function",
    "name",
    "arguments",
    "parameters",
    "strict",
    "required",
    "{\"a\": 1}",
    "file:///etc/passwd",
    "http://[::1]/x",
    "data:image/png;base64,AA==",
    "../../x",
    "/dev/zero",
    "",
    "<image>",
    "<video>",
    "conversations",
    "prompt",
    "images",
    "videos",
    "from",
    "value",
    "human",
    "gpt",
    "problem",
    "problem_type",
    "data_type",
    "options",
    "process",
    "solution",
    "path",
    "completion",
];

fn conversation() -> Value {
    json!([
        {"role": "system", "content": "s"},
        {"role": "user", "name": "n", "content": [
            {"type": "video", "video": "a.mp4", "fps": 2.0, "max_pixels": 100352, "video_start": 0.5},
            {"type": "video", "video": ["1.png", "2.png"], "nframes": 2},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}, "min_pixels": 784},
            {"type": "image", "image": "https://user:SECRET@host.example/a.png?key=SECRET"},
            {"type": "text", "text": "What?"},
        ]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "assistant", "content": "a"},
    ])
}

/// A messages file: a JSON list of messages, or the body of a chat request.
pub const MESSAGES: FuzzTarget = FuzzTarget {
    name: "messages",
    words: MESSAGE_WORDS,
    seeds: || {
        let body = json!({
            "model": "m", "messages": conversation(), "temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 7, "n": 2,
            "stop": ["END"], "seed": 3, "stream": true, "logprobs": null, "presence_penalty": 0,
        });
        let mut with_tools = body.clone();
        with_tools["tools"] =
            json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
        with_tools["tool_choice"] = json!({"type": "function", "function": {"name": "f"}});
        let mut with_media = body.clone();
        with_media["mm_processor_kwargs"] = json!({"size": {"longest_edge": 100352}, "do_resize": true});
        with_media["media_io_kwargs"] = json!({"video": {"num_frames": 8}});
        with_media["chat_template_kwargs"] = json!({"add_vision_id": true});
        let seeds = [conversation(), body, with_tools, with_media];
        Ok(seeds.iter().map(|seed| Seed::new(PartFormat::Json, seed.to_string())).collect())
    },
    open: || {
        Ok(Box::new(|input| {
            let Some(request) = value_if_accepted(ChatRequest::parse("m.json", input))? else { return Ok(false) };
            let Some(conversation) = value_if_accepted(request.conversation(Path::new("/root")))? else {
                return Ok(false);
            };
            let is_answered = conversation.check_tool_results().is_ok();
            std::hint::black_box((conversation.media_parts().count(), conversation.to_template_value(), is_answered));
            Ok(true)
        }))
    },
};

/// Addresses and other text of unknown origin. Checks that escaped text has no control characters, that escaping in
/// JSON keeps the strings, and that hiding the secrets of an address twice gives the same text as hiding them once.
pub const URLS: FuzzTarget = FuzzTarget {
    name: "urls",
    words: &[
        "http://",
        "https://",
        "file://",
        "data:image/png;base64,",
        "data:",
        "base64,",
        "@",
        "?",
        "#",
        "/",
        "//",
        ":",
        "%40",
        "user:pw@",
        "[::1]",
        "127.0.0.1",
        "\\",
        "&amp;",
        "s3://",
        "HTTP://",
        "?sig=",
        ";",
        "\"",
        "'",
        "<",
        ">",
        " ",
        "=",
    ],
    seeds: || {
        let texts = [
            "https://user:password@host.example:8000/a/b.mp4?signature=secret&x=1#part",
            "error: cannot read http://a@b/c?d; see file:///x/y?z, or data:text/plain;base64,SGVsbG8=",
            "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
            "a\u{1b}[31mred\u{9b}2J\r\n\0\u{7f} \u{202e}text",
        ];
        Ok(texts.iter().map(|text| Seed::new(PartFormat::Text, *text)).collect())
    },
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            let printable = escape_controls(&text);
            let is_unsafe = |c: char| c.is_control() && c != '\n' && c != '\t';
            require(!printable.contains(is_unsafe), || "escape_controls keeps a control character".to_string())?;
            let redacted = redact_urls(&text);
            require(redact_urls(&redacted) == redacted, || {
                format!("a second redaction changes {:?}", redacted.chars().take(200).collect::<String>())
            })?;
            let quoted = json!(text).to_string();
            let escaped: Option<String> = serde_json::from_str(&escape_controls_in_json(&quoted)).ok();
            require(escaped.as_ref() == Some(&text), || "escape_controls_in_json changes the parsed text".to_string())?;
            std::hint::black_box(MediaSource::parse(&text, Path::new("/root")).path_or_address());
            let decoded = verdict_of(decode_data_uri(&text))?;
            Ok(verdict_of(image::from_data_uri(&text, image::ExifOrientation::Apply))?
                || decoded
                || redacted != text
                || printable != text)
        }))
    },
};

/// Rows of training data in all layouts, as JSONL and as a JSON list.
pub const ROWS: FuzzTarget = FuzzTarget {
    name: "rows",
    words: MESSAGE_WORDS,
    seeds: || {
        let turn = |role: &str, content: Value| json!({"role": role, "content": content});
        let rows = [
            json!({"messages": conversation()}),
            json!({"messages": [turn("user", json!("<video>What?")), turn("assistant", json!("a"))], "videos": ["a.mp4"]}),
            json!({"prompt": [turn("user", json!([{"type": "image"}, {"type": "text", "text": "?"}]))], "images": ["a.png"], "solution": "x"}),
            json!({"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}], "system": "s", "image": "a.png"}),
            json!({"prompt": "2 + 2?", "solution": "4"}),
            json!({"prompt": "2 + 2 =", "completion": " 4"}),
            json!({"prompt": [turn("user", json!("?"))], "completion": [turn("assistant", json!("!"))]}),
            json!({"query": "<image>?", "response": "a", "history": [["q", "a"]], "images": ["a.png"]}),
            json!({"instruction": "Add.", "input": "2, 2", "output": "4", "system": "s"}),
            json!({"problem": "<image>?", "answer": "3", "images": ["a.png"]}),
            json!({
                "problem": "Which?", "data_type": "video", "problem_type": "multiple choice", "options": ["A. x", "B. y"],
                "process": "<think>t</think>", "solution": "<answer>A</answer>", "path": "./d/a.mp4", "problem_id": 3,
            }),
            json!({"problem": "?", "data_type": "text", "problem_type": "numerical", "solution": "<answer>4</answer>"}),
        ];
        let lines = rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        Ok(vec![Seed::new(PartFormat::JsonLines, lines), Seed::new(PartFormat::Json, json!(rows).to_string())])
    },
    open: || {
        let path = scratch_folder()?.join("rows.jsonl");
        Ok(Box::new(move |input| {
            fs::write(&path, input).map_err(|e| e.to_string())?;
            let Some(rows) = value_if_accepted(Dataset::open(&path))? else { return Ok(false) };
            let mut all = true;
            for index in 0..rows.len().min(100) {
                let Some(row) = value_if_accepted(rows.row(index))? else {
                    all = false;
                    continue;
                };
                for recipe in [Recipe::Paper, Recipe::VideoR1] {
                    let chat = match value_if_accepted(row.to_supervised_row(recipe))? {
                        Some(SupervisedRow::Chat { messages, .. }) => Some(Value::Array(messages)),
                        Some(SupervisedRow::Text { .. }) | None => None,
                    };
                    let prompt =
                        value_if_accepted(row.prompt_and_columns(recipe))?.map(|(content, _)| content.into_json());
                    for messages in [chat, prompt].into_iter().flatten() {
                        verdict_of(Conversation::from_row(
                            &rows.location(index),
                            &messages,
                            Path::new("/root"),
                            Some(CHAT_TEMPLATE),
                        ))?;
                    }
                }
            }
            Ok(all)
        }))
    },
};

/// Configuration files of training in TOML, YAML and JSON.
pub const RUN_CONFIG: FuzzTarget = FuzzTarget {
    name: "run-config",
    words: &[
        "learning_rate",
        "max-steps",
        "report_to",
        "lora_target_modules",
        "overwrite",
        "resume_from_checkpoint",
        "true",
        "null",
        "[a]",
        "[[a]]",
        "{",
        "}",
        "- ",
        ": ",
        "&a",
        "*a",
        "!!binary",
        "|",
        ">",
        "---",
        "<<: *a",
        "\"\"\"",
        "'''",
        "inf",
        "nan",
        "1979-05-27T07:32:00Z",
        "a.b.c",
        "beta",
        "num_generations",
        "loss_type",
        "seed",
        "labels",
        "dapo",
        "0x1F",
        "1_000",
    ],
    seeds: || {
        let toml = "learning-rate = 1e-5\nmax_steps = 9\nlabels = \"text\"\nno-shuffle = true\ndata = \"d.jsonl\"\nreport-to = [\"wandb\"]\n";
        let yaml = "# a run\nmodel_name_or_path: tiny\nlearning_rate: 1e-5\nreport_to: wandb\nlora_r: 4\nlora_target_modules:\n  - q_proj\n  - v_proj\nmax_steps: 3\nlabels: null\nrun_name: >-\n  a\n  b\n";
        let json = r#"{"learning_rate": 1e-5, "report_to": ["wandb"], "max_steps": 3, "beta": 0.1, "num_generations": 4, "overwrite": true}"#;
        let grpo = "num-generations = 8\ntemporal = true\nreward-weights = \"semantic=0\"\nbeta = 0.04\nloss-type = \"dapo\"\ntop-p = 1.0\n";
        Ok(vec![
            Seed::new(PartFormat::Fixed, "c.toml").with_part(PartFormat::Text, toml),
            Seed::new(PartFormat::Fixed, "c.toml").with_part(PartFormat::Text, grpo),
            Seed::new(PartFormat::Fixed, "c.yaml").with_part(PartFormat::Text, yaml),
            Seed::new(PartFormat::Fixed, "c.json").with_part(PartFormat::Json, json),
        ])
    },
    open: || {
        let folder = scratch_folder()?;
        Ok(Box::new(move |input| {
            let parts = split_into_parts(input);
            let path = match parts[0] {
                b"c.yaml" => folder.join("c.yaml"),
                b"c.json" => folder.join("c.json"),
                _ => folder.join("c.toml"),
            };
            fs::write(&path, parts[parts.len() - 1]).map_err(|e| e.to_string())?;
            let Some(file) = value_if_accepted(ConfigFile::read(&path))? else { return Ok(false) };
            let start = verdict_of(file.start_flags())?;
            let sft = value_if_accepted(file.apply(&SftOptions::default(), |name| name == "seed"))?;
            let grpo = value_if_accepted(file.apply(&GrpoOptions::default(), |_| false))?;
            let values = [
                sft.map(|o| value_if_accepted(o.validate_values())),
                grpo.map(|o| value_if_accepted(o.validate_values())),
            ];
            let mut is_valid = false;
            for value in values.into_iter().flatten() {
                is_valid |= value?.is_some();
            }
            Ok(start && is_valid)
        }))
    },
};

/// The files of a check of training data: the list of unusable rows, and the journal from which an interrupted check
/// continues.
pub const QUARANTINE: FuzzTarget = FuzzTarget {
    name: "quarantine",
    words: &["row", "line", "cause", "reason", "scan", "tokens", "media", "timeout", "killed", "fingerprint"],
    seeds: || {
        let list = [
            json!({"row": 0, "line": 1, "cause": "media", "reason": "a.mp4: is damaged"}),
            json!({"row": 2, "line": 3, "cause": "other", "reason": "x"}),
        ];
        let journal = [json!({"scan": "f"}), json!({"row": 0, "tokens": 12}), list[1].clone()];
        let lines = |rows: &[Value]| rows.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        Ok(vec![
            Seed::new(PartFormat::JsonLines, lines(&list)).with_part(PartFormat::JsonLines, lines(&journal) + "\n"),
        ])
    },
    open: || {
        let list = scratch_folder()?.join("list.jsonl");
        Ok(Box::new(move |input| {
            let parts = split_into_parts(input);
            fs::write(&list, parts[0]).map_err(|e| e.to_string())?;
            let read = verdict_of(read_quarantine_list(&list, |row| row.checked_add(1)))?;
            let journal = journal_path(&list);
            fs::create_dir_all(journal.parent().unwrap_or(Path::new("."))).map_err(|e| e.to_string())?;
            fs::write(&journal, parts[parts.len() - 1]).map_err(|e| e.to_string())?;
            let journal = value_if_accepted(ScanJournal::open(&list, "f", true))?;
            Ok(read && journal.is_some_and(|journal| journal.earlier_checks().contains_key(&0)))
        }))
    },
};
