//! Converts the small files of a model folder between the layouts of transformers 4 and transformers 5.
//!
//! | transformers 4 | transformers 5 |
//! |---|---|
//! | config.json: text keys at the top level, `torch_dtype` | text keys in `text_config`, `dtype` |
//! | config.json: `rope_theta` and `rope_scaling` | `rope_parameters` |
//! | preprocessor_config.json with `min_pixels` | processor_config.json: `image_processor` with `size` |
//! | video_preprocessor_config.json | processor_config.json: `video_processor` |
//! | chat_template.json, and `chat_template` in tokenizer_config.json | chat_template.jinja |
//! | `additional_special_tokens` in tokenizer_config.json | `extra_special_tokens` |
//!
//! Qwen3-VL has `text_config` and `dtype` in both layouts, because transformers knows it from version 4.57 on. Its
//! settings of the rotary embedding and its other files are converted as above.
//!
//! Both versions read vocab.json and merges.txt only if there is no tokenizer.json, so these two files are not
//! converted.

use std::collections::BTreeMap;
use std::path::Path;

use reel_input::config::Family;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The layout of a model folder's configuration, tokenizer and template files: as transformers 4 or transformers 5
/// writes them. This program reads folders of both layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderFormat {
    /// The layout of transformers 4.49 (for Qwen3-VL 4.57), which later versions of transformers read too.
    Transformers4,
    /// The layout of transformers 5.
    Transformers5,
}

/// The contents of the small files other than config.json, by file name.
pub(super) type CompanionFiles = BTreeMap<&'static str, Vec<u8>>;

/// The keys that config.json of transformers 5 has at its top level; all others are in `text_config`.
const TOP_KEYS: [&str; 11] = [
    "architectures",
    "dtype",
    "image_token_id",
    "model_type",
    "text_config",
    "tie_word_embeddings",
    "transformers_version",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
];

/// The settings that a video processor shares with the image processor.
const SHARED_WITH_VIDEO: [&str; 5] = ["image_mean", "image_std", "merge_size", "patch_size", "temporal_patch_size"];

/// Converts `config` (config.json) and `files` (the other small files) of `folder` to the layout `format`.
///
/// # Errors
/// A file is not a JSON object.
pub(super) fn convert_small_files(
    format: FolderFormat,
    folder: &Path,
    config: &mut Value,
    files: &mut CompanionFiles,
) -> Result<()> {
    let config = config.as_object_mut().ok_or_else(|| not_an_object(folder, "config.json"))?;
    let family = match config.get("model_type").and_then(Value::as_str) {
        Some("qwen3_vl") => Family::Qwen3Vl,
        _ => Family::Qwen25Vl,
    };
    match format {
        FolderFormat::Transformers4 => {
            match family {
                Family::Qwen25Vl => flat_config(config),
                Family::Qwen3Vl => qwen3_config_of_version_4(config),
            }
            separate_processors(family, folder, files)?;
            template_in_json(folder, files)
        }
        FolderFormat::Transformers5 => {
            nested_config(family, config);
            joint_processors(family, folder, files)?;
            template_in_jinja(folder, files)
        }
    }
}

fn not_an_object(folder: &Path, name: &str) -> Error {
    let help = "copy or download the file again";
    Error::input(folder.join(name).display().to_string(), "is not a JSON object", help)
}

/// Parses the JSON object in the file `name`; `None` if there is no such file.
fn read(folder: &Path, files: &CompanionFiles, name: &'static str) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = files.get(name) else { return Ok(None) };
    serde_json::from_slice(bytes).map(Some).map_err(|_| not_an_object(folder, name))
}

fn write(files: &mut CompanionFiles, name: &'static str, object: Map<String, Value>) {
    files.insert(name, format!("{:#}\n", Value::Object(object)).into_bytes());
}

fn object_at<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it is an object")
}

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.shift_remove(from) {
        map.entry(to).or_insert(value);
    }
}

