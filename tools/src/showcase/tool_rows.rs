//! Clips whose questions can be answered only with `crop_video`, and rows of `reel sft`, `grpo` and `eval` about them.
//!
//! A prompt shows the first and the last frame of a clip, which are dark, and asks for the color at one of four
//! seconds. Without tools nothing is better than a guess, one of four colors; a crop from that second on shows the
//! answer.
//!
//! | file | rows |
//! |---|---|
//! | `sft.jsonl` | whole examples with the column `tools` (question, call, result and answer), and their parts |
//! | `no-tools.jsonl` | questions with their answers, for a model that learns without tools |
//! | `rl.jsonl` | questions with their solutions, for GRPO |
//! | `held-out.jsonl`, `held-out.toml` | questions for `reel eval`, and the task file |
//!
//! Parts are calls, and answers about crops. They do not describe the tool: a part has about 100 tokens, a whole
//! example 630. So most rows are parts, and the model learns in a fraction of the time.

use std::path::Path;

use rayon::prelude::*;
use reel_input::MediaOptions;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_samples::rewards::ProgramLog;
use reel_train::options::ToolOptions;
use reel_train::rollout::tools::ToolSet;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::showcase::benchmarks::CLIP_FOLDER;
use crate::showcase::clips::flashes::{FLASH_CLIP_FPS, FLASH_CLIP_FRAMES, Flash, FlashClip};
use crate::showcase::clips::{CLIP_SIDE, COLORS};
use crate::showcase::write;

/// Number of clips for SFT. The parts are about all flashes of each clip.
const SFT_CLIPS: usize = 120;
/// Number of whole examples for SFT, about one flash each.
const WHOLE_EXAMPLES: usize = 60;

/// The folder of the clips and rows of the stage, in the demo's folder.
pub const TOOL_ROWS_FOLDER: &str = "tool-rows";
/// The folder of the trained model and the name of the stage's configuration file, in the demo's folder.
pub const TOOL_STAGE: &str = "tools";
/// The name of the held-out questions in files and results.
pub const TOOL_BENCHMARK: &str = "held-out";

/// Which clips and rows are written.
pub struct ToolRows {
    /// The seed of the clips.
    pub seed: u64,
    /// Number of clips for GRPO, with one question each; with 0 there is no rl.jsonl.
    pub rl: usize,
    /// Number of held-out clips, with one question each.
    pub held_out: usize,
    /// Whether a flash fills a quarter of the frame, and answers name second and box as evidence.
    pub in_quarters: bool,
}

