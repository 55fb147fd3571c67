//! One row of training data in any of its three layouts, and the conversation that it stands for.
//!
//! | layout | fields |
//! |---|---|
//! | chat | `messages`: chat messages |
//! | prompt | `prompt`: chat messages up to the answer, or a text, with other columns beside it for rewards |
//! | the recipes' | `problem`, `data_type`, `problem_type`, `options`, `process`, `solution`, `path` (VideoRFT's and Video-R1's data sets) |

use serde_json::{Map, Value, json};

use crate::data::templates;
use crate::options::Recipe;

/// What is wrong with a row: the field where it is one, what is wrong with it, and the cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, or nothing where the whole row is wrong.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub help: String,
}

impl Fault {
    fn row(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { field: String::new(), what: what.into(), help: help.into() }
    }

    fn field(field: impl Into<String>, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into(), help: help.into() }
    }

    /// The place of the fault in a row that stands at `row`.
    pub fn location(&self, row: &str) -> String {
        if self.field.is_empty() { row.to_string() } else { format!("{row}: {}", self.field) }
    }
}

/// A row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum DataRow {
    /// A whole chat.
    Chat(Vec<Value>),
    /// What an answer is to follow, for reinforcement learning.
    Prompt {
        /// The chat, or the text.
        asked: PromptContent,
        /// The other columns of the row.
        columns: Map<String, Value>,
    },
    /// A problem of the recipes' data sets.
    Problem {
        /// What is asked.
        problem: Problem,
        /// All columns of the row.
        columns: Map<String, Value>,
    },
}

/// What an answer follows.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptContent {
    /// A chat, which the model's template puts into words.
    Chat(Vec<Value>),
    /// The words as they are, without the template, as TRL takes a `prompt` that is no list.
    Text(String),
}

impl PromptContent {
    fn parse(prompt: Value) -> Result<Self, Fault> {
        match prompt {
            Value::String(text) if text.is_empty() => Err(Fault::field("prompt", "is empty", CHAT)),
            Value::String(text) => Ok(Self::Text(text)),
            other => chat("prompt", other).map(Self::Chat),
        }
    }

    /// As a data file has it.
    pub fn into_value(self) -> Value {
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
    /// What it is about.
    pub data_type: DataType,
    /// The kind of answer that is wanted; one of the recipes' kinds.
    pub problem_type: String,
    /// The options of a multiple-choice question, each with its letter.
    pub options: Vec<String>,
    /// The chain of thought, with its tags; not in rows for reinforcement learning.
    pub process: Option<String>,
    /// The answer, with its tags.
    pub solution: String,
    /// The file that it is about; empty for text.
    pub path: String,
}

/// What a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// A picture.
    Image,
    /// A film.
    Video,
    /// Nothing but its text.
    Text,
}

const LAYOUTS: &str = "give chat `messages`, or the fields problem, data_type, problem_type, process, solution, path";

impl DataRow {
    /// Reads a row and checks its fields.
    pub fn parse(value: Value) -> Result<Self, Fault> {
        let Value::Object(mut fields) = value else { return Err(Fault::row("is not an object", LAYOUTS)) };
        if let Some(messages) = fields.shift_remove("messages") {
            return Ok(Self::Chat(chat("messages", messages)?));
        }
        if let Some(prompt) = fields.shift_remove("prompt") {
            return Ok(Self::Prompt { asked: PromptContent::parse(prompt)?, columns: fields });
        }
        if !fields.contains_key("problem") {
            return Err(Fault::row("has no `messages`, `prompt` or `problem`", LAYOUTS));
        }
        Ok(Self::Problem { problem: Problem::parse(&fields)?, columns: fields })
    }

    /// What an answer is to follow, and the columns that answers are judged by. Media paths stay relative to the media folder.
    pub fn asked(&self, parity: Recipe) -> Result<(PromptContent, Map<String, Value>), Fault> {
        match self {
            Self::Prompt { asked, columns } => Ok((asked.clone(), columns.clone())),
            Self::Problem { problem, columns } => {
                Ok((PromptContent::Chat(vec![problem.question(parity)]), columns.clone()))
            }
            Self::Chat(_) => Err(Fault::row(
                "has whole `messages`, and answers are to be drawn",
                "write the chat up to the answer as `prompt`, or use this file for supervised fine-tuning",
            )),
        }
    }

