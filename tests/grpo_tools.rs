//! GRPO with tools as a command: a model that calls `crop_video` and a user's tool inside its answers. Checks the bits of
//! training against sampling across turns, replay, kills and ranks; and that bad tools lose nothing.

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/tool_model.rs"]
mod tool_model;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_input::media::frames::FrameBuf;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::strip::frame_strip;
use reel_input::media::worker::DecodeWorker;
use reel_input::{Conversation, MediaOptions, ModelFolder, ModelInput};
use reel_runtime::ops::KvPages;
use reel_samples::feed::SampleSource;
use reel_samples::rewards::ProgramLog;
use reel_samples::sample::tokenize_conversation;
use reel_train::options::{RunOptions, SftOptions, ToolOptions};
use reel_train::rollout::tools::call::calls_in;
use reel_train::rollout::tools::content::encode_tool_turn;
use reel_train::rollout::tools::{CallContext, ToolSet};
use reel_train::runs::sft;
use reel_train::setup::DataSetup;
use serde_json::{Value, json};
use server::Server;
use support::{metrics_without_times, read_metrics, reel, run_in};
use tool_model::{CALL, LISTED, MEDIA, QUESTION, folder};

fn grpo(out: &str, more: &[&str]) -> Vec<String> {
    let fixed = [
        "grpo",
        "--model",
        "warm",
        "--out",
        out,
        "--media-root",
        ".",
        "--quiet",
        "--tools",
        "crop_video",
        "--reward-command",
        "while read -r line; do echo $((${#line} % 7)); done",
    ];
    let rest = "--data rows.jsonl --num-generations 4 --per-device-train-batch-size 4 --max-completion-length 160 \
                --learning-rate 1e-4 --beta 0.04 --temperature 0.7 --top-p 1 --max-steps 2";
    let fixed: Vec<&str> = fixed.into_iter().chain(rest.split_whitespace()).chain(MEDIA).collect();
    support::with_options(&fixed, more).into_iter().map(String::from).collect()
}

/// Removes an option and its value.
fn without(mut arguments: Vec<String>, option: &str) -> Vec<String> {
    let index = arguments.iter().position(|argument| argument == option).expect("the option");
    arguments.drain(index..index + 2);
    arguments
}

fn rollouts(out: &Path, step: usize) -> Vec<Value> {
    let path = out.join(format!("rollouts/{step:06}.jsonl"));
    let text = fs::read_to_string(&path).expect("rollouts");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn calls(line: &Value) -> Vec<Value> {
    let turns =
        line["tool_turns"].as_array().expect("turns").iter().flat_map(|turns| turns.as_array().expect("a list"));
    turns.flat_map(|turn| turn["calls"].as_array().expect("calls").clone()).collect()
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("model.safetensors")).expect("weights")
}

