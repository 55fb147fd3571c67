//! Accuracy of mathematical answers, written as LaTeX or plainly.
//!
//! ```text
//! text -> plain_math    without $, \boxed, \text, units, degrees, a percent sign, thousands separators, `x =`
//!      -> Answer        a list in brackets, or an expression
//!      -> expression    the value of the expression, at several values of its variables
//! ```
//! Two expressions are equal if their values are, up to rounding. This finds equal polynomials and fractions without
//! algebra; expressions that differ only where a variable has other values than those tried are not told apart.

mod expression;
mod plain;

use expression::{VARIABLE_SETS, value};
use plain::plain_math;

/// Relative distance up to which two values are equal, which allows for rounding in f64.
const TOLERANCE: f64 = 1e-12;

/// Maximum bytes of an answer that is parsed; longer ones are compared as texts.
const MAX_PARSED_BYTES: usize = 1000;

/// Whether two answers are the same number, list, expression or text.
///
/// Numbers may be fractions, mixed numbers, decimals, powers, roots, logarithms and multiples of π. Lists in round or
/// square brackets are equal in order, sets in braces and lists without brackets in any order. Texts that are no
/// expression are compared without case and spaces.
pub fn are_equal_math(answer: &str, truth: &str) -> bool {
    let (answer, truth) = (plain_math(answer), plain_math(truth));
    if answer.is_empty() || truth.is_empty() {
        return false;
    }
    if answer == truth {
        return true;
    }
    answer.len().max(truth.len()) <= MAX_PARSED_BYTES && are_equal_items(&answer, &truth)
        || are_equal_texts(&answer, &truth)
}

/// Compares texts without spaces; words of two letters or more also without case.
fn are_equal_texts(a: &str, b: &str) -> bool {
    let [a, b]: [String; 2] = [a, b].map(|text| text.split_whitespace().collect());
    let has_word = a.as_bytes().windows(2).any(|pair| pair.iter().all(u8::is_ascii_alphabetic));
    a == b || has_word && a.eq_ignore_ascii_case(&b)
}

/// Compares two texts as lists, if both are, or as expressions.
fn are_equal_items(a: &str, b: &str) -> bool {
    match (List::parse(a), List::parse(b)) {
        (Some(a), Some(b)) => {
            let same = |(a, b): (&&str, &&str)| are_equal_items(a.trim(), b.trim());
            if a.brackets != b.brackets || a.items.len() != b.items.len() {
                return false;
            }
            if a.is_ordered() {
                return a.items.iter().zip(&b.items).all(same);
            }
            let mut rest = b.items;
            a.items.iter().all(|item| {
                let found = rest.iter().position(|other| same((item, other)));
                found.map(|i| rest.swap_remove(i)).is_some()
            })
        }
        (None, None) => are_equal_expressions(a, b),
        _ => false,
    }
}

/// A list of items with its brackets; "" for a list without brackets.
struct List<'a> {
    brackets: String,
    items: Vec<&'a str>,
}

impl<'a> List<'a> {
    /// Reads a text with a comma outside of inner brackets, or a set.
    fn parse(text: &'a str) -> Option<Self> {
        let inner = |open: &str, close: &str| text.strip_prefix(open)?.strip_suffix(close);
        let pairs = [("\\{", "\\}"), ("{", "}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")];
        for (open, close) in pairs {
            let is_set = open.ends_with('{');
            if let Some(items) = inner(open, close).and_then(split_at_commas).filter(|i| i.len() > 1 || open == "\\{") {
                return Some(Self { brackets: if is_set { "{".into() } else { [open, close].concat() }, items });
            }
        }
        Some(Self { brackets: String::new(), items: split_at_commas(text).filter(|items| items.len() > 1)? })
    }

    fn is_ordered(&self) -> bool {
        self.brackets.starts_with(['(', '['])
    }
}

/// Splits a text at its commas outside of brackets; `None` if its brackets are not balanced.
fn split_at_commas(text: &str) -> Option<Vec<&str>> {
    let (mut items, mut depth, mut begin) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                items.push(&text[begin..i]);
                begin = i + 1;
            }
            _ => {}
        }
    }
    items.push(&text[begin..]);
    (depth == 0).then_some(items)
}

