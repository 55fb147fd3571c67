//! Finds the letter of the option that a verbose answer declares, for lenient extraction.
//!
//! ```text
//! (A) a dog            copied options: not an answer
//! (B) a cat
//! It is not the dog.
//! The answer is B because it purrs.     the last declaration: B
//! ```
//! The forms of answers are those that lm-evaluation-harness, lmms-eval and VLMEvalKit look for, and those of issues
//! about what they miss.

use std::sync::LazyLock;

use regex::Regex;

/// What a declaration begins with; the letter or the text of an option follows.
static DECLARATION: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?ix) \b(?: answer | ans | solution )\b (?: \s(?:to|for)\s[^.:\n]{1,80}? | ,\s(?:therefore|then|thus), )? [\s*_`"')\]]* (?: \b(?:is|was|(?:would|should|must|has\sto)\sbe)\b | [:：=–—-] | \n )
        | \b(?: option | choice | (?:correct|right|best)\sone )\b [\s*_]* (?: \b(?:is|(?:would|should|must)\sbe)\b | [:：=] )
        | \b(?: choose | chose | select | selected | pick | picked | going\swith | go\swith | opt\sfor )\b
        | \b(?: therefore | thus | hence | so | conclusion )\b [,:]* \s+ (?: (?:it\sis|it's|it\smust\sbe)\s+ )? (?: option|choice )?
          [\s*_`"'(]* [A-Z] [\s*_`"').]* (?: $ | \n )
        | 答案\s*(?:是|为|[:：]) | 正确(?:选项|答案)(?:是|为)? | 选择?项?\s*[:：]? | 정답[은:]? | 답[은:] | 答えは"#,
    )
});

/// A declaration that begins with the letter: `B is correct`, `Option (B) is the best answer`.
static JUDGED_LETTER: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"\b([A-Z])[)\]*_`"'.]*\s+(?i:is|seems|appears|must\sbe|would\sbe)\s+(?i:to\sbe\s+)?(?i:the\s+)?(?i:only\s+|most\s+)?(?i:correct|right|best|accurate|answer)\b"#,
    )
});

/// A line that begins with a letter as a list of options does: `A. red`, `(B) blue`, `- C: green`.
static MARKED_LINE: LazyLock<Regex> = LazyLock::new(|| regex(r"^\s*(?:[-*•>]\s+)?[(\[*_]*([A-Z])[*_]*[.):：\]]"));

/// A sentence that begins with a letter and a colon or bracket.
static MARKED_SENTENCE: LazyLock<Regex> = LazyLock::new(|| regex(r"(?:^|[.;,!?]\s+)[(\[*_]*([A-Z])[*_]*[):：]"));

#[expect(clippy::expect_used, reason = "the expressions of this file are constant, and each test compiles them")]
fn regex(expression: &str) -> Regex {
    Regex::new(expression).expect("a valid expression")
}

/// Words that may stand between the beginning of a declaration and its letter.
const FILLERS: [&str; 22] = [
    "option",
    "choice",
    "letter",
    "answer",
    "the",
    "clearly",
    "therefore",
    "thus",
    "most",
    "likely",
    "probably",
    "definitely",
    "simply",
    "actually",
    "indeed",
    "either",
    "both",
    "correct",
    "it",
    "is",
    "text",
    "boxed",
];

/// Words after the letter A with which a reason or a condition begins; before any other word, `A` is an article.
const REASONS: [&str; 16] = [
    "because", "since", "as", "for", "which", "but", "so", "due", "based", "given", "where", "when", "and", "or",
    "with", "in",
];

/// What stands at an index of a text after the beginning of a declaration.
enum Declared<'o> {
    Letter(&'o str),
    /// Several letters, as in `A or B`.
    Several,
}

/// An option of a question: its letter and its text in lower case.
struct OptionText<'o> {
    letter: &'o str,
    words: String,
}

