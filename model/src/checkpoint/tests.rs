//! Tests with generated folders: valid folders in both naming schemes, and one folder for each kind of damage.

use std::fs;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::testing::{qwen3_config, tiny_config};

/// The bytes of a safetensors file with these tensors, which are filled with zeros.
fn file_of(tensors: &[(String, Vec<usize>)], dtype: StoredDType) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * dtype.element_bytes();
        header.insert(
            name.clone(),
            json!({"dtype": dtype.safetensors_name(), "shape": shape, "data_offsets": [begin, end]}),
        );
    }
    with_header(&Value::Object(header).to_string(), end)
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut padded = header.as_bytes().to_vec();
    padded.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (padded.len() as u64).to_le_bytes().to_vec();
    bytes.extend(padded);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn folder_with(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn error_of(bytes: Vec<u8>) -> String {
    let folder = folder_with(&[("model.safetensors", bytes)]);
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && !error.contains('\n'), "{error}");
    error
}

#[test]
fn naming_schemes_and_shards_give_equal_tensors() {
    let config = tiny_config();
    let expected = expected_tensors(&config);
    let nested: Vec<_> = expected.iter().map(|(n, s)| (TensorNaming::Nested.from_classic_name(n), s.clone())).collect();
    let single = folder_with(&[("model.safetensors", file_of(&expected, StoredDType::F32))]);
    let (a, b) = nested.split_at(20);
    let map: Map<String, Value> = (a.iter().map(|(n, _)| (n.clone(), json!("a.safetensors"))))
        .chain(b.iter().map(|(n, _)| (n.clone(), json!("b.safetensors"))))
        .collect();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    let sharded = folder_with(&[
        ("a.safetensors", file_of(a, StoredDType::Bf16)),
        ("b.safetensors", file_of(b, StoredDType::Bf16)),
        ("model.safetensors.index.json", index.into_bytes()),
    ]);
    let single = Checkpoint::open(single.path()).unwrap();
    let sharded = Checkpoint::open(sharded.path()).unwrap();
    assert_eq!((single.tensor_naming(), sharded.tensor_naming()), (TensorNaming::Classic, TensorNaming::Nested));
    for checkpoint in [&single, &sharded] {
        checkpoint.check(&config).unwrap();
        assert_eq!(checkpoint.tensor_names().count(), expected.len());
    }
    let view = sharded.tensor_with_shape("visual.blocks.1.attn.qkv.bias", &[120]).unwrap();
    assert_eq!((view.dtype, view.bytes.len()), (StoredDType::Bf16, 240));
    assert_eq!(&view.file.as_bytes()[view.offset..view.offset + 240], view.bytes);
    for (name, _) in &expected {
        assert_eq!(&TensorNaming::to_classic_name(&TensorNaming::Nested.from_classic_name(name)), name);
        assert_eq!(&TensorNaming::to_classic_name(name), name);
    }
}

#[test]
fn errors_name_missing_misshapen_and_unknown_tensors() {
    let config = tiny_config();
    let expected = expected_tensors(&config);
    let open = |tensors: &[(String, Vec<usize>)]| {
        let folder = folder_with(&[("model.safetensors", file_of(tensors, StoredDType::F32))]);
        Checkpoint::open(folder.path()).unwrap().check(&config).unwrap_err().to_string()
    };
    let missing = open(&expected[1..]);
    assert!(
        missing.contains("visual.patch_embed.proj.weight: is missing; expected shape [40, 3, 2, 14, 14]"),
        "{missing}"
    );
    let mut changed = expected.clone();
    changed.last_mut().unwrap().1 = vec![65];
    let wrong = open(&changed);
    assert!(wrong.contains("model.norm.weight: has shape [65], but config.json requires [64]"), "{wrong}");
    let mut more = expected.clone();
    more.push(("model.layers.2.input_layernorm.weight".into(), vec![64]));
    let strange = open(&more);
    assert!(strange.contains("does not have: model.layers.2.input_layernorm.weight"), "{strange}");
    let mut harmless = expected.clone();
    harmless.push(("lm_head.weight".into(), vec![432, 64]));
    harmless.push(("visual.rotary_pos_emb.inv_freq".into(), vec![10]));
    let folder = folder_with(&[("model.safetensors", file_of(&harmless, StoredDType::F32))]);
    Checkpoint::open(folder.path()).unwrap().check(&config).unwrap();
}

