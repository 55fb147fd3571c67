//! The command line: exit codes, one-line errors, JSON output, and help texts whose examples run.

mod support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use reel_device::compile;

use support::{golden, reel, run, run_in};

#[test]
fn version_and_help_exit_with_code_0() {
    assert!(run(["--version"]).ok().starts_with("reel "));
    let help = run(["--help"]);
    assert!(help.ok().contains("generate") && help.stderr.is_empty());
    assert_eq!(run(Vec::<&str>::new()).code, Some(2));
}

#[test]
fn bad_usage_is_one_line_and_exit_code_2() {
    run(["frobnicate"]).assert_refused(2, &["frobnicate", "--help"]);
    run(["resize", "--hight", "3"]).assert_refused(2, &["--hight", "--height"]);
    run(["resize", "--height", "3"]).assert_refused(2, &["--width"]);
    run(["resize", "--height", "x", "--width", "3"]).assert_refused(2, &["--height"]);
    run(["frames"]).assert_refused(2, &["--video"]);
    run(["frames", "--total-frames", "9"]).assert_refused(2, &["--video-fps"]);
    run(["generate", "--model", "m"]).assert_refused(2, &["--prompt"]);
    for n in ["0", "100000000"] {
        run(["generate", "--model", "m", "--prompt", "x", "--n", n]).assert_refused(2, &["--n", n]);
        run(["plan", "generate", "--preset", "tiny", "--tokens", "9", "--n", n]).assert_refused(2, &["--n", n]);
    }
    for tokens in ["0", "99999999999999"] {
        run(["plan", "sft", "--preset", "tiny", "--tokens", tokens]).assert_refused(2, &["--tokens", tokens]);
    }
    run(["plan", "generate", "--preset", "tiny", "--tokens", "9", "--max-new-tokens", "999999999"])
        .assert_refused(2, &["--max-new-tokens", "999999999"]);
    for format in ["int4", "INT8 "] {
        run(["generate", "--model", "m", "--prompt", "x", "--quantize", format])
            .assert_refused(2, &["--quantize", "int8"]);
        run(["serve", "--model", "m", "--quantize", format]).assert_refused(2, &["--quantize", "int8"]);
    }
    // Training refuses quantised weights.
    for train in ["sft", "grpo"] {
        run([train, "--model", "m", "--data", "d", "--out", "o", "--quantize", "int8"])
            .assert_refused(2, &["--quantize"]);
    }
    for twice in [
        &["resize", "--height", "1", "--width", "56", "--height", "28"][..],
        &["--seed", "1", "resize", "--height", "1", "--width", "56", "--seed", "2"],
        &["grpo", "--model", "m", "--data", "d", "--out", "o", "--max-steps", "1", "--max_steps=1"],
    ] {
        let option = twice.iter().rev().nth(usize::from(!twice[twice.len() - 1].contains('='))).expect("an option");
        let name = option.split('=').next().unwrap_or_default().replace('_', "-");
        run(twice).assert_refused(2, &[&format!("{name}: is given more than once; give it once")]);
    }
}

