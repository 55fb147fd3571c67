//! The demo's pages: one HTML file a course with everything in it, and an overview of several.

use std::fmt::Write;
use std::io::Cursor;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use serde_json::Value;

use super::clips::{FRAMES, SIDE, Task, answer_of};
use super::course::{DRAWN, Outcome, STAGES};
use super::exam::{Tally, standard_errors};
use super::seconds;
use crate::chart::Chart;
use crate::html::escape;

const STYLE: &str = include_str!("report.css");
/// Films whose answers the page shows: the first ones.
pub const SHOWN: usize = 48;

/// A row of the table of results: a name, right answers before, between and after, and the share that guessing reaches.
pub struct Row {
    pub name: &'static str,
    pub tallies: [Tally; 3],
    guess: Option<f64>,
}

/// The results of a course by task, then films of motions with their frames shuffled, then all together.
pub fn rows(o: &Outcome) -> Vec<Row> {
    let guess = |task: Task| 1.0 / task.answers() as f64;
    let row = |name, task: Option<Task>| Row {
        name,
        tallies: o.said.each_ref().map(|s| s.tally(&o.clips, task)),
        guess: task.map(guess),
    };
    let mut rows: Vec<Row> = Task::ALL.iter().map(|task| row(task.name(), Some(*task))).collect();
    let shuffled = o.said.each_ref().map(|s| s.shuffled_tally(&o.clips));
    rows.insert(1, Row { name: "motion, frames shuffled", tallies: shuffled, guess: Some(guess(Task::Motion)) });
    rows.push(row("all", None));
    rows
}

/// The page of one course.
pub fn page(o: &Outcome, machine: &str) -> Result<String> {
    let mut page = begin(
        "A tiny Qwen2.5-VL with random weights learned to answer questions about films with a chain of thought, first from examples, then \
         from rewards, on this machine.",
    );
    figures(&mut page, o);
    results(&mut page, o);
    for ((stage, took), steps) in STAGES.iter().zip(&o.took).zip(&o.steps) {
        let _ = write!(
            page,
            "<section><h2>{}</h2><p class=\"note\">{} {} steps in {}.</p>",
            stage.title,
            stage.about,
            steps.len(),
            seconds(*took)
        );
        for (name, caption, log) in stage.curves {
            let points: Vec<(u64, f64)> =
                (1..).zip(steps).filter_map(|(n, line): (u64, &Value)| Some((n, line.get(*name)?.as_f64()?))).collect();
            let chart = Chart { width: 760.0, height: 200.0, log: *log }.svg(&points, name);
            let _ = write!(page, "<figure><figcaption>{}</figcaption>{chart}</figure>", escape(caption));
        }
        page += "</section>";
    }
    let _ = write!(
        page,
        "<p class=\"note\"><a href=\"{DRAWN}\">What {} drew over time</a>, with frames and scores.</p>",
        o.second()
    );
    gallery(&mut page, o)?;
    let commands = o.commands.iter().map(|c| escape(c)).collect::<Vec<_>>().join("\n");
    let _ = write!(page, "<section><h2>By hand</h2><pre>{commands}</pre></section>");
    Ok(page + &end(&format!("{machine}, seed {}", o.seed)))
}

/// The page of several courses, each with its own in `seed-N/`.
pub fn overview(outcomes: &[Outcome], machine: &str) -> String {
    let mut page = begin("The same recipe with other random weights, films and draws each time.");
    let second = outcomes.first().map_or("T-GRPO", Outcome::second);
    let _ = write!(
        page,
        "<section><table><thead><tr><th>Seed</th><th>Held-out clips</th><th>Before</th><th>After SFT</th><th>After {second}</th>\
         <th>SFT, in standard errors</th><th>{second}</th></tr></thead><tbody>"
    );
    for o in outcomes {
        for row in rows(o) {
            let [a, b, c] = row.tallies;
            let _ = write!(
                page,
                "<tr{}><td><a href=\"seed-{seed}/report.html\">{seed}</a></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:+.1}</td><td>{:+.1}</td></tr>",
                if row.name == "all" { " class=\"sum\"" } else { "" },
                row.name,
                share(a),
                share(b),
                share(c),
                standard_errors(a, b),
                standard_errors(b, c),
                seed = o.seed,
            );
        }
    }
    page + "</tbody></table></section>" + &end(machine)
}

fn begin(about: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>reel demo</title><style>{STYLE}</style></head><body><main>\
         <header><h1>reel demo</h1><p>{about}</p></header>"
    )
}

fn end(machine: &str) -> String {
    format!("<footer>{}</footer></main></body></html>\n", escape(machine))
}

fn share(t: Tally) -> String {
    format!("{:.1} %", 100.0 * t.share())
}

