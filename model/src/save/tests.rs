//! Tests that saved folders have the same content when they are read back, and that a failed save leaves no files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use reel_input::config::{ModelConfig, open_preprocessor_config};
use reel_input::tensor_file::StoredDType;
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{Checkpoint, TensorNaming, expected_tensors};
use crate::error::Error;
use crate::init::{InitOptions, Preset, init_without_weights};
use crate::testing::{flat_config_json, tiny_config};

fn specs(dtype: StoredDType) -> Vec<TensorSpec> {
    expected_tensors(&tiny_config()).into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect()
}

/// Writes the bytes of a tensor; they depend only on its name.
fn fill(spec: &TensorSpec, out: &mut dyn Write) -> std::io::Result<()> {
    let seed = spec.name.bytes().fold(7u8, |a, b| a.wrapping_mul(31).wrapping_add(b));
    out.write_all(&vec![seed; spec.bytes() as usize])
}

/// Creates a model folder in OUT/.part, writes its weights in two halves of each tensor, and moves it to OUT.
fn write_hub_folder(out: &Path, folder: HubFolder, specs: &[TensorSpec], shard_bytes: u64) {
    let (part, weight_files) = (out.join(".part"), WeightFiles::new(folder.naming, specs, shard_bytes));
    create_hub_folder(&part, folder, &weight_files).unwrap();
    for second_half in [true, false] {
        for (spec, file, start) in weight_files.tensor_positions().unwrap() {
            let mut bytes = Vec::new();
            fill(spec, &mut bytes).unwrap();
            let half = bytes.len() / 2;
            let (bytes, start) =
                if second_half { (&bytes[half..], start + half as u64) } else { (&bytes[..half], start) };
            let file = fs::File::options().write(true).open(part.join(file)).unwrap();
            file.write_all_at(bytes, start).unwrap();
        }
    }
    move_hub_files(&part, out).unwrap();
    fs::remove_dir(part).unwrap();
}

fn source() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), flat_config_json().to_string()).unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saved_folder_reads_back_equal_in_both_naming_schemes() {
    let source = source();
    for naming in [TensorNaming::Classic, TensorNaming::Nested] {
        let out = tempfile::tempdir().unwrap();
        let small_files = ConfigAndTokenizerFiles::read(source.path()).unwrap();
        let folder = HubFolder { small_files: &small_files, naming, dtype: StoredDType::F32 };
        write_hub_folder(out.path(), folder, &specs(StoredDType::F32), MAX_SHARD_BYTES);
        assert_eq!(names(out.path()), ["config.json", "model.safetensors", "tokenizer.json"]);
        let config = ModelConfig::open(out.path()).unwrap();
        assert_eq!(config.dtype, Some(StoredDType::F32), "config.json said bfloat16 before");
        let checkpoint = Checkpoint::open(out.path()).unwrap();
        checkpoint.check(&config).unwrap();
        assert_eq!(checkpoint.tensor_naming(), naming);
        for spec in specs(StoredDType::F32) {
            let mut want = Vec::new();
            fill(&spec, &mut want).unwrap();
            assert_eq!(checkpoint.tensor_with_shape(&spec.name, &spec.shape).unwrap().bytes, want);
        }
    }
}

/// A folder that several writers fill has the same files as a folder written tensor by tensor, and replaces the files
/// of an earlier save. The small files are saved as they were read, even if their source folder has been removed
/// since.
#[test]
fn several_writers_fill_in_the_files_of_one() {
    let source = source();
    let small_files = ConfigAndTokenizerFiles::read(source.path()).unwrap();
    drop(source);
    let folder = HubFolder { small_files: &small_files, naming: TensorNaming::Nested, dtype: StoredDType::F32 };
    let (out, want, tensors) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), specs(StoredDType::F32));
    for shard_bytes in [40_000, MAX_SHARD_BYTES, 90_000] {
        write_hub_folder(out.path(), folder, &tensors, shard_bytes);
        write_weights(want.path(), TensorNaming::Nested, &tensors, shard_bytes, fill).unwrap();
        let wanted = names(want.path());
        assert_eq!(names(out.path()), [&["config.json".to_string()][..], &wanted, &["tokenizer.json".into()]].concat());
        for name in wanted {
            assert!(fs::read(out.path().join(&name)).unwrap() == fs::read(want.path().join(&name)).unwrap(), "{name}");
        }
    }
}

