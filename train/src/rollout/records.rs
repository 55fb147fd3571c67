//! Writes and reads `OUT/rollouts/STEP.jsonl`: every sampled completion with its rewards, one group per line. A run
//! with `--rollouts` can train on these lines again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{fs, io};

use reel_input::MediaFrames;
use reel_input::media::frames::FrameBuf;
use reel_input::media::strip::{PngImage, frame_strip};
use reel_samples::rewards::Scores;
use reel_support::diagnostic::input;
use reel_support::files::{json, replace_synced, write_synced};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::given::{RolloutLine, nan_for_null};
use super::prompts::{EndTokens, PromptSource};
use super::tool_media::load_tool_media;
use super::tools::content::ToolTurn;
use crate::error::{Error, Result};
use crate::file_names::{FRAME_STRIPS_FOLDER, ROLLOUTS_FOLDER, SHOWN_COMPLETIONS};
use crate::options::GrpoOptions;
use crate::rollout::group::{CompletionTokens, Rollout};

/// Approximate maximum number of frame strips (PNG images of a prompt's frames side by side) per run. In runs of more
/// steps, only some steps get a strip.
const MAX_STRIPS: u64 = 24;

/// Maximum number of frames in a strip.
const MAX_FRAMES: usize = 8;

/// Decides for which steps a frame strip (a PNG image of a prompt's frames) is written.
#[derive(Clone, Copy, Debug)]
pub struct FrameStripSchedule {
    /// Number of steps from one strip to the next. It is a multiple of `--logging-steps`, so that each step with a
    /// strip is also reported to TensorBoard and Weights & Biases.
    every: u64,
    /// Number of steps that train on the rollouts of one step (`--num-iterations`).
    iterations: u64,
    /// Number of steps of the run.
    steps: u64,
}

impl FrameStripSchedule {
    /// Makes the schedule for a run of `steps` steps that reports metrics every `logging_steps` steps and samples new
    /// completions every `iterations` steps.
    pub fn new(steps: u64, logging_steps: u64, iterations: u64) -> Self {
        let every = steps.div_ceil(MAX_STRIPS).max(1).next_multiple_of(logging_steps.max(1));
        Self { every, iterations: iterations.max(1), steps }
    }

    /// Whether the rollouts sampled in step `step` get a strip. True for step 1, and if a strip is due at any step
    /// that trains on these rollouts.
    pub fn has_strip(self, step: u64) -> bool {
        let last = step + self.iterations - 1;
        step == 1 || last / self.every > (step - 1) / self.every || (step..=last).contains(&self.steps)
    }
}

/// Pictures of a group: some of the frames that its prompt and tools show, side by side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FrameStrips {
    /// Frames of the prompt's first video, or its first image; `None` without media.
    pub prompt: Option<PngImage>,
    /// The index of a completion, of a turn of tools in it, and of a picture of the turn, which has frames of one size.
    tools: Vec<([usize; 3], PngImage)>,
}

impl FrameStrips {
    /// Draws the pictures of a group whose media this process has loaded.
    pub fn of_group(group: &Rollout) -> Result<Self> {
        let strip = |frames: &FrameBuf| frame_strip(frames, MAX_FRAMES, 96);
        let MediaFrames { images, videos, .. } = &group.prompt.tokens.frames;
        let prompt = videos.first().or(images.first()).map(strip).transpose()?;
        let mut tools = Vec::new();
        for (completion, tokens) in group.completions.iter().enumerate().take(SHOWN_COMPLETIONS) {
            let Some(sequence) = &tokens.sequence else { continue };
            let (mut images, mut videos) =
                (sequence.frames.images[images.len()..].iter(), sequence.frames.videos[videos.len()..].iter());
            for (turn, shown) in tokens.tool_turns.iter().enumerate() {
                let parts = shown.calls.iter().flat_map(|call| &call.content);
                let media = parts.filter_map(|part| match part["type"].as_str() {
                    Some("video") => videos.next(),
                    Some("image" | "video_frame") => images.next(),
                    _ => None,
                });
                for (picture, frames) in joined(media).iter().enumerate() {
                    tools.push(([completion, turn, picture], strip(frames)?));
                }
            }
        }
        Ok(Self { prompt, tools })
    }
}

