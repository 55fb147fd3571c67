//! Tests the decoding worker from outside. This test program starts itself as the worker, as the binary `reel` does,
//! and can also behave like a broken worker.
//!
//! This program does not use Rust's test harness, because it also runs as the worker.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reel_input::config::Family;
use reel_input::media::encode::{VideoCodec, VideoEncodingOptions, encode_video};
use reel_input::media::frames::FrameView;
use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::video::{self, DecodedVideo};
use reel_input::media::worker::{
    self, DecodeWorker, DiskFrameCache, FrameCache, GPU_VIDEO_WORKER, VIDEO_WORKER, WorkerRequest,
};
use reel_support::error::{Kind, MediaFailure, Result};
use reel_support::worker::{ForkExit, ReplySender, Worker, WorkerKind, WorkerProgram};
use serde_json::{Value, json};

fn main() -> ExitCode {
    if let Some(code) = reel_support::worker::run_if_worker(&[&VIDEO_WORKER, &GPU_VIDEO_WORKER]) {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__gpu") if args.last().is_some_and(|kind| kind == VIDEO_WORKER.name) => return (VIDEO_WORKER.main)(),
        Some("__gpu") => {
            return reel_support::worker::serve(|request, memory, replies| play(&args[2], request, memory, replies));
        }
        Some("__private-memory") => return private_memory(),
        Some("__on-gpu") => return decode_on_gpu(&args[2..]),
        Some("__play") => {
            return reel_support::worker::serve_in_forks(|request, memory, replies| {
                play(&args[2], request, memory, replies)
            });
        }
        Some("__for-this-test-alone") => return (VIDEO_WORKER.main)(),
        Some("__prepared-forks") => return prepared_forks(),
        Some("__not-a-server") => return not_a_server(),
        Some("__few-processes") => {
            forbid_threads();
            return (VIDEO_WORKER.main)();
        }
        Some("__caller-without-processes") => return caller_without_processes(Path::new(&args[2])),
        Some("__abort-first") => {
            return reel_support::worker::serve_in_forks(|request: WorkerRequest, memory, replies| {
                abort_first(&args[2]);
                worker::run_job(request, memory, replies)
            });
        }
        Some("__decode-and-wait") => {
            let _ = player("real worker on a pipe", Duration::from_secs(60)).probe(Path::new(&args[2]));
            return ExitCode::SUCCESS;
        }
        // `cargo test -- --list` and other tools ask for the list of tests with this argument. The list is empty.
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let tests: [(&str, fn()); 21] = [
        ("worker_frames_equal_in_process_frames", worker_frames_equal_in_process_frames),
        ("resized_frames_equal_torch_bicubic", resized_frames_equal_torch_bicubic),
        ("worker_errors_reach_the_caller", worker_errors_reach_the_caller),
        ("hanging_worker_is_killed_at_deadline", hanging_worker_is_killed_at_deadline),
        ("pipes_and_devices_are_refused_before_a_worker_starts", pipes_and_devices_are_refused_before_a_worker_starts),
        ("crash_is_reported_with_signal_or_exit_code", crash_is_reported_with_signal_or_exit_code),
        ("failed_worker_is_replaced_once", failed_worker_is_replaced_once),
        ("lack_of_threads_is_never_blamed_on_the_file", lack_of_threads_is_never_blamed_on_the_file),
        ("invalid_reply_is_refused", invalid_reply_is_refused),
        ("memory_limit_is_enforced", memory_limit_is_enforced),
        ("lack_of_memory_is_never_blamed_on_the_file", lack_of_memory_is_never_blamed_on_the_file),
        ("paths_may_contain_any_bytes", paths_may_contain_any_bytes),
        ("worker_dies_with_its_caller", worker_dies_with_its_caller),
        ("one_server_serves_many_videos", one_server_serves_many_videos),
        ("kept_frames_need_no_worker", kept_frames_need_no_worker),
        ("frames_kept_on_disk_are_equal_and_replaced", frames_kept_on_disk_are_equal_and_replaced),
        ("prepared_forks_are_cancelled_and_survived", prepared_forks_are_cancelled_and_survived),
        ("whatever_a_gpu_fails_at_is_decoded_in_software", whatever_a_gpu_fails_at_is_decoded_in_software),
        ("one_gpu_worker_decodes_many_videos", one_gpu_worker_decodes_many_videos),
        ("private_memory_is_limited", private_memory_is_limited),
        (
            "frames_of_a_stand_in_for_a_gpu_are_those_of_the_software",
            frames_of_a_stand_in_for_a_gpu_are_those_of_the_software,
        ),
    ];
    let wanted = args.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            // A failing test panics; the panic prints its location and ends this program with an error.
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// Aborts the process in the first N calls. `part` holds N and the path of a file that counts the calls.
fn abort_first(part: &str) {
    let (times, path) = part.split_once(' ').unwrap();
    let starts = std::fs::read(path).unwrap_or_default().len() + 1;
    std::fs::write(path, vec![b'x'; starts]).unwrap();
    if starts <= times.parse().unwrap() {
        std::process::abort();
    }
}

/// A worker that is prepared by a number, and whose forks add it to another number, crash, or do not end.
fn prepared_forks() -> ExitCode {
    reel_support::worker::serve_in_prepared_forks(
        |base: u64| Ok(base),
        |base, job: Value| match job.as_u64() {
            Some(number) => Ok(base + number),
            None if job == "abort" => std::process::abort(),
            None if job == "error" => Err(std::io::Error::other("no number")),
            None => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
        },
    )
}

/// The worker answers after each of its forks has failed, and after the caller has cancelled a job, even if the job had
/// ended before.
fn prepared_forks_are_cancelled_and_survived() {
    type Reply = Result<u64, ForkExit>;
    let kind = WorkerKind { name: "prepared", malloc_arenas: "1", main: prepared_forks };
    let args = vec!["__prepared-forks".to_owned()];
    let program = WorkerProgram { args, ..WorkerProgram::of_current_executable() };
    let mut worker = Worker::start(&program, &kind).unwrap();
    let limit = Duration::from_secs(60);
    worker.send(&40, None, limit).unwrap();
    worker.receive::<Result<(), ForkExit>>(0, &mut Vec::new()).unwrap().unwrap();
    for (job, signal, code) in
        [("abort", Some(6), None), ("error", None, Some(1)), ("hang", Some(9), None), ("hang", Some(9), None)]
    {
        worker.send(&job, None, limit).unwrap();
        if job == "hang" {
            worker.job_canceller().unwrap().cancel();
        }
        let exit = worker.receive::<Reply>(0, &mut Vec::new()).unwrap().unwrap_err();
        assert_eq!((exit.signal, exit.code), (signal, code), "{job}");
        assert_eq!(worker.read_stderr().contains("no number"), job == "error");
        worker.send(&2, None, limit).unwrap();
        assert_eq!(worker.receive::<Reply>(0, &mut Vec::new()).unwrap().unwrap(), 42);
        worker.job_canceller().unwrap().cancel();
    }
}

/// Behaves like a program whose libraries are missing: prints an error and exits before it can receive a job.
fn not_a_server() -> ExitCode {
    eprintln!("libavcodec.so: cannot open shared object file");
    ExitCode::from(127)
}

/// Behaves like a broken worker; `part` names the way in which it is broken.
fn play(part: &str, mut request: Value, memory: Option<File>, replies: &mut ReplySender) -> std::io::Result<()> {
    if let Some(log) = part.strip_prefix("log ") {
        // Does what a worker with a GPU does, by the software decoders.
        writeln!(File::options().append(true).open(log)?, "{}", std::process::id())?;
        assert_eq!(request["gpu"].take(), json!(3));
        return worker::run_job(serde_json::from_value(request)?, memory, replies);
    }
    match part {
        "real worker on a pipe" => return open_pipe(request, memory, replies),
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "child sleeps" => drop(Command::new("sleep").arg("600").spawn()?.wait()),
        "no reply" => {}
        "endless error" => loop {
            let _ = std::io::stderr().write_all(&[b'x'; 65536]);
        },
        "garbage" => return replies.send(&json!({"Probed": [1, 2]}), &[]),
        "a body" => return replies.send(&json!("OutOfMemory"), &[0]),
        "another reply" => {
            let info = json!({"codec": "x", "height": 1, "width": 1, "total_frames": 1, "video_fps": 1.0});
            return replies.send(&json!({"Probed": info}), &[]);
        }
        "frames that are not there" => {
            let video = json!({
                "height": 64, "width": 64, "indices": [0, 1], "total_frames": 2, "video_fps": 1.0, "sample_fps": 1.0,
            });
            return replies.send(&json!({"Decoded": video}), &[]);
        }
        "exit 3" => {
            eprintln!("a message of its own");
            std::process::exit(3);
        }
        "abort" => std::process::abort(),
        "panic" => panic!("a bug"),
        "decoder panics" => return replies.send(&json!({"Panicked": "index out of bounds"}), &[]),
        "no threads" => {
            forbid_threads();
            return worker::run_job(serde_json::from_value(request)?, memory, replies);
        }
        _ => std::process::exit(77),
    }
    Ok(())
}

/// Sets the limit of processes and threads so that this process cannot create another one. The limit does not apply to
/// root, so this process becomes another user.
#[allow(unsafe_code)]
fn forbid_threads() {
    let one = rustix::process::Rlimit { current: Some(1), maximum: Some(1) };
    rustix::process::setrlimit(rustix::process::Resource::Nproc, one).unwrap();
    if rustix::process::getuid().is_root() {
        // SAFETY: the function takes a number and changes no memory of this process.
        assert_eq!(unsafe { libc::setuid(54_321) }, 0);
    }
}

/// Decodes a video in a process that may not create further processes, and prints the error.
fn caller_without_processes(video: &Path) -> ExitCode {
    let decoder = DecodeWorker::new(me());
    forbid_threads();
    let error = decoder.probe(video).unwrap_err();
    println!("{}: {error}", if error.kind == Kind::Media(MediaFailure::Worker) { "worker" } else { "another error" });
    ExitCode::SUCCESS
}

/// Answers as the real worker does, but opens the pipe that the environment variable [`PIPE`] names instead of the
/// requested file. Opening the pipe blocks, as a hanging decoder does. (A request cannot name a pipe, because the
/// caller refuses it.)
fn open_pipe(mut request: Value, memory: Option<File>, replies: &mut ReplySender) -> std::io::Result<()> {
    request["path"] = json!({"Unix": std::env::var(PIPE).unwrap().into_bytes()});
    worker::run_job(serde_json::from_value(request)?, memory, replies)
}

/// The environment variable with the path of the pipe that [`open_pipe`] opens.
const PIPE: &str = "REEL_TEST_PIPE";

fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn clip(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../tests/golden/clips", name].iter().collect()
}

/// Returns a `DecodeWorker` that starts this program with the arguments `args`.
fn with_args<const N: usize>(args: [&str; N]) -> DecodeWorker {
    let args = args.map(str::to_owned).to_vec();
    DecodeWorker { program: WorkerProgram { args, ..WorkerProgram::new(me()) }, ..DecodeWorker::new(me()) }
}

/// Returns a `DecodeWorker` whose worker process is broken in the way that `part` names (see [`play`]).
fn player(part: &str, timeout: Duration) -> DecodeWorker {
    let mut player = with_args(["__play", part]);
    player.program.timeout = timeout;
    player
}

fn one_line(error: impl std::fmt::Display, parts: &[&str]) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains("; "), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

fn same(a: &DecodedVideo, b: &DecodedVideo) {
    assert_eq!((a.height, a.width, &a.indices, a.total_frames), (b.height, b.width, &b.indices, b.total_frames));
    assert_eq!((a.video_fps.to_bits(), a.sample_fps.to_bits()), (b.video_fps.to_bits(), b.sample_fps.to_bits()));
    assert!(a.data[..] == b.data[..]);
}

fn worker_frames_equal_in_process_frames() {
    for name in ["h264_bframes_audio.mp4", "h264_rot90.mp4", "mpeg4_odd.avi", "vp9.webm"] {
        for profile in [MediaProfile::Qwen, MediaProfile::Uniform16, MediaProfile::Stride1Fps] {
            let o = MediaOverrides::default();
            let got = DecodeWorker::new(me()).decode(&clip(name), profile, &o).unwrap();
            same(&got, &video::decode(&clip(name), profile, &o).unwrap());
        }
        assert_eq!(DecodeWorker::new(me()).probe(&clip(name)).unwrap(), video::probe(&clip(name)).unwrap());
    }
    let again = DecodeWorker::from_this_program().probe(&clip("vp9.webm")).unwrap();
    assert_eq!(again.codec, "vp9");
}

fn resized_frames_equal_torch_bicubic() {
    let o = MediaOverrides::default();
    let got = DecodeWorker::new(me())
        .decode_resized(&clip("h264_vfr.mp4"), MediaProfile::VideorftTrain.for_family(Family::Qwen25Vl), &o)
        .unwrap();
    let whole = video::decode(&clip("h264_vfr.mp4"), MediaProfile::VideorftTrain, &o).unwrap();
    let view = FrameView::new(&whole.data, whole.indices.len(), whole.height, whole.width).unwrap();
    let resized = reel_input::media::resize::torch_bicubic(view, (got.height, got.width)).unwrap();
    assert_eq!((got.height % 28, got.width % 28), (0, 0));
    assert!(resized.data[..] == got.data[..]);
}

fn worker_errors_reach_the_caller() {
    let decoder = DecodeWorker::new(me());
    for (name, part) in [
        ("bad_zero.mp4", "empty"),
        ("bad_text.mp4", "video"),
        ("bad_cut.mp4", "truncated"),
        ("none.mp4", "no such file"),
    ] {
        let o = MediaOverrides::default();
        one_line(decoder.decode(&clip(name), MediaProfile::VideorftTrain, &o).unwrap_err(), &[name, part]);
    }
    let o = MediaOverrides { nframes: Some(1), ..Default::default() };
    one_line(decoder.decode(&clip("vp9.webm"), MediaProfile::Qwen, &o).unwrap_err(), &["nframes"]);
    one_line(DecodeWorker::new("/no/such/program").probe(&clip("vp9.webm")).unwrap_err(), &["/no/such/program"]);
}

fn hanging_worker_is_killed_at_deadline() {
    let begun = Instant::now();
    let short = Duration::from_millis(300);
    for part in ["sleep", "child sleeps", "no reply", "endless error"] {
        one_line(player(part, short).probe(&clip("vp9.webm")).unwrap_err(), &["vp9.webm", "0.3 s", "--media-timeout"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

fn pipes_and_devices_are_refused_before_a_worker_starts() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let decoder = DecodeWorker::new("no-such-program");
    for path in [&pipe, Path::new("/dev/zero")] {
        one_line(decoder.probe(path).unwrap_err(), &[path.to_str().unwrap(), "is not a regular file"]);
    }
}

fn crash_is_reported_with_signal_or_exit_code() {
    let wait = Duration::from_secs(20);
    one_line(player("abort", wait).probe(&clip("vp9.webm")).unwrap_err(), &["vp9.webm", "signal 6"]);
    one_line(
        player("exit 3", wait).probe(&clip("vp9.webm")).unwrap_err(),
        &["exited with code 3", "a message of its own"],
    );
    one_line(player("panic", wait).probe(&clip("vp9.webm")).unwrap_err(), &["it panicked: a bug"]);
    // If a worker exits without a reply, the error does not blame the file. If the decoder panics, the error blames the
    // file.
    for part in ["panic", "exit 3", "unknown"] {
        let error = player(part, wait).probe(&clip("vp9.webm")).unwrap_err();
        assert!(error.kind == Kind::Media(MediaFailure::Worker), "{error}");
    }
    let error = player("decoder panics", wait).probe(&clip("vp9.webm")).unwrap_err();
    assert!(error.kind == Kind::Media(MediaFailure::File), "{error}");
    one_line(error, &["vp9.webm", "panicked (index out of bounds)", "may be damaged"]);
    let not_a_server = with_args(["__not-a-server"]);
    let failed = not_a_server.probe(&clip("vp9.webm")).unwrap_err();
    one_line(failed, &["vp9.webm", "exited with code 127", "libavcodec.so"]);
    one_line(player("unknown", wait).probe(&clip("vp9.webm")).unwrap_err(), &["code 77"]);
}

fn failed_worker_is_replaced_once() {
    let folder = tempfile::tempdir().unwrap();
    for times in [1, 2] {
        let count = folder.path().join(times.to_string());
        let got = with_args(["__abort-first", &format!("{times} {}", count.display())]).probe(&clip("vp9.webm"));
        match (times, got) {
            (1, got) => assert_eq!(got.unwrap(), video::probe(&clip("vp9.webm")).unwrap()),
            (_, got) => one_line(got.unwrap_err(), &["vp9.webm", "signal 6", ", twice"]),
        }
        assert_eq!(std::fs::read(&count).unwrap().len(), 2, "a killed worker is replaced once");
    }
    let late = player("sleep", Duration::from_millis(300)).probe(&clip("vp9.webm")).unwrap_err();
    one_line(late, &["vp9.webm", "timed out after 0.3 s, twice"]);
}

/// If a limit of processes and threads stops the worker, its server or the caller, the error blames the machine's
/// limits.
fn lack_of_threads_is_never_blamed_on_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = folder.path().join("noise.avi");
    let (n, height, width) = (40, 368, 640);
    let data: Vec<u8> = (0..n * height * width * 3).map(|i| (i as u64 * i as u64 / 7919) as u8).collect();
    let frames = FrameView::new(&data, n, height, width).unwrap();
    // With one group of pictures there is one decoder, which gets all threads. It fails if it cannot create them.
    let encoding = VideoEncodingOptions { gop: Some(40), ..VideoEncodingOptions::new(VideoCodec::Mpeg4, (25, 1)) };
    encode_video(&path, frames, &encoding).unwrap();
    let o = MediaOverrides { nframes: Some(40), ..Default::default() };
    let decoder = DecodeWorker { threads: 4, ..player("no threads", Duration::from_secs(60)) };
    let server = with_args(["__few-processes"]);
    for (error, part) in [
        (decoder.decode(&path, MediaProfile::Qwen, &o).unwrap_err(), "ulimit -u"),
        (decoder.decode_resized(&path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &o).unwrap_err(), "ulimit -u"),
        (server.probe(&path).unwrap_err(), "check the limits of processes"),
    ] {
        assert!(error.kind == Kind::Media(MediaFailure::Worker), "{error}");
        one_line(error, &[part, "Resource temporarily unavailable"]);
    }
    let caller = Command::new(me()).arg("__caller-without-processes").arg(&path).output().unwrap();
    let said = String::from_utf8(caller.stdout).unwrap();
    assert!(said.starts_with("worker: ") && said.contains("ulimit -u"), "{said}");
}

fn invalid_reply_is_refused() {
    let wait = Duration::from_secs(20);
    for part in ["garbage", "a body"] {
        one_line(player(part, wait).probe(&clip("vp9.webm")).unwrap_err(), &["invalid reply"]);
    }
    for part in ["another reply", "frames that are not there"] {
        let got = player(part, wait).decode(&clip("vp9.webm"), MediaProfile::Qwen, &MediaOverrides::default());
        one_line(got.unwrap_err(), &["vp9.webm", "reply"]);
    }
}

fn memory_limit_is_enforced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.avi");
    let (height, width) = (2048, 2048);
    let data = vec![90; 4 * height * width * 3];
    let frames = FrameView::new(&data, 4, height, width).unwrap();
    encode_video(&path, frames, &VideoEncodingOptions::new(VideoCodec::Mpeg4, (2, 1))).unwrap();
    let o = MediaOverrides { nframes: Some(4), ..Default::default() };
    for memory_mib in [1, 8, 24, 40, 60] {
        let decoder = DecodeWorker { memory_mib, ..DecodeWorker::new(me()) };
        let error = decoder.decode(&path, MediaProfile::Qwen, &o).unwrap_err();
        one_line(error, &["memory"]);
    }
    // Some of these memory limits are large enough for the frames but not for decoding; decoding then fails at the
    // worker's address space limit.
    let two = MediaOverrides { nframes: Some(2), ..Default::default() };
    let mut refused = 0;
    for memory_mib in (34..100).step_by(6) {
        let decoder = DecodeWorker { memory_mib, ..DecodeWorker::new(me()) };
        if let Err(error) = decoder.decode(&path, MediaProfile::Qwen, &two) {
            one_line(error, &["memory"]);
            refused += 1;
        }
    }
    assert!(refused > 0);
    let got = DecodeWorker::new(me()).decode(&path, MediaProfile::Qwen, &o).unwrap();
    assert_eq!(got.data.len(), data.len());
}

/// With too little memory, many different things fail: threads, reading, decoding, resizing. The error names the memory
/// limit in each case and never blames the file. An error that has another cause is returned unchanged.
fn lack_of_memory_is_never_blamed_on_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (n, height, width) = (40, 368, 640);
    let data: Vec<u8> = (0..n * height * width * 3).map(|i| (i as u64 * i as u64 / 7919) as u8).collect();
    let frames = FrameView::new(&data, n, height, width).unwrap();
    let mut paths = vec![clip("h264_bframes_audio.mp4"), clip("vp9.webm")];
    for extension in ["ts", "avi"] {
        let path = folder.path().join(format!("noise.{extension}"));
        let codec = VideoCodec::best_available_codec();
        encode_video(&path, frames, &VideoEncodingOptions::new(codec, (25, 1))).unwrap();
        paths.push(path);
    }
    for path in &paths {
        let mut refused = 0;
        for memory_mib in (1..12).chain((12..80).step_by(4)) {
            let decoder = DecodeWorker { memory_mib, threads: 4, ..DecodeWorker::new(me()) };
            let o = MediaOverrides { nframes: Some(8), ..Default::default() };
            let errors = [
                decoder.probe(path).err(),
                decoder.decode(path, MediaProfile::Qwen, &o).err(),
                decoder.decode_resized(path, MediaProfile::Qwen.for_family(Family::Qwen25Vl), &o).err(),
            ];
            for error in errors.into_iter().flatten() {
                one_line(error, &["memory limit", "--media-memory"]);
                refused += 1;
            }
        }
        assert!(refused > 0, "{}", path.display());
    }
    for (name, part) in [("none.mp4", "no such file"), ("bad_zero.mp4", "empty"), (".", "folder")] {
        one_line(DecodeWorker { memory_mib: 1, ..DecodeWorker::new(me()) }.probe(&clip(name)).unwrap_err(), &[part]);
    }
    one_line(DecodeWorker::new(me()).probe(&clip("bad_text.mp4")).unwrap_err(), &["video"]);
}

/// Returns a `DecodeWorker` with a GPU whose worker behaves as `part` names (see [`play`]); its worker for software is
/// the real one.
fn with_gpu(part: &str) -> DecodeWorker {
    DecodeWorker { gpu: Some(3), ..with_args(["__gpu", part]) }
}

/// Frames and errors are those of the software, whether the machine has no GPU, the GPU's driver crashes, hangs or
/// panics, or its worker sends anything else.
fn whatever_a_gpu_fails_at_is_decoded_in_software() {
    let decode = |decoder: &DecodeWorker, name: &str| {
        let o = MediaOverrides { nframes: Some(6), ..Default::default() };
        decoder.decode(&clip(name), MediaProfile::Qwen, &o)
    };
    let mut hanging = with_gpu("sleep");
    hanging.program.timeout = Duration::from_secs(2);
    let real = DecodeWorker { gpu: Some(3), ..DecodeWorker::new(me()) };
    let parts = ["abort", "exit 3", "panic", "garbage", "decoder panics", "another reply"];
    let broken = parts.map(with_gpu);
    let software = DecodeWorker::new(me());
    for name in ["h264_bframes_audio.mp4", "vp9.webm"] {
        let want = decode(&software, name).unwrap();
        for decoder in broken.iter().chain([&real, &hanging]) {
            same(&decode(decoder, name).unwrap(), &want);
        }
    }
    for name in ["bad_cut.mp4", "bad_text.mp4", "no such file.mp4"] {
        let want = decode(&software, name).unwrap_err();
        for decoder in [&real, &broken[0]] {
            let got = decode(decoder, name).unwrap_err();
            assert_eq!((got.kind, got.to_string()), (want.kind, want.to_string()));
        }
    }
}

/// A worker with a GPU is one process for all videos, because opening the GPU takes long.
fn one_gpu_worker_decodes_many_videos() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let decoder = with_gpu(&format!("log {}", log.path().display()));
    let software = DecodeWorker::new(me());
    decoder.check_gpu().unwrap();
    for name in ["h264_709.mp4", "h264_rot90.mp4", "vp9.webm", "h264_709.mp4"] {
        for rules in [MediaProfile::Qwen, MediaProfile::VideorftTrain].map(|p| p.for_family(Family::Qwen25Vl)) {
            let o = MediaOverrides::default();
            let got = decoder.decode_resized(&clip(name), rules, &o).unwrap();
            same(&got, &software.decode_resized(&clip(name), rules, &o).unwrap());
        }
    }
    let jobs = std::fs::read_to_string(log.path()).unwrap();
    let mut processes: Vec<&str> = jobs.lines().collect();
    assert_eq!(processes.len(), 9);
    processes.dedup();
    assert_eq!(processes.len(), 1, "{jobs}");
    DecodeWorker { gpu: None, ..decoder }.check_gpu().unwrap();
    let error = with_gpu("abort").check_gpu().unwrap_err();
    one_line(error, &["decoder nvdec: the decoding worker was killed by signal 6", "nvidia-smi"]);
}

/// FFmpeg's hardware decoder runs with stand-ins for the libraries of NVIDIA's driver. All their pictures are grey, and so
/// are the videos. The frames are those of the software also if the driver refuses a stream, a picture or a copy.
fn frames_of_a_stand_in_for_a_gpu_are_those_of_the_software() {
    let name = "frames_of_a_stand_in_for_a_gpu_are_those_of_the_software";
    let folder = tempfile::tempdir().unwrap();
    for (source, library) in [("cuda.c", "libcuda.so.1"), ("nvcuvid.c", "libnvcuvid.so.1")] {
        let source: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fake_nvdec", source].iter().collect();
        let compiler = Command::new("cc")
            .args(["-w", "-shared", "-fPIC", "-o"])
            .arg(folder.path().join(library))
            .arg(source)
            .status();
        if !compiler.is_ok_and(|status| status.success()) {
            return println!("test {name}: skipped, because there is no C compiler (cc)");
        }
    }
    let mut videos = Vec::new();
    for (codec, file) in [(VideoCodec::H264, "h264.mp4"), (VideoCodec::Hevc, "hevc.mp4")] {
        if codec.available_encoder_name().is_none() {
            println!("test {name}: {file} is skipped, because FFmpeg cannot encode it");
            continue;
        }
        let (count, height, width) = (50, 62, 94);
        let data = vec![128; count * height * width * 3];
        let mut options = vec![("crf".to_owned(), "1".to_owned())];
        if codec == VideoCodec::Hevc {
            options.push(("x265-params".to_owned(), "log-level=error".to_owned()));
        }
        let encoding = VideoEncodingOptions {
            gop: Some(12),
            b_frames: Some(2),
            options,
            ..VideoEncodingOptions::new(codec, (25, 1))
        };
        let path = folder.path().join(file);
        encode_video(&path, FrameView::new(&data, count, height, width).unwrap(), &encoding).unwrap();
        videos.push(path);
    }
    for (variable, is_on_gpu) in [
        ("FAKE_NOTHING", true),
        ("FAKE_REFUSED_STREAMS", false),
        ("FAKE_REFUSED_PICTURES", false),
        ("FAKE_FAILED_COPIES", false),
    ] {
        let mut decode = Command::new(me());
        decode.arg("__on-gpu").args(&videos).env("LD_LIBRARY_PATH", folder.path()).env(variable, "1");
        let done = decode.output().unwrap();
        let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if error.contains("libavcodec cannot decode") {
            return println!("test {name}: skipped, because FFmpeg was built without NVDEC");
        }
        assert!(done.status.success(), "{variable}: {error}");
        assert_eq!(
            said.lines().collect::<Vec<_>>(),
            vec![is_on_gpu.to_string(); 3 * videos.len()],
            "{variable}: {error}"
        );
        assert_eq!(error.contains("are decoded in software"), !is_on_gpu, "{variable}: {error}");
    }
}

/// Decodes frames of each video by the GPU and by the software, which must be equal. Prints whether the GPU decoded.
fn decode_on_gpu(videos: &[String]) -> ExitCode {
    let gpu = DecodeWorker { gpu: Some(0), threads: 3, ..DecodeWorker::new(me()) };
    gpu.check_gpu().unwrap();
    let other = DecodeWorker { gpu: Some(1), ..DecodeWorker::new(me()) };
    one_line(other.check_gpu().unwrap_err(), &["decoder nvdec: GPU 1 cannot be opened", "nvidia-smi"]);
    let software = DecodeWorker::new(me());
    for video in videos {
        for n in [2, 16, 50] {
            let o = MediaOverrides { nframes: Some(n), ..Default::default() };
            let got = gpu.decode(Path::new(video), MediaProfile::Qwen, &o).unwrap();
            same(&got, &software.decode(Path::new(video), MediaProfile::Qwen, &o).unwrap());
            println!("{}", got.times.on_gpu);
        }
    }
    ExitCode::SUCCESS
}

/// Runs [`private_memory`] in a process of its own.
fn private_memory_is_limited() {
    let done = Command::new(me()).arg("__private-memory").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// With a limit of 64 MiB: reserves a terabyte and maps shared memory, as CUDA does, and allocates what fits.
#[allow(unsafe_code)]
fn private_memory() -> ExitCode {
    reel_support::worker::limit_private_memory(64 << 20).unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the mapping has no address of its own and is not accessed.
    let reserved = unsafe { libc::mmap(std::ptr::null_mut(), 1 << 40, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(reserved, libc::MAP_FAILED, "address space is not limited");
    let shared = rustix::fs::memfd_create("shared", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&shared, 256 << 20).unwrap();
    // SAFETY: no other process has the file.
    let shared = unsafe { memmap2::MmapMut::map_mut(&File::from(shared)) }.unwrap();
    assert_eq!(shared.len(), 256 << 20);
    let fits = |bytes: usize| {
        let mut buffer = Vec::<u8>::new();
        buffer.try_reserve_exact(bytes).is_ok() && std::hint::black_box(&buffer).capacity() >= bytes
    };
    assert!(fits(48 << 20) && !fits(80 << 20), "private memory is limited");
    ExitCode::SUCCESS
}

fn paths_may_contain_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    for name in [&b"a:b|c.mp4"[..], b"\xff\xfe video.mp4", b"concat:x.mp4", "фильм 🎬.mp4".as_bytes(), b"%03d.mp4"]
    {
        let path = folder.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::copy(clip("h264_709.mp4"), &path).unwrap();
        assert_eq!(DecodeWorker::new(me()).probe(&path).unwrap().total_frames, 9, "{}", path.display());
    }
}

/// A worker that blocks on a pipe is killed when its caller is killed.
fn worker_dies_with_its_caller() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let video = clip("vp9.webm");
    let mut caller = Command::new(me()).arg("__decode-and-wait").arg(&video).env(PIPE, &pipe).spawn().unwrap();
    let server = until(|| child_of(caller.id()));
    let worker = until(|| child_of(server));
    // Waits until the worker sleeps while it opens the pipe. By then the worker has asked the kernel to kill it when
    // its server ends.
    until(|| (state(worker) == Some('S')).then_some(()));
    std::thread::sleep(Duration::from_millis(100));
    caller.kill().unwrap();
    caller.wait().unwrap();
    until(|| (!alive(worker) && !alive(server)).then_some(()));
}

/// One server decodes all videos of a thread, even after a video that cannot be decoded, and keeps no files open. If
/// the idle server is killed, a new server decodes the next video without an error. A new server also decodes the
/// next video after a video that missed its deadline.
fn one_server_serves_many_videos() {
    let decoder = with_args(["__for-this-test-alone"]);
    let is_mine = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(21).any(|part| part == b"__for-this-test-alone") && alive(*pid)
    };
    let servers = || children_of(std::process::id()).into_iter().filter(is_mine).collect::<Vec<_>>();
    let probe = || assert_eq!(decoder.probe(&clip("vp9.webm")).unwrap().codec, "vp9");
    probe();
    let first = servers();
    assert_eq!(first.len(), 1);
    for _ in 0..3 {
        probe();
        decoder.probe(&clip("bad_zero.mp4")).unwrap_err();
        assert_eq!(servers(), first);
    }
    let open = || std::fs::read_dir(format!("/proc/{}/fd", first[0])).unwrap().count();
    let before = open();
    (0..20).for_each(|_| probe());
    // The server closes the file of a job shortly after its reply, so the number of open files falls back a moment
    // later.
    until(|| (open() <= before).then_some(()));

    assert!(Command::new("kill").args(["-9", &first[0].to_string()]).status().unwrap().success());
    until(|| (!alive(first[0])).then_some(()));
    probe();
    let second = servers();
    assert!(second.len() == 1 && second != first);

    let mut late = decoder.clone();
    late.program.timeout = Duration::ZERO;
    one_line(late.probe(&clip("vp9.webm")).unwrap_err(), &["timed out"]);
    probe();
    assert!(servers().len() == 1 && servers() != second);
}

/// A request whose frames are in the cache gets the same frames without a worker. Requests for frames in their original
/// size, requests for other frames, and requests without a cache need a worker.
fn kept_frames_need_no_worker() {
    let cache = Some(Arc::new(FrameCache::new(16 << 20)));
    let decoder = DecodeWorker { cache, ..DecodeWorker::new(me()) };
    let o = MediaOverrides { nframes: Some(4), ..Default::default() };
    let (path, profile) = (clip("vp9.webm"), MediaProfile::Qwen);
    let first = decoder.decode_resized(&path, profile.for_family(Family::Qwen25Vl), &o).unwrap();
    same(&first, &DecodeWorker::new(me()).decode_resized(&path, profile.for_family(Family::Qwen25Vl), &o).unwrap());
    let nowhere = DecodeWorker { program: WorkerProgram::new("/no/such/program"), ..decoder };
    same(&first, &nowhere.decode_resized(&path, profile.for_family(Family::Qwen25Vl), &o).unwrap());
    let refused =
        |decoded: reel_input::media::Result<DecodedVideo>| one_line(decoded.unwrap_err(), &["/no/such/program"]);
    refused(nowhere.decode(&path, profile, &o));
    refused(nowhere.decode_resized(&path, profile.for_family(Family::Qwen25Vl), &MediaOverrides::default()));
    refused(nowhere.decode_resized(&clip("h264_vfr.mp4"), profile.for_family(Family::Qwen25Vl), &o));
    refused(DecodeWorker { cache: None, ..nowhere.clone() }.decode_resized(
        &path,
        profile.for_family(Family::Qwen25Vl),
        &o,
    ));
}

/// Another process gets the frames of the cache on disk without a worker, wherever the video lies. Changed videos, other
/// requests and damaged entries are decoded.
fn frames_kept_on_disk_are_equal_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, video) = (dir.path().join("cache"), dir.path().join("v.webm"));
    std::fs::copy(clip("vp9.webm"), &video).unwrap();
    let o = MediaOverrides { nframes: Some(4), ..Default::default() };
    let rules = MediaProfile::Qwen.for_family(Family::Qwen25Vl);
    let expected = DecodeWorker::new(me()).decode_resized(&video, rules, &o).unwrap();
    let process = |program: PathBuf| {
        let cache = Arc::new(DiskFrameCache::open(&folder, 64 << 20).unwrap());
        (cache.clone(), DecodeWorker { disk_cache: Some(cache), ..DecodeWorker::new(program) })
    };
    let counts = |cache: &DiskFrameCache| (cache.counts().read, cache.counts().decoded);
    let (cache, decoder) = process(me());
    same(&expected, &decoder.decode_resized(&video, rules, &o).unwrap());
    same(&expected, &decoder.decode_resized(&video, rules, &o).unwrap());
    assert_eq!(counts(&cache), (1, 1));

    let (cache, nowhere) = process("/no/such/program".into());
    let moved = dir.path().join("moved.webm");
    std::fs::rename(&video, &moved).unwrap();
    same(&expected, &nowhere.decode_resized(&moved, rules, &o).unwrap());
    one_line(nowhere.decode_resized(&moved, rules, &MediaOverrides::default()).unwrap_err(), &["/no/such/program"]);
    one_line(nowhere.decode_resized(&clip("h264_vfr.mp4"), rules, &o).unwrap_err(), &["/no/such/program"]);
    std::fs::copy(clip("h264_vfr.mp4"), &moved).unwrap();
    one_line(nowhere.decode_resized(&moved, rules, &o).unwrap_err(), &["/no/such/program"]);
    assert_eq!(counts(&cache), (1, 0));

    // Every byte matters: a cut or changed entry is decoded again and replaced.
    std::fs::copy(clip("vp9.webm"), &moved).unwrap();
    let entry = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&entry).unwrap();
    for (len, changed) in
        [(0, None), (40, None), (whole.len() - 1, None), (whole.len(), Some(7)), (whole.len(), Some(70))]
            .into_iter()
            .chain([100, 300, whole.len() / 2, whole.len() - 1].map(|at| (whole.len(), Some(at))))
    {
        let mut damaged = whole[..len].to_vec();
        changed.into_iter().for_each(|at: usize| damaged[at] ^= 1);
        std::fs::write(&entry, damaged).unwrap();
        let (cache, decoder) = process(me());
        same(&expected, &decoder.decode_resized(&moved, rules, &o).unwrap());
        same(&expected, &decoder.decode_resized(&moved, rules, &o).unwrap());
        assert_eq!(counts(&cache), (1, 1), "{len} bytes, {changed:?}");
        assert!(std::fs::read(&entry).unwrap() == whole);
    }

    // Two writers at once leave one whole entry; an unfinished one of a killed process harms no one.
    std::fs::remove_file(&entry).unwrap();
    let unfinished = entry.with_file_name(format!(".{}.x1y2.part", entry.file_name().unwrap().to_str().unwrap()));
    std::fs::write(&unfinished, &whole[..100]).unwrap();
    let decoders = [process(me()).1, process(me()).1, process(me()).1];
    std::thread::scope(|scope| {
        decoders.iter().for_each(|decoder| {
            scope.spawn(|| same(&expected, &decoder.decode_resized(&moved, rules, &o).unwrap()));
        });
    });
    assert!(std::fs::read(&entry).unwrap() == whole && std::fs::read_dir(&folder).unwrap().count() == 2);
}

fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "the expected state was not reached within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn child_of(parent: u32) -> Option<u32> {
    children_of(parent).first().copied()
}

fn children_of(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|line| line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Whether the process is running: it exists and is not a zombie.
fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The letter of a process's state in /proc: R (running), S (sleeping), Z (zombie), …; `None` if it does not exist.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}
