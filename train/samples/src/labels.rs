//! Chooses the tokens that count in the loss of supervised fine-tuning, by one of the rules `assistant`, `text` and
//! `videorft` (see [`LabelRule`]).

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The rule that selects the tokens that supervised fine-tuning learns, that is, the tokens that count in the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelRule {
    /// The assistant's messages, each with its end token
    Assistant,
    /// All tokens but padding and vision tokens
    Text,
    /// All tokens but padding and image tokens, as in the code of VideoRFT and Video-R1
    Videorft,
}

/// The two functions of a tokenizer that the label rules call: looking up the ids of special tokens, and decoding.
pub trait LabelVocabulary {
    /// The id of a special token, if the tokenizer has it.
    fn special(&self, token: &str) -> Option<u32>;
    /// Decodes token ids to text, including special tokens.
    fn text(&self, ids: &[u32]) -> String;
}

/// A label rule with the token ids of one tokenizer. The labeler decides which tokens of a conversation count in the
/// loss.
#[derive(Clone, Debug)]
pub struct TokenLabeler {
    rule: LabelRule,
    im_start: Option<u32>,
    im_end: Option<u32>,
    hidden: BTreeSet<u32>,
}

/// The text of an assistant message's header after `<|im_start|>`.
const ASSISTANT: &str = "assistant\n";

impl TokenLabeler {
    /// Prepares a rule for a tokenizer. Returns an error if the tokenizer lacks a special token that the rule needs;
    /// the error is the name of the token.
    pub fn new(rule: LabelRule, vocabulary: &impl LabelVocabulary) -> Result<Self, String> {
        let need = |token: &str| vocabulary.special(token).ok_or_else(|| token.to_string());
        let some = |token: &str| vocabulary.special(token);
        let hidden: BTreeSet<u32> = match rule {
            LabelRule::Assistant => {
                let (im_start, im_end) = (Some(need("<|im_start|>")?), Some(need("<|im_end|>")?));
                return Ok(Self { rule, im_start, im_end, hidden: BTreeSet::new() });
            }
            // These tokens are not learned: padding, and the tokens that stand for media or enclose them.
            LabelRule::Text => [
                need("<|endoftext|>")?,
                need("<|vision_start|>")?,
                need("<|vision_end|>")?,
                need("<|image_pad|>")?,
                need("<|video_pad|>")?,
            ]
            .into_iter()
            .chain(some("<|vision_pad|>"))
            .collect(),
            // For processors other than Qwen2.5-VL's, VideoRFT's script excludes more token ids.
            LabelRule::Videorft => [need("<|endoftext|>")?, need("<|image_pad|>")?].into(),
        };
        Ok(Self { rule, im_start: None, im_end: None, hidden })
    }

    /// The next-token targets of a conversation: `targets[t]` is token t + 1 if it is learned, otherwise -1. The last
    /// position has no next token. The rule `assistant` learns the n-th answer if `answers[n]` is true or absent.
    pub fn next_token_targets(&self, ids: &[u32], answers: &[bool], vocabulary: &impl LabelVocabulary) -> Vec<i32> {
        match self.rule {
            LabelRule::Assistant => targets(ids, &self.assistant(ids, answers, vocabulary).0),
            LabelRule::Text | LabelRule::Videorft => targets(ids, &self.not_hidden(ids)),
        }
    }

    /// The next-token targets of a text whose first `prompt_len` tokens are the prompt. The rule `assistant` does not
    /// learn the prompt.
    pub fn completion_targets(&self, ids: &[u32], prompt_len: usize) -> Vec<i32> {
        match self.rule {
            LabelRule::Assistant => targets(ids, &(0..ids.len()).map(|t| t >= prompt_len).collect::<Vec<_>>()),
            LabelRule::Text | LabelRule::Videorft => targets(ids, &self.not_hidden(ids)),
        }
    }

    /// Whether the rule supports learning only selected answers of a conversation.
    pub fn selects_answers(&self) -> bool {
        self.rule == LabelRule::Assistant
    }

