//! The HTML pages of `reel demo`: a page with all results of one seed, and an overview of several seeds.

use std::fmt::Write;
use std::io::Cursor;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde_json::Value;

use reel_report::chart::{Chart, LineSeries, XAxis, YRange};
use reel_report::escape::escape_html;
use reel_report::html::HtmlPage;
use reel_report::table::HtmlTable;

use crate::Result;
use crate::clips::{CLIP_FRAMES, CLIP_SIDE, ClipTask, GREY_CLIP_COUNT};
use crate::evaluation::{AnswerTally, EvaluationAnswers, difference_in_standard_errors};
use crate::pipeline::{CURATION_PAGE, DemoOutcome, EVALUATION_PAGE, GRPO_PAGE, SHOWN_CLIP_COUNT, TRAINING_STAGES};

const STYLE: &str = include_str!("page.css");
/// A row of the table of results.
pub struct ResultRow {
    /// The row's label: a task, `motion, frames shuffled`, or `all`.
    pub name: &'static str,
    /// Correct answers before training, after SFT and after GRPO.
    pub tallies: [AnswerTally; 3],
    /// The accuracy of random guesses, if the table shows it.
    guess: Option<f64>,
}

/// The result table of a demo: one row for each task, one row for motion clips with shuffled frames, and one row for
/// all clips.
pub fn result_rows(outcome: &DemoOutcome) -> Vec<ResultRow> {
    let guess = |task: ClipTask| 1.0 / task.answer_count() as f64;
    let row = |name, task: Option<ClipTask>| ResultRow {
        name,
        tallies: outcome.answers.each_ref().map(|s| s.tally(&outcome.clips, task)),
        guess: task.map(guess),
    };
    let mut rows: Vec<ResultRow> = ClipTask::ALL.iter().map(|task| row(task.name(), Some(*task))).collect();
    let shuffled = outcome.answers.each_ref().map(EvaluationAnswers::shuffled_tally);
    rows.insert(
        1,
        ResultRow { name: "motion, frames shuffled", tallies: shuffled, guess: Some(guess(ClipTask::Motion)) },
    );
    rows.push(row("all", None));
    rows
}

/// The page of one seed. `machine` is a line of text about the machine, for the footer.
///
/// # Errors
/// A frame cannot be encoded as PNG.
pub fn demo_page(outcome: &DemoOutcome, machine: &str) -> Result<String> {
    let mut page = begin(
        "A tiny Qwen2.5-VL with random weights learned to answer questions about video clips with a chain of thought: first by supervised \
         fine-tuning on a curated data set, then from rewards. Everything ran on this machine.",
    );
    add_figures(&mut page, outcome);
    add_results(&mut page, outcome);
    add_curation(&mut page, outcome);
    for ((stage, took), steps) in TRAINING_STAGES.iter().zip(&outcome.took).zip(&outcome.steps) {
        page.add(&format!(
            "<h2>{}</h2><p>{} {} steps in {}.</p>\n",
            stage.title,
            stage.about,
            steps.len(),
            duration_text(*took)
        ));
        let curves = stage.curves.iter().filter_map(|(name, caption, log)| {
            let value = |(n, line): (u64, &Value)| Some((n, line.get(*name)?.as_f64()?));
            let points: Vec<(u64, f64)> = (1..).zip(steps).filter_map(value).collect();
            let series = vec![LineSeries::new("", points)];
            let range = if *log { YRange::Log } else { YRange::Robust };
            let has_values = !series[0].points.is_empty();
            has_values.then(|| Chart::Lines { name: caption.to_string(), x: XAxis::Steps, unit: "", series, range })
        });
        curves.for_each(|chart| page.add_chart(&chart));
    }
    page.add(&format!(
        "<p><a href=\"{GRPO_PAGE}\">Completions that {} sampled over time</a>, with frames and rewards.</p>\n",
        outcome.second_stage_name()
    ));
    page.add(&gallery_html(outcome)?);
    let commands = outcome.commands.iter().map(|c| escape_html(c)).collect::<Vec<_>>().join("\n");
    page.add(&format!(
        "<h2>The same as single commands</h2><p>Curation finds all answers in its tables and asks no model again.</p>\
         <pre class=\"commands\">{commands}</pre>\n"
    ));
    Ok(end(page, &format!("{machine}, seed {}", outcome.seed)))
}

