//! A user-defined benchmark.

/// The task file of a user-defined benchmark, with rows of text and of videos.
pub const CUSTOM_TASK_TOML: &str = r#"
name = "mine"
title = "Mine"
version = 1
source = "https://example.org"
[prompt]
template = "{question}\n{options}"
[[layout]]
name = "own"
files = ["*.jsonl"]
columns = ["q", "o", "a", "v"]
row = { id = "{row.number}", question = "{q}", kind = "multiple choice", options = "o", answer = "{a}", answer-form = "index" }
[[layout.case]]
when = { v = ["clip"] }
row = { video = ["clip.mp4"] }
"#;
