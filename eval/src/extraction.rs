//! Finds the answer in the output of a model. Evaluation scripts do this in different ways, which changes the scores.

use clap::ValueEnum;
use reel_samples::rewards::{
    ProblemType, extract_answer, leading_letter, option_letter, parse_number, strip_white_space,
};
use serde::{Deserialize, Serialize};

/// How the answer is found in an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extraction {
    /// As the evaluation scripts of VideoRFT and Video-R1: the text in the first <answer> tags, else the whole output,
    /// compared as it is
    #[default]
    Tags,
    /// Also the letter that a text declares last, such as `The answer is B because …`, `\boxed{B}`, `(B)`, `B. red`, or
    /// the one option whose text occurs in whole words, without copied options; and the number in `\boxed{}` or the
    /// first number of a text
    Lenient,
    /// As the benchmark's reference harness: the rules in [reference.answer] of the task file
    #[value(skip)]
    Reference,
}

impl Extraction {
    /// The name of this kind of extraction on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Lenient => "lenient",
            Self::Reference => "reference",
        }
    }

    /// Returns the answer in `output`, in a form that can be compared with the solution. `options` are the options of
    /// a multiple-choice question. [`crate::Prediction::answer`] applies a task's reference protocol; here the answer is
    /// that of `Tags`.
    pub fn answer<'o>(self, output: &'o str, kind: Option<ProblemType>, options: &'o [String]) -> &'o str {
        let tagged = extract_answer(output);
        let whole = if tagged.is_empty() { strip_white_space(output) } else { tagged };
        match (self, kind) {
            (Self::Tags | Self::Reference, _) => whole,
            (Self::Lenient, Some(ProblemType::MultipleChoice)) => {
                letter(conclusion(tagged, output), options).unwrap_or(whole)
            }
            (Self::Lenient, Some(ProblemType::Numerical | ProblemType::Regression)) => {
                let text = conclusion(tagged, output);
                boxed(text).and_then(first_number).or_else(|| first_number(text)).unwrap_or(whole)
            }
            (Self::Lenient, _) => whole,
        }
    }
}

/// Returns the text in which lenient extraction looks for the answer: the text in the `<answer>` tags, else the text
/// after the chain of thought (`</think>`).
fn conclusion<'o>(tagged: &'o str, output: &'o str) -> &'o str {
    match tagged {
        "" => strip_white_space(output.rsplit_once("</think>").map_or(output, |(_, after)| after)),
        tagged => tagged,
    }
}

/// Returns the letter of the option that a text names: in the last `\boxed{}`, else as [`option_letter`] finds it. A
/// list of letters or an option's text in a box is not a letter.
fn letter<'o>(text: &'o str, options: &'o [String]) -> Option<&'o str> {
    let in_box = boxed(text).and_then(|text| leading_letter(text).filter(|_| !text.contains(',')));
    in_box.or_else(|| option_letter(text, options))
}

/// Returns the text in the last `\boxed{…}`, the form in which models trained on mathematics answer. A command around
/// the text, such as `\text{…}`, is removed. A box that is not closed, as in a truncated answer, is ignored.
fn boxed(text: &str) -> Option<&str> {
    const BOX: &str = "\\boxed{";
    let mut inner = &text[text.rfind(BOX)? + BOX.len()..];
    let mut depth = 1;
    let end = inner.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    })?;
    inner = inner[..end].trim();
    while let Some(command) = inner.strip_prefix('\\') {
        let Some((_, argument)) = command.split_once('{').filter(|(name, _)| name.chars().all(|c| c.is_alphabetic()))
        else {
            break;
        };
        let Some(argument) = argument.strip_suffix('}') else { break };
        inner = argument.trim();
    }
    Some(inner)
}

/// Returns the first number in a text, without a full stop after the number.
fn first_number(text: &str) -> Option<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "+-.,".contains(c)))
        .map(|word| word.trim_end_matches(['.', ',']).trim_end_matches(|c: char| c.is_ascii_alphabetic()))
        .find(|word| {
            word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && parse_number(word).is_some()
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lenient_reading_finds_letters_and_numbers() {
        let options = ["A. a red car".to_string(), "B. a blue car".into(), "C. nothing".into()];
        for (output, want) in [
            ("<answer>B</answer>", "B"),
            ("<answer>B. a blue car</answer>", "B"),
            ("<answer>(B)</answer>", "B"),
            ("(C) nothing", "C"),
            ("**B**", "B"),
            ("<think>A? No.</think> The answer is B.", "B"),
            ("<think>It may be A.</think>\nAnswer: (C)", "C"),
            ("The answer is A. Wait, the final answer is C.", "C"),
            ("It shows a blue car.", "B"),
            ("\\boxed{B}", "B"),
            ("A is wrong. $\\boxed{\\text{(C)}}$", "C"),
            ("The answer is \\boxed{\\mathbf{\\text{B. a blue car}}}.", "B"),
            ("\\boxed{A}, no: \\boxed{B}", "B"),
            ("<answer>\\boxed{C}</answer>", "C"),
            ("<think>\\boxed{A}</think> B", "B"),
            ("\\boxed{a blue car}", "B"),
            ("\\boxed{A, B}", "\\boxed{A, B}"),
            ("\\boxed{AB}", "\\boxed{AB}"),
            ("\\boxed{B", "\\boxed{B"),
            ("It shows a blue car, not a red car.", "It shows a blue car, not a red car."),
            ("It shows blue cars: a blue card.", "It shows blue cars: a blue card."),
            ("A man walks", "A man walks"),
            ("<answer></answer>B", "<answer></answer>B"),
            ("", ""),
        ] {
            let got = Extraction::Lenient.answer(output, Some(ProblemType::MultipleChoice), &options);
            assert_eq!(got, want, "{output}");
        }
        for (output, want) in [
            ("<answer>about 2.5 meters</answer>", "2.5"),
            ("<think>4</think>It is 3.", "3"),
            ("-7", "-7"),
            ("12m long", "12"),
            ("1,000 or so", "1,000"),
            ("none", "none"),
            ("3 + 4 = \\boxed{7.0}", "7.0"),
            ("It is \\boxed{\\text{12 m}}", "12"),
            ("3 + 4 is \\boxed{many}", "3"),
        ] {
            assert_eq!(Extraction::Lenient.answer(output, Some(ProblemType::Regression), &[]), want, "{output}");
        }
    }

    proptest! {
        /// A bare letter that [`Extraction::Tags`] finds is also found by [`Extraction::Lenient`]. Neither panics on
        /// any text.
        #[test]
        fn lenient_agrees_where_the_answer_is_bare(letter in "[A-D]", text in "\\PC{0,20}") {
            let options: Vec<String> = ["A. x1", "B. x2", "C. x3", "D. x4"].map(String::from).to_vec();
            let output = format!("<think>{}</think><answer>{letter}</answer>", text.replace("<answer>", ""));
            for extraction in [Extraction::Tags, Extraction::Lenient] {
                prop_assert_eq!(extraction.answer(&output, Some(ProblemType::MultipleChoice), &options), &letter);
                extraction.answer(&text, Some(ProblemType::MultipleChoice), &options);
                extraction.answer(&text, Some(ProblemType::Numerical), &options);
            }
        }
    }
}
