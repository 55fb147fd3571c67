//! The HTML pages of `reel demo`: the results of one seed with links to the pages of its parts, and an overview of
//! several seeds.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_input::media::strip::thumbnail;

use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

use crate::showcase::clips::flashes::{FLASH_CLIP_FPS, FLASH_CLIP_FRAMES};
use crate::showcase::clips::{CLIP_SIDE, COLORS, ClipTask, GREY_CLIP_COUNT};
use crate::showcase::evaluation::{AnswerTally, EvaluationAnswers, difference_in_standard_errors};
use crate::showcase::pipeline::{CURATION_PAGE, DemoOutcome, EVALUATION_PAGE, TRAINING_PAGE};
use crate::showcase::tool_answers::{ToolOutcome, Trajectory};
use crate::showcase::tool_rows::question_text;

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
pub fn demo_page(outcome: &DemoOutcome, machine: &str) -> String {
    let mut page = begin(
        "A tiny Qwen2.5-VL with random weights learned to answer questions about video clips with a chain of thought: first by supervised \
         fine-tuning on a curated data set, then from rewards. In a third stage the random model learned to call a tool. Everything ran on this machine.",
    );
    add_results(&mut page, outcome);
    add_tools(&mut page, &outcome.tools);
    add_parts(&mut page, outcome);
    let commands = outcome.commands.iter().map(|c| escape_html(c)).collect::<Vec<_>>().join("\n");
    page.add(&format!(
        "<h2>The same as single commands</h2><p>Curation finds all answers in its tables and asks no model again.</p>\
         <pre class=\"commands\">{commands}</pre>\n"
    ));
    end(page, &format!("{machine}, seed {}", outcome.seed))
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
            table.add_row(vec![
                row.name.to_string(),
                format!("<a href=\"seed-{seed}/report.html\">{seed}</a>", seed = outcome.seed),
                share(a),
                share(b),
                share(c),
                format!("{:+.1}", difference_in_standard_errors(a, b)),
                format!("{:+.1}", difference_in_standard_errors(b, c)),
            ]);
        }
    }
    page.add_table(&table);
    page.add("<h2>Questions that only a tool can answer</h2>\n");
    let mut table = HtmlTable::new(&["Seed", "Number", "With crop_video", "The same weights without it"]);
    for DemoOutcome { seed, tools, .. } in outcomes {
        let (n, with, without) = (tools.with_tools.total, share(tools.with_tools), share(tools.without_tools));
        table.add_row(vec![seed.to_string(), n.to_string(), with, without]);
    }
    page.add_table(&table);
    end(page, machine)
}