#[test]
fn training_has_the_bits_of_sampling_across_turns() {
    let at = folder();
    for (out, more) in [("shared", &[][..]), ("alone", &["--shared-prefix", "false"]), ("bf16", &["--dtype", "bf16"])] {
        run_in(at, grpo(out, more)).ok();
        let metrics = read_metrics(&at.join(out));
        for step in &metrics {
            assert_eq!(step["rollout_drift"], 0.0, "{out}: {step}");
            assert!(step["tools/calls"].as_f64() >= Some(0.5), "{out}: {step}");
        }
        for line in (1..=2).flat_map(|step| rollouts(&at.join(out), step)) {
            let good: Vec<Value> = calls(&line).into_iter().filter(|call| call["is_error"] == false).collect();
            assert!(good.len() >= 2, "{line}");
            for call in good {
                assert_eq!((&call["name"], call["frames"].as_u64() >= Some(2)), (&json!("crop_video"), true), "{call}");
                let times: Vec<f64> = serde_json::from_value(call["times"].clone()).expect("times");
                let argument = |name: &str| call["arguments"][name].as_f64().expect("a number");
                assert!(times.iter().all(|t| (argument("start")..=argument("end")).contains(t)), "{call}");
            }
            for (turns, of_tools) in
                line["turns"].as_array().into_iter().flatten().zip(line["tool_turns"].as_array().into_iter().flatten())
            {
                assert_eq!(turns.as_array().map(Vec::len), of_tools.as_array().map(|turns| turns.len() + 1));
            }
        }
    }
    assert!(weights(&at.join("shared")) != weights(&at.join("warm")), "nothing was learned");
    run_in(at, ["report", "shared"]).ok();
    let page = fs::read_to_string(at.join("shared/report.html")).expect("a page");
    for step in 1..=2 {
        let group = &rollouts(&at.join("shared"), step)[0];
        let turns = group["tool_turns"].as_array().expect("turns").iter().enumerate();
        let shown = turns.filter(|(_, turns)| turns[0]["calls"][0]["frames"].as_u64() >= Some(1));
        assert_eq!(page.matches("<article").count(), 2);
        for (completion, _) in shown {
            let strip =
                fs::read(at.join(format!("shared/rollouts/strips/{step:06}.{completion}.0.0.png"))).expect("a PNG");
            assert!(page.contains(&STANDARD.encode(strip)), "step {step}, completion {completion}");
        }
    }
    assert!(page.contains("<small>crop_video: The video from 0.5 s to 1.5 s: (2 frames)</small>"));
    run_in(at, ["replay", "shared", "--step", "2"]).ok();
}

/// A row with the column `tools` gives `reel sft` the tokens, positions and frames that a rollout gives for the same
/// turns, and only those of the model are learned: with two calls in a turn, one of which fails.
#[test]
fn sft_rows_equal_rollouts() {
    let at = folder();
    run_in(at, ["init", "--preset", "qwen3-tiny", "--out", "qwen3"]).ok();
    run_in(at, ["init", "--preset", "tiny", "--out", "qwen2.5"]).ok();
    let sizes = MediaOverrides { min_pixels: Some(3136), max_pixels: Some(4096), ..MediaOverrides::default() };
    let decoder = DecodeWorker::new(reel().get_program());
    let media = MediaOptions { profile: MediaProfile::Qwen, overrides: sizes, decoder, ..MediaOptions::default() };
    let options = ToolOptions { tools: vec!["crop_video".into()], ..ToolOptions::default() };
    let tools = ToolSet::open(&options, &media, &ProgramLog::new(|_| {})).expect("tools");
    let calls = [json!({"name": "crop_video", "arguments": {"start": 0.5, "end": 1.5}}), json!({"name": "look"})];
    let user = json!({"role": "user", "content": [{"type": "video", "video": "clip.mp4", "nframes": 2},
        {"type": "text", "text": QUESTION}]});
    for family in ["qwen2.5", "qwen3"] {
        let model = at.join(family);
        let bundle = ModelFolder::open(&model).expect("a model folder");
        let tokens = |text: &str| bundle.tokenizer.encode(text).expect("tokens");
        let conversation = Conversation::from_row("row", &json!([user]), at, None).expect("a conversation");
        let conversation = conversation.with_tools(tools.definitions().to_vec());
        let mut rollout = tokenize_conversation(&bundle, &conversation, true, &media, "row").expect("a prompt");
        let prompt_len = rollout.len();
        let own = |text: &str| ModelInput { input_ids: tokens(text), ..ModelInput::default() };
        let mut append = |turn: &ModelInput| {
            let first = rollout.len();
            rollout.append(turn, &bundle.config, "row").expect("a turn");
            (first..rollout.len(), rollout.clone())
        };
        let text = format!("{CALL}\n<tool_call>\n{{\"name\": \"look\", \"arguments\": {{}}}}\n</tool_call>");
        let (first_turn, _) = append(&own(&format!("I look.\n{text}<|im_end|>")));
        let context = CallContext { videos: vec![at.join("clip.mp4")], row: serde_json::Map::new() };
        let (records, answers): (Vec<_>, Vec<_>) = calls_in(&text, options.tags())
            .into_iter()
            .map(|call| tools.answer(call, &context, &bundle, 8, &AtomicBool::new(false)).expect("an answer"))
            .unzip();
        assert_eq!(records.iter().map(|record| record.is_error).collect::<Vec<_>>(), [false, true]);
        append(&encode_tool_turn(&bundle, answers, true, "").expect("a turn"));
        let (last_turn, _) = append(&own("<answer>red</answer><|im_end|>"));
        // The chat template ends the last turn with a line break, which a rollout has no need of.
        let (_, rollout) = append(&own("\n"));
        let called = json!({"role": "assistant", "content": "I look.", "tool_calls": calls.each_ref().map(|call|
            json!({"type": "function", "function": call}))});
        let answer = |i: usize| json!({"role": "tool", "content": records[i].content});
        let row = json!({"tools": tools.definitions(), "messages": [user, called, answer(0), answer(1),
            {"role": "assistant", "content": "<answer>red</answer>"}]});
        let data = at.join(format!("{family}.jsonl"));
        fs::write(&data, row.to_string()).expect("rows");
        let run = RunOptions { data, media_root: Some(at.into()), ..RunOptions::default() };
        let setup = DataSetup { model: &model, media: &media, seed: 0 };
        let options = SftOptions { run, ..SftOptions::default() };
        let sample = sft::open_samples(&options, &setup).expect("samples").sample(0).expect("a sample");
        assert_eq!(sample.tokens, rollout, "{family}");
        let learned = |t: &usize| sample.targets[t - 1] >= 0;
        let of_model: Vec<usize> = first_turn.chain(last_turn).collect();
        assert!(prompt_len < rollout.len() && (1..rollout.len()).filter(learned).eq(of_model), "{family}");
    }
}

