//! Decodes the selected frames of a video in a worker process and prints their indices and size:
//! `cargo run --release -p reel-input --example decode_frames -- video.mp4 videorft-eval`

use std::path::Path;
use std::process::ExitCode;

use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::worker::{self, DecodeWorker};

fn main() -> ExitCode {
    if let Some(code) = reel_support::worker::run_if_worker(&[&worker::VIDEO_WORKER]) {
        return code;
    }
    let args: Vec<String> = std::env::args().collect();
    let (path, profile) = match &args[1..] {
        [path, profile] => (path, profile),
        _ => {
            eprintln!("usage: decode_frames FILE PROFILE");
            return ExitCode::from(2);
        }
    };
    let decoded = MediaProfile::parse(profile).and_then(|profile| {
        DecodeWorker::from_this_program().decode(Path::new(path), profile, &MediaOverrides::default())
    });
    match decoded {
        Ok(v) => {
            println!("{} frames of {} x {}: {:?}", v.indices.len(), v.height, v.width, v.indices);
            println!(
                "{} frames in total, {} frames/s; {} frames/s selected",
                v.total_frames, v.video_fps, v.sample_fps
            );
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
