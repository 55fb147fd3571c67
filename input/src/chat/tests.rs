//! Tests of chat templates, with the constructs that published folders use.

use std::fs;

use serde_json::json;

use super::*;

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
        // The expected text is the output of `json.dumps` of Python 3.12.
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

/// The expected texts were made with transformers 4.51.3 and Jinja2 3.1.6.
#[test]
fn python_functions_give_the_texts_of_transformers() {
    for (text, expected) in [
        ("a\r\n{{ 'b\r\nc' }}\rd\r\n{# x #}\r\ne", "a\nb\nc\nd\ne"),
        ("{% if true %}\r\nx\r\n{% endif %}\r\n", "x\n"),
        (
            r#"{{ {"b": 1, "a": "é\u007f😀\n"} | tojson(ensure_ascii=true) }}"#,
            r#"{"b": 1, "a": "\u00e9\u007f\ud83d\ude00\n"}"#,
        ),
        (
            r#"{{ {"a": {}, "b": [{"c": [], "d": 1}]} | tojson(indent=2) }}"#,
            "{\n  \"a\": {},\n  \"b\": [\n    {\n      \"c\": [],\n      \"d\": 1\n    }\n  ]\n}",
        ),
        ("{{ {\"b\": [1, 2]} | tojson(indent='\t') }}", "{\n\t\"b\": [\n\t\t1,\n\t\t2\n\t]\n}"),
        ("{{ [1, {}] | tojson(indent=0) }}", "[\n1,\n{}\n]"),
        ("{{ ['é'] | tojson(true) }} {{ ['é', 1] | tojson(false, 1) }}", "[\"\\u00e9\"] [\n \"é\",\n 1\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=none) }}", r#"{"b": 1, "a": 2}"#),
        (
            "{{ 1e-7 }} {{ 1e20 }} {{ [1e20] }} {{ {'a': 1e-7} | tojson(indent=2) }}",
            "1e-07 1e+20 [1e+20] {\n  \"a\": 1e-07\n}",
        ),
        (
            "{{ [1.0, -0.0, 1e15, 1e16, 2.5e-5, 0.0001, 3, -4, 'x', none, true] }}",
            "[1.0, -0.0, 1000000000000000.0, 1e+16, 2.5e-05, 0.0001, 3, -4, 'x', None, True]",
        ),
        ("{{ 0.1 + 0.2 }} {{ 100000.0 }}", "0.30000000000000004 100000.0"),
        (
            "{{ {'a': 1e-7, 'b': [\"it's\", 'é\n']} }} {{ (1e20,) }} {{ (1, 2.5) }} {{ () }}",
            r#"{'a': 1e-07, 'b': ["it's", 'é\n']} (1e+20,) (1, 2.5) ()"#,
        ),
        ("{{ 1e20 | string }}", "1e+20"),
        ("{{ nope | length }} {{ nope | count }} {{ 'é' | length }} {{ 'x' | int }}", "0 0 1 0"),
        ("{{ 'x' | float }} {{ ' 42 ' | int }} {{ '4.7' | int }} {{ none | int }}", "0.0 42 4 0"),
        ("{{ 'x' | int(7) }} {{ 'x' | int(default=8) }} {{ [] | int }} {{ 'ff' | int(0, 16) }}", "7 8 0 255"),
        ("{{ 'a b  c '.rsplit() }} {{ ' a b  c '.rsplit(none, 1) }}", "['a', 'b', 'c'] [' a b', 'c']"),
        ("{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b,c'.rsplit(',', maxsplit=1) }}", "['a,b', 'c'] ['a,b', 'c']"),
        ("{{ ' a b  c '.split(none, 1) }} {{ 'a,b,c'.split(',', 1) }}", "['a', 'b  c '] ['a', 'b,c']"),
        ("{{ 'a,b'.split(sep=',') }} {{ ''.split() }} {{ ''.split(',') }}", "['a', 'b'] [] ['']"),
        ("{{ 'a b'.split(' ', -1) }} {{ ' a b '.split(maxsplit=0) }}", "['a', 'b'] ['a b ']"),
        ("{{ ' a b '.rsplit(maxsplit=0) }}", "[' a b']"),
        ("{{ 'abcabc'.find('c') }} {{ 'abcabc'.rfind('b') }} {{ 'éabc'.rfind('x') }}", "2 4 -1"),
        ("{{ 'prefix'.removeprefix('pre') }}", "fix"),
        ("{{ 'prefix'.removesuffix('fix') }} {{ 'x'.removeprefix('y') }}", "pre x"),
        (r#"{{ "they're 3rd o'NEIL".title() }} {{ "they're 3rd" | title }}"#, "They'Re 3Rd O'Neil They're 3rd"),
        ("{{ [1, 2, 1].count(1) }}", "2"),
        ("{{ 'aaa' | replace('a', 'b', 2) }} {{ 'aaa' | replace('a', 'b') }}", "bba bbb"),
        ("{{ 'ab' | replace('', '-') }} {{ 121 | replace(1, 3) }}", "-a-b- 323"),
        ("{{ 'aaa' | replace('a', 'b', count=1) }} {{ 'aaa'.replace('a', 'b', 1) }}", "baa baa"),
        ("{{ dict({'a': 1}, b=2) }} {{ dict(a=1) }} {{ dict() }}", "{'a': 1, 'b': 2} {'a': 1} {}"),
        (
            r#"{{ '<a b="c">' | e }} {{ "it's & /" | escape }} {{ '<' | e | e }} {{ 3 | e }}"#,
            "&lt;a b=&#34;c&#34;&gt; it&#39;s &amp; / &lt; 3",
        ),
        ("{{ none | e }} {{ '<' | safe | e }}", "None <"),
        ("{{ strftime_now('%f') | length }} {{ strftime_now('%%f') }}", "6 %f"),
        (
            "{{ none }} {{ true }} {{ [none, true, 'a'] }} {{ {'a': none} }} {{ {1: 2} }}",
            "None True [None, True, 'a'] {'a': None} {1: 2}",
        ),
        ("{{ nope }} {{ [nope] }}", " [Undefined]"),
    ] {
        assert_eq!(render(text), expected, "{text}");
    }
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
    for (text, expected) in [
        ("{{ 'a'.split('') }}", "split: the separator must be a text that is not empty"),
        ("{{ [1] | tojson(indent=65) }}", "tojson: indent is 65, expected at most 64 spaces"),
        ("{{ [1] | tojson(width=2) }}", "unknown keyword argument 'width'"),
        ("{{ 'abcdef' | truncate(2) }}", "truncate"),
        ("{{ 'ab'.zfill(3) }}", "zfill"),
        ("{{ 'ab'.zfill(3) }}", "(line 1)"),
        ("{{ none | length }}", "length"),
    ] {
        let error = refuse(text);
        assert!(error.contains(expected), "{error}");
    }
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
    let without_tools = |messages: &Value| Conversation::from_json("m", messages, Path::new("")).unwrap();
    put("chat_template.json", r#"{"chat_template": "media {{ messages[0].content }} no_tools"}"#);
    let error = render(&with_tool(image.clone())).unwrap_err().to_string();
    assert!(error.contains("chat_template.json: has no chat template that mentions `tools`"), "{error}");
    put("tokenizer_config.json", r#"{"chat_template": "{{ tools | tojson }} {{ messages[0].content }}"}"#);
    let tool = r#"[{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}]"#;
    assert_eq!(asked(), format!("{tool} {IMAGE_TEXT}?"));
    // Conversations without tools use the first template, even if they have tool calls or tool results.
    assert_eq!(render(&without_tools(&result)).unwrap(), "media 42 no_tools");
    let call = json!([{"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}]);
    let written = "media <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call> no_tools";
    assert_eq!(render(&without_tools(&call)).unwrap(), written);
    // An invalid template for tools is reported at its first use.
    put("tokenizer_config.json", r#"{"chat_template": "{% tools %}"}"#);
    let error = render(&with_tool(image.clone())).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: cannot be compiled"), "{error}");
    // The template of the first file is used. If this file also has a template named `tool_use`, that template is
    // used instead.
    put("chat_template.json", r#"{"chat_template": "{{ tools | length }} {{ messages[0].content | length }}"}"#);
    assert_eq!(asked(), "1 2");
    let named = r#"{"chat_template": {"default": "{{ tools }}", "tool_use": "use {{ messages[0].content }}"}}"#;
    put("chat_template.json", named);
    assert_eq!(asked(), format!("use {IMAGE_TEXT}?"));
}

#[test]
fn a_request_sets_the_variables_that_its_template_uses() {
    let template = ChatTemplate::parse("t", "{{ style }} {{ eos_token }}".to_string(), Map::new()).unwrap();
    let render = |variables: Value| {
        let conversation = Conversation::from_json("m", &json!([{"role": "user", "content": "x"}]), Path::new(""));
        let template_variables = variables.as_object().unwrap().clone();
        template.render(&Conversation { template_variables, ..conversation.unwrap() }, true).map_err(|e| e.to_string())
    };
    assert_eq!(render(json!({"style": "a", "eos_token": "E"})).unwrap(), "a E");
    // An undefined variable counts as false.
    assert_eq!(render(json!({"style": false, "enable_thinking": false})).unwrap(), "False ");
    let error = render(json!({"styl": "a"})).unwrap_err();
    assert_eq!(error, "m: chat_template_kwargs.styl: is not a variable of the model's chat template; remove it");
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
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "4", "type": "function", "function": {"name": "f", "arguments": "{\"x\": \"cut"}}]},
        {"role": "tool", "tool_call_id": "4", "content": "not JSON"},
    ]);
    let own = template(CHAT_TEMPLATE);
    let text = own.render(&with_tool(messages), true).unwrap();
    let (system, rest) = text.split_once("<|im_end|>\n").unwrap();
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}"#;
    assert!(system.starts_with("<|im_start|>system\ns\n\n") && system.contains(&format!("<tools>\n{tool}\n</tools>")));
    let wanted = "<|im_start|>user\nu<|im_end|>\n\
        <|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 2]}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n\
        <|im_start|>assistant\na\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\nthree\n</tool_response><|im_end|>\n\
        <|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"cut}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\nnot JSON\n</tool_response><|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rest, wanted);
    let question = own.render(&with_tool(json!([{"role": "user", "content": "u"}])), false).unwrap();
    assert!(question.starts_with("<|im_start|>system\nYou are a helpful assistant.\n\n"), "{question}");
}

#[test]
fn built_in_template_renders_like_qwens() {
    let own = template(CHAT_TEMPLATE);
    assert!(is_known(CHAT_TEMPLATE) && !is_known("other"));
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
    let numbered = ChatTemplate::parse("t", CHAT_TEMPLATE.to_string(), tokens).unwrap();
    let two = json!([{"role": "system", "content": [{"type": "image", "image": "x"}, {"type": "image", "image": "x"}, {"type": "video", "video": "y"}]}]);
    let expected = "<|im_start|>system\nPicture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: <|vision_start|><|image_pad|><|vision_end|>Video 1: <|vision_start|><|video_pad|><|vision_end|><|im_end|>\n";
    assert_eq!(numbered.render_json(&two, false).unwrap(), expected);
}

/// The template of Qwen3-VL has no default system turn, leaves out other roles, and writes arguments of calls that are
/// text as they are.
#[test]
fn template_of_qwen3_renders_like_qwens() {
    let own = template(QWEN3_CHAT_TEMPLATE);
    assert!(is_known(QWEN3_CHAT_TEMPLATE));
    let image = json!({"type": "image", "image": "x"});
    let text = |text: &str| json!({"type": "text", "text": text});
    let cases = [
        (json!([{"role": "user", "content": "hi"}]), "<|im_start|>user\nhi<|im_end|>\n"),
        (
            json!([
                {"role": "system", "content": [image, text("s"), text("t")]},
                {"role": "user", "content": [image, {"type": "video", "video": "y"}, text("?")]},
                {"role": "developer", "content": "left out"},
                {"role": "system", "content": "left out"},
                {"role": "assistant", "content": [text("<think>a</think>"), image], "tool_calls": [
                    {"function": {"name": "f", "arguments": {"x": "é"}}}, {"name": "g", "arguments": {}}]},
                {"role": "tool", "content": [image, text("r")]},
                {"role": "tool", "content": "q"},
                {"role": "user", "content": null},
            ]),
            "<|im_start|>system\nst<|im_end|>\n\
             <|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>?\
             <|im_end|>\n\
             <|im_start|>assistant\n<think>a</think>\n\
             <tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"é\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call><|im_end|>\n\
             <|im_start|>user\n<tool_response>\n<|vision_start|><|image_pad|><|vision_end|>r\n</tool_response>\n\
             <tool_response>\nq\n</tool_response><|im_end|>\n\
             <|im_start|>user\n<|im_end|>\n",
        ),
    ];
    for (messages, expected) in cases {
        assert_eq!(own.render_json(&messages, false).unwrap(), expected);
        assert_eq!(own.render_json(&messages, true).unwrap(), format!("{expected}<|im_start|>assistant\n"));
    }
    let tools = own.render(&with_tool(json!([{"role": "user", "content": "u"}])), false).unwrap();
    let tool = r#"{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "é"}}}"#;
    assert!(tools.starts_with("<|im_start|>system\n# Tools\n\nYou may call"), "{tools}");
    assert!(tools.contains(&format!("<tools>\n{tool}\n</tools>\n\nFor each")), "{tools}");
    assert!(tools.ends_with("</tool_call><|im_end|>\n<|im_start|>user\nu<|im_end|>\n"), "{tools}");
}

#[test]
fn a_prompt_can_end_within_the_last_message() {
    let own = template(CHAT_TEMPLATE);
    let conversation = |last: Value| {
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, last]);
        Conversation::from_json("m.json", &messages, Path::new("")).unwrap()
    };
    let before = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n";
    for (content, text) in [
        (json!("It is "), "It is "),
        (json!(""), ""),
        (Value::Null, ""),
        (json!([{"type": "text", "text": "It"}, {"type": "text", "text": " is\n"}]), "It is\n"),
    ] {
        let conversation = conversation(json!({"role": "assistant", "content": content}));
        let render = |end| own.render_to_end(&conversation, end).unwrap();
        assert_eq!(render(PromptEnd::WithinLastMessage), format!("{before}{text}"));
        assert_eq!(render(PromptEnd::LastMessage), format!("{before}{text}<|im_end|>\n"));
        let new = format!("{before}{text}<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(render(PromptEnd::NewMessage), new);
        assert_eq!(PromptEnd::default_for_conversation(&conversation), PromptEnd::LastMessage);
    }
    // A template that removes white space around a text.
    let trims = template("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}");
    let spaced = conversation(json!({"role": "assistant", "content": " a "}));
    assert_eq!(trims.render_to_end(&spaced, PromptEnd::WithinLastMessage).unwrap(), "<s><u><a ");
    let call = json!([{"function": {"name": "f", "arguments": {}}}]);
    for (last, words) in [
        (json!({"role": "user", "content": "u"}), "m.json: continue_final_message: is true, but the role of the last"),
        (json!({"role": "assistant", "content": "a", "tool_calls": call}), "the last message has tool calls; "),
        (json!({"role": "assistant", "content": [{"type": "image", "image": "x"}]}), "ends with media; "),
    ] {
        let e = own.render_to_end(&conversation(last), PromptEnd::WithinLastMessage).unwrap_err().to_string();
        assert!(e.contains(words), "{e}");
    }
    let silent = template("{{ messages | length }}");
    let e = silent.render_to_end(&spaced, PromptEnd::WithinLastMessage).unwrap_err().to_string();
    assert!(e.contains("does not write the text of the last message"), "{e}");
}
