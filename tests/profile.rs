//! Profiling of a run: ranges for an NVTX tool, nested traces (`--trace`), traces of some steps (`--profile-steps`)
//! and of a time window of a server (`--profile-dir`).

#[path = "support/grpo_run.rs"]
mod grpo_run;
#[path = "support/server.rs"]
mod server;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use server::{Server, question};
use sft_rows::{copy_test_media, media_question_row, run_sft, training_folder};
use support::{finished_run, metrics_without_times, reel, run_in};

/// Compiles a stub library of an NVTX tool from C.
fn stub_tool(folder: &Path, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/stub_nvtx.c");
    let library = folder.join(format!("libtool{}.so", options.len()));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-O1", "-pthread"]).args(options).arg("-o").arg(&library).arg(source);
    let done = cc.output().expect("cc, which the build needs too");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    library
}

/// Returns the paths of all ranges that the tool received: kinds and names, outermost first.
fn paths_in_tool(text: &str) -> Vec<Vec<(String, String)>> {
    let (mut kinds, mut open, mut paths) =
        (BTreeMap::new(), BTreeMap::<&str, Vec<(String, String)>>::new(), Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["domain", name] => assert_eq!(name, "reel"),
            ["category", number, kind] => drop(kinds.insert(number, kind)),
            ["push", thread, kind, name] => {
                let path = open.entry(thread).or_default();
                path.push((kinds[kind].to_string(), name.to_string()));
                paths.push(path.clone());
            }
            ["pop", thread] => drop(open.get_mut(thread).and_then(Vec::pop).expect("a range that has begun")),
            _ => panic!("{line}"),
        }
    }
    // Threads that prepare rows may still have open ranges when the process ends.
    let of_steps = |path: &Vec<(String, String)>| path.iter().any(|(kind, _)| kind == "step");
    assert!(!open.values().any(of_steps), "a step without an end: {open:?}");
    paths
}

/// Returns the names in a path of ranges, if the path has exactly these kinds.
fn names_of<'a>(path: &'a [(String, String)], kinds: &[&str]) -> Option<Vec<&'a str>> {
    let same = path.iter().map(|(kind, _)| kind.as_str()).eq(kinds.iter().copied());
    same.then(|| path.iter().map(|(_, name)| name.as_str()).collect())
}

#[test]
fn a_tool_for_nvtx_gets_nested_ranges() {
    let dir = training_folder(2);
    let (tool, log) = (stub_tool(dir.path(), &[]), dir.path().join("ranges.txt"));
    let mut command = reel();
    command.current_dir(dir.path()).env("NVTX_INJECTION64_PATH", tool).env("STUB_NVTX_OUT", &log);
    let args = "sft --model tiny --data rows.jsonl --out out --max-steps 1 --device cpu --quiet --no-shuffle";
    finished_run(command.args(args.split(' ')).output().expect("the binary starts")).ok();
    let paths = paths_in_tool(&fs::read_to_string(&log).expect("ranges"));
    let launches: BTreeSet<Vec<&str>> = paths
        .iter()
        .filter_map(|path| names_of(path, &["step", "micro-batch", "phase", "layer", "op", "launch"]))
        .collect();
    for want in [
        ["step 1", "micro-batch 0", "forward", "decoder 0", "rms_norm_branch", "rms_norm_fwd_f32"],
        ["step 1", "micro-batch 1", "forward", "decoder 1", "linear", "matmul_fwd"],
        // In the backward pass, the ranges have the names of the layers and ops of the forward pass.
        ["step 1", "micro-batch 1", "backward", "decoder 1", "linear backward", "matmul_dw"],
        ["step 1", "micro-batch 0", "backward", "decoder 0", "swiglu_linear backward", "swiglu_bwd_f32"],
    ] {
        assert!(launches.contains(want.as_slice()), "no {want:?} in {launches:?}");
    }
    // A layer is one range of a phase; ranges of layers and ops are not nested in ranges of the same kind.
    let layers = paths.iter().filter_map(|path| names_of(path, &["step", "micro-batch", "phase", "layer"]));
    let layers: Vec<Vec<&str>> = layers.filter(|names| names[1] == "micro-batch 0").collect();
    let distinct: BTreeSet<&Vec<&str>> = layers.iter().collect();
    assert_eq!(layers.len(), distinct.len(), "{layers:?}");
    assert!(paths.iter().all(|path| path.windows(2).all(|two| two[0] != two[1])));
    let phases: BTreeSet<&str> =
        paths.iter().filter_map(|path| names_of(path, &["step", "phase"])).map(|names| names[1]).collect();
    assert!(
        ["data loading", "optimizer", "fingerprint", "logging"].iter().all(|name| phases.contains(name)),
        "{phases:?}"
    );
}

