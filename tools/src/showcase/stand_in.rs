//! A stand-in for the three large models that curation asks. It answers questions about the demo's clips by thresholds
//! and rules.
//!
//! ```text
//! describe   frames -> shapes with color and place, as the JSON of curation's descriptions
//! reason     description and question, no frames -> chain of thought and answer
//! revise     frames and chain -> the chain
//! ```
//! The stand-in sees only the frames in its requests, as a model does, and does not know the answers. Its answers
//! about grey shapes are deliberately flawed in six ways ([`ChainFlaw`]), so that each filter of curation has
//! something to reject.

use std::fmt;

use reel_input::media::image::RgbImage;
use serde_json::{Value, json};

use crate::showcase::clips::{
    COLORS, ClipTask, DARKEST_GREY, DIRECTIONS, GREY_STEP, colors_answer, colors_thought, count_thought, motion_thought,
};

/// A pixel belongs to a shape if one of its channels is above this value. The background's channels are at most 32.
const LIT: u8 = 90;
/// Distance in pixels between two sampled points of an image. Shapes are at least 20 pixels apart.
const STRIDE: usize = 4;

/// A shape in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SeenShape {
    /// A name of [`COLORS`], or `grey-N` with N from 0 to 255.
    color: String,
    /// The mean position of the shape's pixels, as [x, y] from the top left corner.
    center: [usize; 2],
}

impl fmt::Display for SeenShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y] = self.center;
        write!(f, "{} shape at {x}, {y}", self.color)
    }
}

impl SeenShape {
    /// Parses the text that [`fmt::Display`] writes.
    fn parse(text: &str) -> Option<Self> {
        let (color, place) = text.split_once(" shape at ")?;
        let (x, y) = place.split_once(", ")?;
        Some(Self { color: color.into(), center: [x.parse().ok()?, y.parse().ok()?] })
    }

    /// The flaw of chains about this shape; `None` if the shape is not grey.
    fn flaw(&self) -> Option<ChainFlaw> {
        let level: usize = self.color.strip_prefix("grey-")?.parse().ok()?;
        let step = (level + GREY_STEP / 2).saturating_sub(DARKEST_GREY) / GREY_STEP;
        Some(ChainFlaw::ALL[step % ChainFlaw::ALL.len()])
    }
}

/// A way in which a chain of thought or its answer is flawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFlaw {
    /// The chain's answer is wrong.
    WrongAnswer,
    /// The revised chain has a different answer than the chain before the revision.
    ChangedAnswer,
    /// The chain repeats itself.
    Loop,
    /// The chain names the answer first.
    EarlyAnswer,
    /// The chain mentions the description.
    MentionsDescription,
    /// The chain is too short to explain the answer.
    TooShort,
}

impl ChainFlaw {
    /// All flaws, in the order of the levels of grey.
    pub const ALL: [Self; 6] = [
        Self::WrongAnswer,
        Self::ChangedAnswer,
        Self::Loop,
        Self::EarlyAnswer,
        Self::MentionsDescription,
        Self::TooShort,
    ];

    /// Makes a flawed chain and answer from the correct chain and answer.
    fn apply(self, thought: &str, answer: &str) -> (String, String) {
        let thought = match self {
            Self::WrongAnswer | Self::ChangedAnswer => thought.to_string(),
            Self::Loop => "The shape moves a little further. ".repeat(6),
            Self::EarlyAnswer => format!("The answer is {answer}. {thought}"),
            Self::MentionsDescription => format!("The description says where the shape is. {thought}"),
            Self::TooShort => "It moves.".to_string(),
        };
        let answer = if self == Self::WrongAnswer { "nowhere" } else { answer };
        (thought, answer.to_string())
    }
}

/// A frame in a request, with its time in seconds.
pub struct SeenFrame {
    /// The time.
    pub seconds: f64,
    /// The pixels.
    pub image: RgbImage,
}

