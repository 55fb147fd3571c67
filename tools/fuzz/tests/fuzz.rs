//! Runs some inputs of each fuzz target. `./x fuzz` runs more, and with coverage counters.

use std::fs;
use std::process::Command;

/// Runs the fuzz program. Returns whether it succeeds, and its output.
fn fuzz(arguments: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_reel-fuzz")).args(arguments).output().expect("it starts");
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

/// Checks that none of `inputs` inputs of a fuzz target fails. An input may take up to 60 seconds, because other tests
/// run at the same time.
#[track_caller]
fn holds(target: &str, inputs: u32) {
    let (passed, text) = fuzz(&[target, "--any-time", "--inputs", &inputs.to_string()]);
    println!("{text}");
    assert!(passed, "{text}");
}

#[test]
fn each_kind_of_failure_is_reported_and_can_be_repeated() {
    let (passed, text) = fuzz(&["broken", "--inputs", "100", "--seed", "7"]);
    assert!(!passed && text.contains("FAILED: target broken, seed 7: ") && text.contains("a panic"), "{text}");
    let (_, repeat) = text.split_once("to repeat it: ./x fuzz broken --input ").expect("the command");
    let kept = format!("{}/../../{}", env!("CARGO_MANIFEST_DIR"), repeat.trim());
    let (passed, text) = fuzz(&["broken", "--input", &kept]);
    assert!(!passed && text.contains("a panic"), "{text}");

    let file = format!("{}/broken-input", env!("CARGO_TARGET_TMPDIR"));
    for (input, problem) in [
        ("hang", "ERROR: libFuzzer: timeout"),
        ("memory", "memory allocation of 1073741824 bytes failed"),
        ("stack", "overflowed its stack"),
        ("message", "the error message has the control character"),
        ("thread", "in a thread"),
    ] {
        fs::write(&file, input).expect("the file is written");
        let (passed, text) = fuzz(&["broken", "--input", &file]);
        assert!(!passed && text.contains(problem), "{input}: {text}");
    }
    fs::write(&file, "seed").expect("the file is written");
    let (passed, text) = fuzz(&["broken", "--input", &file]);
    assert!(passed && text.contains("accepted"), "{text}");
}

/// Declares one test for each fuzz target, with its number of inputs. Another test checks that every target has such
/// a test.
macro_rules! targets {
    ($($name:ident: $target:literal $inputs:literal,)*) => {
        $(#[test]
        fn $name() {
            holds($target, $inputs);
        })*

        #[test]
        fn every_target_has_a_test() {
            let (_, list) = fuzz(&["--list"]);
            let mut all: Vec<&str> = list.lines().collect();
            let mut tested = vec![$($target),*];
            all.sort();
            tested.sort();
            assert_eq!(all, tested);
        }
    };
}

targets! {
    safetensors: "safetensors" 400,
    shards: "shards" 300,
    quantized: "quantized" 400,
    config: "config" 800,
    adapter: "adapter" 400,
    tokenizer: "tokenizer" 60,
    chat_template: "chat-template" 40,
    messages: "messages" 800,
    urls: "urls" 800,
    rows: "rows" 300,
    run_config: "run-config" 200,
    run_folder: "run-folder" 200,
    quarantine: "quarantine" 300,
    parquet: "parquet" 300,
    arrow: "arrow" 300,
    bench_result: "bench-result" 150,
    wandb: "wandb" 100,
    predictions: "predictions" 200,
    rewards: "rewards" 200,
    reward_command: "reward-command" 40,
    request: "request" 100,
    grammar: "grammar" 200,
    request_body: "request-body" 400,
    template_values: "template-values" 400,
    events: "events" 800,
    ptx: "ptx" 800,
    ptx_run: "ptx-run" 300,
    tensor_map: "tensor-map" 2000,
    image: "image" 800,
    video: "video" 12,
}
