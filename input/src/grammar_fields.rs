//! Reads the fields of a request that set the form of the answer: OpenAI's `response_format`, and vLLM's
//! `structured_outputs` and `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`.
//!
//! Every key inside a field is read or refused by name, because an answer of another form than the client asked for is
//! worse than an error. A key that is null counts as absent.

use serde_json::{Map, Value, json};

use crate::grammar::GrammarSpec;

/// The fields that set the form of the answer. A request has at most one of them.
pub const GRAMMAR_FIELDS: [&str; 6] =
    ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"];

/// An error in a field that should set a grammar.
#[derive(Debug)]
pub(crate) struct GrammarFieldError {
    /// What is wrong with the value, without the name of the field.
    pub(crate) what: String,
    /// The advice to the user.
    pub(crate) help: String,
}

type Result<T> = std::result::Result<T, GrammarFieldError>;

fn wrong<T>(what: impl Into<String>, help: &str) -> Result<T> {
    Err(GrammarFieldError { what: what.into(), help: help.into() })
}

/// The grammar that the field `name` sets; `None` if it asks for plain text.
///
/// # Errors
/// The value has the wrong form, or a key that is not read.
pub(crate) fn parse_grammar(name: &str, value: &Value) -> Result<Option<GrammarSpec>> {
    match name {
        "response_format" => response_format(value),
        "structured_outputs" => structured_outputs(value).map(Some),
        _ => guided(name.strip_prefix("guided_").unwrap_or(name), value).map(Some),
    }
}

const RESPONSE_FORMAT: &str = "give {\"type\": \"text\"}, {\"type\": \"json_object\"}, or {\"type\": \"json_schema\", \
    \"json_schema\": {\"name\": ..., \"schema\": ...}}";

fn response_format(value: &Value) -> Result<Option<GrammarSpec>> {
    let Some(fields) = value.as_object() else { return wrong(format!("is {value}"), RESPONSE_FORMAT) };
    let Some(kind) = fields.get("type").and_then(Value::as_str) else {
        return wrong("has no `type`", RESPONSE_FORMAT);
    };
    match kind {
        "text" => refuse_other_keys(fields, &["type"]).map(|()| None),
        "json_object" => refuse_other_keys(fields, &["type"]).map(|()| Some(any_json_object())),
        "json_schema" => {
            refuse_other_keys(fields, &["type", "json_schema"])?;
            let Some(inner) = fields.get("json_schema").and_then(Value::as_object) else {
                return wrong("has no `json_schema`", RESPONSE_FORMAT);
            };
            refuse_other_keys(inner, &["name", "description", "schema", "strict"])?;
            match inner.get("schema").and_then(json_schema) {
                Some(schema) => Ok(Some(schema)),
                None => wrong("has no `schema` that is an object in its `json_schema`", RESPONSE_FORMAT),
            }
        }
        other => wrong(format!("has the type `{other}`, which reel does not support"), RESPONSE_FORMAT),
    }
}

fn refuse_other_keys(fields: &Map<String, Value>, known: &[&str]) -> Result<()> {
    match fields.iter().find(|(key, value)| !value.is_null() && !known.contains(&key.as_str())) {
        Some((key, _)) => wrong(format!("has the key `{key}`, which reel does not read there"), RESPONSE_FORMAT),
        None => Ok(()),
    }
}

const STRUCTURED_OUTPUTS: &str = "give an object with one of json, json_object, regex, choice, grammar";

/// vLLM's class StructuredOutputsParams: one grammar, and switches of vLLM's grammar compilers. The class is often sent
/// with all of its keys.
fn structured_outputs(value: &Value) -> Result<GrammarSpec> {
    let Some(fields) = value.as_object() else { return wrong(format!("is {value}"), STRUCTURED_OUTPUTS) };
    let mut grammars: Vec<(&str, GrammarSpec)> = Vec::new();
    for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match (key.as_str(), value) {
            ("json" | "regex" | "choice" | "grammar", value) => {
                let spec = guided(key, value);
                grammars.push((key, spec.map_err(|e| GrammarFieldError { what: format!("{key} {}", e.what), ..e })?));
            }
            ("json_object", Value::Bool(true)) => grammars.push((key, any_json_object())),
            ("json_object" | "disable_additional_properties", Value::Bool(false)) => {}
            // reel has a single grammar compiler, so there is no fallback to disable, and it never writes white space
            // between the parts of a JSON value.
            ("disable_fallback" | "disable_any_whitespace" | "_backend_was_auto", Value::Bool(_)) => {}
            ("disable_additional_properties", Value::Bool(true)) => {
                let help = "remove it, and write \"additionalProperties\": false in the schema";
                return wrong("has disable_additional_properties, which reel does not support", help);
            }
            (
                "json_object" | "disable_additional_properties" | "disable_fallback" | "disable_any_whitespace",
                other,
            ) => {
                return wrong(format!("{key} is {other}"), "give true or false");
            }
            _ => {
                let help = "remove it, and give one of json, json_object, regex, choice, grammar";
                return wrong(format!("has the key `{key}`, which reel does not support"), help);
            }
        }
    }
    match &mut grammars[..] {
        [] => wrong("sets no form of the answer", STRUCTURED_OUTPUTS),
        [_] => Ok(grammars.remove(0).1),
        [(first, _), (second, _), ..] => wrong(format!("has both {first} and {second}"), "give only one of the two"),
    }
}