fn are_equal_expressions(a: &str, b: &str) -> bool {
    // Integers with more digits than f64 has are compared digit by digit.
    let is_long_integer =
        |text: &str| text.len() > 15 && text.trim_start_matches('-').bytes().all(|c| c.is_ascii_digit());
    if is_long_integer(a) && is_long_integer(b) {
        return a == b;
    }
    let mut compared = false;
    for set in 0..VARIABLE_SETS {
        let (Some(a), Some(b)) = (value(a, set), value(b, set)) else { continue };
        if !(a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())) {
            return false;
        }
        compared = true;
    }
    compared
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_answers_are_equal_in_all_forms() {
        for (answer, truth) in [
            ("1/2", "0.5"),
            ("\\dfrac{3}{4}", "0.75"),
            ("\\frac12", "\\frac{1}{2}"),
            ("-\\frac{2}{3}", "\\frac{-2}{3}"),
            ("1\\frac{1}{2}", "1.5"),
            ("3 1/2", "\\frac72"),
            ("50\\%", "50"),
            ("1,000", "1000.0"),
            ("12{,}345.5", "12345.5"),
            ("2^{10}", "1024"),
            ("10^-2", "0.01"),
            ("3 \\times 10^{2}", "300"),
            ("1.5\\times10^{-3}", "0.0015"),
            ("2\\sqrt{2}", "\\sqrt{8}"),
            ("\\sqrt[3]{27}", "3"),
            ("\\sqrt{3}/3", "\\frac{1}{\\sqrt{3}}"),
            ("\\frac{\\pi}{2}", "0.5π"),
            ("90^\\circ", "90°"),
            ("x = 3", "3"),
            ("5\\text{ cm}", "5"),
            ("5 cm^2", "5 \\mathrm{cm}^{2}"),
            ("12 m/s", "12"),
            ("$5", "\\$5.00"),
            ("\\text{yes}", "Yes"),
            ("\\left(1, 2\\right)", "(1,2)"),
            ("(-\\infty, 3]", "(-\\infty,3]"),
            ("\\(\\boxed{7}\\)", "7."),
            ("so \\boxed{\\frac{1}{3}} it is", "1/3"),
            (".5", "0.5"),
            ("\\{1,2\\}", "\\{2,1\\}"),
            ("{1,2}", "\\{2,1\\}"),
            ("x \\in [1,2]", "[1, 2]"),
            ("2, 1", "1,2"),
            ("x^2+2x+1", "(x+1)^2"),
            ("\\frac{x}{2}", "0.5x"),
            ("\\log_2 8", "3"),
            ("\\sin^2 x+\\cos^2 x", "1"),
            ("|x-1|", "|1-x|"),
            ("2^{100}", "1267650600228229401496703205376"),
        ] {
            assert!(are_equal_math(answer, truth), "{answer} and {truth}");
            assert!(are_equal_math(truth, answer), "{truth} and {answer}");
        }
    }

    #[test]
    fn other_answers_differ() {
        for (answer, truth) in [
            ("0.3333", "1/3"),
            ("6.28", "2\\pi"),
            ("(2,1)", "(1,2)"),
            ("[1,2]", "(1,2)"),
            ("(1,2,3)", "(1,2)"),
            ("\\frac{1}{0}", "0"),
            ("\\frac{1}{0}", "\\infty"),
            ("-7", "7"),
            ("2x", "2"),
            ("x", "y"),
            ("x", "X"),
            ("x+1", "x-1"),
            ("cat", "act"),
            ("12345678901234567890", "12345678901234567891"),
            ("", "7"),
            ("1,000", "1"),
            ("\\{1,1\\}", "\\{1,2\\}"),
            ("50%", "0.5"),
        ] {
            assert!(!are_equal_math(answer, truth), "{answer} and {truth}");
        }
    }

    #[test]
    fn deep_and_long_expressions_end() {
        for unit in ["(", "{", "\\frac", "\\sqrt{", "-", "2^", "|", "\\boxed{", "1,", "\\{", "\\text{"] {
            let long = unit.repeat(500);
            are_equal_math(&long, &format!("{long}1"));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(a in "(\\\\(frac|sqrt|pi|log|text|boxed|left|[{}])|[0-9]|[{}()\\[\\]^_,./*+|%$ =-]|[xye]|cm|\\PC){0,24}") {
            are_equal_math(&a, "1");
            prop_assert!(plain_math(&a).is_empty() || are_equal_math(&a, &a));
        }

        #[test]
        fn fractions_equal_their_multiples(n in -999i32..999, d in 1i32..999, k in 1i32..99) {
            let multiple = format!("\\frac{{{}}}{{{}}}", n * k, d * k);
            prop_assert!(are_equal_math(&format!("{n}/{d}"), &multiple), "{}", multiple);
            let other = format!("{}/{}", n * k + 1, d * k);
            prop_assert!(!are_equal_math(&format!("{n}/{d}"), &other), "{}", other);
        }
    }
}
