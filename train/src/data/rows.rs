//! Parses one row of training data in any of four layouts, and makes the conversation to train on.
//!
//! | layout | fields |
//! |---|---|
//! | chat | `messages`: chat messages |
//! | ShareGPT | `conversations`: messages `{"from", "value"}`; `system`: a text (optional) |
//! | prompt | `prompt`: chat messages up to the answer, or a text; other columns are for rewards |
//! | problem | `problem`, `data_type`, `problem_type`, `options`, `process`, `solution`, `path` (VideoRFT's and Video-R1's data sets) |
//!
//! In the first three, images and videos are parts of the messages, or stand in columns (`media_columns`).

use reel_diagnostic::Diagnostic;
use reel_prompts::QuestionTemplate;
use reel_rewards::text_field;
use serde_json::{Map, Value, json};

use crate::data::media_columns;
use crate::options::Recipe;

/// A row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum DataRow {
    /// A whole chat.
    Chat(Vec<Value>),
    /// A prompt that completions are sampled for, in reinforcement learning.
    Prompt {
        /// The chat messages, or the text.
        content: PromptContent,
        /// The other columns of the row.
        columns: Map<String, Value>,
    },
    /// A row of VideoRFT's or Video-R1's data sets.
    Problem {
        /// The problem's fields.
        problem: Problem,
        /// All columns of the row.
        columns: Map<String, Value>,
    },
}

/// The prompt of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptContent {
    /// Chat messages, which the chat template renders to text.
    Chat(Vec<Value>),
    /// A text that is used without the chat template, as TRL does with a `prompt` that is not a list.
    Text(String),
}

impl PromptContent {
    fn parse(prompt: Value) -> Result<Self, Diagnostic> {
        match prompt {
            Value::String(text) if text.is_empty() => Err(Diagnostic::new("prompt", "is empty", CHAT)),
            Value::String(text) => Ok(Self::Text(text)),
            other => chat("prompt", other).map(Self::Chat),
        }
    }

    /// The prompt as JSON, as in a data file: a list of messages or a string.
    pub fn into_json(self) -> Value {
        match self {
            Self::Chat(messages) => Value::Array(messages),
            Self::Text(text) => Value::String(text),
        }
    }
}

/// A problem with its answer, as VideoRFT and Video-R1 publish them.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The question.
    pub problem: String,
    /// Whether the problem is about an image, a video or text alone.
    pub data_type: ProblemMedia,
    /// The kind of answer, for example `multiple choice`.
    pub problem_type: String,
    /// The options of a multiple-choice question, each with its letter.
    pub options: Vec<String>,
    /// The chain of thought in `<think>` tags; absent in rows for reinforcement learning.
    pub process: Option<String>,
    /// The answer in `<answer>` tags.
    pub solution: String,
    /// The image or video file; empty for text problems.
    pub path: String,
}

/// What a problem is about: an image, a video or text alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemMedia {
    /// An image.
    Image,
    /// A video.
    Video,
    /// Text only.
    Text,
}

const LAYOUTS: &str = "give chat `messages`, ShareGPT `conversations`, a `prompt`, or the fields problem, data_type, problem_type, process, solution, path";

impl DataRow {
    /// Parses a row and checks its fields.
    pub fn parse(value: Value) -> Result<Self, Diagnostic> {
        let Value::Object(mut fields) = value else { return Err(Diagnostic::new("", "is not an object", LAYOUTS)) };
        if let Some(messages) = fields.shift_remove("messages") {
            let messages = with_system_column(chat("messages", messages)?, &fields)?;
            refuse_tools(&fields)?;
            return Ok(Self::Chat(media_columns::insert_media("messages", messages, &fields)?));
        }
        if let Some(turns) = fields.shift_remove("conversations") {
            let messages = with_system_column(sharegpt_messages(turns)?, &fields)?;
            refuse_tools(&fields)?;
            return Ok(Self::Chat(media_columns::insert_media("conversations", messages, &fields)?));
        }
        if let Some(prompt) = fields.shift_remove("prompt") {
            let content = match PromptContent::parse(prompt)? {
                PromptContent::Chat(messages) => {
                    let messages = with_system_column(messages, &fields)?;
                    PromptContent::Chat(media_columns::insert_media("prompt", messages, &fields)?)
                }
                PromptContent::Text(text) => {
                    media_columns::refuse_media("prompt", &text, &fields)?;
                    PromptContent::Text(text)
                }
            };
            return Ok(Self::Prompt { content, columns: fields });
        }
        if !fields.contains_key("problem") {
            return Err(Diagnostic::new("", "has no `messages`, `conversations`, `prompt` or `problem`", LAYOUTS));
        }
        media_columns::refuse_media_beside_path(&fields)?;
        Ok(Self::Problem { problem: Problem::parse(&fields)?, columns: fields })
    }