/// The HTML overview of several seeds; the page of each seed is `seed-N/report.html`.
pub fn overview_page(outcomes: &[DemoOutcome], machine: &str) -> String {
    let mut page = begin("The same training with a different seed each time: weights, clips and sampling differ.");
    let second = outcomes.first().map_or("T-GRPO", DemoOutcome::second_stage_name);
    let (after, gain) = (format!("After {second}"), format!("Gain by {second}, in standard errors"));
    let columns = ["Held-out clips", "Seed", "Before", "After SFT", &after, "Gain by SFT, in standard errors", &gain];
    let mut table = HtmlTable::new(&columns);
    for outcome in outcomes {
        for row in result_rows(outcome) {
            let [a, b, c] = row.tallies;
            table.add_row_with_attributes(
                sum_class(&row),
                vec![
                    row.name.to_string(),
                    format!("<a href=\"seed-{seed}/report.html\">{seed}</a>", seed = outcome.seed),
                    share(a),
                    share(b),
                    share(c),
                    format!("{:+.1}", difference_in_standard_errors(a, b)),
                    format!("{:+.1}", difference_in_standard_errors(b, c)),
                ],
            );
        }
    }
    page.add_table(&table);
    end(page, machine)
}

fn begin(about: &str) -> HtmlPage {
    let mut page = HtmlPage::new("reel demo").with_style(STYLE);
    page.add(&format!("<p>{about}</p>\n"));
    page
}

fn end(mut page: HtmlPage, machine: &str) -> String {
    page.add(&format!("<footer>{}</footer>\n", escape_html(machine)));
    page.into_html()
}

fn share(t: AnswerTally) -> String {
    format!("{:.1} %", 100.0 * t.accuracy())
}

/// The HTML attribute of the table row for all clips together; empty for the other rows.
fn sum_class(row: &ResultRow) -> &'static str {
    if row.name == "all" { " class=\"sum\"" } else { "" }
}

fn add_figures(page: &mut HtmlPage, outcome: &DemoOutcome) {
    let all = outcome.answers.each_ref().map(|s| s.tally(&outcome.clips, None));
    let after = format!("after {}", outcome.second_stage_name());
    let figures: [(&str, String); 8] = [
        ("correct before", share(all[0])),
        ("after SFT", share(all[1])),
        (&after, share(all[2])),
        ("held-out clips", all[2].total.to_string()),
        ("parameters", format!("{:.2} M", outcome.parameters as f64 / 1e6)),
        ("SFT", duration_text(outcome.took[0])),
        (outcome.second_stage_name(), duration_text(outcome.took[1])),
        ("all", duration_text(outcome.all)),
    ];
    page.add("<dl class=\"figures\">");
    for (name, value) in figures {
        page.add(&format!("<div><dt>{name}</dt><dd>{}</dd></div>", escape_html(&value)));
    }
    page.add("</dl>\n");
}

fn add_results(page: &mut HtmlPage, outcome: &DemoOutcome) {
    let second = outcome.second_stage_name();
    let after = format!("After {second}");
    let mut table = HtmlTable::new(&["Task", "Before", "After SFT", &after, ""]);
    for row in result_rows(outcome) {
        let [a, b, c] = row.tallies;
        let mark =
            row.guess.map_or(String::new(), |g| format!("<i style=\"left:{:.1}%\" title=\"guessing\"></i>", 100.0 * g));
        let bar = format!(
            "<div class=\"accuracy\"><b style=\"width:{:.1}%\"></b><u style=\"width:{:.1}%\"></u>{mark}</div>",
            100.0 * c.accuracy(),
            100.0 * b.accuracy(),
        );
        table.add_row_with_attributes(sum_class(&row), vec![row.name.to_string(), share(a), share(b), share(c), bar]);
    }
    page.add(
        "<h2>Held-out clips answered correctly</h2><p>The clips are small benchmarks in the forms in which MVBench (motion, colors) and \
         VSI-Bench (count) are published, and <code>reel eval</code> asked and scored them.</p>\n",
    );
    page.add_table(&table);
    page.add(&format!(
        "<p>Bars: accuracy after {second}; line below the bar: after SFT; mark: random guesses. From SFT to {second} the \
         accuracy on all clips rose by {:.1} standard errors of the difference. In four of five motion clips for SFT and for evaluation the color \
         of the shape tells the direction, so that a single frame suffices. The clips for {second} have no such hint: answers that ignore the order \
         of frames earn less there.</p>\n",
        difference_in_standard_errors(
            outcome.answers[1].tally(&outcome.clips, None),
            outcome.answers[2].tally(&outcome.clips, None)
        ),
    ));
}

