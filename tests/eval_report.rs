//! The HTML pages of an evaluation and of `reel data stats`: their bytes, wrong input, and, if there is a browser
//! (`support/page_checks.rs`), what the pages show and do.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/page_checks.rs"]
mod page_checks;
mod support;

use std::fs;
use std::path::Path;

use browser::Browser;
use page_checks::{check_errors, check_layout, open_page, save_screenshot, start_browser};
use serde_json::{Value, json};
use support::{check_page, golden, run_in, tiny_model};

fn write(file: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    fs::write(file, text).expect("written");
}

fn copy_clip(to: &Path) {
    write(to, fs::read(golden("train/sft_videorft_mp4/media/clip.mp4")).expect("a clip"));
}

/// Creates a folder with a tiny model and four questions about two videos, one of which is missing.
fn folder_with_benchmark() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    tiny_model(at);
    let row = |i: usize| {
        json!({"video ID": format!("v{}", i / 3), "Question ID": i, "Question Type": "SR", "Question": format!("Who {i}?"),
            "Options": {"A": "he", "B": "she"}, "Answer": "B"})
    };
    write(&at.join("data/test_Video-Holmes.json"), json!((0..4).map(row).collect::<Vec<_>>()).to_string());
    copy_clip(&at.join("data/videos/v0.mp4"));
    folder
}

const EVAL: [&str; 12] = [
    "eval",
    "--model",
    "tiny",
    "--benchmark",
    "videoholmes",
    "--data",
    "data",
    "--max-new-tokens",
    "4",
    "--nframes",
    "4",
    "--quiet",
];

#[test]
fn a_run_its_parts_and_its_folder_give_one_page() {
    let folder = folder_with_benchmark();
    let at = folder.path();
    let eval = |more: &[&str]| run_in(at, support::with_options(&EVAL, more)).code;
    assert_eq!(eval(&["--out", "whole"]), Some(1), "a row without its video is an error of the run");
    let page = |run: &str| fs::read(at.join(run).join("report.html")).expect("a page");
    let whole = page("whole");
    let html = String::from_utf8(whole.clone()).expect("text");
    let data = check_page(&html.replace("null", "0")).remove(0);
    assert_eq!((&data["strips"][0][0]["frames"], data["answers"].as_array().map(Vec::len)), (&json!(4), Some(4)));
    assert!(html.contains("4 of 1\u{202f}837 questions; 1 row has an error") && html.contains("Evaluation of tiny"));
    for part in ["0/2", "1/2"] {
        assert_eq!(eval(&["--out", "parts", "--shard", part]), Some(0));
    }
    assert!(!at.join("parts/report.html").exists(), "a part has no page");
    run_in(at, ["eval", "merge", "parts", "--quiet"]);
    assert!(page("parts") == whole, "the page of the merged run differs");
    fs::remove_file(at.join("whole/report.html")).expect("removed");
    eval(&["--out", "whole", "--resume", "--threads", "1"]);
    assert!(page("whole") == whole, "the page of the resumed run differs");
    run_in(at, ["report", "whole", "--out", "again.html"]).ok();
    assert!(fs::read(at.join("again.html")).expect("a page") == whole, "reel report writes a different page");
    // If the videos are missing, the page has no frames, and a message says so.
    fs::remove_dir_all(at.join("data/videos")).expect("removed");
    run_in(at, ["report", "whole", "--json"]).ok();
    assert!(String::from_utf8_lossy(&page("whole")).contains("4 without: the video is not there any more."));
    run_in(at, ["report", "whole", "--media-root", "tiny", "--frames-mib", "0"]).ok();
    assert!(String::from_utf8_lossy(&page("whole")).contains("4 without: the page was written without frames."));
}