/// Describes frames, as the stage `caption` of curation asks.
pub fn describe_frames(frames: &[SeenFrame]) -> String {
    let frame = |frame: &SeenFrame| {
        let shapes: Vec<String> = shapes_in(&frame.image).iter().map(SeenShape::to_string).collect();
        let elements = json!({"objects": shapes, "actions": [], "scene": "a dark background", "spatial_relations": [],
            "potential_interactions": []});
        json!({"timestamp": frame.seconds, "caption": format!("Shapes in view: {}.", shapes.len()),
            "key_elements": elements})
    };
    let frames: Vec<Value> = frames.iter().map(frame).collect();
    json!({"video_caption": "Plain shapes on a dark background.", "frames": frames}).to_string()
}

/// Answers a question from the description in the text of a request, as the stage `reason` of curation asks. `None` if
/// the text has no description or no question of the demo.
pub fn answer_question(request: &str) -> Option<String> {
    let description = request.lines().find(|line| line.starts_with("{\"video_caption\""))?;
    let description: Value = serde_json::from_str(description).ok()?;
    let frames: Vec<Vec<SeenShape>> = description["frames"].as_array()?.iter().map(shapes_of).collect();
    let (first, last) = (frames.first()?, frames.last()?);
    let (_, question) = request.split_once("Question: ")?;
    let task = ClipTask::ALL.into_iter().find(|task| question.starts_with(task.question()))?;
    let (thought, answer) = match task {
        ClipTask::Motion => {
            let which = direction(first.first()?.center, last.first()?.center);
            (motion_thought(which), DIRECTIONS[which].0.to_string())
        }
        ClipTask::Colors => {
            let (a, b) = (&first.first()?.color, &last.first()?.color);
            (colors_thought(a, b), colors_answer(a, b))
        }
        ClipTask::Count => (count_thought(first.len().clamp(1, 4)), first.len().to_string()),
    };
    let (thought, answer) = match first.first()?.flaw() {
        Some(flaw) => flaw.apply(&thought, &answer),
        None => (thought, answer),
    };
    Some(chain(&thought, &answer))
}

/// Revises the chain in the text of a request, as the stage `revise` of curation asks. The chain is returned unchanged,
/// except for the flaw [`ChainFlaw::ChangedAnswer`]. `None` if the text has no chain.
pub fn revise_chain(request: &str, frames: &[SeenFrame]) -> Option<String> {
    let between = |open: &str, close: &str| Some(request.split_once(open)?.1.split_once(close)?.0);
    let (thought, answer) = (between("<think>", "</think>")?, between("<answer>", "</answer>")?);
    let first = shapes_in(&frames.first()?.image).into_iter().next()?;
    match first.flaw() {
        Some(ChainFlaw::ChangedAnswer) => Some(chain(thought, "nowhere")),
        _ => Some(chain(thought, answer)),
    }
}

fn chain(thought: &str, answer: &str) -> String {
    format!("<think>{thought}</think><answer>{answer}</answer>")
}

/// The shapes that the description of a frame names.
fn shapes_of(frame: &Value) -> Vec<SeenShape> {
    let objects = frame["key_elements"]["objects"].as_array().into_iter().flatten();
    objects.filter_map(|object| SeenShape::parse(object.as_str()?)).collect()
}

/// The index in [`DIRECTIONS`] of the direction from one position to another.
fn direction(from: [usize; 2], to: [usize; 2]) -> usize {
    let [dx, dy] = [0, 1].map(|i| to[i] as i64 - from[i] as i64);
    match dx.abs() > dy.abs() {
        true => usize::from(dx > 0),
        false => 2 + usize::from(dy > 0),
    }
}

