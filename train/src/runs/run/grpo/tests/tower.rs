//! Tests the vision feature cache: a frozen vision tower encodes each video once.

use reel_input::ModelInput;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;

use super::*;

/// Does a run of three steps on one video. Returns the number of forward passes of the vision tower.
fn passes(change: impl FnOnce(&mut GrpoOptions)) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let video = live::data_rows().lines().nth(1).unwrap().to_string();
    let case = live::case(dir.path(), "out", &video).with(|o| {
        (o.max_steps, o.temporal, o.save_steps) = (Some(3), false, 0);
        o.reward_command = vec!["while read -r line; do echo ${#line}; done".into()];
        change(o);
    });
    case.device.profiler().collect_totals(true);
    case.run().unwrap();
    let totals = case.device.profiler().totals().unwrap();
    totals.iter().filter(|(name, _)| name.starts_with("patch_embedding_fwd")).map(|(_, op)| op.launches).sum()
}

#[test]
fn frozen_vision_tower_encodes_a_video_once() {
    // A trained vision tower encodes the video in each of three steps for sampling and again for training. The
    // reference model's tower is frozen and encodes the video once.
    assert_eq!(passes(|_| ()), 3 + 3 + 1);
    assert_eq!(passes(|o| o.beta = 0.0), 3 + 3);
    assert_eq!(passes(|o| o.num_iterations = 3), 1 + 3 + 1);
    let both_towers = Some(vec!["all-linear".to_string()]);
    assert_eq!(passes(|o| (o.lora_r, o.lora_target_modules) = (2, both_towers)), 3 + 3 + 1);
    // A frozen vision tower encodes the video once for sampling, reference and training of all steps.
    assert_eq!(passes(|o| o.freeze_vision = true), 1);
    assert_eq!(passes(|o| o.lora_r = 2), 1);
    assert_eq!(passes(|o| (o.freeze_vision, o.shared_prefix) = (true, false)), 1);
    assert_eq!(passes(|o| (o.freeze_vision, o.per_device_train_batch_size) = (true, 8)), 1);
    // Each step also samples for the video with shuffled frames, which the tower must encode: one more pass per step.
    assert_eq!(passes(|o| (o.freeze_vision, o.temporal) = (true, true)), 1 + 3);
}

/// Returns three prompts: one with a video, one without media, one with an image.
fn prompts(dir: &Path) -> Vec<Arc<ModelInput>> {
    let case = live::case(dir, "out", &live::data_rows());
    let (options, model) = (&case.options, PathBuf::from(&case.options.model));
    let media = MediaOptions { profile: reel_input::media::profile::MediaProfile::VideorftTrain, ..Default::default() };
    let prompts = PromptSource::open(options, &DataSetup { model: &model, media: &media, seed: 0 }).unwrap();
    [1, 0, 2].map(|row| prompts.prompt(row).unwrap().tokens).into()
}

#[test]
fn cached_features_have_the_bits_of_one_pass() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = prompts(dir.path());
    let folder = golden("model_a");
    let (device, files) = (Device::cpu(2), Checkpoint::open(&folder).unwrap());
    let config = reel_input::config::ModelConfig::open(&folder).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let mut model = QwenVl::open(&device, &files, &config, dtype).unwrap();
        let cx = Cx::inference(&device, dtype);
        // The four sequences are: the prompt with the video, the text prompt, the prompt with the video again, and
        // the prompt with the image.
        let sequences: Vec<_> = [0, 1, 0, 2].iter().map(|&i: &usize| tokens[i].sequence()).collect();
        let batch = reel_model::batch::Batch::new(&device, &config, &sequences, "test").unwrap();
        let input = batch.vision.as_ref().unwrap();
        let whole = model.vision_tokens(&cx, input).unwrap();
        let bytes = |tokens: &reel_model::vision::VisionTokens| {
            (tokens.embeddings.shape().to_vec(), tokens.embeddings.read_bytes().unwrap())
        };
        for cached in [None, Some(features())] {
            model.features = cached;
            for _ in 0..2 {
                let again = model.vision_tokens(&cx, input).unwrap();
                assert!(bytes(&again) == bytes(&whole), "{dtype}");
            }
        }
    }
}

#[test]
fn reference_keeps_the_initial_vision_tower() {
    let dir = tempfile::tempdir().unwrap();
    let video = live::data_rows().lines().nth(1).unwrap().to_string();
    let case = live::case(dir.path(), "out", &video).with(|o| {
        o.reward_command = vec!["while read -r line; do echo ${#line}; done".into()];
        // The decoder's learning rate is 0, so only the vision tower changes.
        (o.learning_rate, o.learning_rate_vision, o.weight_decay) = (0.0, Some(1e-2), 0.0);
        (o.max_steps, o.temporal) = (Some(3), false);
    });
    case.run().unwrap();
    let lines = read_metrics(&dir.path().join("out"));
    assert!(lines[0].grpo.kl == Some(0.0) && lines[2].grpo.kl.unwrap() > 0.0, "{lines:?}");
}
