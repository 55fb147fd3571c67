//! The grammar of an answer that calls tools, in llguidance's dialect of Lark.

use reel_input::grammar::{AnswerWithoutCalls, ToolCallGrammar};
use serde_json::{Value, json};

/// A grammar for calls of the given functions. The arguments follow the functions' schemas:
/// ```text
/// start: call ("\n" call)*                          # or, where text is allowed: (text_before call)* TEXT
/// call: call_0 | call_1
/// call_0: "<tool_call>\n{\"name\": \"f\", \"arguments\": " arguments_0 "}\n</tool_call>"
/// arguments_0: %json {…}
/// ```
pub(crate) fn lark_grammar(calls: &ToolCallGrammar) -> String {
    let (begin, start) = match (calls.otherwise, calls.several) {
        (AnswerWithoutCalls::None, true) => ("<tool_call>", "start: call (\"\\n\" call)*\n"),
        (AnswerWithoutCalls::None, false) => ("<tool_call>", "start: call\n"),
        // The text before a call ends with the first `<tool_call>` tag.
        (AnswerWithoutCalls::Text, true) => ("", "start: (before call)* TEXT\n"),
        (AnswerWithoutCalls::Text, false) => ("", "start: TEXT | before call\n"),
    };
    let mut grammar = start.to_string();
    if calls.otherwise == AnswerWithoutCalls::Text {
        grammar += "before[lazy]: /(.|\\n)*<tool_call>/\nTEXT: /(.|\\n)*/\n";
    }
    let names: Vec<String> = (0..calls.functions.len()).map(|i| format!("call_{i}")).collect();
    grammar += &format!("call: {}\n", names.join(" | "));
    for (i, (name, schema)) in calls.functions.iter().enumerate() {
        let head = Value::from(format!("{begin}\n{{\"name\": {}, \"arguments\": ", Value::from(name.as_str())));
        let schema = with_spaces(schema);
        grammar += &format!("call_{i}: {head} arguments_{i} \"}}\\n</tool_call>\"\narguments_{i}: %json {schema}\n");
    }
    grammar
}

/// Returns the schema with options of llguidance that allow only the white space of chat templates: one space after
/// each comma and colon. A schema that sets `x-guidance` itself keeps its options.
fn with_spaces(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(fields) = &mut schema {
        let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        fields.entry("x-guidance").or_insert(options);
    }
    schema
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use reel_input::encode::ModelFolder;
    use reel_input::grammar::GrammarSpec;

    use super::*;
    use crate::grammar::{Grammar, GrammarCompiler};

    /// Whether a completion may be exactly this text, however it is split into tokens.
    fn accepts(folder: &ModelFolder, grammar: &Grammar, text: &str) -> bool {
        let allows = |grammar: &Grammar, id: u32| grammar.allowed_token_mask()[id as usize / 32] >> (id % 32) & 1 == 1;
        let end = folder.stop_token_ids()[0];
        let splits = [folder.tokenizer.encode(text).unwrap(), single_bytes(folder, text)];
        let results = splits.map(|ids| {
            let mut grammar = grammar.clone();
            ids.into_iter().all(|id| allows(&grammar, id) && grammar.accept(id).is_ok()) && allows(&grammar, end)
        });
        assert_eq!(results[0], results[1], "{text:?}");
        results[0]
    }

    /// Returns the text as tokens of one byte each.
    fn single_bytes(folder: &ModelFolder, text: &str) -> Vec<u32> {
        let vocab = 0..folder.config.text.vocab_size as u32;
        let id = |byte: u8| vocab.clone().find(|&id| folder.tokenizer.token_bytes(id) == [byte]).unwrap();
        text.bytes().map(id).collect()
    }

    #[test]
    fn text_is_free_up_to_a_call_which_follows_its_schema() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
        let folder = ModelFolder::open(&path).unwrap();
        let compiler = GrammarCompiler::new(&folder).unwrap();
        let speed = json!({"type": "object", "properties": {"v": {"type": "integer", "maximum": 9}, "u": {"enum": ["m/s"]}},
            "required": ["v", "u"], "additionalProperties": false});
        let functions = vec![("speed".to_string(), speed), ("any".to_string(), json!({"type": "object"}))];
        let call = "<tool_call>\n{\"name\": \"speed\", \"arguments\": {\"v\": 3, \"u\": \"m/s\"}}\n</tool_call>";
        let any = "<tool_call>\n{\"name\": \"any\", \"arguments\": {\"x\": [\"</tool_call>\"]}}\n</tool_call>";
        for (several, otherwise) in
            [true, false].into_iter().flat_map(|s| [(s, AnswerWithoutCalls::Text), (s, AnswerWithoutCalls::None)])
        {
            let rule = ToolCallGrammar { functions: functions.clone(), several, otherwise };
            let grammar = compiler.compile(&GrammarSpec::ToolCalls(rule)).unwrap();
            let is_free = otherwise == AnswerWithoutCalls::Text;
            for (text, is_accepted) in [
                (String::new(), is_free),
                ("Hello.\n\nWorld é <tool_cal> {}".into(), is_free),
                (call.into(), true),
                (any.into(), true),
                (format!("Let me see.\n{call}"), is_free),
                (format!("{call}\n{any}"), several),
                (format!("{call} and {any} and <tool"), several && is_free),
                (call.replace('3', "30"), false),
                (call.replace("speed", "other"), false),
                ("<tool_call> text".into(), false),
                // The answer must not end inside a call.
                (call[..call.len() - 1].into(), false),
            ] {
                assert_eq!(accepts(&folder, &grammar, &text), is_accepted, "{several} {otherwise:?} {text:?}");
            }
        }
    }
}