fn nested_config(family: Family, config: &mut Map<String, Value>) {
    rename(config, "torch_dtype", "dtype");
    let is_top = |key: &str| TOP_KEYS.contains(&key) || key == "vision_token_id";
    let (top, text): (Map<_, _>, Map<_, _>) = std::mem::take(config).into_iter().partition(|(key, _)| is_top(key));
    *config = top;
    let dtype = config.get("dtype").cloned();
    let own = object_at(config, "text_config");
    for (key, value) in text {
        own.entry(key).or_insert(value);
    }
    rename(own, "torch_dtype", "dtype");
    if let Some(dtype) = dtype {
        own.entry("dtype").or_insert(dtype);
    }
    let dtype = own.get("dtype").cloned();
    let scaling = own.shift_remove("rope_scaling").unwrap_or_default();
    let theta = own.shift_remove("rope_theta");
    let rope = object_at(own, "rope_parameters");
    for key in ["mrope_interleaved", "mrope_section"] {
        if let Some(value) = scaling.get(key) {
            rope.entry(key).or_insert(value.clone());
        }
    }
    if let Some(theta) = theta {
        rope.entry("rope_theta").or_insert(theta);
    }
    rope.insert("rope_type".into(), json!("default"));
    let (text_type, vision_type) = match family {
        Family::Qwen25Vl => ("qwen2_5_vl_text", "qwen2_5_vl_vision"),
        Family::Qwen3Vl => ("qwen3_vl_text", "qwen3_vl_vision"),
    };
    match family {
        Family::Qwen25Vl => drop(rope.insert("type".into(), json!("mrope"))),
        Family::Qwen3Vl => drop(rope.shift_remove("type")),
    }
    own.insert("model_type".into(), json!(text_type));
    let vision = object_at(config, "vision_config");
    rename(vision, "torch_dtype", "dtype");
    vision.insert("model_type".into(), json!(vision_type));
    if let Some(dtype) = dtype.filter(|_| family == Family::Qwen3Vl) {
        config.entry("dtype").or_insert(dtype);
    }
    config.insert("transformers_version".into(), json!("5.0.0"));
}

fn flat_config(config: &mut Map<String, Value>) {
    let mut text = match config.shift_remove("text_config") {
        Some(Value::Object(text)) => text,
        _ => Map::new(),
    };
    for key in ["model_type", "dtype", "torch_dtype", "architectures"] {
        text.shift_remove(key);
    }
    for (key, value) in text {
        config.entry(key).or_insert(value);
    }
    rename(config, "dtype", "torch_dtype");
    if let Some(Value::Object(mut rope)) = config.shift_remove("rope_parameters") {
        if let Some(theta) = rope.shift_remove("rope_theta") {
            config.entry("rope_theta").or_insert(theta);
        }
        let section = rope.shift_remove("mrope_section").unwrap_or_default();
        config.entry("rope_scaling").or_insert_with(|| json!({"type": "mrope", "mrope_section": section}));
    }
    let vision = object_at(config, "vision_config");
    vision.shift_remove("rope_parameters");
    rename(vision, "dtype", "torch_dtype");
    vision.insert("model_type".into(), json!("qwen2_5_vl"));
    config.insert("transformers_version".into(), json!("4.49.0"));
}

/// Converts the config of Qwen3-VL to the layout of transformers 4.57, which differs from that of transformers 5 in the
/// settings of the rotary embedding.
fn qwen3_config_of_version_4(config: &mut Map<String, Value>) {
    let text = object_at(config, "text_config");
    if let Some(Value::Object(mut rope)) = text.shift_remove("rope_parameters") {
        if let Some(theta) = rope.shift_remove("rope_theta") {
            text.entry("rope_theta").or_insert(theta);
        }
        text.entry("rope_scaling").or_insert(Value::Object(rope));
    }
    let vision = object_at(config, "vision_config");
    vision.shift_remove("rope_parameters");
    vision.insert("model_type".into(), json!("qwen3_vl"));
    config.insert("transformers_version".into(), json!("4.57.0"));
}