/// Joins successive images and videos whose frames have the same size.
fn joined<'f>(media: impl Iterator<Item = &'f FrameBuf>) -> Vec<FrameBuf> {
    let mut all: Vec<FrameBuf> = Vec::new();
    for next in media {
        match all.last_mut().filter(|last| (last.height, last.width) == (next.height, next.width)) {
            Some(last) => {
                last.frames += next.frames;
                Arc::make_mut(&mut last.data).extend_from_slice(&next.data);
            }
            None => all.push(next.clone()),
        }
    }
    all
}

/// Writes the rollouts of each step to a file.
pub struct RolloutRecorder {
    folder: PathBuf,
    ends: EndTokens,
    /// The step that is being recorded. `text` holds its lines so far.
    step: u64,
    text: String,
    /// The path of the file that a background thread is writing, and the thread.
    writing: Option<(PathBuf, JoinHandle<io::Result<()>>)>,
}

impl Drop for RolloutRecorder {
    fn drop(&mut self) {
        // An error cannot be returned here; errors of earlier files were returned by `wait_until_written`.
        let _ = self.wait_until_written();
    }
}

impl RolloutRecorder {
    /// Creates a recorder for a run with the output folder `out`. The rollouts folder is created with the first record,
    /// so that a run that fails to start leaves no files.
    pub fn new(out: &Path, ends: EndTokens) -> Self {
        Self { folder: out.join(ROLLOUTS_FOLDER), ends, step: 0, text: String::new(), writing: None }
    }

    /// Writes the pictures of a step, which `reel report` shows: `STEP.png`, and `STEP.COMPLETION.TURN.PICTURE.png` for
    /// the turns of tools, all counted from 0.
    pub fn write_frame_strips(&self, step: u64, strips: &FrameStrips) -> Result<()> {
        let prompt = strips.prompt.iter().map(|strip| (String::new(), strip));
        let tools = strips
            .tools
            .iter()
            .map(|([completion, turn, picture], strip)| (format!(".{completion}.{turn}.{picture}"), strip));
        for (name, strip) in prompt.chain(tools) {
            let path = self.folder.join(FRAME_STRIPS_FOLDER).join(format!("{step:06}{name}.png"));
            write_synced(&path, &strip.bytes).map_err(|e| Error::cannot_write(&path, e))?;
        }
        Ok(())
    }

    /// Records the groups of one sampling round of a step. `used(scores)` tells whether the step trains on the group.
    /// A background thread writes the file under another name and renames it, so that the file never ends with an
    /// incomplete line. [`Self::wait_until_written`] waits for this thread.
    pub fn record_groups(
        &mut self,
        step: u64,
        round: u64,
        rollouts: &[Rollout],
        used: impl Fn(&Scores) -> bool,
    ) -> Result<()> {
        if round == 0 {
            fs::create_dir_all(self.folder.join(FRAME_STRIPS_FOLDER))
                .map_err(|e| Error::cannot_write(&self.folder, e))?;
            (self.step, self.text) = (step, String::new());
        }
        for rollout in rollouts {
            self.text.push_str(&line(step, rollout, &self.ends, used(&rollout.scores)).to_string());
            self.text.push('\n');
        }
        self.wait_until_written()?;
        let (path, text) = (rollouts_file_path(&self.folder, step), self.text.clone().into_bytes());
        let to = path.clone();
        let write = move || replace_synced(&to, &text, false);
        let begun = thread::Builder::new().name("rollouts".into()).spawn(write);
        self.writing = Some((path.clone(), begun.map_err(|e| Error::cannot_write(&path, e))?));
        Ok(())
    }

