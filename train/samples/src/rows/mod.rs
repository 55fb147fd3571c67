//! Parses one row of training data, which has one of the following layouts, and makes the conversation to train on.
//!
//! | layout | fields |
//! |---|---|
//! | chat | `messages`: chat messages |
//! | ShareGPT | `conversations`: messages `{"from", "value"}`; one question and its answer are VLM-R1's problem and solution for rewards |
//! | TRL | `prompt` and `completion`: both chat messages, or both texts, which are used without the chat template |
//! | prompt | `prompt`: chat messages up to the answer, or a text; other columns are for rewards |
//! | ms-swift | `query`, `response`, `history` |
//! | Alpaca | `instruction`, `input`, `output`, `history` |
//! | EasyR1 | `problem`: the prompt; other columns, such as `answer`, are for rewards |
//! | VideoRFT, Video-R1 | `problem`, `data_type`, `problem_type`, `options`, `process`, `solution`, `path` |
//!
//! In all layouts but the last, images and videos are parts of the messages or named in columns (`media_columns`), and
//! a column `system` becomes the system message. A column `tools` describes functions that a whole chat calls. Columns may hold their lists as JSON text (`json_text`).

mod json_text;
pub mod layouts;
mod messages;
mod unread;

use crate::prompts::QuestionTemplate;
use crate::rewards::Recipe;
use crate::rewards::string_field;
use layouts::{ConversationLayout, refuse_system_column, vlm_r1_problem};
use messages::{CHAT_HELP, ends_with_answer, is_question_with_answer, parse_chat, plain_messages};
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};
use unread::{refuse_tools, refuse_unlearned_answer, refuse_unread_columns, tools_column};

use crate::media_columns;

/// A row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum DataRow {
    /// A chat that includes the assistant's answers, or that ends before an answer.
    Chat {
        /// The chat messages.
        messages: Vec<Value>,
        /// For each message of the assistant, whether it is learned.
        learned: Vec<bool>,
        /// Whether the chat is in ShareGPT's `conversations`.
        is_sharegpt: bool,
        /// The other columns of the row.
        columns: Map<String, Value>,
    },
    /// A prompt that completions are sampled for, in reinforcement learning.
    Prompt {
        /// The chat messages, or the text.
        content: PromptContent,
        /// The other columns of the row.
        columns: Map<String, Value>,
    },
    /// A prompt and its completion as plain texts, used without the chat template. Only the completion counts in the
    /// loss.
    Completion {
        /// The prompt, which is not learned.
        prompt: String,
        /// The completion, which is learned.
        completion: String,
    },
    /// A row of VideoRFT's or Video-R1's data sets.
    Problem {
        /// The problem's fields.
        problem: VideorftProblem,
        /// All columns of the row.
        columns: Map<String, Value>,
    },
}

