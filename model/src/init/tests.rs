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
        let config = config_json(&options, &small_tokenizer(preset.first_added_token_id())).unwrap();
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
    assert!(Preset::parse("13b").unwrap_err().to_string().contains("choose tiny, 3b, 7b, 32b or 72b"));
    let names = Preset::NAMES.replace(" or", ",");
    assert_eq!(names.split(", ").collect::<Vec<_>>(), Preset::ALL.map(Preset::name));
}
