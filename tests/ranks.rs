//! `reel sft` as several processes (ranks), started by `--gpus` or with the environment variables of other launchers.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use rank_runs::{SFT_ARGS, assert_same_results, mpirun, run_sft, sft_command};
use sft_rows::{copy_test_media, media_question_row, training_folder};
use support::{FinishedRun, file_names_in, finished_run, reel, run, run_in};

#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let w = training_folder(9);
    copy_test_media(w.path());
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    let more = [
        media_question_row("video", "good.mp4"),
        media_question_row("image", "missing.png"),
        media_question_row("image", "good.png"),
    ]
    .concat();
    fs::write(w.path().join("media.jsonl"), text + &more).expect("written");
    let runs: [(&str, &[&str], &[&str]); 5] = [
        ("full", &[], &["2", "3", "4", "8"]),
        ("bf16", &["--dtype", "bf16", "--optim", "adamw-8bit"], &["3"]),
        ("lora", &["--lora-r", "4", "--lora-target-modules", "all-linear"], &["2"]),
        ("packing", &["--packing", "--max-length", "60"], &["2"]),
        // The last step has fewer micro-batches than the others; a row that cannot be used is skipped.
        (
            "media",
            &["--data", "media.jsonl", "--num-train-epochs", "1", "--max-pixels", "12288", "--min-pixels", "4096"],
            &["3"],
        ),
    ];
    for (name, options, sizes) in runs {
        let options = [&["--max-steps", "2"], options].concat();
        let one = format!("{name}1");
        let printed = run_sft(w.path(), &one, &options);
        for size in sizes {
            let out = format!("{name}{size}");
            let done = run_sft(w.path(), &out, &[&options[..], &["--gpus", size]].concat());
            assert_eq!(done.ok(), printed.ok().replace(&one, &out), "{name}");
            assert_same_results(&w.path().join(&one), &w.path().join(&out), "checkpoint-2");
            let skipped = |out: &str| fs::read_to_string(w.path().join(out).join("skipped.jsonl")).expect("a list");
            assert_eq!(skipped(&out), skipped(&one), "{name}");
            assert_eq!(skipped(&one).is_empty(), name != "media", "{name}: {}", skipped(&one));
            let left = file_names_in(&w.path().join(&out));
            assert!(!left.iter().any(|file| file.starts_with("ranks-")), "{left:?}");
        }
    }
}

#[test]
fn a_run_changes_its_number_of_processes_at_a_resume() {
    let w = training_folder(9);
    run_sft(w.path(), "straight", &["--max-steps", "6"]).ok();
    for (steps, gpus) in [("2", "2"), ("4", "1"), ("6", "3")] {
        let more: &[&str] = if steps == "2" { &[] } else { &["--resume-from-checkpoint", "last"] };
        run_sft(w.path(), "changing", &[&["--max-steps", steps, "--gpus", gpus], more].concat()).ok();
    }
    assert_same_results(&w.path().join("straight"), &w.path().join("changing"), "checkpoint-6");
}

