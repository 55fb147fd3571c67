//! Fuzz targets for the files of a model folder: weights, configs, tokenizer, chat template, adapter.

use std::fs;
use std::sync::Arc;

use anyhow::Result;
use reel_input::ModelInput;
use reel_input::chat::ChatTemplate;
use reel_input::config::{GenerationConfig, ModelConfig, parse_preprocessor_config};
use reel_input::tokenizer::{StreamingDecoder, Tokenizer};
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::init::{InitOptions, Preset, init_without_weights, preset_config};
use reel_model::lora::{Adapter, linear_layers};
use reel_model::siglip::{SiglipConfig, SiglipTokenizer};
use serde_json::{Map, Value, json};

use super::{FuzzTarget, repository_file, scratch_folder, text_of};
use crate::mutate::{PartFormat, Seed, split_into_parts};
use crate::random::{self, Random};
use crate::verdict::{require, value_if_accepted, verdict_of};

/// The options that create the model folder of the fuzz targets.
pub(super) const TINY_MODEL: InitOptions =
    InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 0 };

/// Returns the bytes of a file in the model folder of the preset `tiny`.
pub(super) fn tiny_model_file(name: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    init_without_weights(&TINY_MODEL, folder.path())?;
    Ok(fs::read(folder.path().join(name))?)
}

/// Returns the bytes of a safetensors file with this header and this data.
fn safetensors(header: Value, data: &[u8]) -> Vec<u8> {
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

fn small_weights(names: [&str; 2]) -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        names[0]: {"dtype": "BF16", "shape": [512, 4], "data_offsets": [0, 4096]},
        names[1]: {"dtype": "F32", "shape": [3], "data_offsets": [4096, 4108]},
        "model.layers.0.self_attn.q_proj.bias": {"dtype": "F16", "shape": [2], "data_offsets": [4108, 4112]},
        "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [4112, 4112]},
    });
    safetensors(header, &[0x3f; 4112])
}

const TENSOR_WORDS: &[&str] = &[
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "F64",
    "F8_E4M3",
    "format",
    "pt",
    "weight_map",
    "metadata",
    "total_size",
    "model.safetensors",
    "../x",
    "/dev/zero",
    "model.norm.weight",
    "input_ids",
];

/// Safetensors files: a model's weights in one file, and a prepared model input ([`ModelInput`]).
pub const SAFETENSORS: FuzzTarget = FuzzTarget {
    name: "safetensors",
    words: TENSOR_WORDS,
    seeds: || {
        let folder = scratch_folder()?;
        let path = folder.join("inputs");
        ModelInput::from_text_tokens(vec![1, 2, 3]).write(&path, &preset_config(&TINY_MODEL)?)?;
        Ok(vec![
            Seed::new(PartFormat::Safetensors, small_weights(["model.embed_tokens.weight", "model.norm.weight"])),
            Seed::new(PartFormat::Safetensors, fs::read(path)?),
        ])
    },
    open: || {
        let (folder, config) = (scratch_folder()?, preset_config(&TINY_MODEL)?);
        let path = folder.join("model.safetensors");
        Ok(Box::new(move |input| {
            fs::write(&path, input).map_err(|e| e.to_string())?;
            let inputs = verdict_of(ModelInput::read(&path, &config))?;
            let Some(weights) = value_if_accepted(Checkpoint::open(&folder))? else { return Ok(inputs) };
            read_weights(&weights, &config)?;
            Ok(true)
        }))
    },
};

/// Reads every tensor and checks the weights, as the loading of a model does.
fn read_weights(weights: &Checkpoint, config: &ModelConfig) -> Result<(), String> {
    for name in weights.tensor_names() {
        let tensor = weights.tensor(name).ok_or_else(|| format!("the listed tensor {name:?} is not found"))?;
        let sum = tensor.bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        std::hint::black_box(sum);
        verdict_of(weights.tensor_with_shape(name, tensor.shape))?;
    }
    verdict_of(weights.check_values())?;
    verdict_of(weights.check(config))?;
    Ok(())
}