impl ToolRows {
    /// Writes all files into `folder`, and the clips into its sub-folder `clips`. Returns the held-out clips.
    ///
    /// # Errors
    /// A file cannot be written, or a clip cannot be encoded.
    pub fn write(&self, folder: &Path) -> Result<Vec<FlashClip>> {
        let clip_folder = folder.join(CLIP_FOLDER);
        std::fs::create_dir_all(&clip_folder).map_err(|e| Error::cannot_write(&clip_folder, &e))?;
        let encoding = VideoEncodingOptions::new(VideoCodec::best_available_codec(), (FLASH_CLIP_FPS as i32, 1));
        let clips = |set: &str, count: usize| -> Result<Vec<FlashClip>> {
            let make = |i| {
                let clip = FlashClip::new(set, i, self.seed, self.in_quarters);
                let frames = clip.frames();
                let frames = FrameView::new(&frames, FLASH_CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE)?;
                encode_video(&clip_folder.join(&clip.file), frames, &encoding)?;
                Ok(clip)
            };
            (0..count).into_par_iter().map(make).collect()
        };
        let crop_video = ToolOptions { tools: vec!["crop_video".into()], ..ToolOptions::default() };
        let tools = ToolSet::open(&crop_video, &MediaOptions::default(), &ProgramLog::new(|_| {}))?;
        let (sft, rl, held_out) = (clips("sft", SFT_CLIPS)?, clips("rl", self.rl)?, clips("held-out", self.held_out)?);
        let learned = |flash: &Flash| answer(flash, self.in_quarters);
        let call = |clip: &FlashClip, flash: &Flash| json!({"messages": [question(clip, flash), tool_call(flash)]});
        let look = |clip: &FlashClip, flash: &Flash| {
            let shown = json!({"role": "user", "content": crop(clip, flash)});
            json!({"messages": [shown, learned(flash)]})
        };
        let parts = sft.iter().flat_map(|clip| clip.flashes.iter().flat_map(|f| [call(clip, f), look(clip, f)]));
        let whole = |clip: &FlashClip| {
            let flash = clip.asked_flash();
            let result = json!({"role": "tool", "content": crop(clip, flash)});
            let messages = [question(clip, flash), tool_call(flash), result, learned(flash)];
            json!({"messages": messages, "tools": tools.definitions()})
        };
        let plain =
            |clip: &FlashClip| json!({"messages": [question(clip, clip.asked_flash()), learned(clip.asked_flash())]});
        let file = |name: &str, rows: Vec<Value>| {
            let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
            write(&folder.join(format!("{name}.jsonl")), &lines)
        };
        file("sft", sft.iter().take(WHOLE_EXAMPLES).map(whole).chain(parts).collect())?;
        file("no-tools", sft.iter().map(plain).collect())?;
        if self.rl > 0 {
            file("rl", rl.iter().map(prompt_row).collect())?;
        }
        file(TOOL_BENCHMARK, held_out.iter().enumerate().map(held_out_row).collect())?;
        write(&folder.join(format!("{TOOL_BENCHMARK}.toml")), include_str!("tasks/held-out.toml"))?;
        Ok(held_out)
    }
}

/// The text of the question about a flash.
pub(crate) fn question_text(flash: &Flash) -> String {
    format!("What color is shown at {} s?", flash.second)
}

fn path(clip: &FlashClip) -> String {
    format!("{CLIP_FOLDER}/{}", clip.file)
}

fn question(clip: &FlashClip, flash: &Flash) -> Value {
    let video = json!({"type": "video", "video": path(clip), "nframes": 2});
    json!({"role": "user", "content": [video, {"type": "text", "text": question_text(flash)}]})
}

fn tool_call(flash: &Flash) -> Value {
    let arguments = json!({"start": flash.second, "end": flash.second + 1});
    let call = json!({"type": "function", "function": {"name": "crop_video", "arguments": arguments}});
    json!({"role": "assistant", "content": "", "tool_calls": [call]})
}

/// The parts with which `crop_video` answers if it may show eight frames.
fn crop(clip: &FlashClip, flash: &Flash) -> Value {
    let (start, end) = (flash.second, flash.second + 1);
    json!([{"type": "text", "text": format!("The video from {start} s to {end} s:")},
        {"type": "video", "video": path(clip), "video_start": start, "video_end": end, "fps": 2.0, "min_frames": 2,
            "max_frames": 8}])
}

fn answer(flash: &Flash, names_evidence: bool) -> Value {
    let Flash { second, color, area, .. } = flash;
    let evidence = format!("<obj>flash</obj><box>{area:?}</box>at<t>{second}</t>s");
    let subject = if names_evidence { &evidence } else { "It" };
    json!({"role": "assistant", "content": format!("<think>{subject} is {color}.</think><answer>{color}</answer>")})
}

fn prompt_row(clip: &FlashClip) -> Value {
    let flash = clip.asked_flash();
    json!({"prompt": [question(clip, flash)], "solution": format!("<answer>{}</answer>", flash.color),
        "problem_type": "multiple choice", "time": flash.second, "box": flash.area})
}

fn held_out_row((id, clip): (usize, &FlashClip)) -> Value {
    let flash = clip.asked_flash();
    json!({"id": id, "video": path(clip), "question": question_text(flash), "candidates": COLORS.map(|color| color.0),
        "answer": flash.color})
}
