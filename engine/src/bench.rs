//! Times the prefill and decode steps of a loaded model for `reel bench`. Loading the model and tokenizing are not
//! timed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use reel_input::config::{Family, ModelConfig};
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::mrope::{MediaGrids, rope_index};
use reel_input::window::GridThw;
use reel_input::{MediaFrames, Sequence, TokenId};
use reel_model::batch::Batch;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_runtime::ops::{DecodeSlot, KvPages, RowSampling, SamplingParams, SequencePages};
use reel_runtime::{Cx, Tensor};

use crate::block_allocator::BlockAllocator;
use crate::error::Result;
use crate::running_batch::{BatchCapacity, RunningBatch};

/// Decode steps that run before the timed steps: the first one compiles the kernels, the second one captures the CUDA
/// graph.
const WARM_UP_STEPS: usize = 2;

/// Returns `tokens` arbitrary token ids and their positions. The time of a forward pass does not depend on the ids.
fn arbitrary_prompt(tokens: usize) -> (Vec<TokenId>, Vec<i64>) {
    ((0..tokens as u32).map(|i| (i * 37) % 97).collect(), (0..tokens as i64).collect())
}

/// Returns the block tables of `sequences` sequences with `blocks` KV blocks each. No two sequences share a block.
fn block_tables(sequences: usize, blocks: usize) -> Vec<Vec<i32>> {
    (0..sequences).map(|i| ((i * blocks) as i32..((i + 1) * blocks) as i32).collect()).collect()
}

/// The size of a benchmark video, which has arbitrary pixels.
#[derive(Clone, Copy, Debug)]
pub struct VideoShape {
    /// Number of frames.
    pub frames: usize,
    /// Height of a frame in pixels, a multiple of the model's patch size times its merge size.
    pub height: usize,
    /// Width of a frame in pixels, a multiple of the model's patch size times its merge size.
    pub width: usize,
}

/// A prompt of arbitrary text tokens, optionally preceded by a video of arbitrary pixels.
pub struct BenchPrompt {
    ids: Vec<TokenId>,
    positions: [Vec<i64>; 3],
    frames: MediaFrames,
    grids: Vec<GridThw>,
}

impl BenchPrompt {
    /// Creates a prompt with `tokens` tokens of text for a model; `processor` cuts the frames into patches.
    ///
    /// # Errors
    /// The height or the width of the video is not a multiple of the model's patch size times its merge size.
    pub fn new(
        config: &ModelConfig,
        processor: ImageProcessorSettings,
        tokens: usize,
        video: Option<VideoShape>,
    ) -> Result<Self> {
        let (text, positions) = arbitrary_prompt(tokens);
        let mut prompt = Self {
            ids: text,
            positions: [positions.clone(), positions.clone(), positions],
            frames: MediaFrames { processor, ..MediaFrames::default() },
            grids: Vec::new(),
        };
        let Some(VideoShape { frames, height, width }) = video else { return Ok(prompt) };
        // The time of a forward pass does not depend on the pixel values, so arbitrary values are used.
        let data = (0..frames * height * width * 3).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]);
        let video = FrameBuf { data: Arc::new(data.collect()), frames, height, width };
        let grid = prompt.frames.grid_thw(&video)?;
        prompt.frames.videos.push(video);
        prompt.grids.push(grid);
        let pads = grid.iter().product::<usize>() / config.vision.patches_per_vision_token();
        // In Qwen3-VL each frame pair has a run of pad tokens of its own. The times before the runs are left out.
        let runs = if config.family() == Family::Qwen3Vl { grid[0] } else { 1 };
        let run =
            [vec![config.tokens.vision_start], vec![config.tokens.video; pads / runs], vec![config.tokens.vision_end]];
        prompt.ids.splice(0..0, run.concat().repeat(runs));
        let grids = MediaGrids { video_grid_thw: &prompt.grids, ..MediaGrids::default() };
        prompt.positions = rope_index(config, &prompt.ids, grids, "bench")?.position_ids;
        Ok(prompt)
    }

    /// The number of tokens of the prompt, including the video's tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            input_ids: &self.ids,
            position_ids: std::array::from_fn(|axis| &self.positions[axis][..]),
            video_grid_thw: &self.grids,
            frames: Some(&self.frames),
            ..Sequence::default()
        }
    }
}

