//! Decodes the chosen frames of a film in a worker process and prints what they are:
//! `cargo run --release -p reel-media --example frames -- film.mp4 videorft-eval`

use std::path::Path;
use std::process::ExitCode;

use reel_media::profile::{MediaOverrides, MediaProfile};
use reel_media::worker::{self, DecodeWorker};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let (film, profile) = match &args[1..] {
        [hidden] if hidden == worker::WORKER_ARGUMENT => return worker::worker_main(),
        [film, profile] => (film, profile),
        _ => {
            eprintln!("usage: frames FILE PROFILE");
            return ExitCode::from(2);
        }
    };
    let frames = MediaProfile::parse(profile)
        .and_then(|profile| DecodeWorker::this_program().decode(Path::new(film), profile, &MediaOverrides::default()));
    match frames {
        Ok(f) => {
            println!("{} frames of {} x {}: {:?}", f.indices.len(), f.height, f.width, f.indices);
            println!("{} frames in all, {} a second; {} a second taken", f.total_frames, f.video_fps, f.sample_fps);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
