//! `reel demo` with one or two training steps. Everything is tested except that the model learns, because training
//! until it does takes minutes.

mod support;

use std::fs;

use support::{check_page, file_names_in, run_in};

#[test]
fn demo_writes_its_folder_and_replaces_an_earlier_demo() {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = |more: &[&str]| run_in(dir.path(), [&["demo"][..], more].concat());
    let printed = demo(&["--steps", "2", "--held-out", "60", "--quiet"]);
    assert!(printed.ok().contains("after T-GRPO") && printed.stdout.contains("demo/report.html"), "{}", printed.stdout);
    assert!(printed.stderr.is_empty(), "{}", printed.stderr);
    let out = dir.path().join("demo");
    let made = "clips grpo grpo.toml held-out.jsonl model report.html rl.jsonl sft sft.jsonl sft.toml siglip";
    assert_eq!(file_names_in(&out).join(" "), made);
    assert_eq!(file_names_in(&out.join("clips")).len(), 192 + 576 + 60);
    let rows = |name: &str| fs::read_to_string(out.join(name)).expect("rows");
    let sft = rows("sft.jsonl");
    assert!(sft.lines().count() == 192 && sft.contains("<think>") && sft.contains("clips/sft-000-motion.mp4"));
    let rl = rows("rl.jsonl");
    assert!(rl.lines().count() == 576 && !rl.contains("<think>") && rl.contains("\"problem_type\":\"numerical\""));
    let page = fs::read_to_string(out.join("report.html")).expect("the page");
    assert_eq!(page.matches("<article").count(), 48);
    assert!(check_page(&page).iter().any(|chart| chart["kind"] == "lines" && chart["range"] == "log"));

    // The second stage also sampled completions for shuffled frames. It computed the semantic reward too, although
    // that reward has weight 0.
    let metrics = fs::read_to_string(out.join("grpo/metrics.jsonl")).expect("metrics");
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().expect("a step")).expect("JSON");
    assert!(first["rewards/temporal"].is_number() && first["rewards/semantic"].is_number(), "{first}");
    let options = fs::read_to_string(out.join("grpo/run.json")).expect("options");
    assert!(options.contains("semantic=0"), "{options}");

    // The shell commands on the page repeat the training stages and give the same bits.
    let weights = || fs::read(out.join("grpo/model.safetensors")).expect("weights");
    let before = weights();
    for (stage, from, data) in [("sft", "model", "sft"), ("grpo", "sft", "rl")] {
        let args = format!(
            "{stage} --config demo/{stage}.toml --model demo/{from} --data demo/{data}.jsonl --media-root demo --out demo/{stage} \
             --seed 0 --overwrite --max-steps 2 --quiet"
        );
        let siglip = if stage == "grpo" { " --siglip demo/siglip" } else { "" };
        run_in(dir.path(), (args + siglip).split(' ').collect::<Vec<_>>()).ok();
    }
    assert!(before == weights(), "the commands of the page give different weights");
    // The last shell command on the page answers a question about a clip.
    let video = out.join("clips").join("held-out-001-colors.mp4").display().to_string();
    let ask =
        ["generate", "--model", "demo/grpo", "--video", &video, "--prompt", "Which colors?", "--max-new-tokens", "4"];
    let answer = run_in(dir.path(), [&ask[..], &["--json"]].concat());
    assert_eq!(answer.json()["token_ids"].as_array().map(Vec::len), Some(4));
    // The folder carries the frames and pixels that the model was trained with.
    let settings = "--profile qwen --nframes 8 --min-pixels 3136 --max-pixels 3136";
    assert!(answer.stderr.contains(settings), "{}", answer.stderr);

    // With several seeds, each has its own folder (`seed-5`); an earlier demo in that folder is replaced. Without the
    // temporal reward the second training stage is plain GRPO.
    let seeds = dir.path().join("seeds");
    fs::create_dir(&seeds).expect("made");
    fs::rename(&out, seeds.join("seed-5")).expect("moved");
    let more =
        ["--out", "seeds", "--steps", "1", "--held-out", "8", "--seeds", "2", "--seed", "5", "--no-temporal", "--json"];
    let result = demo(&more).json();
    for seed in result["seeds"].as_array().expect("seeds") {
        let answered = |task: &str| seed["right"][task]["n"].clone();
        assert_eq!((answered("all"), answered("motion")), (8.into(), 4.into()));
        assert_eq!(answered("motion, frames shuffled"), 12);
        assert_eq!(seed["right"]["all"]["before"], 0);
    }
    assert_eq!((&result["seeds"][0]["seed"], &result["seeds"][1]["seed"]), (&5.into(), &6.into()));
    assert_eq!(file_names_in(&seeds), ["report.html", "seed-5", "seed-6"]);
    let page = fs::read_to_string(seeds.join("report.html")).expect("the page");
    assert!(page.contains("seed-5/report.html") && page.contains("seed-6/report.html"));
    // Without the temporal reward the second stage is called GRPO, not T-GRPO.
    assert_eq!(result["seeds"][0]["temporal"], false);
    assert!(page.contains("After GRPO") && !page.contains("T-GRPO"), "{page}");
    let metrics = fs::read_to_string(seeds.join("seed-5/grpo/metrics.jsonl")).expect("metrics");
    assert!(metrics.contains("rewards/accuracy") && !metrics.contains("rewards/temporal"), "{metrics}");
    let weights = |seed: &str| fs::read(seeds.join(seed).join("grpo/model.safetensors")).expect("weights");
    assert!(weights("seed-5") != weights("seed-6"));
    demo(&["--seeds", "0"]).refused(2, &["--seeds"]);
    demo(&["--held-out", "3"]).refused(2, &["--held-out"]);

    fs::create_dir(dir.path().join("mine")).expect("made");
    fs::write(dir.path().join("mine/thesis.txt"), "years of work").expect("written");
    demo(&["--out", "mine"]).refused(1, &["mine", "--out"]);
    assert_eq!(file_names_in(&dir.path().join("mine")), ["thesis.txt"]);
    // A folder is not a demo's folder just because it has sub-folders with the same names.
    for part in ["clips", "model"] {
        fs::create_dir_all(dir.path().join("work").join(part)).expect("made");
    }
    fs::write(dir.path().join("work/model/weights"), "days of training").expect("written");
    demo(&["--out", "work"]).refused(1, &["work", "--out"]);
    assert_eq!(file_names_in(&dir.path().join("work/model")), ["weights"]);
}
