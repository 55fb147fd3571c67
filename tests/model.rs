//! The cases of `tests/golden/model`: the outputs of the commands agree with those of transformers and do not depend
//! on the number of threads or the batch.

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "model/wide.rs"]
mod wide;

use std::path::{Path, PathBuf};

use reel_support::diagnostic::escape_controls;
use serde_json::Value;
use support::{golden, run, run_in};
use tensors::{assert_close, assert_elements_close, gathered_rows, read_tensors};

/// A case of `tests/golden/model`, with a folder for outputs.
struct Case {
    folder: PathBuf,
    expected: Value,
    out: tempfile::TempDir,
}

fn case(name: &str) -> Case {
    let folder = golden("model").join(name);
    let text = std::fs::read_to_string(folder.join("expected.json")).expect("expected.json");
    Case { folder, expected: serde_json::from_str(&text).expect("JSON"), out: tempfile::tempdir().expect("a folder") }
}

impl Case {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn tolerance(&self, name: &str) -> f64 {
        self.expected["tolerances"][name].as_f64().unwrap_or_else(|| panic!("no tolerance {name}"))
    }

    /// The tolerance of the vision tokens `name`; the cases of Qwen3-VL have one for each.
    fn tolerance_of_embeds(&self, name: &str) -> f64 {
        self.expected["tolerances"]["embeds_rel"][name].as_f64().unwrap_or_else(|| self.tolerance("embeds_rel"))
    }

    fn score(&self, more: &[&str]) -> PathBuf {
        let out = self.out.path().join("score.safetensors");
        let (model, to) = (self.path("model"), out.display().to_string());
        run(support::with_options(&["score", "--model", &model, "--out", &to], more)).ok();
        out
    }
}

/// Checks that preprocessing, logits in f32 and bf16, and greedy generation of a case agree with transformers.
fn check(name: &str) {
    let c = case(name);
    check_preprocessing(&c);
    check_scores(&c, "f32");
    check_scores(&c, "bf16");
    check_greedy_completion(&c);
}

fn check_preprocessing(c: &Case) {
    let out = c.out.path().join("pre.safetensors");
    let to = out.display().to_string();
    run(["preprocess", "--model", &c.path("model"), "--messages", &c.path("messages.json"), "--out", &to]).ok();
    let (got, want) = (read_tensors(&out), read_tensors(Path::new(&c.path("inputs.safetensors"))));
    let exact = ["input_ids", "position_ids", "rope_delta", "image_grid_thw", "video_grid_thw", "frame_indices"];
    for name in exact.into_iter().filter(|n| want.contains_key(*n)) {
        assert_eq!(got[name], want[name], "{name}");
    }
    if let Some(times) = want.get("second_per_grid_ts") {
        assert_elements_close("second_per_grid_ts", &got["second_per_grid_ts"].values, &times.values, 1e-5);
    }
    for name in ["pixel_values", "pixel_values_videos"] {
        // The difference between two neighbouring values of an 8-bit pixel after normalisation: 1/255, divided by a
        // standard deviation of at least 0.26.
        let level = 1.0 / 255.0 / 0.26;
        if let Some(pixels) = want.get(name) {
            let (got, mean) = (&got[name].values, c.tolerance("pixel_mean_levels") * level);
            assert_eq!(got.len(), pixels.values.len(), "{name}");
            let off: f64 = got.iter().zip(&pixels.values).map(|(g, w)| (g - w).abs()).sum::<f64>() / got.len() as f64;
            assert!(off <= mean, "{name}: pixels differ by {off:.3e} on average");
        }
    }
}

fn check_scores(c: &Case, dtype: &str) {
    let want = read_tensors(Path::new(&c.path("expected.safetensors")));
    let limit = c.tolerance(if dtype == "bf16" { "logits_rel_bf16" } else { "logits_rel" });
    let got = read_tensors(&c.score(&["--inputs", &c.path("inputs.safetensors"), "--dtype", dtype]));
    let logits = |got: &tensors::Tensor| gathered_rows(got, &want["logit_rows"].values);
    assert_close("logits from inputs", &logits(&got["logits"]), &want["logits"].values, limit);
    if dtype == "f32" {
        assert_elements_close(
            "logprobs",
            &got["logprobs"].values,
            &want["logprobs"].values,
            c.tolerance("logprobs_abs"),
        );
    }
    for name in ["image_embeds", "video_embeds"].into_iter().filter(|n| want.contains_key(*n)) {
        let limit = if dtype == "bf16" { limit } else { c.tolerance_of_embeds(name) };
        assert_close(name, &got[name].values, &want[name].values, limit);
    }
    let got = read_tensors(&c.score(&["--messages", &c.path("messages.json"), "--dtype", dtype]));
    let limit = limit.max(c.tolerance("logits_rel_from_messages"));
    assert_close("logits from messages", &logits(&got["logits"]), &want["logits"].values, limit);
}

