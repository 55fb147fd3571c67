//! Tests with configs of several transformers versions, and with one error of each kind.

use crate::media::patches::ImageProcessorSettings;
use serde_json::{Value, json};

use super::*;

/// A small valid config with text keys at the top level, as on the hub.
pub(crate) fn flat_config_json() -> Value {
    serde_json::from_str(include_str!("tiny.json")).expect("the test's own config is JSON")
}

/// The parsed [`flat_config_json`] config, for tests of other modules.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig::parse("config.json", &flat_config_json().to_string()).expect("the test's own config is right")
}

/// A small valid config of Qwen3-VL, as transformers 4.57 writes it.
pub(crate) fn qwen3_config_json() -> Value {
    serde_json::from_str(include_str!("tiny_qwen3.json")).expect("the test's own config is JSON")
}

/// The part of a config that only vision towers of Qwen2.5-VL have.
fn qwen25(config: &mut ModelConfig) -> &mut Qwen25Tower {
    let Tower::Qwen25(tower) = &mut config.vision.tower else { panic!("another tower") };
    tower
}

/// The [`flat_config_json`] config with its keys arranged as transformers 4.57 writes them.
fn nested() -> Value {
    let mut root = flat_config_json();
    let top = ["model_type", "tie_word_embeddings", "bos_token_id", "eos_token_id", "vision_config"];
    let map = root.as_object_mut().unwrap();
    let mut text: serde_json::Map<String, Value> =
        map.iter().filter(|(k, _)| !top.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect();
    map.retain(|k, _| top.contains(&k.as_str()));
    text.remove("torch_dtype");
    text.insert("dtype".into(), json!("bfloat16"));
    text.insert("rope_scaling".into(), json!({"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]}));
    text.insert("layer_types".into(), json!(["full_attention", "full_attention"]));
    text.insert("tie_word_embeddings".into(), json!(false));
    text.insert("sliding_window".into(), Value::Null);
    map.insert("text_config".into(), Value::Object(text));
    root
}

#[test]
fn nested_layout_equals_flat_layout() {
    let mut nested = ModelConfig::parse("config.json", &nested().to_string()).unwrap();
    assert_eq!(nested, tiny_config());
    assert!(nested.tie_word_embeddings);
    assert_eq!(qwen25(&mut nested).fullatt_block_indexes, [1, 3]);
    assert_eq!(nested.text.head_dim, 16);
}

/// The [`flat_config_json`] config as transformers 5 writes it.
fn version_5() -> Value {
    let mut root = nested();
    root["dtype"] = json!("bfloat16");
    let text = root["text_config"].as_object_mut().unwrap();
    let (theta, mut rope) = (text.remove("rope_theta").unwrap(), text.remove("rope_scaling").unwrap());
    rope["rope_theta"] = theta;
    text.insert("rope_parameters".into(), rope);
    root["vision_config"]["rope_parameters"] = json!({"rope_theta": 10000.0, "rope_type": "axial"});
    root
}

#[test]
fn layout_of_version_5_equals_flat_layout() {
    assert_eq!(ModelConfig::parse("config.json", &version_5().to_string()).unwrap(), tiny_config());
}

/// Contradicting values at two levels of one file are refused.
#[test]
fn values_that_contradict_each_other_are_refused_by_name() {
    for (path, value, expected) in [
        (
            "rope_theta",
            json!(5e5),
            "config.json: rope_theta: is 500000.0, but text_config.rope_parameters.rope_theta is 1000000.0",
        ),
        ("text_config.rope_theta", json!(5e5), "text_config.rope_theta: is 500000.0, but"),
        ("rope_scaling", json!({"mrope_section": [4, 2, 2]}), "rope_scaling.mrope_section: is [4, 2, 2], but"),
        ("hidden_size", json!(128), "config.json: hidden_size: is 128, but text_config.hidden_size is 64"),
        ("vision_config.rope_parameters.rope_theta", json!(5e5), "rope_theta: is 500000; only 10000"),
        ("text_config.rope_parameters.mrope_section", json!(null), "rope_parameters.mrope_section: is missing"),
    ] {
        let text = change(version_5(), path, Some(value)).to_string();
        let error = ModelConfig::parse("config.json", &text).expect_err(path).to_string();
        assert!(error.contains(expected), "{path}: {error}");
    }
    // The outer dtype counts; a note names the inner one.
    let text = change(version_5(), "dtype", Some(json!("float32"))).to_string();
    assert_eq!(ModelConfig::parse("config.json", &text).unwrap().dtype, Some(StoredDType::F32));
}

/// The processor settings are read from the files of transformers 4 and of transformers 5. If both files exist, they
/// must agree.
#[test]
fn processor_files_of_version_5_are_read_and_must_agree() {
    let image = json!({"size": {"shortest_edge": 3136, "longest_edge": 50176}, "patch_size": 14, "merge_size": 2});
    let joint = |image: &Value, video: Value| json!({"image_processor": image, "video_processor": video}).to_string();
    let open = |files: &[(&str, String)]| {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        open_preprocessor_config(folder.path(), &tiny_config()).map_err(|e| e.to_string())
    };
    let videos = json!({"size": {"shortest_edge": 100352, "longest_edge": 602112}, "max_frames": 768});
    let found = open(&[("processor_config.json", joint(&image, videos.clone()))]).unwrap();
    assert_eq!((found.min_pixels, found.max_pixels), (3136, 50176));
    // The folder may also have the file of transformers 4, with the same settings in its own format.
    let same = json!({"min_pixels": 3136, "max_pixels": 50176}).to_string();
    let both = [("processor_config.json", joint(&image, videos)), ("preprocessor_config.json", same.clone())];
    assert_eq!(open(&both).unwrap(), found);
    for (files, expected) in [
        (
            vec![
                ("processor_config.json", joint(&image, json!({}))),
                ("preprocessor_config.json", json!({"max_pixels": 9}).to_string()),
            ],
            "preprocessor_config.json: min_pixels: ",
        ),
        (
            vec![
                ("processor_config.json", joint(&image, json!({}))),
                ("preprocessor_config.json", json!({"min_pixels": 3136, "max_pixels": 5000}).to_string()),
            ],
            "preprocessor_config.json: max_pixels: is 5000, but 50176 in ",
        ),
        (
            vec![("processor_config.json", joint(&image, json!({"image_mean": [0.5, 0.5, 0.5]})))],
            "processor_config.json: video_processor: image_mean: is ",
        ),
        (
            vec![
                ("preprocessor_config.json", same.clone()),
                ("video_preprocessor_config.json", json!({"patch_size": 16}).to_string()),
            ],
            "video_preprocessor_config.json: patch_size: is 16, but 14 in ",
        ),
        (
            vec![("processor_config.json", joint(&json!({"patch_size": 16}), json!({})))],
            "processor_config.json: image_processor: patch_size: is 16, but the vision tower",
        ),
    ] {
        let error = open(&files).unwrap_err();
        assert!(error.contains(expected) && error.contains("; "), "{error}");
    }
}

#[test]
fn absent_vision_keys_have_defaults_of_transformers() {
    let mut root = flat_config_json();
    root["hidden_size"] = json!(3584);
    root["num_attention_heads"] = json!(28);
    root["num_key_value_heads"] = json!(4);
    root["rope_scaling"]["mrope_section"] = json!([16, 24, 24]);
    root["vision_config"] = json!({"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "spatial_patch_size": 14, "tokens_per_second": 2});
    let vision = ModelConfig::parse("config.json", &root.to_string()).unwrap().vision;
    assert_eq!(
        (vision.depth, vision.num_heads, vision.intermediate_size, vision.out_hidden_size),
        (32, 16, 3420, 3584)
    );
    let Tower::Qwen25(tower) = vision.tower else { panic!("another tower") };
    assert_eq!((tower.window_size, tower.fullatt_block_indexes), (112, vec![7, 15, 23, 31]));
}

/// Sets the key at a path to a value, or removes the key if the value is `None`.
fn change(mut root: Value, path: &str, value: Option<Value>) -> Value {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap();
    let map = keys.into_iter().fold(&mut root, |value, key| &mut value[key]).as_object_mut().unwrap();
    match value {
        Some(value) => map.insert(last.to_string(), value),
        None => map.remove(last),
    };
    root
}

/// Checks that each change of a key makes a config that is refused with one line, which names the file and the field.
fn check_slips(root: Value, slips: Vec<(&str, Option<Value>, &str)>) {
    for (path, value, expected) in slips {
        let text = change(root.clone(), path, value.clone()).to_string();
        let error = ModelConfig::parse("d/config.json", &text).expect_err(path).to_string();
        let field = path.rsplit('.').next().unwrap();
        let named = error.contains(field) || (field == "hidden_size" && error.contains("num_attention_heads"));
        assert!(error.starts_with("d/config.json: ") && named && error.contains(expected), "{path} {value:?}: {error}");
        assert!(!error.contains('\n'));
    }
}

/// The three layouts in which transformers 4.57 and 5 write a config of Qwen3-VL give the same config.
#[test]
fn layouts_of_qwen3_are_equal() {
    let config = ModelConfig::parse("c", &qwen3_config_json().to_string()).unwrap();
    assert_eq!((config.family(), config.dtype), (Family::Qwen3Vl, Some(StoredDType::F32)));
    assert!(config.tie_word_embeddings && config.text.has_head_norms && !config.text.has_qkv_bias);
    assert_eq!((config.text.query_width(), config.text.key_value_width(), config.vision.patch_dim()), (128, 64, 1536));
    assert_eq!(config.vision.deepstack_blocks(), [0, 2]);
    let mut version_5 = qwen3_config_json();
    version_5["dtype"] = json!("float32");
    version_5["vision_config"]["rope_parameters"] = json!({"rope_theta": 10000.0, "rope_type": "axial"});
    version_5["vision_config"]["model_type"] = json!("qwen3_vl_vision");
    let text = version_5["text_config"].as_object_mut().unwrap();
    let (theta, mut rope) = (text.remove("rope_theta").unwrap(), text.remove("rope_scaling").unwrap());
    rope["rope_theta"] = theta;
    text.insert("rope_parameters".into(), rope);
    assert_eq!(ModelConfig::parse("c", &version_5.to_string()).unwrap(), config);
}

proptest::proptest! {
    /// Interleaved frequencies: each axis has as many as its section, if the sections of height and width end before
    /// the last frequency, as in all published models.
    #[test]
    fn interleaved_axes_have_their_sections(height in 1usize..20, more in 0usize..20) {
        let (half, width) = (3 * height + more, height);
        let text = TextConfig {
            head_dim: 2 * half,
            mrope_section: [half - height - width, height, width],
            mrope_interleaved: true,
            ..tiny_config().text
        };
        let axes = text.frequency_axes();
        for axis in 0..3 {
            let count = axes.iter().filter(|&&other| other == axis as i32).count();
            proptest::prop_assert_eq!(count, text.mrope_section[axis]);
        }
    }
}

#[test]
fn errors_of_qwen3_name_file_and_field() {
    check_slips(
        qwen3_config_json(),
        vec![
            ("model_type", Some(json!("qwen3_vl_moe")), "mixtures of experts"),
            ("quantization_config", Some(json!({"quant_method": "fp4"})), "is `fp4`; the supported methods are"),
            ("text_config.rope_scaling.mrope_section", Some(json!([6, 5, 6])), "sums to 17; the sum must be 16"),
            ("text_config.head_dim", Some(json!(64)), "half of head_dim"),
            ("text_config.head_dim", Some(json!(33)), "even number"),
            ("text_config.rope_scaling.mrope_interleaved", Some(json!(false)), "only true is supported"),
            ("text_config.attention_bias", Some(json!(true)), "not supported"),
            ("vision_config.deepstack_visual_indexes", Some(json!([0, 4])), "has 4, but the tower has 4 blocks"),
            ("vision_config.deepstack_visual_indexes", Some(json!([2, 0])), "must ascend"),
            ("vision_config.patch_size", Some(json!(14)), "is 14; only 16 is supported for Qwen3-VL"),
            ("vision_config.spatial_merge_size", Some(json!(1)), "is 1; only 2"),
            ("vision_config.num_position_embeddings", Some(json!(65)), "not a square"),
            ("vision_config.hidden_act", Some(json!("silu")), "gelu_pytorch_tanh"),
            ("vision_config.out_hidden_size", Some(json!(65)), "hidden_size is 64"),
        ],
    );
}

#[test]
fn errors_name_file_and_field() {
    let slips: Vec<(&str, Option<Value>, &str)> = vec![
        ("hidden_size", None, "is missing"),
        ("hidden_size", Some(json!(-64)), "whole number"),
        ("hidden_size", Some(json!("64")), "whole number"),
        ("hidden_size", Some(json!(66)), "does not divide"),
        ("num_attention_heads", Some(json!(5)), "does not divide"),
        ("num_attention_heads", Some(json!(0)), "at least 1"),
        ("num_key_value_heads", Some(json!(3)), "does not divide"),
        ("num_hidden_layers", Some(json!(100_000)), "at most"),
        ("rms_norm_eps", Some(json!(0)), "above 0"),
        ("rope_theta", None, "is missing"),
        ("hidden_act", Some(json!("gelu")), "silu"),
        ("model_type", Some(json!("qwen2_vl")), "qwen2_5_vl"),
        ("model_type", None, "is missing"),
        ("rope_scaling", None, "is missing"),
        ("rope_scaling.mrope_section", Some(json!([2, 3, 4])), "sums to 9"),
        ("rope_scaling.mrope_section", Some(json!([4, 4])), "2 numbers"),
        ("rope_scaling.type", Some(json!("yarn")), "yarn"),
        ("tie_word_embeddings", Some(json!("yes")), "true or false"),
        ("torch_dtype", Some(json!("int8")), "int8"),
        ("image_token_id", Some(json!(432)), "vocab_size"),
        ("video_token_id", None, "is missing"),
        ("eos_token_id", Some(json!([402, 500])), "vocab_size"),
        ("vision_config", None, "is missing"),
        ("vision_config", Some(json!([])), "not an object"),
        ("vision_config.out_hidden_size", Some(json!(65)), "hidden_size is 64"),
        ("vision_config.num_heads", Some(json!(3)), "does not divide"),
        ("vision_config.num_heads", Some(json!(4)), "multiple of 4"),
        ("vision_config.window_size", Some(json!(27)), "at least 28"),
        ("vision_config.in_chans", Some(json!(1)), "3 channels"),
        ("vision_config.patch_size", Some(json!(0)), "at least 1"),
        ("vision_config.fullatt_block_indexes", Some(json!([-1])), "whole number"),
        ("vision_config.tokens_per_second", Some(json!(-2)), "above 0"),
        ("quantization_config", Some(json!({"bits": 4})), "quantization_config.quant_method: is missing"),
    ];
    check_slips(flat_config_json(), slips);
    for text in ["", "[]", "{", "{\"model_type\": 3}"] {
        assert!(ModelConfig::parse("d/config.json", text).is_err());
    }
}

#[test]
fn rejects_sliding_window_only_if_a_layer_uses_it() {
    let on = change(flat_config_json(), "use_sliding_window", Some(json!(true)));
    assert!(ModelConfig::parse("c", &on.to_string()).is_ok(), "max_window_layers 2 of 2 layers: no layer has a window");
    let error =
        ModelConfig::parse("c", &change(on, "max_window_layers", Some(json!(1))).to_string()).unwrap_err().to_string();
    assert!(error.contains("use_sliding_window"), "{error}");
    let kinds = change(flat_config_json(), "layer_types", Some(json!(["full_attention", "sliding_attention"])));
    assert!(ModelConfig::parse("c", &kinds.to_string()).is_err());
}

#[test]
fn generation_config_accepts_one_or_more_end_tokens() {
    let one = GenerationConfig::parse("g", r#"{"eos_token_id": 7, "temperature": 1e-6, "top_k": 1}"#).unwrap();
    let own = one.sampling;
    assert_eq!(
        (one.eos_token_id, own.temperature, own.top_k, own.repetition_penalty),
        (vec![7], Some(1e-6), Some(1), None)
    );
    let more = GenerationConfig::parse("g", r#"{"eos_token_id": [7, 8], "repetition_penalty": 1.05, "top_p": 0.001}"#)
        .unwrap();
    assert_eq!((more.eos_token_id, more.sampling.repetition_penalty), (vec![7, 8], Some(1.05)));
    let many = format!(r#"{{"eos_token_id": {:?}}}"#, [1; 300]);
    for bad in [
        &many[..],
        r#"{"eos_token_id": 4294967296}"#,
        r#"{"top_p": 0}"#,
        r#"{"temperature": -1}"#,
        r#"{"eos_token_id": "x"}"#,
        r#"{"repetition_penalty": 0}"#,
        "3",
    ] {
        assert!(GenerationConfig::parse("g", bad).unwrap_err().to_string().starts_with("g: "), "{bad}");
    }
}

#[test]
fn preprocessor_accepts_pixels_or_size() {
    let pixels = parse_preprocessor_config(
        "p",
        r#"{"min_pixels": 3136, "max_pixels": 12845056, "size": {"shortest_edge": 1, "longest_edge": 2}}"#,
        Family::Qwen25Vl,
    )
    .unwrap();
    assert_eq!((pixels.min_pixels, pixels.max_pixels), (3136, 12845056));
    let size =
        parse_preprocessor_config("p", r#"{"size": {"shortest_edge": 3136, "longest_edge": 50176}}"#, Family::Qwen25Vl)
            .unwrap();
    assert_eq!((size.min_pixels, size.max_pixels), (3136, 50176));
    let defaults = ImageProcessorSettings { max_pixels: 28 * 28 * 1280, ..ImageProcessorSettings::default() };
    assert_eq!(parse_preprocessor_config("p", "{}", Family::Qwen25Vl).unwrap(), defaults);
    for bad in [
        r#"{"min_pixels": 5, "max_pixels": 4}"#,
        r#"{"image_std": [0, 1, 1]}"#,
        r#"{"image_std": [0.5, 0.5, 1e-30]}"#,
        r#"{"min_pixels": 1000000000000, "max_pixels": 1000000000000}"#,
        r#"{"image_mean": [1, 1]}"#,
        r#"{"do_rescale": false}"#,
        r#"{"resample": 2}"#,
    ] {
        assert!(
            parse_preprocessor_config("p", bad, Family::Qwen25Vl).unwrap_err().to_string().starts_with("p: "),
            "{bad}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_value_of_any_key_parses_or_errs_without_panic(key in 0usize..40, value in 0usize..10) {
        let mut paths: Vec<String> = Vec::new();
        for (name, value) in flat_config_json().as_object().unwrap() {
            paths.push(name.clone());
            paths.extend(value.as_object().iter().flat_map(|inner| inner.keys()).map(|inner| format!("{name}.{inner}")));
        }
        let values = [json!(null), json!(0), json!(-1), json!(1), json!(1u64 << 40), json!(1e300), json!("x"), json!([]), json!({}), json!([-1, 2])];
        let text = change(flat_config_json(), &paths[key % paths.len()], Some(values[value].clone())).to_string();
        match ModelConfig::parse("c.json", &text) {
            Err(error) => proptest::prop_assert!(error.to_string().starts_with("c.json: ") && !error.to_string().contains('\n')),
            Ok(config) => proptest::prop_assert!(config.text.vocab_size > 0 && config.vision.patch_dim() > 0),
        }
    }
}

#[test]
fn the_first_difference_names_its_key() {
    type Change = fn(&mut ModelConfig);
    let changes: [(&str, Change); 30] = [
        ("vocab_size", |c| c.text.vocab_size += 1),
        ("hidden_size", |c| c.text.hidden_size += 1),
        ("intermediate_size", |c| c.text.intermediate_size += 1),
        ("num_hidden_layers", |c| c.text.num_hidden_layers += 1),
        ("num_attention_heads", |c| c.text.num_attention_heads += 1),
        ("num_key_value_heads", |c| c.text.num_key_value_heads += 1),
        ("head_dim", |c| c.text.head_dim += 1),
        ("rms_norm_eps", |c| c.text.rms_norm_eps *= 2.0),
        ("rope_theta", |c| c.text.rope_theta *= 2.0),
        ("rope_scaling.mrope_section", |c| c.text.mrope_section[0] += 1),
        ("max_position_embeddings", |c| c.text.max_position_embeddings += 1),
        ("tie_word_embeddings", |c| c.tie_word_embeddings = !c.tie_word_embeddings),
        ("vision_config.depth", |c| c.vision.depth += 1),
        ("vision_config.hidden_size", |c| c.vision.hidden_size += 1),
        ("vision_config.intermediate_size", |c| c.vision.intermediate_size += 1),
        ("vision_config.num_heads", |c| c.vision.num_heads += 1),
        ("vision_config.in_channels", |c| c.vision.in_channels += 1),
        ("vision_config.patch_size", |c| c.vision.patch_size += 1),
        ("vision_config.temporal_patch_size", |c| c.vision.temporal_patch_size += 1),
        ("vision_config.spatial_merge_size", |c| c.vision.spatial_merge_size += 1),
        ("vision_config.window_size", |c| qwen25(c).window_size += 1),
        ("vision_config.fullatt_block_indexes", |c| qwen25(c).fullatt_block_indexes.push(9)),
        ("vision_config.out_hidden_size", |c| c.vision.out_hidden_size += 1),
        ("vision_config.tokens_per_second", |c| qwen25(c).tokens_per_second += 1.0),
        ("bos_token_id", |c| c.tokens.bos = Some(77)),
        ("eos_token_id", |c| c.tokens.eos.push(77)),
        ("vision_start_token_id", |c| c.tokens.vision_start += 1),
        ("vision_end_token_id", |c| c.tokens.vision_end += 1),
        ("image_token_id", |c| c.tokens.image += 1),
        ("video_token_id", |c| c.tokens.video += 1),
    ];
    let own = tiny_config();
    for (key, change) in changes {
        let mut other = own.clone();
        change(&mut other);
        let (found, theirs, ours) = own.first_difference(&other).unwrap();
        assert!(found == key && theirs != ours, "{key}: {found} {theirs} {ours}");
    }
    let other = ModelConfig { dtype: Some(StoredDType::F16), ..own.clone() };
    assert_eq!(own.first_difference(&other), None);
}
