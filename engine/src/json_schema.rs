//! Rewrites a JSON schema for `llguidance`, which does not know some keywords that libraries write. The rewritten
//! schema accepts the same values. A keyword that cannot be rewritten stays, and `llguidance` refuses it by name.
//!
//! ```text
//! {"format": "password"}                                             {}: for JSON Schema, an annotation
//! {"uniqueItems": false}                                             {}
//! {"propertyNames": {"enum": ["a"]}, "additionalProperties": S}      {"properties": {"a": S}, and no others}
//! {"propertyNames": {"pattern": "^a"}, "additionalProperties": S}    {"patternProperties": {"^a": S}, and no others}
//! {"oneOf": [A, B]}; A, B require other values of one property       {"anyOf": [A, B]}
//! ```

use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// The formats that `llguidance` asserts. JSON Schema lets a validator treat any other format as an annotation.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords whose values are data, not schemas.
const DATA: [&str; 5] = ["enum", "const", "default", "examples", "example"];

/// Keywords whose values are objects of schemas by name.
const NAMED_SCHEMAS: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// Keywords that only describe a value.
const ANNOTATIONS: [&str; 7] = ["title", "description", "$comment", "default", "examples", "readOnly", "writeOnly"];

/// Annotations of OpenAPI and later drafts. They and those of users (`x-…`) are removed, because `llguidance` would
/// combine a `$ref` beside them with an empty schema, which fails for a schema that refers to itself.
const UNKNOWN_ANNOTATIONS: [&str; 6] = ["deprecated", "discriminator", "example", "externalDocs", "nullable", "xml"];

/// The number of steps and copied values that rewriting a schema may take. A keyword that needs more stays as it is.
const MAX_STEPS: usize = 1 << 20;

/// Rewrites a schema. `white_space` has options of `llguidance` for the space between the parts of a value; a schema
/// that sets `x-guidance` itself keeps its options.
pub(crate) fn rewrite_schema(schema: &Value, white_space: Value) -> Value {
    let mut rewriter = Rewriter { root: schema, tags: Vec::new(), steps_left: MAX_STEPS };
    let mut rewritten = schema.clone();
    rewriter.rewrite(&mut rewritten);
    for (path, tag) in &rewriter.tags {
        rewritten.pointer_mut(path).into_iter().for_each(|definition| require(definition, tag));
    }
    if let Value::Object(fields) = &mut rewritten {
        fields.entry("x-guidance").or_insert(white_space);
    }
    rewritten
}

struct Rewriter<'a> {
    /// The whole schema as it was given.
    root: &'a Value,
    /// The paths of the definitions that are to require a property, and the name of this property.
    tags: Vec<(String, String)>,
    steps_left: usize,
}

/// Adds a property to those that a schema requires.
fn require(schema: &mut Value, property: &str) {
    let Value::Object(fields) = schema else { return };
    match fields.entry("required").or_insert_with(|| json!([])) {
        Value::Array(names) if !names.iter().any(|name| name == property) => names.push(json!(property)),
        _ => {}
    }
}

/// The number of values in a JSON value, itself included.
fn value_count(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(value_count).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(value_count).sum::<usize>(),
        _ => 1,
    }
}

