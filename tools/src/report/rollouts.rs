//! Shows sampled completions of a GRPO run: for some steps, evenly spaced over the run, one group of completions side
//! by side with their rewards, below the frames of its video. The script of the page shows one step at a time and has
//! a slider for the steps; without JavaScript all steps are shown.

use std::fmt::Write;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_support::diagnostic::input;
use reel_train::file_names::{FRAME_STRIPS_FOLDER, ROLLOUTS_FOLDER};
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
/// Maximum number of completions shown per group.
const MAX_COMPLETIONS: usize = 8;
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
    let strip = |step: u64| folder.join(FRAME_STRIPS_FOLDER).join(format!("{step:06}.png"));
    let sampled: Vec<u64> = run.steps.iter().map(|s| s.step).filter(|&s| rows(s).exists()).collect();
    let with_frames: Vec<u64> = sampled.iter().copied().filter(|&s| strip(s).exists()).collect();
    let bytes = |step: u64| fs::metadata(strip(step)).map_or(0, |facts| facts.len());
    let mut html = String::new();
    for step in shown_steps(if with_frames.is_empty() { &sampled } else { &with_frames }, bytes) {
        let path = rows(step);
        let text = input::read_text(&path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(&path, &e))?;
        let Some(group) = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()) else {
            continue;
        };
        let strip = input::read_file(strip(step), input::MAX_MESSAGES_BYTES).ok();
        html += &article(run_index, step, &group, strip.as_deref());
    }
    Ok(html)
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

fn article(run: usize, step: u64, group: &Value, strip: Option<&[u8]>) -> String {
    let mut page = format!(
        "<article class=\"group\" data-run=\"{run}\" data-step=\"{step}\"><h4>step {step}, row {}</h4>",
        escape_html(&group["row"].to_string())
    );
    if let Some(png) = strip {
        let _ =
            write!(page, "<img class=\"strip\" alt=\"frames\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png));
    }
    let _ = write!(page, "<p>{}</p>", escape_html(&shortened(&prompt_text(&group["prompt"]))));
    if let Some(solution) = group["solution"].as_str() {
        let _ = write!(page, "<p>solution: {}</p>", escape_html(&shortened(solution)));
    }
    page += "<div class=\"answers\">";
    let texts = group["texts"].as_array().map_or(&[][..], Vec::as_slice);
    for (i, text) in texts.iter().enumerate().take(MAX_COMPLETIONS) {
        let parts = group["scores"].as_object().into_iter().flatten().filter(|(name, _)| *name != "reward");
        let parts: Vec<String> =
            parts.filter_map(|(name, values)| Some(format!("{name} {:.2}", values[i].as_f64()?))).collect();
        let reward = group["rewards"][i].as_f64().map_or("–".to_string(), |reward| format!("{reward:.2}"));
        let _ = write!(
            page,
            "<div><b>{reward}</b> <small>{}</small><pre>{}</pre></div>",
            escape_html(&parts.join(", ")),
            escape_html(&shortened(text.as_str().unwrap_or_default()))
        );
    }
    if texts.len() > MAX_COMPLETIONS {
        let _ = write!(page, "<p>and {} more completions</p>", texts.len() - MAX_COMPLETIONS);
    }
    page + "</div></article>\n"
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
        let page = article(0, 2, &group, None);
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;i&gt;Where?") && page.contains("accuracy 0.50"),
            "{page}"
        );
        assert!(!page.contains("<script"));
    }
}
