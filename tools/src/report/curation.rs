//! The page of `reel curate`: the funnel, what was rejected and why, stages with their cost, lengths of chains,
//! sources, and samples. Its bars are HTML, so the page needs no script.

use std::fmt::Write;

use crate::curate::{CurationSummary, FinishedRow, RejectionReason, RowOutcome, StageName};
use reel_samples::inspect::Distribution;

use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

/// Number of bars of a histogram.
const BINS: usize = 20;

/// Maximum number of samples of kept rows (`KEPT_SAMPLES`) and of rejected rows for each reason (`REASON_SAMPLES`).
const KEPT_SAMPLES: usize = 10;
const REASON_SAMPLES: usize = 3;

/// Maximum number of characters of each text of a sample.
const MAX_SAMPLE_CHARS: usize = 3000;

const STYLE: &str = "
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 2px 10px; margin: 12px 0 0; \
font-size: 12px; align-items: center; }
.bars i { display: block; height: 12px; min-width: 1px; background: var(--c0); border-radius: 2px; }
.bars span { color: var(--dim); font-variant-numeric: tabular-nums; text-align: right; }
details { margin: 6px 0; }
summary { overflow-wrap: anywhere; }
details p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0 4px 14px; }
";

/// The page about the curation in a folder named `title`. `rows` are the curation's rows in the order of the list.
pub fn curation_page_html(title: &str, summary: &CurationSummary, rows: &[FinishedRow]) -> String {
    let mut page = HtmlPage::new(&format!("Curation in {title}")).with_style(STYLE);
    let CurationSummary { rows: all, kept, rejected, failed, cost, .. } = summary;
    let cost = match *cost > 0.0 {
        true => format!(" All requests together have cost at most ${cost:.4}."),
        false => String::new(),
    };
    page.add(&format!(
        "<p>Of {all} rows, {kept} are in the data set, {rejected} were rejected, and {failed} have no accepted answer.{cost}</p>\n\
         <h2>Funnel</h2>\n"
    ));
    page.add(&bars_html(&funnel(summary, rows), *all));
    if !summary.reasons.is_empty() {
        page.add("<h2>Rejected rows by reason</h2>\n");
        let bars: Vec<_> = summary.reasons.iter().map(|(reason, count)| (reason.name().to_string(), *count)).collect();
        page.add(&bars_html(&bars, *rejected));
    }
    add_stages(&mut page, summary);
    for (name, counts) in [("source", &summary.sources), ("problem type", &summary.problem_types)] {
        page.add(&format!("<h2>Rows by {name}</h2>\n"));
        let mut table = HtmlTable::new(&[name, "rows", "kept", "kept share"]);
        for (value, (all, kept)) in counts {
            let share = format!("{:.1} %", 100.0 * *kept as f64 / (*all).max(1) as f64);
            table.add_row(vec![escape_html(value), all.to_string(), kept.to_string(), share]);
        }
        page.add_table(&table);
    }
    let is_kept = |row: &&FinishedRow| row.outcome == RowOutcome::Kept;
    let words = |row: &FinishedRow| row.measured.as_ref().map(|measured| measured.words as f64);
    if let Some(lengths) = Distribution::new(rows.iter().filter(is_kept).filter_map(words)) {
        page.add("<h2>Length of kept chains of thought <small>words</small></h2>\n");
        page.add(&counts_histogram_html(&lengths));
    }
    let similarity = |row: &FinishedRow| Some(f64::from(row.measured.as_ref()?.similarity?));
    if let Some(values) = Distribution::new(rows.iter().filter_map(similarity)) {
        page.add("<h2>Similarity of free-form chains of thought with their frames</h2>\n");
        page.add(&histogram_html(&values));
    }
    add_samples(&mut page, rows);
    page.into_html()
}

/// The steps of the curation, each with the number of rows that are left after it.
fn funnel(summary: &CurationSummary, rows: &[FinishedRow]) -> Vec<(String, usize)> {
    let is_usable = |row: &&FinishedRow| {
        !matches!(row.outcome, RowOutcome::Rejected(RejectionReason::UnusableRow | RejectionReason::DuplicateRow, _))
    };
    let stages: Vec<StageName> = summary.stages.iter().map(|stage| stage.stage).collect();
    let usable: Vec<&FinishedRow> = rows.iter().filter(is_usable).collect();
    let mut bars = vec![("list".to_string(), rows.len()), ("usable, different".to_string(), usable.len())];
    for stage in stages {
        // A row that failed in a stage has passed all earlier stages.
        let left =
            usable.iter().filter(|row| !matches!(row.outcome, RowOutcome::Failed(Some(at), _) if at <= stage)).count();
        bars.push((stage.name().to_string(), left));
    }
    bars.push(("filters".into(), summary.kept));
    bars
}