/// Errors of the argument parser have the same form as all other errors: option, what is wrong, what to do.
#[test]
fn errors_of_the_parser_name_the_option() {
    for (command, message) in [
        (
            "score --model m --messages a --inputs b --out c",
            "--messages: cannot be used with --inputs; remove one of them",
        ),
        ("bench --compare a.json", "--compare: has 1 of 2 values; give 2 after it (see 'reel bench --help')"),
        ("plan --json", "reel plan: needs the name of a command; give one of sft, grpo, generate, serve"),
        ("resize --height 1 --width 1 --quiet=1", "--quiet: has the value \"1\", and takes none; remove it"),
        ("generate --model m --prompt x --top-k 4294967296", "--top-k: is 4294967296; give 0 to 4294967295"),
        ("generate --model m --prompt x --top-k -2", "--top-k: is -2; give 0 or more"),
        (
            "eval --model m --benchmark mmvu --data d --out o --top-k x",
            "--top-k: is \"x\", which is not a whole number",
        ),
        ("generate --model m --prompt x --image=", "--image: is empty; give a file or an address"),
        ("generate --model m --prompt x --video=", "--video: is empty; give a file or an address"),
        ("eval tasks nope", "nope: is not the name of a benchmark; give one of vsibench, "),
        ("eval tasks mmvu,mvbench", "mmvu,mvbench: is not the name of a benchmark; give one of vsibench, "),
        ("resize --height 9 --width 9 --factor 4000000000", "--factor: is 4000000000; give 28 "),
        (
            "bench op rms_norm_fwd_f32 --dtype bf16",
            "rms_norm_fwd_f32: is a kernel of f32, not of bf16; leave out --dtype",
        ),
        (
            "plan sft --preset 3b --tokens 4096 --max-length 512 --gpu h200",
            "--tokens: is 4096, more than --max-length 512 allows; lower it, or raise --max-length",
        ),
        (
            "plan grpo --preset 3b --tokens 4096 --max-prompt-length 512 --gpu H200",
            "--tokens: is 4096, more than --max-prompt-length 512 allows; lower it, or raise --max-prompt-length",
        ),
        (
            "bench op attention --size tokens=x",
            "--size: is \"tokens=x\"; give a whole number after tokens=, such as tokens=4096",
        ),
        ("generate --model= --prompt x", "--model: is empty; give a model folder, or a Hugging Face model id"),
        (
            "plan sft --preset tiny --tokens 9 --data d --gpu h100",
            "--tokens: sets the size of every row, but the rows of --data have their own sizes",
        ),
        ("plan sft --preset tiny --tokens 9 --device cpu --gpu h100", "--gpu: names a different machine from --device"),
        (
            "plan generate --preset tiny --tokens 1000000",
            "--tokens: is 1000000, more than the model's 128000 positions",
        ),
        ("plan sft --preset 3b --vocab 1000 --tokens 9", "--vocab: 1000 is too small for this preset's tokenizer"),
        ("frames --total-frames 9 --video-fps 5 --out f", "--out: is for the frames of a video, but no video is given"),
        (
            "frames --total-frames 1 --video-fps 5",
            "--total-frames: no frames can be selected from a video of 1 frame, because 2",
        ),
    ] {
        let got = run(command.split(' '));
        assert!(got.stderr.starts_with(&format!("error: {message}")), "{command}: {}", got.stderr);
        got.assert_refused(2, &[]);
    }
}

/// A path that is not UTF-8 is refused before anything is read or written.
#[test]
fn paths_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = reel();
    command.current_dir(&folder).args(["init", "--preset", "tiny", "--json", "--out"]);
    command.arg(std::ffi::OsStr::from_bytes(b"k\xff"));
    let got = support::finished_run(command.output().expect("the binary starts"));
    got.assert_refused(2, &["--out: is k\\xff, which is not UTF-8; rename the file or folder"]);
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
    let mut command = reel();
    command.current_dir(&folder).args(["generate", "--model", "m", "--prompt"]);
    command.arg(std::ffi::OsStr::from_bytes(b"k\xff"));
    let got = support::finished_run(command.output().expect("the binary starts"));
    got.assert_refused(2, &["--prompt: is k\\xff, which is not UTF-8; give the text in UTF-8"]);
}

/// If the help text cannot be written to stdout, the command fails.
#[test]
fn help_needs_a_stdout_that_takes_it() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let got = reel().arg("--help").stdout(full).stderr(Stdio::piped()).output().expect("the binary starts");
    support::finished_run(got).assert_refused(1, &["stdout: cannot be written"]);
}

#[test]
fn errors_of_unavailable_devices_name_alternatives() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path());
    let generate = |device: &str| {
        let model = tiny.display().to_string();
        run(["generate", "--model", &model, "--prompt", "x", "--max-new-tokens", "1", "--device", device])
    };
    // The tests hide the machine's GPU, so device `cuda` cannot be opened.
    generate("cuda").assert_refused(1, &["cuda: ", "--device cpu"]);
    generate("cuda:1").assert_refused(1, &["cuda: ", "--device cpu"]);
    generate("cuda:x").assert_refused(2, &["--device", "cuda:N"]);
    generate("dry").assert_refused(2, &["--device", "reel plan"]);
    generate("tpu").assert_refused(2, &["--device", "tpu"]);
    generate("cpu").ok();
    // If a command supports fewer devices, its error suggests only those devices.
    let kernels = |words: &[&str]| run([words, &["--device", "cuda"]].concat());
    let advice = |words: &[&str], advised: &str, other: &str| {
        let got = kernels(words);
        assert!(!got.assert_refused(1, &["cuda: ", advised]).stderr.contains(other), "{}", got.stderr);
    };
    advice(&["kernels", "bench"], "reel bench op NAME --device cpu", "--device sim");
    advice(&["bench", "op", "swiglu"], "choose --device cpu", "--device sim");
    advice(&["kernels", "check", "--compare"], "give --device sim, and leave out --compare", "--device cpu");
    kernels(&["kernels", "check"]).assert_refused(1, &["choose --device cpu or --device sim"]);
    // `kernels bench` needs a GPU even without --device.
    run(["kernels", "bench"]).assert_refused(1, &["reel bench op NAME --device cpu"]);
}