#[test]
fn writes_shards_and_removes_those_of_an_earlier_save() {
    let out = tempfile::tempdir().unwrap();
    let tensors = specs(StoredDType::Bf16);
    write_weights(out.path(), TensorNaming::Classic, &tensors, 40_000, fill).unwrap();
    let checkpoint = Checkpoint::open(out.path()).unwrap();
    checkpoint.check(&tiny_config()).unwrap();
    assert!(checkpoint.mapped_files().len() > 3);
    let largest = tensors.iter().map(TensorSpec::bytes).max().unwrap();
    assert!(checkpoint.mapped_files().iter().all(|s| s.len() as u64 <= 40_000.max(largest) + 20_000));
    write_weights(out.path(), TensorNaming::Classic, &tensors, MAX_SHARD_BYTES, fill).unwrap();
    assert_eq!(names(out.path()), ["model.safetensors"]);
    // The checkpoint was opened before the save, and must still have its old bytes.
    checkpoint.check(&tiny_config()).unwrap();
    let bytes = checkpoint.tensor("model.norm.weight").unwrap().bytes.to_vec();
    assert_eq!(bytes, Checkpoint::open(out.path()).unwrap().tensor("model.norm.weight").unwrap().bytes);
}

#[test]
fn failed_save_keeps_the_old_folder() {
    let out = tempfile::tempdir().unwrap();
    let tensors = specs(StoredDType::Bf16);
    write_weights(out.path(), TensorNaming::Classic, &tensors, MAX_SHARD_BYTES, fill).unwrap();
    let before = fs::read(out.path().join("model.safetensors")).unwrap();
    let mut count = 0;
    let full = |spec: &TensorSpec, to: &mut dyn Write| {
        count += 1;
        if count == 30 { Err(std::io::Error::from(std::io::ErrorKind::StorageFull)) } else { fill(spec, to) }
    };
    let error = write_weights(out.path(), TensorNaming::Classic, &tensors, 40_000, full).unwrap_err().to_string();
    assert!(error.contains("the disk is full; free space"), "{error}");
    for wrong in [1u64, u64::MAX] {
        let odd =
            |spec: &TensorSpec, to: &mut dyn Write| to.write_all(&vec![0; spec.bytes().wrapping_add(wrong) as usize]);
        assert!(write_weights(out.path(), TensorNaming::Classic, &tensors, MAX_SHARD_BYTES, odd).is_err());
    }
    assert_eq!(names(out.path()), ["model.safetensors"]);
    assert_eq!(fs::read(out.path().join("model.safetensors")).unwrap(), before);
    let missing =
        write_weights(&out.path().join("no/folder"), TensorNaming::Classic, &tensors, 1, fill).unwrap_err().to_string();
    assert!(missing.contains("model-00001-of-"), "{missing}");
}

#[test]
fn full_device_error_is_one_line() {
    // Every write to /dev/full fails as on a full disk.
    let full = Path::new("/dev/full");
    if !full.exists() {
        eprintln!("skipped full_device_error_is_one_line: this system has no /dev/full");
        return;
    }
    let mut file = fs::OpenOptions::new().write(true).open(full).unwrap();
    let error = Error::cannot_write("out/model.safetensors", file.write_all(&[0; 16]).unwrap_err()).to_string();
    assert_eq!(
        error,
        "out/model.safetensors: cannot be written: the disk is full; free space on that disk, or choose another folder"
    );
}

