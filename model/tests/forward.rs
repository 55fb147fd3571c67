//! Compares the forward pass with transformers (tests/golden/model): f32 and bf16, packed and with the KV cache.

use std::path::{Path, PathBuf};

use reel_model::batch::{Batch, Sequence};
use reel_model::checkpoint::Checkpoint;
use reel_model::config::ModelConfig;
use reel_model::input::ModelInput;
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::text::KvCache;
use reel_runtime::ops::{KvPages, SequencePages};
use reel_runtime::{Cx, DType, Device};
use safetensors::SafeTensors;

fn cases() -> Vec<PathBuf> {
    let folder = std::env::var("REEL_GOLDEN_MODEL")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model"), PathBuf::from);
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 3);
    all
}

struct Case {
    name: String,
    config: ModelConfig,
    files: Checkpoint,
    tokens: ModelInput,
    expected: Vec<u8>,
    tolerance: serde_json::Value,
}

impl Case {
    fn open(folder: &Path) -> Case {
        let config = ModelConfig::open(&folder.join("model")).unwrap();
        let about: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        Case {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            files: Checkpoint::open(&folder.join("model")).unwrap(),
            tokens: ModelInput::read(&folder.join("inputs.safetensors"), &config).unwrap(),
            expected: std::fs::read(folder.join("expected.safetensors")).unwrap(),
            tolerance: about["tolerances"].clone(),
            config,
        }
    }

    fn sequence(&self) -> Sequence<'_> {
        self.tokens.sequence()
    }

    fn expected(&self, name: &str) -> Vec<f32> {
        let all = SafeTensors::deserialize(&self.expected).unwrap();
        let data = all.tensor(name).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn rows(&self) -> Vec<usize> {
        let all = SafeTensors::deserialize(&self.expected).unwrap();
        let data = all.tensor("logit_rows").unwrap();
        data.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| got.iter().zip(want).map(|(&g, &w)| f(g as f64, w as f64)).sum::<f64>();
    (sum(&|g, w| (g - w) * (g - w)) / sum(&|_, w| w * w)).sqrt()
}

/// Logits `[S, V]` of a forward pass over packed sequences.
fn packed(case: &Case, device: &Device, dtype: DType) -> Vec<f32> {
    let model = Qwen25Vl::open(device, &case.files, &case.config, dtype).unwrap();
    let cx = Cx::inference(device, dtype);
    let batch = Batch::new(device, &case.config, &[case.sequence()], "case").unwrap();
    let hidden = model.forward(&cx, &batch, ForwardOptions::default()).unwrap();
    model.logits(&cx, &hidden).unwrap().to_f32().unwrap()
}

#[test]
fn logits_equal_transformers() {
    for folder in cases() {
        let case = Case::open(&folder);
        let vocab = case.config.text.vocab_size;
        for (dtype, key) in [(DType::F32, "logits_rel"), (DType::BF16, "logits_rel_bf16")] {
            let logits = packed(&case, &Device::cpu(2), dtype);
            let got: Vec<f32> =
                case.rows().iter().flat_map(|&r| logits[r * vocab..(r + 1) * vocab].iter().copied()).collect();
            let off = relative(&got, &case.expected("logits"));
            let limit = case.tolerance[key].as_f64().unwrap();
            println!("{} {dtype}: {off:.2e} of {limit:.1e}", case.name);
            assert!(off <= limit, "{} {dtype}: logits differ by {off:.2e}, allowed {limit:.1e}", case.name);
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_batch_or_cache() {
    for folder in cases() {
        let case = Case::open(&folder);
        for dtype in [DType::F32, DType::BF16] {
            let want = packed(&case, &Device::cpu(1), dtype);
            assert_eq!(want, packed(&case, &Device::cpu(2), dtype), "{}: 2 threads", case.name);
            let device = Device::cpu(3);
            assert_eq!(want, packed(&case, &device, dtype), "{}: 3 threads", case.name);
            let vocab = case.config.text.vocab_size;
            let model = Qwen25Vl::open(&device, &case.files, &case.config, dtype).unwrap();
            let cx = Cx::inference(&device, dtype);

            // Computes the sequence twice in one batch, between two copies of another sequence.
            let text: Vec<u32> = case.tokens.input_ids.iter().copied().filter(|id| *id < 200).take(70).collect();
            let at: Vec<i64> = (0..text.len() as i64).collect();
            let other = Sequence { input_ids: &text, position_ids: [&at, &at, &at], ..Sequence::default() };
            let batch =
                Batch::new(&device, &case.config, &[other, case.sequence(), case.sequence(), other], "case").unwrap();
            let hidden = model.forward(&cx, &batch, ForwardOptions::default()).unwrap();
            let s = case.tokens.len();
            for start in [text.len(), text.len() + s] {
                let got = model.logits(&cx, &hidden.rows(start, s).unwrap()).unwrap().to_f32().unwrap();
                assert!(got == want, "{} {dtype}: in a batch", case.name);
            }

            // Computes the sequence with a KV cache: first the prompt up to the last vision token, then one token at
            // a time.
            let pads = [case.config.tokens.image, case.config.tokens.video];
            let first = case.tokens.input_ids.iter().rposition(|id| pads.contains(id)).map_or(1, |i| i + 1);
            let cache = KvCache::new(&device, &case.config.text, dtype, s.div_ceil(KvPages::BLOCK_TOKENS)).unwrap();
            let blocks: Vec<i32> = (0..cache.block_count() as i32).rev().collect();
            let mut past = 0;
            for n in std::iter::once(first).chain(std::iter::repeat_n(1, s - first)) {
                let all = case.sequence();
                let position_ids = all.position_ids.map(|p| &p[past..past + n]);
                let mut chunk = Sequence { input_ids: &all.input_ids[past..past + n], position_ids, ..all };
                if past > 0 {
                    chunk = Sequence { input_ids: chunk.input_ids, position_ids, ..Sequence::default() };
                }
                let batch = Batch::new(&device, &case.config, &[chunk], "case").unwrap();
                let pages =
                    KvPages::new(&device, &[SequencePages { cached_tokens: past, new_tokens: n, blocks: &blocks }])
                        .unwrap();
                let hidden = model
                    .forward(&cx, &batch, ForwardOptions { cache: Some((&cache, &pages)), ..Default::default() })
                    .unwrap();
                let got = model.logits(&cx, &hidden).unwrap().to_f32().unwrap();
                assert!(
                    got == want[past * vocab..(past + n) * vocab],
                    "{} {dtype}: cached, tokens {past}+{n}",
                    case.name
                );
                past += n;
            }
        }
    }
}
