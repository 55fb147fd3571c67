//! Fuzz targets for the files of a model folder: weights, configs, tokenizer, chat template, adapter.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use reel_input::ModelInput;
use reel_input::chat::{CHAT_TEMPLATE, ChatTemplate};
use reel_input::config::{Family, GenerationConfig, ModelConfig, parse_preprocessor_config};
use reel_input::messages::{ContentPart, Conversation};
use reel_input::tokenizer::{StreamingDecoder, Tokenizer};
use reel_model::checkpoint::{Checkpoint, expected_tensors};
use reel_model::init::{InitOptions, Preset, preset_config};
use reel_model::lora::{Adapter, linear_layers};
use reel_model::siglip::{SiglipConfig, SiglipTokenizer};
use serde_json::{Map, Value};

use super::{Runner, accepted, first_part_of, random_of, repository_path, run, text_of, write};

/// The options that create the model folder of the fuzz targets.
pub(super) const TINY_MODEL: InitOptions =
    InitOptions { preset: Preset::Tiny, layers: None, vocab: None, dtype: None, seed: 0 };

/// Safetensors files: a model's weights in one file, and a prepared model input ([`ModelInput`]). An input is a whole
/// file, or a header and data.
pub fn safetensors(folder: PathBuf) -> Result<Runner> {
    let (path, config) = (folder.join("model.safetensors"), preset_config(&TINY_MODEL)?);
    run(move |input| {
        let (header, data) = first_part_of(input);
        write(&path, &if header == input { input.to_vec() } else { safetensors_file(header, data) });
        let input = accepted(ModelInput::read(&path, &config));
        accepted(Checkpoint::open(&folder)).map(|weights| read_weights(&weights, &config)).or(input.map(drop))
    })
}

/// Returns a safetensors file. A wrong length of the header, which most changes of a whole file cause, is refused at
/// once.
fn safetensors_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// Reads every tensor and checks the weights, as the loading of a model does.
fn read_weights(weights: &Checkpoint, config: &ModelConfig) {
    for name in weights.tensor_names() {
        let tensor = weights.tensor(name).expect("a listed tensor is found");
        std::hint::black_box(tensor.bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)));
        accepted(weights.tensor_with_shape(name, tensor.shape));
    }
    accepted(weights.check_values());
    accepted(weights.check(config));
}

/// Quantised weights. An input is a config.json, the header of the weights and their first bytes; the others are 0.
pub fn quantized(folder: PathBuf) -> Result<Runner> {
    /// The shape of the weights in the seeds.
    const SHAPE: [usize; 2] = [128, 256];
    run(move |input| {
        let (config, rest) = first_part_of(input);
        let (header, first) = first_part_of(rest);
        let tensors: Map<String, Value> = serde_json::from_slice(header).unwrap_or_default();
        let ends = tensors.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
        let end = ends.max().unwrap_or_default().min(1 << 20);
        write(&folder.join("config.json"), config);
        let mut data = first.to_vec();
        data.resize(end as usize, 0);
        write(&folder.join("model.safetensors"), &safetensors_file(header, &data));
        let weights = accepted(Checkpoint::open(&folder))?;
        let mut found = None;
        for name in weights.quantized_names() {
            if let Some(weight) = accepted(weights.quantized(&name, SHAPE)).flatten() {
                let mut values = vec![f32::NAN; SHAPE[0] * SHAPE[1]];
                let read = weight.read_rows(0..SHAPE[0], &mut values);
                assert!(read.is_err() || values.iter().all(|x| x.is_finite()), "{name}");
                found = Some(());
            }
        }
        found
    })
}

/// The weights of a model in two safetensors files. An input is the index that names the file of each tensor, and the
/// header of the second file.
pub fn shards(folder: PathBuf) -> Result<Runner> {
    let config = preset_config(&TINY_MODEL)?;
    let first = folder.join("model-00001-of-00002.safetensors");
    fs::copy(repository_path("tools/fuzz/seeds/safetensors/weights"), first)?;
    run(move |input| {
        let (index, header) = first_part_of(input);
        write(&folder.join("model.safetensors.index.json"), index);
        write(&folder.join("model-00002-of-00002.safetensors"), &safetensors_file(header, &[0; 8]));
        let weights = accepted(Checkpoint::open(&folder))?;
        read_weights(&weights, &config);
        Some(())
    })
}

/// config.json of a model and of SigLIP, generation_config.json and preprocessor_config.json.
pub fn config(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let text = text_of(input);
        let model = accepted(ModelConfig::parse("config.json", &text)).map(|config| {
            assert!(expected_tensors(&config).len() + linear_layers(&config).len() > 0, "a model without tensors");
        });
        let generation = accepted(GenerationConfig::parse("generation_config.json", &text)).map(drop);
        let preprocessor =
            accepted(parse_preprocessor_config("preprocessor_config.json", &text, Family::Qwen3Vl)).map(drop);
        let siglip = accepted(SiglipConfig::parse("config.json", &text)).map(drop);
        model.or(generation).or(preprocessor).or(siglip)
    })
}

