//! M-RoPE: the three positions (time, height, width) of every token, as `get_rope_index` of Qwen2.5-VL and of Qwen3-VL
//! computes them.
//!
//! A text token has the same position on all axes: one above the largest position so far. The vision tokens of an
//! image or video start at that position too and add their time, row and column. The time of frame pair i is `i ·
//! second_per_grid_t · tokens_per_second`, multiplied in that order in f32 and truncated, as torch does it.
//!
//! Example: two text tokens, a video of 2 frame pairs with 1 × 2 vision tokens each (1 second per pair, 2 positions
//! per second), one text token:
//!
//! ```text
//! token    a  b | v00 v01 v10 v11 | c
//! time     0  1 |  2   2   4   4  | 5        frame pair 1 is at 2 + 1 · 1.0 · 2 = 4
//! height   0  1 |  2   2   2   2  | 5
//! width    0  1 |  2   3   2   3  | 5        c: one above the largest position so far, 4
//! rope_delta = 5 + 1 - 7 = -1                position of the next token: its index 7 + (-1) = 6
//! ```
//!
//! In Qwen3-VL, text with the time stands before each frame pair of a video, so each frame pair has a run of pad tokens
//! of its own. Its vision tokens all have the same time position, like those of an image.

use crate::config::{ModelConfig, Tower};
use crate::error::{Error, Result};
use crate::tokenizer::TokenId;
use crate::window::GridThw;

/// Positions of one sequence of S tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MropePositions {
    /// M-RoPE positions `[3][S]`: time, height, width.
    pub position_ids: [Vec<i64>; 3],
    /// The position of a token generated after the sequence is its index plus `rope_delta`, which equals the largest
    /// position + 1 - S.
    pub rope_delta: i64,
}

/// The grids of a sequence's images and of its videos, each in order.
#[derive(Debug, Clone, Copy, Default)]
pub struct MediaGrids<'a> {
    /// The grid of each image.
    pub image_grid_thw: &'a [GridThw],
    /// The grid of each video.
    pub video_grid_thw: &'a [GridThw],
    /// Seconds from one frame pair to the next, for each video. Empty means 1.0 for every video.
    pub second_per_grid_ts: &'a [f32],
}

/// Computes the positions of `input_ids`. `location` (a file) names the input in error messages.
///
/// # Errors
/// Pad tokens whose number does not match the grids.
pub fn rope_index(
    config: &ModelConfig,
    input_ids: &[TokenId],
    grids: MediaGrids,
    location: &str,
) -> Result<MropePositions> {
    let length = input_ids.len() as i64;
    if grids.image_grid_thw.is_empty() && grids.video_grid_thw.is_empty() {
        let plain: Vec<i64> = (0..length).collect();
        return Ok(MropePositions { position_ids: [plain.clone(), plain.clone(), plain], rope_delta: 0 });
    }
    check_counts(grids, location)?;
    let mut pads = Pads::new(config, input_ids, location);
    let runs = video_runs(config, grids);
    let (mut images, mut videos) = (grids.image_grid_thw.iter(), runs.iter());
    let mut built = PositionBuilder { position_ids: Default::default(), next: 0 };
    let mut at = 0;
    while let Some((kind, start)) = pads.next_from(at)? {
        let run = match kind {
            Kind::Image => images.next().map(|&grid| (grid, [0.0; 2])),
            Kind::Video => videos.next().copied(),
        };
        let ([t, h, w], time_scale) = run.ok_or_else(|| pads.too_many(kind))?;
        let merge = config.vision.spatial_merge_size;
        let size = [t, h / merge, w / merge];
        pads.check_run(kind, start, size)?;
        built.text(start - at);
        built.media(size, time_scale);
        at = start + size.iter().product::<usize>();
    }
    built.text(input_ids.len() - at);
    Ok(MropePositions { rope_delta: built.next - length, position_ids: built.position_ids })
}

/// The runs of pad tokens of all videos, in order: the grid of a run, and the two factors of the time of its frame
/// pairs, seconds per frame pair and positions per second.
fn video_runs(config: &ModelConfig, grids: MediaGrids) -> Vec<(GridThw, [f32; 2])> {
    let videos = grids.video_grid_thw.iter();
    match &config.vision.tower {
        Tower::Qwen25(tower) => videos
            .enumerate()
            .map(|(i, &grid)| {
                let seconds = grids.second_per_grid_ts.get(i).copied().unwrap_or(1.0);
                (grid, [seconds, tower.tokens_per_second])
            })
            .collect(),
        Tower::Qwen3(_) => videos.flat_map(|&[t, h, w]| std::iter::repeat_n(([1, h, w], [0.0; 2]), t)).collect(),
    }
}

