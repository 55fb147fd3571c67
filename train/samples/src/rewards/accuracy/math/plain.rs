//! Removes from a mathematical answer what does not change its value: mark-up, units, separators of thousands.

use std::sync::LazyLock;

use regex::Regex;

/// Replacements of LaTeX by plainer LaTeX, in order.
static REPLACEMENTS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let table = [
        (r"\\[dtc]frac\b|\\[dtc]frac(\d)", r"\frac$1"),
        (r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)\b", ""),
        (r"\\[,;:! ]|\\q?quad\b|~", " "),
        (r"\\[()\[\]]|\\?\$|[€£]", ""),
        (r"\*\*", ""),
        (r"\\(?:cdot|times|ast)|[×⋅·]", "*"),
        (r"\\div|÷", "/"),
        (r"[−–]", "-"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", ""),
        (r"\\?%", ""),
        (r"\{,\}", ","),
        (r"√", r"\sqrt"),
        (r"π", r"\pi "),
        (r"∞", r"\infty "),
    ];
    table.map(|(expression, to)| (regex(expression), to)).into()
});

/// Commands whose argument is a text.
const TEXT_COMMAND: &str = r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}";

/// A unit at the end of an answer: a text command, or words after a number.
static UNIT: LazyLock<Regex> = LazyLock::new(|| {
    let symbol = r"(?:[kcmdnµu]?m|km|[kmµ]?g|m?s|min|hrs?|h|[kMG]?Hz|[kM]?J|[kM]?W|[kM]?Pa|m?[LlV]|N|A|K|in|ft|mph|kph|fps|rad|deg)";
    let word = r"(?:[A-Za-z]{3,}|cm|mm|km|kg|mg|ms|ft|in|oz|lb)";
    regex(&format!(
        r"^(.*[0-9}})])(?:\s*{TEXT_COMMAND}|\s+{symbol}\b|\s*{word}\b)(?:\s*(?:[/*]|per\b)?\s*(?:{TEXT_COMMAND}|{word}|{symbol})|\^\{{?-?\d\}}?|\.)*\s*$"
    ))
});

static TEXT: LazyLock<Regex> = LazyLock::new(|| regex(TEXT_COMMAND));

static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| regex(r"^[+-]?\d{1,3}(?:,\s?\d{3})+(?:\.\d+)?$"));

/// A name and an equals sign in front of the value.
static NAMED_VALUE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^\s*(?:[A-Za-z]\w?|[A-Za-z]\([A-Za-z]\))\s*(?:=|\\in\b)\s*([^=]+)$"));

#[expect(clippy::expect_used, reason = "the expressions of this file are constant, and each test compiles them")]
fn regex(expression: &str) -> Regex {
    Regex::new(expression).expect("a valid expression")
}

/// Returns the answer without mark-up: the content of its last `\boxed{}`, if it has one, without `$`, spacing,
/// `\text`, degrees, a percent sign, a unit behind a number, separators of thousands, a name in front (`x =`) and a
/// full stop at the end.
pub(super) fn plain_math(answer: &str) -> String {
    let mut text = boxed(answer).unwrap_or(answer).to_string();
    for (expression, to) in REPLACEMENTS.iter() {
        text = expression.replace_all(&text, *to).into_owned();
    }
    text = text.trim().trim_end_matches('.').trim_end().to_string();
    if let Some(value) = NAMED_VALUE.captures(&text) {
        text = value[1].to_string();
    }
    if let Some(number) = UNIT.captures(&text) {
        text = number[1].to_string();
    }
    text = TEXT.replace_all(&text, "$1").trim().to_string();
    if THOUSANDS.is_match(&text) { text.replace([',', ' '], "") } else { text }
}

/// Returns the content of the last `\boxed{}` whose braces are balanced.
fn boxed(text: &str) -> Option<&str> {
    text.rmatch_indices("\\boxed{").take(8).find_map(|(begin, open)| {
        let content = &text[begin + open.len()..];
        let mut depth = 1;
        let end = content.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0
        })?;
        Some(&content[..end.0])
    })
}

#[cfg(test)]
mod tests {
    use super::plain_math;

    #[test]
    fn only_what_does_not_change_the_value_is_removed() {
        for (text, want) in [
            ("5 cm", "5"),
            ("5cm", "5"),
            ("5 m", "5"),
            ("5\\text{ cm}^2", "5"),
            ("12 m/s^2", "12"),
            ("60 km per hour.", "60"),
            ("3 square units", "3"),
            ("2x", "2x"),
            ("2 x", "2 x"),
            ("3xy", "3xy"),
            ("\\text{two cats}", "two cats"),
            ("1,000,000", "1000000"),
            ("(1,000)", "(1,000)"),
            ("x+y=3", "x+y=3"),
            ("f(x) = 2x", "2x"),
            ("\\boxed{a} and \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ] {
            assert_eq!(plain_math(text), want, "{text}");
        }
    }
}