/// A row in the form that supervised fine-tuning learns from.
#[derive(Clone, Debug, PartialEq)]
pub enum SupervisedRow {
    /// A conversation.
    Chat {
        /// The chat messages.
        messages: Vec<Value>,
        /// For each message of the assistant, whether it is learned.
        learned: Vec<bool>,
        /// The column `tools`, which describes the functions that the assistant's messages call; null without it.
        tools: Value,
    },
    /// A prompt and its completion as plain texts, used without the chat template. Only the completion counts in the
    /// loss.
    Text {
        /// The prompt, which is not learned.
        prompt: String,
        /// The completion, which is learned.
        completion: String,
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
            Value::String(text) if text.is_empty() => Err(Diagnostic::new("prompt", "is empty", CHAT_HELP)),
            Value::String(text) => Ok(Self::Text(text)),
            other => parse_chat("prompt", other).map(Self::Chat),
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
pub struct VideorftProblem {
    /// The text of the question.
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
    /// Text without an image or video.
    Text,
}

const LAYOUTS: &str = "give chat `messages`, ShareGPT `conversations`, `prompt` and `completion`, `query` and `response`, `instruction` and `output`, or the fields problem, data_type, problem_type, process, solution, path";

/// A row with `problem` is in VideoRFT's layout if it also has at least one of these fields, or `options` for its
/// `problem_type`. Otherwise it is in EasyR1's layout.
const VIDEORFT_FIELDS: [&str; 3] = ["data_type", "path", "process"];

impl DataRow {
    /// Parses a row and checks its fields.
    pub fn parse(value: Value) -> Result<Self, Diagnostic> {
        let Value::Object(mut fields) = value else { return Err(Diagnostic::new("", "is not an object", LAYOUTS)) };
        json_text::parse_json_texts(&mut fields)?;
        match ConversationLayout::detect(&fields) {
            Some(ConversationLayout::Prompt) => return Self::from_prompt(fields),
            Some(ConversationLayout::Problem) => {}
            Some(layout) => return Self::from_chat(layout, fields),
            None => {
                let what = "has no `messages`, `conversations`, `prompt`, `query`, `instruction` or `problem`";
                return Err(Diagnostic::new("", what, LAYOUTS));
            }
        }
        let is_given = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        let has_options = fields.get("options").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        let is_videorft = VIDEORFT_FIELDS.into_iter().any(is_given) || (has_options && is_given("problem_type"));
        if !is_videorft {
            return Self::from_easyr1(fields);
        }
        let question = fields.get("problem").and_then(Value::as_str).unwrap_or_default();
        refuse_unread_columns("problem", &plain_messages(question, None), &fields)?;
        refuse_system_column(
            &fields,
            "is not read, because a row with `data_type` has the system message of its recipe",
        )?;
        media_columns::refuse_media_beside_path(&fields)?;
        Ok(Self::Problem { problem: VideorftProblem::parse(&fields)?, columns: fields })
    }

    /// The prompt that completions are sampled for, and the columns that the rewards need. Media paths are returned
    /// as written, relative to the media folder.
    pub fn prompt_and_columns(&self, parity: Recipe) -> Result<(PromptContent, Map<String, Value>), Diagnostic> {
        if let Self::Chat { columns, .. } = self {
            refuse_tools(columns)?;
        }
        match self {
            Self::Prompt { content, columns } => Ok((content.clone(), columns.clone())),
            Self::Problem { problem, columns } => {
                let question = problem.user_message(parity, QuestionTemplate::Training);
                Ok((PromptContent::Chat(vec![question]), columns.clone()))
            }
            Self::Chat { messages, columns, .. } if !ends_with_answer(messages) => {
                Ok((PromptContent::Chat(messages.clone()), columns.clone()))
            }
            Self::Chat { messages, columns, is_sharegpt: true, .. } if is_question_with_answer(messages) => {
                vlm_r1_problem(messages, columns)
            }
            Self::Chat { .. } => Err(Diagnostic::new(
                "",
                "ends with an answer of the assistant, so no answer is left to generate",
                "move that answer into a column `solution` of the row, or use this file for supervised fine-tuning",
            )),
            Self::Completion { .. } => Err(Diagnostic::new(
                "",
                "has a `completion`, so no answer is left to generate",
                "remove the completion, or use this file for supervised fine-tuning",
            )),
        }
    }

    /// Returns the prompt for generating an answer outside of training. If a chat ends with an answer, that answer is
    /// left out. A problem gets the question template `template`. Media paths are returned as written.
    pub fn generation_prompt(self, parity: Recipe, template: QuestionTemplate) -> Result<PromptContent, Diagnostic> {
        match self {
            Self::Prompt { content, .. } => Ok(content),
            Self::Problem { problem, .. } => Ok(PromptContent::Chat(vec![problem.user_message(parity, template)])),
            Self::Completion { prompt, .. } => Ok(PromptContent::Text(prompt)),
            Self::Chat { mut messages, columns, .. } => {
                refuse_tools(&columns)?;
                while ends_with_answer(&messages) {
                    messages.pop();
                }
                match messages.is_empty() {
                    true => Err(Diagnostic::new("", "has only answers of the assistant, and no question", CHAT_HELP)),
                    false => Ok(PromptContent::Chat(messages)),
                }
            }
        }
    }

    /// The whole conversation, for supervised fine-tuning. Media paths are returned as written, relative to the media
    /// folder.
    pub fn to_supervised_row(&self, parity: Recipe) -> Result<SupervisedRow, Diagnostic> {
        match self {
            Self::Chat { messages, learned, columns, .. } => {
                refuse_unlearned_answer(messages, columns)?;
                let tools = tools_column(columns).cloned().unwrap_or_default();
                Ok(SupervisedRow::Chat { messages: messages.clone(), learned: learned.clone(), tools })
            }
            Self::Completion { prompt, completion } => {
                Ok(SupervisedRow::Text { prompt: prompt.clone(), completion: completion.clone() })
            }
            Self::Prompt { .. } => Err(Diagnostic::new(
                "",
                "has a prompt without an answer to learn",
                "add the answer as `completion`, write the whole chat as `messages`, or use this file for reinforcement \
                 learning",
            )),
            Self::Problem { problem, .. } => {
                let (messages, tools) = (problem.supervised_messages(parity)?, Value::Null);
                Ok(SupervisedRow::Chat { messages, learned: vec![true], tools })
            }
        }
    }
}

impl VideorftProblem {
    fn parse(fields: &Map<String, Value>) -> Result<Self, Diagnostic> {
        let problem = string_field(fields, "problem")?;
        let data_type = match string_field(fields, "data_type")?.as_str() {
            "image" => ProblemMedia::Image,
            "video" => ProblemMedia::Video,
            "text" => ProblemMedia::Text,
            other => return Err(Diagnostic::new("data_type", format!("is `{other}`"), "use image, video or text")),
        };
        let problem_type = string_field(fields, "problem_type")?;
        if crate::prompts::answer_instruction(&problem_type).is_none() {
            let known: Vec<&str> = crate::prompts::problem_types().collect();
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
                Some(_) => Some(string_field(fields, "process")?),
            },
            solution: string_field(fields, "solution")?,
            path: if data_type == ProblemMedia::Text { String::new() } else { string_field(fields, "path")? },
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
            json!({"role": "system", "content": [{"type": "text", "text": crate::prompts::system_message(parity)}]}),
            self.user_message(parity, QuestionTemplate::Training),
            json!({"role": "assistant", "content": [{"type": "text", "text": format!("{process}\n{}", self.solution)}]}),
        ])
    }

    /// The user's message: the image or video if there is one, then the question in its template.
    pub fn user_message(&self, parity: Recipe, template: QuestionTemplate) -> Value {
        let choices = (self.problem_type == "multiple choice").then_some(&self.options[..]);
        let kind = crate::prompts::answer_instruction(&self.problem_type).unwrap_or_default();
        let question = crate::prompts::question_text(&self.problem, choices, kind, parity, template);
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
mod tests;
