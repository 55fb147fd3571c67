//! The reference protocol of a benchmark: the prompt and the answer extraction of the harness that its published scores
//! are made with (`--protocol reference`).
//!
//! ```text
//! output -> the text in which the answer is looked for (scope)    -> without set phrases (remove)
//!        -> the lines with certain words (sentences)              -> the first rule of `find` that matches
//! ```

use std::ops::Deref;

use reel_samples::rewards::{ProblemType, strip_white_space};
use regex::Regex;
use serde::{Deserialize, Deserializer};

use super::PromptRules;
use super::options::text_without_letter;

/// A regular expression of a task file.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Deref for Pattern {
    type Target = Regex;

    fn deref(&self) -> &Regex {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Regex::new(&String::deserialize(from)?).map(Self).map_err(|e| {
            // The last line of the regex error says what is wrong; the preceding lines show the position.
            serde::de::Error::custom(e.to_string().lines().last().unwrap_or_default().trim())
        })
    }
}

/// The prompt and the answer extraction of a benchmark's reference harness.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReferenceProtocol {
    /// The harness and its version.
    pub source: String,
    /// The harness' prompt. Without it, the benchmark's answers can be scored, but no model can be asked.
    pub prompt: Option<PromptRules>,
    /// How the harness finds the answer.
    #[serde(default)]
    pub answer: AnswerRules,
}

/// How the answer is found in an output.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AnswerRules {
    /// Expressions whose first group is the text in which the answer is looked for. The first expression that matches
    /// counts; if none does, this is the whole output.
    #[serde(default)]
    pub scope: Vec<Pattern>,
    /// Set phrases, which are removed from the text.
    pub remove: Option<Pattern>,
    /// The sentences of the text in which times are looked for.
    pub sentences: Option<SentenceRule>,
    /// The forms of an answer, in the order in which they are tried. Without them, the answer is the whole text.
    #[serde(default)]
    pub find: Vec<FindRule>,
    /// What the answer is if no form occurs.
    #[serde(default)]
    pub otherwise: Otherwise,
    /// Whether a segment that ends before it starts is turned around.
    #[serde(default)]
    pub sort_times: bool,
}

/// Selects sentences of an output.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SentenceRule {
    /// What separates sentences.
    pub split: Pattern,
    /// What the selected sentences contain. If no sentence contains it, all sentences are selected.
    pub with: Pattern,
}

/// A form of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FindRule {
    /// An expression whose first group is the answer. If the problem asks for a segment, the groups of all matches are
    /// times, of which the first two are the answer.
    pub pattern: Pattern,
    /// Which match of the expression counts.
    #[serde(default)]
    pub take: Take,
}

/// Which of several matches is the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// The first match.
    #[default]
    First,
    /// The last match.
    Last,
    /// The only answer: the form does not apply if two matches name different answers.
    Only,
}

/// The answer of an output in which no form of an answer occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    /// The output has no answer, which scores 0.
    #[default]
    None,
    /// The only option whose text occurs in the output, without regard to case.
    OptionText,
    /// An option is drawn at random. The score is its mean: one divided by the number of options.
    Chance,
}

/// The answer that [`AnswerRules::find_answer`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundAnswer {
    /// The answer, in the form that is compared with the solution.
    Text(String),
    /// No answer; an option is drawn at random.
    Chance,
}

impl AnswerRules {
    /// Returns the answer in `output` to a problem of the kind `kind` with these options.
    pub fn find_answer(&self, output: &str, kind: Option<ProblemType>, options: &[String]) -> FoundAnswer {
        let in_scope = |pattern: &Pattern| Some(pattern.captures(output)?.get(1)?.as_str());
        let text = self.scope.iter().find_map(in_scope).unwrap_or(output);
        if self.find.is_empty() {
            return FoundAnswer::Text(strip_white_space(text).to_string());
        }
        let mut text = match &self.remove {
            Some(phrases) => phrases.replace_all(text, "").into_owned(),
            None => text.to_string(),
        };
        if let Some(rule) = &self.sentences {
            let sentences: Vec<&str> = rule.split.split(&text).collect();
            let with: Vec<&str> = sentences.iter().copied().filter(|sentence| rule.with.is_match(sentence)).collect();
            text = if with.is_empty() { sentences.join("\n") } else { with.join("\n") };
        }
        let asks_for_segment = kind.is_some_and(|kind| kind.name() == "temporal grounding");
        let found = self.find.iter().find_map(|rule| match asks_for_segment {
            true => self.segment(rule, strip_white_space(&text)),
            false => rule.answer(strip_white_space(&text)),
        });
        match (found, self.otherwise) {
            (Some(answer), _) => FoundAnswer::Text(answer),
            (None, Otherwise::Chance) => FoundAnswer::Chance,
            (None, Otherwise::OptionText) => FoundAnswer::Text(named_option(&text, options).unwrap_or_default()),
            (None, Otherwise::None) => FoundAnswer::Text(String::new()),
        }
    }

    /// Returns the segment that the first two times of a form make, as `START to END`.
    fn segment(&self, rule: &FindRule, text: &str) -> Option<String> {
        let matches = rule.pattern.captures_iter(text);
        let times: Vec<String> = matches
            .flat_map(|found| {
                found.iter().skip(1).flatten().map(|group| group.as_str().to_string()).collect::<Vec<_>>()
            })
            .take(2)
            .collect();
        let [start, end] = &times[..] else { return None };
        let is_reversed = self.sort_times && seconds(end) < seconds(start);
        Some(if is_reversed { format!("{end} to {start}") } else { format!("{start} to {end}") })
    }
}

impl FindRule {
    /// Returns the answer of this form in upper case.
    fn answer(&self, text: &str) -> Option<String> {
        let matches = self.pattern.captures_iter(text);
        let mut answers = matches.filter_map(|found| Some(found.get(1)?.as_str().to_uppercase()));
        let first = answers.next()?;
        match self.take {
            Take::First => Some(first),
            Take::Last => Some(answers.last().unwrap_or(first)),
            Take::Only => answers.all(|answer| answer == first).then_some(first),
        }
    }
}

/// The seconds of a time that is written as a number, `mm:ss` or `h:mm:ss`.
fn seconds(time: &str) -> f64 {
    time.split(':').fold(0.0, |total, part| total * 60.0 + part.parse::<f64>().unwrap_or(f64::NAN))
}

/// Returns the letter of the only option whose text occurs in `text`.
fn named_option(text: &str, options: &[String]) -> Option<String> {
    let lower = text.to_lowercase();
    let bare = |option: &str| text_without_letter(option).trim_matches(['.', ' ', '\n']).to_lowercase();
    let mut named = options.iter().filter(|option| lower.contains(&bare(option)));
    named.next().filter(|_| named.next().is_none()).and_then(|option| option.chars().next()).map(String::from)
}
