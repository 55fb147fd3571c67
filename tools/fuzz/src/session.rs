//! Runs libFuzzer on one target in this process. A failing input ends the process: a panic hook aborts it, an
//! allocation beyond the limit fails, and libFuzzer ends it after the time limit.

use std::alloc::System;
use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};

use anyhow::{Context, Result, bail};
use cap::Cap;

use crate::targets::{FuzzTarget, PRINTS_MESSAGES, Runner, repository_path};

/// Maximum heap bytes that an input may take.
const MAX_INPUT_BYTES: usize = 512 << 20;

/// Stack size of the thread that runs an input: the default of Rust's threads, on which training parses rows.
const STACK_BYTES: usize = 2 << 20;

/// The file in the worker's folder that holds the current input. It names the input of a failure in every case: after
/// a stack overflow libFuzzer cannot write the input.
pub const INPUT_FILE: &str = "input";

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// The running target, and the file to which each input is written.
static SESSION: Mutex<Option<(Runner, PathBuf)>> = Mutex::new(None);

/// Counters that libFuzzer reads beside those of the code, by the name of their section. Each seed counts in one of
/// them: libFuzzer mutates no input that counts nowhere, and a program without coverage counters has no others.
// SAFETY: libFuzzer reads and clears the bytes of this section, and every byte is a valid counter.
#[allow(unsafe_code)]
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static SEED_COUNTERS: [AtomicU8; 256] = [const { AtomicU8::new(0) }; 256];

/// Number of seeds that libFuzzer has not run yet.
static SEEDS_LEFT: AtomicUsize = AtomicUsize::new(0);

// Defines the function that libFuzzer calls with each input, and a panic hook that aborts the process.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    run_input(input);
    if let Ok(left) = SEEDS_LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
        SEED_COUNTERS[left % SEED_COUNTERS.len()].store(1, Relaxed);
    }
});

/// Runs one input. Returns whether the parser accepted it.
fn run_input(input: &[u8]) -> bool {
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((runner, file)) = session.as_mut() else { return false };
    fs::write(file, input).expect("the worker's folder is writable");
    let _ = ALLOCATOR.set_limit(usize::MAX);
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + MAX_INPUT_BYTES);
    let is_accepted = scope(|scope| {
        let thread = Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || runner(input).is_some());
        thread.expect("a thread starts").join().expect("the panic hook ends the process")
    });
    if PRINTS_MESSAGES.load(Relaxed) {
        println!("{}", if is_accepted { "accepted" } else { "refused" });
    }
    is_accepted
}

/// Fuzzes a target with libFuzzer's `flags`. `folder` receives the files of inputs. Returns false if an input failed;
/// most failures end the process instead.
///
/// # Errors
/// The target cannot be prepared, or the parser refuses a seed: inputs made from such a seed test little.
pub fn fuzz(target: &FuzzTarget, folder: &Path, mut flags: Vec<String>) -> Result<bool> {
    open(target, folder)?;
    libfuzzer_sys::initialize(std::ptr::null(), std::ptr::null());
    let seeds = seed_files(target)?;
    for seed in &seeds {
        if !run_input(&fs::read(seed).with_context(|| seed.display().to_string())?) {
            bail!("{}: the target refuses this seed", seed.display());
        }
    }
    // Before the seeds libFuzzer runs an empty input.
    SEEDS_LEFT.store(seeds.len() + 1, Relaxed);
    let dictionary = folder.join("dictionary");
    let words = ["common", target.name].map(|name| repository_path(&format!("tools/fuzz/words/{name}")));
    fs::write(&dictionary, words.iter().filter_map(|file| fs::read_to_string(file).ok()).collect::<String>())?;
    let seeds = seeds.iter().map(|seed| seed.display().to_string()).collect::<Vec<_>>().join(",");
    flags.extend([
        format!("-seed_inputs={seeds}"),
        format!("-dict={}", dictionary.display()),
        format!("-artifact_prefix={}/", folder.display()),
        "-keep_seed=1".to_string(),
        "-max_len=1048576".to_string(),
        "-print_final_stats=1".to_string(),
    ]);
    drive(flags)
}

/// Runs the input in `file` once and prints the parser's messages. Returns false if the input failed.
pub fn run_file(target: &FuzzTarget, folder: &Path, timeout: String, file: &Path) -> Result<bool> {
    PRINTS_MESSAGES.store(true, Relaxed);
    open(target, folder)?;
    fs::metadata(file).with_context(|| file.display().to_string())?;
    drive(vec![timeout, format!("-artifact_prefix={}/", folder.display()), file.display().to_string()])
}

fn open(target: &FuzzTarget, folder: &Path) -> Result<()> {
    let files = folder.join("files");
    fs::create_dir_all(&files)?;
    let runner = (target.open)(files)?;
    *SESSION.lock().unwrap_or_else(PoisonError::into_inner) = Some((runner, folder.join(INPUT_FILE)));
    Ok(())
}

/// Returns the files of a target's folder in `tools/fuzz/seeds` and the files that the target names, in a fixed order.
/// Folders of golden files also have the expected outputs, which are safetensors files.
fn seed_files(target: &FuzzTarget) -> Result<Vec<PathBuf>> {
    let own = format!("tools/fuzz/seeds/{}", target.name);
    let mut files = Vec::new();
    for path in target.seeds.iter().chain([&&own[..]]).map(|name| repository_path(name)) {
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() {
            let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
            files.extend(entries.into_iter().filter(|file| file.extension().is_none_or(|end| end != "safetensors")));
        }
    }
    files.sort();
    Ok(files)
}

/// Calls libFuzzer with the arguments of its command line.
#[allow(unsafe_code)]
fn drive(flags: Vec<String>) -> Result<bool> {
    unsafe extern "C" {
        fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int;
        fn LLVMFuzzerRunDriver(
            argc: *mut c_int,
            argv: *mut *mut *mut c_char,
            run: unsafe extern "C" fn(*const u8, usize) -> c_int,
        ) -> c_int;
    }
    let arguments =
        ["reel-fuzz".to_string()].into_iter().chain(flags).map(CString::new).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    pointers.push(std::ptr::null_mut());
    let (mut count, mut start) = (arguments.len() as c_int, pointers.as_mut_ptr());
    // SAFETY: `argc` and `argv` are those of a C program and outlive the call; libFuzzer does not write to the texts.
    Ok(unsafe { LLVMFuzzerRunDriver(&mut count, &mut start, LLVMFuzzerTestOneInput) } == 0)
}
