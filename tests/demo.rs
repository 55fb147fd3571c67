//! `reel demo` with a few steps: everything but the learning, which takes a minute.

mod support;

use std::fs;

use support::{entries, run_in};

#[test]
fn a_demo_makes_everything_and_can_be_made_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = |more: &[&str]| run_in(dir.path(), [&["demo", "--steps", "2"][..], more].concat());
    let said = demo(&["--json"]).json();
    assert_eq!((&said["all"]["n"], &said["motion"]["n"], &said["colors"]["n"]), (&48.into(), &24.into(), &12.into()));
    assert_eq!(said["all"]["right_before"], 0);
    let out = dir.path().join("demo");
    assert_eq!(entries(&out), ["clips", "held-out.jsonl", "model", "report.html", "train.jsonl", "tuned"]);
    let films = entries(&out.join("clips"));
    assert_eq!(films.len(), 288 + 48);
    let rows = fs::read_to_string(out.join("train.jsonl")).expect("rows");
    assert!(rows.lines().count() == 288 && rows.contains("<think>") && rows.contains("clips/train-000-motion.mp4"));
    let page = fs::read_to_string(out.join("report.html")).expect("the page");
    assert_eq!(page.matches("<article").count(), 48);
    assert!(page.contains("<polyline") && !page.contains("src=\"http") && page.ends_with("</html>\n"));
    // The page's last command answers a question about a film.
    let film = out.join("clips").join("held-out-001-colors.mp4").display().to_string();
    let ask = ["generate", "--model", "demo/tuned", "--video", &film, "--nframes", "8", "--min-pixels", "3136"];
    let more = ["--max-pixels", "3136", "--prompt", "Which colors?", "--max-new-tokens", "4", "--json"];
    assert_eq!(run_in(dir.path(), [&ask[..], &more].concat()).json()["token_ids"].as_array().map(Vec::len), Some(4));

    // Said to a reader, the table and an answer; the earlier demo is replaced.
    let again = demo(&["--quiet"]);
    assert!(again.ok().contains("of 24 after") && again.stdout.contains("demo/report.html"), "{}", again.stdout);
    assert!(again.stderr.is_empty(), "{}", again.stderr);

    fs::create_dir(dir.path().join("mine")).expect("made");
    fs::write(dir.path().join("mine/thesis.txt"), "years of work").expect("written");
    demo(&["--out", "mine"]).refused(1, &["mine", "--out"]);
    assert_eq!(entries(&dir.path().join("mine")), ["thesis.txt"]);
}