/// Returns the letter of the option that `text` declares as the answer: in its last declaration, else at its beginning
/// or in its last line, else the letter of the only option whose text occurs in whole words. Options that `text`
/// copies are no answer. Several letters at once (`A or B`), and lower-case letters, are no letter.
pub fn option_letter<'o>(text: &'o str, options: &'o [String]) -> Option<&'o str> {
    let options: Vec<OptionText> = options.iter().filter_map(|option| OptionText::parse(option)).collect();
    let is_known = |letter: &str| options.is_empty() || options.iter().any(|option| option.letter == letter);
    if let Some(declared) = last_declaration(text, &options) {
        return match declared {
            Declared::Letter(letter) => Some(letter).filter(|letter| is_known(letter)),
            Declared::Several => None,
        };
    }
    let own: Vec<&str> = lines_without_copied_options(text, &options);
    let bare = |line: &'o str| {
        let named = ["Option ", "Choice ", "option ", "choice "].iter().find_map(|word| line.trim().strip_prefix(word));
        leading_letter(named.unwrap_or(line))
    };
    let first_or_last = [own.first(), own.last()].into_iter().flatten().copied().find_map(bare);
    first_or_last.filter(|letter| is_known(letter)).or_else(|| {
        let lower = own.join("\n").to_ascii_lowercase();
        let mut named = options.iter().filter(|option| occurs_as_words(&lower, &option.words));
        named.next().filter(|_| named.next().is_none()).map(|option| option.letter)
    })
}

/// Returns the capital letter at the beginning of a text, after brackets and asterisks, unless a word begins with this
/// letter.
pub fn leading_letter(text: &str) -> Option<&str> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || "(*[\"'`:$【".contains(c));
    let letter = text.get(..1).filter(|letter| letter.as_bytes()[0].is_ascii_uppercase())?;
    let next = text[1..].chars().next();
    // "A cat" may be an article; "A" alone, "A." and "A)" are letters.
    (next.is_none_or(|c| ".):]*\"'`,$】\n".contains(c))).then_some(letter)
}

impl<'o> OptionText<'o> {
    fn parse(option: &'o str) -> Option<Self> {
        let (letter, words) = option.split_once(['.', ')', ':'])?;
        let words = words.trim().trim_end_matches('.').to_ascii_lowercase();
        Some(Self { letter: letter.trim_start_matches('(').trim(), words })
    }
}

/// Returns what the last declaration that names an option declares.
fn last_declaration<'o>(text: &'o str, options: &[OptionText<'o>]) -> Option<Declared<'o>> {
    let after = DECLARATION.find_iter(text).filter_map(|found| {
        // A conclusion is found together with its letter, the only capital letter at its end.
        let end = found.as_str().rfind(|c: char| c.is_ascii_uppercase()).filter(|&at| is_alone(found.as_str(), at));
        let at = end.map_or(found.end(), |letter| found.start() + letter);
        Some((at, declared_option(&text[at..], options)?))
    });
    let judged = JUDGED_LETTER.captures_iter(text).filter_map(|found| {
        let letter = found.get(1)?;
        Some((letter.start(), Declared::Letter(letter.as_str())))
    });
    after.chain(judged).max_by_key(|(at, _)| *at).map(|(_, declared)| declared)
}

/// Returns the option that the rest of a text after the beginning of a declaration names. A sentence such as `is not A`
/// or `is a matter of taste` names none.
fn declared_option<'o>(mut rest: &'o str, options: &[OptionText<'o>]) -> Option<Declared<'o>> {
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "*_`\"'“([{}:：=–—-#>$\\,是为".contains(c));
        let lower = rest.get(..rest.len().min(400)).unwrap_or(rest).to_ascii_lowercase();
        let begins = |words: &str| lower.starts_with(words) && is_end(&lower[words.len()..]);
        let named = options.iter().filter(|option| option.words.len() > 1 && begins(&option.words));
        if let Some(option) = named.max_by_key(|option| option.words.len()) {
            return Some(Declared::Letter(option.letter));
        }
        match FILLERS.iter().find(|word| begins(word)) {
            Some(word) => rest = &rest[word.len()..],
            None => break,
        }
    }
    let (letter, after) = letter_at_start(rest).or_else(|| letter_in_brackets(rest))?;
    Some(if is_list(after) { Declared::Several } else { Declared::Letter(letter) })
}

