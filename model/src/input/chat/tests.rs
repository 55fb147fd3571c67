//! Tests of chat templates, with the constructs that published folders use.

use super::*;
use serde_json::json;
use std::fs;

fn template(text: &str) -> ChatTemplate {
    let tokens = json!({"eos_token": "<|im_end|>"}).as_object().unwrap().clone();
    ChatTemplate::parse("t", text.to_string(), tokens).unwrap()
}

fn render(text: &str) -> String {
    let messages = json!([{"role": "user", "content": " hi ", "n": 3}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]);
    template(text).render_json(&messages, true).unwrap()
}

#[test]
fn renders_like_transformers() {
    for (text, expected) in [
        ("{{ messages[0].content.strip() | upper }}", "HI"),
        ("{{ messages[0]['role'].startswith('us') }} {{ tools }} {{ add_generation_prompt }}", "True None True"),
        ("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " hi ", "n": 3}"#),
        ("{{ ['é', 1.5, none, {}, []] | tojson }}", r#"["é", 1.5, null, {}, []]"#),
        // As `json.dumps` of Python 3.12.
        (
            "{{ [1.0, -0.0, 1e15, 1e16, 1.5e300, 1e-4, 1.25e-5, 123456789, '\t\x01\x7f<\u{2028}\"'] | tojson }}",
            "[1.0, -0.0, 1000000000000000.0, 1e+16, 1.5e+300, 0.0001, 1.25e-05, 123456789, \"\\t\\u0001\u{7f}<\u{2028}\\\"\"]",
        ),
        ("{{ {'a': [1, 2]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2\n  ]\n}"),
        (
            "{% for m in messages %}\n{% if loop.first %}{% continue %}{% endif %}\n{{ m.role }}\n{% break %}\n{% endfor %}",
            "assistant\n",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ eos_token }}",
            "2<|im_end|>",
        ),
        ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content= hi ;n=3;"),
        (
            "{{ messages[::-1][0].role }} {{ messages[1:] | length }} {{ missing }}|{{ 'x' in messages[0] }}",
            "assistant 1 |False",
        ),
        ("a\n    {%- generation -%}  b  {%- endgeneration %}\nc", "abc"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('<&>') }}", "<<&>>"),
        (
            "{{ messages[1].content is string }} {{ messages[1].content is iterable }} {{ messages[0] is mapping }}",
            "False True True",
        ),
        ("{{ 'a,b'.split(',')[-1] }} {{ '%05d' | length }} {{ messages[0].get('x', 'y') }} {{ 'a' ~ 1 }}", "b 4 y a1"),
    ] {
        assert_eq!(render(text), expected, "{text}");
    }
    let year: i32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024);
}

#[test]
fn errors_are_one_line_and_name_the_file() {
    let refuse = |text: &str| {
        let error = template(text).render_json(&json!([]), false).unwrap_err().to_string();
        assert!(error.starts_with("t: cannot render these messages: ") && !error.contains('\n'), "{error}");
        error
    };
    assert!(refuse("{{ raise_exception('roles must\nalternate') }}").contains("roles must alternate"));
    assert!(refuse("{{ strftime_now('%Q') }}").contains("%Q"));
    refuse("{{ messages[0].role.nothing() }}");
    let broken = ChatTemplate::parse("t", "{% for %}".into(), Map::new()).unwrap_err().to_string();
    assert!(broken.starts_with("t: cannot be compiled: "), "{broken}");
}

#[test]
fn template_files_have_an_order_of_precedence() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let got = || ChatTemplate::open(folder.path()).unwrap().render_json(&json!([]), false).unwrap();
    assert!(ChatTemplate::open(folder.path()).unwrap_err().to_string().contains("has no chat template"));
    put(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "config"}]}"#,
    );
    assert_eq!(got(), "config");
    put(
        "tokenizer_config.json",
        r#"{"chat_template": "text{{ eos_token }}{{ bos_token }}", "eos_token": {"content": "E"}, "bos_token": null}"#,
    );
    assert_eq!(got(), "textE");
    put("chat_template.json", r#"{"chat_template": {"default": "json"}}"#);
    assert_eq!(got(), "json");
    put("chat_template.jinja", "jinja");
    assert_eq!(got(), "jinja");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    for bad in ["[", "[]", r#"{"chat_template": 3}"#] {
        put("chat_template.json", bad);
        let error = ChatTemplate::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.json: "), "{error}");
    }
}

