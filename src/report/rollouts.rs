//! What a run drew: completions with their scores side by side, at moments spread over the run, under the frames that they are about.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_train::reporting::metrics::StepMetrics;
use reel_train::rollout::{ROLLOUTS, STRIPS};
use serde_json::Value;

use crate::html::escape;

/// Moments at most.
const MOST: usize = 12;
/// Completions of a group, and characters of each.
const COMPLETIONS: usize = 8;
const CHARACTERS: usize = 600;

/// Groups of some steps; nothing for a run that drew nothing.
pub fn html(run: &Path, steps: &[StepMetrics]) -> Result<String> {
    let folder = run.join(ROLLOUTS);
    let name = |step: u64| format!("{step:06}");
    let drawn: Vec<u64> = steps.iter().map(|s| s.step).filter(|&s| folder.join(name(s) + ".jsonl").exists()).collect();
    if drawn.is_empty() {
        return Ok(String::new());
    }
    let pictured: Vec<u64> =
        drawn.iter().copied().filter(|&s| folder.join(STRIPS).join(name(s) + ".png").exists()).collect();
    let shown = spread(if pictured.is_empty() { &drawn } else { &pictured });
    let mut page = "<h2>Rollouts over time</h2>".to_string();
    for step in shown {
        let path = folder.join(name(step) + ".jsonl");
        let text = fs::read_to_string(&path).map_err(|e| crate::output::not_read(&path, e))?;
        let Some(group) = text.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok()) else {
            continue;
        };
        let strip = fs::read(folder.join(STRIPS).join(name(step) + ".png")).ok();
        page += &article(step, &group, strip.as_deref());
    }
    Ok(page)
}

/// At most [`MOST`] of them, with the first and the last.
fn spread(steps: &[u64]) -> Vec<u64> {
    let n = steps.len().min(MOST);
    (0..n).map(|i| steps[i * (steps.len() - 1) / (n - 1).max(1)]).collect()
}

fn article(step: u64, group: &Value, strip: Option<&[u8]>) -> String {
    let mut page = format!("<article class=\"group\"><h3>step {step}, row {}</h3>", escape(&group["row"].to_string()));
    if let Some(png) = strip {
        let _ =
            write!(page, "<img class=\"strip\" alt=\"frames\" src=\"data:image/png;base64,{}\">", STANDARD.encode(png));
    }
    let _ = write!(page, "<p>{}</p>", escape(&shortened(&asked(&group["prompt"]))));
    if let Some(solution) = group["solution"].as_str() {
        let _ = write!(page, "<p>truth: {}</p>", escape(&shortened(solution)));
    }
    page += "<div class=\"answers\">";
    let texts = group["texts"].as_array().map_or(&[][..], Vec::as_slice);
    for (i, text) in texts.iter().enumerate().take(COMPLETIONS) {
        let parts = group["scores"].as_object().into_iter().flatten().filter(|(name, _)| *name != "reward");
        let parts: Vec<String> =
            parts.filter_map(|(name, values)| Some(format!("{name} {:.2}", values[i].as_f64()?))).collect();
        let reward = group["rewards"][i].as_f64().unwrap_or(f64::NAN);
        let _ = write!(
            page,
            "<div><b>{reward:.2}</b> <small>{}</small><pre>{}</pre></div>",
            escape(&parts.join(", ")),
            escape(&shortened(text.as_str().unwrap_or_default()))
        );
    }
    page + "</div></article>"
}

/// The words of a chat's last message, or of a prompt that is a text.
fn asked(prompt: &Value) -> String {
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
    let mut short: String = text.chars().take(CHARACTERS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spread_from_the_first_to_the_last() {
        let steps: Vec<u64> = (1..=100).collect();
        let shown = spread(&steps);
        assert_eq!((shown.len(), shown[0], shown[MOST - 1]), (MOST, 1, 100));
        assert_eq!(spread(&[7]), [7]);
        assert!(spread(&[]).is_empty());
    }

    #[test]
    fn what_a_model_says_is_text_in_the_page() {
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
