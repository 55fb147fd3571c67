//! Extracts the answer of a completion: the text between the first `<answer>` and the next `</answer>`.

use crate::rewards::python_text::strip_white_space;

/// Returns the answer in `<answer>` tags without surrounding white space; "" without such tags.
pub fn extract_answer(text: &str) -> &str {
    strip_white_space(text_between(text, "<answer>", "</answer>").unwrap_or_default())
}

/// Returns the text between the first `open` and the next `close`.
pub(crate) fn text_between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    Some(rest.split_once(close)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_pair_of_tags_is_used() {
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
        fn extracts_text_between_tags(before in "[^<]*", inside in "[^<]*", after in "\\PC*") {
            let text = format!("{before}<answer>{inside}</answer>{after}");
            prop_assert_eq!(extract_answer(&text), strip_white_space(&inside));
        }
    }
}