fn check_counts(grids: MediaGrids, location: &str) -> Result<()> {
    let (given, videos) = (grids.second_per_grid_ts.len(), grids.video_grid_thw.len());
    if given != 0 && given != videos {
        let what = format!("has {given} numbers for {videos} videos");
        return Err(Error::input(format!("{location}: second_per_grid_ts"), what, "give one number for each video"));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Video,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Video => "video",
        }
    }
}

/// Finds the runs of pad tokens; each run stands for one image or video. The number of runs equals the number of pad
/// tokens that directly follow a `<|vision_start|>` token.
struct Pads<'a> {
    ids: &'a [TokenId],
    image: TokenId,
    video: TokenId,
    images_left: usize,
    videos_left: usize,
    location: &'a str,
}

impl<'a> Pads<'a> {
    fn new(config: &ModelConfig, ids: &'a [TokenId], location: &'a str) -> Self {
        let (image, video, start) = (config.tokens.image, config.tokens.video, config.tokens.vision_start);
        let count = |pad: TokenId| ids.windows(2).filter(|pair| pair[0] == start && pair[1] == pad).count();
        Self { ids, image, video, images_left: count(image), videos_left: count(video), location }
    }

    /// The kind (image or video) and the first index of the next run of pad tokens at or after index `at`; `None` if
    /// there are no more runs.
    fn next_from(&mut self, at: usize) -> Result<Option<(Kind, usize)>> {
        let find = |left: usize, pad: TokenId| {
            (left > 0).then(|| self.ids[at..].iter().position(|&id| id == pad).map(|i| at + i)).flatten()
        };
        let (image, video) = (find(self.images_left, self.image), find(self.videos_left, self.video));
        match (image, video) {
            (Some(i), v) if v.is_none_or(|v| i < v) => {
                self.images_left -= 1;
                Ok(Some((Kind::Image, i)))
            }
            (_, Some(v)) => {
                self.videos_left -= 1;
                Ok(Some((Kind::Video, v)))
            }
            _ if self.images_left + self.videos_left == 0 => Ok(None),
            _ => Err(self.fault("have fewer runs of pad tokens than <|vision_start|> tokens".to_string())),
        }
    }

    fn check_run(&self, kind: Kind, start: usize, size: [usize; 3]) -> Result<()> {
        let pad = if kind == Kind::Image { self.image } else { self.video };
        let run = self.ids[start..].iter().take_while(|&&id| id == pad).count();
        let needed: usize = size.iter().product();
        if run >= needed {
            return Ok(());
        }
        Err(self.fault(format!(
            "have {run} {} pad tokens from index {start} on, but their grid needs {needed}",
            kind.name()
        )))
    }

    fn too_many(&self, kind: Kind) -> Error {
        self.fault(format!("have more runs of {0} pad tokens than {0}_grid_thw has rows", kind.name()))
    }

    fn fault(&self, what: String) -> Error {
        Error::input(format!("{}: input_ids", self.location), what, "give the ids and grids of one conversation")
    }
}

/// The positions of the tokens processed so far.
struct PositionBuilder {
    position_ids: [Vec<i64>; 3],
    /// One above the largest position so far.
    next: i64,
}

impl PositionBuilder {
    fn text(&mut self, length: usize) {
        for axis in &mut self.position_ids {
            axis.extend(self.next..self.next + length as i64);
        }
        self.next += length as i64;
    }

