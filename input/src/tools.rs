//! The fields of a chat request about tools: which functions the model may call (`tools`), whether it must
//! (`tool_choice`), and whether one answer may have several calls (`parallel_tool_calls`).
//!
//! The chat template writes the functions into the prompt. A call in an answer has the form that Qwen2.5's template
//! asks for:
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```
//! [`ToolRequest::grammar`] returns the grammar that forces calls. [`crate::messages`] reads calls and results.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::grammar::{AnswerWithoutCalls, GrammarSpec, ToolCallGrammar};
use crate::messages::{Conversation, is_function_name};

/// Maximum number of tools of a request, as in OpenAI's API.
pub const MAX_TOOLS: usize = 128;

/// The tools of a chat request, and how the model may call them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolRequest {
    /// The tools in the JSON form of the request, for the chat template. Empty if the request has no tools.
    pub definitions: Vec<Value>,
    /// The functions of the tools, in the same order as `definitions`.
    functions: Vec<Function>,
    /// Whether the model may or must call the tools.
    pub choice: ToolChoice,
    /// Whether an answer may have at most one call.
    pub one_call: bool,
}

/// How the model may call tools: the field `tool_choice`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ToolChoice {
    /// The prompt has the tools, but the answer is always treated as text.
    None,
    /// The model answers with text, calls, or both.
    #[default]
    Auto,
    /// The answer is one or more calls.
    Required,
    /// The answer is one call of the function with this name.
    Function(String),
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
struct Function {
    name: String,
    /// The JSON schema of the function's arguments, which are an object.
    parameters: Value,
    /// Whether calls must follow the schema even if `tool_choice` does not force a call.
    strict: bool,
}

/// An error that names the field `path` of the request.
fn wrong(location: &str, path: &str, what: impl Into<String>, help: impl Into<String>) -> Error {
    Error::input(format!("{location}: {path}"), what, help)
}

impl ToolRequest {
    /// The names of the fields that [`ToolRequest::from_body`] reads.
    pub(crate) const FIELD_NAMES: [&'static str; 3] = ["tools", "tool_choice", "parallel_tool_calls"];

    /// Reads the fields of a request. A field that is null counts as absent. `location` names the request in errors.
    ///
    /// # Errors
    /// A field has the wrong form, or `tool_choice` forces a call of a tool that does not exist.
    pub fn from_body(location: &str, body: &Map<String, Value>) -> Result<Self> {
        let field = |name: &str| body.get(name).filter(|value| !value.is_null());
        let tools = field("tools").map(|value| read_tools(location, value)).transpose()?.unwrap_or_default();
        let (definitions, functions): (Vec<Value>, Vec<Function>) = tools.into_iter().unzip();
        let choice = field("tool_choice").map(|value| read_choice(location, value)).transpose()?.unwrap_or_default();
        match &choice {
            ToolChoice::Required if functions.is_empty() => {
                return Err(wrong(location, "tool_choice", "is \"required\", but there are no tools", "give tools"));
            }
            ToolChoice::Function(name) if !functions.iter().any(|function| function.name == *name) => {
                let what = format!("names the function {name:?}, which is not one of the tools");
                return Err(wrong(location, "tool_choice", what, "name one of them"));
            }
            _ => {}
        }
        let parallel = match field("parallel_tool_calls") {
            None => true,
            Some(value) => value
                .as_bool()
                .ok_or_else(|| wrong(location, "parallel_tool_calls", format!("is {value}"), "give true or false"))?,
        };
        let one_call = !parallel || matches!(choice, ToolChoice::Function(_));
        Ok(Self { definitions, functions, choice, one_call })
    }

    /// Whether an answer may have tool calls.
    pub fn allows_tool_calls(&self) -> bool {
        !self.functions.is_empty() && self.choice != ToolChoice::None
    }

    /// The grammar that the answer must follow. `other` is the grammar that another field sets. If this field is
    /// `response_format` (`is_response_format`), it is the form of an answer without calls, as in OpenAI's API: the
    /// model calls functions or gives such an answer. The grammar of a field of vLLM holds for the whole answer with
    /// its calls.
    ///
    /// # Errors
    /// The answer would have to follow both a field of vLLM and a grammar for calls.
    pub fn grammar(
        &self,
        location: &str,
        other: Option<GrammarSpec>,
        is_response_format: bool,
    ) -> Result<Option<GrammarSpec>> {
        let is_free = !self.functions.iter().any(|function| function.strict);
        let (called, otherwise) = match (&self.choice, other) {
            (ToolChoice::None, other) => return Ok(other),
            (ToolChoice::Auto, other) if self.functions.is_empty() => return Ok(other),
            (ToolChoice::Auto, Some(other)) if is_response_format => {
                (self.functions.iter().collect(), AnswerWithoutCalls::Form(Box::new(other)))
            }
            (ToolChoice::Auto, other) if is_free => return Ok(other),
            (ToolChoice::Auto, Some(_)) => {
                let what = "has a function with `strict`, but the request also has structured_outputs or guided_...";
                let help = "remove strict, or give the form of the answer as response_format";
                return Err(wrong(location, "tools", what, help));
            }
            (ToolChoice::Auto, None) => (self.functions.iter().collect(), AnswerWithoutCalls::Text),
            (_, Some(_)) if !is_response_format => {
                let what = "forces a call, and the request has structured_outputs or guided_...";
                return Err(wrong(location, "tool_choice", what, "give one of the two"));
            }
            (ToolChoice::Required, _) => (self.functions.iter().collect::<Vec<_>>(), AnswerWithoutCalls::None),
            (ToolChoice::Function(name), _) => {
                let is_named = |function: &&Function| function.name == *name;
                (self.functions.iter().filter(is_named).collect(), AnswerWithoutCalls::None)
            }
        };
        let is_forced = otherwise == AnswerWithoutCalls::None;
        let schema = |f: &Function| if f.strict || is_forced { f.parameters.clone() } else { any_object() };
        let functions = called.into_iter().map(|f| (f.name.clone(), schema(f))).collect();
        Ok(Some(GrammarSpec::ToolCalls(ToolCallGrammar { functions, several: !self.one_call, otherwise })))
    }
}

impl Conversation {
    /// The conversation with the tools in the column `tools` of its row: a list of functions as in OpenAI's API and in
    /// transformers' chat templates, or null.
    ///
    /// # Errors
    /// The column is not such a list.
    pub fn with_tools_column(self, tools: Value) -> Result<Self> {
        let fields = Map::from_iter([("tools".to_string(), tools)]);
        let tools = ToolRequest::from_body(&self.location, &fields)?.definitions;
        Ok(self.with_tools(tools))
    }
}

/// A JSON schema that allows any object as arguments.
fn any_object() -> Value {
    json!({"type": "object"})
}

/// Reads `tools`. Returns each tool as a function and in the JSON form of the request.
fn read_tools(location: &str, value: &Value) -> Result<Vec<(Value, Function)>> {
    let Some(list) = value.as_array() else {
        return Err(wrong(location, "tools", "is not a list", TOOLS));
    };
    if list.len() > MAX_TOOLS {
        let what = format!("has {} tools", list.len());
        return Err(wrong(location, "tools", what, format!("give at most {MAX_TOOLS}")));
    }
    let mut tools: Vec<(Value, Function)> = Vec::with_capacity(list.len());
    for (i, tool) in list.iter().enumerate() {
        let function = read_tool(location, &format!("tools[{i}]"), tool)?;
        if tools.iter().any(|(_, other)| other.name == function.name) {
            let what = format!("is a second function with the name {:?}", function.name);
            return Err(wrong(location, &format!("tools[{i}]"), what, "give it another name"));
        }
        tools.push((tool.clone(), function));
    }
    Ok(tools)
}

const TOOLS: &str = "give a list of {\"type\": \"function\", \"function\": {\"name\": ..., \"description\": ..., \
    \"parameters\": a JSON schema}}";
const NAME: &str = "give 1 to 64 letters a to z, digits, _ and -";

fn read_tool(location: &str, path: &str, tool: &Value) -> Result<Function> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        return Err(wrong(location, path, "is not an object with \"type\": \"function\"", TOOLS));
    }
    // OpenAI's tools that a search finds later: all tools of a request are in the prompt.
    let is_deferred =
        |object: &Value| object.get("defer_loading").is_some_and(|value| !value.is_null() && *value != false);
    if is_deferred(tool) || tool.get("function").is_some_and(is_deferred) {
        return Err(wrong(location, &format!("{path}.defer_loading"), "is not supported", "remove it"));
    }
    let path = format!("{path}.function");
    let Some(function) = tool.get("function").and_then(Value::as_object) else {
        return Err(wrong(location, &path, "is missing or not an object", TOOLS));
    };
    let field = |name: &str| function.get(name).filter(|value| !value.is_null());
    let name = match field("name") {
        Some(Value::String(name)) if is_function_name(name) => name.clone(),
        Some(value) => return Err(wrong(location, &format!("{path}.name"), format!("is {value}"), NAME)),
        None => return Err(wrong(location, &path, "has no name", NAME)),
    };
    if field("description").is_some_and(|text| !text.is_string()) {
        return Err(wrong(location, &format!("{path}.description"), "is not a text", "give a text, or remove it"));
    }
    let strict = match field("strict") {
        None => false,
        Some(value) => value
            .as_bool()
            .ok_or_else(|| wrong(location, &format!("{path}.strict"), format!("is {value}"), "give true or false"))?,
    };
    let parameters = match field("parameters") {
        // As in OpenAI's API, a function without `parameters` takes no arguments.
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(value) => arguments_schema(value).map_err(|what| {
            wrong(location, &format!("{path}.parameters"), what, "give the JSON schema of an object")
        })?,
    };
    Ok(Function { name, parameters, strict })
}

/// The schema of a function's arguments, with `"type": "object"` added if it is missing. The error says what is wrong
/// with the schema.
fn arguments_schema(value: &Value) -> std::result::Result<Value, String> {
    let Some(fields) = value.as_object() else {
        return Err(format!("is {value}, not a JSON schema"));
    };
    match fields.get("type") {
        Some(Value::String(kind)) if kind == "object" => Ok(value.clone()),
        Some(kind) => Err(format!("has the type {kind}, but the arguments of a function are an object")),
        None => {
            let mut schema = Map::from_iter([("type".to_string(), json!("object"))]);
            schema.extend(fields.clone());
            Ok(Value::Object(schema))
        }
    }
}

fn read_choice(location: &str, value: &Value) -> Result<ToolChoice> {
    let wrong_choice = || {
        let help = "give \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";
        wrong(location, "tool_choice", format!("is {value}"), help)
    };
    match value {
        Value::String(word) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => Err(wrong_choice()),
        },
        value if value["type"] == "function" => match value["function"]["name"].as_str() {
            Some(name) => Ok(ToolChoice::Function(name.to_string())),
            None => Err(wrong_choice()),
        },
        _ => Err(wrong_choice()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<ToolRequest> {
        ToolRequest::from_body("m.json", body.as_object().unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    #[test]
    fn choices_give_rules() {
        let strict = json!({"type": "function", "function": {"name": "b", "strict": true}});
        let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
        let tools = json!([function("a"), strict]);
        let rule = |body: Value, other: Option<GrammarSpec>| read(body).unwrap().grammar("m.json", other, false);
        let calls = |functions: Vec<(&str, Value)>, several: bool, otherwise: AnswerWithoutCalls| {
            let functions = functions.into_iter().map(|(name, schema)| (name.to_string(), schema)).collect();
            Some(GrammarSpec::ToolCalls(ToolCallGrammar { functions, several, otherwise }))
        };
        let both = || vec![("a", any_object()), ("b", nothing.clone())];
        let regex = || Some(GrammarSpec::Regex("a".into()));
        assert_eq!(
            rule(json!({"tools": tools, "tool_choice": "required"}), None).unwrap(),
            calls(both(), true, AnswerWithoutCalls::None)
        );
        assert_eq!(
            rule(json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false}), None).unwrap(),
            calls(both(), false, AnswerWithoutCalls::None)
        );
        let named = json!({"type": "function", "function": {"name": "a"}});
        assert_eq!(
            rule(json!({"tools": tools, "tool_choice": &named}), None).unwrap(),
            calls(vec![("a", any_object())], false, AnswerWithoutCalls::None)
        );
        assert_eq!(rule(json!({"tools": tools}), None).unwrap(), calls(both(), true, AnswerWithoutCalls::Text));
        assert_eq!(rule(json!({"tools": [function("a")]}), regex()).unwrap(), regex());
        assert_eq!(rule(json!({"tools": tools, "tool_choice": "none"}), regex()).unwrap(), regex());
        assert_eq!(rule(json!({}), None).unwrap(), None);
        for (body, words) in [
            (json!({"tools": tools, "tool_choice": "required"}), "tool_choice: forces a call, and"),
            (json!({"tools": tools}), "tools: has a function with `strict`, but"),
        ] {
            let error = rule(body, regex()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        // `response_format` is the form of an answer without calls.
        let rule = |body: Value| read(body).unwrap().grammar("m.json", regex(), true).unwrap();
        let form = || AnswerWithoutCalls::Form(Box::new(regex().unwrap()));
        assert_eq!(rule(json!({"tools": tools})), calls(both(), true, form()));
        let free = json!({"tools": [function("a")], "parallel_tool_calls": false});
        assert_eq!(rule(free), calls(vec![("a", any_object())], false, form()));
        assert_eq!(
            rule(json!({"tools": tools, "tool_choice": "required"})),
            calls(both(), true, AnswerWithoutCalls::None)
        );
        assert_eq!(
            rule(json!({"tools": tools, "tool_choice": named})),
            calls(vec![("a", any_object())], false, AnswerWithoutCalls::None)
        );
        for body in [json!({"tools": tools, "tool_choice": "none"}), json!({"tools": []})] {
            assert_eq!(rule(body), regex());
        }
    }

    #[test]
    fn a_tool_choice_or_an_empty_list_without_tools_has_no_effect() {
        for body in [
            json!({"tools": []}),
            json!({"tools": null, "tool_choice": "auto", "parallel_tool_calls": null}),
            json!({"tool_choice": "none", "parallel_tool_calls": true}),
        ] {
            let request = read(body).unwrap();
            assert!(request.definitions.is_empty() && !request.allows_tool_calls());
        }
    }

    #[test]
    fn wrong_fields_are_refused_by_name() {
        let with = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let long = "x".repeat(65);
        for (body, expected) in [
            (json!({"tools": {}}), "tools: is not a list"),
            (json!({"tools": vec![function("a"); 129]}), "tools: has 129 tools"),
            (json!({"tools": [3]}), "tools[0]: is not an object with \"type\""),
            (json!({"tools": [{"type": "retrieval"}]}), "tools[0]: is not an object with \"type\""),
            (json!({"tools": [function("a"), {"type": "function"}]}), "tools[1].function: is missing"),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a"}, "defer_loading": true}]}),
                "tools[0].defer_loading: is not supported",
            ),
            (with(json!({"name": "a", "defer_loading": true})), "tools[0].defer_loading: is not supported"),
            (json!({"tools": [function("a"), function("a")]}), "tools[1]: is a second function"),
            (with(json!({})), "tools[0].function: has no name"),
            (with(json!({"name": "two words"})), "tools[0].function.name: is \"two words\""),
            (with(json!({"name": ""})), "tools[0].function.name: is \"\""),
            (with(json!({"name": long})), "tools[0].function.name: is \"xxx"),
            (with(json!({"name": "é"})), "tools[0].function.name: is \"é\""),
            (with(json!({"name": 3})), "tools[0].function.name: is 3"),
            (with(json!({"name": "a", "description": 3})), "tools[0].function.description: is not a text"),
            (with(json!({"name": "a", "strict": "yes"})), "tools[0].function.strict: is \"yes\""),
            (with(json!({"name": "a", "parameters": []})), "tools[0].function.parameters: is []"),
            (with(json!({"name": "a", "parameters": {"type": "string"}})), "has the type \"string\""),
            (json!({"tool_choice": "maybe"}), "tool_choice: is \"maybe\""),
            (json!({"tool_choice": {"type": "function"}}), "tool_choice: is {"),
            (json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice: is {"),
            (json!({"tool_choice": "required"}), "tool_choice: is \"required\", but there are no tools"),
            (
                json!({"tools": [function("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}),
                "tool_choice: names the function \"b\"",
            ),
            (json!({"parallel_tool_calls": 1}), "parallel_tool_calls: is 1"),
        ] {
            let error = read(body.clone()).expect_err(&body.to_string()).to_string();
            assert!(error.starts_with("m.json: tool") || error.starts_with("m.json: parallel"), "{body}: {error}");
            assert!(error.contains(expected) && error.contains("; "), "{body}: {error}");
        }
    }
}
