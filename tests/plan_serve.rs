//! `reel plan serve`: its numbers are consistent with each other and with the model, more tokens mean fewer
//! sequences, and wrong sizes are refused.

mod support;

use serde_json::Value;
use support::run;

fn plan(line: &str) -> Value {
    run(format!("plan serve {line} --json").split(' ')).plan_json()
}

fn number(plan: &Value, path: &str) -> f64 {
    plan.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {plan}"))
}

#[test]
fn numbers_of_a_plan_fit_each_other() {
    // Qwen2.5-VL 3B has 36 layers with 2 heads of 128 for keys and values each; a block has 64 tokens.
    let block_bytes = (2 * 36 * 2 * 128 * 64 * 2) as f64;
    let plan = plan("--preset 3b --tokens 2048 --vision-patches 4096 --gpu h200");
    let of = |path: &str| number(&plan, path);
    assert_eq!(of("/kv_bytes"), of("/kv_blocks") * block_bytes);
    assert_eq!(of("/kv_tokens"), of("/kv_blocks") * 64.0);
    let half = (of("/capacity_bytes") - of("/memory/weights")) / 2.0;
    assert!((of("/kv_bytes") - half).abs() <= block_bytes, "{plan}");
    let parts: f64 = plan["memory"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    assert_eq!(parts, of("/peak_bytes"));
    assert_eq!(plan["fits"], true);
    assert_eq!(of("/memory/kv_cache"), of("/kv_bytes"));
    // A sequence keeps 2048 tokens of the prompt and 1023 of the answer in the KV cache: 48 blocks.
    assert_eq!(of("/sequences_that_fit"), (of("/kv_blocks") / 48.0).floor());
    assert_eq!((of("/batch_size"), of("/decoding")), (256.0, 256.0));
    assert_eq!(of("/tokens_per_second"), of("/decoding") / of("/inter_token_seconds"));
    // A decode step reads at least the weights of the decoder, 3.09 billion parameters in bf16.
    let step = of("/inter_token_seconds");
    assert!(step > 2.0 * 3.08e9 / of("/ceilings/bytes_per_second") && step < 0.1, "{step}");
    // In the middle of the answers, each of the 256 sequences reads the keys and values of 2048 + 512 tokens.
    let ops = plan["ops"].as_array().unwrap();
    let reads = |op: &&Value| op["phase"] == "decode" && op["op"].as_str().is_some_and(|op| op.starts_with("paged_"));
    let read = ops.iter().find(reads).and_then(|op| op["bytes"].as_f64()).unwrap();
    let keys = 256.0 * 2560.0 * block_bytes / 64.0;
    assert!(read >= keys && read < 1.01 * keys, "{read} {keys}");
    let prompt = of("/time_to_first_token_seconds");
    assert!(prompt > 2.0 * 3.08e9 * 2000.0 / of("/ceilings/flops_bf16") && prompt < 1.0, "{prompt}");
    for (phase, total) in [("prefill", prompt), ("decode", step)] {
        let ops = ops.iter().filter(|op| op["phase"] == phase).filter_map(|op| op["seconds"].as_f64());
        assert!((ops.sum::<f64>() / total - 1.0).abs() < 1e-9, "{phase}");
    }
}

#[test]
fn the_gpus_of_a_divided_model_share_its_memory_and_gather_its_columns() {
    const LAYERS: f64 = 80.0;
    let plan = |ranks: u32, more: &str| {
        let line =
            format!("--preset 72b --tokens 2048 --gpu h200 --batch-size 4 --tensor-parallel-size {ranks} {more}");
        plan(line.trim_end())
    };
    let (one, eight) = (plan(1, ""), plan(8, ""));
    // Each GPU has 1/8 of the decoder layers and of the output layer, and the whole vision tower and embedding table.
    let (hidden, inner, vocab) = (8192.0, 29_568.0, 152_064.0);
    let divided =
        2.0 * (LAYERS * (2.0 * hidden * hidden + 2.0 * hidden * 1024.0 + 3.0 * hidden * inner) + vocab * hidden);
    let saved = number(&one, "/memory/weights") - number(&eight, "/memory/weights");
    assert!((saved / (divided * 7.0 / 8.0) - 1.0).abs() < 0.001, "{saved} of {divided}");
    // In a step of 4 sequences, a GPU receives the columns of 7 other GPUs: bf16 activations in each layer, and the
    // f32 logits.
    let of_layers = LAYERS * 4.0 * 2.0 * (3.0 * hidden + inner) * 7.0 / 8.0;
    assert_eq!(number(&eight, "/gathers/decode/bytes"), of_layers + 4.0 * 4.0 * vocab * 7.0 / 8.0);
    assert_eq!(number(&eight, "/gathers/decode/exchanges"), 4.0 * LAYERS + 1.0);
    assert_eq!(number(&one, "/gathers/decode/bytes"), 0.0);
    let pcie = plan(8, "--link pcie5");
    let (fast, slow) = ("/gathers/decode_seconds", number(&pcie, "/gathers/decode_seconds"));
    assert!((slow / number(&eight, fast) - 450.0 / 64.0).abs() < 1e-9);
    run("plan serve --preset 72b --tokens 9 --gpu h200 --link pcie5".split(' '))
        .assert_refused(2, &["--link: is for several"]);
    let of_3b = "plan serve --preset 3b --tokens 9 --gpu h200 --tensor-parallel-size 4";
    run(of_3b.split(' ')).assert_refused(1, &["config.json: num_key_value_heads: is 2"]);
}

#[test]
fn a_decode_step_has_five_launches_a_layer() {
    let launches = |layers: f64, more: &str| {
        let plan = plan(&format!("--preset 7b --tokens 100 --gpu h200 {more}"));
        let ops = plan["ops"].as_array().unwrap().iter().filter(|op| op["phase"] == "decode");
        let all: f64 = ops.filter_map(|op| op["launches"].as_f64()).sum();
        // In addition to the launches of the layers, a step has six launches: embedding, angles, the last norm, the
        // output layer, sampling, and the advance of positions.
        assert!(all - 5.0 * layers <= 6.0, "{all} launches in {layers} layers {more}");
        all - 5.0 * layers
    };
    let (bf16, int8) = (launches(28.0, "--batch-size 16"), launches(28.0, "--batch-size 16 --quantize int8"));
    assert_eq!(launches(28.0, "--batch-size 64"), bf16, "the norm of a larger batch takes no launch of its own");
    assert!(bf16 >= 6.0 && int8 >= 6.0, "{bf16} {int8}");
}

#[test]
fn a_plan_of_generation_counts_the_keys_that_exist() {
    let args = "plan generate --preset 3b --tokens 100 --max-new-tokens 3 --n 2 --gpu h200 --json";
    let plan = run(args.split(' ')).plan_json();
    let ops = plan["ops"].as_array().unwrap();
    let reads = |op: &&Value| op["phase"] == "decode" && op["op"].as_str().is_some_and(|op| op.starts_with("paged_"));
    let read = ops.iter().find(reads).and_then(|op| op["bytes"].as_f64()).unwrap();
    // The second and the third token of each completion read the keys and values of 101 and 102 tokens.
    let keys = 2.0 * (101.0 + 102.0) * (2 * 36 * 2 * 128 * 2) as f64;
    // With so few keys, the queries and results add a few per cent to the bytes that are read and written.
    assert!(read >= keys && read < 1.1 * keys, "{read} {keys}");
}

/// The predicted times of a 7B model's prefill and training step on an H200 are within 25 % of the measured times.
/// The decode steps in the record were measured with earlier kernels for matrix products with few rows. The kernels
/// have become faster since, so the predicted times are shorter, by half for 64 rows.
#[test]
fn predicted_steps_are_near_the_measured_ones() {
    let record: Value =
        serde_json::from_str(include_str!("../tools/benches/results/h200/2026-11-27-models.json")).expect("JSON");
    // The record has measurements of a decode step with two earlier kernels for matrix products with few rows; the
    // faster one counts.
    let measured = |op: &str, batch: f64| {
        let all = ["models", "models_by_blocks_of_columns"].map(|list| record[list].as_array().expect("a list"));
        let found = all.into_iter().flatten().filter(|m| m["op"] == op && m["model"] == "7b" && m["batch"] == batch);
        let steps = |m: &Value| if op == "decode" { number(m, "/tokens") } else { 1.0 };
        found.map(|m| number(m, "/seconds") / steps(m)).fold(f64::INFINITY, f64::min)
    };
    // The measured time lies in the range of the plan, and the time by the last measurements of the kernels is near it.
    let check_range = |plan: &Value, part: &str, measured: f64| {
        let parts = plan["parts"].as_array().expect("parts");
        let part = parts.iter().find(|own| own["part"] == part).expect("a part");
        let [least, most] = [0, 1].map(|at| part["range_seconds"][at].as_f64().expect("a bound"));
        assert!(least <= measured && measured <= most, "{measured} s measured: {part}");
        let last = number(part, "/last_measured/seconds");
        assert!((0.85..1.15).contains(&(last / measured)), "{measured} s measured: {part}");
        let shares: f64 = part["shares"].as_object().expect("shares").values().filter_map(Value::as_f64).sum();
        // Most of the time is that of kernels for Hopper, of which none has been timed.
        let measured = number(part, "/shares/measured");
        assert!((shares - 1.0).abs() < 1e-9 && measured < 0.4, "{part}");
    };
    let compare = |what: &str, predicted: f64, measured: f64, ratios: std::ops::Range<f64>| {
        println!("{what}: {:.3} ms predicted, {:.3} ms measured", predicted * 1e3, measured * 1e3);
        assert!(ratios.contains(&(predicted / measured)), "{what}: {predicted} s predicted, {measured} s measured");
    };
    let check = |what: &str, predicted, measured| compare(what, predicted, measured, 0.75..1.25);
    for (context, batch, new) in [(1024, 1, 64), (5120, 8, 32), (4096, 64, 16)] {
        let sizes = format!("--tokens {context} --batch-size {batch} --max-new-tokens {new}");
        let plan = plan(&format!("--preset 7b {sizes} --gpu h200"));
        compare(&sizes, number(&plan, "/inter_token_seconds"), measured("decode", f64::from(batch)), 0.45..1.0);
        check_range(&plan, "decode", measured("decode", f64::from(batch)));
        if context == 4096 {
            check_range(&plan, "prefill", measured("prefill", 1.0));
            check("prefill", number(&plan, "/time_to_first_token_seconds"), measured("prefill", 1.0));
        }
    }
    let sft = "plan sft --preset 7b --tokens 8192 --gpu h200 --optim adamw-bf16 --gradient-accumulation-steps 1 --json";
    let sft = run(sft.split(' ')).plan_json();
    check_range(&sft, "all", measured("train", 1.0));
    check("sft", number(&sft, "/seconds"), measured("train", 1.0));
}

#[test]
fn longer_prompts_leave_room_for_fewer_sequences() {
    let short = plan("--preset 7b --tokens 1000 --max-new-tokens 24 --gpu rtx4090 --batch-size 4");
    let long = plan("--preset 7b --tokens 4000 --max-new-tokens 96 --gpu rtx4090 --batch-size 4");
    assert_eq!(number(&short, "/kv_blocks"), number(&long, "/kv_blocks"));
    let (few, many) = (number(&long, "/sequences_that_fit"), number(&short, "/sequences_that_fit"));
    assert!((few - (many / 4.0).floor()).abs() <= 1.0 && few >= 1.0, "{few} {many}");
    assert_eq!(number(&short, "/decoding"), 4.0);
    assert_eq!(number(&long, "/decoding"), few.min(4.0));
    for path in ["/time_to_first_token_seconds", "/inter_token_seconds"] {
        assert!(number(&long, path) > number(&short, path), "{path}");
    }
    // On a CPU, the cache has room for 4096 tokens per completion. A token takes 64 f32 values for keys and 64 for
    // values in each of 3 layers.
    let on_cpu = plan("--preset tiny --tokens 40 --device cpu --batch-size 64");
    assert_eq!(number(&on_cpu, "/kv_tokens"), 64.0 * 4096.0);
    let table = run("plan serve --preset tiny --tokens 40 --device cpu --batch-size 3".split(' ')).ok().to_string();
    for words in
        ["reel serve in f32: tiny, prompts of 40 tokens", "kv_cache", "(--batch-size 3)", "time to first token"]
    {
        assert!(table.contains(words), "{words} is not in {table}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    for (line, code, words) in [
        ("--preset tiny --gpu h100", 2, "--tokens: is missing"),
        ("--tokens 9 --gpu h100", 2, "--model: is missing"),
        ("--preset tiny --tokens 9 --max-new-tokens 0 --gpu h100", 2, "--max-new-tokens: is 0"),
        ("--preset tiny --tokens 9 --batch-size 0 --gpu h100", 2, "--batch-size"),
        ("--preset 3b --tokens 127990 --gpu h100", 2, "--max-new-tokens: is 1024"),
        ("--preset tiny --tokens 9 --device sim", 2, "--device"),
        ("--preset 7b --tokens 100000 --gpu rtx4090", 1, "KV cache"),
    ] {
        run(format!("plan serve {line}").split(' ')).assert_refused(code, &[words]);
    }
}