fn add_curation(page: &mut HtmlPage, outcome: &DemoOutcome) {
    let summary = &outcome.curation;
    let attempts: u64 = summary.stages.iter().map(|stage| stage.attempts).sum();
    let answers: usize = summary.stages.iter().map(|stage| stage.ok).sum();
    page.add(&format!(
        "<h2>Data set for SFT</h2><p>No large model was asked. Behind an HTTP endpoint on this machine a stand-in answers the requests of \
         <code>reel curate</code>: it finds plain shapes in the frames by thresholds, describes their color and place, and reasons from the \
         description by fixed rules. It does not know the answers. About {GREY_CLIP_COUNT} clips with grey shapes it answers badly on purpose, and \
         three of its first replies fail: one is refused for a second, one is cut, one lacks its answer. {answers} answers took {attempts} \
         requests; {} of {} chains of thought were kept.</p>\n",
        summary.kept, summary.rows
    ));
    let mut table = HtmlTable::new(&["Rejected for", "Rows"]);
    summary.reasons.iter().for_each(|(reason, count)| table.add_row(vec![reason.name().into(), count.to_string()]));
    page.add_table(&table);
    page.add(&format!("<p><a href=\"{CURATION_PAGE}\">The curation</a>: funnel, stages, lengths and samples.</p>\n"));
}

fn gallery_html(outcome: &DemoOutcome) -> Result<String> {
    let mut page = format!(
        "<h2>Questions and answers</h2><p>The first {SHOWN_CLIP_COUNT} held-out clips with their frames in order. \
         <a href=\"{EVALUATION_PAGE}\">The page of the evaluation</a> has all answers after SFT and after {}, with filters.</p>\n",
        outcome.second_stage_name()
    );
    // Writing to a String cannot fail.
    let [before, sft, grpo] = &outcome.answers;
    let answers = before.ordered.iter().zip(&sft.ordered).zip(&grpo.ordered);
    for (clip, ((before, sft), grpo)) in outcome.clips.iter().zip(answers).take(SHOWN_CLIP_COUNT) {
        let (class, verdict) = if grpo.is_correct { ("right", "correct") } else { ("wrong", "wrong") };
        let _ = write!(page, "<article class=\"{class}\"><div class=\"frames\">");
        for frame in clip.frames.chunks_exact(CLIP_SIDE * CLIP_SIDE * 3).take(CLIP_FRAMES) {
            let _ = write!(
                page,
                "<img alt=\"\" src=\"data:image/png;base64,{}\">",
                STANDARD.encode(png(&downscale(frame))?)
            );
        }
        let _ = writeln!(
            page,
            "</div><h3>{}</h3><dl><dt>answer</dt><dd>{} <span>{verdict}</span></dd><dt>target</dt><dd>{}</dd><dt>SFT</dt><dd class=\"dim\">{}</dd>\
             <dt>before</dt><dd class=\"dim\">{}</dd></dl></article>",
            clip.task.question(),
            escape_html(&grpo.output),
            escape_html(&clip.completion()),
            escape_html(&sft.output),
            escape_html(&shorten(&before.output)),
        );
    }
    Ok(page)
}

/// A duration as text, such as `42 s` or `3 min 20 s`.
pub fn duration_text(d: Duration) -> String {
    let s = d.as_secs_f64().round() as u64;
    if s < 100 { format!("{s} s") } else { format!("{} min {} s", s / 60, s % 60) }
}

/// The first 80 characters of a text.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The page shows frames at their width and height divided by this number.
const DOWNSCALE: usize = 2;