/// Joins preprocessor_config.json and video_preprocessor_config.json into processor_config.json.
fn joint_processors(family: Family, folder: &Path, files: &mut CompanionFiles) -> Result<()> {
    let (processor_class, video_class) = match family {
        Family::Qwen25Vl => ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        Family::Qwen3Vl => ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    };
    let mut joint = read(folder, files, "processor_config.json")?.unwrap_or_default();
    let image = read(folder, files, "preprocessor_config.json")?;
    let video = read(folder, files, "video_preprocessor_config.json")?;
    if let (false, Some(mut image)) = (joint.contains_key("image_processor"), image) {
        let class = image.shift_remove("processor_class");
        joint.entry("processor_class").or_insert(class.unwrap_or_else(|| json!(processor_class)));
        let edges = [("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")];
        for (pixels, edge) in edges {
            if let Some(value) = image.shift_remove(pixels) {
                object_at(&mut image, "size").insert(edge.into(), value);
            }
        }
        joint.insert("image_processor".into(), Value::Object(image));
    }
    if let Some(image) = joint.get("image_processor").cloned() {
        let shared = SHARED_WITH_VIDEO.iter().filter_map(|key| Some((key.to_string(), image.get(*key)?.clone())));
        let mut of_image: Map<String, Value> = shared.collect();
        of_image.insert("video_processor_type".into(), json!(video_class));
        joint.entry("video_processor").or_insert(Value::Object(video.unwrap_or(of_image)));
        files.remove("preprocessor_config.json");
        files.remove("video_preprocessor_config.json");
        write(files, "processor_config.json", joint);
    }
    Ok(())
}

/// Splits processor_config.json into preprocessor_config.json and video_preprocessor_config.json.
fn separate_processors(family: Family, folder: &Path, files: &mut CompanionFiles) -> Result<()> {
    let Some(mut joint) = read(folder, files, "processor_config.json")? else { return Ok(()) };
    let Some(Value::Object(mut image)) = joint.shift_remove("image_processor") else { return Ok(()) };
    for (pixels, edge) in [("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")] {
        let value = image.get("size").and_then(|size| size.get(edge)).cloned();
        if let Some(value) = value.filter(|_| family == Family::Qwen25Vl) {
            image.entry(pixels).or_insert(value);
        }
    }
    if let Some(Value::String(kind)) = image.get_mut("image_processor_type") {
        *kind = kind.trim_end_matches("Fast").to_string();
    }
    if let Some(class) = joint.shift_remove("processor_class") {
        image.insert("processor_class".into(), class);
    }
    write(files, "preprocessor_config.json", image);
    if let Some(Value::Object(video)) = joint.shift_remove("video_processor") {
        write(files, "video_preprocessor_config.json", video);
    }
    files.remove("processor_config.json");
    Ok(())
}

const TEMPLATE: &str = "chat_template";

fn template_in_jinja(folder: &Path, files: &mut CompanionFiles) -> Result<()> {
    let mut tokenizer = read(folder, files, "tokenizer_config.json")?.unwrap_or_default();
    let in_json = read(folder, files, "chat_template.json")?.and_then(|mut file| file.shift_remove(TEMPLATE));
    let text = in_json.or_else(|| tokenizer.get(TEMPLATE).cloned());
    if let (false, Some(Value::String(text))) = (files.contains_key("chat_template.jinja"), &text) {
        files.insert("chat_template.jinja", text.clone().into_bytes());
    }
    if let Some(jinja) = files.get("chat_template.jinja") {
        // A template that differs from chat_template.jinja stays: Qwen2.5-VL's tokenizer_config.json has one for tools.
        if tokenizer.get(TEMPLATE).and_then(Value::as_str).is_some_and(|own| own.as_bytes() == jinja) {
            tokenizer.shift_remove(TEMPLATE);
        }
        files.remove("chat_template.json");
    }
    if files.contains_key("tokenizer_config.json") {
        if tokenizer.get("extra_special_tokens").is_some_and(Value::is_object) {
            tokenizer.shift_remove("extra_special_tokens");
        }
        rename(&mut tokenizer, "additional_special_tokens", "extra_special_tokens");
        write(files, "tokenizer_config.json", tokenizer);
    }
    Ok(())
}

fn template_in_json(folder: &Path, files: &mut CompanionFiles) -> Result<()> {
    let jinja = files.remove("chat_template.jinja").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if let Some(text) = &jinja {
        write(files, "chat_template.json", Map::from_iter([(TEMPLATE.to_string(), json!(text))]));
    }
    if let Some(mut tokenizer) = read(folder, files, "tokenizer_config.json")? {
        if let Some(text) = jinja {
            tokenizer.entry(TEMPLATE).or_insert(json!(text));
        }
        // A list under this key is an error in transformers 4.
        if tokenizer.get("extra_special_tokens").is_some_and(Value::is_array) {
            rename(&mut tokenizer, "extra_special_tokens", "additional_special_tokens");
        }
        for key in ["backend", "is_local", "local_files_only"] {
            tokenizer.shift_remove(key);
        }
        write(files, "tokenizer_config.json", tokenizer);
    }
    Ok(())
}