/// Finds the shapes in an image. A shape is a group of adjacent lit points.
fn shapes_in(image: &RgbImage) -> Vec<SeenShape> {
    let (height, width) = (image.height / STRIDE, image.width / STRIDE);
    let pixel = |x: usize, y: usize| -> [u8; 3] {
        let at = 3 * (y * STRIDE * image.width + x * STRIDE);
        [0, 1, 2].map(|c| image.data[at + c])
    };
    let mut is_open: Vec<bool> =
        (0..height * width).map(|i| pixel(i % width, i / width).iter().any(|&c| c > LIT)).collect();
    let mut shapes = Vec::new();
    while let Some(start) = is_open.iter().position(|&open| open) {
        let mut points = vec![start];
        is_open[start] = false;
        let mut next = 0;
        while let Some(&point) = points.get(next) {
            next += 1;
            let (x, y) = (point % width, point / width);
            let mut visit = |x: usize, y: usize| {
                if std::mem::take(&mut is_open[y * width + x]) {
                    points.push(y * width + x);
                }
            };
            if x > 0 {
                visit(x - 1, y);
            }
            if y > 0 {
                visit(x, y - 1);
            }
            if x + 1 < width {
                visit(x + 1, y);
            }
            if y + 1 < height {
                visit(x, y + 1);
            }
        }
        let mean = |of: &dyn Fn(usize) -> usize| points.iter().map(|&point| of(point)).sum::<usize>() / points.len();
        let [x, y] = [mean(&|point| point % width), mean(&|point| point / width)];
        shapes.push(SeenShape { color: color_name(pixel(x, y)), center: [x * STRIDE, y * STRIDE] });
    }
    shapes
}

/// The name of the nearest color, or `grey-N` with the level N if the channels are almost equal.
fn color_name(pixel: [u8; 3]) -> String {
    let [low, high] = [pixel.iter().min(), pixel.iter().max()].map(|c| usize::from(*c.unwrap_or(&0)));
    if high - low < GREY_STEP {
        return format!("grey-{}", pixel.iter().map(|&c| usize::from(c)).sum::<usize>() / 3);
    }
    let distance = |color: &[f32; 3]| (0..3).map(|i| (color[i] - f32::from(pixel[i])).abs()).sum::<f32>();
    COLORS.iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1))).map_or("", |color| color.0).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::showcase::clips::{CLIP_FRAMES, CLIP_SIDE, Clip, ClipSet, GREY_CLIP_COUNT, make_clips, make_grey_clip};

    /// The first and the last frame of a clip, as curation shows them.
    fn seen(clip: &Clip) -> Vec<SeenFrame> {
        let frame = |t: usize| {
            let data = clip.frames[t * CLIP_SIDE * CLIP_SIDE * 3..][..CLIP_SIDE * CLIP_SIDE * 3].to_vec();
            SeenFrame { seconds: t as f64 / 4.0, image: RgbImage { data, height: CLIP_SIDE, width: CLIP_SIDE } }
        };
        [0, CLIP_FRAMES - 1].map(frame).into()
    }

    fn reason_about(clip: &Clip) -> String {
        let description = describe_frames(&seen(clip));
        answer_question(&format!("Notes:\n\n{description}\n\nQuestion: {}\n\nWrite", clip.task.question()))
            .expect("a chain")
    }

    #[test]
    fn chains_about_colored_shapes_are_those_of_the_clips() {
        for clip in make_clips(ClipSet::Sft, 48, 3) {
            assert_eq!(reason_about(&clip), clip.completion(), "{}", clip.file);
            let request = format!("Somebody:\n{}\nRevise between <think> and </think>", clip.completion());
            assert_eq!(revise_chain(&request, &seen(&clip)), Some(clip.completion()));
        }
        assert_eq!(answer_question("Question: Why?"), None);
        assert_eq!(revise_chain("no chain", &[]), None);
    }

    #[test]
    fn chains_about_grey_shapes_have_each_flaw_equally_often() {
        let clips: Vec<Clip> = (0..GREY_CLIP_COUNT).map(|i| make_grey_clip(i, 1)).collect();
        let flaws: Vec<ChainFlaw> =
            clips.iter().filter_map(|clip| shapes_in(&seen(clip)[0].image).first().and_then(SeenShape::flaw)).collect();
        assert_eq!(flaws, ChainFlaw::ALL.repeat(GREY_CLIP_COUNT / ChainFlaw::ALL.len()));
        for (clip, flaw) in clips.iter().zip(flaws) {
            let request = reason_about(clip);
            let revised = revise_chain(&request, &seen(clip)).expect("a chain");
            assert_eq!(request != revised, flaw == ChainFlaw::ChangedAnswer);
            assert_ne!(revised, clip.completion(), "{flaw:?}");
        }
    }
}
