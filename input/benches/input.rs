//! Benchmarks of encoding inputs: `cargo bench -p reel-input --bench input`.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput};
use reel_input::config::ModelConfig;
use reel_input::mrope::{MediaGrids, rope_index};
use reel_input::window::{GridThw, WindowOrder, patch_rows_and_columns_in_window_order};
use reel_input::{ModelFolder, TokenId};
use serde_json::{Value, json};

/// The grid of a video of 16 frames of 224 x 420 pixels.
const VIDEO: GridThw = [8, 16, 30];
/// The number of words of a long question.
const WORDS: usize = 4000;

/// A long question about a video.
fn messages() -> Value {
    let words = ["which", "way", "does", "the", "ball", "roll", "after", "12.5", "seconds?", "Left,", "right\n"];
    let text: Vec<&str> = words.iter().cycle().take(WORDS).copied().collect();
    json!([
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "video", "video": "video.mp4"}, {"type": "text", "text": text.join(" ")}]},
    ])
}

/// Token ids: `text` text tokens, with the pad tokens of a video between them.
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
    let location = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a");
    let bundle = ModelFolder::open(&location).expect("a model folder");
    texts(&mut criterion, &bundle);
    positions(&mut criterion, &bundle.config);
    criterion.final_summary();
}

fn texts(criterion: &mut Criterion, bundle: &ModelFolder) {
    let messages = messages();
    let prompt = bundle.template.render_json(&messages, true).expect("a prompt");
    let mut group = criterion.benchmark_group("4000 words");
    group.throughput(Throughput::Bytes(prompt.len() as u64));
    group.bench_function("chat template", |b| {
        b.iter(|| bundle.template.render_json(black_box(&messages), true).expect("a prompt"));
    });
    group.bench_function("tokenizer", |b| {
        b.iter(|| bundle.tokenizer.encode(black_box(&prompt)).expect("ids"));
    });
    group.finish();
}

fn positions(criterion: &mut Criterion, config: &ModelConfig) {
    let ids = ids(config, 3000);
    let videos = [VIDEO; 1];
    let grids = MediaGrids { video_grid_thw: &videos, ..MediaGrids::default() };
    let mut group = criterion.benchmark_group("a video of 960 tokens");
    group.bench_function("M-RoPE positions with 6000 tokens of text", |b| {
        b.iter(|| rope_index(config, black_box(&ids), grids, "bench").expect("positions"));
    });
    group.bench_function("window order and patch positions", |b| {
        b.iter(|| {
            let windows = WindowOrder::from_grids(black_box(&videos), &config.vision, 112);
            patch_rows_and_columns_in_window_order(&videos, &config.vision, &windows)
        });
    });
    group.finish();
}