/// Times `rounds` forward passes over `batch` equal prompts, with the logits of each prompt's last token. The time
/// includes copying the frames to the device and the vision tower. Returns the seconds of each pass.
pub fn time_prefill(model: &QwenVl, cx: &Cx, prompt: &BenchPrompt, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let tokens = prompt.tokens();
    let blocks = BlockAllocator::blocks_for_tokens(tokens);
    let tables = block_tables(batch, blocks);
    let sequences: Vec<SequencePages> =
        tables.iter().map(|blocks| SequencePages { cached_tokens: 0, new_tokens: tokens, blocks }).collect();
    let cache = model.text.kv_cache(cx.device(), cx.dtype(), blocks * batch)?;
    let last_rows: Vec<i32> = (1..=batch).map(|b| (b * tokens - 1) as i32).collect();
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            let packed = Batch::new(cx.device(), &model.config, &vec![prompt.sequence(); batch], "bench")?;
            let pages = KvPages::new(cx.device(), &sequences)?;
            let rows = Tensor::from_i32(cx.device(), &[batch], &last_rows)?;
            let options = ForwardOptions { cache: Some((&cache, &pages)), rows: Some(&rows), ..Default::default() };
            let hidden = model.forward(cx, &packed, options)?;
            for row in 0..batch {
                model.logits(cx, &hidden.rows(row, 1)?)?.to_f32()?;
            }
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

/// Times `rounds` decode steps over `batch` sequences, which have `context` tokens at first. As in the engine, a step
/// is a captured graph, and on an asynchronous device the host enqueues a step before it has read the tokens of the
/// previous step. Returns the seconds of each step. Two warm-up steps are neither timed nor part of the device's
/// profile.
pub fn time_decode(model: &QwenVl, cx: &Cx, context: usize, batch: usize, rounds: usize) -> Result<Vec<f64>> {
    let (device, limit) = (cx.device(), context + WARM_UP_STEPS + rounds + 1);
    let blocks = BlockAllocator::blocks_for_tokens(limit);
    let capacity = BatchCapacity { slots: batch, blocks_per_slot: blocks, blocks: blocks * batch };
    let mut running = RunningBatch::new(model, cx, &Tensor::from_i32(device, &[0], &[])?, capacity, true)?;
    // The context is not prefilled, so its keys and values are set to 0: decode steps read them and need finite
    // numbers.
    running.cache().fill_with_zeros()?;
    let tables = block_tables(batch, blocks);
    let slot = |blocks| DecodeSlot {
        id: 1,
        position: context as i32,
        keys: context + 1,
        limit,
        blocks,
        draw: context as i32 + 1,
        history: &[],
        adapter: -1,
    };
    let params = |i: usize| SamplingParams { temperature: 1.0, seed: i as u64, ..SamplingParams::GREEDY };
    let sampling = |i: usize| RowSampling { params: params(i), ..RowSampling::default() };
    let (slots, samplings): (Vec<DecodeSlot>, Vec<RowSampling>) =
        tables.iter().enumerate().map(|(i, table)| (slot(&table[..]), sampling(i))).unzip();
    running.assign_slots(0, &slots, &samplings)?;
    let batch_size = running.padded_batch_size(batch);
    for _ in 0..WARM_UP_STEPS {
        running.enqueue_step(batch_size)?.wait_for_tokens()?;
    }
    device.profiler().clear();
    let lookahead = usize::from(device.capabilities().async_launches);
    let (mut in_flight, mut seconds, mut last) = (VecDeque::new(), Vec::with_capacity(rounds), Instant::now());
    for round in 0..rounds + lookahead {
        if round < rounds {
            in_flight.push_back(running.enqueue_step(batch_size)?);
        }
        if round >= lookahead
            && let Some(step) = in_flight.pop_front()
        {
            step.wait_for_tokens()?;
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use reel_model::init::{InitOptions, Preset, preset_config};

    use super::*;

    /// A video of Qwen2.5-VL is one run of pad tokens between two marks, one of Qwen3-VL a run for each frame pair.
    #[test]
    fn videos_have_the_runs_of_their_family() {
        for (preset, runs) in [(Preset::Tiny, 1), (Preset::Qwen3Tiny, 3)] {
            let options = InitOptions { preset, layers: None, vocab: None, dtype: None, seed: 0 };
            let config = preset_config(&options).unwrap();
            let patch_size = config.vision.patch_size;
            let processor = ImageProcessorSettings { patch_size, ..ImageProcessorSettings::default() };
            let video = VideoShape { frames: 6, height: 2 * patch_size, width: 4 * patch_size };
            let prompt = BenchPrompt::new(&config, processor, 5, Some(video)).unwrap();
            assert_eq!((prompt.tokens(), prompt.grids[0]), (5 + 3 * 2 + 2 * runs, [3, 2, 4]));
            let batch = Batch::new(&reel_device::Device::cpu(1), &config, &[prompt.sequence()], "bench").unwrap();
            assert_eq!(batch.patch_count(), 24);
        }
    }
}
