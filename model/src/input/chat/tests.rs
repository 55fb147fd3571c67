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