/// A frame at half its size, u8 RGB `[CLIP_SIDE/2, CLIP_SIDE/2, 3]`: each pixel is the mean of 2 x 2 pixels.
fn downscale(frame: &[u8]) -> Vec<u8> {
    let side = CLIP_SIDE / DOWNSCALE;
    let at = |y: usize, x: usize, c: usize| u32::from(frame[(y * CLIP_SIDE + x) * 3 + c]);
    (0..side * side)
        .flat_map(|i| {
            let (y, x) = (DOWNSCALE * (i / side), DOWNSCALE * (i % side));
            [0, 1, 2].map(|c| ((at(y, x, c) + at(y, x + 1, c) + at(y + 1, x, c) + at(y + 1, x + 1, c) + 2) / 4) as u8)
        })
        .collect()
}

fn png(pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let side = (CLIP_SIDE / DOWNSCALE) as u32;
    PngEncoder::new(&mut bytes).write_image(pixels, side, side, ExtendedColorType::Rgb8)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clips::{self, Clip, ClipSet};
    use crate::evaluation::ClipAnswer;
    use reel_curate::{CurationSummary, RejectionReason};
    use serde_json::json;

    fn outcome(seed: u64) -> DemoOutcome {
        let clips = clips::make_clips(ClipSet::HeldOut, 6, 3);
        let answer = |output: &str, is_correct| ClipAnswer { output: output.into(), is_correct };
        let wrong = |output: &str, count| vec![answer(output, false); count];
        let noise = EvaluationAnswers { ordered: wrong("<b>noise & more", 6), shuffled: wrong("", 3) };
        let ordered = clips.iter().map(|clip: &Clip| answer(&clip.completion(), true)).collect();
        let mut right = EvaluationAnswers { ordered, shuffled: wrong("no", 3) };
        right.shuffled[1] = answer(&clips[2].completion(), true);
        let mut half = right.clone();
        half.ordered[1] = answer("<answer>wrong</answer>", false);
        let curation = CurationSummary {
            rows: 9,
            kept: 7,
            rejected: 2,
            failed: 0,
            cost: 0.0,
            stages: Vec::new(),
            reasons: [(RejectionReason::Accuracy, 2)].into(),
            sources: [].into(),
            problem_types: [].into(),
        };
        DemoOutcome {
            seed,
            temporal: true,
            clips,
            answers: [noise, half, right],
            curation,
            steps: [
                vec![json!({"loss": 3.0}), json!({"loss": 0.5})],
                vec![json!({"reward": 1.0}), json!({"reward": 2.0})],
            ],
            took: [Duration::from_secs(1); 2],
            all: Duration::from_secs(3),
            parameters: 1000,
            commands: vec!["reel sft --max-steps 2".to_string()],
        }
    }

    #[test]
    fn page_is_self_contained_and_counts_correct_answers() -> Result<()> {
        let outcome = outcome(1);
        let tallies: Vec<(&str, usize, usize)> =
            result_rows(&outcome).iter().map(|r| (r.name, r.tallies[1].correct, r.tallies[1].total)).collect();
        let want =
            [("motion", 3, 3), ("motion, frames shuffled", 1, 3), ("colors", 1, 2), ("count", 1, 1), ("all", 5, 6)];
        assert_eq!(tallies, want);
        let page = demo_page(&outcome, "a < b")?;
        assert!(
            page.contains("83.3 %")
                && page.contains("\"x\":[1,2],\"y\":[3.0,0.5]")
                && page.contains("a &lt; b, seed 1")
        );
        assert!(page.contains("7 of 9 chains of thought were kept") && page.contains(">accuracy</td>"), "{page}");
        assert!(
            [CURATION_PAGE, GRPO_PAGE, EVALUATION_PAGE].iter().all(|link| page.contains(&format!("href=\"{link}\"")))
        );
        assert!(!page.contains("src=\"http") && !page.contains("<b>noise"));
        assert_eq!(page.matches("<img").count(), 6 * CLIP_FRAMES);
        Ok(())
    }

    #[test]
    fn overview_links_to_the_page_of_each_seed() {
        let page = overview_page(&[outcome(7), outcome(8)], "a machine");
        assert!(page.contains("seed-7/report.html") && page.contains("seed-8/report.html"));
        assert!(page.contains("100.0 %") && page.ends_with("</html>\n"));
    }
}
