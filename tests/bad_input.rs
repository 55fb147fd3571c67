//! Bad input gives a one-line error that names the file and what to do, and leaves no output file.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{FinishedRun, crc32, file_names_in, golden, run, run_in, tiny_model};

/// A folder with a tiny model whose files a test can damage.
struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        tiny_model(dir.path());
        Self { dir }
    }

    fn model(&self, file: &str) -> PathBuf {
        self.dir.path().join("tiny").join(file)
    }

    fn score(&self) -> FinishedRun {
        let messages = self.dir.path().join("m.json");
        fs::write(&messages, "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
        let got =
            run_in(self.dir.path(), ["score", "--model", "tiny", "--messages", "m.json", "--out", "s.safetensors"]);
        let left = file_names_in(self.dir.path());
        assert!(got.code == Some(0) || left.iter().all(|n| !n.contains("s.safetensors")), "left behind: {left:?}");
        got
    }

    /// Changes a JSON file of the model folder.
    fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.model(file)).expect("a file");
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        change(&mut value);
        fs::write(self.model(file), value.to_string()).expect("written");
    }

    /// Changes the JSON header and the data of the weights file.
    fn edit_weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let bytes = fs::read(self.model("model.safetensors")).expect("weights");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        let mut text = header.to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let parts = [&(text.len() as u64).to_le_bytes()[..], &text, &data];
        fs::write(self.model("model.safetensors"), parts.concat()).expect("written");
    }
}

const NORM: &str = "model.norm.weight";

#[test]
fn intact_model_scores() {
    Workspace::new().score().ok();
}

#[test]
fn missing_or_truncated_weights_are_refused() {
    let s = Workspace::new();
    let whole = fs::read(s.model("model.safetensors")).expect("weights");
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(s.model("model.safetensors"), &whole[..length]).expect("written");
        s.score().refused(1, &["model.safetensors"]);
    }
    let longer = [&whole[..], b"more"].concat();
    fs::write(s.model("model.safetensors"), longer).expect("written");
    s.score().refused(1, &["model.safetensors"]);
    fs::remove_file(s.model("model.safetensors")).expect("removed");
    s.score().refused(1, &["tiny"]);
}

#[test]
fn corrupt_weight_headers_are_refused() {
    let s = Workspace::new();
    let whole = fs::read(s.model("model.safetensors")).expect("weights");
    for length in [u64::MAX, whole.len() as u64, 1 << 40, 3] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(s.model("model.safetensors"), bytes).expect("written");
        s.score().refused(1, &["model.safetensors"]);
    }
    let mut bytes = whole.clone();
    bytes[8] = b'x';
    fs::write(s.model("model.safetensors"), bytes).expect("written");
    s.score().refused(1, &["model.safetensors"]);
}

#[test]
fn wrong_offsets_dtypes_and_shapes_are_refused() {
    type Change = fn(&mut Value, &mut Vec<u8>);
    let changes: [(&str, Change); 8] = [
        ("overlap", |h, _| {
            h[NORM]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone()
        }),
        ("beyond the file", |h, d| h[NORM]["data_offsets"] = json!([d.len(), d.len() + 512])),
        ("backwards", |h, _| h[NORM]["data_offsets"] = json!([512, 0])),
        ("misaligned", |h, d| {
            let end = d.len();
            h[NORM]["data_offsets"] = json!([end + 1, end + 513]);
            d.resize(end + 513, 0);
        }),
        ("size", |h, _| h[NORM]["shape"] = json!([127])),
        ("shape", |h, _| h[NORM]["shape"] = json!([2, 64])),
        ("dtype", |h, _| h[NORM]["dtype"] = json!("I32")),
        ("huge shape", |h, _| h[NORM]["shape"] = json!([u64::MAX, u64::MAX])),
    ];
    for (why, change) in changes {
        let s = Workspace::new();
        s.edit_weights(change);
        let got = s.score();
        assert_eq!(got.code, Some(1), "{why}");
        got.refused(1, &["model.safetensors"]);
    }
    let s = Workspace::new();
    s.edit_weights(|h, _| {
        let taken = h.as_object_mut().and_then(|h| h.remove(NORM)).expect("there");
        h["model.other.weight"] = taken;
    });
    s.score().refused(1, &["model.norm.weight"]);
}