    /// Waits until all records that were added are on the disk.
    pub fn wait_until_written(&mut self) -> Result<()> {
        let Some((path, writing)) = self.writing.take() else { return Ok(()) };
        let done = writing.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        done.map_err(|e| Error::cannot_write(&path, e))
    }
}

/// The fields of a recorded group that a replay needs.
#[derive(Deserialize)]
struct Recorded {
    #[serde(flatten)]
    line: RolloutLine,
    used: bool,
    log_probs: Vec<Vec<f32>>,
    /// The rewards of each function by name, and other lists of the scores.
    scores: Map<String, Value>,
    /// For each completion, what tools have written; empty without tools.
    #[serde(default)]
    tool_turns: Vec<Vec<ToolTurn>>,
    /// For each completion, why its sampling ended.
    #[serde(default)]
    finish_reasons: Vec<String>,
}

/// The rewards of each function, from the recorded scores. They are all read as custom ones, which are added in the
/// same order.
fn recorded_rewards(scores: Map<String, Value>) -> Vec<(String, Vec<f32>)> {
    let is_reward = |name: &str| !["reward", "advantage", "malformed"].contains(&name);
    let named = scores.into_iter().filter(|(name, _)| is_reward(name));
    named.filter_map(|(name, list)| Some((name, nan_for_null(list).ok()?))).collect()
}

/// Reads the groups on which a run trained in step `step`.
pub fn read_recorded_groups(
    folder: &Path,
    step: u64,
    options: &GrpoOptions,
    prompts: &PromptSource,
) -> Result<Vec<Rollout>> {
    let path = rollouts_file_path(folder, step);
    let text = input::read_text(&path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(&path, e))?;
    let (mut groups, ends) = (Vec::new(), prompts.end_tokens());
    for (number, line) in (1..).zip(text.lines()) {
        let damaged = |what: String| {
            Error::failed(format!("{}:{number}", path.display()), what, "give the unchanged output folder of a run")
        };
        let not_a_record = |e| damaged(format!("is not a record of a group: {e}"));
        let line: Value = serde_json::from_str(line).map_err(not_a_record)?;
        if !json::has_valid_digest(&line) {
            let location = format!("{}:{number}", path.display());
            let (what, help) = ("is damaged: it is not what the run wrote", "restore the file from a copy");
            return Err(Error::damaged(location, what, help));
        }
        let Recorded { line: r, used, log_probs, scores, mut tool_turns, mut finish_reasons } =
            serde_json::from_value(line).map_err(not_a_record)?;
        tool_turns.resize(r.completions.len(), Vec::new());
        finish_reasons.resize(r.completions.len(), String::new());
        if r.row >= prompts.data_row_count() || r.completions.len() != r.rewards.len() {
            return Err(damaged(
                "has an invalid group: its data row does not exist, or its lists differ in length".into(),
            ));
        }
        let mask = options.mask_truncated_completions;
        let tokens = |(((ids, log_probs), turns), reason): (_, String)| {
            let tokens = CompletionTokens::new(ids, log_probs, &ends, mask).with_tool_turns(turns, &ends, mask);
            tokens.with_finish_reason(&reason, &ends, mask)
        };
        if used {
            let parts = r.completions.into_iter().zip(log_probs).zip(tool_turns).zip(finish_reasons);
            let completions = parts.map(tokens).collect();
            let mut group = Rollout::with_rewards(Arc::new(prompts.prompt(r.row)?), completions, r.rewards);
            group.scores.custom = recorded_rewards(scores);
            load_tool_media(prompts, &mut group)?;
            groups.push(group);
        }
    }
    Ok(groups)
}

/// Returns the path of the file with the rollouts of step `step`.
pub fn rollouts_file_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{step:06}.jsonl"))
}