fn add_stages(page: &mut HtmlPage, summary: &CurationSummary) {
    page.add("<h2>Stages</h2>\n");
    let columns = [
        "stage",
        "model",
        "prompt",
        "answered",
        "failed",
        "not asked",
        "requests",
        "tokens in",
        "tokens out",
        "$",
        "s",
    ];
    let mut table = HtmlTable::new(&columns).with_text_columns(3);
    for stage in &summary.stages {
        table.add_row(vec![
            stage.stage.name().into(),
            escape_html(&stage.models.join(", ")),
            escape_html(&stage.prompts.join(", ")),
            stage.ok.to_string(),
            stage.failed.to_string(),
            stage.open.to_string(),
            stage.attempts.to_string(),
            stage.prompt_tokens.to_string(),
            stage.completion_tokens.to_string(),
            format!("{:.4}", stage.cost),
            format!("{:.1}", stage.seconds),
        ]);
    }
    page.add_table(&table);
}

fn add_samples(page: &mut HtmlPage, rows: &[FinishedRow]) {
    page.add("<h2>Samples of kept rows</h2>\n");
    let kept: Vec<&FinishedRow> = rows.iter().filter(|row| row.outcome == RowOutcome::Kept).collect();
    spread(&kept, KEPT_SAMPLES).for_each(|row| page.add(&sample_html(row, "")));
    page.add("<h2>Samples of other rows</h2>\n");
    let mut reasons: Vec<(String, Vec<&FinishedRow>)> = Vec::new();
    for row in rows {
        let reason = match &row.outcome {
            RowOutcome::Kept => continue,
            RowOutcome::Rejected(reason, _) => reason.name().to_string(),
            RowOutcome::Failed(stage, _) => format!("failed: {}", stage.map_or("similarity", StageName::name)),
        };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, of_reason)) => of_reason.push(row),
            None => reasons.push((reason, vec![row])),
        }
    }
    for (reason, of_reason) in &reasons {
        spread(of_reason, REASON_SAMPLES).for_each(|row| page.add(&sample_html(row, reason)));
    }
}

/// At most `count` items, evenly spaced.
fn spread<'r>(rows: &'r [&'r FinishedRow], count: usize) -> impl Iterator<Item = &'r FinishedRow> {
    let taken = count.min(rows.len());
    (0..taken).map(move |i| rows[i * rows.len() / taken])
}

fn sample_html(row: &FinishedRow, reason: &str) -> String {
    let cut = |text: &str| {
        let short: String = text.chars().take(MAX_SAMPLE_CHARS).collect();
        let more = if short.len() < text.len() { " …" } else { "" };
        escape_html(&short) + more
    };
    let reason = if reason.is_empty() { String::new() } else { format!("<b>{}</b> ", escape_html(reason)) };
    // The first line of the question. The options may follow on further lines.
    let question = escape_html(row.question.lines().next().unwrap_or_default());
    let location = escape_html(&row.location);
    let mut html = format!("<details><summary>{reason}{location} <small>{question}</small></summary>\n");
    let detail = match &row.outcome {
        RowOutcome::Kept => "",
        RowOutcome::Rejected(_, what) | RowOutcome::Failed(_, what) => what,
    };
    let (thought, answer) = row.chain.as_ref().map_or(("", ""), |chain| (&*chain.thought, &*chain.answer));
    for (name, text) in [("Reason", detail), ("Question", &*row.question), ("Chain", thought), ("Answer", answer)] {
        if !text.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(html, "<p><b>{name}.</b> {}</p>", cut(text));
        }
    }
    html + "</details>\n"
}

/// A histogram of whole numbers with at most [`BINS`] bars. Each bar counts the same number of consecutive numbers.
fn counts_histogram_html(distribution: &Distribution) -> String {
    let (min, max) = (distribution.min as usize, distribution.max as usize);
    let width = (max - min + 1).div_ceil(BINS);
    let mut bars: Vec<(String, usize)> = (min..=max)
        .step_by(width)
        .map(|from| match width {
            1 => (from.to_string(), 0),
            _ => (format!("{from} – {}", from + width - 1), 0),
        })
        .collect();
    distribution.values.iter().for_each(|value| bars[(*value as usize - min) / width].1 += 1);
    let most = bars.iter().map(|bar| bar.1).max().unwrap_or(1);
    bars_html(&bars, most)
}