/// Returns the capital letter at the beginning of a text, if it is a word of its own, and the text after it. `A` before
/// another word than a reason is an article.
fn letter_at_start(text: &str) -> Option<(&str, &str)> {
    let (letter, after) = text.split_at_checked(1).filter(|(c, _)| c.as_bytes()[0].is_ascii_uppercase())?;
    let next = after.trim_start_matches(' ');
    let word = next.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    let is_article =
        letter == "A" && next.len() < after.len() && word.starts_with(char::is_lowercase) && !REASONS.contains(&word);
    (is_end(after) && !after.starts_with(['\'', '’']) && !is_article).then_some((letter, after))
}

/// Returns the only letter in brackets in the sentence at the beginning of a text, as in `the cat (B)`, and the text
/// after it. A negated sentence has none.
fn letter_in_brackets(text: &str) -> Option<(&str, &str)> {
    let sentence = &text[..text.find(['.', '\n']).unwrap_or(text.len())];
    let mut found = sentence.match_indices('(').filter_map(|(at, _)| {
        let (letter, after) = letter_at_start(&text[at + 1..])?;
        after.starts_with(')').then_some((letter, after))
    });
    let first = found.next().filter(|_| !["not ", "none ", "neither "].iter().any(|no| sentence.starts_with(no)))?;
    found.next().is_none().then_some(first)
}

/// Whether another letter follows a letter: `, B`, `/B`, `or (B)`. `, B is wrong` is another sentence.
pub(crate) fn is_list(after: &str) -> bool {
    let marks = |c: char| c.is_whitespace() || "()[]*_`\"'$.".contains(c);
    let rest = after.trim_start_matches(marks);
    let separators = ["or ", "and ", ", or ", ", and ", ",", "/", "&"];
    let Some((separator, second)) = separators.iter().find_map(|s| Some((s, rest.strip_prefix(s)?))) else {
        return false;
    };
    let second = second.trim_start_matches(marks);
    let second = second.strip_prefix("option ").unwrap_or(second);
    let Some((letter, after)) = second.split_at_checked(1) else { return false };
    let is_subject =
        ["is ", "are ", "was ", "does ", "has ", "can "].iter().any(|verb| after.trim_start().starts_with(verb));
    letter.as_bytes()[0].is_ascii_uppercase() && is_end(after) && (!is_subject || separator.ends_with("or "))
}

/// Returns the lines of a text that are not blank and do not copy the options: no consecutive lines that begin with
/// ascending letters, and no line with several options.
fn lines_without_copied_options<'o>(text: &'o str, options: &[OptionText]) -> Vec<&'o str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let letter = |line: &&str| MARKED_LINE.captures(line).map(|found| found[1].to_string());
    let letters: Vec<Option<String>> = lines.iter().map(letter).collect();
    let ascends = |i: usize| i > 0 && i < lines.len() && letters[i - 1].is_some() && letters[i - 1] < letters[i];
    let holds_several = |line: &str| {
        let mut sentences: Vec<String> =
            MARKED_SENTENCE.captures_iter(line).map(|found| found[1].to_string()).collect();
        sentences.dedup();
        let lower = line.to_ascii_lowercase();
        sentences.len() > 1 || options.iter().filter(|option| occurs_as_words(&lower, &option.words)).count() > 1
    };
    let is_copy =
        |(i, line): (usize, &str)| letters[i].is_some() && (ascends(i) || ascends(i + 1) || holds_several(line));
    lines.iter().enumerate().filter(|(i, line)| !is_copy((*i, line))).map(|(_, line)| *line).collect()
}

/// Whether a text contains `words` as whole words: `up` does not occur in `group`.
fn occurs_as_words(text: &str, words: &str) -> bool {
    !words.is_empty()
        && text.match_indices(words).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            !before.is_some_and(|c| c.is_ascii_alphanumeric()) && is_end(&text[at + words.len()..])
        })
}