/// A folder of Qwen3-VL without one of its tensors is refused by the nested name of the tensor.
#[test]
fn errors_name_missing_tensors_of_qwen3() {
    let config = qwen3_config();
    let expected = expected_tensors(&config);
    let nested = |name: &str| TensorNaming::Nested.from_classic_name(name);
    let write = |without: &str| {
        let tensors =
            expected.iter().filter(|(name, _)| name != without).map(|(name, shape)| (nested(name), shape.clone()));
        folder_with(&[("model.safetensors", file_of(&tensors.collect::<Vec<_>>(), StoredDType::Bf16))])
    };
    let whole = write("");
    let checkpoint = Checkpoint::open(whole.path()).unwrap();
    checkpoint.check(&config).unwrap();
    assert_eq!(checkpoint.tensor_naming(), TensorNaming::Nested);
    for (name, shape) in &expected {
        let folder = write(name);
        let error = Checkpoint::open(folder.path()).unwrap().check(&config).unwrap_err().to_string();
        let wanted = format!("{}: {}: is missing; expected shape {shape:?}", folder.path().display(), nested(name));
        assert!(error.starts_with(&wanted) && !error.contains('\n'), "{error}");
    }
    assert!(expected.iter().any(|(name, shape)| name == "visual.pos_embed.weight" && shape == &[64, 40]));
    let other = Checkpoint::open(whole.path()).unwrap().check(&tiny_config()).unwrap_err().to_string();
    assert!(other.contains("model.visual.patch_embed.proj.weight: has shape [40, 3, 2, 16, 16], but"), "{other}");
}

#[test]
fn rejects_each_kind_of_damage() {
    let good = file_of(&[("a".into(), vec![2, 3]), ("b".into(), vec![4])], StoredDType::F32);
    assert!(Checkpoint::open(folder_with(&[("model.safetensors", good.clone())]).path()).is_ok());
    assert!(error_of(Vec::new()).contains("0 bytes long"));
    assert!(error_of(good[..good.len() - 1].to_vec()).contains("cut off"));
    assert!(error_of(good[..20].to_vec()).contains("cut off"));
    let mut long = good.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error_of(long).contains("header too large"));
    let mut beyond = good.clone();
    beyond[..8].copy_from_slice(&1_000_000u64.to_le_bytes());
    assert!(error_of(beyond).contains("has a header that ends after the file"));
    let mut trailing = good.clone();
    trailing.push(0);
    assert!(error_of(trailing).contains("has bytes after its last tensor"));
    assert!(error_of(b"just some text, and a bit more of it".to_vec()).contains("not a safetensors file"));

    let two = |a: Value, b: Value, data: usize| error_of(with_header(&json!({"a": a, "b": b}).to_string(), data));
    let tensor = |dtype: &str, shape: Value, from: u64, to: u64| json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]});
    let a = tensor("F32", json!([2]), 0, 8);
    assert!(two(a.clone(), tensor("F32", json!([2]), 4, 12), 12).contains("invalid offset for tensor `b`"));
    assert!(two(a.clone(), tensor("F32", json!([2]), 12, 20), 20).contains("invalid offset for tensor `b`"));
    for (shape, from, to) in
        [(json!([3]), 8, 16), (json!([2]), 16, 8), (json!([2]), 8, u64::MAX), (json!([u64::MAX, 2]), 8, 16)]
    {
        let error = two(a.clone(), tensor("F32", shape, from, to), 16);
        assert!(error.contains("b: has data_offsets [") && error.contains("do not fit its shape"), "{error}");
    }
    assert!(two(a.clone(), tensor("I64", json!([1]), 8, 16), 16).contains("stored as I64"));
    assert!(two(a.clone(), tensor("F4", json!([16]), 8, 16), 16).contains("stored as F4"));
    for entry in [json!({"dtype": "F32"}), tensor("F32", json!([-1]), 8, 16), tensor("", json!([2]), 8, 16), json!([])]
    {
        let error = two(a.clone(), entry, 16);
        assert!(error.contains("model.safetensors: b: has a damaged entry in the header ("), "{error}");
    }
    for (bytes, what) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3949\n"[..], "is a pointer of Git LFS"),
        (b"<!doctype html>\n<html></html>", "is a web page (HTML)"),
        (b"PK\x03\x04\0\0\x08\x08archive/data.pkl", "is a file of torch.save"),
    ] {
        assert!(error_of(bytes.to_vec()).contains(what));
    }
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(error_of(with_header(twice, 8)).contains("invalid offset for tensor `a`"));
}

