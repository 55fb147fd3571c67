//! Estimates the number of tokens of a conversation from its text and the limits of its media, without reading media.

use crate::media::profile::{MediaOverrides, SelectionRule};

use crate::MediaOptions;
use crate::family::Family;
use crate::messages::{ContentPart, Conversation, ImagePart, MessageContent, VideoPart, VideoSource};
use crate::video_marks::TEXT_TOKENS_PER_FRAME_PAIR;

/// Bytes of UTF-8 text per token, about the mean of English text.
const BYTES_PER_TOKEN: usize = 4;

/// Estimates the number of tokens of a conversation for a model of `family`. A text counts as one token per 4 bytes. An
/// image or a video is assumed to be as large as `options` and the keys of its message part allow. If the part states
/// the start and the end of a video, its number of frames follows from `nframes` or the frame rate; otherwise it is the
/// maximum that the limits allow.
pub fn expected_tokens(conversation: &Conversation, options: &MediaOptions, family: Family) -> u64 {
    let text = |text: &str| text.len().div_ceil(BYTES_PER_TOKEN) as u64;
    let of_part = |part: &ContentPart| match part {
        ContentPart::Text(part) => text(part),
        ContentPart::Image(image) => image_tokens(image, options, family),
        ContentPart::Video(video) => video_tokens(video, options, family),
    };
    let of_message = |content: &MessageContent| match content {
        MessageContent::Text(content) => text(content),
        MessageContent::Parts(parts) => parts.iter().map(of_part).sum(),
    };
    conversation.messages.iter().map(|message| of_message(&message.content)).sum()
}

/// The area in pixels that a part requests by `resized_height` and `resized_width`.
fn requested_pixels(limits: &MediaOverrides) -> Option<u64> {
    Some(limits.resized_height?.saturating_mul(limits.resized_width?))
}

fn image_tokens(image: &ImagePart, options: &MediaOptions, family: Family) -> u64 {
    let limits = options.media_limits(image.overrides);
    let largest = limits.max_pixels.unwrap_or(options.profile.for_family(family).pixel_limits().image_max);
    requested_pixels(&limits).unwrap_or(largest) / family.token_pixels()
}

fn video_tokens(video: &VideoPart, options: &MediaOptions, family: Family) -> u64 {
    let rules = options.profile.for_family(family);
    let (limits, of_profile, token) =
        (options.media_limits(video.overrides), rules.pixel_limits(), family.token_pixels());
    let total = limits.total_pixels.unwrap_or(of_profile.video_total) / token;
    let frame = limits.max_pixels.map_or(of_profile.video_max, |most| most.min(of_profile.video_max));
    let frame = requested_pixels(&limits).unwrap_or(frame) / token;
    // Two frames share a temporal patch.
    let pairs = expected_frames(video, &limits, options).map(|frames| frames.div_ceil(2));
    let of_times = match family {
        Family::Qwen25Vl => 0,
        Family::Qwen3Vl => TEXT_TOKENS_PER_FRAME_PAIR as u64 * pairs.unwrap_or(total / frame.max(1)),
    };
    pairs.map_or(total, |pairs| (pairs * frame).min(total)) + of_times
}

/// The expected number of frames of a video; `None` if the limits and the message part set no bound.
fn expected_frames(video: &VideoPart, limits: &MediaOverrides, options: &MediaOptions) -> Option<u64> {
    if let VideoSource::Frames(frames) = &video.source {
        return Some(frames.len() as u64);
    }
    let seconds = limits.video_end.map(|end| (end - limits.video_start.unwrap_or(0.0)).max(0.0));
    let count = |frames: i64| frames.max(0) as u64;
    match (limits.nframes, options.profile.selection_rule()) {
        (Some(frames), _) => Some(count(frames)),
        (None, SelectionRule::Uniform(frames)) if limits.fps.is_none() => Some(count(frames)),
        (
            None,
            SelectionRule::Rate { fps, min_frames, max_frames }
            | SelectionRule::ProcessorRate { fps, min_frames, max_frames },
        ) => {
            let most = limits.max_frames.unwrap_or(max_frames);
            let least = limits.min_frames.unwrap_or(min_frames).min(most);
            let at_rate = |seconds: f64| (seconds * limits.fps.unwrap_or(fps)) as i64;
            Some(count(seconds.map_or(most, |seconds| at_rate(seconds).clamp(least, most))))
        }
        // Without a given frame rate, one frame per second is assumed.
        (None, _) => seconds.map(|seconds| (seconds * limits.fps.unwrap_or(1.0)) as u64),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::media::profile::MediaProfile;
    use serde_json::{Value, json};

    use super::*;

    fn tokens(content: Value, profile: MediaProfile) -> u64 {
        let messages = json!([{"role": "user", "content": content}]);
        let conversation = Conversation::from_json("test", &messages, Path::new("")).unwrap();
        expected_tokens(&conversation, &MediaOptions { profile, ..MediaOptions::default() }, Family::Qwen25Vl)
    }

    #[test]
    fn media_are_as_large_as_their_limits_allow() {
        use MediaProfile::{Qwen, VideorftTrain};
        let with = |mut part: Value, keys: Value| {
            part.as_object_mut().unwrap().extend(keys.as_object().cloned().unwrap());
            json!([part])
        };
        let image = |keys: Value| with(json!({"type": "image", "image": "a.png"}), keys);
        let video = |keys: Value| with(json!({"type": "video", "video": "a.mp4"}), keys);
        assert_eq!(tokens(json!("ten bytes."), Qwen), 3);
        assert_eq!(tokens(image(json!({})), VideorftTrain), 256);
        assert_eq!(tokens(image(json!({"max_pixels": 78400})), Qwen), 100);
        assert_eq!(tokens(image(json!({"resized_height": 56, "resized_width": 280})), Qwen), 20);
        // The video has 16 frames of 128 tokens. Two frames share a patch.
        assert_eq!(tokens(video(json!({})), VideorftTrain), 8 * 128);
        assert_eq!(tokens(video(json!({"nframes": 4})), VideorftTrain), 2 * 128);
        assert_eq!(tokens(video(json!({"nframes": 4, "max_pixels": 7840})), VideorftTrain), 2 * 10);
        // The limits are 768 frames and 24,576 tokens; the limit of tokens is reached first.
        assert_eq!(tokens(video(json!({})), Qwen), 24_576);
        // The video is sampled at 2 frames per second from second 3 to second 8.
        let section = json!({"video_start": 3.0, "video_end": 8.0, "max_pixels": 7840});
        assert_eq!(tokens(video(section), Qwen), 5 * 10);
        let listed = json!({"type": "video", "video": ["a.png", "b.png", "c.png"], "max_pixels": 7840});
        assert_eq!(tokens(json!([listed]), Qwen), 2 * 10);
    }
}
