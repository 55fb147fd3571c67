//! `reel plan` of training: its planned memory equals the memory of the run, and the launches and the time of a 7B
//! step.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use serde_json::Value;
use sft_rows::{sft, training_folder};
use support::{read_metrics, run, run_in};
#[test]
fn plan_and_run_agree_on_peak_bytes() {
    let w = training_folder(6);
    let cases = [("f32", "full"), ("f32", "none"), ("bf16", "full"), ("bf16", "selective"), ("f32", "auto")];
    for (dtype, checkpointing) in cases {
        let options =
            format!("--dtype {dtype} --gradient-checkpointing {checkpointing} --no-shuffle --max-steps 3 --quiet");
        let options: Vec<&str> = options.split(' ').collect();
        sft(w.path(), "out", &[&options[..], &["--overwrite"]].concat()).ok();
        let ran = read_metrics(&w.path().join("out")).last().expect("a step")["peak_bytes"].as_f64().expect("a number");
        let base = ["plan", "sft", "--model", "tiny", "--data", "rows.jsonl", "--device", "cpu", "--json"];
        let planned = run_in(w.path(), [&base[..], &options].concat()).json()["peak_bytes"].as_f64().expect("a number");
        assert!((planned / ran - 1.0).abs() <= 0.01, "{options:?}: planned {planned}, ran {ran}");
    }
}

/// If the data has fewer rows than a micro-batch, the plan says so, and plans for the rows that the run would compute.
#[test]
fn plan_says_that_the_data_has_too_few_rows() {
    let w = training_folder(6);
    let plan = |command: &str, more: &str| {
        let line = format!("plan {command} --model tiny --data rows.jsonl --device cpu --json {more}");
        run_in(w.path(), line.split(' ')).json()
    };
    let peak = |plan: &Value| plan["peak_bytes"].as_f64().expect("a number");
    let [few, six, repeated] = [
        "--per-device-train-batch-size 64 --num-train-epochs 1",
        "--per-device-train-batch-size 6 --num-train-epochs 1",
        "--per-device-train-batch-size 64 --max-steps 1",
    ]
    .map(|more| plan("sft", more));
    let words = "; the run has only 6 rows for a micro-batch of 64";
    assert!(few["subject"].as_str().expect("a text").contains(words), "{few}");
    assert_eq!(peak(&few), peak(&six));
    for whole in [&six, &repeated] {
        assert!(!whole["subject"].as_str().expect("a text").contains("only"), "{whole}");
    }
    // Without --num-train-epochs, a run repeats its rows until the micro-batch is full.
    assert!(peak(&repeated) > peak(&six));
}

/// Counts the launches of one training step of the 7B model on a GPU, with all weights trained. A third of the 5549
/// launches that a step once had is 1849.
#[test]
fn launches_of_a_7b_step_are_few() {
    // For each mode of gradient checkpointing: how often the first part of a layer runs forward, and the most launches.
    for (checkpointing, forward, most) in [("none", 1.0, 1849.0), ("selective", 1.0, 1849.0), ("full", 2.0, 2400.0)] {
        launches_of_a_7b_step(checkpointing, forward, most);
    }
}

fn launches_of_a_7b_step(checkpointing: &str, forward: f64, most: f64) {
    let command = "plan sft --preset 7b --tokens 4096 --vision-patches 8192 --gpu h200 --json \
                   --gradient-accumulation-steps 1 --optim adamw-bf16 --gradient-checkpointing";
    let plan = run(command.split_whitespace().chain([checkpointing])).json();
    let ops = plan["ops"].as_array().expect("ops");
    let launches = |of: &dyn Fn(&str) -> bool| -> f64 {
        let is_of = |op: &&Value| op["op"].as_str().is_some_and(of);
        ops.iter().filter(is_of).filter_map(|op| op["launches"].as_f64()).sum()
    };
    // One launch each for the gradient norm, the clipping factor and AdamW, for 729 tensors.
    for name in ["sum_squares", "clip", "adamw_bf16_moments_bf16"] {
        assert_eq!(launches(&|op| op == name), 1.0, "{name}");
    }
    // Three gradients are first filled with zeros, because only some of their rows are added to: the gradient of the
    // embeddings and, in the last layer, which continues only with the rows that are learned, the gradients of the
    // residual and of attention.
    assert_eq!(launches(&|op| op.starts_with("fill")), 3.0);
    assert_eq!(launches(&|op| op.starts_with("accumulate")), 0.0);
    // The decoder's 28 layers and the 32 blocks of the vision tower rotate queries and keys in one launch in each
    // direction, and sum the gradients of their biases in one launch. Patch embedding and merger add at most two sums.
    assert_eq!(launches(&|op| op.starts_with("rope_apply")), (forward + 1.0) * (28.0 + 32.0));
    assert!(launches(&|op| op.starts_with("column_sum")) <= 28.0 + 32.0 + 2.0);
    let all = launches(&|_| true);
    assert!(all <= most, "{all} launches with {checkpointing}");
}

