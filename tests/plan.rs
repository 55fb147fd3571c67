//! `reel plan` of training: the planned memory equals the memory of the run; a 7B step has the expected launches and
//! time; jobs of several GPUs follow the formulas.

#[path = "support/grpo_run.rs"]
mod grpo_run;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::path::Path;

use reel_device::{DType, Device, Kernels};
use reel_input::MediaOptions;
use reel_input::config::ModelConfig;
use reel_tools::measure::job::{BackwardTimes, DividedWeightBytes, JobShape, ProcessCosts};
use reel_train::options::{GradientCheckpointing, GrpoOptions, RunOptions};
use reel_train::runs::plan;
use reel_train::setup::{DataSetup, TrainerSetup};
use serde_json::Value;
use sft_rows::{run_sft, training_folder};
use support::{check_page, read_metrics, run, run_in};

#[test]
fn plan_and_run_agree_on_peak_bytes() {
    let w = training_folder(6);
    let cases = [("f32", "full"), ("f32", "none"), ("bf16", "full"), ("bf16", "selective"), ("f32", "auto")];
    for (dtype, checkpointing) in cases {
        let options =
            format!("--dtype {dtype} --gradient-checkpointing {checkpointing} --no-shuffle --max-steps 3 --quiet");
        let options: Vec<&str> = options.split(' ').collect();
        run_sft(w.path(), "out", &[&options[..], &["--overwrite"]].concat()).ok();
        let ran = read_metrics(&w.path().join("out")).last().expect("a step")["peak_bytes"].as_f64().expect("a number");
        let base = ["plan", "sft", "--model", "tiny", "--data", "rows.jsonl", "--device", "cpu", "--json"];
        let planned =
            run_in(w.path(), [&base[..], &options].concat()).plan_json()["peak_bytes"].as_f64().expect("a number");
        assert!((planned / ran - 1.0).abs() <= 0.01, "{options:?}: planned {planned}, ran {ran}");
    }
}

/// Plans the peak memory of a rank of two ranks with ZeRO-3, from the plan of one process: for the passes of a step,
/// and for the parts of a step for which all weights are gathered.
fn planned_peaks_of_a_rank(folder: &Path, lora_r: usize) -> [u64; 2] {
    let model = folder.join("tiny");
    let run = RunOptions {
        model: model.display().to_string(),
        data: folder.join("rows.jsonl"),
        out: folder.join("planned"),
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 1,
        max_steps: Some(2),
        gradient_checkpointing: GradientCheckpointing::Full,
        lora_r,
        zero_stage: 3,
        ..RunOptions::default()
    };
    let options = GrpoOptions {
        run,
        num_generations: 4,
        max_completion_length: 8,
        min_completion_length: 8,
        ..GrpoOptions::default()
    };
    let (media, device) = (MediaOptions::default(), Device::dry(Kernels::Cpu));
    let data = DataSetup { model: &model, media: &media, seed: 0 };
    let config = ModelConfig::open(&model).expect("a configuration");
    let stored = plan::stored_weights(&model, &config);
    let plan =
        plan::grpo::plan_run_on_data(&options, &data, &TrainerSetup::new(&device, DType::F32), stored).expect("a plan");
    let divided = plan.divided;
    let process = |memory_with_all| ProcessCosts {
        memory: plan.memory.clone(),
        parameters: plan.trained.parameters,
        weight_bytes: plan.trained.bytes,
        largest_parameter: plan.trained.largest,
        divided: Some(DividedWeightBytes {
            all: divided.all,
            two_units: divided.two_units,
            gathered: divided.gathered,
            gathered_beside_rounds: divided.gathered_beside_rounds,
            are_evaluated: divided.are_evaluated,
            are_trained: divided.are_trained,
            memory_by_units: divided.memory_by_units.clone(),
            memory_with_all,
        }),
        compute_seconds: 1.0,
        backward_seconds: 1.0,
        backward: BackwardTimes::default(),
        optimizer_seconds: 1.0,
        tokens: 1.0,
    };
    assert!(divided.memory_with_all.is_some());
    let gathers = if lora_r > 0 { 2 } else { 1 };
    assert_eq!(divided.gathered_beside_rounds, gathers * divided.all, "for rollouts, and for the base of an adapter");
    let shape = JobShape { ranks: 2, gpus_per_node: 8, micro_batches: 2 };
    [None, divided.memory_with_all.clone()].map(|with_all| shape.peak_bytes(&process(with_all)))
}

