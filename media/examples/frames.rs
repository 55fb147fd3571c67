//! Decodes the frames of a film in this process: `frames FILE PROFILE [--out F]` prints a line and writes raw RGB.

use reel_media::profile::{Overrides, Profile};
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let profile = Profile::parse(&args[2]).unwrap();
    let mut o = Overrides::default();
    if let Some(n) = args.get(3) {
        o.nframes = n.parse().ok();
    }
    let t = std::time::Instant::now();
    match reel_media::video::sample(Path::new(&args[1]), profile, &o) {
        Ok(f) => {
            println!(
                "{}x{} {:?} total {} fps {} sample {} in {:?}",
                f.height,
                f.width,
                f.indices,
                f.total_frames,
                f.video_fps,
                f.sample_fps,
                t.elapsed()
            );
            if let Some(out) = args.get(4) {
                std::fs::write(out, &f.data[..]).unwrap();
            }
        }
        Err(e) => println!("error: {e}"),
    }
}
