//! A row of a predictions file, with the columns that the page of an evaluation shows; and the pairs of rows with the
//! answers of two runs to the same question.

use std::collections::{HashMap, VecDeque};

use reel_eval::Prediction;
use serde_json::Value;

use super::BenchmarkAnswers;
use crate::error::Result;

/// An answer of a model.
#[derive(Clone, Debug)]
pub struct AnsweredRow {
    /// What is scored.
    pub prediction: Prediction,
    /// Number of tokens of the prompt, including vision tokens.
    pub prompt_tokens: Option<u64>,
    /// Number of tokens of the output.
    pub completion_tokens: Option<u64>,
    /// The videos and images of the prompt, as the parts of a chat message.
    pub media: Vec<Value>,
    /// The texts of the prompt, system message included.
    pub prompt: Vec<String>,
    /// Number of the line in its file, from 1; 0 if the number is not known.
    pub line: usize,
}

impl AnsweredRow {
    /// Parses a line of a predictions file.
    ///
    /// # Errors
    /// The line is not a JSON object, or a column that the score depends on is missing or wrong.
    pub fn from_json_line(text: &str) -> Result<Self> {
        let prediction = Prediction::from_json_line(text)?;
        // Parsing cannot fail: the prediction was read from the same text, which is a JSON object.
        let row: Value = serde_json::from_str(text).unwrap_or_default();
        let messages = row["prompt"].as_array().into_iter().flatten();
        let (mut media, mut prompt) = (Vec::new(), Vec::new());
        for message in messages {
            if let Some(text) = message["content"].as_str() {
                prompt.push(text.to_string());
            }
            for part in message["content"].as_array().into_iter().flatten() {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("video" | "image"), _) => media.push(part.clone()),
                    (_, Some(text)) => prompt.push(text.to_string()),
                    _ => {}
                }
            }
        }
        Ok(Self {
            prediction,
            prompt_tokens: row["generation"]["prompt_tokens"].as_u64(),
            completion_tokens: row["generation"]["completion_tokens"].as_u64(),
            media,
            prompt,
            line: 0,
        })
    }

    /// Identifies the videos and images of the prompt. Rows with the same key were asked about the same frames. `None`
    /// for a question without media.
    pub(super) fn media_key(&self) -> Option<String> {
        (!self.media.is_empty()).then(|| Value::Array(self.media.clone()).to_string())
    }
}

/// The number of questions that run A answers better than run B, and the number that run B answers better.
pub(super) fn better_answer_counts(a: &BenchmarkAnswers, b: &BenchmarkAnswers) -> [usize; 2] {
    let mut paired = Pairs::new(b);
    let mut counts = [0; 2];
    for answer in &a.answers {
        let Some(other) = paired.next(answer) else { continue };
        let [own, other] = [answer, other].map(|answer| answer.prediction.score(&a.task, a.extraction()));
        counts[0] += usize::from(own > other);
        counts[1] += usize::from(other > own);
    }
    counts
}

/// Finds the answer of a second run to the same question, by the row's name. If several rows have the same name, the
/// n-th row of one run is paired with the n-th row of the other run.
pub(super) struct Pairs<'a> {
    by_name: HashMap<&'a str, VecDeque<&'a AnsweredRow>>,
}

impl<'a> Pairs<'a> {
    pub(super) fn new(run: &'a BenchmarkAnswers) -> Self {
        let mut by_name: HashMap<&str, VecDeque<&AnsweredRow>> = HashMap::new();
        for answer in &run.answers {
            by_name.entry(name_of(answer)).or_default().push_back(answer);
        }
        Self { by_name }
    }

    pub(super) fn next(&mut self, answer: &AnsweredRow) -> Option<&'a AnsweredRow> {
        self.by_name.get_mut(name_of(answer))?.pop_front()
    }
}

fn name_of(answer: &AnsweredRow) -> &str {
    answer.prediction.id.as_deref().or(answer.prediction.question.as_deref()).unwrap_or_default()
}