    /// The whole conversation that supervised training sees. Media paths stay relative to the media folder.
    pub fn supervised(&self, parity: Recipe) -> Result<Vec<Value>, Fault> {
        match self {
            Self::Chat(messages) => Ok(messages.clone()),
            Self::Prompt { .. } => Err(Fault::row(
                "has a `prompt` without an answer to learn",
                "write the whole chat as `messages`, or use this file for reinforcement learning",
            )),
            Self::Problem { problem, .. } => problem.supervised(parity),
        }
    }
}

const CHAT: &str = "give a list of {\"role\", \"content\"} messages";

/// A list of messages; what is inside each is checked where the chat is rendered, but its role is checked here.
fn chat(field: &str, value: Value) -> Result<Vec<Value>, Fault> {
    let Value::Array(messages) = value else { return Err(Fault::field(field, "is not a list", CHAT)) };
    if messages.is_empty() {
        return Err(Fault::field(field, "is empty", CHAT));
    }
    for (i, message) in messages.iter().enumerate() {
        let at = |key: &str| format!("{field}[{i}].{key}");
        if !message.get("role").is_some_and(Value::is_string) {
            return Err(Fault::field(at("role"), "is missing or no text", CHAT));
        }
        if !message.get("content").is_some_and(|c| c.is_string() || c.is_array()) {
            return Err(Fault::field(at("content"), "is missing, or neither text nor a list of parts", CHAT));
        }
    }
    Ok(messages)
}

impl Problem {
    fn parse(fields: &Map<String, Value>) -> Result<Self, Fault> {
        let problem = text(fields, "problem")?;
        let data_type = match text(fields, "data_type")?.as_str() {
            "image" => DataType::Image,
            "video" => DataType::Video,
            "text" => DataType::Text,
            other => return Err(Fault::field("data_type", format!("is `{other}`"), "use image, video or text")),
        };
        let problem_type = text(fields, "problem_type")?;
        if templates::answer_instruction(&problem_type).is_none() {
            let known: Vec<&str> = templates::problem_types().collect();
            return Err(Fault::field(
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
                Some(_) => Some(text(fields, "process")?),
            },
            solution: text(fields, "solution")?,
            path: if data_type == DataType::Text { String::new() } else { text(fields, "path")? },
        })
    }

    fn supervised(&self, parity: Recipe) -> Result<Vec<Value>, Fault> {
        let Some(process) = self.process.as_deref() else {
            return Err(Fault::field("process", "is missing", "give the chain of thought that leads to the solution"));
        };
        Ok(vec![
            json!({"role": "system", "content": [{"type": "text", "text": templates::system_message(parity)}]}),
            self.question(parity),
            json!({"role": "assistant", "content": [{"type": "text", "text": format!("{process}\n{}", self.solution)}]}),
        ])
    }

    /// The user's message: the media part, then the question in its template.
    pub fn question(&self, parity: Recipe) -> Value {
        let choices = (self.problem_type == "multiple choice").then_some(&self.options[..]);
        let kind = templates::answer_instruction(&self.problem_type).unwrap_or_default();
        let asked = json!({"type": "text", "text": templates::question(&self.problem, choices, kind, parity)});
        let key = match self.data_type {
            DataType::Text => return json!({"role": "user", "content": [asked]}),
            DataType::Image => "image",
            DataType::Video => "video",
        };
        json!({"role": "user", "content": [{"type": key, key: media_path(&self.path)}, asked]})
    }
}

/// The data sets write paths as `./DIR/FILE`, and their code puts the media folder in place of the dot. What follows the
/// dot is relative to that folder for us.
fn media_path(path: &str) -> &str {
    path.strip_prefix("./").map_or(path, |rest| rest.trim_start_matches('/'))
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<String, Fault> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Fault::field(name, "is not text", "write it as a JSON string")),
        None => Err(Fault::field(name, "is missing", "add it, or remove the row")),
    }
}