#[test]
fn invalid_configs_are_refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 7] = [
        ("num_attention_heads", |c| c["num_attention_heads"] = json!(5)),
        ("hidden_size", |c| drop(c.as_object_mut().expect("an object").remove("hidden_size"))),
        ("mrope_section", |c| c["rope_scaling"]["mrope_section"] = json!([1, 1, 1])),
        ("model_type", |c| c["model_type"] = json!("llama")),
        ("hidden_act", |c| c["hidden_act"] = json!("relu")),
        ("num_hidden_layers", |c| c["num_hidden_layers"] = json!(-1)),
        ("vocab_size", |c| c["vocab_size"] = json!("many")),
    ];
    for (key, change) in changes {
        let s = Workspace::new();
        s.edit("config.json", change);
        s.score().refused(1, &["config.json", key]);
    }
    let s = Workspace::new();
    // The config now states more layers than the weights file has.
    s.edit("config.json", |c| c["num_hidden_layers"] = json!(9));
    s.score().refused(1, &["model.layers."]);
    fs::write(s.model("config.json"), "{").expect("written");
    s.score().refused(1, &["config.json"]);
    fs::remove_file(s.model("config.json")).expect("removed");
    s.score().refused(1, &["config.json"]);
}

#[test]
fn mismatched_tokenizers_are_refused() {
    let s = Workspace::new();
    s.edit("config.json", |c| c["image_token_id"] = json!(3));
    s.score().refused(1, &["tokenizer.json"]);
    let s = Workspace::new();
    fs::write(s.model("tokenizer.json"), "{}").expect("written");
    s.score().refused(1, &["tokenizer.json"]);
    fs::remove_file(s.model("tokenizer.json")).expect("removed");
    s.score().refused(1, &["tokenizer.json"]);
}

#[test]
fn invalid_inputs_files_are_refused() {
    let s = Workspace::new();
    let run =
        |name: &str| run_in(s.dir.path(), ["score", "--model", "tiny", "--inputs", name, "--out", "s.safetensors"]);
    run("none.safetensors").refused(1, &["none.safetensors"]);
    fs::write(s.dir.path().join("junk.safetensors"), "junk").expect("written");
    run("junk.safetensors").refused(1, &["junk.safetensors"]);
    // This file is valid safetensors, but has weights instead of model inputs: the tensor `input_ids` is missing.
    run("tiny/model.safetensors").refused(1, &["input_ids"]);
    assert!(!s.dir.path().join("s.safetensors").exists());
}

#[track_caller]
fn assert_video_refused(file: &Path, more: &[&str], words: &[&str]) {
    let dir = tempfile::tempdir().expect("a folder");
    let (video, out) = (file.display().to_string(), dir.path().join("f.safetensors").display().to_string());
    run([&["frames", "--video", &video, "--out", &out][..], more].concat()).refused(1, words);
    assert!(file_names_in(dir.path()).is_empty(), "left behind: {:?}", file_names_in(dir.path()));
}

#[test]
fn files_that_are_not_videos_are_refused() {
    let clips = golden("clips");
    for name in ["bad_zero.mp4", "bad_text.mp4", "bad_cut.mp4"] {
        assert_video_refused(&clips.join(name), &[], &[name]);
    }
    assert_video_refused(Path::new("no-such.mp4"), &[], &["no-such.mp4"]);
    assert_video_refused(&clips, &[], &["clips"]);
    // An image is one frame, so `--nframes 4` of it is an error.
    assert_video_refused(&golden("pixels/00_png_rgb.png"), &["--nframes", "4"], &[]);
}

