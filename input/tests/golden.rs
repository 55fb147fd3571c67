//! Compares positions, window order and token ids with transformers (tests/golden/chat, tests/golden/tokenizer).

use std::path::Path;

use reel_input::config::ModelConfig;
use reel_input::mrope::{MediaGrids, rope_index};
use reel_input::tokenizer::Tokenizer;
use reel_input::window::{GridThw, WindowOrder, patch_rows_and_columns};
use serde::Deserialize;
use serde_json::Value;

fn read<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Positions {
    config: Value,
    rows: Vec<PositionRow>,
}

#[derive(Deserialize)]
struct PositionRow {
    id: String,
    input_ids: Vec<u32>,
    image_grid_thw: Vec<GridThw>,
    video_grid_thw: Vec<GridThw>,
    second_per_grid_ts: Vec<f64>,
    position_ids: [Vec<i64>; 3],
    rope_delta: i64,
}

#[test]
fn positions_equal_get_rope_index() {
    let golden: Positions = read("chat/positions.json");
    let config = ModelConfig::parse("config.json", &golden.config.to_string()).unwrap();
    assert!(golden.rows.len() >= 7);
    for row in golden.rows {
        let seconds: Vec<f32> = row.second_per_grid_ts.iter().map(|&x| x as f32).collect();
        let grids = MediaGrids {
            image_grid_thw: &row.image_grid_thw,
            video_grid_thw: &row.video_grid_thw,
            second_per_grid_ts: &seconds,
        };
        let got = rope_index(&config, &row.input_ids, grids, &row.id).unwrap();
        assert_eq!(got.position_ids, row.position_ids, "{}", row.id);
        assert_eq!(got.rope_delta, row.rope_delta, "{}", row.id);
    }
}

#[derive(Deserialize)]
struct WindowRow {
    grids: Vec<GridThw>,
    merge: usize,
    window_size: usize,
    window_index: Vec<usize>,
    cu_window_seqlens: Vec<usize>,
    cu_seqlens: Vec<usize>,
    positions: Option<Vec<[usize; 2]>>,
}

#[test]
fn windows_equal_get_window_index() {
    let golden: Positions = read("chat/positions.json");
    let mut vision = ModelConfig::parse("config.json", &golden.config.to_string()).unwrap().vision;
    let rows: Vec<WindowRow> = read("chat/windows.json");
    assert!(rows.iter().filter(|row| row.positions.is_some()).count() >= 5);
    for row in rows {
        vision.spatial_merge_size = row.merge;
        let plan = WindowOrder::from_grids(&row.grids, &vision, row.window_size);
        assert_eq!(plan.window_index, row.window_index, "{:?}", row.grids);
        assert_eq!(plan.cu_window_seqlens, row.cu_window_seqlens, "{:?}", row.grids);
        assert_eq!(plan.cu_seqlens, row.cu_seqlens, "{:?}", row.grids);
        if let Some(positions) = row.positions {
            assert_eq!(patch_rows_and_columns(&row.grids, row.merge), positions, "{:?}", row.grids);
        }
    }
}

#[derive(Deserialize)]
struct Tokenized {
    tokenizer: Value,
    encode: Vec<EncodeRow>,
    decode: Vec<DecodeRow>,
}

#[derive(Deserialize)]
struct EncodeRow {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct DecodeRow {
    ids: Vec<u32>,
    text: String,
    text_skip_special: String,
}

#[test]
fn tokens_equal_transformers() {
    let golden: Tokenized = read("tokenizer/cases.json");
    let tokenizer = Tokenizer::parse("tokenizer.json", golden.tokenizer.to_string().as_bytes()).unwrap();
    assert!(golden.encode.len() >= 100 && golden.decode.len() >= 100);
    for row in golden.encode {
        assert_eq!(tokenizer.encode(&row.text).unwrap(), row.ids, "{:?}", row.text);
    }
    for row in golden.decode {
        assert_eq!(tokenizer.decode(&row.ids, false), row.text, "{:?}", row.ids);
        assert_eq!(tokenizer.decode(&row.ids, true), row.text_skip_special, "{:?}", row.ids);
    }
}