/// The help text of --dtype states the default that the command uses.
#[test]
fn help_of_init_has_the_dtypes_of_the_presets() {
    let help = run(["init", "--help"]).ok().split_whitespace().collect::<Vec<_>>().join(" ");
    let default = "[default: f32 for tiny, qwen3-tiny and siglip-tiny, bf16 for 3b, 7b, 32b, 72b, qwen3-2b, qwen3-4b, \
                   qwen3-8b and qwen3-32b]";
    assert!(help.contains(default), "{help}");
    assert!(!help.contains("bf16 on cuda"), "{help}");
    let folder = tempfile::tempdir().expect("a folder");
    for (preset, dtype) in [("tiny", "float32"), ("qwen3-tiny", "float32"), ("siglip-tiny", "float32")] {
        run_in(folder.path(), ["init", "--preset", preset, "--out", preset]).ok();
        let config = std::fs::read_to_string(folder.path().join(preset).join("config.json")).expect("config.json");
        assert!(config.contains(&format!("\"{dtype}\"")), "{preset}: {config}");
    }
    let help = run(["bench", "op", "--help"]);
    assert!(help.ok().contains("Time only kernels of this data type"), "{}", help.stdout);
}

#[test]
fn rejects_invalid_sizes_and_rates() {
    run(["resize", "--height", "0", "--width", "10"]).assert_refused(2, &["0 x 10"]);
    run(["resize", "--height", "10", "--width", "9000"]).assert_refused(2, &["ratio"]);
    run(["frames", "--total-frames", "9", "--video-fps", "nan"]).assert_refused(2, &["--video-fps"]);
    run(["frames", "--total-frames", "9", "--video-fps", "25", "--profile", "nosuch"])
        .assert_refused(2, &["--profile", "nosuch", "videorft-eval"]);
    run(["frames", "--total-frames", "99", "--video-fps", "25", "--fps", "2", "--nframes", "4"])
        .assert_refused(2, &["--nframes"]);
    // Without a video, the command shows what qwen-vl-utils would do: it rounds an odd number of frames, and at a
    // rate of 0 uses the minimum number of frames. With a video, these values are errors.
    let selected = |flag: &str, value: &str| {
        let args = ["frames", "--total-frames", "99", "--video-fps", "25", "--json", flag, value];
        run(args).json()["nframes"].clone()
    };
    assert_eq!((selected("--nframes", "9"), selected("--fps", "0")), (8.into(), 4.into()));
    let video = golden("clips/h264_709.mp4").display().to_string();
    for (flag, value) in
        [("--nframes", "9"), ("--nframes", "1"), ("--fps", "0"), ("--fps", "-2"), ("--max-pixels", "9")]
    {
        run(["frames", "--video", &video, flag, value]).assert_refused(2, &[&format!("{flag}: is {value}, ")]);
    }
}

#[test]
fn json_output_is_one_line_and_nothing_else() {
    let got = run(["resize", "--height", "1080", "--width", "1920", "--max-pixels", "200704", "--json"]);
    assert_eq!(got.ok(), "{\"height\":336,\"width\":588}\n");
    let got = run(["frames", "--total-frames", "300", "--video-fps", "30", "--nframes", "4", "--json"]).json();
    assert_eq!(got["indices"], serde_json::json!([0, 100, 199, 299]));
    assert!(run(["doctor", "--json"]).json()["findings"].as_array().is_some_and(|f| f.len() > 5));
}

/// FFmpeg's libraries are not loaded at the start, because loading them takes longer than most commands.
#[test]
#[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
fn ffmpeg_is_not_loaded_at_the_start() {
    // With this variable, glibc's dynamic linker lists the libraries that it loads on stderr.
    let loaded = |args: &[&str]| {
        let done =
            support::finished_run(reel().env("LD_DEBUG", "libs").args(args).output().expect("the binary starts"));
        done.ok();
        done.stderr
    };
    let at_start = loaded(&["--version"]);
    assert!(at_start.contains("libc.so"), "{at_start}");
    assert!(!at_start.contains("libav") && !at_start.contains("libsw"), "{at_start}");
    assert!(loaded(&["doctor"]).contains("libavformat"));
}

