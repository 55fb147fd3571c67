//! Sequences that are continued, as when tools answer with images: they have the bits of a fresh computation, and only
//! new images and videos are computed.

use std::collections::BTreeMap;
use std::sync::Arc;

use reel_device::{DType, Device, compile};
use reel_engine::{Completion, Continuations, Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::{MediaFrames, ModelInput, TokenId};
use reel_model::checkpoint::Checkpoint;
use reel_model::chunked_prompt::PromptTokens;
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;

use support::{SAMPLED, simulated_device};

mod support;

/// The number of turns of each completion.
const TURNS: usize = 3;

fn tiny_model(preset: Preset, device: &Device, dtype: DType) -> QwenVl {
    let folder = tempfile::tempdir().unwrap();
    init_model_folder(&InitOptions { preset, layers: None, vocab: None, dtype: None, seed: 3 }, folder.path()).unwrap();
    let config = reel_input::config::ModelConfig::open(folder.path()).unwrap();
    QwenVl::open(device, &Checkpoint::open(folder.path()).unwrap(), &config, dtype).unwrap()
}

/// Text, an image or a video of random pixels, and text.
fn shown(model: &QwenVl, text: &[TokenId], salt: u32, is_video: bool) -> ModelInput {
    let (vision, tokens) = (&model.config.vision, &model.config.tokens);
    let side = vision.patch_size * vision.spatial_merge_size * 2;
    let frames = if is_video { 2 } else { 1 };
    let pixel = |i: u32| ((i + salt).wrapping_mul(2_654_435_761) >> 24) as u8;
    let data = (0..(frames * side * side * 3) as u32).map(pixel).collect();
    let buffer = FrameBuf { data: Arc::new(data), frames, height: side, width: side };
    let processor = ImageProcessorSettings::of_published(model.config.family());
    let mut input = ModelInput { frames: MediaFrames { processor, ..MediaFrames::default() }, ..ModelInput::default() };
    let grid = input.frames.grid_thw(&buffer).unwrap();
    if is_video {
        input.frames.videos.push(buffer);
        input.video_grid_thw.push(grid);
        input.second_per_grid_ts.push(1.0);
    } else {
        input.frames.images.push(buffer);
        input.image_grid_thw.push(grid);
    }
    let pad = if is_video { tokens.video } else { tokens.image };
    let pads = vec![pad; grid.iter().product::<usize>() / vision.patches_per_vision_token()];
    input.input_ids = [text, &[tokens.vision_start], &pads, &[tokens.vision_end], text].concat();
    input
}

/// Continues each completion by text and an image or a video, and keeps all inputs with their completions.
struct Conversations<'m> {
    model: &'m QwenVl,
    /// The input, the number of the turn and the seed of the first completion of each request.
    inputs: BTreeMap<usize, (Arc<ModelInput>, usize, u64)>,
    ready: Vec<(usize, GenerationRequest)>,
    seen: Vec<(Arc<ModelInput>, u64, Completion)>,
    next: usize,
}

fn request(input: Arc<ModelInput>, seed: u64, completions: usize) -> GenerationRequest {
    GenerationRequest {
        sampling: SamplingParams { seed, ..SAMPLED },
        max_new_tokens: 40,
        min_new_tokens: 9,
        stop_conditions: (0..completions).map(|_| StopCondition::none()).collect(),
        eos_token_ids: (0..40).collect(),
        ..GenerationRequest::new(input)
    }
}

impl Continuations for Conversations<'_> {
    fn finish(&mut self, completion: Completion) -> reel_engine::Result<()> {
        let (input, turn, seed) = self.inputs[&completion.request].clone();
        let seed = seed + completion.index as u64;
        let mut next = ModelInput::clone(&input);
        let own = ModelInput { input_ids: completion.ids.clone(), ..ModelInput::default() };
        next.append(&own, &self.model.config, "test")?;
        if turn + 1 < TURNS {
            let text: Vec<TokenId> = (0..30).map(|i| 40 + (i * 7 + turn as u32) % 50).collect();
            let answer = shown(self.model, &text, self.next as u32, (turn + completion.index).is_multiple_of(2));
            next.append(&answer, &self.model.config, "test")?;
            let next = Arc::new(next);
            self.inputs.insert(self.next, (next.clone(), turn + 1, seed));
            self.ready.push((self.next, request(next, seed, 1)));
            self.next += 1;
        }
        self.seen.push((input, seed, completion));
        Ok(())
    }

    fn next_request(&mut self, _wait: bool) -> reel_engine::Result<Option<(usize, GenerationRequest)>> {
        Ok(self.ready.pop())
    }
}