#[test]
fn rejects_shards_that_contradict_the_index() {
    let a = file_of(&[("model.norm.weight".into(), vec![4])], StoredDType::F32);
    let index = |map: Value| json!({"weight_map": map}).to_string().into_bytes();
    let open = |files: &[(&str, Vec<u8>)]| Checkpoint::open(folder_with(files).path()).unwrap_err().to_string();
    let name = "model.safetensors.index.json";
    let gone = open(&[(name, index(json!({"model.norm.weight": "x.safetensors"})))]);
    assert!(gone.contains("x.safetensors: is missing"), "{gone}");
    let both = json!({"model.norm.weight": "a.safetensors", "z": "b.safetensors"});
    let twice = open(&[("a.safetensors", a.clone()), ("b.safetensors", a.clone()), (name, index(both))]);
    assert!(twice.contains("is also in"), "{twice}");
    let absent = open(&[("a.safetensors", a.clone()), (name, index(json!({"model.norm.bias": "a.safetensors"})))]);
    assert!(absent.contains("model.norm.bias: is not in this file"), "{absent}");
    for (text, expected) in
        [("[", "is not JSON"), ("{}", "weight_map"), (r#"{"weight_map": {"a": "../x"}}"#, "not the name of a file")]
    {
        let error = open(&[("a.safetensors", a.clone()), (name, text.as_bytes().to_vec())]);
        assert!(error.contains(expected), "{error}");
    }
    // Two models in one folder: transformers reads the file, vLLM the index.
    let (listed, single) = (index(json!({"model.norm.weight": "a.safetensors"})), "model.safetensors");
    let two = open(&[("a.safetensors", a.clone()), (single, a.clone()), (name, listed)]);
    assert!(two.contains("model.safetensors: is beside model.safetensors.index.json, which does not list it"), "{two}");
    let own = folder_with(&[(single, a.clone()), (name, index(json!({"model.norm.weight": single})))]);
    assert!(Checkpoint::open(own.path()).is_ok());
    assert!(open(&[("config.json", b"{}".to_vec())]).contains("has no *.safetensors"));
    assert!(open(&[("pytorch_model.bin", b"x".to_vec())]).contains("only weights of torch.save"));
    let loose = folder_with(&[("weights-1.safetensors", a.clone()), ("adapter_model.safetensors", a)]);
    assert_eq!(Checkpoint::open(loose.path()).unwrap().tensor_names().collect::<Vec<_>>(), ["model.norm.weight"]);
}

proptest::proptest! {
    #[test]
    fn damaged_files_never_read_outside_the_mapping(
        changes in proptest::collection::vec((0usize..400, proptest::num::u8::ANY), 1..6), cut in 0usize..40,
    ) {
        let mut bytes = file_of(&[("a".into(), vec![2, 3]), ("b".into(), vec![4]), ("c".into(), vec![])], StoredDType::F32);
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        bytes.truncate(bytes.len() - cut % 3);
        let folder = folder_with(&[("model.safetensors", bytes)]);
        match Checkpoint::open(folder.path()) {
            Err(error) => proptest::prop_assert!(!error.to_string().contains('\n'), "{}", error),
            Ok(checkpoint) => for name in checkpoint.tensor_names() {
                let view = checkpoint.tensor(name).unwrap();
                let needed = view.shape.iter().product::<usize>() * view.dtype.element_bytes();
                proptest::prop_assert_eq!(view.bytes.len(), needed);
            }
        }
    }
}

proptest! {
    /// The first value that is NaN or infinite is found in any block.
    #[test]
    fn the_first_bad_value_is_found(length in 0usize..200_000, bad in proptest::collection::vec(0usize..200_000, 0..4)) {
        let mut values = vec![0u16; length];
        bad.iter().filter(|&&index| index < length).for_each(|&index| values[index] = 0x7f80);
        let wanted = bad.iter().copied().filter(|&index| index < length).min();
        prop_assert_eq!(first_position(&values, |value| value & 0x7f80 == 0x7f80), wanted);
    }
}
