//! The fixed texts of VideoRFT's and Video-R1's prompts (`templates.toml`): the text around a question, and the
//! system messages. Training (`reel-train`) and benchmarks (`reel-eval`) make their prompts from these texts.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::rewards::Recipe;

/// The content of `templates.toml`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Texts {
    question: Questions,
    options: ByRepository,
    system: ByRepository,
    r#type: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Questions {
    training: String,
    evaluation: String,
}

/// A text whose wording differs between the repositories of VideoRFT and Video-R1.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ByRepository {
    videorft: String,
    video_r1: String,
}

impl ByRepository {
    fn of_recipe(&self, recipe: Recipe) -> &str {
        match recipe {
            Recipe::VideoR1 => &self.video_r1,
            Recipe::Paper | Recipe::Videorft | Recipe::OneThinker => &self.videorft,
        }
    }
}

/// The use that a question is written for: the templates of VideoRFT and Video-R1 differ between training and
/// evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuestionTemplate {
    /// As in the evaluation scripts: multiple-choice questions with their options.
    #[default]
    Evaluation,
    /// As in the two projects' training code.
    Training,
}

/// The parsed `templates.toml`. The file is compiled in, and a test parses it, so parsing cannot fail at run time.
static TEXTS: LazyLock<Texts> =
    LazyLock::new(|| toml::from_str(include_str!("templates.toml")).expect("templates.toml is part of the program"));

/// The system message for supervised fine-tuning.
pub fn system_message(parity: Recipe) -> &'static str {
    TEXTS.system.of_recipe(parity)
}

/// The values of `problem_type` that have an answer instruction.
pub fn problem_types() -> impl Iterator<Item = &'static str> {
    TEXTS.r#type.keys().map(String::as_str)
}

/// The instruction after the question that describes the answer's form; `None` for an unknown `problem_type`.
pub fn answer_instruction(problem_type: &str) -> Option<&'static str> {
    TEXTS.r#type.get(problem_type).map(String::as_str)
}

/// Returns the text of the user's message: the question in its template, then the answer instruction. The template for
/// evaluation puts the options after the question, one per line under a heading; the template for training does so
/// only with recipe `video-r1`. `options` is `None` if the problem type has no options. An empty list still gets the
/// heading, as in the code of VideoRFT and Video-R1.
pub fn question_text(
    problem: &str,
    options: Option<&[String]>,
    answer_instruction: &str,
    parity: Recipe,
    template: QuestionTemplate,
) -> String {
    let (text, shows_options) = match template {
        QuestionTemplate::Evaluation => (&TEXTS.question.evaluation, true),
        QuestionTemplate::Training => (&TEXTS.question.training, parity == Recipe::VideoR1),
    };
    let mut asked = problem.to_string();
    if let Some(options) = options.filter(|_| shows_options) {
        asked.push_str(TEXTS.options.of_recipe(parity));
        for option in options {
            asked.push_str(option);
            asked.push('\n');
        }
    }
    text.replace("{Question}", &asked) + answer_instruction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewards::ProblemType;

    fn question_text(problem: &str, options: Option<&[String]>, answer_instruction: &str, parity: Recipe) -> String {
        super::question_text(problem, options, answer_instruction, parity, QuestionTemplate::Training)
    }

    #[test]
    fn evaluation_template_shows_options_and_has_its_own_last_sentence() {
        let options = ["A. left".to_string(), "B. right".to_string()];
        let text = |recipe| super::question_text("Where?", Some(&options), " X", recipe, QuestionTemplate::Evaluation);
        let (videorft, video_r1) = (text(Recipe::Paper), text(Recipe::VideoR1));
        assert_eq!(videorft, text(Recipe::Videorft));
        assert!(videorft.starts_with("Where?\nA. left\nB. right\n\nPlease think"), "{videorft}");
        assert!(video_r1.starts_with("Where?Options:\nA. left\nB. right\n\nPlease think"), "{video_r1}");
        assert!(videorft.ends_with(
            " between the <think> and </think> tags, and then give your final answer between the <answer> and </answer> tags. X"
        ));
    }

    #[test]
    fn question_comes_first_and_answer_instruction_last() {
        let kind = answer_instruction("numerical").unwrap();
        let text = question_text("How many?", None, kind, Recipe::Paper);
        assert!(text.starts_with("How many?\nPlease think about this question as if"), "{text}");
        assert!(text.ends_with("<answer> </answer> tags. Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."));
        assert!(text.contains("thought expressions It's encouraged"));
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn only_video_r1_lists_options() {
        let options = ["A. left".to_string(), "B. right".to_string()];
        let kind = answer_instruction("multiple choice").unwrap();
        let with = question_text("Where?", Some(&options), kind, Recipe::VideoR1);
        assert!(with.starts_with("Where?Options:\nA. left\nB. right\n\nPlease think"), "{with}");
        let none = question_text("Where?", Some(&[]), kind, Recipe::VideoR1);
        assert!(none.starts_with("Where?Options:\n\nPlease think"), "{none}");
        assert!(question_text("Where?", None, kind, Recipe::VideoR1).starts_with("Where?\nPlease"));
        assert!(question_text("Where?", Some(&options), kind, Recipe::Videorft).starts_with("Where?\nPlease"));
    }

    #[test]
    fn system_messages_are_the_published_ones() {
        assert_eq!(system_message(Recipe::VideoR1), "You are a helpful assistant");
        let long = system_message(Recipe::Videorft);
        assert!(long.starts_with("A conversation between User and Assistant. The user asks"));
        assert!(long.ends_with("<think> reasoning process here </think><answer> answer here </answer>"));
        assert!(!long.contains('\n') && !long.contains("  "));
        assert_eq!(problem_types().count(), ProblemType::ALL.len());
        assert!(answer_instruction("nosuch").is_none());
    }
}
