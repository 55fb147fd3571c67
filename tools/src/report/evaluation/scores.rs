//! The scores of a run as HTML: a table beside published scores, the reasons why a score cannot be compared with them,
//! and bars by category with 95 % intervals.

use std::fmt::Write;

use reel_eval::{Comparison, Headline};
use serde_json::Value;

use super::answer::better_answer_counts;
use super::{BenchmarkAnswers, EvaluationRun};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

/// The settings of the protocol behind the published scores, each with its name in the settings file and the allowed
/// values.
const PROTOCOL: [(&str, &str, &[f64]); 5] = [
    ("temperature", "--temperature", &[0.01, 0.1]),
    ("top_p", "--top-p", &[0.001]),
    ("top_k", "--top-k", &[0.0]),
    ("repetition_penalty", "--repetition-penalty", &[1.0]),
    ("max_new_tokens", "--max-new-tokens", &[1024.0]),
];

/// The profile with which published scores are measured, and its number of frames.
const PROFILE: (&str, u64) = ("videorft-eval", 32);

/// A number with spaces between groups of three digits.
pub fn with_digit_groups(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Adds the table of scores, the notes about them, the differences of two runs, and the bars.
pub fn add_scores(page: &mut HtmlPage, run: &EvaluationRun, against: Option<&EvaluationRun>, compared: &[Comparison]) {
    page.add("<section aria-labelledby=\"scores\"><h2 id=\"scores\">Scores <small>in percent, with 95 % intervals</small></h2>\n");
    page.add_table(&published_table(run, against));
    let mut notes = String::new();
    for benchmark in &run.benchmarks {
        let title = &benchmark.task.title;
        let own = differences_from_protocol(benchmark);
        let other = against.and_then(|against| against.benchmark(&benchmark.task.name)).map(differences_from_protocol);
        let lines = match other {
            None => vec![(title.clone(), own)],
            Some(other) if other == own => vec![(format!("{title}, both runs"), own)],
            Some(other) => vec![(format!("{title}, run A"), own), (format!("{title}, run B"), other)],
        };
        for (name, found) in lines.iter().filter(|(_, found)| !found.is_empty()) {
            // Writing to a String cannot fail.
            let _ = writeln!(notes, "<li><b>{}</b>: {}.</li>", escape_html(name), escape_html(&found.join("; ")));
        }
    }
    if !notes.is_empty() {
        page.add(&format!(
            "<div class=\"notes\" role=\"note\"><p>† is not comparable with the published figures:</p><ul>{notes}</ul>\
             </div>\n"
        ));
    }
    add_differences(page, run, against, compared);
    page.add("</section>\n<section aria-labelledby=\"categories\"><h2 id=\"categories\">By category</h2>\n<div class=\"boards\">\n");
    for benchmark in &run.benchmarks {
        let other = against.and_then(|against| against.benchmark(&benchmark.task.name));
        page.add(&board_html(benchmark, other, against.is_some()));
    }
    page.add("</div></section>\n");
}

fn percent(score: f64) -> String {
    format!("{:.1}", 100.0 * score)
}

/// A score with its footnote mark, followed by its interval in small type, as HTML.
fn with_interval(score: f64, mark: &str, [low, high]: [f64; 2]) -> String {
    let (score, low, high) = (percent(score), percent(low), percent(high));
    format!("<span><b>{score}</b>{mark} <small class=\"ci\">[{low}, {high}]</small></span>")
}

/// A table with a row for each model and a column for each benchmark, as in papers.
fn published_table(run: &EvaluationRun, against: Option<&EvaluationRun>) -> HtmlTable {
    let titles = run.benchmarks.iter().map(|own| &own.task.title[..]);
    let columns: Vec<&str> = ["model", "source", "frames"].into_iter().chain(titles).collect();
    let mut table = HtmlTable::new(&columns).with_text_columns(2);
    for (letter, own) in [Some(("A", run)), against.map(|against| ("B", against))].into_iter().flatten() {
        let name = match against {
            None => "this run".to_string(),
            Some(_) => format!("{letter}: {}", own.label()),
        };
        let color = if letter == "A" { 0 } else { 1 };
        let frames: Vec<u64> = own.benchmarks.iter().filter_map(frames).collect();
        let frames = frames.first().filter(|first| frames.iter().all(|other| other == *first)).map(u64::to_string);
        let mut cells = vec![
            format!("<i class=\"key\" style=\"background:var(--c{color})\"></i><b>{}</b>", escape_html(&name)),
            "measured".into(),
            frames.unwrap_or_default(),
        ];
        cells.extend(run.benchmarks.iter().map(|of| match own.benchmark(&of.task.name) {
            None => String::new(),
            Some(of) => {
                let mark = if differences_from_protocol(of).is_empty() { "" } else { "<sup>†</sup>" };
                with_interval(of.report.headline.score, mark, of.report.headline.ci95)
            }
        }));
        table.add_row_with_attributes(" class=\"own\"", cells);
    }
    for (model, frames, sources) in published_models(run) {
        let score = |of: &BenchmarkAnswers| {
            let own = of.task.published.iter().find(|own| (&own.model[..], own.frames) == (model, frames));
            own.map_or(String::new(), |own| format!("{:.1}", own.score))
        };
        let mut cells = vec![escape_html(model), escape_html(&sources.join("; ")), frames.to_string()];
        cells.extend(run.benchmarks.iter().map(score));
        table.add_row(cells);
    }
    table
}

/// The models with published scores in the run's benchmarks, each with its number of frames and the sources of its
/// scores.
fn published_models(run: &EvaluationRun) -> Vec<(&str, u32, Vec<&str>)> {
    let mut models: Vec<(&str, u32, Vec<&str>)> = Vec::new();
    for own in run.benchmarks.iter().flat_map(|own| &own.task.published) {
        let known = models.iter_mut().find(|(model, frames, _)| (*model, *frames) == (&own.model[..], own.frames));
        match known {
            Some((_, _, sources)) if sources.contains(&&own.source[..]) => {}
            Some((_, _, sources)) => sources.push(&own.source),
            None => models.push((&own.model, own.frames, vec![&own.source])),
        }
    }
    models
}

/// The number of frames of each video, if the run's settings fix this number.
fn frames(benchmark: &BenchmarkAnswers) -> Option<u64> {
    let options = &benchmark.settings["options"];
    if options["text_only"] == true {
        return Some(0);
    }
    let of_profile = (options["fps"].is_null() && options["profile"] == PROFILE.0).then_some(PROFILE.1);
    options["nframes"].as_u64().or(of_profile)
}

/// The differences from the protocol of the published scores, in words; empty if the score can be compared with
/// published scores.
fn differences_from_protocol(benchmark: &BenchmarkAnswers) -> Vec<String> {
    let BenchmarkAnswers { task, report, settings, .. } = benchmark;
    let options = &settings["options"];
    let mut found = Vec::new();
    if let Some(rows) = task.rows.filter(|&rows| rows != report.n) {
        let limit = options["limit"].as_u64().map_or(String::new(), |limit| format!(" (--limit {limit})"));
        found.push(format!("{} of {} questions{limit}", with_digit_groups(report.n), with_digit_groups(rows)));
    } else if let Some(limit) = options["limit"].as_u64() {
        found.push(format!("only the first {limit} questions (--limit)"));
    }
    if options["text_only"] == true {
        found.push("asked without the videos (--text-only)".into());
    }
    if options["subtitles"] == true {
        found.push("asked with the videos' subtitles (--subtitles)".into());
    }
    if let Some(shard) = options["shard"].as_str() {
        found.push(format!("only part {shard} of the questions (--shard)"));
    }
    for (reason, count) in options["data_files"]["left_out"].as_object().into_iter().flatten() {
        // Only these two reasons differ from the protocol. All other rows, such as open-ended questions, are left out
        // by the rules of the benchmark.
        if ["video is missing", "bad row"].contains(&&reason[..]) {
            found.push(format!("{count} rows left out ({reason})"));
        }
    }
    if report.errors > 0 {
        let rows = if report.errors == 1 { "row has" } else { "rows have" };
        found.push(format!("{} {rows} an error instead of an answer and score 0", with_digit_groups(report.errors)));
    }
    if options["text_only"] != true {
        let own = options["profile"].as_str().unwrap_or("unknown");
        if own != PROFILE.0 {
            found.push(format!("frames and pixels of the profile {own} instead of {}", PROFILE.0));
        }
        if let Some(frames) = options["nframes"].as_u64().filter(|&frames| frames != PROFILE.1) {
            found.push(format!("{frames} frames instead of {}", PROFILE.1));
        }
        for name in ["fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"] {
            if let Some(value) = options.get(name).filter(|value| !value.is_null()) {
                found.push(format!("--{} {value}", name.replace('_', "-")));
            }
        }
        let shows_parts = |part: &Value| part.get("video_start").is_some() || part.get("video_end").is_some();
        if benchmark.answers.iter().flat_map(|answer| &answer.media).any(shows_parts) {
            found.push("only the part of a video that the question is about (--clips)".into());
        }
    }
    for (name, option, usual) in PROTOCOL {
        if let Some(value) = options[name].as_f64().filter(|value| !usual.contains(value)) {
            found.push(format!("{option} {value}"));
        }
    }
    if let Some(format) = options["quantize"].as_str() {
        found.push(format!("weights quantised to {format}"));
    }
    if report.extraction != reel_eval::Extraction::Tags {
        found.push(format!("answers extracted by the rule {}", report.extraction.name()));
    }
    found
}

/// Adds the paired differences of the scores of two runs.
fn add_differences(page: &mut HtmlPage, run: &EvaluationRun, against: Option<&EvaluationRun>, compared: &[Comparison]) {
    if compared.is_empty() {
        return;
    }
    page.add("<h3>B minus A <small>percentage points over the questions of both runs, paired</small></h3>\n");
    let columns = ["benchmark", "questions", "A", "B", "B − A", "95 % interval", "A better", "B better", "p"];
    let mut table = HtmlTable::new(&columns);
    for one in compared {
        let Some(own) = run.benchmark(&one.benchmark) else { continue };
        let other = against.and_then(|against| against.benchmark(&one.benchmark));
        let better = other.map_or([0; 2], |other| better_answer_counts(own, other));
        let [low, high] = one.score.ci95.map(|x| 100.0 * x);
        table.add_row(vec![
            escape_html(&own.task.title),
            with_digit_groups(one.n),
            percent(one.score.a),
            percent(one.score.b),
            format!("<b>{:+.1}</b>", 100.0 * one.score.difference),
            format!("[{low:+.1}, {high:+.1}]"),
            link(&one.benchmark, "runs=a", &with_digit_groups(better[0])),
            link(&one.benchmark, "runs=b", &with_digit_groups(better[1])),
            format!("{:.4}", one.mcnemar_p),
        ]);
    }
    page.add_table(&table);
    let [only_a, only_b] =
        [compared.iter().map(|one| one.only_in_a).sum(), compared.iter().map(|one| one.only_in_b).sum()];
    let more: usize = only_a + only_b;
    let alone = match more {
        0 => String::new(),
        _ => format!(
            " {} questions are only in A and {} only in B.",
            with_digit_groups(only_a),
            with_digit_groups(only_b)
        ),
    };
    page.add(&format!(
        "<p class=\"note\">p: McNemar's exact test of the questions that one run alone has right, without those that are scored by their \
         relative error.{alone}</p>\n"
    ));
}

/// A link to the answers of a benchmark, filtered by `filter`. The link shows `text`.
fn link(benchmark: &str, filter: &str, text: &str) -> String {
    let mark = if filter.is_empty() { "" } else { "&amp;" };
    format!("<a href=\"#b={}{mark}{filter}\">{}</a>", encoded(benchmark), escape_html(text))
}

/// Encodes text for use in the query of a URL.
fn encoded(text: &str) -> String {
    let mut made = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => made.push(byte as char),
            // Writing to a String cannot fail.
            _ => drop(write!(made, "%{byte:02X}")),
        }
    }
    made
}