    /// The prompt that completions are sampled for, and the columns that the rewards need. Media paths are returned
    /// as written, relative to the media folder.
    pub fn prompt_and_columns(&self, parity: Recipe) -> Result<(PromptContent, Map<String, Value>), Diagnostic> {
        match self {
            Self::Prompt { content, columns } => Ok((content.clone(), columns.clone())),
            Self::Problem { problem, columns } => {
                let question = problem.user_message(parity, QuestionTemplate::Training);
                Ok((PromptContent::Chat(vec![question]), columns.clone()))
            }
            Self::Chat(_) => Err(Diagnostic::new(
                "",
                "has complete `messages`, so no answer is left to generate",
                "write the chat up to the answer as `prompt`, or use this file for supervised fine-tuning",
            )),
        }
    }

    /// The prompt of an answer that is generated outside of training. Of a whole chat, the answer at its end is left
    /// out; a problem gets the question template `template`. Media paths are returned as written.
    pub fn generation_prompt(self, parity: Recipe, template: QuestionTemplate) -> Result<PromptContent, Diagnostic> {
        match self {
            Self::Prompt { content, .. } => Ok(content),
            Self::Problem { problem, .. } => Ok(PromptContent::Chat(vec![problem.user_message(parity, template)])),
            Self::Chat(mut messages) => {
                while messages.last().is_some_and(|message| message["role"] == "assistant") {
                    messages.pop();
                }
                match messages.is_empty() {
                    true => Err(Diagnostic::new("", "has answers of the assistant only", CHAT)),
                    false => Ok(PromptContent::Chat(messages)),
                }
            }
        }
    }

    /// The whole conversation, for supervised fine-tuning. Media paths are returned as written, relative to the media
    /// folder.
    pub fn supervised_messages(&self, parity: Recipe) -> Result<Vec<Value>, Diagnostic> {
        match self {
            Self::Chat(messages) => Ok(messages.clone()),
            Self::Prompt { .. } => Err(Diagnostic::new(
                "",
                "has a `prompt` without an answer to learn",
                "write the whole chat as `messages`, or use this file for reinforcement learning",
            )),
            Self::Problem { problem, .. } => problem.supervised_messages(parity),
        }
    }
}

const CHAT: &str = "give a list of {\"role\", \"content\"} messages";

/// Checks that `value` is a list of messages with roles and contents. What is in a content is checked later, when the
/// chat template is applied.
fn chat(field: &str, value: Value) -> Result<Vec<Value>, Diagnostic> {
    let Value::Array(messages) = value else { return Err(Diagnostic::new(field, "is not a list", CHAT)) };
    if messages.is_empty() {
        return Err(Diagnostic::new(field, "is empty", CHAT));
    }
    for (i, message) in messages.iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        if !message.get("role").is_some_and(Value::is_string) {
            return Err(Diagnostic::new(at("role"), "is missing or not text", CHAT));
        }
        if !message.get("content").is_some_and(|c| c.is_string() || c.is_array()) {
            return Err(Diagnostic::new(at("content"), "is missing, or neither text nor a list of parts", CHAT));
        }
    }
    Ok(messages)
}

