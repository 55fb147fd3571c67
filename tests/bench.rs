//! `reel bench` and `--trace`: results have their documented keys, and their numbers agree with each other.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{check_page, golden, run, run_in, tiny_model};

fn number(value: &Value, key: &str) -> f64 {
    value.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {key} in {value}"))
}

/// Checks that the times of all ops add up to at most the time of the profiled round, and that each op's share of
/// that time is right. Returns the names of the ops.
#[track_caller]
fn check_ops(result: &Value) -> Vec<String> {
    let ops = result["ops"].as_array().expect("ops");
    let (mut seconds, mut shares, mut last) = (0.0, 0.0, f64::INFINITY);
    for op in ops {
        let op_seconds = number(op, "/seconds");
        assert!(op_seconds > 0.0 && op_seconds <= last, "the ops are not sorted by time: {ops:?}");
        (seconds, shares, last) = (seconds + op_seconds, shares + number(op, "/share_of_step"), op_seconds);
        assert!(number(op, "/launches") >= 1.0 && number(op, "/bytes") > 0.0);
        assert!(
            (number(op, "/gflops_per_second") * op_seconds * 1e9 - number(op, "/flops")).abs()
                <= 1e-6 * number(op, "/flops")
        );
        assert!((number(op, "/share_of_floor") * op_seconds - number(op, "/floor_seconds")).abs() < 1e-12);
    }
    let round = number(result, "/profiled/seconds");
    assert!(seconds <= round && (shares - seconds / round).abs() < 1e-9, "{seconds} s of {round} s");
    assert!((number(result, "/profiled/busy") - shares).abs() < 1e-9);
    ops.iter().map(|o| o["op"].as_str().expect("a name").to_string()).collect()
}

#[test]
fn prefill_with_a_video_counts_its_tokens_and_runs_the_vision_tower() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let bench = |more: &[&str]| {
        let args = ["bench", "prefill", "--model", "tiny", "--tokens", "16", "--rounds", "1", "--batch", "2"];
        run_in(dir.path(), support::with_options(&args, more))
    };
    let got = bench(&["--frames", "3", "--frame-size", "56x84", "--json"]).json();
    // The three frames are padded to two frame pairs. A pair has 4 x 6 patches, which become 2 x 3 tokens. Two more
    // tokens mark the start and the end of the video.
    assert_eq!(number(&got, "/tokens"), 16.0 + 2.0 + 2.0 * 2.0 * 3.0);
    let ops = check_ops(&got);
    assert!(ops.iter().any(|op| op.starts_with("patch_embed")), "{ops:?}");
    bench(&["--frames", "3", "--frame-size", "56x80"]).assert_refused(2, &["--frame-size", "56x80", "28"]);
    bench(&["--frames", "3", "--frame-size", "0x28"]).assert_refused(2, &["--frame-size", "0x28"]);
    bench(&["--frames", "3", "--frame-size", "56"]).assert_refused(2, &["--frame-size", "HEIGHTxWIDTH"]);
    bench(&["--frames", "60000", "--frame-size", "1400x1400"]).assert_refused(2, &["--frames", "pixels in all"]);
    bench(&["--frames", "0"]).assert_refused(2, &["--frames", "0"]);
    bench(&["--frame-size", "56x56"]).assert_refused(2, &["--frames"]);
}