#[test]
fn pipes_and_videos_beyond_the_memory_limit_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo starts").success());
    assert_video_refused(&pipe, &[], &["pipe.mp4: is not a regular file"]);
    assert_video_refused(&golden("clips/h264_709.mp4"), &["--media-memory", "1", "--nframes", "4"], &["h264_709.mp4"]);
}

#[test]
fn invalid_or_too_large_images_are_refused() {
    let s = Workspace::new();
    let dir = s.dir.path();
    // A PNG file with a header that states 100 000 × 100 000 pixels.
    let side = 100_000u32.to_be_bytes();
    let header = [&b"IHDR"[..], &side, &side, &[8, 2, 0, 0, 0]].concat();
    let parts = [b"\x89PNG\r\n\x1a\n", &13u32.to_be_bytes()[..], &header, &crc32(&header).to_be_bytes(), &[0; 64]];
    fs::write(dir.join("bomb.png"), parts.concat()).expect("written");
    fs::write(dir.join("text.png"), "not an image").expect("written");
    fs::write(dir.join("empty.png"), "").expect("written");
    for name in ["bomb.png", "text.png", "empty.png", "none.png"] {
        let got =
            run_in(dir, ["generate", "--model", "tiny", "--image", name, "--prompt", "?", "--max-new-tokens", "1"]);
        got.refused(1, &[name]);
    }
}

#[test]
fn malformed_messages_are_refused() {
    let s = Workspace::new();
    for (body, word) in [
        ("[{", "m.json"),
        ("{\"role\": \"user\"}", "m.json"),
        ("[]", "m.json"),
        ("[{\"role\": \"user\"}]", "content"),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"video\"}]}]", "video"),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"video\", \"video\": []}]}]", "frames"),
        (
            "[{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"data:image/png;base64,AAAA\"}]}]",
            "data",
        ),
    ] {
        fs::write(s.dir.path().join("m.json"), body).expect("written");
        let got =
            run_in(s.dir.path(), ["preprocess", "--model", "tiny", "--messages", "m.json", "--out", "p.safetensors"]);
        got.refused(1, &[word]);
        assert!(!s.dir.path().join("p.safetensors").exists());
    }
}

/// A pipe without a writer, where the file `name` of the workspace was.
fn replace_by_pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo starts").success());
}

