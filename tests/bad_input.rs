//! Bad input (messages, rows, images, videos) gives a one-line error that names the file and what to do, and leaves no
//! output file.

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{FinishedRun, crc32, file_names_in, golden, run, run_in};
use workspace::ModelWorkspace;

#[test]
fn invalid_inputs_files_are_refused() {
    let s = ModelWorkspace::new();
    let run =
        |name: &str| run_in(s.dir.path(), ["score", "--model", "tiny", "--inputs", name, "--out", "s.safetensors"]);
    run("none.safetensors").assert_refused(1, &["none.safetensors"]);
    fs::write(s.dir.path().join("junk.safetensors"), "junk").expect("written");
    run("junk.safetensors").assert_refused(1, &["junk.safetensors"]);
    // This file is valid safetensors, but has weights instead of model inputs: the tensor `input_ids` is missing.
    run("tiny/model.safetensors").assert_refused(1, &["input_ids"]);
    assert!(!s.dir.path().join("s.safetensors").exists());
}

#[track_caller]
fn assert_video_refused(file: &Path, more: &[&str], words: &[&str]) {
    let dir = tempfile::tempdir().expect("a folder");
    let (video, out) = (file.display().to_string(), dir.path().join("f.safetensors").display().to_string());
    run(support::with_options(&["frames", "--video", &video, "--out", &out], more)).assert_refused(1, words);
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
    // An image counts as one frame, so `--nframes 4` is an error for an image.
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

/// Each thing that decoding on a GPU needs is asked for by name, before anything else is done. The NVIDIA driver of the
/// machine is hidden by files of the same names.
#[test]
#[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
fn a_machine_that_cannot_decode_on_a_gpu_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path();
    let maps = fs::read_to_string("/proc/self/maps").expect("it is readable");
    let library = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.contains("libc.so"));
    let library = library.expect("this program uses libc");
    let clip = golden("clips/h264_709.mp4").display().to_string();
    let refused = |words: &[&str]| {
        for command in [
            &["frames", "--video", &clip, "--out", "frames.safetensors"][..],
            &["sft", "--model", "none", "--data", "none.jsonl", "--out", "out"],
        ] {
            let mut reel = support::reel();
            reel.current_dir(at).env("LD_LIBRARY_PATH", at).args(command).args(["--decoder", "nvdec"]);
            let done = support::finished_run(reel.output().expect("the binary starts"));
            done.assert_refused(2, &[&["--decoder nvdec: ", "leave this option out"], words].concat());
            assert!(!at.join("out").exists() && !at.join("frames.safetensors").exists());
        }
    };
    fs::write(at.join("libcuda.so.1"), "damaged").expect("written");
    refused(&["libcuda.so.1 cannot be loaded; install the NVIDIA driver"]);
    fs::copy(library, at.join("libcuda.so.1")).expect("copied");
    fs::write(at.join("libnvcuvid.so.1"), "damaged").expect("written");
    refused(&["libnvcuvid.so.1 cannot be loaded", "NVIDIA_DRIVER_CAPABILITIES"]);
    fs::copy(library, at.join("libnvcuvid.so.1")).expect("copied");
    // Depends on whether the machine's FFmpeg was built with NVDEC.
    refused(&[]);
    run(["frames", "--video", &clip, "--decoder", "gpu"])
        .assert_refused(2, &["--decoder: \"gpu\" is not a possible value; give one of cpu, nvdec"]);
    run(["frames", "--video", &clip, "--decoder", "cpu"]).ok();
}

