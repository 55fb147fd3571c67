//! A tiny model that has learned to call tools.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use reel_input::MediaOptions;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_samples::rewards::ProgramLog;
use reel_tools::showcase::clips::{CLIP_FPS, CLIP_FRAMES, CLIP_SIDE, ClipSet, make_clips};
use reel_train::options::ToolOptions;
use reel_train::rollout::tools::ToolSet;
use serde_json::json;

use crate::support::{run_in, tiny_model};

pub const QUESTION: &str = "Which color is seen?";
pub const CALL: &str =
    "<tool_call>\n{\"name\": \"crop_video\", \"arguments\": {\"start\": 0.5, \"end\": 1.5}}\n</tool_call>";
/// A tool and a reward of the user.
const PYTHON: &str = r#"def crop_video(start: float, end: float, row=None):
    """Shows a part of the video.

    Args:
        start: Start in seconds.
        end: End in seconds.
    """
    if start > 0.4:
        return [{"type": "image", "image": "dot.png"}, f"{len(row['videos'])} video at {start}"]
    raise ValueError("too early")


def used_tools(completions, tool_calls, **columns):
    assert completions[0][0]["role"] == "assistant", completions
    return [float(sum(not call["is_error"] for call in calls)) for calls in tool_calls]
"#;
/// The tool that a command lists.
pub const LISTED: &str = r#"[{"name": "crop_video", "description": "d", "parameters": {"type": "object"}}]"#;
/// All frames have 56 × 56 pixels in both families: few vision tokens.
pub const MEDIA: [&str; 6] = ["--profile", "qwen", "--max-pixels", "4096", "--min-pixels", "3136"];

/// A folder with a model `warm` that has learned to answer the question of `rows.jsonl` with a call, and then with a text.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        tiny_model(&folder);
        let clip = make_clips(ClipSet::Sft, 2, 0).remove(1);
        let frames = FrameView::new(&clip.frames, CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE).expect("frames");
        let encoding = VideoEncodingOptions::new(VideoCodec::best_available_codec(), (CLIP_FPS as i32, 1));
        encode_video(&folder.join("clip.mp4"), frames, &encoding).expect("a video");
        fs::write(folder.join("mine.py"), PYTHON).expect("a file");
        fs::write(folder.join("lists.sh"), format!("read -r line; echo '{LISTED}'")).expect("a file");
        let definitions = |options: ToolOptions| {
            let tools = ToolSet::open(&options, &MediaOptions::default(), &ProgramLog::new(|_| {})).expect("tools");
            tools.definitions().to_vec()
        };
        let mine = format!("{}:crop_video", folder.join("mine.py").display());
        let command = format!("sh {}", folder.join("lists.sh").display());
        let options = [
            ToolOptions { tools: vec!["crop_video".into()], ..ToolOptions::default() },
            ToolOptions { tools: vec![mine], ..ToolOptions::default() },
            ToolOptions { tool_command: Some(command), ..ToolOptions::default() },
        ];
        let user = json!({"role": "user", "content": [{"type": "video", "video": "clip.mp4", "nframes": 2},
            {"type": "text", "text": QUESTION}]});
        let shown = json!([{"type": "text", "text": "The video from 0.5 s to 1.5 s:"}, {"type": "video",
            "video": "clip.mp4", "video_start": 0.5, "video_end": 1.5, "fps": 2.0, "min_frames": 2, "max_frames": 64}]);
        let answer = |text: &str| json!({"role": "assistant", "content": text});
        let messages = json!([user, answer(CALL), {"role": "tool", "content": shown}, answer("<answer>red</answer>")]);
        let row = |options| json!({"messages": messages, "tools": definitions(options)});
        let rows = options.map(|options| row(options).to_string() + "\n").concat();
        fs::write(folder.join("sft.jsonl"), rows.repeat(2)).expect("rows");
        let row = json!({"prompt": [user], "solution": "<answer>red</answer>", "problem_type": "free-form"});
        fs::write(folder.join("rows.jsonl"), format!("{row}\n").repeat(4)).expect("rows");
        let sft = [
            "sft",
            "--model",
            "tiny",
            "--data",
            "sft.jsonl",
            "--out",
            "warm",
            "--max-steps",
            "210",
            "--quiet",
            "--learning-rate",
            "3e-3",
            "--per-device-train-batch-size",
            "1",
            "--media-root",
            ".",
            "--save-steps",
            "0",
        ];
        run_in(&folder, [&sft[..], &MEDIA].concat()).ok();
        folder
    })
}