#[test]
fn prefill_and_decode_results_have_their_keys_and_can_be_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let bench = |op: &str, more: &[&str]| {
        let args = ["bench", op, "--model", "tiny", "--tokens", "16", "--rounds", "3", "--json"];
        run_in(dir.path(), support::with_options(&args, more))
    };
    for (op, dtype) in [("prefill", "f32"), ("prefill", "bf16"), ("decode", "f32"), ("decode", "bf16")] {
        let got = bench(op, &["--batch", "2", "--dtype", dtype, "--html", "page.html"]).json();
        let number = |key: &str| number(&got, key);
        assert_eq!((&got["op"], &got["dtype"], &got["device"]), (&op.into(), &dtype.into(), &"cpu".into()));
        assert_eq!((number("/n"), number("/tokens"), number("/batch")), (3.0, 16.0, 2.0));
        assert!(number("/min") > 0.0 && number("/min") <= number("/tokens_per_second"));
        assert!(number("/tokens_per_second") <= number("/max"));
        assert!((number("/tokens_per_second") * number("/seconds") - 32.0).abs() < 1e-6);
        assert!((number("/roofline/share") - number("/roofline/seconds") / number("/seconds")).abs() < 1e-9);
        // The weights of the tiny model fit in the CPU's caches, whose bandwidth is a separate ceiling. No op exceeds
        // its ceiling.
        assert!(number("/roofline/cache/gigabytes_per_second") > 0.0 && number("/roofline/cache/bytes") > 1e4);
        let shares = got["ops"].as_array().expect("ops").iter().map(|op| op["share_of_floor"].as_f64());
        assert!(shares.chain([Some(number("/roofline/share"))]).all(|share| share <= Some(1.0)), "{got}");
        // A forward pass has at least 2 operations per weight and token, and the decoder has more than half of all
        // weights.
        assert!(number("/flops") > 32.0 * 2.0 * 0.3e6, "{got}");
        let samples: Vec<f64> = got["samples"].as_array().expect("samples").iter().filter_map(Value::as_f64).collect();
        assert_eq!(samples.len(), 3);
        assert!(samples.contains(&number("/seconds")), "the reported time is not the median of the three rounds");
        let ops = check_ops(&got);
        assert!(ops.contains(&"matmul_fwd".to_string()), "{ops:?}");
        // Clocks are only measured on a GPU.
        assert_eq!(got["clocks"], Value::Null);
        assert!(got["machine"]["name"].as_str().is_some_and(|n| !n.is_empty()));
        let page = fs::read_to_string(dir.path().join("page.html")).expect("the page");
        for part in ["matmul_fwd", "Memory from the first launch", "weights up to"] {
            assert!(page.contains(part), "no {part} in the page");
        }
        let charts = check_page(&page);
        assert_eq!(charts.iter().map(|c| &c["kind"]).collect::<Vec<_>>(), ["roofline", "area"]);
        assert_eq!(charts[0]["points"].as_array().map(Vec::len), Some(ops.len()));
        fs::write(dir.path().join(format!("{op}-{dtype}.json")), got.to_string()).expect("written");
    }
    let compare = |a: &str, b: &str| run_in(dir.path(), ["bench", "--compare", a, b, "--json"]);
    let same = compare("prefill-f32.json", "prefill-f32.json").json();
    let verdict = &same["verdicts"][0];
    assert_eq!((&verdict["ratio"], &verdict["verdict"]), (&1.0.into(), &"no difference".into()));
    assert_eq!((&same["differs"], &verdict["too_few_rounds"]), (&json!([]), &true.into()));
    let types = compare("prefill-f32.json", "prefill-bf16.json").json();
    assert_eq!(types["differs"], json!(["dtype: f32 and bf16"]));
    let moved = types["moved"].as_array().expect("ops");
    assert!(moved.iter().any(|m| m["op"] == "swiglu_fwd_bf16" && m["a"] == 0.0 && number(m, "/b") > 0.0), "{moved:?}");
    compare("prefill-f32.json", "decode-f32.json").assert_refused(1, &["decode-f32.json", "op"]);
    compare("prefill-f32.json", "none.json").assert_refused(1, &["none.json"]);
    bench("prefill", &["--batch", "0"]).assert_refused(2, &["--batch"]);
    let asked = |args: &[&str]| run_in(dir.path(), [&["bench"], args, &["--model", "tiny"]].concat());
    for op in ["prefill", "decode", "rollout"] {
        asked(&[op, "--tokens", "18446744073709551615"]).assert_refused(2, &["--tokens", "positions"]);
        asked(&[op, "--batch", "100000000"]).assert_refused(2, &["--batch"]);
    }
    asked(&["prefill", "--batch", "4096", "--tokens", "100000"]).assert_refused(2, &["--batch", "tokens in all"]);
    bench("decode", &["--context", "18446744073709551615"]).assert_refused(2, &["--tokens", "--context"]);
    run(["bench", "--compare", "a.json"]).assert_refused(2, &["--compare"]);
    run(["bench", "--compare", "a.json", "b.json", "op", "grpo_loss"]).assert_refused(2, &["--compare"]);
    run(["bench"]).assert_refused(2, &["prefill", "--compare"]);
}

#[test]
fn rollout_results_have_parts_and_can_be_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let bench = |more: &[&str]| {
        let args = ["bench", "rollout", "--model", "tiny", "--rounds", "2", "--json"];
        run_in(dir.path(), support::with_options(&args, more))
    };
    for dtype in ["f32", "bf16"] {
        let sizes = ["--tokens", "12", "--context", "40", "--batch", "3"];
        let got = bench(&[&sizes[..], &["--dtype", dtype, "--html", "page.html"]].concat()).json();
        assert_eq!((&got["op"], &got["dtype"]), (&"rollout".into(), &dtype.into()));
        assert_eq!(["/n", "/tokens", "/context", "/batch"].map(|key| number(&got, key)), [2.0, 12.0, 40.0, 3.0]);
        // Tokens/s counts the tokens of the completions, not the tokens of the prompt.
        assert!((number(&got, "/tokens_per_second") * number(&got, "/seconds") - 36.0).abs() < 1e-6);
        assert!(number(&got, "/roofline/share") > 0.0 && number(&got, "/max") >= number(&got, "/min"));
        let ops = check_ops(&got);
        for part in ["paged_attention", "sample", "advance"] {
            assert!(ops.iter().any(|op| op.starts_with(part)), "no {part} in {ops:?}");
        }
        let parts = got["parts"].as_array().expect("parts");
        let names: Vec<&Value> = parts.iter().map(|p| &p["part"]).collect();
        assert_eq!(names, ["prefill", "decode"]);
        let whole: f64 = parts.iter().map(|p| number(p, "/flops")).sum();
        assert!((whole - number(&got, "/flops")).abs() <= 1e-9 * whole);
        // All completions share one prefill, which gives the first token of each completion: a completion of 12 tokens
        // has 11 decode steps.
        let weights = number(&parts[0], "/flops") / 40.0;
        let each = number(&parts[1], "/flops") / (3.0 * 11.0);
        assert!(
            each > 0.9 * weights && each < 2.0 * weights,
            "{each} operations per decoded token are too far from the {weights} per prompt token"
        );
        let page = fs::read_to_string(dir.path().join("page.html")).expect("the page");
        assert!(page.contains("rollout") && page.contains("prefill"), "{page}");
        fs::write(dir.path().join(format!("{dtype}.json")), got.to_string()).expect("written");
    }
    assert_eq!(
        number(&bench(&["--tokens", "2"]).json(), "/batch"),
        8.0,
        "without --batch, a rollout has 8 completions"
    );
    let compared = run_in(dir.path(), ["bench", "--compare", "f32.json", "bf16.json", "--json"]).json();
    assert_eq!((&compared["op"], &compared["differs"]), (&"rollout".into(), &json!(["dtype: f32 and bf16"])));
    bench(&["--tokens", "0"]).assert_refused(2, &["--tokens"]);
    bench(&["--batch", "0"]).assert_refused(2, &["--batch"]);
    bench(&["--batch", "18446744073709551615"]).assert_refused(2, &["--batch", "4096"]);
    bench(&["--tokens", "18446744073709551615"]).assert_refused(2, &["--tokens", "positions"]);
    bench(&["--context", "127999", "--tokens", "2"]).assert_refused(2, &["--tokens", "positions"]);
}

