//! The section of an evaluation's page with every single answer: the controls as HTML, and the answers as JSON, which
//! `answers.js` displays.
//!
//! | field | contents |
//! |---|---|
//! | `benchmarks` | `{name, title, categories: […]}` |
//! | `runs` | the names of the runs |
//! | `strips` | for each video a list of `{src, shown, frames, width, height, times}` |
//! | `reasons` | why answers have no frames |
//! | `answers` | `{b: benchmark, c: category, id, line, kind, question, options, truth, path, strip or reason, runs}` |
//!
//! Each entry of an answer's `runs` is `{output, answer, score, cut, error, prompt_tokens, tokens}`; the entry of the
//! second run is null for a question that only the first run has. `answer` is null if the whole output is the answer.
//! Texts are stored as the model wrote them; the script makes control characters visible.

use std::collections::{BTreeMap, HashMap};

use reel_samples::rewards::extract_answer;
use serde_json::{Map, Value, json};

use super::answer::Pairs;
use super::scores::with_digit_groups;
use super::{AnsweredRow, BenchmarkAnswers, EvaluationRun, FrameStrips};
use crate::report::escape::{escape_html, json_in_script};
use crate::report::html::HtmlPage;

/// Maximum number of bytes of an output that the page stores. Outputs that follow the protocol have a few thousand
/// bytes.
const MAX_OUTPUT: usize = 256 << 10;

/// Maximum number of characters of the extracted answer that the page stores beside the output.
const MAX_ANSWER: usize = 500;

/// Adds the section of the page in which a reader browses single answers.
pub fn add_answers(page: &mut HtmlPage, run: &EvaluationRun, against: Option<&EvaluationRun>, frames: &FrameStrips) {
    let runs_filter = match against {
        None => "",
        Some(_) => {
            "<label>runs <select id=\"runs\"><option value=\"\">all<option value=\"differ\">that disagree\
             <option value=\"a\">A better<option value=\"b\">B better<option value=\"none\">both wrong\
             </select></label>"
        }
    };
    page.add(&format!(
        "<section aria-labelledby=\"answers\" class=\"answers-section\"><h2 id=\"answers\">Answers</h2>\n\
         <noscript><p>The list of answers needs JavaScript.</p></noscript>\n\
         <form class=\"filters\" role=\"search\" aria-label=\"answers\" hidden>\
         <label>benchmark <select id=\"benchmark\"></select></label>\
         <label>category <select id=\"category\"></select></label>\
         <label>answers <select id=\"show\"><option value=\"\">all<option value=\"wrong\">wrong only\
         <option value=\"partial\">partly right<option value=\"right\">right<option value=\"cut\">cut off\
         <option value=\"error\">with an error</select></label>{runs_filter}\
         <label class=\"search\">search <input type=\"search\" id=\"search\" placeholder=\"question, output, id\" \
         autocomplete=\"off\" spellcheck=\"false\"></label>\
         <button type=\"reset\">Reset</button></form>\n\
         <div class=\"browser\" hidden><div class=\"pane\"><p id=\"count\" role=\"status\"></p>\
         <div id=\"list\" role=\"listbox\" aria-label=\"answers\" tabindex=\"0\"></div></div>\
         <article id=\"detail\" aria-label=\"answer\" tabindex=\"-1\"></article></div>\n\
         <p class=\"note keys\" hidden>Keys: j and k or ↓ and ↑ in the list for the next and the previous answer, \
         / to search.</p>\n"
    ));
    page.add(&format!("<p class=\"note\">{}</p>\n", escape_html(&frames_note(run, frames))));
    let data = json_in_script(&page_data(run, against, frames));
    page.add(&format!("<script type=\"application/json\">{data}</script></section>\n"));
}

/// A note with the number of questions that are shown with frames, and the reasons why other questions have no
/// frames.
fn frames_note(run: &EvaluationRun, frames: &FrameStrips) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut with = 0;
    for benchmark in &run.benchmarks {
        for answer in &benchmark.answers {
            match frames.find_strip(&benchmark.task.name, answer.media_key().as_deref()) {
                Ok(_) => with += 1,
                Err(reason) => *reasons.entry(reason.text_without_details()).or_default() += 1,
            }
        }
    }
    let without: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{} without: {reason}", with_digit_groups(*count))).collect();
    let without = if without.is_empty() { String::new() } else { format!("; {}", without.join("; ")) };
    format!(
        "{} of {} questions are shown with frames{without}.",
        with_digit_groups(with),
        with_digit_groups(run.answer_count())
    )
}

