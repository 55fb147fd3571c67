//! A damaged model folder gives a one-line error that names the file and what to do, before any work is done.

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;

use serde_json::{Value, json};
use support::run_in;
use workspace::ModelWorkspace;

const NORM: &str = "model.norm.weight";

#[test]
fn intact_model_scores() {
    ModelWorkspace::new().run_score().ok();
}

#[test]
fn missing_or_truncated_weights_are_refused() {
    let s = ModelWorkspace::new();
    let whole = fs::read(s.model_file("model.safetensors")).expect("weights");
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(s.model_file("model.safetensors"), &whole[..length]).expect("written");
        s.run_score().assert_refused(1, &["model.safetensors"]);
    }
    let longer = [&whole[..], b"more"].concat();
    fs::write(s.model_file("model.safetensors"), longer).expect("written");
    s.run_score().assert_refused(1, &["model.safetensors"]);
    fs::remove_file(s.model_file("model.safetensors")).expect("removed");
    s.run_score().assert_refused(1, &["tiny"]);
}

#[test]
fn corrupt_weight_headers_are_refused() {
    let s = ModelWorkspace::new();
    let whole = fs::read(s.model_file("model.safetensors")).expect("weights");
    for length in [u64::MAX, whole.len() as u64, 1 << 40, 3] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(s.model_file("model.safetensors"), bytes).expect("written");
        s.run_score().assert_refused(1, &["model.safetensors"]);
    }
    let mut bytes = whole.clone();
    bytes[8] = b'x';
    fs::write(s.model_file("model.safetensors"), bytes).expect("written");
    s.run_score().assert_refused(1, &["model.safetensors"]);
}

#[test]
fn wrong_offsets_dtypes_and_shapes_are_refused() {
    type Change = fn(&mut Value, &mut Vec<u8>);
    let changes: [(&str, Change); 8] = [
        ("overlap", |h, _| {
            h[NORM]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone()
        }),
        ("beyond the file", |h, d| h[NORM]["data_offsets"] = json!([d.len(), d.len() + 512])),
        ("backwards", |h, _| h[NORM]["data_offsets"] = json!([512, 0])),
        ("a gap", |h, d| {
            let end = d.len();
            h[NORM]["data_offsets"] = json!([end + 1, end + 513]);
            d.resize(end + 513, 0);
        }),
        ("size", |h, _| h[NORM]["shape"] = json!([127])),
        ("shape", |h, _| h[NORM]["shape"] = json!([2, 64])),
        ("dtype", |h, _| h[NORM]["dtype"] = json!("I32")),
        ("huge shape", |h, _| h[NORM]["shape"] = json!([u64::MAX, u64::MAX])),
    ];
    for (why, change) in changes {
        let s = ModelWorkspace::new();
        s.edit_weights(change);
        let got = s.run_score();
        assert_eq!(got.code, Some(1), "{why}");
        got.assert_refused(1, &["model.safetensors"]);
    }
    let s = ModelWorkspace::new();
    s.edit_weights(|h, _| {
        let taken = h.as_object_mut().and_then(|h| h.remove(NORM)).expect("there");
        h["model.other.weight"] = taken;
    });
    s.run_score().assert_refused(1, &["model.norm.weight"]);
}

#[test]
fn files_of_other_kinds_are_named() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3949\n";
    for name in
        ["config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "model.safetensors"]
    {
        let s = ModelWorkspace::new();
        let page = "<!DOCTYPE html>\n<html><head><title>404</title></head></html>";
        for (content, word) in [(POINTER, "is a pointer of Git LFS"), (page, "is a web page (HTML)")] {
            fs::write(s.model_file(name), content).expect("written");
            s.run_score().assert_refused(1, &[&format!("{name}: {word}")]);
        }
    }
    for (file, what, help, keeps_config) in [
        ("global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt", "DeepSpeed ZeRO", "zero_to_fp32.py", false),
        ("pytorch_model_fsdp_0/__0_0.distcp", "FSDP", "accelerate merge-weights", true),
        ("pytorch_model.bin", "torch.save", "safe_serialization=True", true),
    ] {
        let s = ModelWorkspace::new();
        fs::remove_file(s.model_file("model.safetensors")).expect("removed");
        if !keeps_config {
            fs::remove_file(s.model_file("config.json")).expect("removed");
        }
        fs::create_dir_all(s.model_file(file).parent().expect("a folder")).expect("created");
        fs::write(s.model_file(file), "").expect("written");
        s.run_score().assert_refused(1, &["tiny: ", what, help]);
    }
}

