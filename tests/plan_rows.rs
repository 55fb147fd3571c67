//! The rows of `reel plan`: a planned video has the frames and tokens that the command takes of such a video, every
//! option changes the plan or is refused, and a plan that does not fit exits with 1.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::path::Path;

use reel_input::ModelInput;
use reel_input::config::ModelConfig;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use serde_json::{Value, json};
use sft_rows::{copy_test_media, media_question_row};
use support::{FinishedRun, run, run_in, tiny_model};

/// A video, and the options that select its frames.
#[derive(Clone, Debug)]
struct Case {
    frames: usize,
    /// Frames per second as a fraction.
    rate: (i32, i32),
    /// Width and height in pixels.
    size: (usize, usize),
    options: Vec<String>,
}

/// A sequence of pseudo-random numbers (a linear congruential generator), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn case(&mut self) -> Case {
        let profile = ["qwen", "video-r1-train", "videorft-train"][self.below(3)];
        let selection = match self.below(3) {
            0 => String::new(),
            1 => format!(" --nframes {}", 2 + 2 * self.below(11)),
            _ => format!(" --fps {} --min-frames 2", 0.3 + self.below(57) as f64 / 10.0),
        };
        let pixels = match self.below(3) {
            0 => String::new(),
            1 => format!(" --video-max-pixels {}", 784 * (4 + self.below(56))),
            _ => format!(" --max-pixels {}", 784 * (8 + self.below(32))),
        };
        Case {
            frames: 2 + self.below(40),
            rate: [(30, 1), (25, 1), (10, 1), (30_000, 1001), (7, 2)][self.below(5)],
            size: (16 + 2 * self.below(60), 16 + 2 * self.below(60)),
            options: format!("--profile {profile}{selection}{pixels}").split(' ').map(str::to_string).collect(),
        }
    }
}

/// Plans a row with the video of `case`. Without `tokens`, the plan chooses the number of text tokens.
fn plan_video(folder: &Path, command: &str, case: &Case, tokens: Option<usize>) -> FinishedRun {
    let rate = f64::from(case.rate.0) / f64::from(case.rate.1);
    let (frame_size, seconds) = (format!("{}x{}", case.size.0, case.size.1), case.frames as f64 / rate);
    let sizes = format!("--frame-size {frame_size} --duration {seconds} --source-fps {rate} --device cpu --json");
    let tokens = tokens.map(|tokens| format!("--tokens={tokens}"));
    let words = ["plan", command, "--model", "tiny"].into_iter().chain(sizes.split(' ')).map(str::to_string);
    run_in(folder, words.chain(case.options.iter().cloned()).chain(tokens))
}

/// For random videos and options, the planned row has the tokens and patches of the rows that `reel sft` makes of such
/// a video, and the patch grid that `reel preprocess` writes; or both commands refuse the options.
#[test]
fn planned_rows_have_the_tokens_that_the_command_makes() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let config = ModelConfig::open(&tiny_model(at)).expect("a configuration");
    std::fs::write(at.join("rows.jsonl"), media_question_row("video", "v.mp4")).expect("written");
    let messages = json!([{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}]);
    std::fs::write(at.join("m.json"), messages.to_string()).expect("written");
    let (mut random, mut compared, mut refused) = (Random(67), 0, 0);
    let options = ["--nframes", "8"].map(str::to_string).to_vec();
    let too_short = Case { frames: 5, rate: (10, 1), size: (64, 64), options };
    for case in (0..5).map(|_| random.case()).chain([too_short]) {
        let (width, height) = case.size;
        let pixels: Vec<u8> = (0..case.frames * width * height * 3).map(|i| (i / 97) as u8).collect();
        let frames = FrameView::new(&pixels, case.frames, height, width).expect("frames");
        let encoding = VideoEncodingOptions::new(VideoCodec::best_available_codec(), case.rate);
        encode_video(&at.join("v.mp4"), frames, &encoding).expect("a video");
        let options = || case.options.iter().map(String::as_str);
        let preprocess = "preprocess --model tiny --messages m.json --out in.safetensors".split(' ');
        let made = run_in(at, preprocess.chain(options()));
        let planned = plan_video(at, "generate", &case, None);
        let is_made = made.code == Some(0);
        assert_eq!(is_made, planned.code == Some(0), "{case:?}\n{}\n{}", made.stderr, planned.stderr);
        if !is_made {
            refused += 1;
            continue;
        }
        let planned = planned.json();
        let written = ModelInput::read(&at.join("in.safetensors"), &config).expect("inputs");
        assert_eq!(planned["rows"]["video"]["grid_thw"], json!(written.video_grid_thw[0]), "{case:?}");
        let rows = "plan sft --model tiny --data rows.jsonl --device cpu --json --num-train-epochs 1".split(' ');
        let trained = run_in(at, rows.chain(options())).json();
        let tokens = trained["rows"]["tokens"][0].as_u64().expect("a number") as usize;
        let sft = plan_video(at, "sft", &case, Some(tokens)).json();
        for size in ["tokens", "patches"] {
            assert_eq!(sft["rows"][size], trained["rows"][size], "{case:?}");
        }
        compared += 1;
    }
    assert!(compared >= 4 && refused >= 1, "{compared} compared, {refused} refused");
}

