//! Runs some inputs of each fuzz target. `./x fuzz` runs more.

use std::process::Command;

/// Gives the first `inputs` inputs of a target to its parser. Time is not judged, because the tests run beside others;
/// an input that does not end is a failure all the same.
#[track_caller]
fn holds(target: &str, inputs: u32) {
    let mut fuzz = Command::new(env!("CARGO_BIN_EXE_reel-fuzz"));
    let out = fuzz.args([target, "--any-time", "--inputs", &inputs.to_string()]).output().expect("it starts");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{text}");
    assert!(out.status.success(), "{text}");
}

/// Declares a test per target, with its number of inputs, and a test that no target is missing.
macro_rules! targets {
    ($($name:ident: $target:literal $inputs:literal,)*) => {
        $(#[test]
        fn $name() {
            holds($target, $inputs);
        })*

        #[test]
        fn every_target_has_a_test() {
            let out = Command::new(env!("CARGO_BIN_EXE_reel-fuzz")).arg("--list").output().expect("it starts");
            let mut all: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(String::from).collect();
            let mut tested = vec![$($target),*];
            all.sort();
            tested.sort();
            assert_eq!(all, tested);
        }
    };
}

targets! {
    safetensors: "safetensors" 1000,
    shards: "shards" 1000,
    config: "config" 3000,
    adapter: "adapter" 1000,
    tokenizer: "tokenizer" 100,
    chat_template: "chat-template" 60,
    messages: "messages" 3000,
    urls: "urls" 3000,
    rows: "rows" 2000,
    run_config: "run-config" 1000,
    run_folder: "run-folder" 500,
    quarantine: "quarantine" 1000,
    bench_result: "bench-result" 500,
    wandb: "wandb" 300,
    predictions: "predictions" 2000,
    rewards: "rewards" 2000,
    reward_command: "reward-command" 60,
    ptx: "ptx" 1000,
    ptx_run: "ptx-run" 500,
    tensor_map: "tensor-map" 3000,
    image: "image" 500,
    video: "video" 20,
}