/// Returns the schema that a schema's `$ref` names by its path in the whole schema `root`, or the schema itself.
fn resolved<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    // The limit ends a chain of references that is a circle.
    for _ in 0..16 {
        let path = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
        match path.and_then(|path| root.pointer(path)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// The names of the properties that a schema requires.
fn required_names<'a>(schema: &'a Value, root: &'a Value) -> &'a [Value] {
    resolved(schema, root)["required"].as_array().map_or(&[], Vec::as_slice)
}

impl Rewriter<'_> {
    fn rewrite(&mut self, schema: &mut Value) {
        match schema {
            Value::Array(schemas) => schemas.iter_mut().for_each(|schema| self.rewrite(schema)),
            Value::Object(fields) => {
                for (key, value) in fields.iter_mut().filter(|(key, _)| !DATA.contains(&key.as_str())) {
                    match value {
                        Value::Object(named) if NAMED_SCHEMAS.contains(&key.as_str()) => {
                            named.values_mut().for_each(|schema| self.rewrite(schema));
                        }
                        value => self.rewrite(value),
                    }
                }
                self.rewrite_property_names(fields);
                self.rewrite_one_of(fields);
                fields.retain(|key, value| match key.as_str() {
                    "format" => value.as_str().is_none_or(|format| FORMATS.contains(&format)),
                    "uniqueItems" => *value != Value::Bool(false),
                    key => !UNKNOWN_ANNOTATIONS.contains(&key) && (!key.starts_with("x-") || value.is_object()),
                });
            }
            _ => {}
        }
    }

    /// Takes steps; false if too few are left.
    fn take_steps(&mut self, steps: usize) -> bool {
        let left = self.steps_left.checked_sub(steps);
        self.steps_left = left.unwrap_or(self.steps_left);
        left.is_some()
    }

    /// Expresses `propertyNames` by other keywords, if there is a way.
    fn rewrite_property_names(&mut self, fields: &mut Map<String, Value>) -> Option<()> {
        let names = resolved(fields.get("propertyNames")?, self.root);
        let mut names = if *names == Value::Bool(true) { Map::new() } else { names.as_object()?.clone() };
        names.retain(|key, value| !(ANNOTATIONS.contains(&key.as_str()) || key == "type" && value == "string"));
        // A pattern beside a format describes the same names.
        if names.contains_key("pattern") {
            names.shift_remove("format");
        }
        let is_given = |key: &str| fields.get(key).and_then(Value::as_object).is_some_and(|named| !named.is_empty());
        if !names.is_empty() && is_given("patternProperties") {
            return None;
        }
        let others = fields.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        let only = |key: &str| names.get(key).filter(|_| names.len() == 1);
        let allowed = only("enum").and_then(Value::as_array).cloned().or(only("const").map(|name| vec![name.clone()]));
        if let Some(allowed) = allowed {
            if !self.take_steps(allowed.len().saturating_mul(value_count(&others))) {
                return None;
            }
            let names: HashSet<&str> = allowed.iter().filter_map(Value::as_str).collect();
            let mut properties = fields.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
            for (_, schema) in properties.iter_mut().filter(|(name, _)| !names.contains(name.as_str())) {
                *schema = Value::Bool(false);
            }
            for name in allowed.iter().filter_map(Value::as_str) {
                properties.entry(name).or_insert_with(|| others.clone());
            }
            fields.insert("properties".into(), properties.into());
            fields.insert("additionalProperties".into(), Value::Bool(false));
        } else if !names.is_empty() {
            let length = |key: &str| names.get(key).map_or(Some(None), |value| value.as_u64().map(Some));
            let pattern = match only("pattern") {
                _ if is_given("properties") => return None,
                Some(pattern) => pattern.as_str()?.to_string(),
                None if names.keys().all(|key| key == "minLength" || key == "maxLength") => {
                    let most = length("maxLength")?.map_or(String::new(), |most| most.to_string());
                    format!("^(.|\\n){{{},{most}}}$", length("minLength")?.unwrap_or(0))
                }
                None => return None,
            };
            fields.insert("patternProperties".into(), json!({pattern: others}));
            fields.insert("additionalProperties".into(), Value::Bool(false));
        }
        fields.shift_remove("propertyNames").map(drop)
    }

    /// Renames `oneOf` to `anyOf` if no value can match two of its schemas, because each requires other values of one
    /// property. With OpenAPI's `discriminator`, this property is required, also where a schema does not say so.
    fn rewrite_one_of(&mut self, fields: &mut Map<String, Value>) {
        let root = self.root;
        let Some(Value::Array(schemas)) = fields.get("oneOf") else { return };
        let tag = fields.get("discriminator").and_then(|value| value["propertyName"].as_str());
        let first = schemas.first().and_then(|schema| resolved(schema, root)["properties"].as_object());
        let names = tag.into_iter().chain(first.into_iter().flatten().map(|(name, _)| name.as_str()));
        let steps = schemas.iter().map(|schema| 1 + required_names(schema, root).len()).sum::<usize>();
        if fields.contains_key("anyOf") || !self.take_steps(steps.saturating_mul(names.clone().count())) {
            return;
        }
        let distinguishes = |name: &&str| {
            let mut seen = HashSet::new();
            schemas.iter().all(|schema| {
                let property = resolved(schema, root)["properties"].get(*name).map(|property| resolved(property, root));
                let one = property.and_then(|property| property.get("const")).map(std::slice::from_ref);
                let values =
                    one.or_else(|| property.and_then(|property| property["enum"].as_array()).map(Vec::as_slice));
                let is_required = tag == Some(*name) || required_names(schema, root).iter().any(|other| other == name);
                let mut is_new = |value: &Value| value.as_str().is_some_and(|value| seen.insert(value.to_string()));
                is_required && values.is_some_and(|values| values.iter().all(&mut is_new))
            })
        };
        let Some(name) = names.into_iter().find(distinguishes).map(String::from) else { return };
        let Some(mut schemas) = fields.shift_remove("oneOf") else { return };
        for schema in schemas.as_array_mut().into_iter().flatten() {
            match schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#')) {
                Some(path) => self.tags.push((path.to_string(), name.clone())),
                None => require(schema, &name),
            }
        }
        fields.insert("anyOf".into(), schemas);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use reel_input::encode::ModelFolder;
    use reel_input::grammar::GrammarSpec;

    use super::*;
    use crate::grammar_compiler::GrammarCompiler;
    use crate::tool_calls::tests::accepts;

    fn folder() -> ModelFolder {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
        ModelFolder::open(&path).unwrap()
    }

    #[test]
    fn keywords_that_libraries_write_are_followed_or_annotations() {
        let folder = folder();
        let compiler = GrammarCompiler::new(&folder).unwrap();
        let object = |properties: Value, required: Value| {
            let mut object = json!({"type": "object", "properties": properties, "additionalProperties": false});
            object["required"] = required;
            object
        };
        let kind = |name: &str| object(json!({"kind": {"const": name}, "x": {"type": "null"}}), json!(["kind"]));
        // The tag of this schema has a default, so a library does not require it.
        let mut optional = kind("b");
        optional.as_object_mut().unwrap().shift_remove("required");
        let defs =
            json!({"a": kind("a"), "b": kind("b"), "o": optional, "names": {"enum": ["a", "b"], "title": "Names"}});
        let union = |second: &str, tag: Value| {
            let refs = [json!({"$ref": "#/$defs/a"}), json!({"$ref": format!("#/$defs/{second}")})];
            json!({"oneOf": refs, "discriminator": tag, "$defs": defs})
        };
        let record = |names: Value| {
            let value = json!({"type": "null"});
            json!({"type": "object", "propertyNames": names, "additionalProperties": value, "$defs": defs})
        };
        let named = json!({"type": "object", "properties": {"b": {"enum": [1]}, "c": {}},
            "propertyNames": {"enum": ["a", "b"]}, "required": ["b"]});
        let tag = || json!({"propertyName": "kind"});
        // A schema that refers to itself, as for a class with a field of its own union.
        let child =
            json!({"oneOf": [{"$ref": "#/$defs/t"}, {"$ref": "#/$defs/leaf"}], "discriminator": tag(), "x-y": 1});
        let leaf = object(json!({"kind": {"const": "leaf"}}), json!([]));
        let node = object(json!({"kind": {"const": "t"}, "child": child}), json!([]));
        let tree = json!({"$ref": "#/$defs/t", "deprecated": true, "$defs": {"t": node, "leaf": leaf}});
        for (schema, accepted, refused) in [
            (json!({"type": "string", "format": "password"}), vec!["\"x\""], vec!["1"]),
            (json!({"type": ["integer", "string"], "format": "int32"}), vec!["1", "\"x\""], vec!["1.5"]),
            (json!({"type": "string", "format": "date"}), vec!["\"2024-02-29\""], vec!["\"x\""]),
            (
                json!({"type": "array", "items": {"type": "null"}, "uniqueItems": false}),
                vec!["[null,null]"],
                vec!["[1]"],
            ),
            // Properties may have the names of keywords, and data may look like schemas.
            (
                object(
                    json!({"format": {"enum": ["uniqueItems"]}, "enum": {"const": {"uniqueItems": false}}}),
                    json!([]),
                ),
                vec!["{\"format\":\"uniqueItems\",\"enum\":{\"uniqueItems\":false}}"],
                vec!["{\"format\":\"x\"}", "{\"enum\":{}}"],
            ),
            (
                json!({
                    "type": "null", "$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": "c",
                    "title": "t",
                    "examples": [1], "deprecated": true, "readOnly": true, "contentEncoding": "base64", "x-order": 1,
                    "contentMediaType": "image/png", "externalDocs": {"url": "x"}, "example": 3, "default": 4,
                    "nullable": false
                }),
                vec!["null"],
                vec!["1"],
            ),
            (record(json!({"type": "string"})), vec!["{\"z\":null}", "{}"], vec!["{\"z\":1}"]),
            (
                record(json!({"$ref": "#/$defs/names"})),
                vec!["{\"a\":null,\"b\":null}", "{}"],
                vec!["{\"c\":null}", "{\"a\":1}"],
            ),
            (
                record(json!({"pattern": "^a+$", "type": "string"})),
                vec!["{\"aa\":null}"],
                vec!["{\"b\":null}", "{\"aa\":1}"],
            ),
            (
                record(json!({"minLength": 2, "maxLength": 3})),
                vec!["{\"ab\":null,\"abc\":null}"],
                vec!["{\"a\":null}", "{\"abcd\":null}"],
            ),
            (record(json!({"minLength": 2})), vec!["{\"abcdefgh\":null}"], vec!["{\"a\":null}"]),
            (
                named,
                vec!["{\"b\":1,\"a\":[]}"],
                vec!["{\"b\":1,\"c\":1}", "{\"b\":1,\"d\":1}", "{\"a\":1}", "{\"b\":2}"],
            ),
            (
                union("b", tag()),
                vec!["{\"kind\":\"a\"}", "{\"kind\":\"b\",\"x\":null}"],
                vec!["{\"kind\":\"c\"}", "{}"],
            ),
            (union("b", Value::Null), vec!["{\"kind\":\"b\"}"], vec!["{\"kind\":\"c\"}"]),
            (union("o", tag()), vec!["{\"kind\":\"a\"}", "{\"kind\":\"b\"}"], vec!["{}", "{\"x\":null}"]),
            (
                tree,
                vec!["{\"kind\":\"t\",\"child\":{\"kind\":\"t\",\"child\":{\"kind\":\"leaf\"}}}"],
                vec!["{\"kind\":\"t\",\"child\":{}}", "{\"kind\":\"t\",\"child\":{\"kind\":\"t\",\"child\":{}}}"],
            ),
        ] {
            let grammar =
                compiler.compile(&GrammarSpec::JsonSchema(schema.clone())).unwrap_or_else(|e| panic!("{schema}: {e}"));
            for (texts, wanted) in [(accepted, true), (refused, false)] {
                for text in texts {
                    assert_eq!(accepts(&folder, &grammar, text), wanted, "{schema}: {text}");
                }
            }
        }
    }

    /// A short schema must not become a very long one.
    #[test]
    fn rewriting_has_a_limit() {
        let names: Vec<String> = (0..2000).map(|i| format!("n{i}")).collect();
        let record = json!({"propertyNames": {"$ref": "#/$defs/names"}, "additionalProperties": {"type": "null"}});
        let schema = json!({"prefixItems": vec![record; 2000], "$defs": {"names": {"enum": names}}});
        assert!(value_count(&rewrite_schema(&schema, Value::Null)) < 2 * MAX_STEPS);
    }

    #[test]
    fn keywords_that_would_change_the_answers_are_refused_by_name() {
        let compiler = GrammarCompiler::new(&folder()).unwrap();
        let object = |key: &str, value: Value| json!({"type": "object", key: value});
        for (schema, word) in [
            (json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}), "uniqueItems"),
            (json!({"not": {"type": "null"}}), "not"),
            (json!({"if": {"type": "null"}, "then": false}), "if"),
            (json!({"type": "array", "contains": {"type": "null"}}), "contains"),
            (object("dependentRequired", json!({"a": ["b"]})), "dependentRequired"),
            (object("unevaluatedProperties", json!(false)), "unevaluatedProperties"),
            (object("propertyNames", json!({"format": "date"})), "propertyNames"),
            (object("propertyNames", json!({"not": {"const": "a"}})), "propertyNames"),
            (object("propertyNames", json!({"pattern": "a", "minLength": 2})), "propertyNames"),
            (object("propertyNames", json!({"$ref": "#/propertyNames"})), "propertyNames"),
            (json!({"properties": {"a": {}}, "propertyNames": {"pattern": "b"}}), "propertyNames"),
            (json!({"oneOf": [{"type": "object", "properties": {"a": {"const": "x"}}}, {"type": "object"}]}), "oneOf"),
        ] {
            let e =
                compiler.compile(&GrammarSpec::JsonSchema(schema.clone())).expect_err(&schema.to_string()).to_string();
            assert!(e.contains(word), "{schema}: {e}");
        }
    }
}
