//! Finds degenerate chains, which no model should learn, whatever their answer: they are too short or too long, repeat
//! themselves, name the answer first, reveal that the writer has not seen the video, or are written in another script.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use regex::Regex;

use super::words::words as words_of;
use super::{FilterSettings, Rejection, RejectionReason};
use crate::curate::answers::ReasoningChain;

/// A run of this many words that occurs at least [`MAX_LOOPS`] times counts as a repetition.
const LOOP_WORDS: usize = 6;
const MAX_LOOPS: usize = 5;

/// A chain of at least `MIN_WORDS_FOR_SHARE` words is a repetition if less than this share of its 4-grams are
/// different.
const MIN_DISTINCT_SHARE: f64 = 0.5;
const MIN_WORDS_FOR_SHARE: usize = 60;

/// Number of words at the beginning of a chain that must not name the answer.
const OPENING_WORDS: usize = 15;

/// A writing script (Latin, Cyrillic, …) with at least this share of the question's letters counts as a script of the
/// question.
const MIN_OWN_SCRIPT_SHARE: f64 = 0.25;

/// Maximum share of a chain's letters in a writing script that the question does not use.
const MAX_OTHER_SCRIPT_SHARE: f64 = 0.25;

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is part of the program")
}

/// Matches English phrases that name the answer.
static NAMES_ANSWER: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\b((the|my|final|correct|right) (answer|option|choice)|answer|option [a-h])( here)? (is|must be|should be|would be)\b|^\W*(answer|option)\W+[a-h]\b",
    )
});

/// Matches English phrases about descriptions, which only a writer who has not seen the video mentions.
static MENTIONS_DESCRIPTION: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\b(the|this|these|those|given|provided|video|frame|textual|written|frame-by-frame) (descriptions?|captions?|notes)\b|\b(metadata|video_caption|key_elements|as described in|according to the text)\b",
    )
});

/// The writing scripts that are distinguished, each with a regular expression for its letters.
static SCRIPTS: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    let names = [
        "Latin",
        "Han",
        "Hiragana",
        "Katakana",
        "Hangul",
        "Cyrillic",
        "Greek",
        "Arabic",
        "Hebrew",
        "Devanagari",
        "Bengali",
        "Tamil",
        "Telugu",
        "Thai",
    ];
    names.map(|name| (name, regex(&format!(r"\p{{{name}}}")))).into()
});

/// The reason why a chain is degenerate, or `None`; `words` are the chain's words.
pub(super) fn degenerate_reason(
    chain: &ReasoningChain,
    question: &str,
    words: &[String],
    settings: &FilterSettings,
) -> Option<Rejection> {
    let text = &chain.thought;
    if words.len() < settings.min_words {
        return Some((RejectionReason::TooShort, format!("{} words, fewer than {}", words.len(), settings.min_words)));
    }
    if words.len() > settings.max_words {
        return Some((RejectionReason::TooLong, format!("{} words, more than {}", words.len(), settings.max_words)));
    }
    if let Some(what) = repetition(words) {
        return Some((RejectionReason::Repetition, what));
    }
    let opening = opening(text);
    let first_sentence = text.split(['.', '!', '?', '\n', '。']).next().unwrap_or_default();
    if NAMES_ANSWER.is_match(opening) || words_of(first_sentence) == words_of(&chain.answer) {
        return Some((RejectionReason::EarlyAnswer, format!("the chain of thought begins with {opening:?}")));
    }
    if let Some(found) = MENTIONS_DESCRIPTION.find(text).filter(|_| settings.is_blind) {
        return Some((RejectionReason::MentionsDescription, format!("the chain of thought says {:?}", found.as_str())));
    }
    other_script(text, question).map(|what| (RejectionReason::OtherScript, what))
}

/// Describes what a chain repeats; `None` if it does not repeat itself.
fn repetition(words: &[String]) -> Option<String> {
    let loops = counts(words.windows(LOOP_WORDS));
    // Searches the words and not the hash table, whose order would decide between equally frequent runs.
    let most = words.windows(LOOP_WORDS).max_by_key(|&gram| loops.get(gram).copied().unwrap_or(0));
    if let Some(gram) = most.filter(|&gram| loops[gram] >= MAX_LOOPS) {
        return Some(format!("{:?} occurs {} times", gram.join(" "), loops[gram]));
    }
    let all = words.len().saturating_sub(3);
    let distinct = counts(words.windows(4)).len();
    let share = distinct as f64 / all.max(1) as f64;
    (words.len() >= MIN_WORDS_FOR_SHARE && share < MIN_DISTINCT_SHARE)
        .then(|| format!("only {:.0} % of its sequences of four words are distinct", 100.0 * share))
}