/// Writes a result file with these round times; returns its name.
fn result(folder: &Path, name: &str, samples: &[f64]) -> String {
    let value = json!({
        "op": "decode", "tokens": 32, "batch": 1, "context": 64, "dtype": "bf16", "device": "cuda", "model": "7b",
        "machine": {"name": "NVIDIA H200", "driver": "13.0"}, "samples": samples, "clocks": null,
    });
    fs::write(folder.join(name), value.to_string()).expect("written");
    name.to_string()
}

#[test]
fn compare_says_which_result_is_faster() {
    let dir = tempfile::tempdir().expect("a folder");
    let a = result(dir.path(), "a.json", &[1.00, 1.02, 0.99, 1.01, 1.03, 0.98, 1.50]);
    let b = result(dir.path(), "b.json", &[0.80, 0.82, 0.79, 0.81, 0.83, 0.78, 0.97]);
    let c = result(dir.path(), "c.json", &[1.01, 1.02, 0.98, 1.00, 1.03, 0.99, 1.20]);
    let compare = |a: &str, b: &str| run_in(dir.path(), ["bench", "--compare", a, b]);
    for (first, second, words) in [(&a, &b, "faster (ratio 1.24"), (&b, &a, "slower"), (&a, &c, "no difference")] {
        let got = compare(first, second);
        assert!(got.ok().starts_with(&format!("decode: {words}")), "{}", got.stdout);
        assert_eq!(got.stdout, compare(first, second).stdout, "the same comparison printed two different results");
    }
    let old = dir.path().join("old.json");
    let without = r#"{"op": "decode", "tokens": 32, "batch": 1, "context": 64, "tokens_per_second": 5.0}"#;
    for (text, words) in [(without, "samples"), ("{", "JSON"), (&without.replace("decode", "train"), "op")] {
        fs::write(&old, text).expect("written");
        compare("a.json", "old.json").assert_refused(1, &["old.json", words]);
    }
    result(dir.path(), "bad.json", &[1.0, -1.0]);
    compare("a.json", "bad.json").assert_refused(1, &["bad.json", "samples"]);
}

#[test]
fn train_results_have_parts_planned_memory_and_mfu() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let bench = |more: &[&str]| {
        let args = ["bench", "train", "--model", "tiny", "--tokens", "24", "--batch", "2", "--rounds", "2", "--json"];
        run_in(dir.path(), support::with_options(&args, more))
    };
    let got = bench(&["--gradient-checkpointing", "full"]).json();
    assert_eq!(
        (&got["op"], &got["mfu"], &got["gradient_checkpointing"]),
        (&"train".into(), &Value::Null, &"full".into())
    );
    assert!((number(&got, "/tokens_per_second") * number(&got, "/seconds") - 48.0).abs() < 1e-6);
    let ops = check_ops(&got);
    for part in ["matmul", "attention_fwd", "attention_bwd", "log_prob", "adamw"] {
        assert!(ops.iter().any(|op| op.starts_with(part)), "no {part} in {ops:?}");
    }
    // Training needs at least 6 floating-point operations per weight and token, and more for attention. The last
    // token of each of the two sequences has no target, so it needs no logits.
    let least = 6.0 * 46.0 * number(&got, "/parameters_multiplied");
    assert!(number(&got, "/model_flops") > least && number(&got, "/model_flops") < 1.5 * least);
    let rate = number(&got, "/model_flops") / number(&got, "/seconds");
    assert!((number(&got, "/model_flops_per_second") / rate - 1.0).abs() < 1e-9);
    // The measured peak memory equals the plan of device `dry`. The step has the parts forward, backward and
    // optimizer.
    assert_eq!(got["planned_peak_bytes"], got["peak_bytes"]);
    let names: Vec<&str> = got["parts"].as_array().expect("parts").iter().filter_map(|p| p["part"].as_str()).collect();
    assert_eq!(names, ["forward", "backward", "optimizer"]);
    let of = |key: &str| -> Vec<f64> {
        got["parts"].as_array().expect("parts").iter().map(|p| number(p, &format!("/{key}"))).collect()
    };
    let round = number(&got, "/profiled/seconds");
    assert!(of("seconds").iter().sum::<f64>() <= round * (1.0 + 1e-9));
    assert!((of("busy_seconds").iter().sum::<f64>() / round - number(&got, "/busy")).abs() < 1e-6);
    assert!(of("busy_seconds").iter().zip(of("seconds")).all(|(busy, all)| *busy > 0.0 && *busy <= all * (1.0 + 1e-9)));
    assert!((of("flops").iter().sum::<f64>() / number(&got, "/flops") - 1.0).abs() < 1e-9);
    assert!(of("launches").iter().sum::<f64>() == ops_launches(&got));
    // The backward pass recomputes the forward pass, then computes the gradients of inputs and weights.
    assert!(of("flops")[1] > 2.5 * of("flops")[0], "{:?}", of("flops"));
    // Recomputation increases the number of executed operations, but not the number of model operations. Without the
    // option nothing is recomputed, because all activations of this model fit in memory.
    let kept = bench(&[]).json();
    assert_eq!((&kept["gradient_checkpointing"], &kept["model_flops"]), (&"none".into(), &got["model_flops"]));
    assert_eq!((&kept["recompute"], &got["optim"]), (&"nothing".into(), &"adamw".into()));
    assert_eq!(kept["planned_peak_bytes"], kept["peak_bytes"]);
    let small = bench(&["--optim", "adamw-bf16", "--dtype", "bf16", "--html", "step.html"]).json();
    assert_eq!((&small["optim"], &small["planned_peak_bytes"]), (&"adamw-bf16".into(), &small["peak_bytes"]));
    assert!(number(&small, "/peak_bytes") < number(&got, "/peak_bytes"));
    assert!(small["ops"].as_array().expect("ops").iter().any(|op| op["op"] == "adamw_bf16_moments_bf16"));
    let page = fs::read_to_string(dir.path().join("step.html")).expect("the page");
    assert!(page.contains(">optimizer</td>") && page.contains(">backward</td>"), "{page}");
    assert!(number(&kept, "/flops") < number(&got, "/flops"));
    bench(&["--tokens", "1"]).assert_refused(2, &["--tokens"]);
}