/// Puts the text of the column `system`, as LLaMA-Factory and ms-swift have it, before the messages of a row.
fn with_system_column(messages: Vec<Value>, fields: &Map<String, Value>) -> Result<Vec<Value>, Diagnostic> {
    let fault = |what: &str, help: &str| Err(Diagnostic::new("system", what, help));
    let text = match fields.get("system") {
        None | Some(Value::Null) => return Ok(messages),
        Some(Value::String(text)) if text.is_empty() => return Ok(messages),
        Some(Value::String(text)) => text,
        Some(_) => return fault("is not a string", "write it as a JSON string"),
    };
    match messages.first().filter(|first| first["role"] == "system") {
        Some(own) if own["content"] == text.as_str() => Ok(messages),
        Some(_) => fault("is another text than the system message of the chat", "keep one of the two"),
        None => Ok([json!({"role": "system", "content": text})].into_iter().chain(messages).collect()),
    }
}

/// Refuses a row with descriptions of tools. The chat template of Qwen2.5-VL has no place for them, so the model would
/// learn to call tools that it is not told of.
fn refuse_tools(fields: &Map<String, Value>) -> Result<(), Diagnostic> {
    let none = match fields.get("tools") {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => ["", "[]"].contains(&text.trim()),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let help = "write the tools into the system message, or remove the column";
    if none {
        Ok(())
    } else {
        Err(Diagnostic::new("tools", "is not supported: the chat template does not show it", help))
    }
}

/// Converts the turns of a ShareGPT row to chat messages.
fn sharegpt_messages(turns: Value) -> Result<Vec<Value>, Diagnostic> {
    const TURNS: &str = "give a list of {\"from\": human, gpt or system, \"value\": text} messages";
    let Value::Array(turns) = turns else { return Err(Diagnostic::new("conversations", "is not a list", TURNS)) };
    if turns.is_empty() {
        return Err(Diagnostic::new("conversations", "is empty", TURNS));
    }
    let turns = turns.into_iter().enumerate().map(|(i, turn)| {
        let at = |key: &str| format!("conversations[{i}].{key}");
        let text = |key: &str| turn.get(key).and_then(Value::as_str);
        let from = text("from").or(text("role"));
        let Some(from) = from else { return Err(Diagnostic::new(at("from"), "is missing or not text", TURNS)) };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bot" => "assistant",
            "system" => "system",
            other => {
                let what = format!("is `{other}`, which is not supported");
                return Err(Diagnostic::new(at("from"), what, TURNS));
            }
        };
        let value = turn.get("value").or(turn.get("content")).filter(|value| value.is_string() || value.is_array());
        let Some(value) = value else { return Err(Diagnostic::new(at("value"), "is missing or not text", TURNS)) };
        Ok(json!({"role": role, "content": value}))
    });
    turns.collect()
}

impl Problem {
    fn parse(fields: &Map<String, Value>) -> Result<Self, Diagnostic> {
        let problem = text_field(fields, "problem")?;
        let data_type = match text_field(fields, "data_type")?.as_str() {
            "image" => ProblemMedia::Image,
            "video" => ProblemMedia::Video,
            "text" => ProblemMedia::Text,
            other => return Err(Diagnostic::new("data_type", format!("is `{other}`"), "use image, video or text")),
        };
        let problem_type = text_field(fields, "problem_type")?;
        if reel_prompts::answer_instruction(&problem_type).is_none() {
            let known: Vec<&str> = reel_prompts::problem_types().collect();
            return Err(Diagnostic::new(
                "problem_type",
                format!("is `{problem_type}`"),
                format!("use one of {}", known.join(", ")),
            ));
        }
        Ok(Self {
            problem,
            data_type,
            problem_type,
            options: options(fields)?,
            process: match fields.get("process") {
                None | Some(Value::Null) => None,
                Some(_) => Some(text_field(fields, "process")?),
            },
            solution: text_field(fields, "solution")?,
            path: if data_type == ProblemMedia::Text { String::new() } else { text_field(fields, "path")? },
        })
    }

    fn supervised_messages(&self, parity: Recipe) -> Result<Vec<Value>, Diagnostic> {
        let Some(process) = self.process.as_deref() else {
            return Err(Diagnostic::new(
                "process",
                "is missing",
                "give the chain of thought that leads to the solution",
            ));
        };
        Ok(vec![
            json!({"role": "system", "content": [{"type": "text", "text": reel_prompts::system_message(parity)}]}),
            self.user_message(parity, QuestionTemplate::Training),
            json!({"role": "assistant", "content": [{"type": "text", "text": format!("{process}\n{}", self.solution)}]}),
        ])
    }