/// A LoRA adapter in the format of PEFT. An input is its configuration and the header of its weights.
pub fn adapter(folder: PathBuf) -> Result<Runner> {
    let config = preset_config(&TINY_MODEL)?;
    run(move |input| {
        let (own, header) = first_part_of(input);
        write(&folder.join("adapter_config.json"), own);
        write(&folder.join("adapter_model.safetensors"), &safetensors_file(header, &[0; 2048]));
        let adapter = accepted(Adapter::open(&folder))?;
        std::hint::black_box((adapter.base_model(), adapter.replaces_tensors(), adapter.adapted_layers().count()));
        accepted(adapter.check(&config)).map(drop)
    })
}

/// tokenizer.json of a model and of SigLIP. An accepted tokenizer encodes a random text and decodes random ids.
pub fn tokenizer(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let mut random = random_of(input);
        let text = random_text(&mut random);
        let siglip = accepted(SiglipTokenizer::parse("tokenizer.json", input, 40_000, 64));
        let siglip = siglip.map(|siglip| drop(accepted(siglip.encode(&text))));
        let Some(tokenizer) = accepted(Tokenizer::parse("tokenizer.json", input).map(Arc::new)) else { return siglip };
        let mut ids = accepted(tokenizer.encode(&text)).unwrap_or_default();
        ids.extend((0..8).map(|_| random.u32(..200_000)).chain([u32::MAX]));
        let mut decoder = StreamingDecoder::new(tokenizer.clone());
        let pieces: usize = ids.iter().map(|&id| decoder.push(id).len()).sum();
        std::hint::black_box((tokenizer.decode(&ids, random.bool()), pieces, decoder.finish()));
        ids.iter().for_each(|&id| drop((tokenizer.token_bytes(id), tokenizer.is_special(id))));
        Some(())
    })
}

/// Returns a random text of words, special tokens and unusual characters, some of which it repeats many times.
fn random_text(random: &mut fastrand::Rng) -> String {
    const PIECES: &str =
        "Hello ; world;\n\n;  ;<|im_start|>;<|image_pad|>;é;e\u{301};日本;😀;\0;123456;'ll;İ;\u{200d};ﷺ;\t;�;</s>";
    let pieces: Vec<&str> = PIECES.split(';').collect();
    let times = |random: &mut fastrand::Rng| if random.u8(..20) == 0 { random.usize(..2000) } else { 1 };
    (0..random.usize(..60)).map(|_| pieces[random.usize(..pieces.len())].repeat(times(random))).collect()
}

/// Chat templates and messages. A template worker process renders the messages, as `reel` does for every template that
/// it does not know.
pub fn chat_template(_: PathBuf) -> Result<Runner> {
    reel_support::worker::set_worker_program(reel_support::worker::WorkerProgram::of_current_executable());
    run(|input| {
        let (template, messages) = first_part_of(input);
        let messages = serde_json::from_slice(messages).unwrap_or_default();
        let tokens = Map::from_iter([("eos_token".to_string(), "</s>".into())]);
        let template = accepted(ChatTemplate::parse("chat_template.jinja", text_of(template), tokens))?;
        render(&template, &messages, true).map(drop)
    })
}

fn render(template: &ChatTemplate, messages: &Value, add_generation_prompt: bool) -> Option<String> {
    let prompt = accepted(template.render_json(messages, add_generation_prompt))?;
    assert!(prompt.len() <= 32 << 20, "the prompt has {} bytes", prompt.len());
    Some(prompt)
}

/// Messages in which any JSON replaces a value. The chat template that reel writes and a published template render
/// these messages. Messages that [`Conversation`] accepts must render to a prompt with one pad token for each image
/// and video.
pub fn template_values(_: PathBuf) -> Result<Runner> {
    let published = repository_path("tests/golden/model/text_multiturn/model/chat_template.json");
    let published: Value = serde_json::from_slice(&fs::read(published)?)?;
    let published = published["chat_template"].as_str().unwrap_or_default();
    let template = |text: &str| ChatTemplate::parse("chat_template.json", text.to_string(), Map::new());
    let templates = [template(CHAT_TEMPLATE)?, template(published)?];
    run(move |input| {
        let messages: Value = serde_json::from_slice(input).ok()?;
        templates.iter().filter_map(|template| check_prompt(template, &messages)).last()
    })
}

fn check_prompt(template: &ChatTemplate, messages: &Value) -> Option<()> {
    for add_generation_prompt in [false, true] {
        render(template, messages, add_generation_prompt);
    }
    let conversation = accepted(Conversation::from_json("m.json", messages, Path::new("/root")))?;
    let prompt = accepted(template.render(&conversation, true))?;
    let media = conversation.media_parts().count();
    let images = conversation.media_parts().filter(|part| matches!(part, ContentPart::Image(_))).count();
    let pads = ["<|image_pad|>", "<|video_pad|>"].map(|pad| prompt.matches(pad).count());
    assert!(pads[0] >= images && pads[1] >= media - images, "{pads:?} pads: {prompt:?}");
    Some(())
}
