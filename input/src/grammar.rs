//! The grammar that a completion must follow, as a request states it; the engine compiles it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A grammar that a completion must follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GrammarSpec {
    /// A JSON value that satisfies a JSON schema, without white space between its parts.
    JsonSchema(Value),
    /// A text that matches a regular expression of Rust's `regex` crate as a whole.
    Regex(String),
    /// Exactly one of these texts.
    Choice(Vec<String>),
    /// A text that llguidance's dialect of Lark derives from `start`.
    Lark(String),
    /// One or more tool calls.
    ToolCalls(ToolCallGrammar),
}

/// The grammar of an answer with tool calls; see [`crate::tools`] for the form of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCallGrammar {
    /// The name and the JSON schema of the arguments of each function that may be called; at least one.
    pub functions: Vec<(String, Value)>,
    /// Whether several calls may follow each other.
    pub several: bool,
    /// What the answer may contain instead of calls.
    pub otherwise: AnswerWithoutCalls,
}

/// What an answer may contain instead of tool calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AnswerWithoutCalls {
    /// Nothing: the answer must consist of calls.
    None,
    /// Any text, also before, between and after calls.
    Text,
    /// A text that follows this grammar, which is not one of calls. The answer consists of it or of calls.
    Form(Box<GrammarSpec>),
}