#[test]
fn a_library_that_is_no_tool_is_a_warning() {
    let dir = tempfile::tempdir().expect("a folder");
    let failing = stub_tool(dir.path(), &["-DFAILS"]).display().to_string();
    for (library, reason) in
        [("/nowhere/tool.so", "cannot open"), ("libc.so.6", "InitializeInjectionNvtx2"), (&failing, "returned 0")]
    {
        let mut command = reel();
        command.env("NVTX_INJECTION64_PATH", library).args(["completions", "bash"]);
        let done = finished_run(command.output().expect("the binary starts"));
        done.ok();
        let words = ["warning: NVTX_INJECTION64_PATH: ", reason, "no ranges are reported"];
        assert!(words.iter().all(|word| done.stderr.contains(word)), "{library}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    }
}

/// A slice (an event with a duration) of a trace.
#[derive(Debug)]
struct Slice {
    name: String,
    kind: String,
    track: u64,
    start: f64,
    end: f64,
}

/// Reads the slices of a trace and the names of its tracks.
fn read_trace(file: &Path) -> (Vec<Slice>, BTreeMap<u64, String>) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let track = |e: &Value| e["tid"].as_u64().expect("tid");
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_string();
    let slice = |e: &Value| {
        let start = e["ts"].as_f64().expect("ts");
        let end = start + e["dur"].as_f64().expect("dur");
        Slice { name: text(&e["name"]), kind: text(&e["cat"]), track: track(e), start, end }
    };
    let slices: Vec<Slice> = events.iter().filter(|e| e["ph"] == "X").map(slice).collect();
    let named = events.iter().filter(|e| e["name"] == "thread_name");
    let names: BTreeMap<u64, String> = named.map(|e| (track(e), text(&e["args"]["name"]))).collect();
    assert!(slices.iter().all(|slice| names.contains_key(&slice.track)), "a track without a name: {names:?}");
    (slices, names)
}

/// Returns the slices on the track of `outer` that lie inside of it.
fn inside<'a>(slices: &'a [Slice], outer: &'a Slice) -> impl Iterator<Item = &'a Slice> {
    let is_inside = move |s: &&Slice| {
        s.track == outer.track && s.start >= outer.start && s.end <= outer.end && !std::ptr::eq(*s, outer)
    };
    slices.iter().filter(is_inside)
}

/// Returns the share of a slice's time that the slices inside of it cover.
fn named_share(slices: &[Slice], outer: &Slice) -> f64 {
    let mut parts: Vec<(f64, f64)> = inside(slices, outer).map(|s| (s.start, s.end)).collect();
    parts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut covered, mut until) = (0.0, outer.start);
    for (start, end) in parts {
        covered += (end - start.max(until)).max(0.0);
        until = until.max(end);
    }
    covered / (outer.end - outer.start)
}