fn check_greedy_completion(c: &Case) {
    let greedy = &c.expected["greedy"];
    let (model, messages, max_new_tokens) =
        (c.path("model"), c.path("messages.json"), greedy["max_new_tokens"].to_string());
    let base = ["generate", "--model", &model, "--messages", &messages, "--max-new-tokens", &max_new_tokens];
    let got = run([&base[..], &["--temperature", "0", "--json"]].concat());
    let got = got.json();
    assert_eq!(got["token_ids"], greedy["token_ids"]);
    assert_eq!(got["text"], greedy["text"]);
    assert_eq!(got["finish_reason"], greedy["finish_reason"]);
    assert_eq!(got["prompt_tokens"], c.expected["prompt_tokens"]);
}

#[test]
fn text_multiturn_agrees_with_transformers() {
    check("text_multiturn");
}

#[test]
fn image_hd128_bf16_agrees_with_transformers() {
    check("image_hd128_bf16");
}

#[test]
fn two_images_sharded_agrees_with_transformers() {
    check("two_images_sharded");
}

#[test]
fn video_mp4_agrees_with_transformers() {
    check("video_mp4");
}

#[test]
fn frames_list_agrees_with_transformers() {
    check("frames_list");
}

#[test]
fn mixed_stop_agrees_with_transformers() {
    check("mixed_stop");
}

#[test]
fn qwen3_mqa_video_agrees_with_transformers() {
    check("qwen3_mqa_video");
}

#[test]
fn qwen3_thinking_mixed_agrees_with_transformers() {
    check("qwen3_thinking_mixed");
}

/// transformers 5 keeps the marks of the chat template around a video.
#[test]
fn outer_video_marks_are_those_of_transformers_5() {
    for name in ["qwen3_mqa_video", "qwen3_thinking_mixed"] {
        let c = case(name);
        let out = c.out.path().join("pre.safetensors");
        let (model, messages, to) = (c.path("model"), c.path("messages.json"), out.display().to_string());
        let args = ["preprocess", "--model", &model, "--messages", &messages, "--video-marks", "outer", "--out", &to];
        run(args).ok();
        let (got, want) = (read_tensors(&out), read_tensors(Path::new(&c.path("inputs.safetensors"))));
        assert_eq!(got["input_ids"], want["input_ids_v5"], "{name}");
        assert_eq!(got["position_ids"], want["position_ids_v5"], "{name}");
    }
}

#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let c = case("video_mp4");
    let inputs = c.path("inputs.safetensors");
    for dtype in ["f32", "bf16"] {
        let bytes = |threads: &str| {
            std::fs::read(c.score(&["--inputs", &inputs, "--dtype", dtype, "--threads", threads])).expect("the scores")
        };
        let one = bytes("1");
        assert!(one == bytes("2") && one == bytes("3"), "{dtype}: the number of threads changed the results");
    }
}

#[test]
fn completions_depend_on_their_seed_only() {
    let c = case("text_multiturn");
    let sample = |n: &str, seed: &str| {
        let (model, messages) = (c.path("model"), c.path("messages.json"));
        let args =
            ["generate", "--model", &model, "--messages", &messages, "--max-new-tokens", "12", "--temperature", "1"];
        let got = run([&args[..], &["--n", n, "--seed", seed, "--json"]].concat()).json();
        match got {
            Value::Array(all) => all.iter().map(|a| a["token_ids"].clone()).collect(),
            one => vec![one["token_ids"].clone()],
        }
    };
    let three = sample("3", "5");
    assert_eq!(three.len(), 3);
    assert_ne!(three[0], three[1]);
    assert_eq!(sample("1", "5"), three[..1]);
    // Completion i is sampled with the seed plus i.
    assert_eq!(sample("1", "6"), three[1..2]);
}