/// Every option for the rows changes the planned rows, is refused by name, or is named in a note.
#[test]
fn no_option_for_rows_is_ignored_silently() {
    let base = "plan sft --preset tiny --profile qwen --frame-size 640x360 --duration 2 --device cpu --json";
    let rows = |more: &str| run(format!("{base}{more}").split(' ')).json()["rows"].clone();
    let before = rows("");
    for more in [
        "--tokens 4000",
        "--source-fps 1.5",
        "--nframes 8",
        "--fps 4",
        "--min-frames 8",
        "--max-frames 2",
        "--min-pixels 400000",
        "--max-pixels 120000",
        "--total-pixels 300000",
        "--video-min-pixels 400000",
        "--video-max-pixels 120000",
    ] {
        assert_ne!(rows(&format!(" {more}")), before, "{more}");
    }
    for (line, words) in [
        ("sft --preset tiny --image-max-pixels 9000", "--image-max-pixels: concerns images"),
        ("sft --preset tiny --ignore-exif-orientation", "--ignore-exif-orientation: concerns images"),
        ("sft --preset tiny --tokens 900 --vision-patches 64 --nframes 8", "--nframes: selects or sizes the frames"),
        (
            "serve --preset tiny --tokens 900 --vision-patches 64 --duration 8",
            "--duration: selects or sizes the frames",
        ),
        ("sft --preset tiny --data rows.jsonl --vision-patches 64", "--vision-patches: sets the size of every row"),
        ("grpo --preset tiny --data rows.jsonl --frame-size 64x64", "--frame-size: sets the size of every row"),
        ("generate --model tiny --layers 2 --tokens 9", "--layers: changes the size of a preset"),
        ("generate --preset tiny --nframes 7", "--nframes: is 7, an odd number"),
        ("sft --preset tiny --frame-size 640x2", "--frame-size: 2 x 640 has an aspect ratio"),
        ("sft --preset tiny --frame-size 64", "--frame-size: is \"64\""),
        ("sft --preset tiny --duration 0", "--duration: is 0"),
        ("sft --preset tiny --duration 1e300", "--duration: no frames can be selected"),
        ("serve --preset tiny --nframes 8 --tokens 30", "--tokens: is 30, but the video alone has"),
    ] {
        run(format!("plan {line} --gpu h100").split(' ')).assert_refused(2, &[words]);
    }
    let noted =
        run("plan sft --preset tiny --tokens 30 --media-root . --max-samples 3 --threads 1 --gpu h100".split(' '));
    noted.ok();
    for name in ["--media-root", "--max-samples", "--threads"] {
        assert!(noted.stderr.contains(&format!("note: {name}: has no effect on this plan")), "{}", noted.stderr);
    }
}