/// How the headline figure of a benchmark is computed, in words.
fn metric_name(metric: Headline) -> &'static str {
    match metric {
        Headline::Overall => "mean over questions",
        Headline::TaskMean => "mean over tasks",
        Headline::MeanOfAccuracyAndMra => "mean of accuracy and mean relative accuracy",
    }
}

/// The bars of a benchmark: the run's own score, the published scores, and the score of each category.
fn board_html(benchmark: &BenchmarkAnswers, other: Option<&BenchmarkAnswers>, is_comparison: bool) -> String {
    let BenchmarkAnswers { task, report, .. } = benchmark;
    let mut facts =
        vec![format!("{} questions", with_digit_groups(report.n)), metric_name(report.headline.metric).to_string()];
    let filtered = |count: usize, filter: &str, words: &str| {
        (count > 0).then(|| link(&task.name, filter, &format!("{} {words}", with_digit_groups(count))))
    };
    facts.extend(filtered(report.truncated, "show=cut", "truncated at the maximum number of tokens"));
    facts.extend(filtered(report.errors, "show=error", "with an error"));
    if report.unusable_solutions > 0 {
        facts.push(format!(
            "{} reference solutions that cannot be compared with an answer",
            with_digit_groups(report.unusable_solutions)
        ));
    }
    for (reason, count) in benchmark.settings["options"]["data_files"]["left_out"].as_object().into_iter().flatten() {
        facts.push(format!("{} left out: {}", escape_html(&count.to_string()), escape_html(reason)));
    }
    let mut rows = String::new();
    let names = if is_comparison { ["A", "B"] } else { ["this run", ""] };
    for (i, own) in [Some(benchmark), other].into_iter().flatten().enumerate() {
        let (score, interval) = (own.report.headline.score, own.report.headline.ci95);
        rows += &bar_html(names[i], &format!("own c{i}"), score, Some(interval), &with_digit_groups(own.report.n));
    }
    for published in &task.published {
        rows += &bar_html(&escape_html(&published.model), "published", published.score / 100.0, None, "published");
    }
    if !report.by_category.is_empty() {
        rows += "<span class=\"rule\"></span>";
    }
    for (name, part) in &report.by_category {
        let label = link(&task.name, &format!("c={}", encoded(name)), name);
        rows += &bar_html(&label, "c0", part.score, Some(part.ci95), &with_digit_groups(part.n));
        if let Some(other) = other {
            match other.report.by_category.get(name) {
                Some(part) => rows += &bar_html("", "c1", part.score, Some(part.ci95), &with_digit_groups(part.n)),
                None => rows += &bar_html("", "c1", 0.0, None, "not in B"),
            }
        }
    }
    format!(
        "<article class=\"board\"><h3>{}</h3><p class=\"note\">{}</p><div class=\"scorebars\">{rows}</div></article>\n",
        link(&task.name, "", &task.title),
        facts.join(" · "),
    )
}

/// A bar with the interval as a whisker. `label` is HTML; `class` is the CSS class that sets the color.
fn bar_html(label: &str, class: &str, score: f64, interval: Option<[f64; 2]>, count: &str) -> String {
    let at = |share: f64| 100.0 * share.clamp(0.0, 1.0);
    let (whisker, range) = match interval {
        None => (String::new(), String::new()),
        Some([low, high]) => (
            format!("<u style=\"left:{:.2}%;width:{:.2}%\"></u>", at(low), at(high) - at(low)),
            format!("[{}, {}]", percent(low), percent(high)),
        ),
    };
    format!(
        "<span class=\"label\">{label}</span><span class=\"track {class}\" aria-hidden=\"true\">\
         <i style=\"width:{:.2}%\"></i>{whisker}</span><b>{}</b><small class=\"range\">{range}</small>\
         <small class=\"count\">{count}</small>\n",
        at(score),
        percent(score),
    )
}