#[test]
#[cfg(all(feature = "ffmpeg", target_arch = "x86_64"))]
fn without_ffmpeg_only_videos_are_refused() {
    let clip = golden("clips/h264_709.mp4").display().to_string();
    let findings = run(["doctor", "--json"]).json();
    let version = findings["findings"].as_array().and_then(|all| {
        let of_avutil = all.iter().find(|f| f["name"] == "libavutil")?;
        of_avutil["what"].as_str()?.split('.').next().map(str::to_string)
    });
    let library = format!("libavutil.so.{}", version.expect("a version of libavutil"));
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(&library), "damaged").expect("a file");
    let run = |args: &[&str]| {
        let output = reel().env("LD_LIBRARY_PATH", folder.path()).args(args).output();
        support::finished_run(output.expect("the binary starts"))
    };
    run(&["frames", "--video", &clip]).assert_refused(1, &["h264_709.mp4", &library, "install the FFmpeg libraries"]);
    assert!(run(&["doctor"]).ok().contains(&library));
    run(&["frames", "--total-frames", "9", "--video-fps", "3"]).ok();
}

#[test]
fn verbose_adds_causes_of_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path()).display().to_string();
    let plain = run(["tokenize", "--model", &tiny, "--file", "no/such"]);
    plain.assert_refused(1, &["no/such"]);
    let verbose = run(["tokenize", "--model", &tiny, "--file", "no/such", "-v"]);
    assert!(verbose.stderr.starts_with(&plain.stderr) && verbose.stderr.contains("caused by: "), "{}", verbose.stderr);
}

#[test]
fn closed_stdout_is_not_an_error() {
    let mut child = reel()
        .args(["frames", "--total-frames", "1000000", "--video-fps", "1", "--profile", "stride-1fps"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let done = support::finished_run(child.wait_with_output().expect("it ends"));
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
}

#[test]
fn suggestions_know_the_field() {
    for (command, words) in [
        ("grpo --len_control maybe", &["--len-control: is \"maybe\"; give true or false"][..]),
        ("grpo --num_generationz 2", &["--num_generationz: ", "did you mean --num-generations?"]),
        ("plan sft --gradient-acumulation-steps 1", &["did you mean --gradient-accumulation-steps?"]),
    ] {
        run(command.split(' ')).assert_refused(2, words);
    }
}

#[test]
fn common_options_are_checked_in_every_command() {
    for (option, value, words) in [
        ("--threads", "0", "--threads: is "),
        ("--device", "nonsense", "--device: is "),
        ("--interleavings", "0", "--interleavings: is "),
        ("--dtype", "f8", "--dtype: \"f8\" is not a possible value; give one of f32, bf16"),
    ] {
        run(["resize", "--height", "28", "--width", "28", option, value]).assert_refused(2, &[words]);
    }
    run(["resize", "--height", "28", "--width", "28", "--device", "cpu", "--threads", "2"]).ok();
    run("generate --model m --prompt x --device cuda --products nosuch".split(' '))
        .assert_refused(2, &["--products: \"nosuch\" is not a possible value"]);
    let help = |command: &str| run(command.split(' ').chain(["--help"])).ok().to_string();
    assert!(!help("resize").contains("--device") && help("generate").contains("--device"));
}

#[test]
fn help_completions_and_manual_pages_cover_every_command() {
    assert_eq!(run(["help", "sim", "run"]).ok(), run(["sim", "run", "--help"]).ok());
    assert_eq!(run(["help"]).ok(), run(["--help"]).ok());
    run(["help", "frobnicate"]).assert_refused(2, &["frobnicate", "sft"]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(["completions", shell]);
        assert!(script.ok().contains("per-device-train-batch-size"), "{shell}");
    }
    run(["completions", "tcsh"]).assert_refused(2, &["tcsh", "bash"]);
    let folder = tempfile::tempdir().expect("a folder");
    let said = run_in(folder.path(), ["man", "--out", "man1", "--json"]).json();
    let pages = support::file_names_in(&folder.path().join("man1"));
    assert_eq!(said["pages"].as_u64(), Some(pages.len() as u64));
    let all = ["reel.1", "reel-sft.1", "reel-sim-run.1", "reel-bench-op.1"];
    assert!(all.iter().all(|name| pages.iter().any(|page| page == name)), "{pages:?}");
    let page = std::fs::read_to_string(folder.path().join("man1/reel-sft.1")).expect("a page");
    assert!(page.contains(".TH reel-sft 1") && page.contains("learning\\-rate"), "{page}");
}

#[test]
fn rust_log_adds_details() {
    let missing = ["tokenize", "--model", "no-model", "--file", "x"];
    let with = |level: &str| {
        let out = reel().args(missing).env("RUST_LOG", level).output().expect("the binary starts");
        support::finished_run(out).stderr
    };
    let verbose = run(missing.into_iter().chain(["-v"])).stderr;
    assert_eq!((with("debug"), with("warn")), (verbose, run(missing).stderr));
}

/// The help text of a subcommand.
struct Help {
    /// The words of the command after `reel`, such as `bench prefill`.
    command: String,
    text: String,
}

/// Collects the help texts of a command and of all its subcommands.
fn helps(command: &[&str], found: &mut Vec<Help>) {
    let text = run(command.iter().copied().chain(["--help"])).ok().to_string();
    let listed = text.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let names: Vec<String> = listed
        .filter_map(|l| l.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()).map(str::to_string))
        .collect();
    found.push(Help { command: command.join(" "), text: text.clone() });
    for name in names {
        helps(&[command, &[name.as_str()]].concat(), found);
    }
}

/// Returns the shell script after `Example:` in a help text.
fn example(help: &str) -> Option<String> {
    let (_, after) = help.split_once("Example:\n")?;
    let lines = after.lines().take_while(|l| l.starts_with("  "));
    Some(lines.map(str::trim).collect::<Vec<_>>().join("\n")).filter(|script| !script.is_empty())
}

/// Returns why a line of an example is not run in this test; `None` if it is run.
fn why_not_run(command: &str, line: &str) -> Option<&'static str> {
    let compiles = compile::check_nvrtc().is_ok();
    match command {
        "demo" => Some("trains for minutes; tests/demo.rs runs it with --steps"),
        "serve" => Some("runs until a signal; tests/serve.rs starts it"),
        "bench video" => Some("needs a video; tests/bench.rs has one"),
        "dequantize" => Some("needs a quantised model; tests/quantized.rs makes one"),
        "bench serve" => Some("needs a running server; tests/bench_serve.rs starts one"),
        "kernels pack" => Some("compiles every kernel for every architecture, which takes minutes"),
        "kernels report" => Some("compiles every kernel; tests/kernels.rs runs it"),
        _ if line.contains("--device cuda") => Some("needs an NVIDIA GPU"),
        "kernels check" if !compiles && !line.contains("--device cpu") => Some("needs NVRTC"),
        _ => None,
    }
}

