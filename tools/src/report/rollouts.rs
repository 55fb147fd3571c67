//! Shows sampled completions of a GRPO run: for some steps, evenly spaced over the run, one group of completions side
//! by side with their rewards, below the frames of its video. The script of the page shows one step at a time and has
//! a slider for the steps; without JavaScript all steps are shown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_support::diagnostic::input;
use reel_train::file_names::{FRAME_STRIPS_FOLDER, ROLLOUTS_FOLDER, SHOWN_COMPLETIONS};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::run::TrainingRun;

/// Maximum number of steps shown per run.
const MAX_STEPS: usize = 60;
/// Minimum number of steps shown per run, even if their frames are large. For a run with fewer steps, all steps are
/// shown.
const MIN_STEPS: usize = 12;
/// Maximum bytes of frame images per run. If the images take more, fewer steps are shown.
const MAX_FRAME_BYTES: u64 = 12 << 20;
/// Maximum number of characters shown of a text.
const MAX_CHARACTERS: usize = 600;

/// Adds one group of completions for each shown step of each run. Adds nothing if no run has rollouts.
pub fn add_rollouts(page: &mut HtmlPage, runs: &[TrainingRun]) -> Result<()> {
    let mut html = String::new();
    for (i, run) in runs.iter().enumerate() {
        let groups = groups_html(run, i)?;
        if groups.is_empty() {
            continue;
        }
        if runs.len() > 1 {
            let color = i % 8;
            // Writing to a String cannot fail.
            let _ = writeln!(
                html,
                "<h3><i class=\"key\" style=\"background:var(--c{color})\"></i>{}</h3>",
                escape_html(&run.name)
            );
        }
        html += &groups;
    }
    if !html.is_empty() {
        page.add("<h2>Rollouts over time</h2>\n");
        page.add_interactive(&format!("<div class=\"rollouts\">\n{html}</div>\n"));
    }
    Ok(())
}

/// Returns the HTML of one group for each shown step of a run; empty for a run without rollouts.
fn groups_html(run: &TrainingRun, run_index: usize) -> Result<String> {
    let folder = run.folder.join(ROLLOUTS_FOLDER);
    let rows = |step: u64| folder.join(format!("{step:06}.jsonl"));
    let strips = FrameStripFiles::list(&folder.join(FRAME_STRIPS_FOLDER));
    let sampled: Vec<u64> = run.steps.iter().map(|s| s.step).filter(|&s| rows(s).exists()).collect();
    let with_frames: Vec<u64> = sampled.iter().copied().filter(|&s| strips.bytes(s) > 0).collect();
    let mut html = String::new();
    for step in shown_steps(if with_frames.is_empty() { &sampled } else { &with_frames }, |step| strips.bytes(step)) {
        let path = rows(step);
        let text = input::read_text(&path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(&path, &e))?;
        let Some(group) = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()) else {
            continue;
        };
        html += &article(run_index, step, &group, &strips);
    }
    Ok(html)
}

/// The pictures of a run's rollouts by their file names.
#[derive(Default)]
struct FrameStripFiles(BTreeMap<String, (PathBuf, u64)>);

impl FrameStripFiles {
    fn list(folder: &Path) -> Self {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let file = |file: fs::DirEntry| {
            Some((file.file_name().into_string().ok()?, (file.path(), file.metadata().ok()?.len())))
        };
        Self(files.filter_map(file).collect())
    }

    /// The names of the pictures that start with `prefix`, and their files.
    fn starting_with(&self, prefix: &str) -> impl Iterator<Item = &(PathBuf, u64)> {
        self.0.range(prefix.to_string()..).take_while(move |(name, _)| name.starts_with(prefix)).map(|(_, file)| file)
    }

    /// The bytes of all pictures of a step.
    fn bytes(&self, step: u64) -> u64 {
        self.starting_with(&format!("{step:06}.")).map(|(_, bytes)| bytes).sum()
    }