/// Writes the predictions of a run as `reel eval` does; `reel eval merge` scores them.
fn write_run(at: &Path, run: &str, rows: &[Value]) {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    write(&at.join(run).join("mmvu.jsonl"), lines);
    let settings = json!({
        "command": "eval", "version": "0", "model": {"path": format!("models/{run}"), "fingerprint": "xxh3:1"},
        "rows": rows.len(), "device": "cpu", "media_root": at.join("media"),
        "options": {"profile": "videorft-eval", "nframes": 8, "temperature": 0.01, "top_p": 0.001, "dtype": "f32",
            "max_new_tokens": 1024, "data_files": {"layout": "authors", "left_out": {},
                "files": [{"name": "validation.json", "fingerprint": "xxh3:2", "rows": rows.len()}]}},
    });
    write(&at.join(run).join("mmvu.jsonl.run.json"), settings.to_string());
    run_in(at, ["eval", "merge", run, "--quiet"]);
}

/// Returns row `i` of a run with this model output.
fn row(i: usize, output: &str) -> Value {
    let question = format!("Question {i}: why?");
    json!({
        "benchmark": "mmvu", "problem_id": format!("v_{i}"), "problem": question, "problem_type": "multiple choice",
        "options": ["A. red", "B. blue", "C. <b>green</b>"], "solution": "<answer>A</answer>", "path": "clip.mp4",
        "category": if i.is_multiple_of(2) { "Art" } else { "Biology" }, "output": output,
        "prompt": [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": question}]}],
        "generation": {"finish_reason": "stop", "prompt_tokens": 1200, "completion_tokens": 17},
    })
}

#[test]
fn wrong_input_is_refused_by_the_name_of_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let rows = [row(0, "A"), row(1, "B")];
    write_run(at, "a", &rows);
    write_run(at, "b", &rows);
    let refused = |line: &str, code: i32, words: &[&str]| {
        run_in(at, ["report"].into_iter().chain(line.split(' '))).assert_refused(code, words);
    };
    run_in(at, ["report", "a", "--against", "b"]).ok();
    assert!(at.join("compare.html").exists() && at.join("a/report.html").exists());
    fs::create_dir(at.join("none")).expect("created");
    refused("none", 1, &["none: is not the output folder of a run", "reel eval"]);
    refused("a --against none", 1, &["none: has no predictions"]);
    refused("a b", 2, &["b: is given beside a folder of reel eval", "--against b"]);
    refused("none --against a", 2, &["--against: has an effect for folders of reel eval only"]);
    refused("a --benchmark videomme", 1, &["a/videomme.jsonl"]);
    refused("a --out a/mmvu.jsonl", 2, &["--out"]);
    refused("a --against b --out b/mmvu.json", 2, &["--out"]);
    // Comparisons are refused for other questions, for answers that differ from the scored ones, for another
    // benchmark, and for a truncated line.
    let mut other = rows.clone();
    other[1]["problem"] = json!("Another?");
    write_run(at, "b", &other);
    let words =
        "b/mmvu.jsonl: cannot be compared with a: the two runs have different questions or solutions in row `v_1`; ";
    refused("a --against b", 1, &[words]);
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    write(&at.join("b/mmvu.jsonl"), lines(&[row(0, "B"), row(1, "B")]));
    refused("b", 1, &["b/mmvu.json: does not have the scores of the answers in b/mmvu.jsonl", "reel eval merge b"]);
    other[1]["benchmark"] = json!("mvbench");
    write(&at.join("b/mmvu.jsonl"), lines(&other));
    refused("b", 1, &["b/mmvu.jsonl:2: benchmark: is `mvbench`, not mmvu"]);
    let whole = lines(&rows);
    write(&at.join("b/mmvu.jsonl"), &whole[..whole.len() - 30]);
    refused("b", 1, &["b/mmvu.jsonl:2: "]);
    write(&at.join("b/mmvu.jsonl"), "");
    refused("b", 1, &["b/mmvu.jsonl: has no rows"]);
    for (name, text) in [("mmvu.json", "{"), ("mmvu.jsonl.run.json", "[")] {
        write(&at.join("a").join(name), text);
        refused("a --benchmark mmvu", 1, &["a/mmvu.json"]);
        write_run(at, "a", &rows);
    }
    fs::remove_file(at.join("a/mmvu.json")).expect("removed");
    refused("a", 1, &["a/mmvu.json: does not exist", "reel eval merge a"]);
}