/// Selective checkpointing makes room for 8192 tokens of the 7B model on a GPU with 141 GB.
#[test]
fn selective_checkpointing_takes_little_memory_and_time() {
    let plan = |checkpointing: &str| {
        let command = "plan sft --preset 7b --tokens 8192 --vision-patches 4096 --gpu h200 --json --optim adamw-bf16 \
                       --gradient-accumulation-steps 1 --gradient-checkpointing";
        let plan = run(command.split_whitespace().chain([checkpointing])).json();
        let number = |key: &str| plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key}"));
        let named = plan["subject"].as_str().is_some_and(|s| s.contains(", gradient checkpointing "));
        assert!(named, "the plan does not say what it computes again: {}", plan["subject"]);
        (number("/peak_bytes"), number("/flops"))
    };
    let [none, selective, full, auto] = ["none", "selective", "full", "auto"].map(plan);
    assert!(full.0 < selective.0 && selective.0 < none.0 && selective.0 < 141e9, "{full:?} {selective:?} {none:?}");
    assert!(selective.1 < 1.001 * none.1 && full.1 > 1.25 * none.1, "{full:?} {selective:?} {none:?}");
    // With `auto` the plan takes the first mode that fits in the GPU's memory.
    assert!([none, selective].contains(&auto), "{auto:?}");
}

#[test]
fn plan_of_a_preset_needs_no_weights() {
    for (preset, least) in [("3b", 3.7e9), ("7b", 8.2e9)] {
        let command = format!("plan sft --preset {preset} --tokens 1024 --vision-patches 2048 --gpu h200 --json");
        let plan = run(command.split(' ')).json();
        let number = |key: &str| plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key}"));
        // At least 16 bytes per parameter: 2 for the bf16 weight, 2 for the low bits of the master weight, 8 for two
        // f32 moments, 4 for the f32 gradient.
        assert!(number("/peak_bytes") > 16.0 * least && number("/memory/optimizer") > 10.0 * least, "{preset}");
        let parts: f64 = plan["memory"].as_object().expect("memory").values().filter_map(Value::as_f64).sum();
        assert_eq!(parts, number("/peak_bytes"));
        assert!(
            plan["ops"]
                .as_array()
                .is_some_and(|ops| ops.len() > 10 && ops.iter().all(|o| o["seconds"].as_f64() > Some(0.0)))
        );
        // Per parameter and token: 2 operations in the forward pass and 4 in the backward pass.
        assert!(number("/flops") > 6.0 * 0.8 * least * 1024.0, "{preset}: {}", number("/flops"));
    }
    let w = training_folder(3);
    let rows = w.path().join("rows.jsonl").display().to_string();
    let plan = run(["plan", "sft", "--preset", "3b", "--data", &rows, "--gpu", "h100", "--json"]).json();
    assert!(plan["tokens"].as_f64() > Some(60.0) && plan["fits"] == true, "{plan}");
    let plan = run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --json".split(' ')).json();
    let (prefill, decode) = (plan["phases"]["prefill"].as_f64(), plan["phases"]["decode"].as_f64());
    assert!(prefill > Some(0.0) && decode > prefill, "{prefill:?} {decode:?}");
    let int8 =
        run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --quantize int8 --json".split(' '));
    let (int8, weights) = (int8.json(), |plan: &Value| plan["memory"]["weights"].as_f64().expect("bytes"));
    // 2.77e9 weights of linear layers take one byte less each. With tied embeddings the output layer has an int8 copy
    // of its own, 0.31e9 bytes.
    let saved = weights(&plan) - weights(&int8);
    assert!((saved - 2.46e9).abs() < 0.02e9, "{saved}");
    assert!(int8["phases"]["decode"].as_f64() < decode.map(|seconds| 0.65 * seconds), "{int8}");
}