/// Makes the JSON line of one group in a step's file. `reel report` and `--rollouts` read its keys.
fn line(step: u64, rollout: &Rollout, ends: &EndTokens, used: bool) -> Value {
    let scores = &rollout.scores;
    let each = |f: &dyn Fn(&CompletionTokens) -> Value| rollout.completions.iter().map(f).collect::<Vec<_>>();
    let mut line = Map::new();
    line.insert("step".into(), json!(step));
    line.insert("row".into(), json!(rollout.prompt.row));
    line.insert("prompt".into(), without_secrets(rollout.prompt.content.clone()));
    line.insert("solution".into(), rollout.prompt.columns.get("solution").cloned().unwrap_or(Value::Null));
    line.insert("completions".into(), json!(each(&|c| json!(c.ids))));
    line.insert("rewards".into(), json!(scores.reward));
    line.insert("used".into(), json!(used));
    line.insert("scores".into(), json!(scores));
    if !scores.reports.extra.is_empty() {
        line.insert("extra".into(), json!(scores.reports.extra));
    }
    line.insert("texts".into(), json!(rollout.texts));
    if !rollout.turns.is_empty() {
        line.insert("turns".into(), json!(rollout.turns));
        line.insert("tool_turns".into(), json!(each(&|c| json!(c.tool_turns))));
    }
    line.insert("finish_reasons".into(), json!(each(&|c| json!(c.finish_reason(ends).openai_name()))));
    line.insert("log_probs".into(), json!(each(&|c| json!(c.log_probs))));
    if !rollout.shuffled_texts.is_empty() {
        line.insert("shuffled_texts".into(), json!(rollout.shuffled_texts));
    }
    json::with_digest(Value::Object(line))
}

/// Returns a prompt without the passwords and query strings in the URLs of its media. Texts are not changed.
fn without_secrets(mut prompt: Value) -> Value {
    let messages = prompt.as_array_mut().into_iter().flatten();
    let parts = messages.filter_map(|message| message.get_mut("content")?.as_array_mut()).flatten();
    for part in parts.filter_map(Value::as_object_mut) {
        let media =
            part.iter_mut().filter(|(key, _)| ["image", "video", "image_url", "video_url"].contains(&key.as_str()));
        media.for_each(|(_, value)| json::redact_urls_in_json(value));
    }
    prompt
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// For random run options, the rollouts of step 1 and of at least one reported step have a strip, and the run
        /// has at most `MAX_STRIPS + 2` strips.
        #[test]
        fn some_reported_step_has_a_strip(steps in 1u64..3000, logging_steps in 1u64..70, iterations in 1u64..9) {
            let schedule = FrameStripSchedule::new(steps, logging_steps, iterations);
            let sampled = (1..=steps).step_by(iterations as usize);
            let sampled: Vec<u64> = sampled.filter(|&n| schedule.has_strip(n)).collect();
            prop_assert!(sampled[0] == 1 && sampled.len() as u64 <= MAX_STRIPS + 2, "{:?}", sampled);
            // A preview is reported at the first reported step that trains on its rollouts.
            let reported = |n: u64| n.next_multiple_of(logging_steps).min(steps) < n + iterations;
            let shown = sampled.iter().filter(|&&n| reported(n)).count();
            prop_assert!(shown > 0 && shown + 1 >= sampled.len(), "{:?}", sampled);
        }
    }

    #[test]
    fn recorded_prompts_have_no_secrets_of_urls() {
        let url = "https://user:SECRET@host/a.mp4?sig=SECRET";
        let part = |key: &str, value: Value| json!({"type": key, key: value});
        let parts =
            [part("video", json!(url)), part("image_url", json!({"url": url})), part("video", json!([url, "b.png"]))];
        let recorded =
            without_secrets(json!([{"role": "user", "content": parts}, {"role": "user", "content": "a://b?c"}]));
        let text = recorded.to_string();
        assert!(!text.contains("SECRET") && text.matches("https://host/a.mp4?…").count() == 3, "{text}");
        assert!(text.contains("a://b?c") && text.contains("b.png"), "{text}");
        assert_eq!(without_secrets(json!("text https://a?b")), json!("text https://a?b"));
    }
}