fn figures(page: &mut String, o: &Outcome) {
    let all = o.said.each_ref().map(|s| s.tally(&o.clips, None));
    let after = format!("after {}", o.second());
    let figures: [(&str, String); 8] = [
        ("correct before", share(all[0])),
        ("after SFT", share(all[1])),
        (&after, share(all[2])),
        ("held-out clips", all[2].of.to_string()),
        ("parameters", format!("{:.2} M", o.parameters as f64 / 1e6)),
        ("SFT", seconds(o.took[0])),
        (o.second(), seconds(o.took[1])),
        ("all", seconds(o.all)),
    ];
    *page += "<dl class=\"figures\">";
    for (name, value) in figures {
        let _ = write!(page, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    *page += "</dl>";
}

fn results(page: &mut String, o: &Outcome) {
    let second = o.second();
    let _ = write!(
        page,
        "<section><h2>Held-out clips answered correctly</h2><table><thead><tr><th>Task</th><th>Before</th><th>After SFT</th>\
         <th>After {second}</th><th class=\"bar\"></th></tr></thead><tbody>"
    );
    for row in rows(o) {
        let [a, b, c] = row.tallies;
        let mark =
            row.guess.map_or(String::new(), |g| format!("<i style=\"left:{:.1}%\" title=\"guessing\"></i>", 100.0 * g));
        let _ = write!(
            page,
            "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"bar\"><div><b style=\"width:{:.1}%\"></b>\
             <u style=\"width:{:.1}%\"></u>{mark}</div></td></tr>",
            if row.name == "all" { " class=\"sum\"" } else { "" },
            row.name,
            share(a),
            share(b),
            share(c),
            100.0 * c.share(),
            100.0 * b.share(),
        );
    }
    let _ = write!(
        page,
        "</tbody></table><p class=\"note\">Bars: after {second}, and as a line beneath after SFT; marks: guessing. From SFT to {second} all clips \
         gained {:.1} standard errors of the difference. In four of five clips that show a motion, in what SFT learns from and in these, the shape \
         has its direction's own colour: a hint that one frame gives away. The films of {second} have no such hint; what can be told without the \
         order of frames should lose by it.</p></section>",
        standard_errors(o.said[1].tally(&o.clips, None), o.said[2].tally(&o.clips, None)),
    );
}

fn gallery(page: &mut String, o: &Outcome) -> Result<()> {
    let _ = write!(
        page,
        "<section><h2>Questions and answers</h2><p class=\"note\">The first {SHOWN} held-out clips, as the model sees them in time.</p>"
    );
    let [before, sft, grpo] = &o.said;
    let said = before.ordered.iter().zip(&sft.ordered).zip(&grpo.ordered);
    for (clip, ((before, sft), grpo)) in o.clips.iter().zip(said).take(SHOWN) {
        let (class, verdict) = if answer_of(grpo) == clip.answer { ("right", "correct") } else { ("wrong", "wrong") };
        let _ = write!(page, "<article class=\"{class}\"><div class=\"strip\">");
        for frame in clip.frames.chunks_exact(SIDE * SIDE * 3).take(FRAMES) {
            let _ =
                write!(page, "<img alt=\"\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png(&quarter(frame))?));
        }
        let _ = write!(
            page,
            "</div><h3>{}</h3><dl><dt>now</dt><dd>{} <span>{verdict}</span></dd><dt>truth</dt><dd>{}</dd><dt>SFT</dt><dd class=\"dim\">{}</dd>\
             <dt>before</dt><dd class=\"dim\">{}</dd></dl></article>",
            clip.task.question(),
            escape(grpo),
            escape(&clip.completion()),
            escape(sft),
            escape(&shorten(before)),
        );
    }
    *page += "</section>";
    Ok(())
}

/// The first part of a text that may be very long.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// How much smaller frames are shown.
const SMALLER: usize = 2;

/// Half as high and wide, u8 [SIDE/2, SIDE/2, 3]: means of four pixels.
fn quarter(frame: &[u8]) -> Vec<u8> {
    let side = SIDE / SMALLER;
    let at = |y: usize, x: usize, c: usize| u32::from(frame[(y * SIDE + x) * 3 + c]);
    (0..side * side)
        .flat_map(|i| {
            let (y, x) = (SMALLER * (i / side), SMALLER * (i % side));
            [0, 1, 2].map(|c| ((at(y, x, c) + at(y, x + 1, c) + at(y + 1, x, c) + at(y + 1, x + 1, c) + 2) / 4) as u8)
        })
        .collect()
}

fn png(pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let side = (SIDE / SMALLER) as u32;
    PngEncoder::new(&mut bytes).write_image(pixels, side, side, ExtendedColorType::Rgb8)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::super::clips::{self, Clip, Set};
    use super::super::exam::Said;
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn outcome(seed: u64) -> Outcome {
        let clips = clips::make(Set::HeldOut, 3)[..6].to_vec();
        let noise = Said { ordered: vec!["<b>noise & more".to_string(); 6], shuffled: vec![String::new(); 9] };
        let mut right = Said { ordered: clips.iter().map(Clip::completion).collect(), shuffled: vec!["no".into(); 9] };
        right.shuffled[3] = clips[0].completion();
        let mut half = right.clone();
        half.ordered[1] = "<answer>wrong</answer>".to_string();
        Outcome {
            seed,
            temporal: true,
            clips,
            said: [noise, half, right],
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
    fn the_page_stands_alone_and_counts_right() -> Result<()> {
        let o = outcome(1);
        let tallies: Vec<(&str, usize, usize)> =
            rows(&o).iter().map(|r| (r.name, r.tallies[1].right, r.tallies[1].of)).collect();
        let want =
            [("motion", 3, 3), ("motion, frames shuffled", 1, 9), ("colors", 1, 2), ("count", 1, 1), ("all", 5, 6)];
        assert_eq!(tallies, want);
        let page = page(&o, "a < b")?;
        assert!(page.contains("83.3 %") && page.contains("<polyline") && page.contains("a &lt; b, seed 1"));
        assert!(!page.contains("http") && !page.contains("<b>noise"));
        assert_eq!(page.matches("<img").count(), 6 * FRAMES);
        Ok(())
    }

    #[test]
    fn the_overview_leads_to_each_seed() {
        let page = overview(&[outcome(7), outcome(8)], "here");
        assert!(page.contains("seed-7/report.html") && page.contains("seed-8/report.html"));
        assert!(page.contains("100.0 %") && page.ends_with("</html>\n"));
    }
}