fn options(fields: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    let wrong = || Fault::field("options", "is not a list of texts", "write each option as a JSON string");
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

    /// Any JSON, a few levels deep.
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
        /// Any value in any field is either read or named; what is read keeps the texts it was given.
        #[test]
        fn any_value_in_any_field_is_read_or_named(
            field in prop::sample::select(vec!["problem", "data_type", "problem_type", "options", "process", "solution", "path", "messages", "prompt"]),
            value in anything(),
        ) {
            let row = problem(|f| drop(f.insert(field.into(), value.clone())));
            let turns = row.and_then(|row| row.supervised(Recipe::VideoR1));
            match turns {
                Ok(turns) if field == "messages" => prop_assert_eq!(Value::from(turns), value),
                Ok(turns) => prop_assert!(turns.len() == 3 && ["options", "process"].contains(&field) || value.is_string()),
                Err(fault) if field == "prompt" => prop_assert!(fault.what.contains("answer") || fault.field.starts_with("prompt")),
                Err(fault) => prop_assert!(fault.field.starts_with(field) && !fault.help.is_empty(), "{:?}", fault),
            }
        }
    }

    fn problem(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DataRow, Fault> {
        let row = json!({"problem_id": 1, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
            "options": ["A. x", "B. y"], "process": "<think>t</think>", "solution": "<answer>A</answer>", "path": "./v/a.mp4"});
        let Value::Object(mut fields) = row else { unreachable!() };
        change(&mut fields);
        DataRow::parse(Value::Object(fields))
    }

    #[test]
    fn a_problem_becomes_three_turns() {
        let turns = problem(|_| ()).unwrap().supervised(Recipe::Paper).unwrap();
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
    fn video_r1_has_its_own_system_message_and_shows_options_of_choices_only() {
        let turns = problem(|_| ()).unwrap().supervised(Recipe::VideoR1).unwrap();
        assert_eq!(turns[0]["content"][0]["text"], "You are a helpful assistant");
        assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?Options:\nA. x\nB. y\n\nPlease"));
        let numerical = problem(|f| {
            f.insert("problem_type".into(), "numerical".into());
        });
        let turns = numerical.unwrap().supervised(Recipe::VideoR1).unwrap();
        assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?\nPlease"));
    }

    #[test]
    fn text_problems_need_no_path() {
        let row = problem(|f| {
            f.insert("data_type".into(), "text".into());
            f.shift_remove("path");
        });
        let turns = row.unwrap().supervised(Recipe::Videorft).unwrap();
        assert_eq!(turns[1]["content"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn paths_lose_the_dot_that_stands_for_the_media_folder() {
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
    fn each_missing_or_wrong_field_is_named() {
        for field in ["data_type", "problem_type", "solution", "path"] {
            let gone = problem(|f| drop(f.shift_remove(field))).unwrap_err();
            assert_eq!((gone.field.as_str(), gone.what.as_str()), (field, "is missing"));
            let wrong = problem(|f| drop(f.insert(field.into(), json!(3)))).unwrap_err();
            assert_eq!((wrong.field.as_str(), wrong.what.as_str()), (field, "is not text"));
        }
        assert_eq!(problem(|f| drop(f.insert("data_type".into(), json!("audio")))).unwrap_err().what, "is `audio`");
        assert!(
            problem(|f| drop(f.insert("problem_type".into(), json!("essay"))))
                .unwrap_err()
                .help
                .contains("multiple choice, numerical")
        );
        assert_eq!(problem(|f| drop(f.insert("options".into(), json!([1])))).unwrap_err().field, "options");
        let row = problem(|f| drop(f.shift_remove("process"))).unwrap();
        assert_eq!(row.supervised(Recipe::Paper).unwrap_err().field, "process");
    }

    #[test]
    fn chats_are_checked_as_far_as_their_roles() {
        let chat = |messages: Value| DataRow::parse(json!({ "messages": messages }));
        let good = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]);
        assert_eq!(chat(good.clone()).unwrap().supervised(Recipe::Paper).unwrap(), *good.as_array().unwrap());
        assert_eq!(chat(json!("x")).unwrap_err().field, "messages");
        assert_eq!(chat(json!([])).unwrap_err().what, "is empty");
        assert_eq!(chat(json!([{"content": "x"}])).unwrap_err().field, "messages[0].role");
        assert_eq!(
            chat(json!([{"role": "user", "content": "x"}, {"role": "user"}])).unwrap_err().field,
            "messages[1].content"
        );
        let prompt = DataRow::parse(json!({"prompt": [{"role": "user", "content": "x"}], "solution": "4"})).unwrap();
        assert!(prompt.supervised(Recipe::Paper).unwrap_err().what.contains("without an answer"));
    }
}
