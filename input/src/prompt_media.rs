//! Lists the images and videos of a model input in the order of the prompt. [`ModelInput`] holds images and videos in
//! separate lists.

use crate::media::frames::FrameBuf;

use crate::config::ModelConfig;
use crate::model_input::ModelInput;
use crate::window::GridThw;

/// An image or a video of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptMedium<'a> {
    /// `image` or `video`.
    pub kind: &'static str,
    /// The resized frames; one frame for an image.
    pub frames: &'a FrameBuf,
    /// The number of patches along time, height and width.
    pub grid: GridThw,
    /// The number of tokens of the image or video, at least 1.
    pub vision_tokens: usize,
    /// The time of each frame in seconds; empty for an image.
    pub times: &'a [f64],
}

/// The images and videos of `input` in the order of their pad tokens.
pub fn media_in_prompt_order<'a>(input: &'a ModelInput, config: &ModelConfig) -> Vec<PromptMedium<'a>> {
    let tokens = &config.tokens;
    let frames = &input.frames;
    let vision_tokens =
        |grid: GridThw| (grid.iter().product::<usize>() / config.vision.patches_per_vision_token()).max(1);
    let medium =
        |kind, frames, grid, times| PromptMedium { kind, frames, grid, vision_tokens: vision_tokens(grid), times };
    let times = frames.video_times.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
    let mut images = frames.images.iter().zip(&input.image_grid_thw);
    let mut videos = frames.videos.iter().zip(&input.video_grid_thw).zip(times);
    let mut media = Vec::new();
    // The number of pad tokens of the current image or video that are still to come. In Qwen3-VL other tokens stand
    // between those of a video.
    let mut left = 0;
    for &id in &input.input_ids {
        let is_pad = id == tokens.image || id == tokens.video;
        if is_pad && left > 0 {
            left -= 1;
            continue;
        }
        let next = if id == tokens.image {
            images.next().map(|(frames, &grid)| medium("image", frames, grid, &[][..]))
        } else if id == tokens.video {
            videos.next().map(|((frames, &grid), times)| medium("video", frames, grid, times))
        } else {
            None
        };
        if let Some(medium) = next {
            left = medium.vision_tokens - 1;
            media.push(medium);
        }
    }
    media
}