/// Returns true if one track of the trace has nested slices of these kinds and names. An empty name matches any name.
fn has_nest(slices: &[Slice], track: u64, path: &[(&str, &str)]) -> bool {
    let is = |s: &Slice, (kind, name): (&str, &str)| s.kind == kind && (name.is_empty() || s.name == name);
    let mut level: Vec<&Slice> = slices.iter().filter(|s| s.track == track && is(s, path[0])).collect();
    for &wanted in &path[1..] {
        level = level.into_iter().flat_map(|outer| inside(slices, outer)).filter(|s| is(s, wanted)).collect();
    }
    !level.is_empty()
}

/// Returns the steps on the track of the main thread. Checks that at least 95 % of a step's time is covered by named
/// slices. The best step is checked, because a busy machine can interrupt the thread anywhere.
fn steps(slices: &[Slice]) -> Vec<&str> {
    let steps: Vec<&Slice> = slices.iter().filter(|s| s.kind == "step" && s.track == 0).collect();
    let best = steps.iter().map(|step| named_share(slices, step)).fold(0.0, f64::max);
    assert!(best >= 0.95, "at most {best} of a step's time has a name");
    steps.iter().map(|step| step.name.as_str()).collect()
}

/// Returns the id of the track with this name.
fn track(names: &BTreeMap<u64, String>, name: &str) -> u64 {
    *names.iter().find(|(_, n)| *n == name).unwrap_or_else(|| panic!("no track {name}: {names:?}")).0
}

#[test]
fn trace_of_sft_is_nested_and_names_the_time_of_a_step() {
    let dir = training_folder(1);
    copy_test_media(dir.path());
    fs::write(dir.path().join("rows.jsonl"), media_question_row("image", "good.png").repeat(4)).expect("rows");
    let more = "--max-steps 2 --save-steps 1 --quiet --device cpu --gradient-checkpointing full --trace t.json";
    run_sft(dir.path(), "out", &more.split(' ').collect::<Vec<_>>()).ok();
    let (slices, names) = read_trace(&dir.path().join("t.json"));
    assert_eq!(steps(&slices), ["step 1", "step 2"]);
    let on_device = track(&names, "ranges on cpu");
    let launches = track(&names, "launches on cpu");
    for phase in [("phase", "forward"), ("phase", "backward")] {
        let path = [
            ("step", "step 2"),
            ("micro-batch", "micro-batch 1"),
            phase,
            ("layer", "decoder 1"),
            ("op", ""),
            ("launch", ""),
        ];
        assert!(has_nest(&slices, 0, &path), "{path:?}");
        assert!(has_nest(&slices, on_device, &path[..5]), "{path:?} on the device");
    }
    assert!(has_nest(&slices, 0, &[("step", "step 1"), ("phase", "checkpoint")]));
    assert!(has_nest(&slices, 0, &[("step", "step 1"), ("phase", "optimizer"), ("launch", "")]));
    assert!(slices.iter().filter(|s| s.track == launches).all(|s| s.kind == "launch"));
    // Rows are prepared and checkpoints are written on separate threads.
    let of_thread = |phase: &str| {
        let slice = slices.iter().find(|s| s.name == phase).unwrap_or_else(|| panic!("no {phase}"));
        names[&slice.track].as_str()
    };
    assert_eq!([of_thread("media decoding"), of_thread("data preparation")], ["host: rows"; 2]);
    assert_eq!(of_thread("checkpoint files"), "host: checkpoint");
}

#[test]
fn trace_of_grpo_names_rollouts_and_rewards() {
    let dir = grpo_run::training_folder();
    let more = "--max-steps 2 --save-steps 2 --device cpu --trace t.json";
    run_in(dir.path(), grpo_run::grpo_args("out", &more.split(' ').collect::<Vec<_>>())).ok();
    let (slices, _) = read_trace(&dir.path().join("t.json"));
    assert_eq!(steps(&slices), ["step 1", "step 2"]);
    let step = ("step", "step 2");
    for path in [
        &[step, ("phase", "rollout"), ("phase", "prefill"), ("layer", "decoder 0"), ("op", ""), ("launch", "")][..],
        &[
            step,
            ("phase", "rollout"),
            ("phase", "decode step"),
            ("task", "captured graph"),
            ("layer", "decoder 1"),
            ("launch", ""),
        ],
        &[step, ("phase", "reward")],
        &[step, ("micro-batch", "micro-batch 0"), ("phase", "backward"), ("layer", "decoder 1")],
        &[step, ("phase", "optimizer")],
        &[step, ("phase", "checkpoint")],
    ] {
        assert!(has_nest(&slices, 0, path), "{path:?}");
    }
}

