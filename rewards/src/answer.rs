//! The answer in a text: what stands between the first `<answer>` and the `</answer>` after it.

use crate::python_text::strip;

/// The stripped answer; "" where there is none.
pub fn extract_answer(text: &str) -> &str {
    strip(between(text, "<answer>", "</answer>").unwrap_or_default())
}

/// What stands between the first `open` and the first `close` after it.
pub(crate) fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    Some(rest.split_once(close)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_pair_counts() {
        for (text, want) in [
            ("<answer>A</answer><answer>B</answer>", "A"),
            ("</answer><answer>A</answer>", "A"),
            ("<answer>A<answer>B</answer>", "A<answer>B"),
            ("<answer> \n A\u{1c}</answer>", "A"),
            ("<answer>A", ""),
            ("A", ""),
            ("<ANSWER>A</ANSWER>", ""),
        ] {
            assert_eq!(extract_answer(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out(before in "[^<]*", inside in "[^<]*", after in "\\PC*") {
            let text = format!("{before}<answer>{inside}</answer>{after}");
            prop_assert_eq!(extract_answer(&text), strip(&inside));
        }
    }
}
