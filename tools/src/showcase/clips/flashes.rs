//! Clips that are dark except for four flashes, each of a random color. The color of a flash is only in the frames
//! around its second; the first and the last frame of all clips are equal.

use super::draw::{Shape, ShapeKind, render_frames};
use super::{CLIP_SIDE, COLORS, ClipRandom};

/// Frames per second of a clip with flashes.
pub const FLASH_CLIP_FPS: u32 = 2;
/// Number of frames of a clip with flashes.
pub const FLASH_CLIP_FRAMES: usize = 24;
/// The seconds that questions name. A flash lasts from half a second before its second to one and a half after it.
const FLASH_SECONDS: [u32; 4] = [3, 5, 7, 9];

/// What a clip shows at one of the four seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flash {
    /// The second that a question names.
    pub second: u32,
    /// The name of the color.
    pub color: &'static str,
    /// Left, top, right and bottom of the area that has the color, in pixels.
    pub area: [usize; 4],
    shape: Shape,
}

/// A clip with four flashes.
#[derive(Clone, Debug, PartialEq)]
pub struct FlashClip {
    /// The file name, without a folder.
    pub file: String,
    /// The flashes in their order.
    pub flashes: [Flash; 4],
    /// The index of the flash that the question about the clip names.
    pub asked: usize,
}

impl FlashClip {
    /// Chooses the flashes of clip `i` of the set `set`, which is a part of the file name. With `in_quarters` a flash
    /// fills a quarter of the frame, otherwise the whole frame.
    pub fn new(set: &str, i: usize, seed: u64, in_quarters: bool) -> Self {
        let mut random = ClipRandom::of_clip(&format!("flashes-{set}"), i, seed);
        let flashes = FLASH_SECONDS.map(|second| {
            let (color, rgb) = COLORS[random.below(COLORS.len())];
            let side = if in_quarters { CLIP_SIDE / 2 } else { CLIP_SIDE };
            let [x, y] = [0; 2].map(|_| side * random.below(CLIP_SIDE / side));
            let center = [x, y].map(|corner| corner as f32 + side as f32 / 2.0);
            // A square has sides of 1.8 radii.
            let shape = Shape { kind: ShapeKind::Square, center, radius: side as f32 / 1.8, color: rgb };
            let area = [x, y, x + side, y + side];
            Flash { second, color, area, shape }
        });
        Self { file: format!("{set}-{i:03}.mp4"), flashes, asked: i % FLASH_SECONDS.len() }
    }

    /// The flash that the question about the clip names.
    pub fn asked_flash(&self) -> &Flash {
        &self.flashes[self.asked]
    }

    /// Draws the frames, u8 RGB `[FLASH_CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE, 3]`.
    pub fn frames(&self) -> Vec<u8> {
        let scene = |frame: usize| {
            let seconds = frame as f32 / FLASH_CLIP_FPS as f32;
            let is_lit = |flash: &&Flash| (-0.5..1.5).contains(&(seconds - flash.second as f32));
            self.flashes.iter().filter(is_lit).map(|flash| flash.shape).collect()
        };
        render_frames(&(0..FLASH_CLIP_FRAMES).map(scene).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames of a prompt, the first and the last one, say nothing about the answer; the frames from a flash's
    /// second on show its color, and only in its area.
    #[test]
    fn answers_are_in_the_frames_of_their_second_only() {
        for (i, in_quarters) in (0..24).map(|i| (i, i % 2 == 1)) {
            let clip = FlashClip::new("held-out", i, 3, in_quarters);
            let frames = clip.frames();
            let frames: Vec<&[u8]> = frames.chunks_exact(CLIP_SIDE * CLIP_SIDE * 3).collect();
            assert_eq!(frames.len(), FLASH_CLIP_FRAMES);
            let dark = |frame: &[u8]| frame.chunks_exact(3).all(|pixel| pixel == [24, 26, 32]);
            assert!(dark(frames[0]) && dark(frames[FLASH_CLIP_FRAMES - 1]));
            for flash in &clip.flashes {
                let at = (flash.second * FLASH_CLIP_FPS) as usize;
                assert!(frames[at] == frames[at + 1], "{clip:?}");
                let color = COLORS.iter().find(|color| color.0 == flash.color).unwrap().1.map(|c| c as u8);
                let lit: Vec<usize> =
                    (0..CLIP_SIDE * CLIP_SIDE).filter(|p| frames[at][3 * p..][..3] == color).collect();
                let [left, top, right, bottom] = flash.area;
                let inside =
                    |p: &usize| (left..right).contains(&(p % CLIP_SIDE)) && (top..bottom).contains(&(p / CLIP_SIDE));
                let share = if in_quarters { 4 } else { 1 };
                assert!(lit.len() == CLIP_SIDE * CLIP_SIDE / share && lit.iter().all(inside), "{flash:?}");
            }
            assert_eq!(clip, FlashClip::new("held-out", i, 3, in_quarters));
        }
    }
}