    /// `time_scale` has the seconds per frame pair and the positions per second.
    fn media(&mut self, [t, rows, columns]: [usize; 3], time_scale: [f32; 2]) {
        let first = self.next;
        for frame in 0..t {
            let time = first + (frame as f32 * time_scale[0] * time_scale[1]) as i64;
            for row in 0..rows as i64 {
                for column in 0..columns as i64 {
                    for (axis, position) in self.position_ids.iter_mut().zip([time, first + row, first + column]) {
                        axis.push(position);
                    }
                    self.next = self.next.max(time + 1).max(first + row + 1).max(first + column + 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::tests::tiny_config;

    const TEXT: TokenId = 5;

    fn ids_of(config: &ModelConfig, parts: &[(bool, GridThw, usize)]) -> Vec<TokenId> {
        let mut ids = vec![TEXT; 3];
        for &(is_image, [t, h, w], text) in parts {
            let pad = if is_image { config.tokens.image } else { config.tokens.video };
            ids.push(config.tokens.vision_start);
            ids.extend(std::iter::repeat_n(pad, t * h * w / 4));
            ids.push(config.tokens.vision_end);
            ids.extend(std::iter::repeat_n(TEXT, text));
        }
        ids
    }

    #[test]
    fn text_positions_equal_indices() {
        let got = rope_index(&tiny_config(), &[1, 2, 3, 4], MediaGrids::default(), "x").unwrap();
        assert_eq!(got.position_ids, [vec![0, 1, 2, 3], vec![0, 1, 2, 3], vec![0, 1, 2, 3]]);
        assert_eq!(got.rope_delta, 0);
    }

    #[test]
    fn times_are_cut_after_an_f32_product() {
        let config = tiny_config();
        let grid = [4, 2, 2];
        let ids = ids_of(&config, &[(false, grid, 1)]);
        for (seconds, times) in
            [(0.75f32, [0, 1, 3, 4]), (0.4500781, [0, 0, 1, 2]), (1.0, [0, 2, 4, 6]), (2.753_477, [0, 5, 11, 16])]
        {
            let grids = MediaGrids { video_grid_thw: &[grid], second_per_grid_ts: &[seconds], ..MediaGrids::default() };
            let got = rope_index(&config, &ids, grids, "x").unwrap();
            let first = got.position_ids[0][4];
            assert_eq!(got.position_ids[0][4..8].iter().map(|x| x - first).collect::<Vec<_>>(), times);
        }
    }

    proptest! {
        #[test]
        fn positions_equal_the_definition(
            parts in prop::collection::vec((any::<bool>(), 1usize..4, 1usize..5, 1usize..5, 0usize..4, 0.1f32..5.0), 1..5),
        ) {
            let config = tiny_config();
            let parts: Vec<(bool, GridThw, usize, f32)> = parts.iter()
                .map(|&(image, t, h, w, text, s)| (image, [if image { 1 } else { t }, 2 * h, 2 * w], text, s)).collect();
            let plain: Vec<_> = parts.iter().map(|&(i, g, n, _)| (i, g, n)).collect();
            let ids = ids_of(&config, &plain);
            let images: Vec<GridThw> = parts.iter().filter(|p| p.0).map(|p| p.1).collect();
            let videos: Vec<GridThw> = parts.iter().filter(|p| !p.0).map(|p| p.1).collect();
            let seconds: Vec<f32> = parts.iter().filter(|p| !p.0).map(|p| p.3).collect();
            let grids = MediaGrids { image_grid_thw: &images, video_grid_thw: &videos, second_per_grid_ts: &seconds };
            let got = rope_index(&config, &ids, grids, "x").unwrap();
            let mut most = -1;
            for (i, &id) in ids.iter().enumerate() {
                let p = [got.position_ids[0][i], got.position_ids[1][i], got.position_ids[2][i]];
                let is_media = id == config.tokens.image || id == config.tokens.video;
                if !is_media {
                    // A text token's position, on all axes, is one above the largest position of all earlier tokens.
                    prop_assert_eq!(p, [most + 1; 3]);
                }
                most = most.max(p[0]).max(p[1]).max(p[2]);
            }
            prop_assert_eq!(got.rope_delta, most + 1 - ids.len() as i64);
        }

        #[test]
        fn rejects_missing_and_short_grids(h in 1usize..5, w in 1usize..5) {
            let config = tiny_config();
            let grid = [1, 2 * h, 2 * w];
            let ids = ids_of(&config, &[(true, grid, 2), (true, grid, 2)]);
            let one = rope_index(&config, &ids, MediaGrids { image_grid_thw: &[grid], ..MediaGrids::default() }, "f").unwrap_err().to_string();
            prop_assert!(one.starts_with("f: input_ids: have more runs of image pad tokens"), "{}", one);
            let larger = [1, 2 * h + 2, 2 * w];
            let grids = [larger, larger];
            let short = rope_index(&config, &ids, MediaGrids { image_grid_thw: &grids, ..MediaGrids::default() }, "f").unwrap_err().to_string();
            prop_assert!(short.contains("their grid needs"), "{}", short);
        }
    }
}