#[test]
fn killed_runs_with_tools_equal_uninterrupted_ones() {
    let at = folder();
    let more = ["--max-steps", "12", "--num-iterations", "2", "--save-steps", "1", "--save-total-limit", "2"];
    let begun = Instant::now();
    run_in(at, grpo("whole", &more)).ok();
    let whole = begun.elapsed();
    let mut kills = 0;
    for i in 0u32.. {
        let broken = at.join("broken");
        let names = if broken.exists() { support::file_names_in(&broken) } else { Vec::new() };
        let again: &[&str] = match names.iter().any(|name| name.starts_with("checkpoint-")) {
            true => &["--resume-from-checkpoint", "last"],
            false => &["--overwrite"],
        };
        let resumed = grpo("broken", &[&more[..], again].concat());
        let mut child = reel().current_dir(at).args(resumed).stdout(Stdio::null()).spawn().expect("it starts");
        let life = if i < 20 { whole.mul_f64(0.1 + 0.02 * f64::from(i * 7 % 20)) } else { Duration::from_secs(600) };
        let born = Instant::now();
        while born.elapsed() < life && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        if child.try_wait().expect("a child").is_some() {
            break;
        }
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        kills += 1;
    }
    assert!(kills >= 3, "the run was killed only {kills} times before it ended; 3 are needed");
    assert_eq!(metrics_without_times(&at.join("whole")), metrics_without_times(&at.join("broken")));
    assert!(weights(&at.join("whole")) == weights(&at.join("broken")));
}

/// Two processes, also with dynamic sampling, where a process trains on groups that the other one has sampled.
#[test]
fn ranks_with_tools_equal_one_process() {
    let at = folder();
    let more = ["--gradient-accumulation-steps", "2", "--max-steps", "3"];
    for (name, own) in [("plain", &[][..]), ("dynamic", &["--dynamic-sampling", "--temperature", "1.5"])] {
        let (one, two) = (format!("one-{name}"), format!("two-{name}"));
        run_in(at, grpo(&one, &[&more[..], own].concat())).ok();
        run_in(at, grpo(&two, &[&more[..], own, &["--gpus", "2", "--device", "cpu"]].concat())).ok();
        assert!(weights(&at.join(&one)) == weights(&at.join(&two)), "{name}");
        for step in 1..=3 {
            assert_eq!(rollouts(&at.join(&one), step), rollouts(&at.join(&two), step), "{name}, step {step}");
        }
    }
}