/// Reading a pipe never returns, and a device never ends: no input may be one.
#[test]
fn pipes_devices_and_folders_are_no_inputs() {
    let s = Workspace::new();
    let dir = s.dir.path();
    let zero = "/dev/zero";
    let refused = |args: &[&str], word: &str| {
        let said = "is not a regular file; copy its content to a file";
        run_in(dir, args).refused(1, &[word, said]);
    };
    fs::write(dir.join("m.json"), "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
    let score = ["score", "--model", "tiny", "--out", "s.safetensors"];
    refused(&[&score[..], &["--messages", zero]].concat(), zero);
    refused(&[&score[..], &["--inputs", zero]].concat(), zero);
    refused(&["tokenize", "--model", "tiny", "--file", zero], zero);
    refused(&["reward", "--input", zero, "--output", "o.jsonl"], zero);
    refused(&["eval", "--score-only", "--benchmark", "mmvu", "--predictions", zero, "--out", "o.json"], zero);
    refused(&["sft", "--model", "tiny", "--data", zero, "--out", "o"], zero);
    refused(&["sft", "--model", "tiny", "--data", "m.json", "--config", zero, "--out", "o"], zero);
    refused(&["generate", "--model", "tiny", "--image", zero, "--prompt", "?"], zero);
    refused(&["generate", "--model", "tiny", "--video", zero, "--prompt", "?"], zero);
    run_in(dir, [&score[..], &["--messages", "tiny"]].concat()).refused(1, &["tiny: is a folder, not a regular file"]);
    let files = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"];
    for file in files.into_iter().chain(["tokenizer.json", "chat_template.jinja", "model.safetensors"]) {
        let kept = fs::read(s.model(file)).ok();
        replace_by_pipe(&s.model(file));
        s.score().refused(1, &[file, "not a regular file"]);
        fs::remove_file(s.model(file)).expect("removed");
        let _ = kept.map(|bytes| fs::write(s.model(file), bytes).expect("written"));
    }
    assert_eq!(file_names_in(dir), ["m.json", "tiny"]);
}

/// Writes chat messages with one image, and returns what `reel preprocess` says about them.
fn preprocess_image(s: &Workspace, image: &str, more: &[&str]) -> FinishedRun {
    let body = json!([{"role": "user", "content": [{"type": "image", "image": image}]}]);
    fs::write(s.dir.path().join("m.json"), body.to_string()).expect("written");
    let args = ["preprocess", "--model", "tiny", "--messages", "m.json", "--out", "p.safetensors"];
    run_in(s.dir.path(), [&args[..], more].concat())
}

#[test]
fn media_of_other_networks_and_folders_are_refused() {
    let s = Workspace::new();
    let dir = s.dir.path();
    let here = "http://user:password@127.0.0.1:1/x.png?key=secret";
    let got = preprocess_image(&s, here, &[]);
    got.refused(1, &["http://127.0.0.1:1/x.png: is an address", "only with --allow-remote-media"]);
    assert!(!got.stderr.contains("secret") && !got.stderr.contains("password"), "{}", got.stderr);
    let allowed = "--allow-remote-media";
    preprocess_image(&s, here, &[allowed]).refused(1, &["127.0.0.1, which is not on the public internet"]);
    preprocess_image(&s, "https://example.com/x.png", &[allowed, "--offline"])
        .refused(1, &["because --offline is given"]);
    // An address that the user types needs no option, but stays out of private networks too.
    for flag in ["--video", "--image"] {
        let ask = ["generate", "--model", "tiny", "--prompt", "?", flag, "http://127.0.0.1:1/x"];
        run_in(dir, ask).refused(1, &["which is not on the public internet"]);
    }
    // Rows of training data are refused like messages.
    let row = json!({"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}], "images": [here]});
    fs::write(dir.join("rows.jsonl"), row.to_string()).expect("written");
    let sft = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "o", "--device", "cpu"];
    run_in(dir, sft).refused(1, &["rows.jsonl:1", "only with --allow-remote-media"]);

    fs::create_dir(dir.join("media")).expect("a folder");
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("media/a.png")).expect("copied");
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("b.png")).expect("copied");
    std::os::unix::fs::symlink(dir.join("b.png"), dir.join("media/link.png")).expect("a link");
    let confined = ["--media-root", "media", "--confine-media"];
    preprocess_image(&s, "a.png", &confined).ok();
    preprocess_image(&s, "../b.png", &confined[..2]).ok();
    fs::remove_file(dir.join("p.safetensors")).expect("removed");
    for outside in ["../b.png", "link.png", "/etc/hostname"] {
        preprocess_image(&s, outside, &confined).refused(1, &["lies outside of media", "--media-root"]);
        let typed = ["generate", "--model", "tiny", "--prompt", "x", "--image", outside];
        run_in(s.dir.path(), [&typed[..], &confined].concat()).refused(1, &["lies outside of media", "--media-root"]);
    }
    run_in(dir, ["score", "--model", "org/none", "--messages", "m.json", "--out", "s.safetensors"])
        .refused(1, &["org/none", "HF_HUB_OFFLINE"]);
    let mut offline = support::reel();
    offline.env_remove("HF_HUB_OFFLINE").args(["tokenize", "--model", "org/none", "--offline"]);
    support::finished_run(offline.output().expect("it starts")).refused(1, &["org/none", "because --offline is set"]);
}