/// The weights of a model in several safetensors files, and the index that names the file of each tensor.
pub const SHARDS: FuzzTarget = FuzzTarget {
    name: "shards",
    words: TENSOR_WORDS,
    seeds: || {
        let index = json!({
            "metadata": {"total_size": 64},
            "weight_map": {
                "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
                "model.norm.weight": "model-00001-of-00002.safetensors",
                "model.layers.0.self_attn.q_proj.bias": "model-00001-of-00002.safetensors",
                "empty": "model-00001-of-00002.safetensors",
                "lm_head.weight": "model-00002-of-00002.safetensors",
            },
        });
        let second = json!({"lm_head.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}});
        let first = small_weights(["model.embed_tokens.weight", "model.norm.weight"]);
        let all = Seed::new(PartFormat::Json, index.to_string()).with_part(PartFormat::Fixed, first);
        Ok(vec![all.with_part(PartFormat::Safetensors, safetensors(second, &[0; 8]))])
    },
    open: || {
        let (folder, config) = (scratch_folder()?, preset_config(&TINY_MODEL)?);
        let names =
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        Ok(Box::new(move |input| {
            for (name, part) in names.iter().zip(split_into_parts(input)) {
                fs::write(folder.join(name), part).map_err(|e| e.to_string())?;
            }
            let Some(weights) = value_if_accepted(Checkpoint::open(&folder))? else { return Ok(false) };
            read_weights(&weights, &config)?;
            Ok(true)
        }))
    },
};

/// config.json of a model and of SigLIP, generation_config.json and preprocessor_config.json.
pub const CONFIG: FuzzTarget = FuzzTarget {
    name: "config",
    words: &[
        "text_config",
        "vision_config",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "rope_scaling",
        "mrope_section",
        "num_attention_heads",
        "num_key_value_heads",
        "depth",
        "patch_size",
        "window_size",
        "fullatt_block_indexes",
        "torch_dtype",
        "dtype",
        "bfloat16",
        "default",
        "mrope",
        "eos_token_id",
        "model_type",
        "qwen2_5_vl",
        "min_pixels",
        "image_size",
        "temporal_patch_size",
        "spatial_merge_size",
        "image_mean",
        "siglip",
        "tie_word_embeddings",
    ],
    seeds: || {
        let siglip = repository_file("tests/golden/siglip/model/config.json")?;
        let files = ["config.json", "generation_config.json", "preprocessor_config.json"].map(tiny_model_file);
        let files = files.into_iter().chain([Ok(siglip)]).collect::<Result<Vec<_>>>()?;
        Ok(files.into_iter().map(|file| Seed::new(PartFormat::Json, file)).collect())
    },
    open: || {
        Ok(Box::new(|input| {
            let text = text_of(input);
            let model = value_if_accepted(ModelConfig::parse("config.json", &text))?;
            if let Some(config) = &model {
                let names = expected_tensors(config).len() + linear_layers(config).len();
                require(names > 0, || "a model without tensors".to_string())?;
            }
            let generation = verdict_of(GenerationConfig::parse("generation_config.json", &text))?;
            let preprocessor = verdict_of(parse_preprocessor_config("preprocessor_config.json", &text))?;
            let siglip = verdict_of(SiglipConfig::parse("config.json", &text))?;
            Ok(model.is_some() || generation || preprocessor || siglip)
        }))
    },
};

/// A LoRA adapter in the format of PEFT.
pub const ADAPTER: FuzzTarget = FuzzTarget {
    name: "adapter",
    words: &[
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "use_rslora",
        "use_dora",
        "bias",
        "none",
        "peft_type",
        "LORA",
        "all-linear",
        "q_proj",
        "v_proj",
        "base_model_name_or_path",
        "rank_pattern",
        "alpha_pattern",
        "base_model.model.",
        ".lora_A.weight",
        ".lora_B.weight",
        "F32",
        "BF16",
        "shape",
    ],
    seeds: || {
        let name = |matrix: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{matrix}.weight");
        let weights = json!({
            name("A"): {"dtype": "F32", "shape": [2, 128], "data_offsets": [0, 1024]},
            name("B"): {"dtype": "F32", "shape": [128, 2], "data_offsets": [1024, 2048]},
        });
        let config = json!({
            "peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
            "exclude_modules": null, "use_rslora": false, "bias": "none", "task_type": "CAUSAL_LM", "lora_dropout": 0.0,
        });
        let weights = safetensors(weights, &[0; 2048]);
        Ok(vec![Seed::new(PartFormat::Json, config.to_string()).with_part(PartFormat::Safetensors, weights)])
    },
    open: || {
        let (folder, config) = (scratch_folder()?, preset_config(&TINY_MODEL)?);
        Ok(Box::new(move |input| {
            for (name, part) in ["adapter_config.json", "adapter_model.safetensors"].iter().zip(split_into_parts(input))
            {
                fs::write(folder.join(name), part).map_err(|e| e.to_string())?;
            }
            let Some(adapter) = value_if_accepted(Adapter::open(&folder))? else { return Ok(false) };
            std::hint::black_box((adapter.base_model(), adapter.replaces_tensors(), adapter.adapted_layers().count()));
            verdict_of(adapter.check(&config))
        }))
    },
};

/// tokenizer.json of a model and of SigLIP. An accepted tokenizer encodes a random text and decodes random ids.
pub const TOKENIZER: FuzzTarget = FuzzTarget {
    name: "tokenizer",
    words: &[
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "model",
        "vocab",
        "merges",
        "added_tokens",
        "special",
        "ByteLevel",
        "Sequence",
        "Split",
        "Regex",
        "pattern",
        "behavior",
        "Isolated",
        "Removed",
        "invert",
        "BPE",
        "Unigram",
        "WordPiece",
        "NFC",
        "Replace",
        "String",
        "content",
        "Precompiled",
        "(a+)+b",
        "\\p{L}+",
        "(?!x)",
        ".*",
        "",
        "Ġ",
        "x y",
        "TemplateProcessing",
        "Strip",
        "Metaspace",
        "truncation",
        "padding",
        "byte_fallback",
        "unk_token",
        "dropout",
    ],
    seeds: || {
        let siglip = repository_file("tests/golden/siglip/model/tokenizer.json")?;
        let tiny = Seed::new(PartFormat::Json, tiny_model_file("tokenizer.json")?);
        // SigLIP's tokenizer.json is large and slow to parse, so only one of the five seeds has it.
        Ok(vec![tiny.clone(), tiny.clone(), tiny.clone(), tiny, Seed::new(PartFormat::Json, siglip)])
    },
    open: || {
        Ok(Box::new(|input| {
            let mut random = Random::new(&[random::hash(input)]);
            let text = random_text(&mut random);
            let siglip = value_if_accepted(SiglipTokenizer::parse("tokenizer.json", input, 40_000, 64))?;
            if let Some(siglip) = &siglip {
                verdict_of(siglip.encode(&text))?;
            }
            let Some(tokenizer) = value_if_accepted(Tokenizer::parse("tokenizer.json", input).map(Arc::new))? else {
                return Ok(siglip.is_some());
            };
            let Some(mut ids) = value_if_accepted(tokenizer.encode(&text))? else { return Ok(true) };
            ids.extend((0..8).map(|_| random.next() as u32 % 200_000));
            ids.push(u32::MAX);
            let whole = tokenizer.decode(&ids, random.one_in(2));
            let mut decoder = StreamingDecoder::new(tokenizer.clone());
            let pieces: usize = ids.iter().map(|&id| decoder.push(id).len()).sum();
            std::hint::black_box((whole, pieces, decoder.finish()));
            ids.iter().for_each(|&id| drop((tokenizer.token_bytes(id), tokenizer.is_special(id))));
            Ok(true)
        }))
    },
};

/// Returns a random text of words, special tokens and unusual characters, some of which it repeats many times.
fn random_text(random: &mut Random) -> String {
    const PIECES: &[&str] = &[
        "Hello",
        " world",
        "\n\n",
        "  ",
        "<|im_start|>",
        "<|image_pad|>",
        "<|im_end|>",
        "é",
        "e\u{301}",
        "日本",
        "😀",
        "\0",
        "123456",
        "'ll",
        "İ",
        "\u{200d}",
        "ﷺ",
        "a",
        "\t",
        "�",
        "…",
        "x_y",
        "THE",
        "</s>",
    ];
    let mut text = String::new();
    for _ in 0..random.length_up_to(60) {
        let times = if random.one_in(20) { random.length_up_to(2000) } else { 1 };
        text.push_str(&random.pick(PIECES).repeat(times));
    }
    text
}

/// Chat templates and messages. A template worker process renders the messages, as `reel` does for every template that
/// it does not know.
pub const CHAT_TEMPLATE: FuzzTarget = FuzzTarget {
    name: "chat-template",
    words: &[
        "{{ ",
        " }}",
        "{% for m in messages %}",
        "{% endfor %}",
        "{% if x %}",
        "{% endif %}",
        "{% set x = ",
        " %}",
        "range(99)",
        "messages",
        "| tojson",
        "| upper",
        "| length",
        "| join(',')",
        "|replace('a','b')",
        "~",
        "raise_exception('x')",
        "namespace(n=0)",
        "loop.index",
        ".strip()",
        ".split('x')",
        "{% macro f(x) %}",
        "{% endmacro %}",
        "f(x)",
        "[::-1]",
        "* 99999999",
        "{% break %}",
        "{%- generation -%}",
        "strftime_now('%Y')",
        "{# ",
        " #}",
        "is string",
        "add_generation_prompt",
        "| sort",
        "| map('upper')",
        "| groupby('a')",
        "| batch(3)",
        "'%s' % x",
        "{{ self }}",
        "** 9",
        "// 0",
        "% 0",
        "{% filter upper %}",
        "{% endfilter %}",
        "| indent(9)",
        "dict(a=1)",
        "lipsum()",
        "cycler(1)",
    ],
    seeds: || {
        let own: Value = serde_json::from_slice(&tiny_model_file("chat_template.json")?)?;
        let messages = json!([
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": "a", "n": 3},
        ]);
        let templates = [
            own["chat_template"].as_str().unwrap_or_default(),
            "{% for m in messages %}{{ m.role ~ ': ' ~ m['content'] }}\n{% if loop.last and add_generation_prompt %}a: {% endif %}{% endfor %}",
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
            "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(messages[0].role) | upper | replace('S', 's') }}{{ messages | tojson(indent=1) }}",
        ];
        let seed = |text: &&str| Seed::new(PartFormat::Text, *text).with_part(PartFormat::Json, messages.to_string());
        Ok(templates.iter().map(seed).collect())
    },
    open: || {
        reel_support::worker::set_worker_program(reel_support::worker::WorkerProgram::of_current_executable());
        Ok(Box::new(|input| {
            let parts = split_into_parts(input);
            let messages = parts.get(1).and_then(|part| serde_json::from_slice(part).ok()).unwrap_or_default();
            let tokens = Map::from_iter([("eos_token".to_string(), "</s>".into())]);
            let template = value_if_accepted(ChatTemplate::parse("chat_template.jinja", text_of(parts[0]), tokens))?;
            let Some(template) = template else { return Ok(false) };
            let prompt = value_if_accepted(template.render_json(&messages, true))?;
            let bytes = prompt.as_ref().map_or(0, String::len);
            require(bytes <= 32 << 20, || format!("the prompt has {bytes} bytes"))?;
            Ok(prompt.is_some())
        }))
    },
};