/// `--nframes` alone plans a video, and the head of every plan names the tokens and patches of a row.
#[test]
fn a_plan_for_a_gpu_says_how_many_cores_decode_its_videos() {
    let plan = |options: &str| run(["plan"].into_iter().chain(options.split(' ')).chain(["--json"])).plan_json();
    let number = |plan: &Value, key: &str| plan.pointer(key).and_then(Value::as_f64).expect("a number");
    let sft = "sft --preset tiny --nframes 4 --per-device-train-batch-size 3 --gradient-accumulation-steps 2";
    let small = plan(&format!("{sft} --gpu h200 --duration 2 --frame-size 640x360"));
    let each = number(&small, "/decoding/cpu_seconds_per_video");
    assert_eq!(small["decoding"]["videos_per_step"], 6);
    let cores = 6.0 * each / number(&small, "/seconds");
    assert!(each > 0.0 && (number(&small, "/decoding/cpu_cores_per_gpu") / cores - 1.0).abs() < 1e-9, "{small}");
    // Four times the pixels take four times the time; frames that no selected frame needs take none.
    let seconds =
        |options: &str| number(&plan(&format!("{sft} --gpu h200 {options}")), "/decoding/cpu_seconds_per_video");
    assert!((seconds("--frame-size 1280x720 --duration 2") / each - 4.0).abs() < 1e-9);
    let long = |duration: u32| seconds(&format!("--frame-size 640x360 --duration {duration}"));
    let lengths = [long(10), long(60), long(600)];
    assert!(each < lengths[0] && lengths[0] < lengths[1] && lengths[1] == lengths[2], "{lengths:?}");
    let grpo =
        "grpo --preset tiny --nframes 4 --duration 2 --num-generations 2 --per-device-train-batch-size 4 --gpu h200";
    assert_eq!(plan(&format!("{grpo} --gradient-accumulation-steps 3"))["decoding"]["videos_per_step"], 6);
    // Each of two GPUs has the micro-batches of a half.
    let halves = plan(&format!("{sft} --frame-size 640x360 --gpu h200 --world 2"));
    assert_eq!(halves["decoding"]["videos_per_step"], 3);
    for without in [format!("{sft} --device cpu"), "sft --preset tiny --tokens 64 --gpu h200".to_string()] {
        assert_eq!(plan(&without)["decoding"], Value::Null, "{without}");
    }
    let text = run(format!("plan {sft} --gpu h200").split(' '));
    assert!(text.ok().contains("\ndecoding: 6 videos per step, about "), "{}", text.stdout);
}

#[test]
fn head_names_tokens_patches_and_the_video() {
    for command in ["sft", "grpo", "generate", "serve"] {
        let text = run(format!("plan {command} --preset tiny --nframes 16 --gpu h200").split(' ')).ok().to_string();
        let head = text.lines().next().expect("a head");
        for words in [" tokens, ", " patches (", " vision tokens and 512 of text), 16 frames of ", "1280 x 720", "30 s"]
        {
            assert!(head.contains(words), "{words}: {head}");
        }
        for words in ["kernels last measured", "prototype", "modelled", "2026-11-2"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    copy_test_media(folder.path());
    let rows = media_question_row("image", "good.png") + &media_question_row("video", "good.mp4");
    std::fs::write(folder.path().join("rows.jsonl"), rows).expect("written");
    let words = "plan sft --model tiny --data rows.jsonl --nframes 4 --max-steps 2 --gradient-accumulation-steps 1 --device cpu --json";
    let plan: Value = run_in(folder.path(), words.split(' ')).json();
    assert_eq!((&plan["rows"]["planned"], &plan["rows"]["patches"][0]), (&json!(2), &json!(32)), "{plan}");
    assert!(plan["subject"].as_str().is_some_and(|head| head.contains("(2 planned, each of ")), "{plan}");
}

#[test]
fn a_plan_that_does_not_fit_exits_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = "name = \"small\"\ncompute_capability = 8.9\nbandwidth_gb_s = 1000\nbf16_tflops = 165\n\
                 multiprocessors = 128\nclock_mhz = 2520\nmemory_gb = 0.002\n";
    std::fs::write(folder.path().join("small.toml"), small).expect("written");
    for command in ["sft", "grpo --max-completion-length 8 --min-completion-length 0", "generate", "serve"] {
        let words = format!("plan {command} --preset tiny --tokens 64 --gpu small.toml");
        let plan = run_in(folder.path(), words.split(' '));
        plan.assert_refused(1, &[if command == "serve" { "KV cache" } else { "does not fit into 0.0" }]);
    }
    let fits = run("plan sft --preset tiny --tokens 64 --gpu rtx4090".split(' '));
    assert!(fits.ok().contains(": fits"));
}
