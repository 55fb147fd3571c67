//! Fuzz target for grammars: JSON schemas, regular expressions, choices, grammars in Lark's syntax, tool calls.

use std::fmt::Write;

use reel_engine::{GrammarCompiler, GrammarSpec};
use reel_input::encode::ModelFolder;
use reel_model::init::init_without_weights;
use reel_support::worker::{WorkerProgram, set_worker_program};
use serde_json::{Map, Value, json};

use super::model::TINY_MODEL;
use super::{FuzzTarget, scratch_folder};
use crate::mutate::{PartFormat, Seed};
use crate::random::{self, Random};
use crate::verdict::{require, value_if_accepted};

/// The number of tokens of a completion.
const TOKENS: usize = 24;

/// A [`GrammarSpec`] as JSON. A worker process compiles it, then this process; then a completion of random allowed
/// tokens follows it.
pub const GRAMMAR: FuzzTarget = FuzzTarget {
    name: "grammar",
    words: &[
        "JsonSchema",
        "Regex",
        "Choice",
        "Lark",
        "ToolCalls",
        "type",
        "object",
        "array",
        "string",
        "integer",
        "number",
        "null",
        "properties",
        "patternProperties",
        "additionalProperties",
        "propertyNames",
        "required",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "anyOf",
        "allOf",
        "oneOf",
        "enum",
        "const",
        "$ref",
        "$defs",
        "#",
        "#/$defs/d0",
        "pattern",
        "format",
        "date-time",
        "minLength",
        "maxLength",
        "minimum",
        "exclusiveMaximum",
        "multipleOf",
        "x-guidance",
        "(a|b)*",
        "(.*a){9}",
        "a{1000}",
        "{0,99999}",
        "[^\\x00-\\x7f]+?",
        "\\p{L}",
        "(?s:.*)",
        "start: ",
        "a0",
        "A0: ",
        " | ",
        "~3..9",
        "& ~",
        "[lazy]",
        "[stop=\"x\"]",
        "[max_tokens=2]",
        "%json {\"type\": \"object\"}",
        "%ignore /x/",
        "%regex {\"substring_chars\": \"ab\"}",
        "<|im_end|>",
        "@form",
        "\u{0}",
        "",
    ],
    seeds: || Ok(seeds().into_iter().map(|spec| Seed::new(PartFormat::Json, spec.to_string())).collect()),
    open: || {
        set_worker_program(WorkerProgram::of_current_executable());
        let folder = scratch_folder()?;
        init_without_weights(&TINY_MODEL, &folder)?;
        let compiler = GrammarCompiler::new(&ModelFolder::open(&folder)?)?;
        Ok(Box::new(move |input| {
            let Ok(spec) = serde_json::from_slice::<GrammarSpec>(input) else { return Ok(false) };
            let Some(grammar) = value_if_accepted(compiler.compile(&spec))? else { return Ok(false) };
            let mut completion = grammar.clone();
            drop(grammar);
            let mut random = Random::new(&[random::hash(input)]);
            for _ in 0..TOKENS {
                let words = completion.allowed_token_mask().iter().zip(0..);
                let ids: Vec<u32> = words
                    .flat_map(|(word, at)| {
                        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit)
                    })
                    .collect();
                require(!ids.is_empty(), || "no token is allowed".to_string())?;
                let id = ids[random.below(ids.len())];
                if completion.is_end_token(id) || value_if_accepted(completion.accept(id))?.is_none() {
                    break;
                }
            }
            Ok(true)
        }))
    },
};

/// Grammars of all kinds, and some that are nearly as deep or wide as the limits allow.
fn seeds() -> Vec<Value> {
    let object = |inner: Value| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]});
    let nested = |depth: usize, outer: &dyn Fn(Value) -> Value| {
        (0..depth).fold(json!({"type": "integer"}), |inner, _| outer(inner))
    };
    let chain = |length: usize, outer: &dyn Fn(Value) -> Value| {
        let mut defs: Map<String, Value> =
            (0..length).map(|i| (format!("d{i}"), outer(json!({"$ref": format!("#/$defs/d{}", i + 1)})))).collect();
        defs.insert(format!("d{length}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let properties: Map<String, Value> = (0..200).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    let lines = |count: usize, line: &dyn Fn(usize) -> String, end: &str| {
        let mut text = String::from("start: a0 | A0\n");
        (0..count).for_each(|i| writeln!(text, "{}", line(i)).unwrap_or_default());
        text + end
    };
    let rules = lines(200, &|i| format!("a{i}: \"x\" a{} \"y\"?", i + 1), "a200: \"z\"\nA0: \"q\"\n");
    let terminals = lines(200, &|i| format!("A{i}: \"x\" A{}", i + 1), "A200: /z+/\na0: \"q\"\n");
    let schemas = [
        json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "n": {"minimum": 3, "type": "integer"},
            "kind": {"enum": ["a", "b", 3, null]}}, "required": ["name"], "additionalProperties": false}),
        json!({"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": {"format": "date", "type": "string"},
            "minItems": 1, "maxItems": 4}),
        json!({"anyOf": [{"type": "number", "multipleOf": 0.5}, {"allOf": [{"type": "string"}, {"pattern": "^[a-f]{2,5}$"}]}]}),
        json!({"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": {"$ref": "#"}}),
        json!({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"oneOf": [object(json!({"const": "x"})),
            object(json!({"const": "y"}))]}}),
        json!({"type": "object", "properties": properties}),
        chain(200, &|inner| inner),
        chain(50, &object),
        chain(50, &|inner| json!({"type": "array", "items": inner, "maxItems": 2})),
        nested(40, &object),
        nested(45, &|inner| json!({"anyOf": [inner]})),
        nested(45, &|inner| json!({"allOf": [inner, {"type": "integer"}]})),
        nested(45, &|inner| json!({"type": "array", "prefixItems": [inner]})),
        nested(40, &|inner| json!({"type": "object", "patternProperties": {"a": inner}})),
    ];
    let tools = json!({"functions": [["f", object(json!({"type": "string"}))]], "several": true, "otherwise": "Text"});
    let form =
        json!({"functions": [["f", {"type": "object"}]], "several": false, "otherwise": {"Form": {"Regex": "a+"}}});
    let others = [
        json!({"Regex": "(yes|no) [0-9]{2,3}"}),
        json!({"Regex": format!("{}a{}", "(".repeat(60), "|b)*".repeat(60))}),
        json!({"Choice": ["red", "green", ""]}),
        json!({"Choice": (0..2000).map(|i| format!("word {i}")).collect::<Vec<_>>()}),
        json!({"Lark": "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]{1,4}/\n%ignore / /\n"}),
        json!({"Lark": "start: \"a\" start \"b\" | TEXT\nTEXT: /[a-z]+/ & ~(\"x\" | \"y\")\n"}),
        json!({"Lark": rules}),
        json!({"Lark": terminals}),
        json!({"ToolCalls": tools}),
        json!({"ToolCalls": form}),
    ];
    schemas.into_iter().map(|schema| json!({"JsonSchema": schema})).chain(others).collect()
}