/// A decode step reads the weights and the keys of the prompt and of the tokens generated so far. It does not read
/// the unused part of the block tables.
#[test]
fn bytes_of_a_decode_step_are_those_of_the_weights_and_of_the_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let text = fs::read_to_string(dir.path().join("tiny/config.json")).expect("a config");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let size = |key: &str| number(&config, key);
    let (layers, hidden, heads) = (size("/num_hidden_layers"), size("/hidden_size"), size("/num_attention_heads"));
    let (kv_heads, d) = (size("/num_key_value_heads"), hidden / heads);
    let matrices = hidden * d * 2.0 * (heads + kv_heads) + 3.0 * hidden * size("/intermediate_size");
    let (batch, steps) = (2.0, 3.0);
    let weights = steps * 4.0 * (layers * matrices + hidden * size("/vocab_size"));
    for context in [5.0, 70.0, 300.0] {
        let (context_text, tokens, batch_text) = (context.to_string(), steps.to_string(), batch.to_string());
        let args = ["bench", "decode", "--model", "tiny", "--dtype", "f32", "--rounds", "1", "--json", "--context"];
        let more = [&context_text, "--tokens", &tokens, "--batch", &batch_text];
        let got = run_in(dir.path(), args.iter().copied().chain(more)).json();
        let ops = got["ops"].as_array().expect("ops");
        let attention = ops.iter().find(|op| op["op"] == "paged_attention_fwd_f32").expect("attention");
        // Two steps are warm-up, so the first profiled step reads the keys of the context, of its own token and of
        // two more tokens.
        let keys = batch * (1..=3).map(|step| context + 2.0 + f64::from(step)).sum::<f64>();
        let queries = batch * steps;
        assert_eq!(number(attention, "/bytes"), 4.0 * layers * 2.0 * d * (queries * heads + keys * kv_heads));
        assert_eq!(number(attention, "/flops"), 4.0 * layers * d * heads * keys);
        let others = number(&got, "/bytes") - number(attention, "/bytes");
        assert!((weights..1.25 * weights).contains(&others), "{others} bytes, of which {weights} are weights");
    }
}

#[test]
fn kernels_are_timed_on_the_cpu() {
    let dir = tempfile::tempdir().expect("a folder");
    let bench = |name: &str| run_in(dir.path(), ["bench", "op", name, "--device", "cpu", "--runs", "5", "--json"]);
    let result = bench("grpo_loss");
    assert_eq!(result.stderr, "");
    let got = result.json();
    let kernels = got["kernels"].as_array().expect("kernels");
    assert!(!kernels.is_empty());
    for kernel in kernels {
        assert_eq!(kernel["samples"].as_array().map(Vec::len), Some(5));
        assert!(number(kernel, "/min") > 0.0 && number(kernel, "/min") <= number(kernel, "/seconds"));
        assert!(number(kernel, "/share_of_floor") > 0.0);
    }
    fs::write(dir.path().join("a.json"), got.to_string()).expect("written");
    let same = run_in(dir.path(), ["bench", "--compare", "a.json", "a.json", "--json"]).json();
    assert_eq!(same["verdicts"].as_array().map(Vec::len), Some(kernels.len()));
    bench("no_such_kernel").assert_refused(2, &["no_such_kernel", "grpo_loss"]);
    run(["bench", "op", "grpo_loss", "--device", "sim"]).assert_refused(2, &["--device"]);
    // Without --json, a line on stderr names what is being timed, and stdout has only the table.
    let swiglu = "bench op swiglu --size tokens=4 --size intermediate=64 --device cpu --runs 1";
    let text = run(swiglu.split(' '));
    assert!(text.ok().starts_with("kernel "), "{}", text.stdout);
    assert!(
        text.stderr.contains("bench: timing swiglu_") && text.stderr.contains("(2 of 4, 2 remain)"),
        "{}",
        text.stderr
    );
    // With `--launch-only` the command runs only the op and prints nothing, so that the profiler ncu can count its
    // launches.
    let only = run(["bench", "op", "grpo_loss", "--device", "cpu", "--runs", "1", "--launch-only"]);
    assert_eq!((only.ok(), only.stderr.as_str()), ("", ""));
}