    /// The number of answers in a rendered conversation, by their headers; `None` if the rule does not select
    /// answers.
    pub fn answer_count(&self, ids: &[u32], vocabulary: &impl LabelVocabulary) -> Option<usize> {
        self.selects_answers().then(|| self.assistant(ids, &[], vocabulary).1)
    }

    fn not_hidden(&self, ids: &[u32]) -> Vec<bool> {
        ids.iter().map(|id| !self.hidden.contains(id)).collect()
    }

    /// Marks the tokens after each `<|im_start|>assistant\n` up to and including the next `<|im_end|>`; the tokens of
    /// the n-th answer are not marked if `answers[n]` is false. Also returns the number of answers.
    fn assistant(&self, ids: &[u32], answers: &[bool], vocabulary: &impl LabelVocabulary) -> (Vec<bool>, usize) {
        let mut learned = vec![false; ids.len()];
        let mut count = 0;
        let mut at = 0;
        while at < ids.len() {
            if Some(ids[at]) != self.im_start {
                at += 1;
                continue;
            }
            at += 1;
            let Some(header) = self.header(&ids[at..], vocabulary) else { continue };
            at += header;
            let is_learned = answers.get(count).is_none_or(|answer| *answer);
            count += 1;
            while at < ids.len() {
                learned[at] = is_learned;
                at += 1;
                if Some(ids[at - 1]) == self.im_end {
                    break;
                }
            }
        }
        (learned, count)
    }

    /// The number of tokens at the start of `ids` that decode to `assistant\n`. A token that also holds the first
    /// characters of the answer (a tokenizer may join newlines) belongs to the header.
    fn header(&self, ids: &[u32], vocabulary: &impl LabelVocabulary) -> Option<usize> {
        for n in 1..=ids.len().min(ASSISTANT.len()) {
            let text = vocabulary.text(&ids[..n]);
            if text.starts_with(ASSISTANT) {
                return Some(n);
            }
            if !ASSISTANT.starts_with(&text) {
                return None;
            }
        }
        None
    }
}

