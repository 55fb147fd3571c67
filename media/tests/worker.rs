//! The worker process, from outside: this program is its own worker, as the binary is, and plays the broken ones too.
//!
//! It has no test harness, because a worker's standard output must hold nothing but its answer.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use reel_media::encode::{VideoCodec, VideoEncoding, encode_video};
use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::resize::FrameView;
use reel_media::video::{self, DecodedVideo};
use reel_media::worker::{self, DecodeWorker};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(worker::WORKER_ARGUMENT) => return worker::worker_main(),
        Some("__play") => return play(&args[2]),
        Some("__decode-and-wait") => {
            let _ = DecodeWorker::new(&args[0]).probe(Path::new(&args[2]));
            return ExitCode::SUCCESS;
        }
        // What `cargo test -- --list` and the like ask for.
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let tests: [(&str, fn()); 9] = [
        ("same_frames_as_in_process", same_frames_as_in_process),
        ("resized_frames", resized_frames),
        ("errors_come_through", errors_come_through),
        ("hangs_are_ended", hangs_are_ended),
        ("deaths_are_told", deaths_are_told),
        ("answers_are_checked", answers_are_checked),
        ("memory_is_limited", memory_is_limited),
        ("paths_are_bytes", paths_are_bytes),
        ("a_worker_does_not_outlive_its_caller", a_worker_does_not_outlive_its_caller),
    ];
    let wanted = args.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests {
        if wanted.is_none_or(|w| name.contains(w.as_str())) {
            // A failing check panics, which names it and ends with a failure.
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// A worker that does not do its work.
fn play(part: &str) -> ExitCode {
    match part {
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "sleep with closed output" => {
            let child = Command::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let _ = child.map(|mut c| c.wait());
        }
        "child keeps the output" => {
            let _ = Command::new("sleep").arg("600").spawn();
        }
        "garbage" => println!("{{\"Probed\": [1, 2"),
        "another answer" => {
            println!("{{\"Probed\":{{\"codec\":\"x\",\"height\":1,\"width\":1,\"total_frames\":1,\"video_fps\":1.0}}}}")
        }
        "frames that are not there" => println!(
            "{{\"Decoded\":{{\"height\":64,\"width\":64,\"indices\":[0,1],\"total_frames\":2,\"video_fps\":1.0,\"sample_fps\":1.0}}}}"
        ),
        "endless" => loop {
            use std::io::Write;
            if std::io::stdout().write_all(&[b'x'; 65536]).is_err() {
                break;
            }
        },
        "exit 3" => {
            eprintln!("libavcodec.so: cannot open shared object file");
            return ExitCode::from(3);
        }
        "abort" => std::process::abort(),
        "panic" => panic!("a bug"),
        _ => return ExitCode::from(77),
    }
    ExitCode::SUCCESS
}

fn me() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn clip(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../tests/golden/clips", name].iter().collect()
}

/// A decoder whose worker plays `part`.
fn player(part: &str, timeout: Duration) -> DecodeWorker {
    DecodeWorker { args: vec!["__play".to_owned(), part.to_owned()], timeout, ..DecodeWorker::new(me()) }
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

fn same_frames_as_in_process() {
    for name in ["h264_bframes_audio.mp4", "h264_rot90.mp4", "mpeg4_odd.avi", "vp9.webm"] {
        for profile in [MediaProfile::Qwen, MediaProfile::Uniform16, MediaProfile::Stride1Fps] {
            let o = MediaOverrides::default();
            let got = DecodeWorker::new(me()).decode(&clip(name), profile, &o).unwrap();
            same(&got, &video::decode(&clip(name), profile, &o).unwrap());
        }
        assert_eq!(DecodeWorker::new(me()).probe(&clip(name)).unwrap(), video::probe(&clip(name)).unwrap());
    }
    let again = DecodeWorker::this_program().probe(&clip("vp9.webm")).unwrap();
    assert_eq!(again.codec, "vp9");
}

fn resized_frames() {
    let o = MediaOverrides::default();
    let got = DecodeWorker::new(me()).decode_resized(&clip("h264_vfr.mp4"), MediaProfile::VideorftTrain, &o).unwrap();
    let whole = video::decode(&clip("h264_vfr.mp4"), MediaProfile::VideorftTrain, &o).unwrap();
    let view = FrameView::new(&whole.data, whole.indices.len(), whole.height, whole.width).unwrap();
    let resized = reel_media::resize::torch_bicubic(view, (got.height, got.width)).unwrap();
    assert_eq!((got.height % 28, got.width % 28), (0, 0));
    assert!(resized.data == got.data[..]);
}

fn errors_come_through() {
    let decoder = DecodeWorker::new(me());
    for (name, part) in [
        ("bad_zero.mp4", "empty"),
        ("bad_text.mp4", "video"),
        ("bad_cut.mp4", "cut short"),
        ("none.mp4", "No such file"),
    ] {
        let o = MediaOverrides::default();
        one_line(decoder.decode(&clip(name), MediaProfile::VideorftTrain, &o).unwrap_err(), &[name, part]);
    }
    let o = MediaOverrides { nframes: Some(1), ..Default::default() };
    one_line(decoder.decode(&clip("vp9.webm"), MediaProfile::Qwen, &o).unwrap_err(), &["nframes"]);
    one_line(DecodeWorker::new("/no/such/program").probe(&clip("vp9.webm")).unwrap_err(), &["/no/such/program"]);
}

fn hangs_are_ended() {
    let begun = Instant::now();
    let short = Duration::from_millis(300);
    for part in ["sleep", "sleep with closed output", "child keeps the output", "endless"] {
        one_line(player(part, short).probe(&clip("vp9.webm")).unwrap_err(), &["vp9.webm", "0.3 s", "--media-timeout"]);
    }
    // A real worker that waits for a file: a pipe that nobody writes to.
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let decoder = DecodeWorker { timeout: short, ..DecodeWorker::new(me()) };
    one_line(decoder.probe(&pipe).unwrap_err(), &["pipe.mp4", "0.3 s"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

fn deaths_are_told() {
    let wait = Duration::from_secs(20);
    one_line(player("abort", wait).probe(&clip("vp9.webm")).unwrap_err(), &["vp9.webm", "signal 6"]);
    one_line(player("exit 3", wait).probe(&clip("vp9.webm")).unwrap_err(), &["exit code 3", "libavcodec.so"]);
    one_line(player("panic", wait).probe(&clip("vp9.webm")).unwrap_err(), &["exit code 101"]);
    one_line(player("unknown", wait).probe(&clip("vp9.webm")).unwrap_err(), &["exit code 77"]);
}

fn answers_are_checked() {
    let wait = Duration::from_secs(20);
    one_line(player("garbage", wait).probe(&clip("vp9.webm")).unwrap_err(), &["answer"]);
    for part in ["another answer", "frames that are not there"] {
        let got = player(part, wait).decode(&clip("vp9.webm"), MediaProfile::Qwen, &MediaOverrides::default());
        one_line(got.unwrap_err(), &["vp9.webm", "answer"]);
    }
}

fn memory_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.avi");
    let (height, width) = (2048, 2048);
    let data = vec![90; 4 * height * width * 3];
    let frames = FrameView::new(&data, 4, height, width).unwrap();
    encode_video(&path, frames, &VideoEncoding::new(VideoCodec::Mpeg4, (2, 1))).unwrap();
    let o = MediaOverrides { nframes: Some(4), ..Default::default() };
    for memory_mib in [1, 8, 24, 40, 60] {
        let decoder = DecodeWorker { memory_mib, ..DecodeWorker::new(me()) };
        let error = decoder.decode(&path, MediaProfile::Qwen, &o).unwrap_err();
        one_line(error, &["memory"]);
    }
    // Room for the frames but not for decoding them: the limit of the process itself.
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

fn paths_are_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    for name in [&b"a:b|c.mp4"[..], b"\xff\xfe film.mp4", b"concat:x.mp4", "фильм 🎬.mp4".as_bytes(), b"%03d.mp4"]
    {
        let path = folder.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::copy(clip("h264_709.mp4"), &path).unwrap();
        assert_eq!(DecodeWorker::new(me()).probe(&path).unwrap().total_frames, 9, "{}", path.display());
    }
}

/// Whether a process with this film's name in its command line or open files is left cannot be seen from outside; its
/// parent's death can be watched: a worker stuck in a pipe ends when its caller is killed.
fn a_worker_does_not_outlive_its_caller() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.mp4");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut caller = Command::new(me()).arg("__decode-and-wait").arg(&pipe).spawn().unwrap();
    let worker = until(|| child_of(caller.id()));
    // It is bound to its caller once it waits for the pipe.
    until(|| std::fs::read_to_string(format!("/proc/{worker}/wchan")).ok().filter(|w| w.contains("fifo") || w == "0"));
    std::thread::sleep(Duration::from_millis(100));
    caller.kill().unwrap();
    caller.wait().unwrap();
    until(|| (!alive(worker)).then_some(()));
}

fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn child_of(parent: u32) -> Option<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let children = std::fs::read_to_string(task.path().join("children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

/// Running: neither gone nor a zombie.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}