#[test]
fn only_the_steps_of_profile_steps_are_traced() {
    let dir = training_folder(6);
    let run = |out: &str, more: &str| run_sft(dir.path(), out, &more.split_whitespace().collect::<Vec<_>>());
    let fixed = "--max-steps 3 --quiet --device cpu";
    run("plain", fixed).ok();
    run("out", &format!("{fixed} --profile-steps 2-3")).ok();
    let (slices, _) = read_trace(&dir.path().join("out/trace-2-3.json"));
    assert_eq!(steps(&slices), ["step 2", "step 3"]);
    assert!(has_nest(
        &slices,
        0,
        &[("step", "step 2"), ("micro-batch", ""), ("phase", ""), ("layer", ""), ("op", ""), ("launch", "")]
    ));
    assert!(slices.iter().all(|s| s.name != "load"), "what was done before the steps is not in the trace");
    let metrics = |out: &str| metrics_without_times(&dir.path().join(out));
    assert_eq!(metrics("plain"), metrics("out"), "profiling changes a result");
    // `--trace` sets another file. The run ends before the window does.
    run("other", &format!("{fixed} --profile-steps 3-9 --trace t.json")).ok();
    assert_eq!(steps(&read_trace(&dir.path().join("t.json")).0), ["step 3"]);
    run("late", &format!("{fixed} --profile-steps 7-9"))
        .assert_refused(2, &["--profile-steps: is 7-9, but this process does the steps 1 to 3 of the run"]);
    run("wrong", "--profile-steps 3-2").assert_refused(2, &["--profile-steps", "the first and the last step"]);
}

#[test]
fn a_client_of_the_server_can_trace_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let traces = folder.path().join("traces");
    let server = Server::start(&["--device", "cpu", "--profile-dir", &traces.display().to_string()]);
    let post = |path: &str, headers: &str| server.send("POST", path, headers, "");
    let begun = post("/stop_profile", "").error(409);
    assert!(begun["message"].as_str().is_some_and(|text| text.contains("POST /start_profile")), "{begun}");
    // No web page may use this endpoint, as with other admin endpoints.
    post("/start_profile", "Origin: http://127.0.0.1:8000\r\n").error(403);
    let mut files = BTreeSet::new();
    for _ in 0..2 {
        assert_eq!(post("/start_profile", "").ok()["profiling"], true);
        post("/start_profile", "").error(409);
        server.chat(&serde_json::json!({"messages": question("Hello"), "max_tokens": 3})).ok();
        let done = post("/stop_profile", "").ok();
        let file = PathBuf::from(done["trace"].as_str().expect("a file"));
        assert!(file.starts_with(&traces), "{}", file.display());
        let (slices, names) = read_trace(&file);
        let engine = track(&names, "host: engine");
        for path in [
            &[("phase", "prefill"), ("layer", "decoder 0"), ("op", ""), ("launch", "")][..],
            &[("phase", "decode step"), ("task", "captured graph"), ("layer", "decoder 1"), ("launch", "")],
        ] {
            assert!(has_nest(&slices, engine, path), "{path:?}");
        }
        assert!(slices.iter().any(|s| s.name == "request encoding" && s.track != engine));
        files.insert(file);
    }
    assert_eq!(files.len(), 2, "each profile has a file of its own");
    let server = Server::start(&["--device", "cpu"]);
    let none = server.send("POST", "/start_profile", "", "").error(404);
    assert!(none["message"].as_str().is_some_and(|text| text.contains("--profile-dir")), "{none}");
}