/// Converting the small files to the layout of transformers 5 keeps their content, and converting them back restores
/// their keys and values.
#[test]
fn folders_are_written_in_both_formats() {
    let source = source();
    let write = |name: &str, value: Value| fs::write(source.path().join(name), value.to_string()).unwrap();
    write("preprocessor_config.json", json!({"min_pixels": 3136, "max_pixels": 50176, "patch_size": 14}));
    write("chat_template.json", json!({"chat_template": "{{ messages }}"}));
    let tools = "{{ tools }}";
    write("tokenizer_config.json", json!({"chat_template": tools, "additional_special_tokens": ["<|im_end|>"]}));
    let before = ConfigAndTokenizerFiles::read(source.path()).unwrap();
    let (config, preprocessor) = (ModelConfig::open(source.path()).unwrap(), |folder: &Path| {
        open_preprocessor_config(folder, &tiny_config()).unwrap()
    });
    let settings = preprocessor(source.path());
    ConfigAndTokenizerFiles::convert_folder(source.path(), FolderFormat::Transformers5).unwrap();
    assert_eq!(
        names(source.path()),
        ["chat_template.jinja", "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
    );
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(source.path().join(name)).unwrap()).unwrap() };
    let root = read("config.json");
    assert_eq!(root["text_config"]["rope_parameters"]["rope_theta"], 1e6);
    assert_eq!(
        (&root["dtype"], &root["hidden_size"], &root["torch_dtype"]),
        (&json!("bfloat16"), &json!(null), &json!(null))
    );
    assert_eq!(read("processor_config.json")["video_processor"]["patch_size"], 14);
    // tokenizer_config.json keeps its own chat template, because it differs from chat_template.json.
    let tokenizer = read("tokenizer_config.json");
    assert_eq!(
        (&tokenizer["chat_template"], &tokenizer["extra_special_tokens"][0]),
        (&json!(tools), &json!("<|im_end|>"))
    );
    assert_eq!((ModelConfig::open(source.path()).unwrap(), preprocessor(source.path())), (config, settings));
    ConfigAndTokenizerFiles::convert_folder(source.path(), FolderFormat::Transformers4).unwrap();
    for name in ["preprocessor_config.json", "chat_template.json", "tokenizer_config.json"] {
        let (now, then) = (read(name), serde_json::from_slice::<Value>(before.file(name).unwrap()).unwrap());
        for (key, value) in then.as_object().unwrap() {
            assert_eq!(&now[key], value, "{name}: {key}");
        }
    }
    assert_eq!((&read("config.json")["hidden_size"], &read("config.json")["text_config"]), (&json!(64), &json!(null)));
}

/// The files of Qwen3-VL keep their content in the layout of transformers 5. The way back restores every key, and
/// config.json has the dtype at its top level, too.
#[test]
fn folders_of_qwen3_are_written_in_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let options = InitOptions { preset: Preset::Qwen3Tiny, layers: None, vocab: None, dtype: None, seed: 0 };
    init_without_weights(&options, folder.path()).unwrap();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap() };
    const JSON: [&str; 5] = [
        "config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
        "tokenizer_config.json",
    ];
    let (before, config) = (JSON.map(read), ModelConfig::open(folder.path()).unwrap());
    let settings = open_preprocessor_config(folder.path(), &config).unwrap();
    ConfigAndTokenizerFiles::convert_folder(folder.path(), FolderFormat::Transformers5).unwrap();
    let root = read("config.json");
    assert_eq!(
        root["text_config"]["rope_parameters"],
        json!({"mrope_interleaved": true, "mrope_section": [12, 10, 10], "rope_theta": 5_000_000, "rope_type": "default"})
    );
    assert_eq!((&root["dtype"], &root["text_config"]["rope_scaling"]), (&json!("float32"), &json!(null)));
    assert_eq!(root["vision_config"]["model_type"], "qwen3_vl_vision");
    let processor = read("processor_config.json");
    assert_eq!(processor["processor_class"], "Qwen3VLProcessor");
    assert_eq!(processor["video_processor"]["size"], before[2]["size"]);
    assert_eq!(processor["image_processor"]["size"], before[1]["size"]);
    assert!(folder.path().join("chat_template.jinja").exists() && !folder.path().join(JSON[1]).exists());
    assert_eq!(ModelConfig::open(folder.path()).unwrap(), config);
    assert_eq!(open_preprocessor_config(folder.path(), &config).unwrap(), settings);
    ConfigAndTokenizerFiles::convert_folder(folder.path(), FolderFormat::Transformers4).unwrap();
    for (name, mut then) in JSON.into_iter().zip(before) {
        let mut now = read(name);
        if name == "config.json" {
            then["dtype"] = json!("float32");
        }
        if name == "preprocessor_config.json" {
            // The name of the class in both layouts.
            now["image_processor_type"] = then["image_processor_type"].clone();
        }
        assert_eq!(now, then, "{name}");
    }
}