/// A template or a tokenizer is a program that a model folder brings.
#[test]
fn hostile_templates_and_tokenizers_are_refused() {
    let s = Workspace::new();
    for (template, word) in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it takes too many steps"),
        (
            "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "it needs more than 448 MiB of memory",
        ),
        (&"{% if 1 %}".repeat(10_000), "nests blocks 201 deep"),
        ("{{ raise_exception('\u{1b}[31mred') }}", "\\u{1b}[31mred"),
        ("{{ 'a' * 70000 }}", "the prompt would be longer than 65"),
    ] {
        fs::write(s.model("chat_template.jinja"), template).expect("written");
        let got = s.score();
        got.refused(1, &["tiny/chat_template.jinja: ", word]);
        assert!(!got.stderr.contains('\u{1b}'), "{:?}", got.stderr);
    }
    fs::remove_file(s.model("chat_template.jinja")).expect("removed");
    s.edit("tokenizer.json", |t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(x+x+)+(?!y)"));
    s.score().refused(1, &["tiny/tokenizer.json: pre_tokenizer: has the regular expression `(x+x+)+(?!y)`"]);
}

/// What makes a command fail is said before the work that would be lost.
#[test]
fn faults_of_the_model_folder_are_found_before_the_work() {
    let s = Workspace::new();
    let dir = s.dir.path();
    let row = r#"{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}"#;
    fs::write(dir.join("rows.jsonl"), row).expect("written");
    let sft = "sft --model tiny --data rows.jsonl --out out --max-steps 1";
    // A file that only the first save reads.
    std::os::unix::fs::symlink("/dev/zero", s.model("added_tokens.json")).expect("a link");
    run_in(dir, sft.split(' ')).refused(1, &["tiny/added_tokens.json: is not a regular file"]);
    assert!(!dir.join("out").exists());
    fs::remove_file(s.model("added_tokens.json")).expect("removed");
    run_in(dir, format!("{sft} --media-root no-such-folder").split(' '))
        .refused(1, &["--media-root: is no-such-folder, which is not a folder"]);
    s.edit("config.json", |config| {
        config["max_position_embeddings"] = json!(20);
        if let Some(text) = config.get_mut("text_config") {
            text["max_position_embeddings"] = json!(20);
        }
    });
    run_in(dir, ["generate", "--model", "tiny", "--prompt", "x"])
        .refused(1, &["the prompt: has ", "the model's 20 positions"]);
}

/// Text of files, models and rows must not act on the terminal.
#[test]
fn control_characters_are_printed_escaped() {
    let s = Workspace::new();
    let shown = "\\u{1b}[2Jname\\u{9b}.json";
    run_in(s.dir.path(), ["preprocess", "--model", "tiny", "--messages", "\u{1b}[2Jname\u{9b}.json", "--out", "p"])
        .refused(1, &[shown]);
    let usage = run(["resize", "--height", "\u{1b}[2J\u{9b}", "--width", "1"]);
    assert!(!usage.refused(2, &["--height"]).stderr.contains(['\u{1b}', '\u{9b}']), "{:?}", usage.stderr);
    s.edit("config.json", |c| c["model_type"] = json!("\u{1b}]0;title\u{7}"));
    s.score().refused(1, &["\\u{1b}]0;title\\u{7}"]);
    let row = json!({"problem_type": "numerical", "solution": "<answer>1</answer>", "output": "1", "category": "\u{1b}[1m\u{9b}"});
    fs::write(s.dir.path().join("p.jsonl"), row.to_string()).expect("written");
    let eval = ["eval", "--score-only", "--benchmark", "mmvu", "--predictions", "p.jsonl", "--out", "f.json"];
    let table = run_in(s.dir.path(), eval);
    assert!(table.ok().contains("\\u{1b}[1m\\u{9b}") && !table.stdout.contains('\u{1b}'), "{:?}", table.stdout);
    let result = run_in(s.dir.path(), [&eval[..], &["--json"]].concat());
    assert!(result.ok().contains("\\u001b[1m\\u009b") && !result.stdout.contains('\u{9b}'), "{:?}", result.stdout);
    assert!(result.json()["by_category"]["\u{1b}[1m\u{9b}"].is_object());
}