/// The help of every subcommand ends with an example, which runs as printed in an empty folder.
#[test]
fn every_help_has_an_example_that_runs() {
    let binary = reel().get_program().to_os_string();
    let folder = std::path::Path::new(&binary).parent().expect("a folder").to_path_buf();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut found = Vec::new();
    helps(&[], &mut found);
    assert!(found.len() >= 30, "{}", found.len());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(Help { command, text }) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(script) = example(text) else { panic!("reel {command} --help has no example") };
            assert!(script.contains(&format!("reel {command}")) || command.is_empty(), "{command}: {script}");
            let runs = |line: &&str| match why_not_run(command, line) {
                None => true,
                Some(reason) => {
                    println!("skipped: {line}: {reason}");
                    false
                }
            };
            let script: Vec<&str> = script.lines().filter(runs).collect();
            let folder = tempfile::tempdir().expect("a folder");
            let out = Command::new("sh")
                .args(["-euc", &script.join("\n")])
                .env("PATH", &path)
                .envs(reel().get_envs().filter_map(|(name, value)| Some((name, value?))))
                .current_dir(folder.path())
                .output()
                .expect("sh starts");
            assert!(out.status.success(), "{command}: {script:?}\n{}", String::from_utf8_lossy(&out.stderr));
            assert!(script.is_empty() || !out.stdout.is_empty(), "{command}: {script:?}\nprinted nothing");
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn tokenize_error_names_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = support::tiny_model(folder.path());
    std::fs::write(folder.path().join("texts.jsonl"), "\"good\"\n\nnot json\n").expect("written");
    let got = run_in(folder.path(), ["tokenize", "--model", &tiny.display().to_string(), "--file", "texts.jsonl"]);
    got.assert_refused(1, &["texts.jsonl:3"]);
}