/// Starts two processes with the environment variables `variables(rank)` and the options `more(rank)`, and returns what
/// they print.
fn started_with(
    folder: &Path,
    out: &str,
    variables: impl Fn(usize) -> Vec<(&'static str, String)>,
    more: impl Fn(usize) -> Vec<&'static str>,
) -> [FinishedRun; 2] {
    let start = |rank| {
        let mut command = sft_command(folder, out, &[&["--max-steps", "2"][..], &more(rank)].concat());
        command.envs(variables(rank)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    };
    [0, 1].map(start).map(|child| finished_run(child.wait_with_output().expect("it ends")))
}

/// The variables of torchrun for two processes of this machine.
fn torchrun_variables(rank: usize) -> Vec<(&'static str, String)> {
    let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)];
    let mut all: Vec<_> = numbers.into_iter().map(|(name, value)| (name, value.to_string())).collect();
    let texts = [("TORCHELASTIC_RUN_ID", "none"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")];
    all.extend(texts.map(|(name, value)| (name, value.to_string())));
    all.push(("TORCHELASTIC_RESTART_COUNT", "0".into()));
    all
}

#[test]
fn launchers_start_processes_by_their_variables() {
    let w = training_folder(9);
    run_sft(w.path(), "one", &["--max-steps", "2"]).ok();
    let text = |value: &str| value.to_string();
    let deepspeed = |rank: usize| {
        let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_SIZE", 2)];
        let more = [("CROSS_RANK", 0), ("CROSS_SIZE", 1), ("MASTER_PORT", 29500)];
        numbers.into_iter().chain(more).map(|(name, value)| (name, value.to_string())).collect::<Vec<_>>()
    };
    let open_mpi = |rank: usize| {
        vec![
            ("OMPI_COMM_WORLD_RANK", rank.to_string()),
            ("OMPI_COMM_WORLD_SIZE", text("2")),
            ("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string()),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", text("2")),
            ("PMIX_NAMESPACE", text("prterun-host-123@1")),
        ]
    };
    let srun = |rank: usize| {
        vec![
            ("SLURM_PROCID", rank.to_string()),
            ("SLURM_LOCALID", rank.to_string()),
            ("SLURM_STEP_NUM_TASKS", text("2")),
            ("SLURM_STEP_TASKS_PER_NODE", text("2")),
            ("SLURM_NODEID", text("0")),
            ("SLURM_JOB_ID", text("17")),
            ("SLURM_STEP_ID", text("0")),
        ]
    };
    type Variables<'a> = &'a dyn Fn(usize) -> Vec<(&'static str, String)>;
    let launchers: [(&str, Variables); 4] =
        [("torchrun", &torchrun_variables), ("deepspeed", &deepspeed), ("mpirun", &open_mpi), ("srun", &srun)];
    for (name, variables) in launchers {
        let [first, second] = started_with(w.path(), name, variables, |_| Vec::new());
        assert!(first.ok().starts_with(&format!("{name}: 2 steps, ")), "{}", first.stdout);
        assert_eq!((second.ok(), second.stderr.as_str()), ("", ""), "{name}");
        assert_same_results(&w.path().join("one"), &w.path().join(name), "checkpoint-2");
        let doctor = finished_run(reel().arg("doctor").envs(variables(1)).output().expect("the binary starts"));
        assert!(doctor.ok().contains("rank 1 of 2, 1 of 2 on this machine, started by "), "{name}: {}", doctor.stdout);
        // The test started the processes without mpirun, so data goes by sockets instead of MPI.
        assert!(doctor.stdout.contains("; data between CPUs by sockets"), "{name}: {}", doctor.stdout);
    }
}

/// Ranks that differ in an option, the data, the weights or the instruction set would train a mixture. Options that
/// describe the machine may differ.
#[test]
fn ranks_with_other_options_or_files_are_refused_in_one_line() {
    let w = training_folder(9);
    run_in(w.path(), ["init", "--preset", "tiny", "--seed", "77", "--out", "other"]).ok();
    let rows = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    fs::write(w.path().join("other.jsonl"), rows.replace("3 + 3", "3 * 2")).expect("written");
    let cases: [(&str, [&str; 2]); 7] = [
        ("--learning-rate: is 0.1 on rank 1 (", ["--learning-rate", "0.1"]),
        ("--seed: is 9 on rank 1 (", ["--seed", "9"]),
        ("--lora-r: is 4 on rank 1 (", ["--lora-r", "4"]),
        ("--zero-stage: is 3 on rank 1 (", ["--zero-stage", "3"]),
        ("--gradient-accumulation-steps: is 1 on rank 1 (", ["--gradient-accumulation-steps", "1"]),
        ("fingerprint of model.safetensors in --model: is ", ["--model", "other"]),
        ("fingerprint of the rows of --data: is ", ["--data", "other.jsonl"]),
    ];
    for (at, (starts, of_rank_1)) in cases.into_iter().enumerate() {
        let shares: [&[&'static str]; 2] = [&[], &["--lora-target-modules", "all-linear", "--lora-r", "2"]];
        for shared in shares {
            if !shared.is_empty() && !of_rank_1[0].starts_with("--model") {
                continue;
            }
            let out = format!("refused{at}");
            let options = |rank: usize| [shared, if rank == 1 { &of_rank_1[..] } else { &[] }].concat();
            for done in started_with(w.path(), &out, torchrun_variables, options) {
                assert_eq!(done.code, Some(1), "{}", done.stderr);
                let line = done.stderr.trim_end();
                assert!(line.lines().count() == 1 && line.starts_with(&format!("error: {starts}")), "{line}");
                assert!(line.contains(" on rank 1 (") && line.contains(" on rank 0; start all ranks with"), "{line}");
            }
            assert!(!w.path().join(&out).join("metrics.jsonl").exists());
        }
    }
    let other_machine = |rank: usize| {
        let isa = ("REEL_CPU", if rank == 0 { "plain" } else { "avx2" }.to_string());
        [torchrun_variables(rank), vec![isa]].concat()
    };
    let [first, _] = started_with(w.path(), "isa", other_machine, |_| Vec::new());
    assert!(first.stderr.contains("instruction set: is avx2 on rank 1 ("), "{}", first.stderr);
    let own =
        |rank| [&["--threads", "1", "--rank-ports", "1024-65535"][..], if rank == 0 { &["--quiet"] } else { &[] }];
    for done in started_with(w.path(), "allowed", torchrun_variables, |rank| own(rank).concat()) {
        done.ok();
    }
}

/// Each machine starts its part of the processes. The machines are told apart by `--nodes` and `--node-rank`, or by the
/// variables of a launcher that starts one process on each, such as a PyTorchJob.
#[test]
fn several_machines_start_their_processes_without_torchrun() {
    let w = training_folder(9);
    run_sft(w.path(), "one", &["--max-steps", "2"]).ok();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port").port();
    let rendezvous: &str = format!("127.0.0.1:{port}").leak();
    let by_options = |node: usize| {
        let all = ["--gpus", "2", "--nodes", "2", "--rendezvous", rendezvous, "--node-rank"];
        [&all[..], &[["0", "1"][node]]].concat()
    };
    let pods = |pod: usize| {
        let texts = [("MASTER_ADDR", "127.0.0.1".to_string()), ("MASTER_PORT", "23456".to_string())];
        [vec![("RANK", pod.to_string()), ("WORLD_SIZE", "2".into())], texts.to_vec()].concat()
    };
    let runs = [
        ("nodes", started_with(w.path(), "nodes", |_| Vec::new(), by_options)),
        ("pods", started_with(w.path(), "pods", pods, |_| vec!["--gpus", "2"])),
    ];
    for (out, [first, second]) in runs {
        assert!(first.ok().starts_with(&format!("{out}: 2 steps, ")), "{}", first.stdout);
        assert_eq!(second.ok(), "", "{out}");
        assert_same_results(&w.path().join("one"), &w.path().join(out), "checkpoint-2");
    }
    let refused = |options: &[&str], words: &[&str]| {
        run_sft(w.path(), "x", options).assert_refused(2, words);
    };
    refused(&["--nodes", "2", "--node-rank", "2"], &["--node-rank: is 2, but --nodes is 2; give 0 to 1"]);
    refused(&["--nodes", "2"], &["--node-rank"]);
    refused(&["--rendezvous", "host:1"], &["--nodes"]);
    refused(&["--rank-ports", "9-8"], &["--rank-ports: is \"9-8\"", "29500-29507"]);
}

/// A packed run without `--max-steps` reads all rows before the first step. The ranks share this scan: each row is
/// read by one rank.
#[test]
fn ranks_share_the_scan_before_a_packed_run() {
    let w = training_folder(9);
    copy_test_media(w.path());
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    let more = [media_question_row("image", "missing.png"), media_question_row("image", "good.png")].concat();
    fs::write(w.path().join("media.jsonl"), more + &text).expect("written");
    let options = ["--data", "media.jsonl", "--packing", "--max-length", "60", "--num-train-epochs", "2"];
    let options = [&options[..], &["--gradient-accumulation-steps", "3", "--save-steps", "1"]].concat();
    let printed = run_sft(w.path(), "one", &options);
    for size in ["2", "3"] {
        let done = run_sft(w.path(), size, &[&options[..], &["--gpus", size]].concat());
        assert_eq!(done.ok(), printed.ok().replace("one", size));
        assert!(done.stderr.contains("of 11 rows are skipped"), "{}", done.stderr);
        assert_same_results(&w.path().join("one"), &w.path().join(size), "checkpoint-2");
    }
}

/// The ranks share the check of the rows. Rank 0 writes the same list and prints the same messages as a single
/// process.
#[test]
fn ranks_share_a_check_of_data() {
    let w = training_folder(9);
    let at = w.path();
    copy_test_media(at);
    let text = fs::read_to_string(at.join("rows.jsonl")).expect("rows");
    let bad = [
        media_question_row("image", "missing.png"),
        media_question_row("video", "good.png"),
        "{\"messages\": []}\n".into(),
    ]
    .concat();
    let good = [media_question_row("video", "good.mp4"), media_question_row("image", "good.png")].concat();
    fs::write(at.join("media.jsonl"), bad + &text + &good + &media_question_row("video", "gone.mp4")).expect("written");
    let check = |list: &str, data: &str, gpus: &str| {
        let args = ["sft", "--model", "tiny", "--data", data, "--device", "cpu", "--check-data", "--quarantine", list];
        let gpus: &[&str] = if gpus == "1" { &[] } else { &["--gpus", gpus] };
        finished_run(reel().current_dir(at).args(args).args(gpus).output().expect("the binary starts"))
    };
    let list = |name: &str| fs::read_to_string(at.join(name)).expect("a list");
    let one = check("one.jsonl", "media.jsonl", "1");
    assert!(one.code == Some(1) && list("one.jsonl").lines().count() == 4, "{}", one.stderr);
    for size in ["2", "3"] {
        let (name, of_two) =
            (format!("{size}.jsonl"), |text: &str| text.replace("one.jsonl", &format!("{size}.jsonl")));
        let done = check(&name, "media.jsonl", size);
        assert_eq!((done.code, list(&name)), (Some(1), list("one.jsonl")), "{}", done.stderr);
        let error = one.stderr.lines().find(|line| line.starts_with("error: ")).expect("an error");
        let said: Vec<&str> = done.stderr.lines().filter(|line| line.contains("cannot be used")).collect();
        assert_eq!(said, [format!("[rank 0] {}", of_two(error))], "{}", done.stderr);
        assert!(!file_names_in(at).iter().any(|name| name.starts_with("ranks-") || name.ends_with(".journal")));
    }
    let (one, two) = (check("a.jsonl", "rows.jsonl", "1"), check("b.jsonl", "rows.jsonl", "2"));
    assert_eq!((one.ok(), list("a.jsonl")), (two.ok(), list("b.jsonl")));
    // A run checks its data first and then skips the unusable rows.
    for (out, gpus) in [("run1", "1"), ("run2", "2")] {
        run_sft(at, out, &["--check-data", "--data", "media.jsonl", "--max-steps", "2", "--gpus", gpus]).ok();
        assert_eq!(list(&format!("{out}/quarantine.jsonl")), list("one.jsonl"));
    }
    assert_same_results(&at.join("run1"), &at.join("run2"), "checkpoint-2");
}

/// A row that one rank cannot prepare ends the run. Rank 0 saves the previous steps, as a single process does.
#[test]
fn a_row_that_ends_a_strict_run_is_named_by_each_rank() {
    let w = training_folder(9);
    let text = fs::read_to_string(w.path().join("rows.jsonl")).expect("rows");
    fs::write(w.path().join("strict.jsonl"), text + &media_question_row("image", "missing.png")).expect("written");
    let options = ["--data", "strict.jsonl", "--strict", "--no-shuffle", "--per-device-train-batch-size", "1"];
    let options = [&options[..], &["--gradient-accumulation-steps", "4", "--save-steps", "100"]].concat();
    let one = run_sft(w.path(), "one", &options);
    assert!(one.code == Some(1) && one.stderr.contains("strict.jsonl:10: "), "{}", one.stderr);
    let error = one.stderr.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(error.contains("resume with --resume-from-checkpoint last"), "{error}");
    let several = run_sft(w.path(), "several", &[&options[..], &["--gpus", "3"]].concat());
    assert_eq!(several.code, Some(1));
    for rank in 0..3 {
        let start = format!("[rank {rank}] error: ");
        let line = several.stderr.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
        assert!(line.contains("strict.jsonl:10: "), "{rank}: {}", several.stderr);
        assert!(rank > 0 || line.ends_with(error), "{}", several.stderr);
    }
    assert_same_results(&w.path().join("one"), &w.path().join("several"), "checkpoint-2");
}

/// The processes are started by the mpirun of Open MPI, which `./x setup` installs.
#[test]
fn mpirun_starts_the_processes() {
    let w = training_folder(9);
    run_sft(w.path(), "one", &["--max-steps", "2"]).ok();
    let run = sft_command(w.path(), "two", &["--max-steps", "2"]);
    let done = mpirun(&["-n", "2"], &run)
        .output()
        .expect("mpirun starts; ./x setup installs it (Debian's package openmpi-bin)");
    assert!(finished_run(done).ok().starts_with("two: 2 steps, "));
    assert_same_results(&w.path().join("one"), &w.path().join("two"), "checkpoint-2");
}

#[test]
fn what_several_processes_cannot_do_is_refused_in_one_line() {
    let w = training_folder(9);
    let more: [(&[&str], &[&str]); 2] = [
        (
            &["--gradient-accumulation-steps", "2", "--gpus", "3"],
            &["--gradient-accumulation-steps: is 2", "at least 3"],
        ),
        (&["--device", "sim", "--gpus", "2"], &["--device", "CPUs"]),
    ];
    for (options, words) in more {
        // All ranks find the same wrong option. The command prints one message and ends with the exit code of the
        // ranks.
        let done = run_sft(w.path(), "out", options);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        let said: Vec<&str> = done.stderr.lines().filter(|line| line.contains("error: ")).collect();
        assert_eq!(said.len(), 1, "{options:?}: {}", done.stderr);
        assert!(said[0].starts_with("[rank ") && words.iter().all(|word| said[0].contains(word)), "{}", done.stderr);
    }
    // The output folder has files of an earlier run: rank 0 reports this, and the other ranks report that rank 0 has
    // failed.
    run_sft(w.path(), "full", &["--max-steps", "1"]).ok();
    let done = run_sft(w.path(), "full", &["--max-steps", "1", "--gpus", "2"]);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for words in [["[rank 0] error: ", "is not empty"], ["[rank 1] error: rank 0: ", "is not empty"]] {
        assert!(done.stderr.lines().any(|line| words.iter().all(|word| line.contains(word))), "{}", done.stderr);
    }

    let of_two = [("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")];
    let refused = |args: &[&str], words: &[&str]| {
        let done = reel().current_dir(w.path()).args(args).envs(of_two).output().expect("the binary starts");
        let done = finished_run(done);
        assert!(done.code.is_some_and(|code| code == 1 || code == 2), "{}", done.stderr);
        assert!(words.iter().all(|word| done.stderr.contains(word)), "{args:?}: {}", done.stderr);
    };
    refused(
        &["generate", "--model", "tiny", "--prompt", "x"],
        &["reel generate: runs as one process", "rank 0", "torchrun"],
    );
    refused(&[&SFT_ARGS[..], &["--out", "x", "--gpus", "3"]].concat(), &["--gpus: is 3", "has started 2"]);
    let wrong = finished_run(
        reel().arg("doctor").envs([("RANK", "2")]).envs(of_two[1..].to_vec()).output().expect("the binary starts"),
    );
    assert!(wrong.ok().contains("RANK: is 2, but WORLD_SIZE is 2"), "{}", wrong.stdout);
    assert!(run(["doctor"]).ok().contains("one process: no launcher"));
}