/// A tool and a reward of the user, as docs/guide-research.md shows them.
#[test]
fn a_tool_and_a_reward_in_python() {
    let at = folder();
    let image = support::golden("grpo/grpo_clip_iter2/media/b.png");
    fs::copy(image, at.join("dot.png")).expect("copied");
    let more = ["--tools", "mine.py:crop_video", "--reward-funcs", "mine.py:used_tools", "--image-max-pixels", "4096"];
    let arguments = without(grpo("python", &more), "--reward-command");
    run_in(at, arguments).ok();
    for line in (1..=2).flat_map(|step| rollouts(&at.join("python"), step)) {
        let good = calls(&line).into_iter().filter(|call| call["is_error"] == false).collect::<Vec<_>>();
        assert!(good.len() >= 2, "{line}");
        for call in good {
            assert!(call["content"][0]["image"].as_str().expect("a URI").starts_with("data:image/png;base64,"));
            assert!(call["content"][1]["text"].as_str().expect("a text").starts_with("1 video at "), "{call}");
        }
    }
    assert!(read_metrics(&at.join("python")).iter().all(|step| step["rollout_drift"] == 0.0));
    // A run may continue with changed code, but tells so.
    let code = fs::read_to_string(at.join("mine.py")).expect("a file");
    fs::write(at.join("mine.py"), code + "\n").expect("written");
    let more = [&more[..], &["--resume-from-checkpoint", "last", "--max-steps", "3"]].concat();
    let mut arguments = without(grpo("python", &more), "--reward-command");
    arguments.retain(|argument| argument != "--quiet");
    let told = run_in(at, arguments).stderr;
    let words = "mine.py has changed since the run began, so rewards and answers of tools may differ";
    assert!(told.contains(words), "{told}");
}

/// A client of `reel serve` that runs the tools itself: its prompts have the tokens of the trajectories that GRPO samples,
/// and the server computes only what is new in each turn.
#[test]
fn a_client_of_the_server_runs_the_same_loop() {
    let at = folder();
    run_in(at, grpo("sampled", &["--max-steps", "1"])).ok();
    let log = ProgramLog::new(|_| {});
    let options = ToolOptions { tools: vec!["crop_video".into()], ..ToolOptions::default() };
    let tools = ToolSet::open(&options, &MediaOptions::default(), &log).expect("tools").definitions().to_vec();
    let root = at.to_string_lossy();
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start_with(folder, at.join("warm"), &[&["--media-root", &root], &MEDIA[..]].concat());
    let send = |path: &str, body: &Value| server.send("POST", path, "", &body.to_string()).ok();
    let cached_tokens = || {
        let metrics = server.send("GET", "/metrics", "", "").body;
        let mut hits =
            metrics.lines().filter_map(|line| line.strip_prefix("vllm:prefix_cache_hits_total")?.rsplit_once(' '));
        hits.next().and_then(|(_, hits)| hits.parse::<f64>().ok()).expect("a number") as usize
    };
    let mut followed = 0;
    for line in rollouts(&at.join("sampled"), 1) {
        let turns = line["tool_turns"].as_array().expect("turns").iter().enumerate();
        for (i, turn) in turns.filter_map(|(i, turns)| Some((i, turns.get(0)?))) {
            let call = &turn["calls"][0];
            let Some(arguments) = call["arguments"].as_object().filter(|_| call["is_error"] == false) else { continue };
            let mut messages = line["prompt"].clone();
            let ask = |messages: &Value| {
                let mut body = json!({"messages": messages, "tools": tools});
                let ids = send("/tokenize", &body)["tokens"].clone();
                (body["temperature"], body["max_tokens"]) = (json!(0), json!(4));
                let usage = send("/v1/chat/completions", &body)["usage"].clone();
                assert_eq!(usage["prompt_tokens"], ids.as_array().map_or(0, Vec::len));
                ids
            };
            let before = ask(&messages);
            let cached = cached_tokens();
            let function = json!({"name": call["name"], "arguments": json!(arguments).to_string()});
            let asked = json!({"role": "assistant", "content": null,
                "tool_calls": [{"id": "1", "type": "function", "function": function}]});
            let answer = json!({"role": "tool", "tool_call_id": "1", "content": call["content"]});
            messages.as_array_mut().expect("messages").extend([asked, answer]);
            let after = ask(&messages);
            let own = &line["completions"][i].as_array().expect("tokens")
                [..turn["tokens"]["end"].as_u64().expect("a number") as usize];
            let all = [before.as_array().expect("tokens"), own].concat();
            assert_eq!(after, json!(all), "{line}");
            // The cache has whole blocks of tokens.
            let (found, length) = (cached_tokens() - cached, before.as_array().map_or(0, Vec::len));
            assert!(found + KvPages::BLOCK_TOKENS > length, "{found} of {length} tokens are in the cache");
            followed += 1;
        }
    }
    assert!(followed > 0);
}