    /// The pictures whose names start with `prefix`, as HTML.
    fn html(&self, prefix: &str) -> String {
        let images =
            self.starting_with(prefix).filter_map(|(path, _)| input::read_file(path, input::MAX_MESSAGES_BYTES).ok());
        let html = |png: Vec<u8>| {
            format!("<img class=\"strip\" alt=\"frames\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png))
        };
        images.map(html).collect()
    }
}

/// Returns evenly spaced steps that include the first and the last: as many as [`MAX_STEPS`] and [`MAX_FRAME_BYTES`]
/// allow, but at least [`MIN_STEPS`].
fn shown_steps(steps: &[u64], frame_bytes: impl Fn(u64) -> u64) -> Vec<u64> {
    let mut count = steps.len().min(MAX_STEPS);
    loop {
        let shown = spread(steps, count);
        if count <= MIN_STEPS || shown.iter().map(|&s| frame_bytes(s)).sum::<u64>() <= MAX_FRAME_BYTES {
            return shown;
        }
        count -= 1;
    }
}

/// Returns `count` of these steps, evenly spaced, including the first and the last.
fn spread(steps: &[u64], count: usize) -> Vec<u64> {
    (0..count).map(|i| steps[i * (steps.len() - 1) / (count - 1).max(1)]).collect()
}

fn article(run: usize, step: u64, group: &Value, strips: &FrameStripFiles) -> String {
    let mut page = format!(
        "<article class=\"group\" data-run=\"{run}\" data-step=\"{step}\"><h4>step {step}, row {}</h4>{}",
        escape_html(&group["row"].to_string()),
        strips.html(&format!("{step:06}.png"))
    );
    let _ = write!(page, "<p>{}</p>", escape_html(&shortened(&prompt_text(&group["prompt"]))));
    if let Some(solution) = group["solution"].as_str() {
        let _ = write!(page, "<p>solution: {}</p>", escape_html(&shortened(solution)));
    }
    page += "<div class=\"answers\">";
    let texts = group["texts"].as_array().map_or(&[][..], Vec::as_slice);
    for (i, text) in texts.iter().enumerate().take(SHOWN_COMPLETIONS) {
        let parts = group["scores"].as_object().into_iter().flatten().filter(|(name, _)| *name != "reward");
        let parts: Vec<String> =
            parts.filter_map(|(name, values)| Some(format!("{name} {:.2}", values[i].as_f64()?))).collect();
        let reward = group["rewards"][i].as_f64().map_or("–".to_string(), |reward| format!("{reward:.2}"));
        let _ = write!(page, "<div><b>{reward}</b> <small>{}</small>", escape_html(&parts.join(", ")));
        let turns = group["turns"][i].as_array().map_or(std::slice::from_ref(text), Vec::as_slice);
        for (turn, text) in turns.iter().enumerate() {
            let _ = write!(page, "<pre>{}</pre>", escape_html(&shortened(text.as_str().unwrap_or_default())));
            for call in group["tool_turns"][i][turn]["calls"].as_array().into_iter().flatten() {
                let _ = write!(page, "<small>{}</small>", escape_html(&shortened(&answer_text(call))));
            }
            page += &strips.html(&format!("{step:06}.{i}.{turn}."));
        }
        page += "</div>";
    }
    if texts.len() > SHOWN_COMPLETIONS {
        let _ = write!(page, "<p>and {} more completions</p>", texts.len() - SHOWN_COMPLETIONS);
    }
    page + "</div></article>\n"
}

/// What a tool has answered to a call: its texts, and the number of frames that it has shown.
fn answer_text(call: &Value) -> String {
    let texts: Vec<&str> =
        call["content"].as_array().into_iter().flatten().filter_map(|p| p["text"].as_str()).collect();
    let (name, frames) = (call["name"].as_str().unwrap_or_default(), &call["frames"]);
    format!("{name}: {} ({frames} frames)", texts.join(" "))
}

/// The text of a prompt. For a chat, the text of its last message.
fn prompt_text(prompt: &Value) -> String {
    if let Value::String(text) = prompt {
        return text.clone();
    }
    let content = prompt.as_array().and_then(|messages| messages.last()).map_or(&Value::Null, |m| &m["content"]);
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|p| p["text"].as_str()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_CHARACTERS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_steps_are_spread_from_first_to_last() {
        let steps: Vec<u64> = (1..=1000).collect();
        let small = shown_steps(&steps, |_| 1000);
        assert_eq!((small.len(), small[0], small[MAX_STEPS - 1]), (MAX_STEPS, 1, 1000));
        // With large frames, fewer steps are shown, but never fewer than `MIN_STEPS`.
        let large = shown_steps(&steps, |_| MAX_FRAME_BYTES / 20);
        assert_eq!((large.len(), large[0], large[19]), (20, 1, 1000));
        assert_eq!(shown_steps(&steps, |_| MAX_FRAME_BYTES).len(), MIN_STEPS);
        assert_eq!(shown_steps(&[7], |_| 0), [7]);
        assert!(shown_steps(&[], |_| 0).is_empty());
    }

    #[test]
    fn completions_are_escaped() {
        let group = serde_json::json!({"row": 3, "prompt": [{"role": "user", "content": [{"type": "text", "text": "<i>Where?"}]}],
            "texts": ["<script>"], "rewards": [0.5], "scores": {"accuracy": [0.5], "reward": [0.5]}});
        let page = article(0, 2, &group, &FrameStripFiles::default());
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;i&gt;Where?") && page.contains("accuracy 0.50"),
            "{page}"
        );
        assert!(!page.contains("<script"));
    }
}
