//! Compares a model with random weights with transformers (tests/golden/siglip) on every device, and tests damaged
//! folders.

use std::fs;

use reel_device::compile;
use reel_device::{Kernels, SimOptions};
use reel_input::media::image::{self, ExifOrientation, RgbImage};
use reel_input::tensor_file::StoredDType;
use safetensors::SafeTensors;
use serde_json::Value;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/siglip").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_string()).collect()
}

fn texts() -> Vec<String> {
    strings(&json("index.json")["texts"])
}

fn images() -> Vec<RgbImage> {
    strings(&json("index.json")["pictures"])
        .iter()
        .map(|file| image::open(&golden(file), ExifOrientation::Apply).unwrap())
        .collect()
}

fn expected(name: &str) -> Vec<f32> {
    let bytes = fs::read(golden("expected.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    all.tensor(name).unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The root mean square, over all embeddings, of the distance between a computed embedding and the expected one.
fn off(got: &[Vec<f32>], want: &[f32]) -> f32 {
    let (rows, got) = (got.len(), got.concat());
    assert_eq!(got.len(), want.len());
    (got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum::<f32>() / rows as f32).sqrt()
}

/// Each entry is a dtype, the tolerance of text embeddings and the tolerance of image embeddings. The tolerances for
/// bf16 are large because the random weights amplify rounding: rounding only the weights to bf16, with all other
/// arithmetic in f64, moves text embeddings by 0.12.
const LIMITS: [(DType, f32, f32); 2] = [(DType::F32, 2e-5, 2e-6), (DType::BF16, 0.25, 0.03)];

fn open(device: &Device, dtype: DType) -> Siglip {
    Siglip::open(device, &golden("model"), dtype).unwrap()
}

fn embed(model: &Siglip, images: &[RgbImage]) -> Vec<Vec<f32>> {
    let views: Vec<FrameView> = images.iter().map(|p| p.view().unwrap()).collect();
    model.embed_frames(&views, false).unwrap()
}

#[test]
fn embeddings_equal_transformers() {
    let (texts, images) = (texts(), images());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for (dtype, text_limit, image_limit) in LIMITS {
        let model = open(&Device::cpu(2), dtype);
        let text = off(&model.embed_texts(&texts).unwrap(), &expected("text_embeds"));
        let image = off(&embed(&model, &images), &expected("image_embeds"));
        println!("{dtype}: texts {text:.1e}, images {image:.1e}");
        assert!(
            text <= text_limit && image <= image_limit,
            "{dtype}: text embeddings differ by {text:.1e}, image embeddings by {image:.1e}"
        );
    }
}

#[test]
fn sim_equals_transformers() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let device = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap();
    let (texts, images) = (texts(), images());
    let width = 48;
    for (dtype, text_limit, image_limit) in LIMITS {
        let model = open(&device, dtype);
        let text = off(&model.embed_texts(&[&texts[2]]).unwrap(), &expected("text_embeds")[2 * width..3 * width]);
        let image = off(&embed(&model, &images[..2]), &expected("image_embeds")[..2 * width]);
        println!("{dtype}: text {text:.1e}, images {image:.1e}");
        assert!(
            text <= text_limit && image <= image_limit,
            "{dtype}: the text embedding differs by {text:.1e}, image embeddings by {image:.1e}"
        );
    }
}

#[test]
fn bits_do_not_depend_on_batch_or_threads() {
    let (texts, images) = (texts(), images());
    for dtype in [DType::F32, DType::BF16] {
        let model = open(&Device::cpu(1), dtype);
        let alone: Vec<_> = images.iter().flat_map(|p| embed(&model, std::slice::from_ref(p))).collect();
        let texts_alone: Vec<_> = texts.iter().flat_map(|t| model.embed_texts(&[t]).unwrap()).collect();
        let model = open(&Device::cpu(3), dtype);
        assert!(embed(&model, &images) == alone, "{dtype}");
        assert!(
            model.embed_texts(&texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap() == texts_alone,
            "{dtype}"
        );
    }
}

#[test]
fn ids_equal_the_reference_tokenizer() {
    let bytes = fs::read(golden("expected.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let want = all.tensor("input_ids").unwrap();
    let want: Vec<i32> =
        want.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect();
    let model = open(&Device::cpu(1), DType::F32);
    for (text, want) in texts().iter().zip(want.chunks_exact(64)) {
        assert_eq!(model.tokenizer.encode(text).unwrap(), want, "{text:?}");
    }
    let rows = json("tokens.json");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 100);
    for row in rows {
        let mut want: Vec<i32> = row["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect();
        want.resize(64, 1);
        let text = row["text"].as_str().unwrap();
        assert_eq!(model.tokenizer.encode(text).unwrap(), want, "{text:?}");
    }
}

#[test]
fn pixels_equal_the_image_processor() {
    let model = open(&Device::cpu(1), DType::F32);
    let (size, seen) = (64, model.processor.cropped_side());
    assert_eq!(seen, 56);
    let want = expected("pixel_values");
    for (n, image) in images()[..2].iter().enumerate() {
        for negative in [false, true] {
            let mut image = image.clone();
            if negative {
                // The negative of the negative is the original image, so the pixels must equal the original's pixels.
                image.data.iter_mut().for_each(|v| *v = ((256 - u32::from(*v)) % 256) as u8);
            }
            let got = model.processor.resize_and_crop(image.view().unwrap(), negative).unwrap();
            assert_eq!(got.len(), 3 * seen * seen);
            for (i, &level) in got.iter().enumerate() {
                let (row, column, channel) = (i / 3 / seen, i / 3 % seen, i % 3);
                let want = want[((n * 3 + channel) * size + row) * size + column];
                let got = (f32::from(level) / 255.0 - 0.5) / 0.5;
                assert!((got - want).abs() < 1e-6, "image {n} at {row}, {column}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn dry_device_counts_equal_cpu_counts() {
    let (dry, cpu) = (Device::dry(Kernels::Cpu), Device::cpu(1));
    let names = |device: &Device| {
        device.profiler().collect_totals(true);
        let model = open(device, DType::F32);
        model.embed_texts(&["a ball", "rolls"]).unwrap();
        embed(&model, &images());
        let totals = device.profiler().totals().unwrap();
        totals.iter().map(|(name, t)| (name.to_string(), t.launches, t.cost.flops)).collect::<Vec<_>>()
    };
    assert_eq!(names(&dry), names(&cpu));
    assert!(!dry.profiler().totals().unwrap().is_empty());
}

#[test]
fn so400m_fits_and_takes_little() {
    let tower = |size: &str| {
        format!(
            r#"{{"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27{size}}}"#
        )
    };
    let (text, vision) = (tower(""), tower(r#", "image_size": 384, "patch_size": 14"#));
    let json = format!(r#"{{"model_type": "siglip", "text_config": {text}, "vision_config": {vision}}}"#);
    let config = SiglipConfig::parse("c", &json).unwrap();
    let parameters: usize = expected_tensors(&config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    // The published model has 877 million parameters, rounded down.
    assert_eq!(parameters / 1_000_000, 877);
    for (kernels, dtype, stored) in [
        (Kernels::Cpu, DType::F32, StoredDType::F32),
        (Kernels::Cuda, DType::F32, StoredDType::Bf16),
        (Kernels::Cuda, DType::BF16, StoredDType::F32),
    ] {
        let device = &Device::dry(kernels);
        let from = WeightLoader {
            device,
            source: WeightSource::Uninitialised(stored.into()),
            dtype,
            quantization: Quantization::None,
            may_pad: true,
            trainable: &|_| false,
            deferred: None,
        };
        let (text, vision) =
            (SiglipText::load(&from, &config.text).unwrap(), SiglipVision::load(&from, &config.vision).unwrap());
        let weights = device.memory().current;
        device.profiler().collect_totals(true);
        let processor = SiglipProcessor::with_published_settings(&config.vision);
        let (cx, at_once, seen) =
            (Cx::inference(device, dtype), MAX_TOKENS_PER_PASS / config.vision.patch_count(), processor.cropped_side());
        assert_eq!((at_once, seen), (5, 378));
        let size = [at_once, seen, seen];
        let images =
            ops::DeviceFrames::new(device, &vec![0; at_once * seen * seen * 3], size, &processor.patch_settings())
                .unwrap();
        assert_eq!(vision.forward(&cx, &images).unwrap().shape(), [5, 1152]);
        let flops: f64 = device.profiler().totals().unwrap().values().map(|t| t.cost.flops).sum();
        // The number of operations for 5 images of 729 patches: two per weight and patch, plus the two products of
        // attention in 27 layers.
        let expected = 5.0 * 729.0 * 2.0 * (414e6 + 27.0 * 2.0 * 729.0 * 1152.0);
        assert!((flops / expected - 1.0).abs() < 0.03, "{flops:.3e} operations, {expected:.3e} expected");
        assert_eq!(text.forward(&cx, &[1; 8 * 64]).unwrap().shape(), [8, 1152]);
        let peak = device.memory().peak - weights;
        println!("{kernels:?} {dtype}: {weights} bytes of weights, {peak} other bytes");
        assert!(peak < 200 << 20, "{peak} bytes besides the weights");
    }
}

/// A copy of the golden folder in which `file` has the bytes that `change` returns; if `change` returns `None`, the
/// file is removed.
fn changed(file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("model")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join(file);
    match change(fs::read(&path).unwrap()) {
        Some(bytes) => fs::write(path, bytes).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    folder
}

fn refused(folder: &Path) -> String {
    let error = Siglip::open(&Device::cpu(1), folder, DType::F32).unwrap_err().to_string();
    assert!(error.contains(": ") && error.contains("; ") && !error.contains('\n'), "{error}");
    error
}

/// Removes a tensor from the golden weights, or changes its shape.
fn with_tensor(name: &str, shape: Option<Vec<usize>>) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    let name = name.to_string();
    move |bytes| {
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let views = all.tensors().into_iter().filter(|(n, _)| *n != name || shape.is_some()).map(|(n, view)| {
            let changed = shape.as_ref().filter(|_| n == name).unwrap_or(&view.shape().to_vec()).clone();
            let view = safetensors::tensor::TensorView::new(view.dtype(), changed, view.data()).unwrap();
            (n, view)
        });
        Some(safetensors::serialize(views, None).unwrap())
    }
}

#[test]
fn errors_name_the_damaged_file() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let missing = refused(changed(file, |_| None).path());
        assert!(missing.contains(file) || file == "model.safetensors", "{missing}");
        for keep in [0.0, 0.001, 0.01, 0.1, 0.5, 0.99] {
            let cut = |bytes: Vec<u8>| Some(bytes[..(keep * bytes.len() as f64) as usize].to_vec());
            let error = refused(changed(file, cut).path());
            assert!(error.contains(file), "{file} cut to {keep}: {error}");
        }
    }
    let weights = "model.safetensors";
    for tensor in ["vision_model.head.probe", "text_model.head.weight", "vision_model.encoder.layers.1.mlp.fc2.bias"] {
        let error = refused(changed(weights, with_tensor(tensor, None)).path());
        assert!(error.contains(&format!("{tensor}: is missing")), "{error}");
    }
    let wide = refused(changed(weights, with_tensor("text_model.head.weight", Some(vec![24, 96]))).path());
    assert!(wide.contains("text_model.head.weight: has shape [24, 96], but config.json requires [48, 48]"), "{wide}");
    // The two scalars of the training loss, logit scale and logit bias, are optional.
    let plain = changed(weights, with_tensor("logit_bias", None));
    Siglip::open(&Device::cpu(1), plain.path(), DType::F32).unwrap();

    let edit = |file: &str, from: &str, to: &str| {
        changed(file, |bytes| Some(String::from_utf8(bytes).unwrap().replacen(from, to, 1).into_bytes()))
    };
    for (file, from, to, want) in [
        ("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "does not have: "),
        ("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "layers.2."),
        ("config.json", "\"patch_size\": 14", "\"patch_size\": 16", "patch_embedding.weight: has shape"),
        ("config.json", "\"vocab_size\": 340", "\"vocab_size\": 339", "vocab_size of 339"),
        ("config.json", "\"siglip\"", "\"siglip2\"", "model_type: is `siglip2`"),
        ("tokenizer.json", "\"Unigram\"", "\"BPE\"", "tokenizer.json: model: has the type `BPE`"),
        ("tokenizer.json", "\"unk_id\": 2", "\"unk_id\": null", "tokenizer.json: has no unknown token"),
        (
            "tokenizer.json",
            "\"unk_id\": 2",
            "\"unk_id\": 5",
            "tokenizer.json: does not encode an unknown character as `<unk>`",
        ),
        ("preprocessor_config.json", "\"height\": 64", "\"height\": 384", "size.height: is 384"),
        ("preprocessor_config.json", "\"resample\": 3", "\"resample\": 2", "resample: is 2"),
        ("preprocessor_config.json", "\"do_normalize\": true", "\"do_normalize\": false", "do_normalize: is false"),
    ] {
        let error = refused(edit(file, from, to).path());
        assert!(error.contains(want), "{file} {to}: {error}");
    }
    // Without a preprocessor_config.json, the published settings apply. The golden folder's file has the same
    // settings, so both give equal processors.
    let standard = changed("preprocessor_config.json", |_| None);
    let model = Siglip::open(&Device::cpu(1), standard.path(), DType::F32).unwrap();
    assert_eq!(model.processor, open(&Device::cpu(1), DType::F32).processor);
}

#[test]
fn rejects_weights_with_non_finite_embeddings() {
    let nan = |bytes: Vec<u8>| {
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let at = all.tensor("text_model.head.bias").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
        let mut bytes = bytes;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        Some(bytes)
    };
    let folder = changed("model.safetensors", nan);
    let model = Siglip::open(&Device::cpu(1), folder.path(), DType::F32).unwrap();
    let error = model.embed_texts(&["a"]).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}
