//! The grammar of an answer that calls tools, in llguidance's dialect of Lark.

use reel_input::grammar::{AnswerWithoutCalls, ToolCallGrammar};
use serde_json::{Value, json};

use crate::json_schema::rewrite_schema;

/// The name of the grammar of an answer without calls ([`AnswerWithoutCalls::Form`]), which the grammar of calls names.
pub(crate) const FORM: &str = "form";

/// The white space of chat templates: one space after each comma and colon.
pub(crate) fn spaces() -> Value {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
}

/// A grammar for calls of the given functions. The arguments follow the functions' schemas:
/// ```text
/// start: call ("\n" call)*                # where text is allowed: (text_before call)* TEXT; with a form: … | @form
/// call: call_0 | call_1
/// call_0: "<tool_call>\n{\"name\": \"f\", \"arguments\": " arguments_0 "}\n</tool_call>"
/// arguments_0: %json {…}
/// ```
pub(crate) fn lark_grammar(calls: &ToolCallGrammar) -> String {
    let repeated = if calls.several { " (\"\\n\" call)*" } else { "" };
    let (begin, start) = match (&calls.otherwise, calls.several) {
        (AnswerWithoutCalls::None, _) => ("<tool_call>", format!("start: call{repeated}\n")),
        (AnswerWithoutCalls::Form(_), _) => ("<tool_call>", format!("start: call{repeated} | @{FORM}\n")),
        // The text before a call ends with the first `<tool_call>` tag.
        (AnswerWithoutCalls::Text, true) => ("", "start: (before call)* TEXT\n".into()),
        (AnswerWithoutCalls::Text, false) => ("", "start: TEXT | before call\n".into()),
    };
    let mut grammar = start;
    if calls.otherwise == AnswerWithoutCalls::Text {
        grammar += "before[lazy]: /(.|\\n)*<tool_call>/\nTEXT: /(.|\\n)*/\n";
    }
    let names: Vec<String> = (0..calls.functions.len()).map(|i| format!("call_{i}")).collect();
    grammar += &format!("call: {}\n", names.join(" | "));
    for (i, (name, schema)) in calls.functions.iter().enumerate() {
        let head = Value::from(format!("{begin}\n{{\"name\": {}, \"arguments\": ", Value::from(name.as_str())));
        let schema = rewrite_schema(schema, spaces());
        grammar += &format!("call_{i}: {head} arguments_{i} \"}}\\n</tool_call>\"\narguments_{i}: %json {schema}\n");
    }
    grammar
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use reel_input::encode::ModelFolder;
    use reel_input::grammar::GrammarSpec;

    use super::*;
    use crate::grammar::Grammar;
    use crate::grammar_compiler::GrammarCompiler;

    /// Whether a completion may be exactly this text, however it is split into tokens.
    pub(crate) fn accepts(folder: &ModelFolder, grammar: &Grammar, text: &str) -> bool {
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
            let is_free = otherwise == AnswerWithoutCalls::Text;
            let rule = ToolCallGrammar { functions: functions.clone(), several, otherwise };
            let grammar = compiler.compile(&GrammarSpec::ToolCalls(rule)).unwrap();
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
                assert_eq!(accepts(&folder, &grammar, &text), is_accepted, "{several} {is_free} {text:?}");
            }
        }
    }

    #[test]
    fn an_answer_is_calls_or_follows_its_form() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
        let folder = ModelFolder::open(&path).unwrap();
        let compiler = GrammarCompiler::new(&folder).unwrap();
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let object = json!({"type": "object", "properties": {"b": {"enum": ["x"]}}, "required": ["b"],
            "additionalProperties": false});
        for (form, accepted, refused) in [
            (GrammarSpec::JsonSchema(object), "{\"b\":\"x\"}", "{\"b\":\"y\"}"),
            (GrammarSpec::JsonSchema(json!({"type": "object"})), "{\"a\":[1,\"<tool_call>\"]}", "[1]"),
            (GrammarSpec::Regex("[ab]/{2}".into()), "a//", "a/"),
            (GrammarSpec::Choice(vec!["yes".into(), "<tool_call> no".into()]), "<tool_call> no", "no"),
            (GrammarSpec::Lark("start: A \"-\" call\nA: /[0-9]/\ncall: \"c\"".into()), "3-c", "3-d"),
        ] {
            for several in [true, false] {
                let otherwise = AnswerWithoutCalls::Form(Box::new(form.clone()));
                let functions = vec![("f".to_string(), json!({"type": "object"}))];
                let rule = ToolCallGrammar { functions, several, otherwise };
                let grammar = compiler.compile(&GrammarSpec::ToolCalls(rule)).unwrap();
                for (text, is_accepted) in [
                    (accepted.to_string(), true),
                    (refused.into(), false),
                    (String::new(), false),
                    (call.into(), true),
                    (format!("{call}\n{call}"), several),
                    (format!("{call}\n{accepted}"), false),
                    (format!("{accepted}{call}"), false),
                    (call.replace("\"f\"", "\"g\""), false),
                ] {
                    assert_eq!(accepts(&folder, &grammar, &text), is_accepted, "{form:?} {several} {text:?}");
                }
            }
        }
        let error = |form: Value, parameters: Value| {
            let otherwise = AnswerWithoutCalls::Form(Box::new(GrammarSpec::JsonSchema(form)));
            let rule = ToolCallGrammar { functions: vec![("f".to_string(), parameters)], several: false, otherwise };
            compiler.compile(&GrammarSpec::ToolCalls(rule)).unwrap_err().to_string()
        };
        let (good, bad) = (json!({"type": "object"}), json!({"type": "colour"}));
        assert!(error(bad.clone(), good.clone()).starts_with("grammar: "));
        assert!(error(good, bad).starts_with("tools: the parameters of f: "));
    }
}