/// Whether the character at the byte index `at` is a word of its own.
fn is_alone(text: &str, at: usize) -> bool {
    !text[..at].ends_with(|c: char| c.is_alphanumeric()) && is_end(&text[at + 1..])
}

/// Whether a word ends before `after`.
fn is_end(after: &str) -> bool {
    !after.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: [&str; 4] = ["A. No dog", "B. A cat", "C. A notice", "D. Because it rains"];

    fn letter(text: &str) -> Option<String> {
        option_letter(text, &OPTIONS.map(String::from)).map(String::from)
    }

    #[test]
    fn the_last_declaration_is_the_answer() {
        for text in [
            "The answer is B because a car moves.",
            "Based on the frames, the room is dark. The correct answer is (B).",
            "The correct answer is option B.",
            "The correct choice is: **B**",
            "Answer: A\nNo, I looked again.\nAnswer: B",
            "Ans: B",
            "The best answer is\n\n**B**",
            "### Final Answer\nB",
            "The answer is most likely **B) A cat**.",
            "The answer is A cat.",
            "The answer is B, not A.",
            "The answer is B, A is wrong.",
            "The answer is B. The answer is not A.",
            "I would go with (B), since the notice is gone.",
            "I choose B.",
            "It purrs.\nTherefore, B.",
            "So it must be option B.",
            "Option B is correct. Option A is wrong.",
            "(B) is the best answer",
            "A: not seen. B: seen. C: not seen.\nFinal answer: B",
            "答案是B",
            "正确答案：B",
            "B. A cat\n\nA. No dog: there is none.",
            "It purrs.\n\nB",
            "The frames show an animal.\n(B) A cat",
            "Option B",
            "It purrs.\nOption B.",
            "The answer to the question is B.",
            "The answer, therefore, is B.",
            "Final answer: The animal (B)",
            "**Answer:** (B) A cat",
            "{\"answer\": \"B\"}",
            "【B】",
            "$B$",
        ] {
            assert_eq!(letter(text).as_deref(), Some("B"), "{text}");
        }
        assert_eq!(letter("The answer is A because there is no animal.").as_deref(), Some("A"));
        assert_eq!(letter("The answer is Because it rains").as_deref(), Some("D"));
    }

    #[test]
    fn copied_options_and_several_letters_are_no_answer() {
        let copies = [
            "(A) No dog\n(B) A cat\n(C) A notice\n(D) Because it rains\n",
            "A. No dog\nB. A cat\nC. A notice\nD. Because it rains\n",
            "- **A**: No dog\n- **B**: A cat\n- **C**: A notice\n- **D**: Because it rains\n",
            "A. No dog B. A cat C. A notice D. Because it rains\n",
            "A: not seen. B: seen. C: not seen.\n",
        ];
        for copy in copies {
            assert_eq!(letter(copy), None, "{copy}");
            assert_eq!(letter(&format!("{copy}I cannot tell.")), None, "{copy}");
            for end in ["Answer: B", "\nThe answer is B.", "\nB", "\n**B**", "It is a cat."] {
                assert_eq!(letter(&format!("{copy}{end}")).as_deref(), Some("B"), "{copy}{end}");
            }
        }
        for text in [
            "Both are possible: the answer is A or B.",
            "The answer is A, B.",
            "Answer: A and (B)",
            "The answer is either A or option B",
            "The answer is not A.",
            "The answer is not (A).",
            "The answer is either the dog (A) or the cat (B)",
            "Options",
            "The answer is A matter of taste.",
            "Both A and B",
            "A man walks",
            "The answer is Z.",
        ] {
            assert_eq!(letter(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_declared_letter_is_found_after_any_text(text in "[a-z .,A-D\\n()]{0,60}", letter in "[B-D]") {
            let text = format!("{text}\nThe answer is {letter}.");
            prop_assert_eq!(option_letter(&text, &[]), Some(&letter[..]));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}", end in "(Answer|answer is|A\\. |\\n|or|答案是|,|[A-D]){0,6}") {
            letter(&format!("{text}{end}"));
            option_letter(&format!("{end}{text}"), &[text]);
        }
    }
}