/// A conversation with one tool.
fn with_tool(messages: Value) -> Conversation {
    let tools = vec![json!({"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}})];
    Conversation::from_json("m", &messages, Path::new("")).unwrap().with_tools(tools)
}

#[test]
fn conversations_with_tools_have_a_template_that_knows_them() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let image = json!([{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "?"}]}]);
    let render = |conversation: &Conversation| ChatTemplate::open(folder.path()).unwrap().render(conversation, false);
    let asked = || render(&with_tool(image.clone())).unwrap();
    let result = json!([{"role": "tool", "content": "42"}]);
    put("chat_template.json", r#"{"chat_template": "media {{ messages[0].content is string }} no_tools"}"#);
    for refused in [with_tool(image.clone()), Conversation::from_json("m", &result, Path::new("")).unwrap()] {
        let error = render(&refused).unwrap_err().to_string();
        assert!(error.contains("chat_template.json: has no chat template that mentions `tools`"), "{error}");
    }
    put("tokenizer_config.json", r#"{"chat_template": "{{ tools | tojson }} {{ messages[0].content }}"}"#);
    let tool = r#"[{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}]"#;
    assert_eq!(asked(), format!("{tool} {IMAGE_TEXT}?"));
    // Other conversations have the first template, those with results of tools this one.
    assert_eq!(render(&Conversation::from_json("m", &image, Path::new("")).unwrap()).unwrap(), "media False no_tools");
    assert_eq!(render(&Conversation::from_json("m", &result, Path::new("")).unwrap()).unwrap(), "null 42");
    // A template that is wrong is found when it is needed.
    put("tokenizer_config.json", r#"{"chat_template": "{% tools %}"}"#);
    let error = render(&with_tool(image.clone())).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: cannot be compiled"), "{error}");
    // The template of the first file comes first, and one with the name `tool_use` before it.
    put("chat_template.json", r#"{"chat_template": "{{ tools | length }} {{ messages[0].content | length }}"}"#);
    assert_eq!(asked(), "1 2");
    let named = r#"{"chat_template": {"default": "{{ tools }}", "tool_use": "use {{ messages[0].content }}"}}"#;
    put("chat_template.json", named);
    assert_eq!(asked(), format!("use {IMAGE_TEXT}?"));
}

#[test]
fn built_in_template_writes_tools_calls_and_results() {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"arguments": "{\"x\":[1,2]}", "name": "f"}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "a", "tool_calls": [{"id": "3", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "3", "content": "three"},
    ]);
    let own = template(crate::init::CHAT_TEMPLATE);
    let text = own.render(&with_tool(messages), true).unwrap();
    let (system, rest) = text.split_once("<|im_end|>\n").unwrap();
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}"#;
    assert!(system.starts_with("<|im_start|>system\ns\n\n") && system.contains(&format!("<tools>\n{tool}\n</tools>")));
    let wanted = "<|im_start|>user\nu<|im_end|>\n\
        <|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 2]}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n\
        <|im_start|>assistant\na\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\nthree\n</tool_response><|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rest, wanted);
    let question = own.render(&with_tool(json!([{"role": "user", "content": "u"}])), false).unwrap();
    assert!(question.starts_with("<|im_start|>system\nYou are a helpful assistant.\n\n"), "{question}");
}

#[test]
fn built_in_template_renders_like_qwens() {
    let own = template(crate::init::CHAT_TEMPLATE);
    assert!(is_known(crate::init::CHAT_TEMPLATE) && !is_known("other"));
    let cases = [
        (
            json!([{"role": "user", "content": "hi"}]),
            true,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            json!([{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "\nb"}]}]),
            false,
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n a \nb<|im_end|>\n",
        ),
        (
            json!([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "video", "video": "y"}, {"type": "text", "text": "?"}]}]),
            true,
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ];
    for (messages, prompt, expected) in cases {
        assert_eq!(own.render_json(&messages, prompt).unwrap(), expected);
    }
    let tokens = json!({"add_vision_id": true}).as_object().unwrap().clone();
    let numbered = ChatTemplate::parse("t", crate::init::CHAT_TEMPLATE.to_string(), tokens).unwrap();
    let two = json!([{"role": "system", "content": [{"type": "image", "image": "x"}, {"type": "image", "image": "x"}, {"type": "video", "video": "y"}]}]);
    let expected = "<|im_start|>system\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: <|vision_start|><|image_pad|><|vision_end|>Video 1: <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n";
    assert_eq!(numbered.render_json(&two, false).unwrap(), expected);
}
