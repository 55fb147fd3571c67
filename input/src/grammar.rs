//! The rule that a completion follows, as a request states it.

use serde_json::Value;

/// What a completion must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// A JSON value that satisfies a JSON schema, without white space between its parts.
    JsonSchema(Value),
    /// A text that matches a regular expression of Rust's `regex` crate as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text that llguidance's dialect of Lark derives from `start`.
    Lark(String),
    /// Calls of tools.
    ToolCalls(ToolCallGrammar),
}

/// The rule that calls of tools follow; see [`crate::tools`] for the form of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCallGrammar {
    /// The name and the JSON schema of the arguments of each function that may be called; at least one.
    pub functions: Vec<(String, Value)>,
    /// Whether several calls may follow each other.
    pub several: bool,
    /// What the answer may be instead.
    pub otherwise: OtherAnswer,
}

/// What an answer may be instead of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherAnswer {
    /// Nothing: it must be calls.
    None,
    /// Any text, also before, between and after calls.
    Text,
}
