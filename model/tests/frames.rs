//! Tests that the vision tower gives the same results for decoded u8 frames and for normalised pixel values.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::ModelConfig;
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::{MediaFrames, ModelInput};
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::quantization::Quantization;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_model::weights::{WeightLoader, WeightSource};
use reel_runtime::{Cx, Grads, Tensor, ops};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train/model_a")
}

/// Random frames that give a grid of `[t, h, w]` patches. With `odd`, one frame fewer, so the number of frames is
/// odd.
fn noise([t, h, w]: [usize; 3], odd: bool, p: &ImageProcessorSettings, seed: u64) -> FrameBuf {
    let (frames, height, width) = (t * p.temporal_patch_size - usize::from(odd), h * p.patch_size, w * p.patch_size);
    let level = |i: usize| ((i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    FrameBuf { data: Arc::new((0..frames * height * width * 3).map(level).collect()), frames, height, width }
}

/// An input with an optional image, one video for each of `videos`, and one text token.
fn tokens(config: &ModelConfig, image: bool, videos: &[[usize; 3]], odd: bool, seed: u64) -> ModelInput {
    let vision = &config.vision;
    let processor = ImageProcessorSettings {
        patch_size: vision.patch_size,
        temporal_patch_size: vision.temporal_patch_size,
        merge_size: vision.spatial_merge_size,
        ..ImageProcessorSettings::default()
    };
    let grids: Vec<[usize; 3]> = videos.iter().map(|&[t, h, w]| [t, 2 * h, 2 * w]).collect();
    let still = [1, 4, 2];
    let mut tokens = ModelInput {
        frames: MediaFrames {
            images: if image { vec![noise(still, true, &processor, seed + 1)] } else { Vec::new() },
            videos: grids.iter().map(|&grid| noise(grid, odd, &processor, seed)).collect(),
            processor,
            ..MediaFrames::default()
        },
        image_grid_thw: if image { vec![still] } else { Vec::new() },
        second_per_grid_ts: vec![1.0; grids.len()],
        video_grid_thw: grids,
        ..ModelInput::default()
    };
    let t = &config.tokens;
    for (pad, grids) in [(t.image, &tokens.image_grid_thw), (t.video, &tokens.video_grid_thw)] {
        for grid in grids {
            tokens.input_ids.push(t.vision_start);
            let pads = grid.iter().product::<usize>() / config.vision.patches_per_vision_token();
            tokens.input_ids.extend(std::iter::repeat_n(pad, pads));
            tokens.input_ids.push(t.vision_end);
        }
    }
    tokens.input_ids.push(5);
    tokens.compute_positions(config, "test").unwrap();
    tokens
}

/// The same input with normalised pixel values instead of u8 frames.
fn as_values(tokens: &ModelInput) -> ModelInput {
    let [images, videos] = tokens.image_and_video_pixels().unwrap().map(|p| p.map(|p| p.into_owned()));
    ModelInput { frames: MediaFrames::default(), pixel_values: images, pixel_values_videos: videos, ..tokens.clone() }
}

/// The hidden states of a batch, and the gradient of the patch embedding weight.
fn pass(dtype: DType, all: &[&ModelInput]) -> (Vec<f32>, Vec<f32>) {
    const NAME: &str = "visual.patch_embed.proj.weight";
    let (config, files) = (ModelConfig::open(&folder()).unwrap(), Checkpoint::open(&folder()).unwrap());
    let device = Device::cpu(2);
    let trainable = |name: &str| name == NAME;
    let from = WeightLoader {
        device: &device,
        source: WeightSource::Files(&files),
        dtype,
        quantization: Quantization::None,
        may_pad: true,
        trainable: &trainable,
        deferred: None,
    };
    let model = QwenVl::load(&from, &config).unwrap();
    let cx = Cx::training(&device, dtype);
    let sequences: Vec<_> = all.iter().map(|t| t.sequence()).collect();
    let batch = Batch::new(&device, &config, &sequences, "test").unwrap();
    let hidden = model.forward(&cx, &batch, ForwardOptions::default()).unwrap();
    let n = hidden.shape()[0];
    let targets = Tensor::from_i32(&device, &[n], &(0..n as i32).map(|i| i % 7).collect::<Vec<_>>()).unwrap();
    let lp = ops::linear_log_prob(&cx, &hidden, model.text.lm_head().unwrap(), &targets, 1.0).unwrap();
    let one = Tensor::from_f32(&device, &[n], DType::F32, &vec![1.0; n], MemoryCategory::Inputs).unwrap();
    let mut grads = Grads::new();
    cx.backward(&ops::weighted_sum(&cx, &lp, &one).unwrap(), 1.0, &mut grads).unwrap();
    (hidden.to_f32().unwrap(), grads.get(NAME).unwrap().to_f32().unwrap())
}

fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| got.iter().zip(want).map(|(&g, &w)| f(g.into(), w.into())).sum::<f64>();
    (sum(&|g, w| (g - w).powi(2)) / sum(&|_, w| w * w)).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn frames_equal_pixel_values(
        image: bool,
        videos in prop::collection::vec([1usize..3, 1usize..4, 1usize..4], 1..3),
        odd: bool,
        seed in 0u64..1000,
    ) {
        let config = ModelConfig::open(&folder()).unwrap();
        let levels = tokens(&config, image, &videos, odd, seed);
        let values = as_values(&levels);
        for dtype in [DType::F32, DType::BF16] {
            let ((got, d_got), (want, d_want)) = (pass(dtype, &[&levels]), pass(dtype, &[&values]));
            // Hidden states must have equal bits: the embedding of a patch depends on its own pixels only. Gradients
            // may differ by rounding, because the two inputs sum over patches in different orders.
            prop_assert!(got == want, "{dtype}");
            let off = distance(&d_got, &d_want);
            prop_assert!(off <= 1e-5, "{dtype}: gradients differ by {off:.2e}");
            // A batch of two sequences: one with frames, one with pixel values.
            prop_assert!(pass(dtype, &[&levels, &values]).0[..got.len()] == got[..], "{dtype}: hidden states differ if the batch also has pixel values");
        }
    }
}

#[test]
fn rejects_frames_that_contradict_the_grids() {
    let config = ModelConfig::open(&folder()).unwrap();
    let good = tokens(&config, true, &[[1, 2, 2]], false, 1);
    let error_of = |tokens: &ModelInput| {
        let made = Batch::new(&Device::cpu(1), &config, &[tokens.sequence()], "here");
        made.map(|_| ()).unwrap_err().to_string()
    };
    let mut other = good.clone();
    other.video_grid_thw = vec![[1, 8, 2]];
    let e = error_of(&other);
    assert!(e.starts_with("here: pixel_values_videos: the frames have the grids [[1, 4, 4]]"), "{e}");
    let mut missing = good.clone();
    missing.frames.videos.clear();
    let e = error_of(&missing);
    assert!(e.starts_with("here: pixel_values_videos: 0 pixel values"), "{e}");
    let mut ragged = good;
    ragged.frames.images[0].height -= 1;
    assert!(error_of(&ragged).contains("exactly frames x height x width x 3 bytes"), "{}", error_of(&ragged));
}