/// Tools that hang, fail, or answer with nonsense become texts that the model reads; the run goes on.
#[test]
fn bad_tools_lose_nothing() {
    let at = folder();
    let command = |answer: &str| {
        format!("while read -r l; do case $l in *list_tools*) echo '{LISTED}';; *) {answer};; esac; done")
    };
    let bomb = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAnEAAAJxACAIAAABr";
    // 100 megapixels: read and shrunk to the limit of pixels.
    let black = FrameBuf { data: Arc::new(vec![0; 300_000_000]), frames: 1, height: 10_000, width: 10_000 };
    fs::write(at.join("huge.png"), frame_strip(&black, 1, 10_000).expect("a PNG").bytes).expect("a file");
    drop(black);
    for (name, answer, told) in [
        ("huge", r#"echo '[{"type": "image", "image": "huge.png"}]'"#.to_string(), "data:image/png;base64,iVBOR"),
        ("hangs", "sleep 60".to_string(), "error: --tool-command"),
        ("ends", "exit 3".to_string(), "exited with code 3"),
        ("words", "echo not json".to_string(), "is `not json`, not JSON"),
        ("empty", "echo '[]'".to_string(), "[]"),
        ("kind", r#"echo '[{"type": "sound"}]'"#.to_string(), "has a part of the type"),
        ("bomb", format!(r#"echo '[{{"type": "image", "image": "{bomb}"}}]'"#), "error: "),
        ("gone", r#"echo '[{"type": "video", "video": "nosuch.mp4"}]'"#.to_string(), "nosuch.mp4"),
    ] {
        let command = command(&answer);
        let more =
            ["--tool-command", &command, "--tool-timeout", "1", "--max-steps", "1", "--max-completion-length", "500"];
        let arguments = without(grpo(name, &more), "--tools");
        run_in(at, arguments).ok();
        let all: Vec<Value> = rollouts(&at.join(name), 1).iter().flat_map(calls).collect();
        assert!(all.len() >= 2, "{name}");
        let is_told = |call: &Value| call["content"].to_string().contains(told);
        assert!(all.iter().filter(|call| is_told(call)).count() >= 2, "{name}: {all:?}");
    }
}

#[test]
fn wrong_options_are_refused_by_name() {
    let at = folder();
    for (more, words) in [
        (&["--tools", "crop"][..], "--tools: \"crop\" is no tool"),
        (&["--tools", "nosuch.py:f"], "--tools: there is no file nosuch.py"),
        (&["--temporal"], "--temporal: scores answers to shuffled frames"),
        (&["--tool-tags", "<t>,</t>,</x>"], "--tool-tags: is"),
        (&["--tool-tags", "<t>"], "--tool-tags: is"),
        (&["--tool-timeout", "0"], "--tool-timeout: is 0"),
        (&["--max-tool-calls", "0"], "--max-tool-calls: is 0"),
    ] {
        run_in(at, grpo("refused", more)).assert_refused(2, &[words]);
    }
}
