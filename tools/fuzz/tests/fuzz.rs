//! Runs some inputs of each fuzz target. `./x fuzz` runs more.

use std::process::Command;

/// Checks that none of the first `inputs` inputs of a fuzz target fails. The processor time of an input is not
/// limited, because other tests run at the same time. An input that does not end still fails.
#[track_caller]
fn holds(target: &str, inputs: u32) {
    let mut fuzz = Command::new(env!("CARGO_BIN_EXE_reel-fuzz"));
    let out = fuzz.args([target, "--any-time", "--inputs", &inputs.to_string()]).output().expect("it starts");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{text}");
    assert!(out.status.success(), "{text}");
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
    safetensors: "safetensors" 400,
    shards: "shards" 300,
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