/// With an adapter, the rollouts need the most memory, because a rank gathers all weights for them.
#[test]
fn plan_and_run_agree_on_the_peak_of_a_rank_that_divides_its_weights() {
    let w = grpo_run::training_folder();
    for (name, lora_r) in [("full", 0), ("adapter", 2)] {
        let options = "--gpus 2 --zero-stage 3 --gradient-accumulation-steps 2 --gradient-checkpointing full --max-steps 2 \
                       --min-completion-length 8 --device cpu --dtype f32";
        let lora = format!("--lora-r {lora_r}");
        let more = options.split_whitespace().chain(lora.split(' ').filter(|_| lora_r > 0)).collect::<Vec<_>>();
        run_in(w.path(), grpo_run::grpo_args(name, &more)).ok();
        let steps = read_metrics(&w.path().join(name));
        let ran = steps.iter().filter_map(|step| step["peak_bytes"].as_f64()).fold(0.0, f64::max);
        let [of_passes, planned] = planned_peaks_of_a_rank(w.path(), lora_r);
        assert!(planned > of_passes || lora_r == 0, "{name}: {of_passes} {planned}");
        assert!((planned as f64 / ran - 1.0).abs() <= 0.05, "{name}: planned {planned}, ran {ran}");
    }
}

/// If the data has fewer rows than a micro-batch, the plan says so, and plans for the rows that the run would compute.
#[test]
fn plan_says_that_the_data_has_too_few_rows() {
    let w = training_folder(6);
    let plan = |command: &str, more: &str| {
        let line = format!("plan {command} --model tiny --data rows.jsonl --device cpu --json {more}");
        run_in(w.path(), line.split(' ')).plan_json()
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
    // Without --num-train-epochs, a run repeats its rows to fill the micro-batch.
    assert!(peak(&repeated) > peak(&six));
}

/// Counts the launches of one training step of the 7B model on a GPU, with all weights trained. A third of the 5549
/// launches that a step once had is 1849.
#[test]
fn launches_of_a_7b_step_are_few() {
    // For each mode of gradient checkpointing: how often the first part of a layer runs forward, and the maximum
    // number of launches.
    for (checkpointing, forward, most) in [("none", 1.0, 1849.0), ("selective", 1.0, 1849.0), ("full", 2.0, 2400.0)] {
        launches_of_a_7b_step(checkpointing, forward, most);
    }
}

fn launches_of_a_7b_step(checkpointing: &str, forward: f64, most: f64) {
    let command = "plan sft --preset 7b --tokens 4096 --vision-patches 8192 --gpu h200 --json \
                   --gradient-accumulation-steps 1 --optim adamw-bf16 --gradient-checkpointing";
    let plan = run(command.split_whitespace().chain([checkpointing])).plan_json();
    let ops = plan["ops"].as_array().expect("ops");
    let launches = |of: &dyn Fn(&str) -> bool| -> f64 {
        let is_of = |op: &&Value| op["op"].as_str().is_some_and(of);
        ops.iter().filter(is_of).filter_map(|op| op["launches"].as_f64()).sum()
    };
    // One launch each for the gradient norm, the clipping factor and AdamW, for 729 tensors.
    for name in ["sum_squares", "clip", "adamw_bf16_moments_bf16"] {
        assert_eq!(launches(&|op| op == name), 1.0, "{name}");
    }
    // Three gradients are filled with zeros first, because later only some of their rows are added to: the gradient
    // of the embeddings and, in the last layer, those of the residual and of attention. The last layer continues only
    // with the rows that are learned.
    assert_eq!(launches(&|op| op.starts_with("fill")), 3.0);
    assert_eq!(launches(&|op| op.starts_with("accumulate")), 0.0);
    // The decoder's 28 layers and the 32 blocks of the vision tower rotate queries and keys in one launch in each
    // direction, and sum the gradients of their biases in one launch. Patch embedding and merger add at most two sums.
    assert_eq!(launches(&|op| op.starts_with("rope_apply")), (forward + 1.0) * (28.0 + 32.0));
    assert!(launches(&|op| op.starts_with("column_sum")) <= 28.0 + 32.0 + 2.0);
    let all = launches(&|_| true);
    assert!(all <= most, "{all} launches with {checkpointing}");
}

/// With selective checkpointing, 8192 tokens of the 7B model fit on a GPU with 141 GB.
#[test]
fn selective_checkpointing_takes_little_memory_and_time() {
    let plan = |checkpointing: &str| {
        let command = "plan sft --preset 7b --tokens 8192 --vision-patches 4096 --gpu h200 --json --optim adamw-bf16 \
                       --gradient-accumulation-steps 1 --gradient-checkpointing";
        let plan = run(command.split_whitespace().chain([checkpointing])).plan_json();
        let number = |key: &str| plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key}"));
        let named = plan["subject"].as_str().is_some_and(|s| s.contains(", gradient checkpointing "));
        assert!(named, "the plan does not say what it computes again: {}", plan["subject"]);
        (number("/peak_bytes"), number("/flops"))
    };
    let [none, selective, full, auto] = ["none", "selective", "full", "auto"].map(plan);
    assert!(full.0 < selective.0 && selective.0 < none.0 && selective.0 < 141e9, "{full:?} {selective:?} {none:?}");
    assert!(selective.1 < 1.001 * none.1 && full.1 > 1.25 * none.1, "{full:?} {selective:?} {none:?}");
    // In the mode `auto`, the plan uses the first mode that fits in the GPU's memory.
    assert!([none, selective].contains(&auto), "{auto:?}");
}