#[test]
fn unwritable_outputs_are_refused() {
    let s = Workspace::new();
    let score = |out: &str| {
        fs::write(s.dir.path().join("m.json"), "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
        run_in(s.dir.path(), ["score", "--model", "tiny", "--messages", "m.json", "--out", out])
    };
    score("no/such/folder/s.safetensors").refused(1, &["no/such/folder/s.safetensors"]);
    score("tiny").refused(2, &["--out", "the same folder as --model"]);
    fs::create_dir(s.dir.path().join("folder")).expect("a folder");
    score("folder").refused(1, &["folder"]);
    run_in(s.dir.path(), ["init", "--preset", "tiny", "--out", "tiny"]).refused(1, &["tiny"]);
    run_in(s.dir.path(), ["init", "--preset", "huge", "--out", "other"])
        .refused(2, &["huge", "tiny, 3b, 7b or siglip-tiny"]);
    run_in(s.dir.path(), ["init", "--preset", "siglip-tiny", "--vocab", "9", "--out", "other"])
        .refused(2, &["--vocab"]);
    assert!(!s.dir.path().join("other").exists());
}

/// A file size limit makes writes fail half way, as a full disk does.
#[test]
fn failed_write_leaves_no_file() {
    let s = Workspace::new();
    fs::write(s.dir.path().join("m.json"), "[{\"role\": \"user\", \"content\": \"x\"}]").expect("written");
    let reel = env!("CARGO_BIN_EXE_reel");
    for (command, out) in [
        (format!("{reel} score --model tiny --messages m.json --out s.safetensors"), "s.safetensors"),
        (format!("{reel} init --preset tiny --out new"), "new"),
    ] {
        let script = format!("ulimit -f 20; exec {command}");
        let got = Command::new("bash").args(["-c", &script]).current_dir(s.dir.path()).output().expect("bash starts");
        support::finished_run(got).refused(1, &[out]);
        let left = file_names_in(s.dir.path());
        assert!(!left.iter().any(|n| n.contains("s.safetensors") || n == "new"), "{left:?}");
    }
}

/// A weight that is NaN is the cause of NaN logits, so it is named in their place.
#[test]
fn nan_weight_is_named_where_it_makes_logits_nan() {
    let w = Workspace::new();
    w.edit_weights(|header, data| {
        let begin = header[NORM]["data_offsets"][0].as_u64().expect("a number") as usize;
        data[begin + 4 * 5..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let want = [NORM, "model.safetensors", "has a value that is NaN or infinite, at [5]"];
    let ask = ["generate", "--model", "tiny", "--prompt", "x", "--max-new-tokens", "2", "--json"];
    run_in(w.dir.path(), ask).refused(1, &want);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let row = json!({"messages": [turn("user", "a"), turn("assistant", "b")]});
    fs::write(w.dir.path().join("rows.jsonl"), row.to_string()).expect("rows");
    let train = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "out", "--max-steps", "1", "--quiet"];
    run_in(w.dir.path(), train).refused(1, &want);
    assert!(!w.dir.path().join("out").exists());
}

/// SIGINT ends the program while it writes a large model. A signal that was ignored when the program was started (as
/// `nohup` does with SIGHUP) does not end it.
#[test]
fn interrupted_init_leaves_no_file() {
    let dir = tempfile::tempdir().expect("a folder");
    support::let_children_receive_sigint();
    let script =
        format!("trap '' HUP; exec {} init --preset 3b --layers 12 --out new --threads 1", env!("CARGO_BIN_EXE_reel"));
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("bash starts");
    let writing = || {
        let new = dir.path().join("new");
        new.is_dir() && file_names_in(&new).iter().any(|n| n.contains("safetensors"))
    };
    let pid = child.id();
    let signal = |name: &str| support::send_signal(pid, name);
    let pause = || std::thread::sleep(std::time::Duration::from_millis(20));
    while !writing() {
        pause();
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it wrote");
    }
    signal("-HUP");
    (0..5).for_each(|_| pause());
    assert!(
        child.try_wait().expect("a child").is_none(),
        "SIGHUP ended the command, although it was started with SIGHUP ignored"
    );
    signal("-INT");
    support::finished_run(child.wait_with_output().expect("it ends")).refused(130, &["interrupted"]);
    assert_eq!(file_names_in(dir.path()), Vec::<String>::new());
}

/// A signal ends the program also if its message cannot be printed, because the reader of stderr is gone.
#[test]
fn signal_without_a_reader_of_stderr_ends_the_program() {
    let dir = tempfile::tempdir().expect("a folder");
    support::let_children_receive_sigint();
    let mut child = support::reel()
        .args(["init", "--preset", "3b", "--layers", "12", "--out", "new", "--threads", "1"])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stderr.take());
    while !dir.path().join("new").is_dir() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it wrote");
    }
    support::send_signal(child.id(), "-TERM");
    let begun = std::time::Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break Some(status),
            None if begun.elapsed().as_secs() > 30 => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    child.kill().expect("it is ended");
    assert_eq!(status.and_then(|status| status.code()), Some(143));
}

/// An output that is also an input would destroy the input. The command is refused, and the input stays as it was.
#[test]
fn outputs_that_would_replace_an_input_are_refused() {
    let s = Workspace::new();
    let dir = s.dir.path();
    let files = [
        ("r.jsonl", r#"{"problem_type": "numerical", "solution": "<answer>4</answer>", "completion": "4"}"#),
        (
            "p.jsonl",
            r#"{"problem_type": "free-form", "solution": "<answer>A</answer>", "category": "x", "output": "A"}"#,
        ),
        (
            "m.json",
            r#"[{"role": "user", "content": [{"type": "image", "image": "i.png"}, {"type": "text", "text": "?"}]}]"#,
        ),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text).expect("written");
    }
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("i.png")).expect("copied");
    std::os::unix::fs::symlink("r.jsonl", dir.join("link.jsonl")).expect("a link");
    fs::hard_link(dir.join("p.jsonl"), dir.join("hard.jsonl")).expect("a link");
    let before: Vec<Vec<u8>> = file_names_in(dir).iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect();
    for (command, words) in [
        ("reward --input r.jsonl --output r.jsonl", &["--output", "same file as --input"][..]),
        ("reward --input r.jsonl --out link.jsonl", &["--output", "same file as --input"]),
        ("eval --score-only --benchmark mmvu --predictions p.jsonl --out hard.jsonl", &["--predictions"]),
        ("preprocess --model tiny --messages m.json --out m.json", &["same file as --messages"]),
        ("preprocess --model tiny --messages m.json --out i.png", &["same file as m.json: message 0, part 0"]),
        ("score --model tiny --messages m.json --out tiny/model.safetensors", &["in the folder of --model"]),
        ("frames --video i.png --out i.png", &["same file as --video"]),
        ("tokenize --model tiny --file r.jsonl --trace r.jsonl", &["--trace", "same file as"]),
        ("sft --model tiny --data p.jsonl --check-data --quarantine p.jsonl", &["--quarantine", "same file as --data"]),
        ("sft --model tiny --data p.jsonl --out tiny --overwrite", &["--out", "same folder as --model"]),
    ] {
        run_in(dir, command.split(' ')).refused(2, words);
    }
    let after: Vec<Vec<u8>> = file_names_in(dir).iter().filter_map(|name| fs::read(dir.join(name)).ok()).collect();
    assert!(before == after, "an input changed");
    // Inputs that only a configuration file or a row names, and outputs of the same command.
    let row = r#"{"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "!"}], "images": ["i.png"]}"#;
    fs::write(dir.join("rows.jsonl"), row).expect("written");
    let config = |out: &str, more: &str| {
        fs::write(dir.join("c.toml"), format!("model = \"tiny\"\ndata = \"rows.jsonl\"\nout = \"{out}\"\n{more}"))
            .expect("written");
    };
    for (out, more, command, words) in [
        (
            "o",
            "quarantine = \"c.toml\"\ncheck-data = true",
            "sft --config c.toml",
            &["--quarantine", "as --config"][..],
        ),
        ("o", "quarantine = \"rows.jsonl\"\ncheck-data = true", "sft --config c.toml", &["same file as --data"]),
        ("o", "", "sft --config c.toml --trace rows.jsonl", &["--trace", "rows.jsonl"]),
        ("o", "", "sft --config c.toml --trace i.png", &["--trace: is i.png, which exists and is not a trace"]),
        ("o", "", "sft --config c.toml --check-data --quarantine i.png", &["is not a list of unusable rows"]),
        ("old", "", "sft --config c.toml --overwrite --trace old/model.safetensors", &["writes itself (--out)"]),
        ("c.toml", "", "sft --config c.toml", &["--out: is c.toml, the same file as --config"]),
        ("o", "", "score --model tiny --messages m.json --out s --trace s", &["--trace: is ", "as --out is"]),
        ("o", "", "preprocess --model tiny --messages m.json --out -", &["--out: is -, ", "./-"]),
    ] {
        config(out, more);
        fs::create_dir_all(dir.join("old")).expect("a folder");
        let kept = |name: &str| fs::read(dir.join(name)).expect("a file");
        let before = ["c.toml", "rows.jsonl", "i.png"].map(kept);
        run_in(dir, command.split(' ')).refused(2, words);
        assert!(before == ["c.toml", "rows.jsonl", "i.png"].map(kept), "{command}: an input changed");
        assert!(!dir.join("o").exists() && !dir.join("s").exists() && !dir.join("-").exists(), "{command}");
    }
    run_in(dir, ["reward", "--input", "r.jsonl", "--output", "scores.jsonl"]).ok();
}

