//! Benchmarks of resizes and patches on the CPU: `cargo bench -p reel-input --bench pixels`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use reel_input::media::frames::{FrameBuf, FrameView};
use reel_input::media::patches::{ImageProcessorSettings, patchify};
use reel_input::media::resize::{pillow_bicubic, torch_bicubic};

/// A training video: 16 frames of 480p, resized to 224 × 420.
const FRAMES: usize = 16;
const DECODED: (usize, usize) = (480, 854);
const RESIZED: (usize, usize) = (224, 420);

/// Synthetic frames with sharp edges and smooth gradients.
fn video((height, width): (usize, usize)) -> FrameBuf {
    let data = (0..FRAMES * height * width * 3).map(|i| (i * 7 % 251 + i / 997 % 5) as u8).collect();
    FrameBuf { data: Arc::new(data), frames: FRAMES, height, width }
}

fn view(video: &FrameBuf) -> FrameView<'_> {
    video.view().expect("the data has the length of these frames")
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let (decoded, resized) = (video(DECODED), video(RESIZED));
    let mut group = criterion.benchmark_group("16 frames");
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function("resize like torchvision, 480 x 854 to 224 x 420", |b| {
        b.iter(|| torch_bicubic(view(black_box(&decoded)), RESIZED).expect("a resize"));
    });
    group.bench_function("resize like Pillow, 480 x 854 to 224 x 420", |b| {
        b.iter(|| pillow_bicubic(view(black_box(&decoded)), RESIZED).expect("a resize"));
    });
    group.bench_function("patches of 224 x 420", |b| {
        b.iter(|| patchify(view(black_box(&resized)), &ImageProcessorSettings::default()).expect("patches"));
    });
    group.finish();
    criterion.final_summary();
}