#[test]
fn ops_are_timed_at_given_sizes() {
    let op = |name: &str, sizes: &str, more: &[&str]| {
        let sizes = sizes.split(' ').filter(|s| !s.is_empty()).flat_map(|s| ["--size", s]);
        let args = ["bench", "op", name, "--device", "cpu", "--runs", "2", "--json"];
        run(args.into_iter().chain(sizes).chain(more.iter().copied()))
    };
    // For each op or kernel: its sizes, how many kernels `bench op` times for it, and the smallest operation count of
    // these kernels.
    let (vocab, tokens) = (3000.0, 40.0);
    for (name, sizes, kernels, flops) in [
        ("matmul", "m=24 n=40 k=56", 6, 2.0 * 24.0 * 40.0 * 56.0),
        ("matmul_dw_bf16", "m=24 n=40 k=56", 1, 2.0 * 24.0 * 40.0 * 56.0),
        ("attention", "tokens=70 heads=4 kv_heads=2 head_dim=64 causal=0", 4, 4.0 * 64.0 * 4.0 * 70.0 * 70.0),
        ("rms_norm", "tokens=9 hidden=65", 8, 4.0 * 9.0 * 65.0),
        ("swiglu", "tokens=9 intermediate=65", 4, 5.0 * 9.0 * 65.0),
        ("adamw", "count=1234", 7, 0.0),
        ("linear_log_prob_products", "tokens=40 hidden=64 vocab=3000", 4, 2.0 * tokens * 64.0 * vocab),
    ] {
        let got = op(name, sizes, &[]).json();
        let rows = got["kernels"].as_array().expect("kernels");
        assert_eq!((rows.len(), &got["problems"]), (kernels, &json!([])), "{name}: {got}");
        let fewest = rows.iter().map(|k| number(k, "/flops")).fold(f64::INFINITY, f64::min);
        assert_eq!(fewest, flops, "{name}");
        for row in rows {
            assert!(number(row, "/seconds") > 0.0 && number(row, "/share_of_floor") > 0.0, "{row}");
            for size in sizes.split(' ') {
                assert!(row["size"].as_str().is_some_and(|s| s.contains(size)), "{size} in {row}");
            }
            let named = row["kernel"].as_str().is_some_and(|k| dtype_of(k).is_none_or(|t| t == row["dtype"]));
            assert!(named, "{row}");
        }
    }
    let bf16 = op("swiglu", "tokens=3", &["--dtype", "bf16"]).json();
    assert_eq!(bf16["kernels"].as_array().map(Vec::len), Some(2));
    for (name, sizes, words) in [
        ("attention", "tokens=0", ["tokens", "is 0"]),
        ("attention", "hidden=3", ["hidden", "head_dim"]),
        ("attention", "heads=5", ["heads", "kv_heads"]),
        ("rope", "tokens=3", ["tokens", "rope"]),
        ("matmul", "m=1 m=2", ["--size m", "twice"]),
        ("matmul", "m", ["--size", "KEY=NUMBER"]),
        ("matmul", "m=-1", ["--size", "whole number"]),
        ("matmul_up", "m=1", ["matmul_up", "matmul"]),
    ] {
        op(name, sizes, &[]).assert_refused(2, &words);
    }
    for (name, sizes) in [("linear_log_prob_products", "tokens=2000000000"), ("adamw", "count=900000000000")] {
        op(name, sizes, &[]).assert_refused(1, &["GB", "smaller"]);
    }
}

/// Returns the number of launches of all ops in a result.
fn ops_launches(result: &Value) -> f64 {
    result["ops"].as_array().expect("ops").iter().map(|op| number(op, "/launches")).sum()
}

/// Returns the dtype suffix of a kernel's name (`_f32` or `_bf16`), or `None`.
fn dtype_of(kernel: &str) -> Option<&'static str> {
    ["f32", "bf16"].into_iter().find(|t| kernel.ends_with(&format!("_{t}")))
}

/// Reads the trace t.json in a folder.
fn read_trace(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("t.json")).expect("the trace");
    serde_json::from_str(&text).expect("JSON")
}

/// Returns the events of a trace whose key `ph` (the event type) has this value: X for complete events, C for
/// counters, M for metadata.
fn phase<'a>(events: &'a [Value], ph: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["ph"] == ph).collect()
}