#[test]
fn invalid_configs_are_refused() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 7] = [
        ("num_attention_heads", |c| c["num_attention_heads"] = json!(5)),
        ("hidden_size", |c| drop(c.as_object_mut().expect("an object").remove("hidden_size"))),
        ("mrope_section", |c| c["rope_scaling"]["mrope_section"] = json!([1, 1, 1])),
        ("model_type", |c| c["model_type"] = json!("llama")),
        ("hidden_act", |c| c["hidden_act"] = json!("relu")),
        ("num_hidden_layers", |c| c["num_hidden_layers"] = json!(-1)),
        ("vocab_size", |c| c["vocab_size"] = json!("many")),
    ];
    for (key, change) in changes {
        let s = ModelWorkspace::new();
        s.edit_json("config.json", change);
        s.run_score().assert_refused(1, &["config.json", key]);
    }
    let s = ModelWorkspace::new();
    // The config now states more layers than the weights file contains.
    s.edit_json("config.json", |c| c["num_hidden_layers"] = json!(9));
    s.run_score().assert_refused(1, &["model.layers."]);
    fs::write(s.model_file("config.json"), "{").expect("written");
    s.run_score().assert_refused(1, &["config.json"]);
    fs::remove_file(s.model_file("config.json")).expect("removed");
    s.run_score().assert_refused(1, &["config.json"]);
}

#[test]
fn mismatched_tokenizers_are_refused() {
    let s = ModelWorkspace::new();
    s.edit_json("config.json", |c| c["image_token_id"] = json!(3));
    s.run_score().assert_refused(1, &["tokenizer.json"]);
    let s = ModelWorkspace::new();
    fs::write(s.model_file("tokenizer.json"), "{}").expect("written");
    s.run_score().assert_refused(1, &["tokenizer.json"]);
    fs::remove_file(s.model_file("tokenizer.json")).expect("removed");
    s.run_score().assert_refused(1, &["tokenizer.json"]);
}

/// A chat template is a program, and a regular expression of a tokenizer can take very long. Both come with a model
/// folder and are untrusted.
#[test]
fn hostile_templates_and_tokenizers_are_refused() {
    let s = ModelWorkspace::new();
    for (template, word) in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it takes too many steps"),
        (
            "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "it needs more than 448 MiB of memory",
        ),
        (&"{% if 1 %}".repeat(10_000), "nests blocks 201 deep"),
        ("{{ raise_exception('\u{1b}[31mred') }}", "\\u{1b}[31mred"),
        ("{{ 'a' * 70000 }}", "the prompt would be longer than 65"),
    ] {
        fs::write(s.model_file("chat_template.jinja"), template).expect("written");
        let got = s.run_score();
        got.assert_refused(1, &["tiny/chat_template.jinja: ", word]);
        assert!(!got.stderr.contains('\u{1b}'), "{:?}", got.stderr);
    }
    fs::remove_file(s.model_file("chat_template.jinja")).expect("removed");
    s.edit_json("tokenizer.json", |t| {
        t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(x+x+)+(?!y)")
    });
    s.run_score().assert_refused(1, &["tiny/tokenizer.json: pre_tokenizer: has the regular expression `(x+x+)+(?!y)`"]);
}

