//! Compares the video decoders of a GPU (`--decoder nvdec`) with the software decoders and times both, in turns:
//! `video_decoders GPU FILE…`. Frames must be equal to the bit, and the GPU must have decoded them.
//!
//! Prints a line of JSON for each file and selection. Exit status: 1 if frames differ or the GPU did not decode a file,
//! 3 if this machine cannot decode on the GPU.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::media::video::DecodedVideo;
use reel_input::media::worker::{DecodeWorker, GPU_VIDEO_WORKER, VIDEO_WORKER};
use reel_support::error::Result;
use serde_json::{Value, json};

/// Timed rounds of each decoder; one warm-up round comes before them.
const ROUNDS: usize = 5;

/// Numbers of frames that are selected of each file.
const SELECTIONS: [i64; 3] = [2, 16, 128];

fn main() -> ExitCode {
    if let Some(code) = reel_support::worker::run_if_worker(&[&VIDEO_WORKER, &GPU_VIDEO_WORKER]) {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((Ok(index), files)) = args.split_first().map(|(index, files)| (index.parse::<usize>(), files)) else {
        eprintln!("usage: video_decoders GPU FILE...");
        return ExitCode::from(2);
    };
    let on_gpu = DecodeWorker { gpu: Some(index), ..DecodeWorker::from_this_program() };
    if let Err(e) = on_gpu.check_gpu() {
        eprintln!("{e}");
        return ExitCode::from(3);
    }
    let on_cpu = DecodeWorker { gpu: None, ..on_gpu.clone() };
    let cases = files.iter().flat_map(|file| SELECTIONS.map(|frames| (Path::new(file), frames)));
    let mut code = ExitCode::SUCCESS;
    for (file, frames) in cases {
        match compare(&on_gpu, &on_cpu, file, frames) {
            Ok(result) => {
                println!("{result}");
                if result["on_gpu"] != true || result["equal"] != true {
                    eprintln!("{}: the GPU did not decode it, or frames differ: {result}", file.display());
                    code = ExitCode::FAILURE;
                }
            }
            Err(e) => {
                eprintln!("{e}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Decodes `frames` frames of a file by both decoders. Returns medians of seconds, and whether all rounds agree.
fn compare(on_gpu: &DecodeWorker, on_cpu: &DecodeWorker, file: &Path, frames: i64) -> Result<Value> {
    let overrides = MediaOverrides { nframes: Some(frames), ..MediaOverrides::default() };
    let decode = |worker: &DecodeWorker| -> Result<(DecodedVideo, f64)> {
        let begun = Instant::now();
        let video = worker.decode(file, MediaProfile::Qwen, &overrides)?;
        Ok((video, begun.elapsed().as_secs_f64()))
    };
    let (wanted, _) = decode(on_cpu)?;
    let (first, _) = decode(on_gpu)?;
    let same = |video: &DecodedVideo| video.indices == wanted.indices && video.data[..] == wanted.data[..];
    let (mut is_on_gpu, mut is_equal) = (first.times.on_gpu, same(&first));
    let [mut gpu, mut gpu_cpu, mut cpu, mut cpu_cpu] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let (video, seconds) = decode(on_gpu)?;
        (is_on_gpu, is_equal) = (is_on_gpu && video.times.on_gpu, is_equal && same(&video));
        gpu.push(seconds);
        gpu_cpu.push(video.times.cpu_seconds);
        let (video, seconds) = decode(on_cpu)?;
        cpu.push(seconds);
        cpu_cpu.push(video.times.cpu_seconds);
    }
    Ok(json!({
        "op": "video decoders", "file": file.file_name().map(|name| name.display().to_string()),
        "frames": wanted.indices.len(), "of": wanted.total_frames, "height": wanted.height, "width": wanted.width,
        "on_gpu": is_on_gpu, "equal": is_equal, "threads": on_cpu.threads,
        "nvdec": {"seconds": median(gpu), "cpu_seconds": median(gpu_cpu)},
        "cpu": {"seconds": median(cpu), "cpu_seconds": median(cpu_cpu)},
    }))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