#[test]
fn errors_name_the_true_cause() {
    let s = Workspace::new();
    let dir = s.dir.path();
    std::os::unix::fs::symlink("loop", dir.join("loop")).expect("a link");
    fs::write(dir.join("m.json"), r#"[{"role": "user", "content": "x"}]"#).expect("written");
    for (command, code, words) in [
        ("generate --model loop --prompt x", 1, &["loop: ", "symbolic links"][..]),
        ("preprocess --model tiny --messages loop --out p", 1, &["loop: ", "symbolic links"]),
        ("sft --model tiny --data loop --out o", 1, &["loop: ", "symbolic links"]),
        ("sft --model tiny --data m.json --out loop", 1, &["loop", "symbolic links"]),
        ("init --preset tiny --out loop", 1, &["loop: ", "symbolic links"]),
        ("init --preset tiny --layers 0 --out o", 2, &["--layers: is 0; give 1 to 1000"]),
        ("plan sft --preset 3b --layers 0 --tokens 9 --gpu h100", 2, &["--layers: is 0"]),
        (
            "score --model tiny --messages m.json --out a/b/s",
            1,
            &["a/b/s: ", "the folder a does not exist", "create it"],
        ),
        ("report tiny", 1, &["tiny: is not the output folder of a run", "reel sft"]),
        ("report m.json", 1, &["m.json: is not a folder"]),
        ("report none", 1, &["none: ", "no such file or folder"]),
        ("replay tiny --step 1", 1, &["tiny: is not the output folder of a run: it has no run.json"]),
        ("init --preset tiny --out m.json", 1, &["m.json: cannot be written: a file of this name exists"]),
        ("score --model tiny --messages m.json --out .", 1, &[".: cannot be written: it is a folder"]),
        ("frames --video http://127.0.0.1:1/v.mp4", 1, &["is an address, but reel frames reads files"]),
        ("frames --video m.json", 1, &["m.json: ", "FFmpeg finds no video in it"]),
        ("generate --model tiny --prompt x --stop=", 2, &["--stop: is an empty text"]),
    ] {
        run_in(dir, command.split(' ')).refused(code, words);
    }
    assert_eq!(file_names_in(dir), ["loop", "m.json", "tiny"]);
}
