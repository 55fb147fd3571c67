//! Compares the forward pass with transformers (tests/golden/model): f32 and bf16, packed and with the KV cache.

use std::path::{Path, PathBuf};

use reel_device::{DType, Device, Kernels};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_input::{ModelInput, Sequence};
use reel_kernels::int8::quantize_row;
use reel_model::batch::Batch;
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_model::text::KvCache;
use reel_model::weights::{WeightLoader, WeightSource};
use reel_model::widen::widen_to_f32;
use reel_runtime::ops::{KvPages, PackedWeight, SequencePages};
use reel_runtime::{Cx, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

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
fn packed(case: &Case, device: &Device, dtype: DType, quantization: Quantization) -> Vec<f32> {
    let model = QwenVl::open_quantized(device, &case.files, &case.config, dtype, quantization, None).unwrap();
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
            let logits = packed(&case, &Device::cpu(2), dtype, Quantization::None);
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
        let mapped = Case::open(&folder);
        let stored = WeightSource::Files(&mapped.files).stored().dtype;
        for (dtype, quantization, copied) in [
            (DType::F32, Quantization::None, false),
            (DType::F32, Quantization::None, true),
            (DType::BF16, Quantization::None, false),
            (DType::BF16, Quantization::None, true),
            (DType::F32, Quantization::Int8, false),
            (DType::BF16, Quantization::Int8, false),
        ] {
            // Copied weights have another layout, but the results must have the same bits.
            let mut case = Case::open(&folder);
            case.files = case.files.with_copied_weights(copied);
            let want = packed(&mapped, &Device::cpu(1), dtype, quantization);
            let packed = |device: &Device| packed(&case, device, dtype, quantization);
            assert_eq!(want, packed(&Device::cpu(1)), "{}: copied {copied}", case.name);
            assert_eq!(want, packed(&Device::cpu(2)), "{}: 2 threads", case.name);
            let device = Device::cpu(3);
            assert_eq!(want, packed(&device), "{}: 3 threads", case.name);
            let vocab = case.config.text.vocab_size;
            let model = QwenVl::open_quantized(&device, &case.files, &case.config, dtype, quantization, None).unwrap();
            let kept = if stored == StoredDType::Bf16 { DType::BF16 } else { DType::F32 };
            let is_packed = copied && (kept, dtype) != (DType::F32, DType::BF16) && PackedWeight::is_faster_on(&device);
            assert_eq!(model.text.lm_head().is_err(), is_packed || quantization == Quantization::Int8);
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

/// The hidden states of some tokens have the same bits as in a forward pass for all tokens.
#[test]
fn hidden_states_of_some_rows_have_the_bits_of_all_rows() {
    for folder in cases() {
        let case = Case::open(&folder);
        for dtype in [DType::F32, DType::BF16] {
            let (device, s) = (Device::cpu(2), case.tokens.len());
            let model = QwenVl::open(&device, &case.files, &case.config, dtype).unwrap();
            let cx = Cx::inference(&device, dtype);
            let batch = Batch::new(&device, &case.config, &[case.sequence()], "case").unwrap();
            let cache = KvCache::new(&device, &case.config.text, dtype, s.div_ceil(KvPages::BLOCK_TOKENS)).unwrap();
            let blocks: Vec<i32> = (0..cache.block_count() as i32).collect();
            let pages = [SequencePages { cached_tokens: 0, new_tokens: s, blocks: &blocks }];
            let pages = KvPages::new(&device, &pages).unwrap();
            let keys_and_values = || cache.tensors().map(|t| t.to_f32().unwrap()).collect::<Vec<_>>();
            for cached in [false, true] {
                let hidden = |rows: Option<&Tensor>| {
                    cache.fill_with_zeros().unwrap();
                    let cache = cached.then_some((&cache, &pages));
                    let options = ForwardOptions { cache, rows, ..Default::default() };
                    model.forward(&cx, &batch, options).unwrap()
                };
                let (all, kept) = (hidden(None), keys_and_values());
                for wanted in [vec![], vec![s - 1], vec![0, s / 2], (0..s).rev().step_by(3).collect()] {
                    let numbers: Vec<i32> = wanted.iter().map(|&row| row as i32).collect();
                    let rows = Tensor::from_i32(&device, &[wanted.len()], &numbers).unwrap();
                    let got = hidden(Some(&rows));
                    assert_eq!(got.shape(), [wanted.len(), case.config.text.hidden_size]);
                    let want: Vec<f32> =
                        wanted.iter().flat_map(|&row| all.rows(row, 1).unwrap().to_f32().unwrap()).collect();
                    assert!(got.to_f32().unwrap() == want, "{} {dtype}: rows {wanted:?}", case.name);
                    assert!(keys_and_values() == kept, "{} {dtype}: keys and values, rows {wanted:?}", case.name);
                }
            }
        }
    }
}

/// Whether the weights of the layer `name` are quantised.
fn is_quantised(name: &str) -> bool {
    let linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    name == "lm_head.weight"
        || (name.starts_with("model.layers.") && linear.iter().any(|layer| name.ends_with(&format!("{layer}.weight"))))
}

/// Writes a copy of the model of a case, with f32 weights that `change` may change: name, shape, elements.
fn changed_copy(case: &Case, folder: &Path, change: impl Fn(&str, &[usize], &mut [f32])) -> Checkpoint {
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = expected_tensors(&case.config)
        .into_iter()
        .map(|(name, shape)| {
            let view = case.files.tensor_with_shape(&name, &shape).unwrap();
            let mut values = widen_to_f32(view.dtype, view.bytes).unwrap();
            change(&name, &shape, &mut values);
            (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    Checkpoint::open(folder).unwrap()
}

/// A quantised model computes what a model with the rounded weights computes.
#[test]
fn int8_equals_a_model_with_rounded_weights() {
    let untied: Vec<Case> =
        cases().iter().map(|folder| Case::open(folder)).filter(|case| !case.config.tie_word_embeddings).collect();
    assert!(untied.len() >= 2);
    for case in untied {
        let folder = tempfile::tempdir().unwrap();
        let rounded = changed_copy(&case, folder.path(), |name, shape, values| {
            if is_quantised(name) {
                for row in values.chunks_exact_mut(shape[1]) {
                    let mut q = vec![0; row.len()];
                    let scale = quantize_row(row, &mut q).unwrap();
                    row.iter_mut().zip(q).for_each(|(x, q)| *x = q as f32 * scale);
                }
            }
        });
        let device = Device::cpu(2);
        let int8 = packed(&case, &device, DType::F32, Quantization::Int8);
        let dense = packed(&case, &device, DType::F32, Quantization::None);
        let name = case.name.clone();
        let want = packed(&Case { files: rounded, ..case }, &device, DType::F32, Quantization::None);
        let (off, changed) = (relative(&int8, &want), relative(&int8, &dense));
        assert!(off < 1e-5, "{name}: logits differ by {off:.2e} from those with rounded weights");
        assert!((1e-4..0.1).contains(&changed), "{name}: int8 changes logits by {changed:.2e}");
    }
}

#[test]
fn weights_that_int8_cannot_store_are_refused_by_name() {
    let case = Case::open(&cases()[0]);
    for (bad, tensor) in
        [(f32::NAN, "model.layers.1.mlp.up_proj.weight"), (f32::INFINITY, "model.layers.0.self_attn.k_proj.weight")]
    {
        let folder = tempfile::tempdir().unwrap();
        let files = changed_copy(&case, folder.path(), |name, shape, values| {
            if name == tensor {
                values[2 * shape[1] + 1] = bad;
            }
        });
        let open = |quantization| {
            QwenVl::open_quantized(&Device::cpu(1), &files, &case.config, DType::F32, quantization, None)
        };
        let e = open(Quantization::Int8).unwrap_err().to_string();
        assert!(e.contains(tensor) && e.contains("row 2 has a NaN or an infinity") && !e.contains('\n'), "{e}");
        open(Quantization::None).unwrap();
    }
}

/// The output layer of a quantised model cannot be used for training.
#[test]
fn a_quantised_head_is_refused_where_training_needs_it() {
    let case = Case::open(&cases()[0]);
    let open = |quantization| {
        QwenVl::open_quantized(&Device::cpu(1), &case.files, &case.config, DType::F32, quantization, None).unwrap()
    };
    assert!(open(Quantization::None).text.lm_head().is_ok());
    let e = open(Quantization::Int8).text.lm_head().unwrap_err().to_string();
    assert!(e.contains("is quantised or packed"), "{e}");
}

#[test]
fn int8_takes_half_the_memory_of_bf16() {
    let case = Case::open(&cases()[0]);
    let weights = |quantization| {
        let device = Device::dry(Kernels::Cpu);
        let source = WeightSource::Uninitialised(StoredDType::Bf16.into());
        let from = WeightLoader {
            device: &device,
            source,
            dtype: DType::BF16,
            quantization,
            may_pad: true,
            trainable: &|_| false,
            deferred: None,
        };
        let _model = QwenVl::load(&from, &case.config).unwrap();
        device.memory().current
    };
    let quantised = expected_tensors(&case.config).into_iter().filter(|(name, _)| is_quantised(name));
    let (mut elements, mut tensors) = (0, 0);
    quantised.for_each(|(_, shape)| (elements, tensors) = (elements + shape[0] * shape[1], tensors + 1));
    let saved = weights(Quantization::None) - weights(Quantization::Int8);
    // The scales (4 bytes per row), rows padded to a multiple of 16 and rounded allocation sizes reduce the saving.
    assert!(saved <= elements && saved + elements / 4 + tensors * 1024 >= elements, "{saved} of {elements}");
}