#[test]
fn trace_has_spans_launches_and_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let args = ["generate", "--model", "tiny", "--prompt", "x", "--max-new-tokens", "3", "--trace", "t.json"];
    run_in(dir.path(), args).ok();
    let trace = read_trace(dir.path());
    let events = trace["traceEvents"].as_array().expect("events");
    for name in ["preprocess", "load", "prefill", "decode", "matmul_fwd", "sample"] {
        assert!(events.iter().any(|e| e["name"] == name && e["dur"].as_f64() >= Some(0.0)), "no {name}");
    }
    let sampled = events.iter().filter(|e| e["name"] == "sample" && e["tid"] == 1).count();
    assert_eq!(sampled, 3);
    // Every track has a name, and every event is on one of these tracks.
    let row = |e: &Value| (e["pid"].as_u64().expect("pid"), e["tid"].as_u64().expect("tid"));
    let named: BTreeSet<_> = phase(events, "M").into_iter().filter(|e| e["name"] == "thread_name").map(row).collect();
    // The three tracks are the main thread, the ranges on the device, and the launches.
    assert_eq!(named.len(), 3);
    assert!(phase(events, "M").iter().any(|e| e["name"] == "process_name" && e["args"]["name"] == "reel"));
    assert!(events.iter().all(|e| named.contains(&row(e))));
    assert!(events.iter().all(|e| ["X", "C", "M", "s", "f"].contains(&e["ph"].as_str().unwrap_or_default())));
    // Launches do not overlap. Each launch event states its floating-point operations and the bytes that it moved.
    let launches: Vec<&Value> = phase(events, "X").into_iter().filter(|e| e["tid"] == 1).collect();
    let mut end_before = 0.0;
    for e in &launches {
        let (ts, dur) = (number(e, "/ts"), number(e, "/dur"));
        assert!(ts >= end_before - 1e-2, "{e} begins before the end of the launch before it, {end_before}");
        end_before = ts + dur;
        assert!(number(e, "/args/bytes") > 0.0 && number(e, "/args/flops") >= 0.0);
        assert!(number(e, "/args/share_of_ceiling") > 0.0);
    }
    check_flows(events, &launches);
    // Launches of the decoder have the name of their layer, also in decode steps that replay a captured graph: one
    // prefill, two decode steps.
    for layer in ["decoder 0", "decoder 1", "decoder 2"] {
        let is_here = |e: &&&Value| e["name"] == "swiglu_fwd_f32" && e["args"]["layer"] == layer;
        assert_eq!(launches.iter().filter(is_here).count(), 3, "{layer}");
    }
    // The event of a matrix product states the product's size and the op that launched it.
    let ops = ["linear", "matmul", "skinny_linear", "skinny_qkv", "skinny_swiglu", "skinny_logits"];
    for e in launches.iter().filter(|e| e["name"] == "matmul_fwd") {
        let size = |key: &str| number(e, &format!("/args/shape/{key}"));
        assert_eq!(number(e, "/args/flops"), 2.0 * size("m") * size("n") * size("k"), "{e}");
        assert!(e["args"]["op"].as_str().is_some_and(|op| ops.contains(&op)), "{e}");
    }
    let products = launches.iter().filter(|e| e["name"] == "matmul_fwd");
    assert!(products.map(|e| number(e, "/args/flops")).sum::<f64>() > 2.0 * 0.3e6);
    assert!(number(&trace, "/otherData/ceilings/bytes") > 0.0);
    // The memory counters by category show that weights are constant and activations are allocated and freed.
    let counters = phase(events, "C");
    assert!(counters.windows(2).all(|two| number(two[0], "/ts") <= number(two[1], "/ts")));
    let bytes_of =
        |category: &str| -> Vec<f64> { counters.iter().map(|e| number(e, &format!("/args/{category}"))).collect() };
    let (weights, activations) = (bytes_of("weights"), bytes_of("activations"));
    assert!(weights[0] > 1e5 && weights[0] == weights[counters.len() / 2]);
    assert!(activations.iter().any(|&b| b > 0.0) && activations.contains(&0.0));
}

/// Checks that a flow (an arrow in the trace) leads to each launch from an event on a host thread with the same name,
/// which begins before the launch.
fn check_flows(events: &[Value], launches: &[&Value]) {
    let (starts, ends) = (phase(events, "s"), phase(events, "f"));
    assert_eq!((starts.len(), ends.len()), (launches.len(), launches.len()));
    let slices: Vec<&Value> = phase(events, "X").into_iter().filter(|e| e["tid"] != 1).collect();
    for ((start, end), launch) in starts.iter().zip(&ends).zip(launches) {
        assert_eq!(
            (&start["id"], &end["ts"], &end["tid"], &end["bp"]),
            (&end["id"], &launch["ts"], &launch["tid"], &json!("e"))
        );
        assert!(number(start, "/ts") <= number(end, "/ts"), "{start} {end}");
        let name = &launch["name"];
        let is_call = |e: &&&Value| e["ts"] == start["ts"] && e["tid"] == start["tid"] && e["name"] == *name;
        assert!(slices.iter().any(|e| is_call(&e)), "no slice begins the flow to {launch}");
    }
}

