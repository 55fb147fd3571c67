//! The format reward: 1 if the whole completion is `<think>…</think>`, white space, `<answer>…</answer>`.

use crate::rewards::python_text::is_space;

/// Whether the whole text matches `<think>.*?</think>\s*<answer>.*?</answer>`, where `.` matches newlines too.
pub fn matches_format(text: &str) -> bool {
    let Some(mut rest) = text.strip_prefix("<think>") else { return false };
    // The first `.*?` may extend over further tags, because the whole text must match. So each `</think>` is tried as
    // its end.
    while let Some((_, after)) = rest.split_once("</think>") {
        if let Some(answer) = after.trim_start_matches(is_space).strip_prefix("<answer>") {
            return answer.ends_with("</answer>");
        }
        rest = after;
    }
    false
}

/// The format reward of a completion: 1 or 0.
pub fn format_reward(completion: &str) -> f32 {
    f32::from(matches_format(completion))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_text_must_match() {
        for good in [
            "<think></think><answer></answer>",
            "<think>a\nb</think>\u{1c}\u{2009}\n<answer>c</answer>",
            "<think>a</think><think>b</think> <answer>c</answer>",
            "<think>a</think> x</think><answer>c</answer>",
            "<think>a</think><answer>b</answer>x</answer>",
            "<think><answer>a</answer></think><answer>b</answer>",
        ] {
            assert!(matches_format(good), "{good}");
        }
        for bad in [
            "",
            " <think></think><answer></answer>",
            "<think></think><answer></answer>\n",
            "<think></think>x<answer></answer>",
            "<think></think><answer>",
            "<think><answer></answer>",
            "<think></answer></think><answer>",
            "<think></think>\u{200b}<answer></answer>",
        ] {
            assert!(!matches_format(bad), "{bad}");
        }
    }

    /// A direct implementation of the regular expression of the format, which tries every `</think>`.
    fn matches_by_search(text: &str) -> bool {
        let Some(body) = text.strip_prefix("<think>") else { return false };
        let mut starts = body.match_indices("</think>").map(|(i, close)| &body[i + close.len()..]);
        starts.any(|after| {
            let answer = after.trim_start_matches(is_space);
            answer.starts_with("<answer>") && answer["<answer>".len()..].ends_with("</answer>")
        })
    }

    proptest! {
        #[test]
        fn equals_direct_search_for_any_order_of_tags(parts in prop::collection::vec(prop::sample::select(vec!["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "x"]), 0..9)) {
            let text = parts.concat();
            prop_assert_eq!(matches_format(&text), matches_by_search(&text));
            let framed = format!("<think>{text}</think>\n<answer>{text}</answer>");
            prop_assert!(matches_format(&framed));
        }
    }
}
