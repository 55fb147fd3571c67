//! Benchmarks of packing batches and loading a model on the host: `cargo bench -p reel-model --bench load`.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput};
use reel_device::{DType, Device};
use reel_input::config::ModelConfig;
use reel_input::mrope::{MediaGrids, rope_index};
use reel_input::window::GridThw;
use reel_input::{Sequence, TokenId};
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_model::qwen_vl::QwenVl;

/// The grid of a video of 16 frames of 224 x 420 pixels.
const VIDEO: GridThw = [8, 16, 30];

/// Writes a tiny model folder whose decoder has as many tensors as the 7B model.
fn folder(location: &Path) {
    let options = InitOptions { preset: Preset::Tiny, layers: Some(28), vocab: None, dtype: None, seed: 0 };
    init_model_folder(&options, location).expect("a model folder");
}

/// Token ids of `text` text tokens, and of the pad tokens of a video in between.
fn ids(config: &ModelConfig, text: usize) -> Vec<TokenId> {
    let pads = VIDEO.iter().product::<usize>() / config.vision.patches_per_vision_token();
    let mut ids = vec![1; text];
    ids.push(config.tokens.vision_start);
    ids.extend(vec![config.tokens.video; pads]);
    ids.extend(vec![1; text]);
    ids
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let parent = tempfile::tempdir().expect("a folder");
    let location = parent.path().join("model");
    folder(&location);
    let config = ModelConfig::open(&location).expect("a config");
    batches(&mut criterion, &config);
    weights(&mut criterion, &location, &config);
    criterion.final_summary();
}

fn batches(criterion: &mut Criterion, config: &ModelConfig) {
    let device = Device::cpu(1);
    let ids = ids(config, 512);
    let videos = [VIDEO];
    let rope = rope_index(config, &ids, MediaGrids { video_grid_thw: &videos, ..MediaGrids::default() }, "bench");
    let rope = rope.expect("positions");
    let patches = VIDEO.iter().product::<usize>();
    let patch = config.vision.temporal_patch_size * config.vision.patch_size.pow(2) * 3;
    let pixels = vec![0.5; patches * patch];
    let sequence = Sequence {
        input_ids: &ids,
        position_ids: std::array::from_fn(|axis| &rope.position_ids[axis][..]),
        pixel_values_videos: &pixels,
        video_grid_thw: &videos,
        ..Sequence::default()
    };
    let mut group = criterion.benchmark_group("a batch");
    group.throughput(Throughput::Elements(4 * ids.len() as u64));
    group.bench_function("four sequences with one video each", |b| {
        b.iter(|| Batch::new(&device, config, black_box(&[sequence; 4]), "bench").expect("a batch"));
    });
    group.finish();
}

fn weights(criterion: &mut Criterion, location: &Path, config: &ModelConfig) {
    let device = Device::cpu(1);
    let mut group = criterion.benchmark_group("a checkpoint of 28 layers");
    group.bench_function("read the headers and check all shapes", |b| {
        b.iter(|| Checkpoint::open(black_box(location)).and_then(|files| files.check(config)).expect("weights"));
    });
    group.bench_function("load a model from mapped files", |b| {
        b.iter(|| {
            let files = Checkpoint::open(black_box(location)).expect("weights");
            QwenVl::open(&device, &files, config, DType::F32).expect("a model")
        });
    });
    group.finish();
}