fn begin(about: &str) -> HtmlPage {
    let mut page = HtmlPage::new("reel demo");
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

fn add_results(page: &mut HtmlPage, outcome: &DemoOutcome) {
    let second = outcome.second_stage_name();
    let after = format!("After {second}");
    let mut table = HtmlTable::new(&["Held-out clips", "Number", "Guessing", "Before", "After SFT", &after]);
    for row in result_rows(outcome) {
        let guess = row.guess.map_or(String::new(), |guess| format!("{:.1} %", 100.0 * guess));
        let [a, b, c] = row.tallies;
        table.add_row(vec![row.name.to_string(), a.total.to_string(), guess, share(a), share(b), share(c)]);
    }
    page.add(
        "<h2>Held-out clips answered correctly</h2><p>The clips are small benchmarks in the forms in which MVBench (motion, colors) and \
         VSI-Bench (count) are published, and <code>reel eval</code> asked and scored them.</p>\n",
    );
    page.add_table(&table);
    let [_, sft, grpo] = outcome.answers.each_ref().map(|answers| answers.tally(&outcome.clips, None));
    page.add(&format!(
        "<p>From SFT to {second} the accuracy on all clips rose by {:.1} standard errors of the difference. In four of five motion clips for SFT \
         and for evaluation the color of the shape tells the direction, so that a single frame suffices. The clips for {second} have no such \
         hint: answers that ignore the order of frames earn less there.</p>\n",
        difference_in_standard_errors(sft, grpo),
    ));
}

/// Adds the results of the third stage, and an answer with its turns and frames.
fn add_tools(page: &mut HtmlPage, tools: &ToolOutcome) {
    let Trajectory { clip, calls, answer } = &tools.example;
    page.add(&format!(
        "<h2>Questions that only a tool can answer</h2><p>The model with random weights learned tool calls by supervised fine-tuning, which \
         took {}. These clips are dark but for four flashes of random colors. A prompt has the first and the last frame, and asks for the color \
         at one second. <code>crop_video</code> shows that part of the clip. Without the tool, the same weights write a call that nothing \
         answers; a guess is right for {:.0} %.</p>\n",
        duration_text(tools.took),
        100.0 / COLORS.len() as f64,
    ));
    let mut table = HtmlTable::new(&["Held-out questions", "With crop_video", "The same weights without it"]);
    let (with, without) = (tools.with_tools, tools.without_tools);
    table.add_row(vec![with.total.to_string(), share(with), share(without)]);
    page.add_table(&table);
    let frames = clip.frames();
    let question = escape_html(&question_text(clip.asked_flash()));
    page.add(&format!(
        "<p>One of the answers; the model sees these frames.</p>{}<p>{question}</p>\n",
        frame_images(&frames, &[0, FLASH_CLIP_FRAMES - 1])
    ));
    for call in calls {
        let shown: Vec<usize> =
            call.times.iter().map(|time| (time * f64::from(FLASH_CLIP_FPS)).round() as usize).collect();
        let texts: Vec<&str> = call.content.iter().filter_map(|part| part["text"].as_str()).collect();
        page.add(&format!(
            "<pre>{} {}</pre><p>{}</p>{}\n",
            escape_html(&call.name),
            escape_html(&call.arguments.to_string()),
            escape_html(&texts.join(" ")),
            frame_images(&frames, &shown)
        ));
    }
    page.add(&format!("<pre>{}</pre>\n", escape_html(answer)));
}

/// Small images of these frames of a clip.
fn frame_images(frames: &[u8], shown: &[usize]) -> String {
    let frames = frames.chunks_exact(CLIP_SIDE * CLIP_SIDE * 3);
    let shown = shown.iter().filter_map(|&index| frames.clone().nth(index));
    let images = shown.filter_map(|frame| thumbnail(frame, (CLIP_SIDE, CLIP_SIDE), CLIP_SIDE / 2).ok());
    images
        .map(|png| format!("<img alt=\"frame\" src=\"data:image/png;base64,{}\"> ", STANDARD.encode(png.bytes)))
        .collect()
}

/// Adds what each part did and the link to its page.
fn add_parts(page: &mut HtmlPage, outcome: &DemoOutcome) {
    let summary = &outcome.curation;
    let attempts: u64 = summary.stages.iter().map(|stage| stage.attempts).sum();
    let answers: usize = summary.stages.iter().map(|stage| stage.ok).sum();
    let [sft, grpo] = outcome.took.map(duration_text);
    let (second, parameters) = (outcome.second_stage_name(), outcome.parameters as f64 / 1e6);
    page.add(&format!(
        "<h2>Data set for SFT</h2><p>No large model was asked. Behind an HTTP endpoint on this machine a stand-in answers the requests of \
         <code>reel curate</code>: it finds plain shapes in the frames by thresholds, describes their color and place, and reasons from the \
         description by fixed rules. It does not know the answers. About {GREY_CLIP_COUNT} clips with grey shapes it answers badly on purpose, and \
         three of its first replies fail: one is refused for a second, one is cut, one lacks its answer. {answers} answers took {attempts} \
         requests; {} of {} chains of thought were kept. <a href=\"{CURATION_PAGE}\">The curation</a>: funnel, stages, lengths and samples.</p>\n\
         <h2>Training</h2><p>{parameters:.2} M parameters; SFT took {sft}, {second} {grpo}. For {second} only the answers are known: eight \
         completions are sampled for each clip and rewarded for accuracy and format. T-GRPO adds 0.3 where the completions to the ordered \
         frames are at least as accurate as those to shuffled frames. The semantic reward runs with a random SigLIP at weight 0: it is computed \
         and does not count. <a href=\"{TRAINING_PAGE}\">All runs</a>: curves, and completions that {second} sampled over time.</p>\n\
         <h2>Questions and answers</h2><p><a href=\"{EVALUATION_PAGE}\">The evaluations</a> after SFT and after {second}: all answers with \
         their frames, with filters.</p>\n",
        summary.kept, summary.rows
    ));
}

/// A duration as text, such as `42 s` or `3 min 20 s`.
pub fn duration_text(d: Duration) -> String {
    let s = d.as_secs_f64().round() as u64;
    if s < 100 { format!("{s} s") } else { format!("{} min {} s", s / 60, s % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::{CurationSummary, RejectionReason};
    use crate::showcase::clips::flashes::FlashClip;
    use crate::showcase::clips::{self, Clip, ClipSet};
    use crate::showcase::evaluation::ClipAnswer;
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
            took: [Duration::from_secs(1); 2],
            tools: tools(),
            all: Duration::from_secs(3),
            parameters: 1000,
            commands: vec!["reel sft --max-steps 2".to_string()],
        }
    }

    fn tools() -> ToolOutcome {
        let call = json!({"name": "crop_video", "arguments": {"start": 3, "end": 4}, "is_error": false, "frames": 2,
            "content": [{"type": "text", "text": "The video from 3 s to 4 s:"}], "times": [3.0, 3.5]});
        let calls = vec![serde_json::from_value(call).unwrap()];
        let example = Trajectory { clip: FlashClip::new("held-out", 0, 1, false), calls, answer: "a < b".into() };
        let (with_tools, without_tools) = (AnswerTally { correct: 7, total: 8 }, AnswerTally { correct: 1, total: 8 });
        ToolOutcome { with_tools, without_tools, example, took: Duration::from_secs(9) }
    }

    #[test]
    fn page_shows_the_turns_of_an_answer_with_tools() {
        let page = demo_page(&outcome(1), "");
        assert!(page.contains("87.5 %") && page.contains("12.5 %") && page.contains("fine-tuning, which took 9 s"));
        let (_, answer) = page.split_once("What color is shown at 3 s?").unwrap();
        let (call, answer) = answer.split_once("The video from 3 s to 4 s:").unwrap();
        let arguments = ["<pre>crop_video {&quot;", "&quot;start&quot;:3", "&quot;end&quot;:4"];
        assert!(arguments.iter().all(|part| call.contains(part)), "{call}");
        assert!(answer.contains("<pre>a &lt; b</pre>"));
        // Two frames of the prompt, which are equal, and two of the crop.
        let images: Vec<&str> =
            page.split("<img alt=\"frame\" src=\"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
        assert!(images.len() == 4 && images[0] == images[1] && images[2] == images[3] && images[1] != images[2]);
    }

    #[test]
    fn page_is_self_contained_and_counts_correct_answers() {
        let outcome = outcome(1);
        let tallies: Vec<(&str, usize, usize)> =
            result_rows(&outcome).iter().map(|r| (r.name, r.tallies[1].correct, r.tallies[1].total)).collect();
        let want =
            [("motion", 3, 3), ("motion, frames shuffled", 1, 3), ("colors", 1, 2), ("count", 1, 1), ("all", 5, 6)];
        assert_eq!(tallies, want);
        let page = demo_page(&outcome, "a < b");
        assert!(page.contains("83.3 %") && page.contains("a &lt; b, seed 1"));
        assert!(page.contains("7 of 9 chains of thought were kept"), "{page}");
        assert!(
            [CURATION_PAGE, TRAINING_PAGE, EVALUATION_PAGE]
                .iter()
                .all(|link| page.contains(&format!("href=\"{link}\"")))
        );
        assert!(!page.contains("src=\"http"));
    }

    #[test]
    fn overview_links_to_the_page_of_each_seed() {
        let page = overview_page(&[outcome(7), outcome(8)], "a machine");
        assert!(page.contains("seed-7/report.html") && page.contains("seed-8/report.html"));
        assert!(page.contains("100.0 %") && page.ends_with("</html>\n"));
    }
}