#[test]
fn plan_of_a_preset_needs_no_weights() {
    for (preset, least) in [("3b", 3.7e9), ("7b", 8.2e9)] {
        let command = format!("plan sft --preset {preset} --tokens 1024 --vision-patches 2048 --gpu h200 --json");
        let plan = run(command.split(' ')).plan_json();
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
    let plan = run(["plan", "sft", "--preset", "3b", "--data", &rows, "--gpu", "h100", "--json"]).plan_json();
    assert!(plan["tokens"].as_f64() > Some(60.0) && plan["fits"] == true, "{plan}");
    let plan =
        run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --json".split(' ')).plan_json();
    let (prefill, decode) = (plan["phases"]["prefill"].as_f64(), plan["phases"]["decode"].as_f64());
    assert!(prefill > Some(0.0) && decode > prefill, "{prefill:?} {decode:?}");
    let int8 =
        run("plan generate --preset 3b --tokens 512 --max-new-tokens 16 --gpu h100 --quantize int8 --json".split(' '));
    let (int8, weights) = (int8.plan_json(), |plan: &Value| plan["memory"]["weights"].as_f64().expect("bytes"));
    // 2.77e9 weights of linear layers take one byte less each. With tied embeddings the output layer has an int8 copy
    // of its own, 0.31e9 bytes.
    let saved = weights(&plan) - weights(&int8);
    assert!((saved - 2.46e9).abs() < 0.02e9, "{saved}");
    assert!(int8["phases"]["decode"].as_f64() < decode.map(|seconds| 0.65 * seconds), "{int8}");
    // The prefill gives the only new token, so the decode phase takes no time. The printed 0 has no minus sign.
    let one = run("plan generate --preset 3b --tokens 512 --max-new-tokens 1 --gpu h100".split(' '));
    assert!(one.ok().contains("decode 0.0 us") && !one.stdout.contains("-0.0"), "{}", one.stdout);
}

/// With 512 tokens the tiles of Hopper leave much of the GPU idle. SFT then takes cuBLASLt for forward products and
/// gradients, GRPO for gradients only, and generation has no gradients.
#[test]
fn plan_lists_the_products_of_cublaslt() {
    let products = |command: &str| -> Vec<(String, [u64; 3], f64)> {
        let plan = run(format!("plan {command} --preset 7b --tokens 512 --gpu h200 --json").split(' ')).plan_json();
        let size = |product: &Value, key: &str| product[key].as_u64().unwrap_or_else(|| panic!("no {key}"));
        let product = |p: &Value| {
            let op = p["op"].as_str().expect("a name").to_string();
            (op, ["m", "n", "k"].map(|key| size(p, key)), number(p, "/wave_share"))
        };
        plan["cublaslt_products"].as_array().expect("a list").iter().map(product).collect()
    };
    let sft = products("sft --per-device-train-batch-size 1");
    assert!(sft.iter().all(|(.., share)| *share < 0.9), "{sft:?}");
    let down = ("matmul_fwd".to_string(), [512, 3584, 18944], 0.848);
    let dx = ("matmul_dx".to_string(), [512, 3584, 37888], 0.848);
    assert!(sft.contains(&down) && sft.contains(&dx), "{sft:?}");
    let grpo = products("grpo --optim adamw-bf16");
    assert!(!grpo.is_empty() && grpo.iter().all(|(op, ..)| op != "matmul_fwd"), "{grpo:?}");
    assert_eq!(products("generate"), []);
    let text = run("plan sft --preset 7b --tokens 512 --gpu h200".split(' '));
    assert!(text.stdout.contains("\n  matmul_dx 512 x 3584 x 37888: 0.85 of whole waves"), "{}", text.stdout);
}

/// Small rates of a slow machine are not rounded to 0.
#[test]
fn plan_of_a_cpu_has_no_rates_of_0() {
    let plan = run("plan sft --preset 7b --tokens 1024 --device cpu --threads 1 --dtype f32".split(' '));
    let rates = plan.stdout.lines().filter(|line| line.starts_with("ceilings: ") || line.starts_with("one step on "));
    let zero = |word: &str| word.parse::<f64>().is_ok_and(|number| number == 0.0);
    let rates: Vec<&str> = rates.collect();
    assert!(rates.len() == 2 && !rates.iter().any(|line| line.split(' ').any(zero)), "{rates:?}");
}

fn number(plan: &Value, key: &str) -> f64 {
    plan.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {plan}"))
}

/// With `--world 1`, memory, time and all other figures are those of the plan without `--world`.
#[test]
fn job_of_one_gpu_is_the_plain_plan() {
    for command in ["sft", "grpo --num-generations 4 --per-device-train-batch-size 4 --max-completion-length 32"] {
        let sizes = "--preset tiny --tokens 300 --vision-patches 64 --gpu h200 --json --gradient-accumulation-steps";
        let plan = |more: &str| run(format!("plan {command} {sizes} {more}").split(' ')).plan_json();
        let (plain, mut job) = (plan("3"), plan("3 --world 1"));
        let one = job.as_object_mut().and_then(|plan| plan.remove("job")).expect("a job");
        assert_eq!(plain, job, "{command}");
        assert_eq!((&one["peak_bytes"], &one["memory"]), (&plain["peak_bytes"], &plain["memory"]), "{command}");
        assert!((number(&one, "/seconds") / number(&plain, "/seconds") - 1.0).abs() < 1e-9, "{one}");
        assert_eq!((number(&one, "/exposed_seconds"), number(&one, "/rounds")), (0.0, 3.0), "{command}");
        // With four ranks and four times as many micro-batches, each rank computes three micro-batches, as the single
        // rank did. Only the optimizer state and the gradients of a rank differ.
        let four = plan("12 --world 4");
        let parts = |name: &str| [&plain["memory"], &four["job"]["memory"]].map(|memory| memory[name].as_f64());
        for name in ["weights", "activations", "kv_cache", "inputs", "workspace"] {
            let [before, now] = parts(name);
            assert_eq!(before, now, "{command}: {name}");
        }
        let ([before, now], trained) = (parts("optimizer"), number(&four, "/job/trained_parameters"));
        let (before, now) = (before.expect("bytes"), now.expect("bytes"));
        assert!((now - before / 4.0).abs() <= 16.0, "{command}: {before} {now}");
        assert!((number(&four, "/job/memory/gradient_sums") - trained).abs() <= 16.0, "{command}: {four}");
        // All gradients of this small model fit in one bucket. A rank holds its own gradients (4 bytes per parameter)
        // and its cells from the three other ranks.
        let gradients = number(&four, "/job/memory/gradients");
        assert!((gradients - (4.0 + 3.0) * trained).abs() <= 16.0, "{command}: {gradients} {trained}");
    }
}

/// A job of 16 GPUs in two machines with 20 micro-batches has two rounds, the second on four GPUs. Bytes and times
/// follow the formulas in `docs/cluster.md`. The page and the text have the table of weak scaling.
#[test]
fn job_of_two_machines_exchanges_what_the_formulas_say() {
    let w = tempfile::tempdir().expect("a folder");
    let command = "plan sft --preset 7b --layers 4 --tokens 2048 --vision-patches 4096 --gpu h200 --optim adamw-bf16 \
                   --world 16 --nodes 2 --gradient-accumulation-steps 20 --link ib200";
    let words = || command.split_whitespace();
    let plan = run_in(w.path(), words().chain(["--html", "job.html", "--json"])).plan_json();
    let job = &plan["job"];
    // The command of one of these machines describes the same job.
    let of_machine =
        command.replace("--world 16 --nodes 2", "--gpus 8 --nodes 2 --node-rank 1 --rendezvous node0:29500");
    assert_eq!(&run_in(w.path(), of_machine.split_whitespace().chain(["--json"])).plan_json()["job"], job);
    let of = |key: &str| number(job, key);
    let (parameters, weights) = (of("/trained_parameters"), of("/trained_bytes"));
    assert!(parameters > 2.6e9 && weights == 2.0 * parameters, "{job}");
    let near = |got: f64, wanted: f64| assert!((got / wanted - 1.0).abs() < 1e-6, "{got} {wanted}: {job}");
    // Rank 0 sends the gradients of its two micro-batches, and receives its own part of the gradients of the other
    // 18. From its own machine it receives 7 in the first round and 3 in the second; from the other machine 8 in the
    // first round.
    let part = 4.0 * parameters / 16.0;
    near(of("/bytes/gradients/within_node/sent"), 2.0 * 7.0 * part);
    near(of("/bytes/gradients/between_nodes/sent"), 2.0 * 8.0 * part);
    near(of("/bytes/gradients/within_node/received"), 10.0 * part);
    near(of("/bytes/gradients/between_nodes/received"), 8.0 * part);
    near(of("/bytes/weights/between_nodes/sent"), 8.0 * weights / 16.0);
    // InfiniBand HDR at 80 % of 25 GB/s bounds both exchanges.
    near(of("/gradient_exchange_seconds"), 2.0 * 8.0 * part / 20e9);
    near(of("/weight_exchange_seconds"), 8.0 * weights / 16.0 / 20e9);
    let exchanged = of("/gradient_exchange_seconds") + of("/weight_exchange_seconds");
    near(of("/exposed_seconds"), exchanged - of("/hidden_seconds"));
    near(of("/seconds"), of("/compute_seconds") + of("/optimizer_seconds") + of("/exposed_seconds"));
    // In each of the two rounds, at least the exchange of the bucket that is finished last is exposed: the embedding,
    // 545 million weights.
    let last = 2.0 * 4.0 * 544e6 * 8.0 / 16.0 / 20e9;
    assert!(of("/hidden_seconds") > 0.0, "{job}");
    assert!(of("/gradient_exchange_seconds") - of("/hidden_seconds") > last / 20.0, "{job}");
    // A step has 20 micro-batches of 2048 tokens.
    near(of("/tokens_per_second") * of("/seconds"), 20.0 * 2048.0);
    let peaks = job["peak_bytes_by_rank"].as_array().expect("a list");
    assert!(peaks.len() == 16 && peaks.iter().all(|bytes| bytes.as_f64() <= Some(of("/peak_bytes"))), "{job}");
    let scaling = job["scaling"].as_array().expect("a table");
    let gpus: Vec<f64> = scaling.iter().map(|point| number(point, "/gpus")).collect();
    assert_eq!(gpus, (0..=10).map(|power| f64::from(1 << power)).collect::<Vec<_>>());
    near(number(&scaling[4], "/seconds"), of("/seconds"));
    assert_eq!((number(&scaling[0], "/efficiency"), number(&scaling[10], "/nodes")), (1.0, 128.0));
    assert!(scaling.windows(2).all(|two| number(&two[1], "/peak_bytes") <= number(&two[0], "/peak_bytes")), "{job}");
    let charts = check_page(&std::fs::read_to_string(w.path().join("job.html")).expect("the page"));
    assert!(charts.len() == 5 && charts.iter().all(|chart| chart["x"] == "GPUs"), "{charts:?}");
    let text = run_in(w.path(), words());
    for part in [
        "16 GPUs on 2 machines, 20 micro-batches in a step, at most 2 on a GPU",
        "gradient_sums",
        " GB on disk, which all processes write together before the next step",
        "InfiniBand 200 Gb/s (HDR) (25.0 GB/s)",
        "are hidden behind the backward pass",
        "Weak scaling: every GPU computes 2 micro-batches in a step",
        "\n   1024    128 ",
    ] {
        assert!(text.ok().contains(part), "no {part:?} in {}", text.stdout);
    }
}

/// The largest presets are planned without weight files. Full fine-tuning of 32B fits on 64 GPUs, each of which has a
/// part of the optimizer state; full fine-tuning of 72B does not fit. With LoRA, only the adapter's weights are
/// exchanged.
#[test]
fn jobs_of_the_largest_presets() {
    let job = |preset: &str, more: &str| {
        let sizes = "--tokens 1024 --vision-patches 1024 --gpu h200 --gradient-accumulation-steps 64 --json";
        let job = format!("plan sft --preset {preset} {sizes} --world 64 --nodes 8{more}");
        run(job.split(' ')).plan_json()["job"].clone()
    };
    for (preset, parameters, fits) in [("32b", 33_452_718_336.0, true), ("72b", 73_410_777_344.0, false)] {
        let job = job(preset, "");
        // The kernels pad some weights, so slightly more parameters are counted.
        let trained = number(&job, "/trained_parameters");
        assert!((parameters..1.001 * parameters).contains(&trained), "{preset}: {trained}");
        assert!(number(&job, "/peak_bytes") > 2.0 * parameters && job["fits"] == fits, "{preset}: {job}");
    }
    let adapter = job("32b", " --lora-r 16");
    assert!(number(&adapter, "/trained_parameters") < 0.01 * 33.45e9 && adapter["fits"] == true, "{adapter}");
    let sent =
        number(&adapter, "/bytes/gradients/within_node/sent") + number(&adapter, "/bytes/gradients/between_nodes/sent");
    let wanted = 4.0 * number(&adapter, "/trained_parameters") * 63.0 / 64.0;
    assert!((sent / wanted - 1.0).abs() < 1e-6, "{adapter}");
}

/// With ZeRO-3, full fine-tuning of 72B fits on 16 and 64 H200, and with 8-bit moments on 8.
#[test]
fn divided_weights_of_the_largest_preset_fit() {
    let job = |more: &str| {
        let sizes = "--tokens 1024 --vision-patches 1024 --gpu h200 --gradient-accumulation-steps 64 --json";
        let job = format!("plan sft --preset 72b {sizes} --world 64 --nodes 8{more}");
        run(job.split(' ')).plan_json()["job"].clone()
    };
    let fits = |job: &Value, gpus: u64| {
        let points = job["scaling"].as_array().expect("a table");
        points.iter().find(|point| point["gpus"] == gpus).map(|point| point["fits"] == true).expect("a row")
    };
    let (whole, divided) = (job(""), job(" --zero-stage 3"));
    assert!([8, 16, 64].iter().all(|gpus| !fits(&whole, *gpus)), "{whole}");
    assert_eq!([8, 16, 64].map(|gpus| fits(&divided, gpus)), [false, true, true], "{divided}");
    assert!(fits(&job(" --zero-stage 3 --optim adamw-8bit"), 8));
    // A rank has 1/64 of 147 GB of weights, and two gathered units of less than 2.5 GB each.
    let weights = number(&divided, "/memory/weights");
    assert!((147e9 / 64.0..147e9 / 64.0 + 5.1e9).contains(&weights), "{weights}");
    let sent =
        |job: &Value| number(job, "/bytes/weights/within_node/sent") + number(job, "/bytes/weights/between_nodes/sent");
    // In the single round, all weights are gathered for the forward pass, and all except two tables again for the
    // backward pass.
    let ratio = sent(&divided) / sent(&whole);
    assert!((1.95..2.0).contains(&ratio) && divided["zero_stage"] == 3, "{ratio}: {divided}");
}

#[test]
fn impossible_jobs_are_refused() {
    let sizes = "plan sft --preset tiny --tokens 64 --gradient-accumulation-steps 8";
    for (more, words) in [
        (
            "--gpu h200 --world 16",
            "--gradient-accumulation-steps: is 8, so some of the 16 GPUs would have no micro-batch",
        ),
        ("--gpu h200 --world 8 --nodes 3", "--nodes: is 3, which does not divide the 8 GPUs of --world"),
        ("--gpu h200 --gpus 4 --world 8", "--gpus: is 4, but --world is 8; "),
        ("--gpu h200 --nodes 2", "--nodes: is for a job of several GPUs; give --world N as well"),
        ("--gpu h200 --html job.html", "--html: is for a job of several GPUs"),
        ("--gpu h200 --world 8 --link ib4000", "--link: there is no link named \"ib4000\"; give nvlink, "),
        ("--gpu rtx4090 --world 8 --link nvlink", "--link: is nvlink, which rtx4090 does not have"),
        ("--device cpu --world 8", "--world: plans GPUs and the links between them"),
        ("--gpu h200 --world 0", "--world: is 0; give 1 to 1024"),
    ] {
        run(format!("{sizes} {more}").split(' ')).assert_refused(2, &[words]);
    }
}

/// Writes a GPU file with this memory size in GB.
fn gpu_file(folder: &std::path::Path, memory_gb: f64) -> String {
    let figures = "name = \"mine\"\ncompute_capability = 8.9\nbandwidth_gb_s = 1000\nbf16_tflops = 165\n\
                   multiprocessors = 128\nclock_mhz = 2520\nnvlink_gb_s = 100\n";
    let path = folder.join(format!("gpu-{memory_gb}.toml"));
    std::fs::write(&path, format!("{figures}memory_gb = {memory_gb}\n")).expect("written");
    path.display().to_string()
}

/// Plans `command` with the options `more` on a GPU with `memory_gb` GB.
fn plan_on(folder: &std::path::Path, memory_gb: f64, command: &str, more: &str) -> Value {
    let line = format!("plan {command} --gpu {} --json {more}", gpu_file(folder, memory_gb));
    run(line.split_whitespace()).plan_json()
}

/// A plan for a GPU file uses the memory and rates in the file. Wrong files are refused in one line.
#[test]
fn figures_of_a_gpu_come_from_a_file() {
    let w = tempfile::tempdir().expect("a folder");
    let command = "sft --preset tiny --tokens 64";
    let plan = plan_on(w.path(), 24.0, command, "");
    assert_eq!((&plan["device"], &plan["capacity_bytes"]), (&"mine".into(), &24e9.into()));
    assert!(number(&plan, "/ceilings/flops_bf16") == 0.8 * 165e12 && plan["fits"] == true, "{plan}");
    let job = plan_on(w.path(), 24.0, command, "--world 2");
    assert_eq!(job["job"]["links"]["within_node"]["bytes_per_second"], 100e9);
    let b200 = run("plan sft --preset 7b --tokens 2048 --gpu b200 --json".split(' ')).plan_json();
    assert_eq!(b200["capacity_bytes"], 180e9);
    let refused = |text: &str, words: &str| {
        std::fs::write(w.path().join("bad.toml"), text).expect("written");
        run_in(w.path(), format!("plan {command} --gpu bad.toml").split(' ')).assert_refused(1, &[words]);
    };
    refused("name = \"mine\"\ncompute_capability = 8.9\n", "bad.toml: memory_gb: is missing; ");
    refused("name = \"h200\"", "bad.toml: compute_capability: is missing; ");
    let same_name = std::fs::read_to_string(gpu_file(w.path(), 24.0)).expect("text").replace("mine", "h200");
    refused(&same_name, "bad.toml: name: is \"h200\", the name of a built-in GPU; give another name");
    // The example in the guide is a valid GPU file.
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guide-performance.md");
    let guide = std::fs::read_to_string(guide).expect("a page");
    let example = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    std::fs::write(w.path().join("example.toml"), example).expect("written");
    let plan = |gpu: &str| run_in(w.path(), format!("plan {command} --gpu {gpu}").split(' '));
    assert!(plan("example.toml").ok().contains(" of 24.0 GB: fits"));
    plan("none.toml").assert_refused(1, &["none.toml: cannot be read: "]);
    plan("h300").assert_refused(2, &["--gpu: there is no data sheet for a GPU named \"h300\"; give one of b200, "]);
}

/// Each suggested choice, planned as a command of its own, has the stated memory and time, and fits. Choices with
/// fewer changes come first.
#[test]
fn advice_fits_when_it_is_planned() {
    let w = tempfile::tempdir().expect("a folder");
    let sft = "sft --preset tiny --tokens 300 --vision-patches 64 --per-device-train-batch-size 6 \
               --gradient-checkpointing none";
    let grpo = "grpo --preset tiny --tokens 100 --num-generations 4 --per-device-train-batch-size 8 \
                --max-completion-length 24 --gradient-checkpointing full";
    let serve = "serve --preset tiny --tokens 3000 --max-new-tokens 100 --batch-size 2";
    let generate = "generate --preset tiny --tokens 64 --max-new-tokens 256 --n 2";
    let mut kinds = std::collections::BTreeSet::new();
    let short = "sft --preset tiny --tokens 16 --gradient-checkpointing full";
    let commands = [(sft, &[0.9, 0.4][..]), (short, &[0.9]), (grpo, &[0.9]), (generate, &[0.95])];
    for (command, shares) in commands {
        let whole = number(&plan_on(w.path(), 24.0, command, ""), "/peak_bytes") / 1e9;
        for share in shares {
            let memory = share * whole;
            let plan = plan_on(w.path(), memory, command, "");
            let usable = number(&plan, "/advice/usable_bytes");
            assert!(plan["fits"] == false && (usable / (0.94e9 * memory) - 1.0).abs() < 1e-6, "{plan}");
            let choices = plan["advice"]["choices"].as_array().expect("choices");
            assert!(choices.len() <= 3 && (!choices.is_empty() || *share < 0.5), "{command} {share}: {plan}");
            assert!(choices.is_sorted_by_key(|choice| choice["changes"].as_u64()), "{plan}");
            for choice in choices {
                let options = choice["options"].as_str().expect("options");
                kinds.extend(options.split(' ').filter(|word| word.starts_with("--")).map(str::to_string));
                // A suggested option replaces the same option of the command.
                let words: Vec<&str> = options.split(' ').collect();
                let mut changed: Vec<&str> = command.split_whitespace().collect();
                for pair in words.chunks(2) {
                    if let Some(at) = changed.iter().position(|word| *word == pair[0]) {
                        changed.drain(at..at + 2);
                    }
                    changed.extend(pair);
                }
                let again = plan_on(w.path(), memory, &changed.join(" "), "");
                let job = if again["job"].is_null() { &again } else { &again["job"] };
                assert_eq!(job["peak_bytes"], choice["peak_bytes"], "{command} {options}: {again}");
                assert!(job["fits"] == true && number(job, "/peak_bytes") <= usable, "{command} {options}: {again}");
                if again["gathers"].is_null() {
                    let seconds = number(job, "/seconds");
                    assert!((seconds / number(choice, "/seconds") - 1.0).abs() < 1e-9, "{command} {options}: {again}");
                }
            }
        }
    }
    for option in ["--lora-r", "--optim", "--per-device-train-batch-size", "--gradient-checkpointing", "--world"] {
        assert!(kinds.contains(option), "no choice has {option}: {kinds:?}");
    }
    // If nothing fits, the plan states the smallest memory that it found.
    let plan = plan_on(w.path(), 0.001, sft, "");
    let smallest = number(&plan, "/advice/smallest_peak_bytes");
    assert!(plan["advice"]["choices"] == serde_json::json!([]) && smallest > 0.94e6, "{plan}");
    let text = run(format!("plan {sft} --gpu {}", gpu_file(w.path(), 0.001)).split_whitespace());
    let words =
        format!("the smallest plan needs {:.3} GB, {:.3} GB too much", smallest / 1e9, (smallest - 0.94e6) / 1e9);
    assert!(
        text.code == Some(1)
            && text.stdout.contains(&words)
            && text.stdout.contains("nothing that was tried fits (LoRA, "),
        "{}",
        text.stdout
    );
    // If not even one request fits, `plan serve` fails and suggests options.
    let line = format!("plan {serve} --gpu {} --json", gpu_file(w.path(), 0.006));
    let refused = run(line.split_whitespace());
    refused.assert_refused(1, &["KV cache: has room for "]);
    let plan: Value = serde_json::from_str(&refused.stdout).expect("JSON");
    let choices = plan["advice"]["choices"].as_array().expect("choices");
    assert!(!choices.is_empty(), "{plan}");
    for choice in choices {
        let options = choice["options"].as_str().expect("options");
        let again = plan_on(w.path(), 0.006, serve, options);
        assert!(again["peak_bytes"] == choice["peak_bytes"] && number(&again, "/sequences_that_fit") >= 1.0, "{again}");
    }
}

/// The largest micro-batch fits and the next one does not. Planned as commands of their own, both have the stated
/// memory.
#[test]
fn the_largest_micro_batch_fits_and_the_next_does_not() {
    let w = tempfile::tempdir().expect("a folder");
    for (command, option, unit) in [
        ("sft --preset tiny --tokens 200 --vision-patches 64", "--per-device-train-batch-size", 1.0),
        (
            "grpo --preset tiny --tokens 100 --num-generations 4 --max-completion-length 8 --lora-r 4",
            "--per-device-train-batch-size",
            4.0,
        ),
        ("sft --preset tiny --tokens 200 --packing", "--max-length", 200.0),
    ] {
        // With packing, a plan needs a --max-length to start from, which the search replaces.
        let start = if command.contains("--packing") { "--max-length 200" } else { "" };
        let found = plan_on(w.path(), 0.06, command, &format!("{start} --find-batch-size"));
        let of = |key: &str| number(&found, &format!("/find_batch_size/{key}"));
        assert_eq!(found["find_batch_size"]["option"], option);
        assert_eq!(of("next/value"), of("largest/value") + unit, "{found}");
        assert!(
            of("largest/value") >= 2.0 * unit
                && found["peak_bytes"] == found["find_batch_size"]["largest"]["peak_bytes"]
        );
        let usable = of("usable_bytes");
        assert!(of("largest/peak_bytes") <= usable && of("next/peak_bytes") > usable, "{found}");
        let speed = of("largest/seconds_per_token") * number(&found, "/tokens_per_second");
        assert!((speed - 1.0).abs() < 1e-9, "{found}");
        for (which, value) in [("largest", of("largest/value")), ("next", of("next/value"))] {
            let again = plan_on(w.path(), 0.06, command, &format!("{option} {value}"));
            assert_eq!(number(&again, "/peak_bytes"), of(&format!("{which}/peak_bytes")), "{command} {value}");
        }
    }
    // If not even one row fits, the plan says so and suggests options.
    let none = plan_on(w.path(), 0.01, "sft --preset tiny --tokens 2000", "--find-batch-size");
    assert!(none["find_batch_size"]["largest"].is_null() && none["advice"]["tried"].is_array(), "{none}");
    run("plan sft --preset tiny --data rows.jsonl --packing --max-length 9 --gpu h200 --find-batch-size".split(' '))
        .assert_refused(2, &["--find-batch-size: with --packing, rows of --data"]);
}
