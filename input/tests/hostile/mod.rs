//! Chat templates that try to crash the program, hang it or fill its memory. Each template must render to a prompt or
//! fail with a one-line error.

use reel_input::chat::ChatTemplate;
use serde_json::{Map, json};

/// Renders every hostile template, and afterwards an ordinary one in the same process.
pub fn hostile_templates_give_one_line_errors() {
    let templates = templates();
    assert!(templates.len() >= 100, "{} templates", templates.len());
    let (mut refused, mut limited) = (0, 0);
    for text in &templates {
        let shown: String = text.chars().take(90).collect();
        let error = match render(text) {
            Ok(prompt) => {
                assert!(prompt.len() < 32 << 20, "{} bytes of {shown}", prompt.len());
                continue;
            }
            Err(error) => error,
        };
        assert!(!error.contains('\n') && error.contains("; ") && error.len() < 1000, "{shown}: {error}");
        assert!(error.starts_with("t: "), "{shown}: {error}");
        refused += 1;
        limited += usize::from(error.contains("needs more than") || error.contains("of processor time"));
    }
    assert!(refused > 80 && limited > 5, "{refused} templates are refused, {limited} by the limits of the process");
    assert_eq!(render("{{ messages[0].content }}!").unwrap(), "hi!");
}

/// A template that exceeds the limits for some conversations still renders others. It is refused only after it has
/// failed for several conversations in a row.
pub fn template_that_fails_for_some_messages_is_kept() {
    let text = "{% if messages[0].content == 'bad' %}{% set n = 90000000 %}{% set x = 'x' * n %}{{ x ~ x ~ x ~ x }}{% endif %}ok";
    let template = ChatTemplate::parse("t", text.to_string(), Map::new()).unwrap();
    let ask = |content: &str| template.render_json(&json!([{"role": "user", "content": content}]), true);
    for _ in 0..2 {
        let error = ask("bad").unwrap_err().to_string();
        assert!(error.contains("needs more than") && error.contains("of memory"), "{error}");
        assert_eq!(ask("good").unwrap(), "ok");
    }
    let errors: Vec<String> = (0..4).map(|_| ask("bad").unwrap_err().to_string()).collect();
    assert!(errors[2].contains("needs more than") && errors[3].contains("exceeded the limits 3 times"), "{errors:?}");
}

fn render(text: &str) -> Result<String, String> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let template = ChatTemplate::parse("t", text.to_string(), Map::new()).map_err(|e| e.to_string())?;
    template.render_json(&messages, true).map_err(|e| e.to_string())
}

fn templates() -> Vec<String> {
    let mut all = Vec::new();
    // Templates nested so deeply that they would overflow the stack of the parser or compiler.
    for n in [100, 3_000, 100_000] {
        for (open, inside, close) in [
            ("[", "1", "]"),
            ("(", "1", ")"),
            ("{'a':", "1", "}"),
            ("-", "1", ""),
            ("not ", "1", ""),
            ("1+", "1", ""),
            ("1~", "1", ""),
            ("1**", "1", ""),
            ("1 if 1 else ", "1", ""),
            ("x.", "y", ""),
            ("", "x", "[0]"),
            ("", "x", "()"),
            ("", "x", "|f"),
            ("", "x", " is defined"),
            ("f(", "x", ")"),
            ("1 < ", "1", ""),
            ("1 and ", "1", ""),
        ] {
            all.push(format!("{{{{ {}{inside}{} }}}}", open.repeat(n), close.repeat(n)));
        }
        for (open, close) in [
            ("{% if 1 %}", "{% endif %}"),
            ("{% for x in [1] %}", "{% endfor %}"),
            ("{% with %}", "{% endwith %}"),
            ("{% set x %}", "{% endset %}"),
            ("{% filter upper %}", "{% endfilter %}"),
            ("{% macro f() %}", "{% endmacro %}"),
            ("{% if 1 %}{% else %}", ""),
            ("{% generation %}", "{% endgeneration %}"),
        ] {
            all.push(format!("{}{}", open.repeat(n), close.repeat(n)));
        }
        all.push(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n)));
    }
    // Templates with endless loops and recursion.
    let range = "range(99999)";
    for body in ["", "x", "{{ i }}", "{% set y = i %}"] {
        all.push(format!("{{% for h in {range} %}}{{% for i in {range} %}}{body}{{% endfor %}}{{% endfor %}}"));
    }
    for text in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% call f() %}x{% endcall %}{% endcall %}",
        "{% for x in range(100000000000) %}x{% endfor %}",
        "{{ range(0, 9223372036854775807, 1) | list }}",
        "{{ range(-9223372036854775807, 9223372036854775807) | length }}",
        "{{ 2 ** 127 * 2 }}",
        "{{ 10 ** 38 // 0 }}",
        "{{ raise_exception('x' * 1000000) }}",
        "{{ strftime_now('%Y' * 1000000) }}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{% import 'chat' as c %}",
        "{{ self }}{{ loop }}{{ caller }}{{ debug() }}",
    ] {
        all.push(text.to_string());
    }
    // Templates that build a huge value in few steps.
    for grow in ["n.x ~ n.x", "n.x * 16", "n.x | replace('a', n.x)", "[n.x, n.x, n.x] | join", "n.x.join(n.x)"] {
        all.push(format!(
            "{{% set n = namespace(x='aaaaaaaa') %}}{{% for i in range(60) %}}{{% set n.x = {grow} %}}{{% endfor %}}{{{{ n.x }}}}"
        ));
    }
    for (start, grow, end) in
        [("[1]", "[n.x, n.x]", "{{ n.x }}"), ("{'a': 1}", "{'a': n.x, 'b': n.x}", "{{ n.x == {'a': n.x, 'b': n.x} }}")]
    {
        all.push(format!(
            "{{% set n = namespace(x={start}) %}}{{% for i in range(60) %}}{{% set n.x = {grow} %}}{{% endfor %}}{end}"
        ));
    }
    for text in [
        // Values nested so deeply that printing or dropping them would overflow the stack.
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% set n = namespace() %}{% set n.self = n %}{{ n }}",
        "{{ 'x' * 99999999 }}",
        "{{ ('x' * 99999999) | indent(99999999) }}",
        "{{ 'x\\n' * 40000000 | indent(400) }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format('x') }}",
        "{{ ('x' * 9999999).split('') | list | tojson(indent=16) }}",
        "{{ range(99999) | map('string') | batch(1) | list | batch(1) | list }}",
        "{% set x %}{{ 'x' * 90000000 }}{% endset %}{% set y %}{{ x }}{{ x }}{{ x }}{{ x }}{{ x }}{% endset %}{{ y }}",
    ] {
        all.push(text.to_string());
    }
    all
}