/// With int8 weights, the answer to a row is the same in every run, for any number of threads and any batch.
#[test]
fn int8_completions_do_not_depend_on_threads_or_batch() {
    let c = case("text_multiturn");
    let rows: String = (0..5)
        .map(|i| {
            let text = "word ".repeat(1 + 7 * i);
            format!(
                "{{\"prompt\": [{{\"role\": \"user\", \"content\": \"{text}\"}}], \"problem_type\": \"numerical\", \
                 \"solution\": \"<answer>{i}</answer>\"}}\n"
            )
        })
        .collect();
    let data = c.out.path().join("rows.jsonl");
    std::fs::write(&data, rows).expect("a file");
    let predictions = |name: &str, more: &[&str]| {
        let out = c.out.path().join(name);
        let (model, data, to) = (c.path("model"), data.display().to_string(), out.display().to_string());
        let base = [
            "generate",
            "--model",
            &model,
            "--data",
            &data,
            "--out",
            &to,
            "--max-new-tokens",
            "9",
            "--temperature",
            "0",
        ];
        run(support::with_options(&base, more)).ok();
        let text = std::fs::read_to_string(out).expect("predictions");
        let output = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["output"].clone();
        text.lines().map(output).collect::<Vec<_>>()
    };
    for dtype in ["f32", "bf16"] {
        let int8 = ["--quantize", "int8", "--dtype", dtype];
        let of =
            |name: &str, more: &[&str]| predictions(&format!("{dtype}-{name}"), &support::with_options(&int8, more));
        let want = of("1", &["--threads", "1", "--batch-size", "1"]);
        assert!(want.len() == 5 && want.iter().all(|output| output.is_string()), "{want:?}");
        assert_eq!(want, of("2", &["--threads", "2"]));
        assert_eq!(want, of("3", &["--threads", "3", "--batch-size", "3"]));
    }
    // Predictions made with int8 weights cannot be continued with other weights.
    let out = c.out.path().join("f32-1").display().to_string();
    let (model, data) = (c.path("model"), data.display().to_string());
    let base = ["generate", "--model", &model, "--data", &data, "--out", &out, "--max-new-tokens", "9"];
    run([&base[..], &["--temperature", "0", "--threads", "1", "--batch-size", "1", "--dtype", "f32", "--resume"]]
        .concat())
    .assert_refused(2, &["--quantize: is null, but it was \"int8\""]);
}

#[test]
fn stop_string_ends_the_text_before_it() {
    let c = case("text_multiturn");
    let (model, messages) = (c.path("model"), c.path("messages.json"));
    let base = ["generate", "--model", &model, "--messages", &messages, "--max-new-tokens", "24", "--temperature", "0"];
    let whole = run([&base[..], &["--json"]].concat()).json();
    let text = whole["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(6).take(2).collect();
    let cut = text.find(&stop).expect("it is there");
    let stopped = run([&base[..], &["--stop", &stop, "--json"]].concat()).json();
    assert_eq!(stopped["text"], text[..cut]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["token_ids"].as_array().expect("ids").len() < whole["token_ids"].as_array().expect("ids").len());
    // Without `--json`, the text is streamed to stdout, and it also ends before the stop string. If stdout is a pipe,
    // control characters are not escaped.
    assert_ne!(escape_controls(text), text, "this text has control characters");
    assert_eq!(run([&base[..], &["--stop", &stop]].concat()).ok(), format!("{}\n", &text[..cut]));
    assert_eq!(run(base).ok(), format!("{text}\n"));
}

/// A messages file may be stdin. It may be the whole body of an OpenAI request; `generate` then uses its sampling
/// fields, unless flags set them.
#[test]
fn messages_may_be_stdin_or_a_request_body() {
    use std::io::Write as _;
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    support::tiny_model(at);
    let messages = r#"[{"role": "user", "content": "Hello"}]"#;
    let body = format!(
        r#"{{"messages": {messages}, "temperature": 0.8, "seed": 5, "max_tokens": 6, "n": 2, "stream": true}}"#
    );
    std::fs::write(at.join("m.json"), messages).expect("written");
    std::fs::write(at.join("body.json"), &body).expect("written");
    let generate =
        |more: &[&str]| run_in(at, support::with_options(&["generate", "--model", "tiny", "--json"], more)).json();
    let ids = |result: &serde_json::Value| result["token_ids"].clone();
    let by_flags =
        generate(&["--messages", "m.json", "--temperature", "0.8", "--seed", "5", "--max-new-tokens", "6", "--n", "2"]);
    let by_body = generate(&["--messages", "body.json"]);
    assert_eq!((ids(&by_body[0]), ids(&by_body[1])), (ids(&by_flags[0]), ids(&by_flags[1])));
    // Flags take precedence over the fields of the request body.
    let greedy = generate(&["--messages", "body.json", "--temperature", "0", "--n", "1", "--max_tokens", "3"]);
    assert_eq!(ids(&greedy), ids(&generate(&["--messages", "m.json", "--temperature", "0", "--max-new-tokens", "3"])));
    let mut child = support::reel()
        .current_dir(at)
        .args(["generate", "--model", "tiny", "--json", "--messages", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(body.as_bytes()).expect("written");
    let piped = support::finished_run(child.wait_with_output().expect("it ends")).json();
    assert_eq!(ids(&piped[1]), ids(&by_flags[1]));
    for (flag, value) in [("--temperature", "-1"), ("--top-p", "0"), ("--repetition-penalty", "-1e-3"), ("--n", "-1")] {
        run_in(at, ["generate", "--model", "tiny", "--prompt", "x", flag, value])
            .assert_refused(2, &[&format!("{flag}: ")]);
    }
    std::fs::write(at.join("bad.json"), format!(r#"{{"messages": {messages}, "logprobs": 3}}"#)).expect("written");
    run_in(at, ["generate", "--model", "tiny", "--messages", "bad.json"]).assert_refused(1, &["bad.json: logprobs: "]);
}
