//! Tests of model folders of presets: they open, depend on the seed only, and have the expected scale of weights.

use reel_input::config::{GenerationConfig, Tower, open_preprocessor_config};
use reel_input::tokenizer::Tokenizer;
use reel_support::files::fingerprint::bytes_fingerprint;

use super::*;
use crate::checkpoint::Checkpoint;

fn tiny(seed: u64) -> InitOptions {
    InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed }
}

#[test]
fn tiny_folder_opens() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/tiny");
    let report = init_model_folder(&tiny(1), &out).unwrap();
    assert!((100_000..2_000_000).contains(&report.parameters), "{}", report.parameters);
    let config = ModelConfig::open(&out).unwrap();
    assert_eq!(config.dtype, Some(StoredDType::F32));
    assert!(
        config.text.head_dim.is_multiple_of(8)
            && config.vision.depth >= 2
            && matches!(&config.vision.tower, Tower::Qwen25(tower) if tower.fullatt_block_indexes == [1])
    );
    let checkpoint = Checkpoint::open(&out).unwrap();
    checkpoint.check(&config).unwrap();
    Tokenizer::open(&out).unwrap().check_fits(&config).unwrap();
    open_preprocessor_config(&out, &config).unwrap();
    assert_eq!(GenerationConfig::open(&out).unwrap().eos_token_id[0], config.tokens.eos[0]);
    let floats = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(checkpoint.tensor(name).unwrap().bytes) };
    assert!(floats("model.norm.weight").iter().all(|&x| x == 1.0));
    assert!(floats("model.layers.0.self_attn.q_proj.bias").iter().all(|&x| x == 0.0));
    let embed = floats("model.embed_tokens.weight");
    let std = (embed.iter().map(|x| x * x).sum::<f32>() / embed.len() as f32).sqrt();
    assert!((std - 0.25 / 128f32.sqrt()).abs() < 0.001, "{std}");
    let again = init_model_folder(&tiny(1), &out).unwrap_err().to_string();
    assert!(again.contains("is not empty"), "{again}");
}

/// A folder of Qwen3-VL has nested names, the files of transformers 4.57, and weights whose initial scale depends on
/// their kind. The number of decoder layers can be less than that of the DeepStack features.
#[test]
fn tiny_folder_of_qwen3_opens() {
    let folder = tempfile::tempdir().unwrap();
    for layers in [None, Some(1)] {
        let out = folder.path().join(format!("{layers:?}"));
        let report = init_model_folder(&InitOptions { preset: Preset::Qwen3Tiny, layers, ..tiny(1) }, &out).unwrap();
        assert!((500_000..1_500_000).contains(&report.parameters), "{}", report.parameters);
        let config = ModelConfig::open(&out).unwrap();
        assert_eq!((config.dtype, config.family()), (Some(StoredDType::F32), Family::Qwen3Vl));
        assert_eq!(config.text.num_hidden_layers, layers.unwrap_or(3));
        assert_eq!(config.vision.deepstack_blocks(), [0, 1]);
        assert_ne!(config.text.query_width(), config.text.hidden_size, "as in the 4B model");
        let checkpoint = Checkpoint::open(&out).unwrap();
        checkpoint.check(&config).unwrap();
        assert_eq!(checkpoint.tensor_naming(), TensorNaming::Nested);
        let tokenizer = Tokenizer::open(&out).unwrap();
        tokenizer.check_fits(&config).unwrap();
        assert!(tokenizer.token_to_id("<think>").is_some());
        open_preprocessor_config(&out, &config).unwrap();
        let generation = GenerationConfig::open(&out).unwrap();
        assert_eq!((generation.eos_token_id[0], generation.sampling.top_k), (config.tokens.eos[0], Some(20)));
        for (name, shape) in expected_tensors(&config) {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(checkpoint.tensor(&name).unwrap().bytes);
            let deviation = (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt();
            let want = match &name[..] {
                "visual.pos_embed.weight" => 0.02,
                _ if name.ends_with(".bias") => 0.0,
                _ if shape.len() == 1 => 1.0,
                "model.embed_tokens.weight" => 0.25 / 128f64.sqrt(),
                _ => continue,
            };
            assert!((deviation - want).abs() <= 0.02 * want, "{name}: {deviation}");
        }
    }
}

#[test]
fn bytes_depend_on_the_seed_but_not_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let weights = |name: &str, seed: u64, threads: usize| {
        let out = folder.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| init_model_folder(&tiny(seed), &out)).unwrap();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let a = weights("a", 5, 1);
    assert!(a == weights("b", 5, 3));
    assert!(a != weights("c", 6, 1));
}