#[test]
fn trace_of_training_names_ops_layers_and_directions() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let rows = json!([{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}]);
    fs::write(dir.path().join("rows.json"), rows.to_string()).expect("rows");
    let args = "sft --model tiny --data rows.json --out out --max-steps 1 --gradient-accumulation-steps 1 --quiet \
                --gradient-checkpointing full --trace t.json";
    run_in(dir.path(), args.split(' ')).ok();
    let trace = read_trace(dir.path());
    let events = trace["traceEvents"].as_array().expect("events");
    let launches: Vec<&Value> = phase(events, "X").into_iter().filter(|e| e["tid"] == 1).collect();
    check_flows(events, &launches);
    // With full checkpointing each layer runs forward twice and backward once.
    let of = |op: &str, layer: &str| {
        launches.iter().filter(|e| e["args"]["op"] == op && e["args"]["layer"] == layer).count()
    };
    for layer in ["decoder 0", "decoder 1"] {
        // SwiGLU and the product with the weight `down` are one op of two launches, which runs twice; its backward rule
        // has three launches.
        assert_eq!(of("swiglu_linear", layer), 4, "{layer}");
        assert_eq!(of("swiglu_linear backward", layer), 3, "{layer}");
        // The backward rules of the linear layers qkv, o, and gate with up have two products each. One more launch
        // sums the gradients of the three biases.
        assert_eq!(of("linear backward", layer), 7, "{layer}");
    }
    // `reel kernels report` reads the trace.
    let report = ["kernels", "report", "--times", "t.json", "--out", "k.html"];
    run_in(dir.path(), report).ok();
    let page = fs::read_to_string(dir.path().join("k.html")).expect("the page");
    assert_eq!(check_page(&page)[0]["kind"], "roofline");
    assert!(page.contains("id=\"swiglu_bwd_f32\"") && page.contains("kernels that did not run"));
}

#[test]
fn trace_of_bench_has_the_profiled_round_only() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let args = "bench prefill --model tiny --tokens 16 --rounds 3 --json --perfetto t.json";
    let got = run_in(dir.path(), args.split(' ')).json();
    let trace = read_trace(dir.path());
    let events = trace["traceEvents"].as_array().expect("events");
    assert_eq!(events.iter().filter(|e| e["name"] == "profiled round" && e["tid"] == 0).count(), 1);
    for op in got["ops"].as_array().expect("ops") {
        let launches = events.iter().filter(|e| e["name"] == op["op"] && e["tid"] == 1).count();
        assert_eq!(launches as f64, number(op, "/launches"), "{op}");
    }
    let (traced, printed) =
        (number(&trace, "/otherData/ceilings/bytes"), number(&got, "/roofline/gigabytes_per_second") * 1e9);
    assert!((traced / printed - 1.0).abs() < 1e-12, "{traced} {printed}");
}

#[test]
fn trace_of_bench_op_has_each_timed_run() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, sizes) in [
        ("swiglu", ["tokens=9", "intermediate=65", ""]),
        ("matmul_dw_bf16", ["m=24", "n=40", "k=56"]),
        ("linear_log_prob_products", ["tokens=40", "hidden=64", "vocab=300"]),
    ] {
        let sizes = sizes.iter().filter(|size| !size.is_empty()).flat_map(|size| ["--size", size]);
        let args = ["bench", "op", name, "--device", "cpu", "--runs", "3", "--json", "--trace", "t.json"];
        let got = run_in(dir.path(), args.into_iter().chain(sizes)).json();
        let trace = read_trace(dir.path());
        let events = trace["traceEvents"].as_array().expect("events");
        let launches: Vec<&Value> = phase(events, "X").into_iter().filter(|e| e["tid"] == 1).collect();
        check_flows(events, &launches);
        for kernel in got["kernels"].as_array().expect("kernels") {
            let runs: Vec<&&Value> = launches.iter().filter(|e| e["name"] == kernel["kernel"]).collect();
            let mut seconds: Vec<f64> = runs.iter().map(|e| number(e, "/dur") / 1e6).collect();
            seconds.sort_by(f64::total_cmp);
            let printed = kernel["samples"].as_array().expect("samples").iter().filter_map(Value::as_f64);
            assert!(printed.clone().count() == 3 && seconds.len() == 3, "{kernel} {runs:?}");
            assert!(seconds.iter().zip(printed).all(|(traced, printed)| (traced - printed).abs() < 1e-8), "{kernel}");
            for run in runs {
                assert_eq!((&run["args"]["flops"], &run["args"]["size"]), (&kernel["flops"], &kernel["size"]));
                assert!((0.0..=1.0).contains(&number(run, "/args/share_of_ceiling")), "{run}");
            }
        }
        assert_eq!(
            (&trace["otherData"]["device"], &trace["otherData"]["ceilings"]),
            (&got["device"], &got["ceilings"])
        );
    }
    // `reel kernels report` reads the trace.
    run_in(dir.path(), ["kernels", "report", "--times", "t.json", "--out", "k.html"]).ok();
}

/// Returns the events of the trace in `folder` whose name begins with `work` and ends with a name of a file.
fn video_spans(folder: &Path, work: &str, file: &str) -> Vec<Value> {
    let trace = read_trace(folder);
    let events = trace["traceEvents"].as_array().expect("events").clone();
    events.into_iter().filter(|e| e["name"] == format!("{work} {file}")).collect()
}

