//! The bits of GRPO with tools where the command of `grpo_tools.rs` does not lead: on the simulated Hopper, and with
//! answers of tools for which a completion has no room.

mod support;
#[path = "support/tool_model.rs"]
mod tool_model;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use reel_device::{Arch, DType, Device, SimOptions, compile};
use reel_input::MediaOptions;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::worker::DecodeWorker;
use reel_train::options::{GrpoOptions, RunOptions, ToolOptions};
use reel_train::runs::{grpo, replay};
use reel_train::setup::{DataSetup, GrpoSetup, ReportSetup, RunControl, TrainerSetup};
use serde_json::{Value, json};
use support::{read_metrics, reel, run_in};
use tool_model::{MEDIA, folder};

/// The call of the model for the simulator, which is one token of its tokenizer.
const CALL_IN_ONE_TOKEN: &str = r#"{"name": "crop_video", "arguments": {"start": 0.5, "end": 1.5}}"#;
/// A chat template that does not describe the tools, because the simulator would take most of its time for that. The
/// program takes a template for tools that mentions `tools`.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}\
    {% else %}{% for part in m.content %}{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
    {% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{# tools #}";

fn records(out: &Path, step: usize) -> Vec<Value> {
    let text = fs::read_to_string(out.join(format!("rollouts/{step:06}.jsonl"))).expect("rollouts");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Makes the model `short`, whose heads have a size that the kernels for Hopper have: it answers the question of
/// `short.jsonl` with a call, and what the tool shows with a word.
fn model_for_the_simulator(at: &Path) {
    run_in(at, ["init", "--preset", "qwen3-tiny", "--out", "untrained"]).ok();
    let file = at.join("untrained/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).expect("a tokenizer")).expect("JSON");
    let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
    let mut call = added.last().expect("a token").clone();
    call["id"] = json!(added.iter().filter_map(|token| token["id"].as_u64()).max().expect("an id") + 1);
    (call["content"], call["special"]) = (json!(CALL_IN_ONE_TOKEN), json!(false));
    added.push(call);
    fs::write(file, tokenizer.to_string()).expect("written");
    fs::write(at.join("untrained/chat_template.jinja"), TEMPLATE).expect("written");
    let video = json!({"type": "video", "video": "clip.mp4", "nframes": 2});
    let user = json!({"role": "user", "content": [video, {"type": "text", "text": "?"}]});
    let shown = json!({"type": "video", "video": "clip.mp4", "video_start": 0.5, "video_end": 1.5, "nframes": 2});
    let text = |text: &str| json!({"type": "text", "text": text});
    let told = [text("<tool_response>\nThe video from 0.5 s to 1.5 s:"), shown, text("\n</tool_response>")];
    let call = json!({"role": "assistant", "content": format!("<tool_call>{CALL_IN_ONE_TOKEN}</tool_call>")});
    let rows = [
        json!({"messages": [user, call]}),
        json!({"messages": [user, call, {"role": "user", "content": told}, {"role": "assistant", "content": "a"}]}),
    ];
    fs::write(at.join("short-sft.jsonl"), rows.map(|row| format!("{row}\n")).concat()).expect("rows");
    let row = json!({"prompt": [user], "solution": "<answer>a</answer>", "problem_type": "free-form"});
    fs::write(at.join("short.jsonl"), format!("{row}\n").repeat(2)).expect("rows");
    let sft = "sft --model untrained --data short-sft.jsonl --out short --max-steps 60 --quiet --learning-rate 3e-3 \
               --per-device-train-batch-size 1 --gradient-accumulation-steps 2 --media-root . --save-steps 0";
    run_in(at, sft.split_whitespace().chain(MEDIA)).ok();
}

/// A run of two steps on the simulated Hopper in bf16.
struct SimulatedRun {
    model: PathBuf,
    media: MediaOptions,
    device: Device,
    options: GrpoOptions,
}

impl SimulatedRun {
    fn new(at: &Path, out: &str) -> Self {
        let sizes = MediaOverrides { min_pixels: Some(3136), max_pixels: Some(4096), ..MediaOverrides::default() };
        let decoder = DecodeWorker::new(reel().get_program());
        let media = MediaOptions { profile: MediaProfile::Qwen, overrides: sizes, decoder, ..MediaOptions::default() };
        let run = RunOptions {
            model: at.join("short").display().to_string(),
            data: at.join("short.jsonl"),
            media_root: Some(at.into()),
            out: at.join(out),
            learning_rate: 1e-3,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_steps: Some(2),
            save_steps: 1,
            ..RunOptions::default()
        };
        let tools = ["crop_video"].map(String::from).to_vec();
        let reward = "while read -r line; do echo $((${#line} % 7)); done";
        let options = GrpoOptions {
            run,
            num_generations: 8,
            max_completion_length: 120,
            // Completions differ, and some have no call.
            temperature: 1.2,
            top_p: 1.0,
            beta: 0.0,
            tool: ToolOptions { tools, max_tool_calls: 1, ..ToolOptions::default() },
            reward_command: vec![reward.into()],
            ..GrpoOptions::default()
        };
        let simulated = SimOptions { arch: Arch::H100, threads: 2, ..SimOptions::default() };
        Self { model: at.join("short"), media, device: Device::sim(simulated).expect("a simulator"), options }
    }

    fn with_setup<T>(&self, work: impl FnOnce(&GrpoSetup) -> reel_train::Result<T>) -> T {
        let (resolved, stop) = (json!({}), AtomicBool::new(false));
        let setup = GrpoSetup {
            options: &self.options,
            data: DataSetup { model: &self.model, media: &self.media, seed: 0 },
            trainer: TrainerSetup::new(&self.device, DType::BF16),
            reports: ReportSetup::quiet(&resolved),
            control: RunControl::one_process(&stop),
        };
        work(&setup).expect("a run")
    }
}

/// On an H100, the turns of a completion are computed with the bits of training, as on device `cpu`: the second turn
/// continues the KV cache of the first one and computes only the answer of the tool.
#[test]
fn hopper_trains_the_log_probs_of_all_turns() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let at = folder();
    model_for_the_simulator(at);
    let whole = SimulatedRun::new(at, "sim");
    whole.with_setup(|setup| grpo::run(setup).map(drop));
    let metrics = read_metrics(&at.join("sim"));
    assert_eq!(metrics.len(), 2);
    for (step, line) in (1..).zip(&metrics) {
        assert_eq!(line["rollout_drift"], 0.0, "{line}");
        assert!(line["grad_norm"].as_f64() > Some(1e-3), "{line}");
        let turns = records(&at.join("sim"), step).remove(0)["tool_turns"].take();
        let shown = |turns: &&Value| turns[0]["calls"][0]["frames"].as_u64() >= Some(2);
        assert!(turns.as_array().expect("a list").iter().filter(shown).count() >= 2, "{turns}");
    }
    // The second step again: sampled again after the first step, and trained on the recorded rollouts.
    let mut again = SimulatedRun::new(at, "sim-again");
    again.options.run.resume_from_checkpoint = Some(at.join("sim/checkpoint-1").display().to_string());
    again.with_setup(|setup| grpo::run(setup).map(drop));
    let last = read_metrics(&at.join("sim-again")).pop().expect("a step");
    assert_eq!((&last["step"], &last["hash"]), (&json!(2), &metrics[1]["hash"]));
    assert_eq!(records(&at.join("sim-again"), 2), records(&at.join("sim"), 2));
    let mut replayed = SimulatedRun::new(at, "sim-replayed");
    let start = replay::find_replay_start(&at.join("sim"), 2).expect("a checkpoint");
    replayed.options.recorded = Some(at.join("sim/rollouts"));
    replayed.options.run.save_steps = 0;
    replayed.options.run.resume_from_checkpoint = start.checkpoint.map(|path| path.display().to_string());
    let report = replayed.with_setup(|setup| grpo::replay_step(setup, &at.join("sim"), 2, &start.hash));
    assert!(report.same, "{report:?}");
}

/// Rollouts of a run whose completions have room for `tokens` tokens.
fn rollouts_with_room_for(tokens: u64, out: &str) -> Value {
    let (at, tokens) = (folder(), tokens.to_string());
    let fixed = ["--max-completion-length", &tokens, "--out", out, "--reward-command"];
    let rest = "grpo --model warm --data rows.jsonl --media-root . --quiet --tools crop_video --num-generations 6 \
                --per-device-train-batch-size 6 --temperature 0.7 --top-p 1 --max-steps 2 --learning-rate 1e-4 \
                --mask-truncated-completions";
    let all =
        rest.split(' ').filter(|word| !word.is_empty()).chain(fixed).chain(["while read -r l; do echo ${#l}; done"]);
    run_in(at, all.chain(MEDIA)).ok();
    for step in 1..=2 {
        assert!(run_in(at, ["replay", out, "--step", &step.to_string()]).ok().contains("gives the same bits"), "{out}");
    }
    assert_eq!(read_metrics(&at.join(out)).len(), 2, "the run goes on");
    records(&at.join(out), 1).remove(0)
}

/// A completion ends with the reason `length` if the answer of its tool does not fit. It keeps all its tokens, and is not
/// learned with `--mask-truncated-completions`; the others are those of a run with more room.
#[test]
fn completions_without_room_for_an_answer_are_truncated() {
    let wide = rollouts_with_room_for(200, "wide");
    let turns = |line: &Value, i: usize| line["tool_turns"][i].as_array().expect("turns").clone();
    let answered: Vec<usize> = (0..6).filter(|&i| !turns(&wide, i).is_empty()).collect();
    let end = |&i: &usize| turns(&wide, i)[0]["tokens"]["end"].as_u64().expect("a number");
    let room = answered.iter().map(end).min().expect("a call");
    // No answer fits; then the shortest one fits, and a token after it.
    for (room, one_fits) in [(room, false), (room + 1, true)] {
        let narrow = rollouts_with_room_for(room, &format!("room-{room}"));
        let mut kept = 0;
        for &i in &answered {
            let tokens = |line: &Value| line["completions"][i].as_array().expect("tokens").clone();
            let has_answer = !turns(&narrow, i).is_empty();
            kept += usize::from(has_answer);
            let first = turns(&wide, i)[0]["tokens"]["start"].as_u64().expect("a number");
            let length = if has_answer { room } else { first } as usize;
            assert_eq!(tokens(&narrow), tokens(&wide)[..length], "completion {i}");
            assert_eq!(narrow["finish_reasons"][i], "length", "completion {i}");
        }
        assert_eq!(kept > 0, one_fits, "{kept} answers fit into {room} tokens");
    }
    let learned = read_metrics(&folder().join(format!("room-{room}")));
    assert!(answered.len() < 6 || learned.iter().all(|line| line["grad_norm"] == 0.0), "{learned:?}");
}