fn set(page: &mut Browser, field: &str, value: &str) {
    let input = format!("document.getElementById('{field}')");
    page.eval(&format!("{input}.value = '{value}'; {input}.dispatchEvent(new Event('input', {{bubbles: true}})); 0"));
}

/// Waits until the list has this number of answers.
#[track_caller]
fn wait_for_count(page: &mut Browser, count: usize) {
    page.wait_until(&format!("document.getElementById('count').textContent.split(' ')[0] === '{count}'"));
}

#[test]
fn answers_are_found_and_read_in_the_browser() {
    let Some(mut page) = start_browser("answers_are_found_and_read_in_the_browser") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    copy_clip(&at.join("media/clip.mp4"));
    let hostile = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u{202e}\u{1b}[31m";
    let mut a = vec![
        row(0, "<think>The ball is red. So A.</think>\n<answer>A</answer>"),
        row(1, &format!("<think>{hostile}</think><answer>B</answer>{hostile}")),
        row(2, "<think>never ending"),
        row(3, "x"),
    ];
    a[2]["generation"]["finish_reason"] = json!("length");
    a[3]["error"] = json!("clip.mp4: is broken; mend it");
    a.extend((4..300).map(|i| row(i, if i % 3 == 0 { "A" } else { "<answer>B</answer>" })));
    let b: Vec<Value> =
        (0..300).map(|i| row(i, if i % 3 == 0 || i == 4 { "<answer>A</answer>" } else { "B" })).collect();
    write_run(at, "a", &a);
    write_run(at, "b", &b);

    let one = at.join("a/report.html");
    open_page(&mut page, &one, "");
    wait_for_count(&mut page, 300);
    save_screenshot(&mut page, "eval-light");
    assert!(page.count_elements(".row") < 60, "the list has all rows in the document");
    page.wait_until("[...document.querySelectorAll('.strip img')].every((image) => image.naturalWidth > 0)");
    assert_eq!(page.count_elements(".strip img"), 8);
    assert_eq!(page.visible_text("#detail .question"), "Question 0: why?");
    assert_eq!(page.visible_text(".choices .truth small"), "correct · answered");
    // The reasoning is collapsed and opens on a click.
    assert_eq!(page.visible_text(".think summary"), "thinking, 6 words");
    assert_eq!(page.eval("document.querySelector('.think').open"), false);
    page.click(".think summary");
    assert_eq!(page.visible_text(".think .text"), "The ball is red. So A.");
    // Keys and the button show the next answers. HTML in a model's text is shown as text.
    page.press_key("j", false);
    page.wait_until("location.hash.includes('mmvu%3A2')");
    assert_eq!(
        page.eval("window.hacked === undefined && !document.querySelector('#detail script, #detail .text img')"),
        true
    );
    let shown = page.visible_text(".outputs .answer > .text");
    assert!(shown.contains("</script><script>window.hacked=1</script><img") && shown.contains("\\u{202e}\\u{1b}[31m"));
    assert_eq!(page.visible_text(".choices li:last-child span"), "C. <b>green</b>");
    page.click("[aria-label='next answer']");
    page.wait_until(
        "document.querySelector('.think')?.open && document.querySelector('.flag').innerText.startsWith('truncated')",
    );
    assert_eq!(page.eval("document.activeElement.ariaLabel"), "next answer", "the button has lost the focus");
    page.eval("document.getElementById('list').focus()");
    page.press_key("ArrowDown", false);
    assert_eq!(page.visible_text(".outputs .answer > .text"), "clip.mp4: is broken; mend it");
    page.press_key("End", false);
    assert_eq!(page.visible_text("#detail .question"), "Question 299: why?");
    assert_eq!(page.visible_text("[aria-selected=true] span:nth-child(2)"), "Question 299: why?");
    page.press_key("k", false);
    assert_eq!(page.visible_text("#detail .question"), "Question 298: why?");

    // The URL of the page contains the filter settings.
    set(&mut page, "show", "wrong");
    wait_for_count(&mut page, 201);
    set(&mut page, "category", "Art");
    wait_for_count(&mut page, 100);
    set(&mut page, "search", "question 29");
    wait_for_count(&mut page, 4);
    let address = page.eval("location.hash");
    assert_eq!(address, "#c=Art&show=wrong&q=question+29&r=mmvu%3A299");
    open_page(&mut page, &one, address.as_str().expect("an address"));
    wait_for_count(&mut page, 4);
    assert_eq!(page.visible_text("#detail .question"), "Question 298: why?");
    set(&mut page, "search", "no such text");
    wait_for_count(&mut page, 0);
    assert_eq!(page.visible_text(".noframes"), "No answer passes the filters.");
    page.click(".filters [type=reset]");
    wait_for_count(&mut page, 300);
    // A click on the name of a category, above the list, shows the answers of this category.
    page.click(".scorebars .label a");
    wait_for_count(&mut page, 150);
    set(&mut page, "show", "error");
    wait_for_count(&mut page, 0);
    // The button switches the colours, and the choice persists after a reload.
    let color = "getComputedStyle(document.body).backgroundColor";
    page.click("#theme");
    assert_eq!(page.eval(color), "rgb(16, 18, 22)");
    open_page(&mut page, &one, "#r=mmvu:1");
    assert_eq!(page.eval(color), "rgb(16, 18, 22)");
    save_screenshot(&mut page, "eval-dark");
    page.click("#theme");
    check_names(&mut page);
    check_layout(&mut page);
    save_screenshot(&mut page, "eval-narrow");

    // The page of two runs shows the questions on which the runs disagree.
    run_in(at, ["report", "a", "--against", "b", "--out", "ab.html"]).ok();
    page.resize(1200, 900);
    open_page(&mut page, &at.join("ab.html"), "#runs=differ");
    wait_for_count(&mut page, 2);
    assert_eq!(page.count_elements(".outputs .answer"), 2);
    assert_eq!(page.visible_text(".choices .truth small"), "correct · answered by B");
    set(&mut page, "runs", "a");
    wait_for_count(&mut page, 0);
    set(&mut page, "runs", "none");
    wait_for_count(&mut page, 199);
    check_layout(&mut page);

    // The page of `reel data stats --html`.
    let chat = r#"{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}"#;
    let rows: Vec<String> = (1..40).map(|i| chat.replace('4', &"4 ".repeat(i))).collect();
    write(&at.join("rows.jsonl"), rows.join("\n"));
    tiny_model(at);
    run_in(at, ["data", "stats", "rows.jsonl", "--model", "tiny", "--html", "stats.html"]).ok();
    page.resize(1200, 900);
    open_page(&mut page, &at.join("stats.html"), "");
    save_screenshot(&mut page, "stats");
    let bars = "[...document.querySelectorAll('.bars i')].map((bar) => bar.getBoundingClientRect().width)";
    let widths: Vec<f64> = page.eval(bars).as_array().expect("bars").iter().filter_map(Value::as_f64).collect();
    assert!(widths.len() > 20 && widths.iter().any(|&width| width > 600.0), "{widths:?}");
    check_layout(&mut page);
    save_screenshot(&mut page, "stats-narrow");
    check_errors(&mut page);
}

/// Checks that every interactive element has an accessible name.
fn check_names(page: &mut Browser) {
    let tree = page.call_method("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] == false);
    let roles =
        ["button", "combobox", "searchbox", "listbox", "option", "image", "region", "link", "DisclosureTriangle"];
    let operated: Vec<&Value> = nodes.filter(|node| roles.iter().any(|role| node["role"]["value"] == *role)).collect();
    assert!(operated.len() > 30, "{}", operated.len());
    let nameless: Vec<&&Value> = operated.iter().filter(|node| node["name"]["value"] == "").collect();
    assert!(nameless.is_empty(), "{nameless:#?}");
}