/// The grammar of vLLM's field `guided_KIND`.
fn guided(kind: &str, value: &Value) -> Result<GrammarSpec> {
    let text = |value: &Value| value.as_str().map(String::from);
    let (grammar, help) = match kind {
        "json" => (json_schema(value), "give a JSON schema: an object, or a text that holds one"),
        "regex" => (text(value).map(GrammarSpec::Regex), "give a regular expression as a text"),
        "choice" => {
            let texts = value.as_array().and_then(|list| list.iter().map(text).collect());
            (texts.map(GrammarSpec::Choice), "give a list of texts")
        }
        _ => (text(value).map(GrammarSpec::Lark), "give a grammar as a text"),
    };
    grammar.map_or_else(|| wrong(format!("is {value}"), help), Ok)
}

fn any_json_object() -> GrammarSpec {
    GrammarSpec::JsonSchema(json!({"type": "object"}))
}

/// A JSON schema as an object, or as a text that holds one.
fn json_schema(value: &Value) -> Option<GrammarSpec> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text).ok()?,
        value => value.clone(),
    };
    schema.is_object().then_some(GrammarSpec::JsonSchema(schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_have_the_names_of_openai_and_vllm() {
        let schema = json!({"type": "integer"});
        let wanted = GrammarSpec::JsonSchema(schema.clone());
        let object = GrammarSpec::JsonSchema(json!({"type": "object"}));
        let openai = json!({"name": "n", "description": "d", "strict": true, "schema": schema});
        for (field, value, wanted) in [
            ("response_format", json!({"type": "json_schema", "json_schema": {"schema": schema}}), wanted.clone()),
            ("response_format", json!({"type": "json_schema", "json_schema": openai}), wanted.clone()),
            ("response_format", json!({"type": "json_object", "json_schema": null}), object.clone()),
            ("guided_json", schema.clone(), wanted.clone()),
            ("guided_json", json!(schema.to_string()), wanted.clone()),
            ("structured_outputs", json!({"json": schema}), wanted.clone()),
            ("structured_outputs", json!({"json_object": true}), object),
            ("structured_outputs", json!({"grammar": "start: \"a\""}), GrammarSpec::Lark("start: \"a\"".into())),
            ("guided_choice", json!(["a", "b"]), GrammarSpec::Choice(vec!["a".into(), "b".into()])),
            (
                "structured_outputs",
                json!({"choice": ["q"], "regex": null, "json": null}),
                GrammarSpec::Choice(vec!["q".into()]),
            ),
            (
                "structured_outputs",
                json!({"regex": "ab", "disable_any_whitespace": true}),
                GrammarSpec::Regex("ab".into()),
            ),
            // A value with all keys of vLLM's class StructuredOutputsParams.
            (
                "structured_outputs",
                json!({
                    "json": schema, "regex": null, "choice": null, "grammar": null, "json_object": null,
                    "disable_fallback": false, "disable_any_whitespace": false, "disable_additional_properties": false,
                    "whitespace_pattern": null, "structural_tag": null, "_backend": null, "_backend_was_auto": false,
                }),
                wanted,
            ),
        ] {
            assert_eq!(parse_grammar(field, &value).unwrap(), Some(wanted), "{field} {value}");
        }
        assert_eq!(parse_grammar("response_format", &json!({"type": "text"})).unwrap(), None);
    }

    #[test]
    fn errors_name_the_key() {
        for (field, value, words) in [
            ("response_format", json!({"type": "yaml"}), "has the type `yaml`"),
            ("response_format", json!({"type": "json_schema", "json_schema": {}}), "has no `schema`"),
            ("response_format", json!({"type": "json_schema"}), "has no `json_schema`"),
            ("response_format", json!({"schema": {}}), "has no `type`"),
            ("response_format", json!({"type": "json_object", "schema": {}}), "has the key `schema`"),
            ("response_format", json!({"type": "text", "json_schema": {}}), "has the key `json_schema`"),
            ("response_format", json!("json"), "is \"json\""),
            ("guided_json", json!([1]), "is [1]"),
            ("guided_choice", json!("a"), "is \"a\""),
            ("structured_outputs", json!({"regex": "a", "choice": ["b"]}), "has both regex and choice"),
            ("structured_outputs", json!({"json": {}, "json_object": true}), "has both json and json_object"),
            ("structured_outputs", json!({"lark": "a"}), "has the key `lark`"),
            ("structured_outputs", json!({"json": {}, "whitespace_pattern": " "}), "has the key `whitespace_pattern`"),
            ("structured_outputs", json!({"regex": 3}), "regex is 3"),
            ("structured_outputs", json!({"regex": "a", "disable_fallback": "no"}), "disable_fallback is \"no\""),
            (
                "structured_outputs",
                json!({"json": {}, "disable_additional_properties": true}),
                "has disable_additional_properties",
            ),
            ("structured_outputs", json!({"regex": null}), "sets no form"),
            ("structured_outputs", json!({"json_object": false}), "sets no form"),
            ("structured_outputs", json!(["a"]), "is [\"a\"]"),
        ] {
            let e = parse_grammar(field, &value).unwrap_err();
            assert!(e.what.starts_with(words) && !e.help.is_empty(), "{field} {value}: {e:?}");
        }
    }
}