fn counts<T: Hash + Eq>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_insert(0) += 1);
    counts
}

/// The first words of a text.
fn opening(text: &str) -> &str {
    let text = text.trim_start();
    let mut ends = text.match_indices(char::is_whitespace).map(|(at, _)| at);
    ends.nth(OPENING_WORDS - 1).map_or(text, |end| &text[..end])
}

/// Returns the writing script that makes up more than `MAX_OTHER_SCRIPT_SHARE` of a text but hardly occurs in the
/// question. A few letters in the question do not make their script a script of the question, because option letters
/// (A, B, …) are Latin in every language.
fn other_script(text: &str, question: &str) -> Option<String> {
    let share = |text: &str, script: &Regex| {
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        script.find_iter(text).count() as f64 / letters.max(1) as f64
    };
    let others = SCRIPTS.iter().filter(|(_, script)| share(question, script) < MIN_OWN_SCRIPT_SHARE);
    let shares = others.map(|(name, script)| (name, share(text, script)));
    let (name, most) = shares.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (most > MAX_OTHER_SCRIPT_SHARE).then(|| format!("{:.0} % of its letters are {name}", 100.0 * most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(thought: &str, question: &str) -> Option<RejectionReason> {
        let chain = ReasoningChain { thought: thought.into(), answer: "B".into() };
        let settings = super::super::tests::settings();
        degenerate_reason(&chain, question, &words_of(thought), &settings).map(|(reason, _)| reason)
    }

    #[test]
    fn degenerate_chains_have_their_reason() {
        let long: String = (0..300).map(|i| format!("word{i} ")).collect();
        let twice: String = (0..2).map(|_| (0..40).map(|i| format!("w{i} ")).collect::<String>()).collect();
        let question = "Which way does the ball roll?";
        for (thought, wanted) in [
            ("A ball.", Some(RejectionReason::TooShort)),
            (&*long, Some(RejectionReason::TooLong)),
            (&"I look at the ball and then ".repeat(6), Some(RejectionReason::Repetition)),
            (&"one two three four five ".repeat(16), Some(RejectionReason::Repetition)),
            (&twice, None),
            (
                "The answer is B, because the ball rolls to the right side of the room.",
                Some(RejectionReason::EarlyAnswer),
            ),
            ("B. The ball rolls to the right side of the room, past the box.", Some(RejectionReason::EarlyAnswer)),
            ("Option B: the ball rolls to the right side of the room.", Some(RejectionReason::EarlyAnswer)),
            ("I watch the ball. It rolls past the box to the right side, so the answer is B in the end.", None),
            (
                "I watch the ball roll. The description says that it goes right.",
                Some(RejectionReason::MentionsDescription),
            ),
            (
                "I watch the ball roll. According to the text it goes to the right.",
                Some(RejectionReason::MentionsDescription),
            ),
            ("I watch the ball roll. A sign with a text describes the way to the right.", None),
            ("我看到红色的球从左边滚到右边，所以它向右滚动。", Some(RejectionReason::OtherScript)),
            ("I see the ball (球) roll from the left side to the right side.", None),
        ] {
            assert_eq!(reason_of(thought, question), wanted, "{thought}");
        }
        assert_eq!(reason_of("我看到红色的球从左边滚到右边，所以它向右滚动。", "球往哪边滚？\nA. 左边\nB. 右边"), None);
        assert_eq!(
            reason_of("I see the ball roll from the left side to the right.", "球往哪边滚？"),
            Some(RejectionReason::OtherScript)
        );
    }

    #[test]
    fn only_blind_chains_may_not_speak_of_descriptions() {
        let settings = FilterSettings { is_blind: false, ..super::super::tests::settings() };
        let chain = ReasoningChain {
            thought: "I read the caption at the bottom of the screen aloud.".into(),
            answer: "B".into(),
        };
        let words = words_of(&chain.thought);
        assert_eq!(degenerate_reason(&chain, "What?", &words, &settings), None);
        let blind = FilterSettings { is_blind: true, ..settings };
        let reason = degenerate_reason(&chain, "What?", &words, &blind).map(|(reason, _)| reason);
        assert_eq!(reason, Some(RejectionReason::MentionsDescription));
    }
}