/// An error that would make a command fail at its end is reported before the command starts its work.
#[test]
fn faults_of_the_model_folder_are_found_before_the_work() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    let row = r#"{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}"#;
    fs::write(dir.join("rows.jsonl"), row).expect("written");
    let sft = "sft --model tiny --data rows.jsonl --out out --max-steps 1";
    // A file of the model folder that is only read when the first checkpoint is saved.
    std::os::unix::fs::symlink("/dev/zero", s.model_file("added_tokens.json")).expect("a link");
    run_in(dir, sft.split(' ')).assert_refused(1, &["tiny/added_tokens.json: is not a regular file"]);
    assert!(!dir.join("out").exists());
    fs::remove_file(s.model_file("added_tokens.json")).expect("removed");
    run_in(dir, format!("{sft} --media-root no-such-folder").split(' '))
        .assert_refused(1, &["--media-root: is no-such-folder, which is not a folder"]);
    s.set_positions(20);
    run_in(dir, ["generate", "--model", "tiny", "--prompt", "x"])
        .assert_refused(1, &["the prompt: has ", "which leave no room for an answer in the model's 20 positions"]);
}

/// A completion ends at the model's last position. A request for more tokens is refused, as in `reel serve`.
#[test]
fn answers_stay_within_the_positions_of_the_model() {
    let s = ModelWorkspace::new();
    let dir = s.dir.path();
    let body = |max_tokens: Value| json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": max_tokens});
    fs::write(dir.join("m.json"), body(json!(4)).to_string()).expect("written");
    fs::write(dir.join("rows.jsonl"), json!({"prompt": [{"role": "user", "content": "x"}]}).to_string()).expect("rows");
    let generate = |more: &[&str]| run_in(dir, support::with_options(&["generate", "--model", "tiny", "--json"], more));
    let prompt = ["--prompt", "x"];
    let tokens = generate(&[&prompt[..], &["--max-new-tokens", "1"]].concat()).json()["prompt_tokens"].clone();
    let tokens = tokens.as_u64().expect("a number") as usize;
    s.set_positions(tokens + 3);
    let answer = generate(&prompt).json();
    assert_eq!((answer["token_ids"].as_array().map(Vec::len), &answer["finish_reason"]), (Some(3), &json!("length")));
    assert_eq!(generate(&[&prompt[..], &["--max-new-tokens", "3"]].concat()).json()["token_ids"], answer["token_ids"]);
    let what = format!("is 4, but the prompt takes {tokens} of the model's {} positions", tokens + 3);
    generate(&[&prompt[..], &["--max-new-tokens", "4"]].concat())
        .assert_refused(2, &[&format!("--max-new-tokens: {what}; give at most 3")]);
    generate(&["--messages", "m.json"]).assert_refused(1, &[&format!("max_tokens: {what}; give at most 3")]);
    let rows = ["--data", "rows.jsonl", "--out", "p.jsonl", "--max-new-tokens", "9"];
    generate(&rows).ok();
    let line = fs::read_to_string(dir.join("p.jsonl")).expect("predictions");
    let line: Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!((&line["output"], &line["generation"]["finish_reason"]), (&answer["text"], &json!("length")));
    s.set_positions(tokens);
    let what = format!("has {tokens} tokens, which leave no room for an answer in the model's {tokens} positions");
    generate(&prompt).assert_refused(1, &[&format!("the prompt: {what}")]);
    let refused = generate(&[&rows[..], &["--overwrite"]].concat());
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(&format!("rows.jsonl:1: prompt: {what}")), "{}", refused.stderr);
}

/// If a weight is NaN and makes the logits NaN, the error names the weight.
#[test]
fn nan_weight_is_named_where_it_makes_logits_nan() {
    let w = ModelWorkspace::new();
    w.edit_weights(|header, data| {
        let begin = header[NORM]["data_offsets"][0].as_u64().expect("a number") as usize;
        data[begin + 4 * 5..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let want = [NORM, "model.safetensors", "has a value that is NaN or infinite, at [5]"];
    let ask = ["generate", "--model", "tiny", "--prompt", "x", "--max-new-tokens", "2", "--json"];
    run_in(w.dir.path(), ask).assert_refused(1, &want);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let row = json!({"messages": [turn("user", "a"), turn("assistant", "b")]});
    fs::write(w.dir.path().join("rows.jsonl"), row.to_string()).expect("rows");
    let train = ["sft", "--model", "tiny", "--data", "rows.jsonl", "--out", "out", "--max-steps", "1", "--quiet"];
    run_in(w.dir.path(), train).assert_refused(1, &want);
    assert!(!w.dir.path().join("out").exists());
}
