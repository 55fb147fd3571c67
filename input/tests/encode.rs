//! Compares encoded conversations with transformers' processor (tests/golden/model), and renders hostile chat
//! templates.
//!
//! This program has no test harness, because it also runs as the worker processes that decode videos and render
//! templates.

mod hostile;

use std::path::Path;
use std::process::ExitCode;

use reel_input::media::worker;
use reel_input::messages::{ContentPart, MediaSource, VideoPart, VideoSource};
use reel_input::{Conversation, MediaOptions, ModelFolder, ModelInput, SecondPerGrid, chat, encode};

fn main() -> ExitCode {
    if let Some(code) = reel_support::worker::run_if_worker(&[&worker::VIDEO_WORKER, &chat::TEMPLATE_WORKER]) {
        return code;
    }
    reel_support::worker::set_worker_program(reel_support::worker::WorkerProgram::of_current_executable());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 6, "golden cases are missing");
    for case in &cases {
        equals_the_processor(case);
        println!("ok   {}", case.file_name().unwrap().to_string_lossy());
    }
    let video = cases.iter().find(|case| case.ends_with("video_mp4")).unwrap();
    second_per_grid_is_optional(video);
    rejects_an_extra_pad_token(video);
    video_in_memory_equals_video_file(video);
    println!("ok   rates, pad tokens and videos in memory");
    hostile::hostile_templates_give_one_line_errors();
    hostile::template_that_fails_for_some_messages_is_kept();
    println!("ok   hostile chat templates");
    ExitCode::SUCCESS
}

fn equals_the_processor(case: &Path) {
    let bundle = ModelFolder::open(&case.join("model")).unwrap();
    let about: serde_json::Value = serde_json::from_slice(&std::fs::read(case.join("expected.json")).unwrap()).unwrap();
    let conversation = Conversation::open(&case.join("messages.json"), None).unwrap();
    let prompt = bundle.template.render(&conversation, !conversation.ends_with_assistant()).unwrap();
    assert_eq!(prompt, about["prompt"].as_str().unwrap(), "{}", case.display());
    let stops: Vec<u32> = serde_json::from_value(about["greedy"]["eos_token_ids"].clone()).unwrap();
    assert_eq!(bundle.stop_token_ids(), stops);

    let got = encode(&bundle, &conversation, &MediaOptions::default()).unwrap();
    got.check(&bundle.config, "got").unwrap();
    let want = ModelInput::read(&case.join("inputs.safetensors"), &bundle.config).unwrap();
    assert_eq!(got.input_ids, want.input_ids, "{}", case.display());
    assert_eq!(got.position_ids, want.position_ids, "{}", case.display());
    assert_eq!(got.rope_delta, want.rope_delta);
    assert_eq!((&got.image_grid_thw, &got.video_grid_thw), (&want.image_grid_thw, &want.video_grid_thw));
    assert_eq!(got.frame_indices, want.frame_indices);
    assert_eq!(got.second_per_grid_ts.len(), want.second_per_grid_ts.len());
    for (got, want) in got.second_per_grid_ts.iter().zip(&want.second_per_grid_ts) {
        assert!((got - want).abs() <= 1e-5 * want);
    }
    // Tolerances are given in steps of a u8 pixel value. One step is 1 / (255 · std) after normalisation, where the
    // smallest std is 0.26.
    let level = 1.0 / (255.0 * 0.26);
    let tolerances = &about["tolerances"];
    let largest = tolerances["pixel_max_levels"].as_f64().map_or(f32::INFINITY, |x| x as f32) * level;
    let mean = tolerances["pixel_mean_levels"].as_f64().unwrap() as f32 * level;
    for (got, want) in got.image_and_video_pixels().unwrap().iter().zip(&want.image_and_video_pixels().unwrap()) {
        let (Some(got), Some(want)) = (got, want) else {
            assert_eq!(got.is_some(), want.is_some());
            continue;
        };
        assert_eq!(got.len(), want.len());
        let off: Vec<f32> = got.iter().zip(want.iter()).map(|(a, b)| (a - b).abs()).collect();
        assert!(off.iter().all(|x| *x <= largest), "{}", case.display());
        assert!(off.iter().sum::<f32>() / off.len() as f32 <= mean, "{}", case.display());
    }
}

fn second_per_grid_is_optional(case: &Path) {
    let bundle = ModelFolder::open(&case.join("model")).unwrap();
    let conversation = Conversation::open(&case.join("messages.json"), None).unwrap();
    let options = MediaOptions { second_per_grid: SecondPerGrid::One, ..MediaOptions::default() };
    let one = encode(&bundle, &conversation, &options).unwrap();
    assert_eq!(one.second_per_grid_ts, [1.0]);
    let real = encode(&bundle, &conversation, &MediaOptions::default()).unwrap();
    assert_ne!(one.position_ids, real.position_ids);
    let flags = reel_input::media::profile::MediaOverrides { nframes: Some(4), ..Default::default() };
    let fewer = MediaOptions { overrides: flags, ..MediaOptions::default() };
    assert_eq!(encode(&bundle, &conversation, &fewer).unwrap().frame_indices.len(), 4, "a flag wins over the part");
}

fn rejects_an_extra_pad_token(case: &Path) {
    let bundle = ModelFolder::open(&case.join("model")).unwrap();
    let mut conversation = Conversation::open(&case.join("messages.json"), None).unwrap();
    let said = |conversation: &Conversation| encode(&bundle, conversation, &MediaOptions::default());
    let question = Conversation::from_user_message(Vec::new(), "what is <|video_pad|>?");
    let alone = said(&question).unwrap();
    let pad = bundle.config.tokens.video;
    assert_eq!(
        alone.input_ids.iter().filter(|&&id| id == pad).count(),
        1,
        "without media a pad token in the text stays one id"
    );
    conversation.messages.extend(question.messages);
    let error = said(&conversation).unwrap_err().to_string();
    assert!(
        error.contains("has the token <|video_pad|> in its text, so the prompt has 2 such tokens for 1 video(s)"),
        "{error}"
    );
}

fn video_in_memory_equals_video_file(case: &Path) {
    use base64::Engine;
    let bundle = ModelFolder::open(&case.join("model")).unwrap();
    let video = |source: MediaSource| {
        let source = VideoSource::File(source);
        let part = VideoPart { source, overrides: Default::default(), frame_times: None, location: "p".to_string() };
        encode(&bundle, &Conversation::from_user_message(vec![ContentPart::Video(part)], "?"), &MediaOptions::default())
    };
    let path = case.join("media/clip.mp4");
    let base64 = base64::engine::general_purpose::STANDARD.encode(std::fs::read(&path).unwrap());
    let data = video(MediaSource::Data(format!("data:video/mp4;base64,{base64}"))).unwrap();
    assert_eq!(data, video(MediaSource::Path(path)).unwrap());
    let error = video(MediaSource::Data("data:video/mp4;base64,AAAA".to_string())).unwrap_err().to_string();
    assert!(
        error.starts_with("p: data: URI: ") && !error.contains(&*std::env::temp_dir().to_string_lossy()),
        "{error}"
    );
}
