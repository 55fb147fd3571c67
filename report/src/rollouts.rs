//! Shows sampled completions of a GRPO run: for some steps, evenly spaced over the run, one group of completions side
//! by side with their rewards, below the frames of its video.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_diagnostic::{Diagnostic, input};
use reel_train::reporting::metrics::StepMetrics;
use reel_train::rollout::{FRAME_STRIPS_FOLDER, ROLLOUTS_FOLDER};
use serde_json::Value;

use crate::html::escape_html;
use crate::{ReportError, Result};

/// Maximum number of steps shown.
const MAX_STEPS: usize = 12;
/// Maximum number of completions shown per group.
const MAX_COMPLETIONS: usize = 8;
/// Maximum number of characters shown of a text.
const MAX_CHARACTERS: usize = 600;

/// The HTML of one group for each shown step; empty for a run without rollouts.
pub fn rollouts_html(run: &Path, steps: &[StepMetrics]) -> Result<String> {
    let folder = run.join(ROLLOUTS_FOLDER);
    let name = |step: u64| format!("{step:06}");
    let sampled: Vec<u64> =
        steps.iter().map(|s| s.step).filter(|&s| folder.join(name(s) + ".jsonl").exists()).collect();
    if sampled.is_empty() {
        return Ok(String::new());
    }
    let with_frames: Vec<u64> =
        sampled.iter().copied().filter(|&s| folder.join(FRAME_STRIPS_FOLDER).join(name(s) + ".png").exists()).collect();
    let shown = spread(if with_frames.is_empty() { &sampled } else { &with_frames });
    let mut page = "<h2>Rollouts over time</h2>".to_string();
    for step in shown {
        let path = folder.join(name(step) + ".jsonl");
        let text = input::read_text(&path, input::MAX_ROWS_BYTES)
            .map_err(|e| ReportError::Run(Diagnostic::cannot_read(&path, &e)))?;
        let Some(group) = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()) else {
            continue;
        };
        let strip =
            input::read_file(folder.join(FRAME_STRIPS_FOLDER).join(name(step) + ".png"), input::MAX_MESSAGES_BYTES)
                .ok();
        page += &article(step, &group, strip.as_deref());
    }
    Ok(page)
}

/// At most [`MAX_STEPS`] of these steps, evenly spaced, including the first and the last.
fn spread(steps: &[u64]) -> Vec<u64> {
    let n = steps.len().min(MAX_STEPS);
    (0..n).map(|i| steps[i * (steps.len() - 1) / (n - 1).max(1)]).collect()
}

fn article(step: u64, group: &Value, strip: Option<&[u8]>) -> String {
    let mut page =
        format!("<article class=\"group\"><h3>step {step}, row {}</h3>", escape_html(&group["row"].to_string()));
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
        let reward = group["rewards"][i].as_f64().unwrap_or(f64::NAN);
        let _ = write!(
            page,
            "<div><b>{reward:.2}</b> <small>{}</small><pre>{}</pre></div>",
            escape_html(&parts.join(", ")),
            escape_html(&shortened(text.as_str().unwrap_or_default()))
        );
    }
    page + "</div></article>"
}

/// The text of a prompt: of its last message if it is a chat.
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
        let steps: Vec<u64> = (1..=100).collect();
        let shown = spread(&steps);
        assert_eq!((shown.len(), shown[0], shown[MAX_STEPS - 1]), (MAX_STEPS, 1, 100));
        assert_eq!(spread(&[7]), [7]);
        assert!(spread(&[]).is_empty());
    }

    #[test]
    fn completions_are_escaped() {
        let group = serde_json::json!({"row": 3, "prompt": [{"role": "user", "content": [{"type": "text", "text": "<i>Where?"}]}],
            "texts": ["<script>"], "rewards": [0.5], "scores": {"accuracy": [0.5], "reward": [0.5]}});
        let page = article(2, &group, None);
        assert!(
            page.contains("&lt;script&gt;") && page.contains("&lt;i&gt;Where?") && page.contains("accuracy 0.50"),
            "{page}"
        );
        assert!(!page.contains("<script"));
    }
}
