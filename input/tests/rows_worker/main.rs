//! Tests the worker that decodes Parquet and Arrow files, from outside the crate. This test program starts itself as
//! the worker, as the binary `reel` does. It can also behave like a broken worker. With the arguments `measure FILE`
//! it compares the times of opening a file in this process and in a worker.
//!
//! The program does not use the test harness, because it also runs as the worker.

mod damage;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use reel_input::rows::Table;
use reel_input::rows::worker::WORKER;
use reel_support::worker::{WorkerProgram, set_worker_program};

fn main() -> ExitCode {
    if let Some(code) = reel_support::worker::run_if_worker(&[&WORKER]) {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__play") => return play(&args[2]),
        Some("__open-and-wait") => return open_and_wait(Path::new(&args[2])),
        Some("measure") => return measure(Path::new(&args[2])),
        // `cargo test -- --list` and other tools ask for the list of tests with this argument. The list is empty.
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let tests: [(&str, fn()); 13] = [
        ("rows_are_those_of_this_process", rows_are_those_of_this_process),
        ("errors_of_a_file_are_those_of_this_process", errors_of_a_file_are_those_of_this_process),
        ("page_that_claims_all_memory_is_named", damage::page_that_claims_all_memory_is_named),
        ("page_with_a_damaged_header_is_named", damage::page_with_a_damaged_header_is_named),
        ("deep_schemas_are_refused", damage::deep_schemas_are_refused),
        ("broken_workers_give_one_line", broken_workers_give_one_line),
        ("killed_worker_is_replaced_once", killed_worker_is_replaced_once),
        ("file_is_given_up_after_three_timeouts", file_is_given_up_after_three_timeouts),
        ("worker_has_no_other_files_and_dies_with_its_caller", worker_has_no_other_files_and_dies_with_its_caller),
        ("workers_end_with_the_last_table", workers_end_with_the_last_table),
        ("damaged_files_never_end_the_caller", damage::damaged_files_never_end_the_caller),
        ("changed_bytes_never_end_the_caller", damage::changed_bytes_never_end_the_caller),
        ("damaged_metadata_never_ends_the_caller", damage::damaged_metadata_never_ends_the_caller),
    ];
    let wanted = args.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            set_worker_program(WorkerProgram::new(me()));
            // A failing test panics, which prints its location and ends the program with an error.
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Returns the path of a file in the folder `tests/golden/data`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

/// Checks an error message about `file` and returns it without the path.
fn one_line(error: impl std::fmt::Display, file: &Path) -> String {
    let text = error.to_string();
    let rest = text.strip_prefix(&*file.to_string_lossy()).unwrap_or_else(|| panic!("{text}"));
    assert!(!rest.contains('\n') && rest.contains("; "), "{text}");
    rest.to_string()
}

/// Returns the running child processes of a process.
fn children_of(process: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    children.flat_map(|text| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

/// Behaves like a broken worker. `part` is the name of the defect.
fn play(part: &str) -> ExitCode {
    let say = |bytes: &[u8]| {
        let mut caller = UnixStream::from(rustix::io::dup(rustix::stdio::stdin()).unwrap());
        let _ = caller.write_all(bytes);
        std::thread::sleep(Duration::from_secs(600));
    };
    let message =
        |header: u64, body: u64, text: &str| [&header.to_le_bytes()[..], &body.to_le_bytes(), text.as_bytes()].concat();
    match part {
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "abort" => std::process::abort(),
        "exit" => {
            eprintln!("a message of its own");
            return ExitCode::from(3);
        }
        "garbage" => say(&[0x99; 64]),
        "long message" => say(&message(u64::MAX, 0, "")),
        "long rows" => say(&message(12, u64::MAX, r#"{"Rows":[1]}"#)),
        "invalid JSON" => say(&message(2, 0, "{]")),
        "other rows" => say(&message(12, 2, r#"{"Rows":[1]}{}"#)),
        "another reply" => say(&message(5, 2, r#""Row"{}"#)),
        // Works correctly while the file `flag` is empty.
        flag if flag.ends_with(".flag") => {
            if std::fs::read(flag).unwrap().is_empty() {
                return (WORKER.main)();
            }
            std::thread::sleep(Duration::from_secs(600));
        }
        // Kills itself at its first start and works afterwards. The length of the file `counter` is the number of
        // starts.
        counter => {
            let starts = std::fs::read(counter).unwrap().len() + 1;
            std::fs::write(counter, vec![b'x'; starts]).unwrap();
            if starts == 1 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            }
            return (WORKER.main)();
        }
    }
    ExitCode::SUCCESS
}

fn player(part: &str) -> WorkerProgram {
    let args = vec!["__play".to_string(), part.to_string()];
    WorkerProgram { args, timeout: Duration::from_millis(500), ..WorkerProgram::new(me()) }
}

/// Opens a file whose media stay in it, prints the id of the worker process, and waits.
fn open_and_wait(path: &Path) -> ExitCode {
    set_worker_program(WorkerProgram::new(me()));
    let _other = std::fs::File::open(me()).unwrap();
    let table = Table::open(path).unwrap();
    println!("{}", children_of(std::process::id())[0]);
    std::thread::sleep(Duration::from_secs(600));
    drop(table);
    ExitCode::SUCCESS
}

/// Prints the times of opening a file in this process and in a worker, alternately.
fn measure(path: &Path) -> ExitCode {
    let time = |what: &str, worker: bool| {
        let begun = Instant::now();
        // Each opening of a file makes a new decoder, so no measurement uses data that an earlier one has decoded.
        let table = match worker {
            true => Table::open(path),
            false => Table::open_in_this_process(path),
        };
        let table = table.unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        println!("{what}: {} rows in {seconds:.3} s: {:.0} rows/s", table.len(), table.len() as f64 / seconds);
    };
    set_worker_program(WorkerProgram::new(me()));
    for _ in 0..4 {
        time("this process", false);
        time("worker", true);
    }
    ExitCode::SUCCESS
}

fn rows_are_those_of_this_process() {
    for name in ["datasets.parquet", "types_v1.parquet", "types_v2.parquet", "saved", "saved_splits"] {
        let path = golden(name);
        let here = Table::open_in_this_process(&path).unwrap();
        let there = Table::open(&path).unwrap();
        assert_eq!((here.len(), here.fingerprint()), (there.len(), there.fingerprint()), "{name}");
        for row in 0..here.len() {
            assert_eq!(here.value(row).unwrap(), there.value(row).unwrap(), "{name}: row {row}");
            assert_eq!(here.location(row), there.location(row));
        }
    }
    let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap();
    assert_eq!(Table::open(&golden("datasets.parquet")).unwrap().value(0).unwrap(), expected["datasets"][0]);
}

fn errors_of_a_file_are_those_of_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b\nc.parquet");
    let content = std::fs::read(golden("types_v2.parquet")).unwrap();
    for length in [4, 12, content.len() - 1, content.len()] {
        let mut content = content[..length].to_vec();
        if length > 12 {
            content[length - 9] ^= 0xff;
        }
        std::fs::write(&path, &content).unwrap();
        let here = Table::open_in_this_process(&path).map(drop).map_err(|e| e.to_string());
        assert_eq!(Table::open(&path).map(drop).map_err(|e| e.to_string()), here);
        assert!(here.is_err());
    }
    let e = Table::open(&dir.path().join("none.parquet")).unwrap_err();
    assert!(one_line(e, &dir.path().join("none.parquet")).contains("there is no such file"));
}

fn broken_workers_give_one_line() {
    let path = golden("types_v1.parquet");
    for (part, wanted) in [
        ("sleep", "decoding made no progress for 0.5 s"),
        ("abort", "the process that decodes the file crashed (signal 6)"),
        ("exit", "the process that decodes the file exited with code 3 (a message of its own)"),
        ("garbage", "invalid reply"),
        ("long message", "invalid reply"),
        ("long rows", "invalid reply"),
        ("invalid JSON", "invalid reply"),
        ("other rows", "invalid reply"),
        ("another reply", "invalid reply"),
    ] {
        set_worker_program(player(part));
        let e = one_line(Table::open(&path).unwrap_err(), &path);
        assert!(e.contains(wanted), "{part}: {e}");
    }
    set_worker_program(WorkerProgram::new("/does/not/exist"));
    let e = one_line(Table::open(&path).unwrap_err(), &path);
    assert!(e.contains("/does/not/exist cannot be started"), "{e}");
    assert!(children_of(std::process::id()).is_empty());
}

fn killed_worker_is_replaced_once() {
    let counter = tempfile::NamedTempFile::new().unwrap();
    let program = WorkerProgram { timeout: Duration::from_secs(60), ..player(counter.path().to_str().unwrap()) };
    set_worker_program(program);
    let table = Table::open(&golden("datasets.parquet")).unwrap();
    assert_eq!(std::fs::read(counter.path()).unwrap().len(), 2);
    // An idle worker that has died is replaced too.
    kill_workers();
    table.value(0).unwrap();
    assert_eq!(std::fs::read(counter.path()).unwrap().len(), 3);
}

fn kill_workers() {
    for worker in children_of(std::process::id()) {
        let worker = rustix::process::Pid::from_raw(worker as i32).unwrap();
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    }
}

fn file_is_given_up_after_three_timeouts() {
    let flag = tempfile::Builder::new().suffix(".flag").tempfile().unwrap();
    set_worker_program(player(flag.path().to_str().unwrap()));
    let path = golden("datasets.parquet");
    let table = Table::open(&path).unwrap();
    table.value(0).unwrap();
    std::fs::write(flag.path(), "x").unwrap();
    kill_workers();
    for attempt in 0..5 {
        let e = one_line(table.value(0).unwrap_err(), &path);
        let wanted = match attempt {
            0..3 => ": row 1: is damaged, or its disk is too slow: decoding made no progress for 0.5 s",
            _ => ": is not decoded any more: decoding exceeded its time limit 3 times",
        };
        assert!(e.starts_with(wanted), "{attempt}: {e}");
    }
}

fn worker_has_no_other_files_and_dies_with_its_caller() {
    let file = golden("datasets.parquet");
    let mut caller = Command::new(me()).arg("__open-and-wait").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(caller.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let worker = PathBuf::from("/proc").join(line.trim());
    let files: Vec<PathBuf> = std::fs::read_dir(worker.join("fd"))
        .unwrap()
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    let file = file.canonicalize().unwrap();
    for opened in &files {
        let text = opened.to_string_lossy();
        let is_own = text == "/dev/null" || text.starts_with("pipe:") || text.starts_with("socket:");
        assert!(is_own || *opened == file, "{files:?}");
    }
    // The worker has its own process group, so Ctrl-C in a terminal reaches only the caller.
    let stat = std::fs::read_to_string(worker.join("stat")).unwrap();
    let group = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap().to_string();
    assert_eq!(group, line.trim());
    caller.kill().unwrap();
    caller.wait().unwrap();
    let begun = Instant::now();
    while worker.join("exe").read_link().is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the worker goes on without its caller");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn workers_end_with_the_last_table() {
    let text = Table::open(&golden("saved")).unwrap();
    assert!(children_of(std::process::id()).is_empty());
    let media = Table::open(&golden("datasets.parquet")).unwrap();
    let again = Table::open(&golden("datasets.parquet")).unwrap();
    assert_eq!(children_of(std::process::id()).len(), 1);
    std::thread::scope(|scope| {
        for table in [&media, &again, &media, &text] {
            scope.spawn(move || (0..200).for_each(|i| drop(table.value(i % table.len()).unwrap())));
        }
    });
    assert!((1..=3).contains(&children_of(std::process::id()).len()));
    drop(media);
    assert!(!children_of(std::process::id()).is_empty());
    drop(again);
    assert!(children_of(std::process::id()).is_empty());
}
