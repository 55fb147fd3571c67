//! `reel bench` and `--trace`: the figures are there and mean what they say.

mod support;

use std::fs;

use serde_json::Value;
use support::{run, run_in, tiny_model};

#[test]
fn results_have_their_keys_and_compare() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let bench = |op: &str, more: &[&str]| {
        let args = ["bench", op, "--model", "tiny", "--tokens", "16", "--rounds", "3", "--json"];
        run_in(dir.path(), [&args[..], more].concat())
    };
    for (op, dtype) in [("prefill", "f32"), ("prefill", "bf16"), ("decode", "f32"), ("decode", "bf16")] {
        let got = bench(op, &["--batch", "2", "--dtype", dtype]).json();
        let number =
            |key: &str| got.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {got}"));
        assert_eq!((&got["op"], &got["dtype"], &got["device"]), (&op.into(), &dtype.into(), &"cpu".into()));
        assert_eq!((number("/n"), number("/tokens"), number("/batch")), (3.0, 16.0, 2.0));
        assert!(number("/min") > 0.0 && number("/min") <= number("/tokens_per_second"));
        assert!(number("/tokens_per_second") <= number("/max"));
        assert!((number("/tokens_per_second") * number("/seconds") - 32.0).abs() < 1e-6);
        assert!((number("/roofline/share") - number("/roofline/seconds") / number("/seconds")).abs() < 1e-9);
        // Two operations a weight and token at the least; the decoder has more than half of the weights.
        assert!(number("/flops") > 32.0 * 2.0 * 0.3e6, "{got}");
        fs::write(dir.path().join(format!("{op}-{dtype}.json")), got.to_string()).expect("written");
    }
    let compare = |a: &str, b: &str| run_in(dir.path(), ["bench", "--compare", a, b, "--json"]);
    let ratio = compare("prefill-f32.json", "prefill-f32.json").json();
    assert_eq!((&ratio["ratio"], &ratio["ranges_apart"]), (&1.0.into(), &false.into()));
    compare("prefill-f32.json", "decode-f32.json").refused(1, &["decode-f32.json", "op"]);
    compare("prefill-f32.json", "none.json").refused(1, &["none.json"]);
    bench("prefill", &["--batch", "0"]).refused(2, &["--batch"]);
    run(["bench", "--compare", "a.json"]).refused(2, &["--compare"]);
}

#[test]
fn a_trace_says_where_the_time_went() {
    let dir = tempfile::tempdir().expect("a folder");
    tiny_model(dir.path());
    let args = ["generate", "--model", "tiny", "--prompt", "x", "--max-new-tokens", "3", "--trace", "t.json"];
    run_in(dir.path(), args).ok();
    let text = fs::read_to_string(dir.path().join("t.json")).expect("the trace");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    for name in ["preprocess", "load", "prefill", "decode", "matmul_fwd", "sample"] {
        assert!(events.iter().any(|e| e["name"] == name && e["dur"].as_f64() >= Some(0.0)), "no {name}");
    }
    let sampled = events.iter().filter(|e| e["name"] == "sample").count();
    assert_eq!(sampled, 3);
}
