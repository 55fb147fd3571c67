//! Tests that steps match those of transformers' Trainer (tests/golden/train).

use clap::{Args, FromArgMatches};

use super::*;

/// Parses the command line `args` of a golden case, without the options that every `reel` command has.
fn options(args: &[&str]) -> SftOptions {
    let mut own = vec!["sft"];
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--seed" | "--dtype" | "--profile" => drop(rest.next()),
            other => own.push(other),
        }
    }
    let command = SftOptions::augment_args(clap::Command::new("sft"));
    SftOptions::from_arg_matches(&command.try_get_matches_from(own).unwrap()).unwrap()
}

/// Compares loss, gradient norm and learning rate of each step, and the change of each weight.
fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let case = golden(name);
    let expected: Value = serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
    let args: Vec<&str> = expected["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let model = case.join(expected["model"].as_str().unwrap());
    let mut options = options(&args);
    (options.model, options.data, options.out) = (model.display().to_string(), case.join("data.jsonl"), out.clone());
    Case::of(options).run().unwrap();

    let reading = expected["reading"].as_str().unwrap();
    let want = &expected["readings"][reading];
    let got = read_metrics(&out);
    let steps = want["steps"].as_array().unwrap();
    assert_eq!(got.len(), steps.len());
    for (got, want) in got.iter().zip(steps) {
        for (what, got, tolerance) in
            [("loss", got.loss, 1e-4), ("grad_norm", got.grad_norm, 1e-3), ("learning_rate", got.learning_rate, 1e-6)]
        {
            let want = want[what].as_f64().unwrap();
            assert!((got - want).abs() <= tolerance * want.abs(), "{name}: {what} {got}, not {want}");
        }
    }

    // The saved model and the checkpoint contain exactly the weights after the last step.
    let config = reel_input::config::ModelConfig::open(&out).unwrap();
    for folder in [&out, &out.join(format!("checkpoint-{}", steps.len()))] {
        let hyperparameters = Hyperparameters::new(&SftOptions::default(), 1);
        let (loaded, _) = Trainer::open(&Device::cpu(1), &config, folder, DType::F32, hyperparameters).unwrap();
        assert_eq!(loaded.weights_fingerprint().unwrap(), got[steps.len() - 1].hash);
    }

    let limits = want["delta_limits"].as_object().unwrap();
    assert_weight_changes(name, &case, &format!("{reading}/"), limits, &model, &out);
}

#[test]
fn all_text_tokens() {
    check("sft_all_tokens");
}

#[test]
fn assistant_only() {
    check("sft_assistant_only");
}

#[test]
fn videorft_rows() {
    check("sft_videorft_rows");
}