fn continued_sequences_equal_fresh_ones(preset: Preset, device: &Device, dtype: DType, completions: usize) {
    let (model, cx) = (tiny_model(preset, device, dtype), Cx::inference(device, dtype));
    let engine = Engine::new(&model, &cx).unwrap();
    let text: Vec<TokenId> = (0..45).map(|i| 40 + i * 3 % 50).collect();
    let mut first = shown(&model, &text, 1, true);
    first.append(&shown(&model, &text, 2, false), &model.config, "test").unwrap();
    let first = Arc::new(first);
    let inputs = BTreeMap::from([(0, (first.clone(), 0, 7))]);
    let (ready, seen) = (Vec::new(), Vec::new());
    let mut conversations = Conversations { model: &model, inputs, ready, seen, next: 1 };
    // Each turn may need 40 tokens of the model, and 60 and 8 of the answer.
    let first_turn =
        GenerationRequest { max_new_tokens: 40 * TURNS + 100 * (TURNS - 1), ..request(first, 7, completions) };
    engine.generate_with_continuations(vec![first_turn], &mut conversations, |_| {}).unwrap();
    assert_eq!(conversations.seen.len(), TURNS * completions);
    for (input, seed, got) in conversations.seen {
        let fresh = engine.generate(vec![request(input.clone(), seed, 1)], |_| {}).unwrap().0.remove(0);
        let n = got.ids.len().min(fresh.ids.len());
        assert_eq!(
            (&got.ids[..n], &got.log_probs[..n]),
            (&fresh.ids[..n], &fresh.log_probs[..n]),
            "{preset:?} {dtype}"
        );
        assert!(n >= 9, "{n}");
    }
}

#[test]
fn continued_sequences_have_the_bits_of_fresh_ones() {
    for preset in [Preset::Tiny, Preset::Qwen3Tiny] {
        for dtype in [DType::F32, DType::BF16] {
            continued_sequences_equal_fresh_ones(preset, &Device::cpu(2), dtype, 3);
        }
    }
}

#[test]
fn continued_sequences_have_the_bits_of_fresh_ones_on_hopper() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    continued_sequences_equal_fresh_ones(Preset::Qwen3Tiny, &simulated_device(), DType::BF16, 1);
}

/// The vision tokens that later tokens need are those of the whole prompt.
#[test]
fn only_the_needed_images_and_videos_are_computed() {
    let device = Device::cpu(2);
    for preset in [Preset::Tiny, Preset::Qwen3Tiny] {
        let (model, cx) = (tiny_model(preset, &device, DType::F32), Cx::inference(&device, DType::F32));
        let text: Vec<TokenId> = (40..50).collect();
        let mut prompt = ModelInput::default();
        let mut ends = Vec::new();
        for (salt, is_video) in [(1, false), (2, true), (3, true), (4, false), (5, true)] {
            prompt.append(&shown(&model, &text, salt, is_video), &model.config, "test").unwrap();
            ends.push(prompt.len());
        }
        let sequence = prompt.sequence();
        let tokens = PromptTokens::new(&model.config, &sequence, true, "test").unwrap();
        let needed = |from| model.needed_vision_tokens(&cx, &sequence, &tokens, from).unwrap();
        let all = needed(0).unwrap();
        assert_eq!(all.grids.len(), 5);
        let rows = all.tokens.embeddings.to_f32().unwrap();
        let width = rows.len() / all.tokens.embeddings.shape()[0];
        for (from, grids) in [(ends[0] - 1, 4), (ends[0] + 12, 4), (ends[1], 3), (ends[3], 1)] {
            let part = needed(from).unwrap();
            assert_eq!(part.grids.len(), grids, "{preset:?} from {from}");
            let own = part.tokens.embeddings.to_f32().unwrap();
            for &index in tokens.vision_index[from..].iter().filter(|&&index| index >= 0) {
                let row = |rows: &[f32], index: i32| rows[index as usize * width..][..width].to_vec();
                assert_eq!(row(&own, part.index_of(index)), row(&rows, index), "{preset:?} from {from}, {index}");
            }
        }
        assert!(needed(ends[4] - 5).is_none());
    }
}