#[test]
fn configs_of_presets_keep_their_bytes() {
    for (preset, want) in [
        (Preset::Tiny, "42f590879718a9a0"),
        (Preset::B3, "32b3d7aa91f94d9a"),
        (Preset::B7, "f98314dcd95fb3ad"),
        (Preset::B32, "e5f29edf7683ba79"),
        (Preset::B72, "30b02029e7c7386b"),
    ] {
        let options = InitOptions { preset, ..tiny(0) };
        let config = config_json(&options, &preset.tokenizer()).unwrap();
        assert_eq!(bytes_fingerprint(format!("{config:#}\n").as_bytes()), want, "{preset:?}");
    }
}

#[test]
fn presets_have_the_published_shapes() {
    let options = |preset| InitOptions { preset, layers: None, vocab: None, dtype: None, seed: 0 };
    let count = |config: &ModelConfig| -> usize {
        expected_tensors(config).iter().map(|(_, s)| s.iter().product::<usize>()).sum()
    };
    let b3 = preset_config(&options(Preset::B3)).unwrap();
    let [b7, b32, b72] = [Preset::B7, Preset::B32, Preset::B72].map(|preset| preset_config(&options(preset)).unwrap());
    // The parameter counts of the published checkpoints.
    assert_eq!((count(&b3), b3.tie_word_embeddings, b3.text.head_dim), (3_754_622_976, true, 128));
    assert_eq!((count(&b7), b7.tie_word_embeddings, b7.text.head_dim), (8_292_166_656, false, 128));
    assert_eq!((count(&b32), b32.tie_word_embeddings, b32.text.head_dim), (33_452_718_336, false, 128));
    assert_eq!((count(&b72), b72.tie_word_embeddings, b72.text.head_dim), (73_410_777_344, false, 128));
    assert_eq!(b3.text.mrope_section, [16, 24, 24]);
    assert_eq!((b3.tokens.image, b3.tokens.video, b3.tokens.eos.clone()), (151_655, 151_656, vec![151_645]));
    let cut = preset_config(&InitOptions { layers: Some(4), vocab: Some(160_000), ..options(Preset::B3) }).unwrap();
    assert_eq!((cut.text.num_hidden_layers, cut.text.vocab_size, cut.vision.depth), (4, 160_000, 32));
    let small =
        init_model_folder(&InitOptions { vocab: Some(100), ..tiny(0) }, Path::new("nowhere")).unwrap_err().to_string();
    assert!(small.starts_with("--vocab: 100 is too small"), "{small}");
    assert!(preset_config(&InitOptions { layers: Some(0), ..tiny(0) }).is_err());
    assert!(Preset::parse("13b").unwrap_err().to_string().contains(&format!("choose {}", Preset::NAMES)));
    let names = Preset::NAMES.replace(" or", ",");
    assert_eq!(names.split(", ").collect::<Vec<_>>(), Preset::ALL.map(Preset::name));
}

/// The shapes of the published Qwen3-VL models: width, layers, query width, whether embeddings are tied, and DeepStack
/// blocks.
#[test]
fn presets_of_qwen3_have_the_published_shapes() {
    for (preset, hidden, layers, queries, tied, deepstack, tower_head_dim) in [
        (Preset::Qwen3B2, 2048, 28, 2048, true, [5, 11, 17], 64),
        (Preset::Qwen3B4, 2560, 36, 4096, true, [5, 11, 17], 64),
        (Preset::Qwen3B8, 4096, 36, 4096, false, [8, 16, 24], 72),
        (Preset::Qwen3B32, 5120, 64, 8192, false, [8, 16, 24], 72),
    ] {
        let ModelConfig { text, vision, tokens, tie_word_embeddings, .. } =
            preset_config(&InitOptions { preset, ..tiny(0) }).unwrap();
        assert_eq!((text.hidden_size, text.num_hidden_layers, text.query_width()), (hidden, layers, queries));
        assert_eq!((text.head_dim, text.mrope_section, text.mrope_interleaved), (128, [24, 20, 20], true));
        assert_eq!((tie_word_embeddings, vision.deepstack_blocks()), (tied, &deepstack[..]), "{preset:?}");
        assert_eq!((vision.head_dim, vision.patch_dim()), (tower_head_dim, 1536));
        assert_eq!((tokens.image, tokens.video, tokens.eos.clone()), (151_655, 151_656, vec![151_645]));
    }
    let cut = preset_config(&InitOptions { preset: Preset::Qwen3B4, layers: Some(2), vocab: Some(160_000), ..tiny(0) });
    let cut = cut.unwrap();
    assert_eq!((cut.text.num_hidden_layers, cut.text.vocab_size, cut.vision.depth), (2, 160_000, 24));
}