fn targets(ids: &[u32], learned: &[bool]) -> Vec<i32> {
    (0..ids.len()).map(|t| if t + 1 < ids.len() && learned[t + 1] { ids[t + 1] as i32 } else { -1 }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A toy tokenizer: ids below 256 are single bytes, id 256 is two newlines, and higher ids are special tokens.
    struct Bytes;
    const SPECIALS: [&str; 8] = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ];
    const START: u32 = 301;
    const END: u32 = 302;

    impl LabelVocabulary for Bytes {
        fn special(&self, token: &str) -> Option<u32> {
            SPECIALS.iter().position(|s| *s == token).map(|i| 300 + i as u32)
        }
        fn text(&self, ids: &[u32]) -> String {
            ids.iter()
                .map(|&id| match id {
                    256 => "\n\n".to_string(),
                    300.. => SPECIALS[id as usize - 300].to_string(),
                    _ => (id as u8 as char).to_string(),
                })
                .collect()
        }
    }

    /// Encodes a text with the toy tokenizer. In the text `{` stands for `<|im_start|>`, `}` for `<|im_end|>`, and
    /// `#` for the token of two newlines.
    fn ids(text: &str) -> Vec<u32> {
        text.chars()
            .map(|c| match c {
                '{' => START,
                '}' => END,
                '#' => 256,
                c => c as u32,
            })
            .collect()
    }

    /// Decodes the learned tokens, with `.` for each token that is not learned.
    fn learned(rule: LabelRule, ids: &[u32]) -> String {
        let targets = TokenLabeler::new(rule, &Bytes).unwrap().next_token_targets(ids, &[], &Bytes);
        assert_eq!(targets.len(), ids.len());
        targets.iter().map(|&t| if t < 0 { ".".to_string() } else { Bytes.text(&[t as u32]) }).collect()
    }

    #[test]
    fn assistant_rule_learns_the_answer_and_its_end_token() {
        let text = "{user\nhi}\n{assistant\nyo}\n{user\nx}\n{assistant\nz}\n";
        let want = format!("{}yo<|im_end|>{}z<|im_end|>..", ".".repeat(20), ".".repeat(21));
        assert_eq!(learned(LabelRule::Assistant, &ids(text)), want);
    }

    #[test]
    fn answers_and_prompts_that_are_given_are_not_learned() {
        let (rule, text) = (|rule| TokenLabeler::new(rule, &Bytes).unwrap(), ids("{assistant\na}{assistant\nb}"));
        let learned =
            |targets: Vec<i32>| targets.iter().filter(|t| **t >= 0).map(|&t| Bytes.text(&[t as u32])).collect();
        let second: String = learned(rule(LabelRule::Assistant).next_token_targets(&text, &[false, true], &Bytes));
        assert_eq!(second, "b<|im_end|>");
        let completion: String = learned(rule(LabelRule::Assistant).completion_targets(&ids("abc}"), 2));
        assert_eq!(completion, "c<|im_end|>");
        let all: String = learned(rule(LabelRule::Text).completion_targets(&ids("abc}"), 2));
        assert_eq!(all, "bc<|im_end|>");
    }

    #[test]
    fn handles_empty_unfinished_and_similar_headers() {
        let rule = |text: &str| learned(LabelRule::Assistant, &ids(text)).replace('.', "");
        assert_eq!(rule("{assistant\n}"), "<|im_end|>");
        assert_eq!(rule("{assistant\nabc"), "abc");
        assert_eq!(rule("{assistants\nabc}"), "");
        assert_eq!(rule("{assistan}"), "");
        assert_eq!(rule("{assistant"), "");
        assert_eq!(rule("assistant\nabc}"), "");
        assert_eq!(rule("{assistant#abc}"), "abc<|im_end|>");
        assert_eq!(rule("{{assistant\na}"), "a<|im_end|>");
        assert_eq!(rule(""), "");
    }

    #[test]
    fn text_and_videorft_rules_exclude_padding_and_media() {
        let all: Vec<u32> = std::iter::once(65).chain(300..308).collect();
        assert_eq!(learned(LabelRule::Text, &all), ".<|im_start|><|im_end|>......");
        assert_eq!(
            learned(LabelRule::Videorft, &all),
            ".<|im_start|><|im_end|><|vision_start|><|vision_end|><|vision_pad|>.<|video_pad|>."
        );
    }

    struct Bare;
    impl LabelVocabulary for Bare {
        fn special(&self, token: &str) -> Option<u32> {
            (token == "<|im_start|>").then_some(1)
        }
        fn text(&self, _: &[u32]) -> String {
            String::new()
        }
    }

    #[test]
    fn names_the_missing_special_token() {
        assert_eq!(TokenLabeler::new(LabelRule::Assistant, &Bare).unwrap_err(), "<|im_end|>");
        assert_eq!(TokenLabeler::new(LabelRule::Text, &Bare).unwrap_err(), "<|endoftext|>");
    }

    proptest! {
        /// The rule `assistant` works on token ids. For any roles and contents, the rule selects the same text as a
        /// search for the marks in the decoded text.
        #[test]
        fn learned_tokens_agree_with_a_text_search(turns in prop::collection::vec(("(user|assistant|system|assistant2)", "[ab#]{0,5}"), 0..6)) {
            let text: String = turns.iter().map(|(role, words)| format!("{{{role}\n{words}}}\n")).collect();
            let mut want = String::new();
            for (_, words) in turns.iter().filter(|(role, _)| role == "assistant") {
                want += &words.replace('#', "\n\n");
                want += "<|im_end|>";
            }
            prop_assert_eq!(learned(LabelRule::Assistant, &ids(&text)).replace('.', ""), want);
        }

        #[test]
        fn target_is_always_the_next_token(row in prop::collection::vec(prop_oneof![0u32..257, 300u32..308], 0..40)) {
            for rule in [LabelRule::Assistant, LabelRule::Text, LabelRule::Videorft] {
                let targets = TokenLabeler::new(rule, &Bytes).unwrap().next_token_targets(&row, &[], &Bytes);
                for (t, &target) in targets.iter().enumerate() {
                    prop_assert!(target == -1 || target as u32 == row[t + 1]);
                }
            }
        }
    }
}