    /// The user's message: the image or video if there is one, then the question in its template.
    pub fn user_message(&self, parity: Recipe, template: QuestionTemplate) -> Value {
        let choices = (self.problem_type == "multiple choice").then_some(&self.options[..]);
        let kind = reel_prompts::answer_instruction(&self.problem_type).unwrap_or_default();
        let question = reel_prompts::question_text(&self.problem, choices, kind, parity, template);
        let asked = json!({"type": "text", "text": question});
        let key = match self.data_type {
            ProblemMedia::Text => return json!({"role": "user", "content": [asked]}),
            ProblemMedia::Image => "image",
            ProblemMedia::Video => "video",
        };
        json!({"role": "user", "content": [{"type": key, key: media_path(&self.path)}, asked]})
    }
}

/// Removes a leading `./`. VideoRFT's data sets write paths as `./DIR/FILE`, where the dot stands for the media folder.
fn media_path(path: &str) -> &str {
    path.strip_prefix("./").map_or(path, |rest| rest.trim_start_matches('/'))
}

fn options(fields: &Map<String, Value>) -> Result<Vec<String>, Diagnostic> {
    let wrong = || Diagnostic::new("options", "is not a list of texts", "write each option as a JSON string");
    match fields.get("options") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(|o| o.as_str().map(String::from).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Arbitrary JSON values, a few levels deep.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let object = prop::collection::btree_map("role|content|type|text|a", inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|map| Value::Object(map.into_iter().collect()))
            ]
        })
    }

    proptest! {
        /// A row that has any JSON value in any field is either accepted, with its texts unchanged, or refused with
        /// an error that names the field.
        #[test]
        fn any_value_in_any_field_is_read_or_named(
            field in prop::sample::select(vec!["problem", "data_type", "problem_type", "options", "process", "solution", "path", "messages", "prompt"]),
            value in anything(),
        ) {
            let row = problem(|f| {
                if matches!(field, "messages" | "prompt") {
                    f.shift_remove("path"); // a file that such a row would not read
                }
                f.insert(field.into(), value.clone());
            });
            let turns = row.and_then(|row| row.supervised_messages(Recipe::VideoR1));
            match turns {
                Ok(turns) if field == "messages" => prop_assert_eq!(Value::from(turns), value),
                Ok(turns) => prop_assert!(turns.len() == 3 && ["options", "process"].contains(&field) || value.is_string()),
                Err(fault) if field == "prompt" => prop_assert!(fault.what.contains("answer") || fault.location.starts_with("prompt")),
                Err(fault) => prop_assert!(fault.location.starts_with(field) && !fault.help.is_empty(), "{:?}", fault),
            }
        }
    }

    fn problem(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DataRow, Diagnostic> {
        let row = json!({"problem_id": 1, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
            "options": ["A. x", "B. y"], "process": "<think>t</think>", "solution": "<answer>A</answer>", "path": "./v/a.mp4"});
        let Value::Object(mut fields) = row else { unreachable!() };
        change(&mut fields);
        DataRow::parse(Value::Object(fields))
    }

    #[test]
    fn problem_becomes_three_messages() {
        let turns = problem(|_| ()).unwrap().supervised_messages(Recipe::Paper).unwrap();
        assert_eq!(turns.len(), 3);
        assert_eq!(turns[0]["role"], "system");
        assert_eq!(turns[1]["content"][0], json!({"type": "video", "video": "v/a.mp4"}));
        let asked = turns[1]["content"][1]["text"].as_str().unwrap();
        assert!(
            asked.starts_with("Which?\nPlease") && asked.ends_with("D, etc.) within the <answer> </answer> tags."),
            "{asked}"
        );
        assert_eq!(turns[2]["content"][0]["text"], "<think>t</think>\n<answer>A</answer>");
    }

    #[test]
    fn video_r1_has_its_own_system_message_and_lists_options() {
        let turns = problem(|_| ()).unwrap().supervised_messages(Recipe::VideoR1).unwrap();
        assert_eq!(turns[0]["content"][0]["text"], "You are a helpful assistant");
        assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?Options:\nA. x\nB. y\n\nPlease"));
        let numerical = problem(|f| {
            f.insert("problem_type".into(), "numerical".into());
        });
        let turns = numerical.unwrap().supervised_messages(Recipe::VideoR1).unwrap();
        assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?\nPlease"));
    }

    #[test]
    fn text_problems_need_no_path() {
        let row = problem(|f| {
            f.insert("data_type".into(), "text".into());
            f.shift_remove("path");
        });
        let turns = row.unwrap().supervised_messages(Recipe::Videorft).unwrap();
        assert_eq!(turns[1]["content"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn media_paths_lose_the_leading_dot() {
        for (path, want) in [
            ("./a/b.mp4", "a/b.mp4"),
            (".//a.png", "a.png"),
            ("a.png", "a.png"),
            ("/abs/a.png", "/abs/a.png"),
            ("../a.png", "../a.png"),
            ("https://host/./a.png", "https://host/./a.png"),
        ] {
            assert_eq!(media_path(path), want);
        }
    }

    #[test]
    fn names_missing_and_wrong_fields() {
        for field in ["data_type", "problem_type", "solution", "path"] {
            let gone = problem(|f| drop(f.shift_remove(field))).unwrap_err();
            assert_eq!((gone.location.as_str(), gone.what.as_str()), (field, "is missing"));
            let wrong = problem(|f| drop(f.insert(field.into(), json!(3)))).unwrap_err();
            assert_eq!((wrong.location.as_str(), wrong.what.as_str()), (field, "is not a string"));
        }
        assert_eq!(problem(|f| drop(f.insert("data_type".into(), json!("audio")))).unwrap_err().what, "is `audio`");
        assert!(
            problem(|f| drop(f.insert("problem_type".into(), json!("essay"))))
                .unwrap_err()
                .help
                .contains("multiple choice, numerical")
        );
        assert_eq!(problem(|f| drop(f.insert("options".into(), json!([1])))).unwrap_err().location, "options");
        let row = problem(|f| drop(f.shift_remove("process"))).unwrap();
        assert_eq!(row.supervised_messages(Recipe::Paper).unwrap_err().location, "process");
    }

    #[test]
    fn sharegpt_turns_become_messages() {
        let row = |row: Value| DataRow::parse(row)?.supervised_messages(Recipe::Paper);
        let turns = json!([{"from": "human", "value": "<video>Where?"}, {"from": "gpt", "value": "Here."}]);
        let with = json!({"conversations": turns, "videos": ["a.mp4"], "system": "Be brief.", "tools": null});
        assert_eq!(
            Value::from(row(with).unwrap()),
            json!([{"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Where?"}]},
                {"role": "assistant", "content": "Here."}])
        );
        for (bad, location) in [
            (json!({"conversations": turns}), "conversations[0].content"),
            (json!({"conversations": turns, "videos": ["a.mp4", "b.mp4"]}), "videos"),
            (json!({"conversations": []}), "conversations"),
            (json!({"conversations": [{"value": "x"}]}), "conversations[0].from"),
            (json!({"conversations": [{"from": "observation", "value": "x"}]}), "conversations[0].from"),
            (json!({"conversations": [{"from": "human", "value": 3}]}), "conversations[0].value"),
            (json!({"conversations": [{"from": "human", "value": "x"}], "system": 3}), "system"),
        ] {
            assert_eq!(row(bad.clone()).unwrap_err().location, location, "{bad}");
        }
    }

    /// A text that a row has beside its chat is used or refused, never left out in silence.
    #[test]
    fn system_column_is_used_and_tools_are_refused() {
        let (ask, answer) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "!"}));
        let system = json!({"role": "system", "content": "Be brief."});
        let row = |row: Value| DataRow::parse(row)?.supervised_messages(Recipe::Paper).map(Value::from);
        let with = |chat: Value, more: (&str, Value)| json!({"messages": chat, more.0: more.1});
        let whole = json!([system, ask, answer]);
        for chat in [json!([ask, answer]), whole.clone()] {
            assert_eq!(row(with(chat, ("system", json!("Be brief.")))).unwrap(), whole);
        }
        for none in [json!(null), json!("")] {
            assert_eq!(row(with(json!([ask, answer]), ("system", none))).unwrap(), json!([ask, answer]));
        }
        let prompt = DataRow::parse(json!({"prompt": [ask], "system": "Be brief.", "solution": "4"})).unwrap();
        assert_eq!(prompt.prompt_and_columns(Recipe::Paper).unwrap().0.into_json(), json!([system, ask]));
        for none in [json!(null), json!([]), json!("[]"), json!("")] {
            assert!(row(with(json!([ask, answer]), ("tools", none.clone()))).is_ok(), "{none}");
        }
        for (bad, location) in [
            (with(whole, ("system", json!("Be long."))), "system"),
            (with(json!([ask, answer]), ("system", json!(3))), "system"),
            (with(json!([ask, answer]), ("tools", json!([{"name": "f"}]))), "tools"),
            (with(json!([ask, answer]), ("tools", json!("[{\"name\": \"f\"}]"))), "tools"),
            (json!({"conversations": [{"from": "human", "value": "x"}], "tools": "f"}), "tools"),
        ] {
            assert_eq!(row(bad.clone()).unwrap_err().location, location, "{bad}");
        }
    }

    #[test]
    fn prompts_get_their_media_and_keep_their_columns() {
        let ask = |content: &str| json!([{"role": "user", "content": content}]);
        let row = json!({"prompt": ask("<image>?"), "images": ["a.png"], "solution": "<answer>b</answer>"});
        let (content, columns) = DataRow::parse(row).unwrap().prompt_and_columns(Recipe::Paper).unwrap();
        assert_eq!(content.into_json()[0]["content"][0], json!({"type": "image", "image": "a.png"}));
        assert_eq!(columns.keys().collect::<Vec<_>>(), ["images", "solution"]);
        for (bad, location) in [
            (json!({"prompt": ask("<image>?")}), "prompt[0].content"),
            (json!({"prompt": ask("?"), "images": ["a.png"]}), "images"),
            (json!({"prompt": "<image>?", "images": ["a.png"]}), "prompt"),
            (json!({"prompt": ask("?"), "video_path": "a.mp4"}), "video_path"),
        ] {
            assert_eq!(DataRow::parse(bad.clone()).unwrap_err().location, location, "{bad}");
        }
        assert_eq!(problem(|f| drop(f.insert("videos".into(), json!(["b.mp4"])))).unwrap_err().location, "videos");
    }

    #[test]
    fn generation_leaves_out_the_answer_at_the_end_of_a_chat() {
        let prompt = |row: Value| {
            DataRow::parse(row)?.generation_prompt(Recipe::Paper, QuestionTemplate::Evaluation).map(|p| p.into_json())
        };
        let (ask, answer) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "!"}));
        assert_eq!(prompt(json!({"messages": [ask, answer]})).unwrap(), json!([ask]));
        assert_eq!(prompt(json!({"messages": [ask, answer, ask]})).unwrap(), json!([ask, answer, ask]));
        assert_eq!(prompt(json!({"prompt": [ask], "solution": "4"})).unwrap(), json!([ask]));
        assert_eq!(prompt(json!({"prompt": "a text"})).unwrap(), json!("a text"));
        assert!(prompt(json!({"messages": [answer]})).unwrap_err().what.contains("assistant only"));
    }

    #[test]
    fn checks_roles_and_contents_of_messages() {
        let chat = |messages: Value| DataRow::parse(json!({ "messages": messages }));
        let good = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]);
        assert_eq!(chat(good.clone()).unwrap().supervised_messages(Recipe::Paper).unwrap(), *good.as_array().unwrap());
        assert_eq!(chat(json!("x")).unwrap_err().location, "messages");
        assert_eq!(chat(json!([])).unwrap_err().what, "is empty");
        assert_eq!(chat(json!([{"content": "x"}])).unwrap_err().location, "messages[0].role");
        assert_eq!(
            chat(json!([{"role": "user", "content": "x"}, {"role": "user"}])).unwrap_err().location,
            "messages[1].content"
        );
        let prompt = DataRow::parse(json!({"prompt": [{"role": "user", "content": "x"}], "solution": "4"})).unwrap();
        assert!(prompt.supervised_messages(Recipe::Paper).unwrap_err().what.contains("without an answer"));
    }
}