#[test]
fn invalid_or_too_large_images_are_refused() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    // A PNG file whose header states a size of 100 000 × 100 000 pixels.
    let side = 100_000u32.to_be_bytes();
    let header = [&b"IHDR"[..], &side, &side, &[8, 2, 0, 0, 0]].concat();
    let parts = [b"\x89PNG\r\n\x1a\n", &13u32.to_be_bytes()[..], &header, &crc32(&header).to_be_bytes(), &[0; 64]];
    fs::write(dir.join("bomb.png"), parts.concat()).expect("written");
    fs::write(dir.join("text.png"), "not an image").expect("written");
    fs::write(dir.join("empty.png"), "").expect("written");
    for (name, content, what) in [
        ("pointer.png", &b"version https://git-lfs.github.com/spec/v1\n"[..], "is a pointer of Git LFS"),
        ("page.png", b"<html><body>Not Found</body></html>", "is a web page (HTML)"),
        ("avif.png", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "is an AVIF image, which is not supported; convert it"),
        ("heic.png", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image, which is not supported; convert it"),
    ] {
        fs::write(dir.join(name), content).expect("written");
        preprocess_image(&s, name, &[]).assert_refused(1, &[&format!("{name}: {what}")]);
        assert_video_refused(&dir.join(name), &[], &[what]);
    }
    for name in ["bomb.png", "text.png", "empty.png", "none.png"] {
        let got =
            run_in(dir, ["generate", "--model", "tiny", "--image", name, "--prompt", "?", "--max-new-tokens", "1"]);
        got.assert_refused(1, &[name]);
    }
}

#[test]
fn malformed_messages_are_refused() {
    let s = ModelWorkspace::new();
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
        got.assert_refused(1, &[word]);
        assert!(!s.dir.path().join("p.safetensors").exists());
    }
}

/// These grammars would overflow a stack if this process alone compiled them.
#[test]
fn deep_grammars_are_refused() {
    let s = ModelWorkspace::new();
    let rules: Vec<String> = (0..50_000).map(|i| format!("a{i}: \"x\" a{} \"y\"", i + 1)).collect();
    let grammar = format!("start: a0\n{}\na50000: \"x\"\n", rules.join("\n"));
    let mut schema = json!({"$ref": "#/$defs/d0", "$defs": {"d20000": {"type": "null"}}});
    for i in 0..20_000 {
        schema["$defs"][format!("d{i}")] = json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}});
    }
    for form in [json!({"guided_grammar": grammar}), json!({"guided_json": schema})] {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
        body.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        fs::write(s.dir.path().join("m.json"), body.to_string()).expect("written");
        let got = run_in(s.dir.path(), ["generate", "--model", "tiny", "--messages", "m.json", "--device", "cpu"]);
        got.assert_refused(1, &["grammar: ", "use a smaller or simpler grammar"]);
    }
}

/// Replaces the file `path` by a pipe without a writer.
fn replace_by_pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo starts").success());
}

/// Opening a pipe without a writer never returns, and a device such as `/dev/zero` never ends: such inputs are refused.
#[test]
fn pipes_devices_and_folders_are_no_inputs() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    let zero = "/dev/zero";
    let refused = |args: &[&str], word: &str| {
        let said = "is not a regular file; copy its content to a file";
        run_in(dir, args).assert_refused(1, &[word, said]);
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
    run_in(dir, [&score[..], &["--messages", "tiny"]].concat())
        .assert_refused(1, &["tiny: is a folder, not a regular file"]);
    let files = ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json"];
    for file in files.into_iter().chain(["tokenizer.json", "chat_template.jinja", "model.safetensors"]) {
        let kept = fs::read(s.model_file(file)).ok();
        replace_by_pipe(&s.model_file(file));
        s.run_score().assert_refused(1, &[file, "not a regular file"]);
        fs::remove_file(s.model_file(file)).expect("removed");
        let _ = kept.map(|bytes| fs::write(s.model_file(file), bytes).expect("written"));
    }
    assert_eq!(file_names_in(dir), ["m.json", "tiny"]);
}

/// Writes a chat message with one image, and runs `reel preprocess` on it.
fn preprocess_image(s: &ModelWorkspace, image: &str, more: &[&str]) -> FinishedRun {
    let body = json!([{"role": "user", "content": [{"type": "image", "image": image}]}]);
    fs::write(s.dir.path().join("m.json"), body.to_string()).expect("written");
    let args = ["preprocess", "--model", "tiny", "--messages", "m.json", "--out", "p.safetensors"];
    run_in(s.dir.path(), support::with_options(&args, more))
}