#[test]
fn videos_are_measured_by_file() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    for name in ["h264_709.mp4", "vp9.webm"] {
        fs::copy(golden("clips").join(name), dir.path().join(name)).expect("copied");
    }
    let bench = |files: &[&str], more: &[&str]| {
        let args = ["--model", "tiny", "--nframes", "4", "--rounds", "2", "--batch", "2", "--tokens", "3", "--quiet"];
        run_in(dir.path(), [&["bench", "video"], files, &support::with_options(&args, more)].concat())
    };
    let got = bench(&["h264_709.mp4", "vp9.webm"], &["--json", "--trace", "t.json"]).json();
    assert_eq!((&got["op"], &got["profile"], &got["dtype"]), (&"video".into(), &"qwen".into(), &"f32".into()));
    assert_eq!(["/n", "/batch", "/tokens"].map(|key| number(&got, key)), [2.0, 2.0, 3.0]);
    assert!(got["machine"]["name"].as_str().is_some_and(|name| !name.is_empty()));
    let videos = got["videos"].as_array().expect("videos");
    let facts = |video: &Value| (video["file"].clone(), video["codec"].clone(), video["frames"].clone());
    let want = [("h264_709.mp4", "h264"), ("vp9.webm", "vp9")].map(|(f, c)| (f.into(), c.into(), 4.into()));
    assert_eq!(videos.iter().map(facts).collect::<Vec<_>>(), want);
    for video in videos {
        for part in ["preprocess", "prefill", "grpo_step"] {
            let (seconds, rate) =
                (number(video, &format!("/{part}/seconds")), number(video, &format!("/{part}/videos_per_minute")));
            assert!(seconds > 0.0 && (rate * seconds - 60.0).abs() < 1e-9, "{part} {video}");
            assert_eq!(video[part]["samples"].as_array().map(Vec::len), Some(2));
        }
        assert!(number(video, "/preprocess/cpu_seconds") > 0.0 && number(video, "/prompt_tokens") > 4.0);
    }
    // No cache of frames is used: each of the three rounds of a video decodes it once. A span says what the worker did.
    for name in ["h264_709.mp4", "vp9.webm"] {
        let decoded = video_spans(dir.path(), "decode", name);
        assert_eq!((decoded.len(), video_spans(dir.path(), "probe", name).len()), (3, 1), "{name}");
        for span in &decoded {
            assert_eq!((&span["args"]["frames"], &span["args"]["path"]), (&4.into(), &name.into()));
            assert!(number(span, "/args/worker_cpu_seconds") > 0.0 && number(span, "/dur") > 0.0);
        }
    }
    let table = bench(&["vp9.webm"], &[]);
    let lines: Vec<&str> = table.ok().lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("prefill/min") && lines[1].ends_with("vp9.webm"), "{lines:?}");
    bench(&["none.mp4"], &[]).assert_refused(1, &["none.mp4"]);
    bench(&["vp9.webm"], &["--batch", "1"]).assert_refused(2, &["--batch"]);
    bench(&["vp9.webm"], &["--rounds", "0"]).assert_refused(2, &["--rounds"]);
    bench(&["vp9.webm"], &["--tokens", "1000000"]).assert_refused(1, &["vp9.webm", "positions"]);
    bench(&["vp9.webm"], &["--nframes", "3"]).assert_refused(2, &["--nframes"]);
}

#[test]
fn a_trace_shows_what_each_video_took() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let video = golden("clips/h264_bframes_audio.mp4");
    let content = |file: &Path| json!([{"type": "video", "video": file, "nframes": 4}, {"type": "text", "text": "?"}]);
    let preprocess = |file: &Path| {
        let messages = json!([{"role": "user", "content": content(file)}]);
        fs::write(dir.path().join("m.json"), messages.to_string()).expect("written");
        let args = "preprocess --model tiny --messages m.json --out o.safetensors --frame-cache cache --trace t.json";
        run_in(dir.path(), args.split(' '))
    };
    preprocess(&video).ok();
    let decoded = video_spans(dir.path(), "decode", "h264_bframes_audio.mp4");
    assert_eq!(decoded.len(), 1);
    let trace = read_trace(dir.path());
    let events = trace["traceEvents"].as_array().expect("events");
    // What the worker did lies inside the span of the video, one after the other; resizing is a part of the second.
    let span = |name: &str| events.iter().find(|e| e["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let (read, frames) = (span("read packets"), span("decode and resize frames"));
    let [begin, read_begin, decode_begin] = [&decoded[0], read, frames].map(|e| number(e, "/ts"));
    let [all, reading, decoding] = [&decoded[0], read, frames].map(|e| number(e, "/dur"));
    assert!(begin <= read_begin && (read_begin + reading - decode_begin).abs() < 1.0, "{decoded:?} {read} {frames}");
    assert!(decode_begin + decoding <= begin + all + 1e-3 && reading > 0.0 && decoding > 0.0);
    assert!(number(frames, "/args/resize_thread_seconds") > 0.0);
    // The next process takes the frames from the cache on disk and decodes nothing.
    preprocess(&video).ok();
    let names = ["decode", "read from the frame cache on disk"];
    let counts = names.map(|work| video_spans(dir.path(), work, "h264_bframes_audio.mp4").len());
    assert_eq!(counts, [0, 1]);
}

/// The header of the table is printed with the first row, so a command that fails before its first row prints
/// nothing.
#[test]
fn a_failing_bench_op_prints_nothing_on_stdout() {
    let bench = |args: &[&str]| run([&["bench", "op", "--quiet"], args].concat());
    for (code, args) in [
        (1, &["linear_log_prob_products", "--size", "tokens=2000000000", "--device", "cpu"][..]),
        (1, &["adamw", "--size", "count=900000000000", "--device", "cpu"]),
        (1, &["adamw", "--size", "count=900000000000", "--device", "cpu", "--json"]),
        (1, &["swiglu", "--device", "cuda"]),
        (2, &["no_such_kernel", "--device", "cpu"]),
    ] {
        let got = bench(args);
        assert_eq!(got.assert_refused(code, &[]).stdout, "", "{args:?}");
    }
}