fn histogram_html(distribution: &Distribution) -> String {
    let bins = distribution.histogram(BINS);
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1);
    let label =
        |from: f64, to: f64| if from == to { number(from) } else { format!("{} – {}", number(from), number(to)) };
    bars_html(&bins.into_iter().map(|(from, to, count)| (label(from, to), count)).collect::<Vec<_>>(), most)
}

/// Horizontal bars, each with its text on the left and its count on the right. A bar with the count `most` has the
/// full width.
fn bars_html(bars: &[(String, usize)], most: usize) -> String {
    let mut html = String::from("<div class=\"bars\">\n");
    for (text, count) in bars {
        let width = 100.0 * *count as f64 / most.max(1) as f64;
        let bar = if *count == 0 { String::new() } else { format!("<i style=\"width:{width:.1}%\"></i>") };
        // Writing to a string cannot fail.
        let _ = writeln!(html, "<span>{}</span><div>{bar}</div><span>{count}</span>", escape_html(text));
    }
    html + "</div>\n"
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 { format!("{value}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use crate::curate::{ChainMeasurements, ReasoningChain, StageSummary};

    use super::*;

    fn row(location: &str, outcome: RowOutcome) -> FinishedRow {
        FinishedRow {
            location: location.into(),
            question: "Which <script>?".into(),
            outcome,
            chain: Some(ReasoningChain { thought: "I see </details> a ball.".into(), answer: "B".into() }),
            measured: Some(ChainMeasurements { accuracy: 1.0, similarity: Some(0.25), words: 12 }),
            source: "a&b".into(),
            problem_type: "free-form".into(),
        }
    }

    #[test]
    fn page_has_funnel_reasons_and_samples_and_escapes_texts() {
        let rows = [
            row("list:1", RowOutcome::Kept),
            row("list:2", RowOutcome::Rejected(RejectionReason::Accuracy, "wrong".into())),
            row("list:3", RowOutcome::Failed(Some(StageName::Reason), "http://host: status 500".into())),
            row("list:4", RowOutcome::Rejected(RejectionReason::DuplicateRow, "of list:1".into())),
        ];
        let stage = |stage| StageSummary {
            stage,
            keys: 3,
            ok: 2,
            failed: 1,
            open: 0,
            attempts: 5,
            prompt_tokens: 7,
            completion_tokens: 9,
            cost: 0.5,
            seconds: 1.0,
            models: vec!["<model>".into()],
            prompts: vec!["reason-1-00".into()],
        };
        let summary = CurationSummary {
            rows: 4,
            kept: 1,
            rejected: 2,
            failed: 1,
            cost: 1.5,
            stages: vec![stage(StageName::Caption), stage(StageName::Reason)],
            reasons: [(RejectionReason::Accuracy, 1), (RejectionReason::DuplicateRow, 1)].into(),
            sources: [("a&b".to_string(), (4, 1))].into(),
            problem_types: [("free-form".to_string(), (4, 1))].into(),
        };
        let html = curation_page_html("o<u>t", &summary, &rows);
        assert!(html.contains("o&lt;u&gt;t") && html.contains("&lt;model&gt;") && !html.contains("<script"));
        for part in ["Which &lt;script&gt;?", "I see &lt;/details&gt; a ball.", "a&amp;b", "25.0 %"] {
            assert!(html.contains(part), "{part}: {html}");
        }
        // The 40 lengths from 3 to 42 words are drawn as 20 bars of two lengths each. A few distinct lengths get one
        // bar each.
        let lengths = |values: &[f64]| counts_histogram_html(&Distribution::new(values.iter().copied()).unwrap());
        let wide = lengths(&[3.0, 4.0, 42.0]);
        assert!(wide.contains("<span>3 – 4</span><div><i style=\"width:100.0%\"></i></div><span>2</span>"), "{wide}");
        assert!(wide.matches("<div>").count() == 20 && wide.contains("<span>5 – 6</span><div></div><span>0</span>"));
        assert_eq!(lengths(&[7.0, 9.0]).matches("<div>").count(), 3);
        let bars: Vec<(String, usize)> = funnel(&summary, &rows);
        let counts: Vec<usize> = bars.iter().map(|bar| bar.1).collect();
        assert_eq!(counts, [4, 3, 3, 2, 1]);
        assert_eq!(html.matches("<details>").count(), 4);
    }
}
