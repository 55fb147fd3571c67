//! The texts of the two recipes around a question (`templates.toml`), and how they are put together.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::options::Recipe;

/// The texts, as the data file has them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Texts {
    question: String,
    options: String,
    system: Systems,
    r#type: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Systems {
    videorft: String,
    video_r1: String,
}

/// The file is part of the program, and a test reads it: it parses.
static TEXTS: LazyLock<Texts> =
    LazyLock::new(|| toml::from_str(include_str!("templates.toml")).expect("templates.toml is part of the program"));

/// The system message of supervised rows.
pub fn system_message(parity: Recipe) -> &'static str {
    match parity {
        Recipe::VideoR1 => &TEXTS.system.video_r1,
        Recipe::Paper | Recipe::Videorft => &TEXTS.system.videorft,
    }
}

/// The kinds of problem that have a text of their own.
pub fn problem_types() -> impl Iterator<Item = &'static str> {
    TEXTS.r#type.keys().map(String::as_str)
}

/// What follows the question for this `problem_type`; `None` for a type that the recipes do not know.
pub fn answer_instruction(problem_type: &str) -> Option<&'static str> {
    TEXTS.r#type.get(problem_type).map(String::as_str)
}

/// The user's text: the question in its template, then `type_text`. Under `video-r1` the options follow the problem, a
/// line each; `options` is `None` for problems without a choice. A choice without options gets their heading all the same, as in
/// Video-R1's code.
pub fn question(problem: &str, options: Option<&[String]>, type_text: &str, parity: Recipe) -> String {
    let mut asked = problem.to_string();
    if let Some(options) = options.filter(|_| parity == Recipe::VideoR1) {
        asked.push_str(&TEXTS.options);
        for option in options {
            asked.push_str(option);
            asked.push('\n');
        }
    }
    TEXTS.question.replace("{Question}", &asked) + type_text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_stands_first_and_the_kind_last() {
        let kind = answer_instruction("numerical").unwrap();
        let text = question("How many?", None, kind, Recipe::Paper);
        assert!(text.starts_with("How many?\nPlease think about this question as if"), "{text}");
        assert!(text.ends_with("<answer> </answer> tags. Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."));
        assert!(text.contains("thought expressions It's encouraged"));
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn only_video_r1_appends_options() {
        let options = ["A. left".to_string(), "B. right".to_string()];
        let kind = answer_instruction("multiple choice").unwrap();
        let with = question("Where?", Some(&options), kind, Recipe::VideoR1);
        assert!(with.starts_with("Where?Options:\nA. left\nB. right\n\nPlease think"), "{with}");
        let none = question("Where?", Some(&[]), kind, Recipe::VideoR1);
        assert!(none.starts_with("Where?Options:\n\nPlease think"), "{none}");
        assert!(question("Where?", None, kind, Recipe::VideoR1).starts_with("Where?\nPlease"));
        assert!(question("Where?", Some(&options), kind, Recipe::Videorft).starts_with("Where?\nPlease"));
    }

    #[test]
    fn system_messages_are_the_published_ones() {
        assert_eq!(system_message(Recipe::VideoR1), "You are a helpful assistant");
        let long = system_message(Recipe::Videorft);
        assert!(long.starts_with("A conversation between User and Assistant. The user asks"));
        assert!(long.ends_with("<think> reasoning process here </think><answer> answer here </answer>"));
        assert!(!long.contains('\n') && !long.contains("  "));
        assert_eq!(problem_types().count(), 5);
        assert!(answer_instruction("nosuch").is_none());
    }
}
