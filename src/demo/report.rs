//! The demo's page: one HTML file with everything in it.

use std::fmt::Write;
use std::io::Cursor;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use super::chart;
use super::clips::{Clip, FRAMES, SIDE, Task, answer_of};

const STYLE: &str = include_str!("report.css");

/// What a step of training said.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its loss.
    pub loss: f64,
    /// Tokens that it learned from a second.
    pub tokens_per_second: f64,
}

/// Right answers to the questions of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Right ones.
    pub right: usize,
    /// All.
    pub of: usize,
}

/// What the page shows.
#[derive(Debug)]
pub struct Report<'a> {
    /// Clips that the model was not trained on.
    pub clips: &'a [Clip],
    /// What the model said of each before training.
    pub before: &'a [String],
    /// What it says now.
    pub after: &'a [String],
    /// The training.
    pub steps: &'a [Step],
    /// Figures under the title, as (name, value).
    pub figures: Vec<(&'static str, String)>,
    /// Commands that do by hand what the demo did.
    pub commands: Vec<String>,
    /// Where and with what this was made.
    pub machine: String,
}

/// Right answers of one task, or of all.
pub fn tally(clips: &[Clip], said: &[String], task: Option<Task>) -> Tally {
    let asked = clips.iter().zip(said).filter(|(c, _)| task.is_none_or(|t| t == c.task));
    asked.fold(Tally::default(), |t, (c, text)| Tally {
        right: t.right + usize::from(answer_of(text) == c.answer),
        of: t.of + 1,
    })
}

impl Report<'_> {
    /// The page.
    pub fn html(&self) -> Result<String> {
        let mut page = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width,initial-scale=1\"><title>reel demo</title><style>{STYLE}</style></head><body><main>"
        );
        page += "<header><h1>reel demo</h1><p>A tiny Qwen2.5-VL with random weights learned to answer questions about films, \
                 with a chain of thought, on this machine.</p></header>";
        self.figures(&mut page);
        self.accuracy(&mut page);
        let losses: Vec<f64> = self.steps.iter().map(|s| s.loss).collect();
        let chart = chart::log_line(&losses, "loss of each training step");
        let _ = write!(
            page,
            "<section><h2>Loss</h2><p class=\"note\">Each step and the running mean, logarithmic.</p>{chart}</section>"
        );
        self.gallery(&mut page)?;
        let commands = self.commands.iter().map(|c| escape(c)).collect::<Vec<_>>().join("\n");
        let _ = write!(page, "<section><h2>By hand</h2><pre>{commands}</pre></section>");
        let _ = writeln!(page, "<footer>{}</footer></main></body></html>", escape(&self.machine));
        Ok(page)
    }

    fn figures(&self, page: &mut String) {
        *page += "<dl class=\"figures\">";
        for (name, value) in &self.figures {
            let _ = write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        *page += "</dl>";
    }

    fn accuracy(&self, page: &mut String) {
        *page += "<section><h2>Held-out clips answered correctly</h2><table><thead><tr><th>Task</th><th>Before</th><th>After</th>\
                  <th class=\"bar\"></th><th>Guessing</th></tr></thead><tbody>";
        for task in Task::ALL.map(Some).into_iter().chain([None]) {
            let (before, after) = (tally(self.clips, self.before, task), tally(self.clips, self.after, task));
            let share = 100.0 * after.right as f64 / after.of.max(1) as f64;
            let guess = task.map_or(String::new(), |t| format!("{:.0} %", 100.0 / t.answers() as f64));
            let mark =
                task.map_or(String::new(), |t| format!("<i style=\"left:{:.1}%\"></i>", 100.0 / t.answers() as f64));
            let _ = write!(
                page,
                "<tr{}><td>{}</td><td>{} of {}</td><td>{} of {}</td><td class=\"bar\"><div><b style=\"width:{share:.1}%\"></b>{mark}</div></td>\
                 <td>{guess}</td></tr>",
                if task.is_none() { " class=\"sum\"" } else { "" },
                task.map_or("all", Task::name),
                before.right,
                before.of,
                after.right,
                after.of,
            );
        }
        *page += "</tbody></table></section>";
    }

    fn gallery(&self, page: &mut String) -> Result<()> {
        *page += "<section><h2>Questions and answers</h2><p class=\"note\">Clips that were not trained on, as the model sees them \
                  in time.</p>";
        for ((clip, before), after) in self.clips.iter().zip(self.before).zip(self.after) {
            let right = answer_of(after) == clip.answer;
            let (class, verdict) = if right { ("right", "correct") } else { ("wrong", "wrong") };
            let _ = write!(page, "<article class=\"{class}\"><div class=\"strip\">");
            for frame in clip.frames.chunks_exact(SIDE * SIDE * 3).take(FRAMES) {
                let _ = write!(
                    page,
                    "<img alt=\"\" src=\"data:image/png;base64,{}\">",
                    STANDARD.encode(png(&halve(frame))?)
                );
            }
            let _ = write!(
                page,
                "</div><h3>{}</h3><dl><dt>now</dt><dd>{} <span>{verdict}</span></dd><dt>truth</dt><dd>{}</dd><dt>before</dt>\
                 <dd class=\"dim\">{}</dd></dl></article>",
                clip.task.question(),
                escape(after),
                escape(&clip.completion()),
                escape(&shorten(before)),
            );
        }
        *page += "</section>";
        Ok(())
    }
}

/// The first part of a text that may be very long.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Half as high and wide, u8 [SIDE/2, SIDE/2, 3].
fn halve(frame: &[u8]) -> Vec<u8> {
    let at = |y: usize, x: usize, c: usize| u32::from(frame[(y * SIDE + x) * 3 + c]);
    let pixel = |i: usize| (2 * (i / (SIDE / 2)), 2 * (i % (SIDE / 2)));
    (0..(SIDE / 2) * (SIDE / 2))
        .flat_map(|i| {
            let (y, x) = pixel(i);
            [0, 1, 2].map(|c| ((at(y, x, c) + at(y, x + 1, c) + at(y + 1, x, c) + at(y + 1, x + 1, c) + 2) / 4) as u8)
        })
        .collect()
}

fn png(pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    let side = (SIDE / 2) as u32;
    PngEncoder::new(&mut bytes).write_image(pixels, side, side, ExtendedColorType::Rgb8)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::super::clips;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_counts_right() -> Result<()> {
        let clips = clips::make("held-out", 6, 3);
        let before = vec!["<b>noise & more".to_string(); 6];
        let mut after: Vec<String> = clips.iter().map(Clip::completion).collect();
        after[1] = "<answer>wrong</answer>".to_string();
        assert_eq!(tally(&clips, &after, None), Tally { right: 5, of: 6 });
        assert_eq!(tally(&clips, &after, Some(Task::Colors)), Tally { right: 1, of: 2 });
        let report = Report {
            clips: &clips,
            before: &before,
            after: &after,
            steps: &[Step { loss: 3.0, tokens_per_second: 1.0 }, Step { loss: 0.5, tokens_per_second: 1.0 }],
            figures: vec![("steps", "2".to_string())],
            commands: vec!["reel sft --max-steps 2".to_string()],
            machine: "a < b".to_string(),
        };
        let page = report.html()?;
        assert!(page.contains("5 of 6") && page.contains("<polyline") && page.contains("a &lt; b"));
        assert!(!page.contains("http") && !page.contains("<b>noise"));
        assert_eq!(page.matches("<img").count(), 6 * FRAMES);
        Ok(())
    }
}