/// The data of the script.
fn page_data(run: &EvaluationRun, against: Option<&EvaluationRun>, frames: &FrameStrips) -> Value {
    let (mut answers, mut reasons) = (Vec::new(), Reasons::default());
    let mut benchmarks = Vec::new();
    for (index, benchmark) in run.benchmarks.iter().enumerate() {
        let categories: Vec<&String> = benchmark.report.by_category.keys().collect();
        let others = against.and_then(|against| against.benchmark(&benchmark.task.name));
        let mut paired = others.map(Pairs::new);
        for answer in &benchmark.answers {
            let prediction = &answer.prediction;
            let mut row = Map::new();
            row.insert("b".into(), json!(index));
            let category = prediction.categories.first().and_then(|own| categories.binary_search(&own).ok());
            row.extend(category.map(|category| ("c".to_string(), json!(category))));
            row.insert("line".into(), json!(answer.line));
            row.extend(prediction.id.as_ref().map(|id| ("id".to_string(), json!(id))));
            row.insert("kind".into(), json!(prediction.problem_type.map(|kind| kind.name())));
            row.insert("question".into(), json!(prediction.question));
            row.insert("options".into(), json!(prediction.options));
            row.insert("truth".into(), json!(extract_answer(&prediction.solution)));
            row.extend(prediction.path.as_ref().map(|path| ("path".to_string(), json!(path))));
            match frames.find_strip(&benchmark.task.name, answer.media_key().as_deref()) {
                Ok(strip) => row.insert("strip".into(), json!(strip)),
                Err(reason) => row.insert("reason".into(), json!(reasons.index(reason.text()))),
            };
            let mut runs = vec![answer_data(benchmark, answer)];
            if let (Some(others), Some(paired)) = (others, paired.as_mut()) {
                runs.push(paired.next(answer).map_or(Value::Null, |other| answer_data(others, other)));
            }
            row.insert("runs".into(), json!(runs));
            answers.push(Value::Object(row));
        }
        let (name, title) = (&benchmark.task.name, &benchmark.task.title);
        benchmarks.push(json!({"name": name, "title": title, "categories": categories}));
    }
    let names: Vec<&String> = [Some(run), against].into_iter().flatten().map(|run| &run.name).collect();
    let runs = if against.is_some() { json!(names) } else { json!([""]) };
    json!({
        "benchmarks": benchmarks, "runs": runs, "strips": frames.strips, "reasons": reasons.texts, "answers": answers,
    })
}

/// Texts, each stored once.
#[derive(Default)]
struct Reasons {
    texts: Vec<String>,
    indices: HashMap<String, usize>,
}

impl Reasons {
    fn index(&mut self, text: String) -> usize {
        *self.indices.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.texts.len() - 1
        })
    }
}

/// The answer of a run as JSON.
fn answer_data(benchmark: &BenchmarkAnswers, answer: &AnsweredRow) -> Value {
    let prediction = &answer.prediction;
    let (output, found) = (&prediction.output, prediction.answer(&benchmark.task, benchmark.extraction()));
    let end = (0..=MAX_OUTPUT.min(output.len())).rev().find(|&end| output.is_char_boundary(end)).unwrap_or(0);
    let mut data = Map::new();
    data.insert("output".into(), json!(output[..end]));
    data.extend((end < output.len()).then(|| ("omitted".to_string(), json!(output.len() - end))));
    let is_whole = found == output.trim() && !output.contains("<answer>");
    let found: String = found.chars().take(MAX_ANSWER).collect();
    data.insert("answer".into(), if is_whole { Value::Null } else { json!(found) });
    data.insert("score".into(), rounded(prediction.score(&benchmark.task, benchmark.extraction())));
    data.extend(prediction.is_truncated.then(|| ("cut".to_string(), json!(true))));
    data.extend(prediction.error.as_ref().map(|error| ("error".to_string(), json!(error))));
    data.extend(answer.prompt_tokens.map(|count| ("prompt_tokens".to_string(), json!(count))));
    data.extend(answer.completion_tokens.map(|count| ("tokens".to_string(), json!(count))));
    Value::Object(data)
}

/// A score with at most three digits after the point.
fn rounded(score: f64) -> Value {
    match (score * 1000.0).round() {
        0.0 => json!(0),
        1000.0 => json!(1),
        other => json!(other / 1000.0),
    }
}

#[cfg(test)]
pub(super) fn data_for_test(run: &EvaluationRun, against: Option<&EvaluationRun>) -> Value {
    page_data(run, against, &FrameStrips::default())
}
