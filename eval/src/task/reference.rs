//! The reference protocol of a benchmark: the prompt and the answer extraction of the harness that its published scores
//! are made with (`--protocol reference`).
//!
//! ```text
//! output -> the text in which the answer is looked for (scope)    -> without set phrases (remove)
//!        -> the lines with certain words (sentences)              -> the first rule of `find` that matches
//! ```

use reel_samples::rewards::{ProblemType, strip_white_space};
use serde::Deserialize;

use super::options::text_without_letter;
use super::pattern::Pattern;
use super::rules::PromptRules;

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
        let asks_for_segment = kind == Some(ProblemType::TemporalGrounding);
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

    /// Returns the segment that the first two times of a form make, as `START to END` in seconds.
    fn segment(&self, rule: &FindRule, text: &str) -> Option<String> {
        let matches: Vec<regex::Captures<'_>> = rule.pattern.captures_iter(text).take(2).collect();
        let times = matches.iter().flat_map(|found| found.iter().skip(1).flatten());
        let mut times = times.map(|time| seconds(time.as_str()));
        let (start, end) = (times.next()?, times.next()?);
        let is_reversed = self.sort_times && end < start;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Task;

    fn find(name: &str, output: &str, options: &[&str]) -> FoundAnswer {
        let options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let task = Task::from_names(name).unwrap().remove(0);
        let kind = task.layouts[0].row.kind.as_ref().unwrap().to_string();
        task.reference.unwrap().answer.find_answer(output, ProblemType::parse(&kind).ok(), &options)
    }

    /// The answers that the harnesses' own functions find in these texts.
    #[test]
    fn answers_are_those_of_the_harness() {
        for (name, output, want) in [
            ("longvideobench", "The answer is C.", "C"),
            // The first capital letter counts, also in a word.
            ("longvideobench", "Answer: B", "A"),
            ("lvbench", "(B) a dog", "B"),
            ("lvbench", "B", "B"),
            ("lvbench", "Answer: B", "B"),
            ("lvbench", "The answer is (C), I think.", "C"),
            ("lvbench", "First (A), then (D) it was so", "D"),
            ("lvbench", "none of them", ""),
            ("lvbench", "\"C.\"", "C"),
            ("motionbench", "<think>A or B</think>the answer is e", "E"),
            ("motionbench", "it shows near", "E"),
            ("motionbench", "none", "E"),
            ("videomathqa", "The answer is B.", "B"),
            ("videommev2", "**C**", "C"),
            ("videommev2", "I think so.\nFinal Answer: h", "H"),
            ("videommev2", "Option: A is wrong. The answer is B", "B"),
            ("videommev2", "**A** and **B**", ""),
            ("nextgqa", "x <answer>The answer is (C)</answer><glue>[(1, 2)]</glue>", "C"),
            ("nextgqa", "C", ""),
            ("longvideoreason", "<answer>Therefore the final answer is: B</answer>", "B"),
            ("longvideoreason", " B ", "B"),
        ] {
            assert_eq!(find(name, output, &[]), FoundAnswer::Text(want.into()), "{name}: {output}");
        }
        assert_eq!(find("longvideobench", "i cannot tell", &[]), FoundAnswer::Chance);
        let options = ["A. a red car.", "B. a blue car."];
        assert_eq!(find("videommev2", "It shows a Blue car", &options), FoundAnswer::Text("B".into()));
        assert_eq!(find("videommev2", "a red car, a blue car", &options), FoundAnswer::Text(String::new()));
    }

    #[test]
    fn segments_are_those_of_the_harness() {
        for (output, charades, timelens) in [
            ("The event happens in 1.5 - 3 seconds.", "1.5 to 3", "1.5 to 3"),
            ("It happens from 1.5 to 3.", "1.5 to 3", "1.5 to 3"),
            ("The event happens in 5.9 - 0.5 seconds.", "0.5 to 5.9", "5.9 to 0.5"),
            ("starts at 20.0 and\nends at 30.0", "20 to 30", "20 to 30"),
            ("starts at 20.0 and ends at 30.0", "", "20 to 30"),
            ("happens in 00:23 - 00:37", "23 to 37", "23 to 37"),
            // TimeLens' last form cuts the fraction of a number before a unit.
            ("happens in 7.3s - 25.7s", "7.3 to 25.7", "7 to 25"),
            ("In 2026, nothing. It happens in 1 - 2", "1 to 2", "1 to 2"),
            ("I cannot tell.", "", ""),
        ] {
            assert_eq!(find("charadessta", output, &[]), FoundAnswer::Text(charades.into()), "{output}");
            assert_eq!(find("activitynettvg", output, &[]), FoundAnswer::Text(timelens.into()), "{output}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_letters_are_those_of_options(text in "\\PC{0,60}|[A-H .:()\\n*0-9-]{0,40}") {
            for task in Task::built_in_tasks() {
                let Some(reference) = &task.reference else { continue };
                for kind in ProblemType::ALL {
                    reference.answer.find_answer(&text, Some(kind), &["A. x".into(), "B. y".into()]);
                }
            }
        }
    }
}