#[test]
fn media_of_other_networks_and_folders_are_refused() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    let here = "http://user:password@127.0.0.1:1/x.png?key=secret";
    let got = preprocess_image(&s, here, &[]);
    got.assert_refused(1, &["http://127.0.0.1:1/x.png: is an address", "only with --allow-remote-media"]);
    assert!(!got.stderr.contains("secret") && !got.stderr.contains("password"), "{}", got.stderr);
    let allowed = "--allow-remote-media";
    preprocess_image(&s, here, &[allowed]).assert_refused(1, &["127.0.0.1, which is not on the public internet"]);
    preprocess_image(&s, "https://example.com/x.png", &[allowed, "--offline"])
        .assert_refused(1, &["because --offline is given"]);
    // A media address in an option needs no `--allow-remote-media`, but an address in a private network is refused
    // there as well.
    for flag in ["--video", "--image"] {
        let ask = ["generate", "--model", "tiny", "--prompt", "?", flag, "http://127.0.0.1:1/x"];
        run_in(dir, ask).assert_refused(1, &["which is not on the public internet"]);
    }
    // Media addresses in rows of training data are refused as in chat messages.
    let row = json!({"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "x"}], "images": [here]});
    fs::write(dir.join("rows.jsonl"), row.to_string()).expect("written");
    let sft = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "o", "--device", "cpu"];
    run_in(dir, sft).assert_refused(1, &["rows.jsonl:1", "only with --allow-remote-media"]);

    fs::create_dir(dir.join("media")).expect("a folder");
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("media/a.png")).expect("copied");
    fs::copy(golden("pixels/00_png_rgb.png"), dir.join("b.png")).expect("copied");
    std::os::unix::fs::symlink(dir.join("b.png"), dir.join("media/link.png")).expect("a link");
    let confined = ["--media-root", "media", "--confine-media"];
    preprocess_image(&s, "a.png", &confined).ok();
    preprocess_image(&s, "../b.png", &confined[..2]).ok();
    fs::remove_file(dir.join("p.safetensors")).expect("removed");
    for outside in ["../b.png", "link.png", "/etc/hostname"] {
        preprocess_image(&s, outside, &confined).assert_refused(1, &["lies outside of media", "--media-root"]);
        let typed = ["generate", "--model", "tiny", "--prompt", "x", "--image", outside];
        run_in(s.dir.path(), [&typed[..], &confined].concat())
            .assert_refused(1, &["lies outside of media", "--media-root"]);
    }
    run_in(dir, ["score", "--model", "org/none", "--messages", "m.json", "--out", "s.safetensors"])
        .assert_refused(1, &["org/none", "HF_HUB_OFFLINE"]);
    let mut offline = support::reel();
    offline.env_remove("HF_HUB_OFFLINE").args(["tokenize", "--model", "org/none", "--offline"]);
    support::finished_run(offline.output().expect("it starts"))
        .assert_refused(1, &["org/none", "because --offline is set"]);
}

/// Control characters in the text of files, models and rows must not reach the terminal.
#[test]
fn control_characters_are_printed_escaped() {
    let s = ModelWorkspace::new();
    let shown = "\\u{1b}[2Jname\\u{9b}.json";
    run_in(s.dir.path(), ["preprocess", "--model", "tiny", "--messages", "\u{1b}[2Jname\u{9b}.json", "--out", "p"])
        .assert_refused(1, &[shown]);
    let usage = run(["resize", "--height", "\u{1b}[2J\u{9b}", "--width", "1"]);
    assert!(!usage.assert_refused(2, &["--height"]).stderr.contains(['\u{1b}', '\u{9b}']), "{:?}", usage.stderr);
    s.edit_json("config.json", |c| c["model_type"] = json!("\u{1b}]0;title\u{7}"));
    s.run_score().assert_refused(1, &["\\u{1b}]0;title\\u{7}"]);
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
fn errors_name_the_true_cause() {
    let s = ModelWorkspace::new();
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
        ("frames --video m.json", 1, &["m.json: ", "FFmpeg finds no video in this file"]),
        ("generate --model tiny --prompt x --stop=", 2, &["--stop: is an empty text"]),
    ] {
        run_in(dir, command.split(' ')).assert_refused(code, words);
    }
    assert_eq!(file_names_in(dir), ["loop", "m.json", "tiny"]);
}
