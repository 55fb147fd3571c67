//! Synthetic video clips: a shape that moves, a shape that changes color, shapes to count.
//!
//! [`make_clips`] draws the clips of a set from a seed, each with a question, a chain of thought and the correct
//! answer; [`make_grey_clip`] draws clips that the stand-in for large models answers incorrectly.

mod draw;
pub mod flashes;

use reel_support::philox;

use draw::{Shape, ShapeKind, render_frames};

/// Height and width of a clip in pixels.
pub const CLIP_SIDE: usize = 224;
/// Number of frames of a clip.
pub const CLIP_FRAMES: usize = 8;
/// Frames per second of a clip.
pub const CLIP_FPS: u32 = 4;

const BACKGROUND: [f32; 3] = [24.0, 26.0, 32.0];
/// The colors of shapes, with their names.
pub const COLORS: [(&str, [f32; 3]); 4] = [
    ("red", [222.0, 48.0, 44.0]),
    ("green", [46.0, 180.0, 78.0]),
    ("blue", [54.0, 98.0, 232.0]),
    ("yellow", [236.0, 200.0, 46.0]),
];
const NUMBERS: [&str; 4] = ["one", "two", "three", "four"];

/// The directions of motion: the answer, and the sides where the shape starts and ends.
pub const DIRECTIONS: [(&str, &str, &str); 4] =
    [("left", "right", "left"), ("right", "left", "right"), ("up", "bottom", "top"), ("down", "top", "bottom")];

/// The beginning of the file names of clips with a grey shape.
const GREY: &str = "grey";
/// Number of clips with a grey shape. Clip `i` has the grey level [`DARKEST_GREY`] + `i` · [`GREY_STEP`].
pub const GREY_CLIP_COUNT: usize = 12;
/// The darkest grey of a shape, 0 to 255.
pub const DARKEST_GREY: usize = 110;
/// The distance between two levels of grey. It is far larger than the error of a grey level after two encodings of a
/// frame.
pub const GREY_STEP: usize = 10;

/// The kind of question that is asked about a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClipTask {
    /// The direction in which a shape moves: left, right, up or down.
    Motion,
    /// The two colors that a shape has one after the other.
    Colors,
    /// The number of shapes: one to four.
    Count,
}

impl ClipTask {
    /// All tasks, in the order of the result tables.
    pub const ALL: [Self; 3] = [Self::Motion, Self::Colors, Self::Count];

    /// The task's name in file names and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Motion => "motion",
            Self::Colors => "colors",
            Self::Count => "count",
        }
    }

    /// The number of possible answers. A random guess is correct with a probability of 1 divided by this number.
    pub fn answer_count(self) -> usize {
        match self {
            Self::Motion | Self::Count => 4,
            Self::Colors => 12,
        }
    }

    /// The `problem_type` by which the accuracy reward scores an answer.
    pub fn problem_type(self) -> &'static str {
        match self {
            Self::Motion | Self::Colors => "multiple choice",
            Self::Count => "numerical",
        }
    }

    /// The question of the task.
    pub fn question(self) -> &'static str {
        match self {
            Self::Motion => "Which way does the shape move?",
            Self::Colors => "Which colors does the shape show, in order?",
            Self::Count => "How many shapes are there?",
        }
    }
}

/// A clip with its chain of thought and answer.
#[derive(Clone, Debug)]
pub struct Clip {
    /// The task that the clip belongs to.
    pub task: ClipTask,
    /// File name of the clip, without a folder.
    pub file: String,
    /// Frames, u8 RGB `[CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE, 3]`.
    pub frames: Vec<u8>,
    /// The chain of thought that leads to the answer.
    pub think: String,
    /// The correct answer.
    pub answer: String,
}

impl Clip {
    /// The completion that SFT trains on: chain of thought and answer, each in its tags.
    pub fn completion(&self) -> String {
        format!("<think>{}</think>{}", self.think, self.solution())
    }

    /// The name under which curation's page counts the clip (`data_source`).
    pub fn data_source(&self) -> &'static str {
        if self.file.starts_with(GREY) { "grey shapes" } else { self.task.name() }
    }

    /// The correct answer in `<answer>` tags, as the rewards read it.
    pub fn solution(&self) -> String {
        format!("<answer>{}</answer>", self.answer)
    }
}

/// The tasks of four consecutive clips. Motion is the hardest task and occurs twice as often as the others.
const TURNS: [ClipTask; 4] = [ClipTask::Motion, ClipTask::Colors, ClipTask::Motion, ClipTask::Count];

/// A data set of clips, used for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipSet {
    /// For SFT: rows with whole completions.
    Sft,
    /// For GRPO: rows with the correct answers only.
    Rl,
    /// For evaluation only.
    HeldOut,
}

impl ClipSet {
    /// All sets.
    pub const ALL: [Self; 3] = [Self::Sft, Self::Rl, Self::HeldOut];

    /// The set's name in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Rl => "rl",
            Self::HeldOut => "held-out",
        }
    }

    /// The number of clips in the set, unless the caller of [`make_clips`] chooses another number.
    pub fn default_clip_count(self) -> usize {
        match self {
            Self::Sft => 192,
            Self::Rl => 576,
            Self::HeldOut => 480,
        }
    }

    /// If `Some(n)`, then in n − 1 of every n motion clips the color of the shape tells its direction.
    ///
    /// A model trained with this hint learns to answer from a single frame. The clips for GRPO have no hint, so that
    /// only the order of frames tells the answer.
    fn color_hint(self) -> Option<usize> {
        (self != Self::Rl).then_some(5)
    }
}

/// Draws the first `count` clips of a set. Tasks and answers alternate in a fixed pattern, so that the answers of a
/// task are equally frequent. Everything else is random. A larger `count` adds clips and does not change the others.
pub fn make_clips(set: ClipSet, count: usize, seed: u64) -> Vec<Clip> {
    (0..count).map(|i| make_clip(set, i, seed)).collect()
}

/// Draws clip `i` of a set, counted from 0. It is the clip at index `i` of the result of [`make_clips`].
pub fn make_clip(set: ClipSet, i: usize, seed: u64) -> Clip {
    let split = set.name();
    let mut random = ClipRandom::of_clip(split, i, seed);
    let task = TURNS[i % TURNS.len()];
    let earlier = (0..i).filter(|j| TURNS[j % TURNS.len()] == task).count();
    let which = earlier % task.answer_count();
    let (scenes, think, answer) = match task {
        ClipTask::Motion => {
            let hinted = set.color_hint().map(|n| !(earlier / task.answer_count()).is_multiple_of(n));
            let color = hint_color(which, hinted, &mut random);
            motion(which, COLORS[color].1, &mut random)
        }
        ClipTask::Colors => colors(which, &mut random),
        ClipTask::Count => objects(which, &mut random),
    };
    let frames = render_frames(&scenes);
    Clip { task, file: format!("{split}-{i:03}-{}.mp4", task.name()), frames, think, answer }
}

/// Draws clip `i` of the [`GREY_CLIP_COUNT`] clips in which a grey shape moves. Each clip has its own level of grey.
pub fn make_grey_clip(i: usize, seed: u64) -> Clip {
    let mut random = ClipRandom::of_clip(GREY, i, seed);
    let level = (DARKEST_GREY + i * GREY_STEP) as f32;
    let (scenes, think, answer) = motion(i % DIRECTIONS.len(), [level; 3], &mut random);
    let (task, file) = (ClipTask::Motion, format!("{GREY}-{i:03}-motion.mp4"));
    Clip { task, file, frames: render_frames(&scenes), think, answer }
}

/// The frames of clip `i` of a set in random order, u8 RGB `[CLIP_FRAMES, CLIP_SIDE, CLIP_SIDE, 3]`.
pub fn shuffle_frames(frames: &[u8], seed: u64, i: u64) -> Vec<u8> {
    let mut random = ClipRandom::of_clip("shuffled", i as usize, seed);
    let mut order: Vec<usize> = (0..CLIP_FRAMES).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    let bytes = CLIP_SIDE * CLIP_SIDE * 3;
    order.iter().map(|&frame| &frames[frame * bytes..(frame + 1) * bytes]).collect::<Vec<_>>().concat()
}

/// Counter-based random numbers for one clip. They depend only on the seed and the clip's index, not on earlier
/// clips.
struct ClipRandom {
    seed: u64,
    stream: u64,
    index: u64,
}

impl ClipRandom {
    /// The random numbers of clip `i` of a set. Each clip has its own random stream.
    fn of_clip(set: &str, i: usize, seed: u64) -> Self {
        let stream = set.bytes().fold(0, |h: u64, b| h.wrapping_mul(257).wrapping_add(u64::from(b)));
        Self { seed, stream: stream.wrapping_mul(1 << 20).wrapping_add(i as u64), index: 0 }
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        self.index += 1;
        low + (high - low) * philox::uniform_f32(self.seed, self.stream, self.index)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.between(0.0, n as f32) as usize).min(n - 1)
    }

    fn kind(&mut self) -> ShapeKind {
        [ShapeKind::Square, ShapeKind::Circle, ShapeKind::Triangle][self.below(3)]
    }
}

/// The shapes in each frame of a clip, the chain of thought, and the answer.
type Scene = (Vec<Vec<Shape>>, String, String);

/// The index of the color of a shape that moves in direction `which`. If `hinted` is `Some(true)`, the color tells
/// the direction; if `Some(false)`, the color tells a wrong direction; if `None`, the color is random.
fn hint_color(which: usize, hinted: Option<bool>, random: &mut ClipRandom) -> usize {
    match hinted {
        Some(true) => which,
        Some(false) => (which + 1 + random.below(3)) % 4,
        None => random.below(4),
    }
}

/// The scene of a shape of one color that moves in direction number `which` of [`DIRECTIONS`].
fn motion(which: usize, color: [f32; 3], random: &mut ClipRandom) -> Scene {
    let answer = DIRECTIONS[which].0;
    let (kind, across) = (random.kind(), random.between(88.0, 136.0));
    let (near, far) = (random.between(40.0, 56.0), random.between(168.0, 184.0));
    let scenes = (0..CLIP_FRAMES).map(|t| {
        let step = t as f32 / (CLIP_FRAMES - 1) as f32;
        let along = if matches!(answer, "right" | "down") { step } else { 1.0 - step };
        let along = near + (far - near) * along;
        let center = if matches!(answer, "left" | "right") { [along, across] } else { [across, along] };
        vec![Shape { kind, center, radius: 36.0, color }]
    });
    (scenes.collect(), motion_thought(which), answer.to_string())
}

/// The chain of thought about a shape that moves in direction number `which` of [`DIRECTIONS`].
pub(crate) fn motion_thought(which: usize) -> String {
    let (_, from, to) = DIRECTIONS[which];
    format!("It starts at the {from} and ends at the {to}.")
}

fn colors(which: usize, random: &mut ClipRandom) -> Scene {
    let first = which / 3;
    let (a, b) = (COLORS[first], COLORS[(first + 1 + which % 3) % 4]);
    let (kind, center) = (random.kind(), [random.between(80.0, 144.0), random.between(80.0, 144.0)]);
    let scenes = (0..CLIP_FRAMES).map(|t| {
        let color = if t < CLIP_FRAMES / 2 { a.1 } else { b.1 };
        vec![Shape { kind, center, radius: 56.0, color }]
    });
    (scenes.collect(), colors_thought(a.0, b.0), colors_answer(a.0, b.0))
}

/// The chain of thought about a shape that has one color and then another.
pub(crate) fn colors_thought(first: &str, then: &str) -> String {
    format!("It is {first} first and {then} then.")
}

/// The answer about a shape that has one color and then another.
pub(crate) fn colors_answer(first: &str, then: &str) -> String {
    format!("{first}, {then}")
}

fn objects(which: usize, random: &mut ClipRandom) -> Scene {
    let mut centers = vec![[56.0, 56.0], [168.0, 56.0], [56.0, 168.0], [168.0, 168.0]];
    let (kind, color) = (random.kind(), COLORS[random.below(4)].1);
    let shapes: Vec<Shape> = (0..=which)
        .map(|_| {
            let [x, y] = centers.swap_remove(random.below(centers.len()));
            let center = [x + random.between(-12.0, 12.0), y + random.between(-12.0, 12.0)];
            Shape { kind, center, radius: 32.0, color }
        })
        .collect();
    (vec![shapes; CLIP_FRAMES], count_thought(which + 1), (which + 1).to_string())
}

/// The chain of thought about `count` shapes, 1 to 4.
pub(crate) fn count_thought(count: usize) -> String {
    let plural = if count == 1 { "shape" } else { "shapes" };
    format!("I count {} {plural}.", NUMBERS[count - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    /// Mean position of the pixels that are not background, as [x, y].
    fn centroid(frame: &[u8]) -> [f64; 2] {
        let (mut sum, mut n) = ([0.0; 2], 0.0);
        for (i, p) in frame.chunks_exact(3).enumerate().filter(|(_, p)| p.iter().any(|&c| c > 90)) {
            assert_eq!(p.len(), 3);
            sum = [sum[0] + (i % CLIP_SIDE) as f64, sum[1] + (i / CLIP_SIDE) as f64];
            n += 1.0;
        }
        sum.map(|s| s / n)
    }

    #[test]
    fn answers_agree_with_the_pixels() {
        for clip in ClipSet::ALL.iter().flat_map(|set| make_clips(*set, 48, 7)) {
            let frames: Vec<&[u8]> = clip.frames.chunks_exact(CLIP_SIDE * CLIP_SIDE * 3).collect();
            assert_eq!(frames.len(), CLIP_FRAMES);
            let (first, last) = (centroid(frames[0]), centroid(frames[CLIP_FRAMES - 1]));
            let (dx, dy) = (last[0] - first[0], last[1] - first[1]);
            let truth = match clip.task {
                ClipTask::Motion if dx < -50.0 => "left".to_string(),
                ClipTask::Motion if dx > 50.0 => "right".to_string(),
                ClipTask::Motion if dy < -50.0 => "up".to_string(),
                ClipTask::Motion => "down".to_string(),
                ClipTask::Colors => [0, CLIP_FRAMES - 1].map(|t| color_at(frames[t], centroid(frames[t]))).join(", "),
                ClipTask::Count => {
                    let lit = |p: usize| frames[0][3 * p..][..3].iter().any(|&c| c > 90);
                    let half = |x: usize| usize::from(x >= CLIP_SIDE / 2);
                    let corners: HashSet<[usize; 2]> = (0..CLIP_SIDE * CLIP_SIDE)
                        .filter(|p| lit(*p))
                        .map(|p| [half(p % CLIP_SIDE), half(p / CLIP_SIDE)])
                        .collect();
                    corners.len().to_string()
                }
            };
            assert_eq!(clip.answer, truth, "{}", clip.file);
        }
    }

    fn color_at(frame: &[u8], [x, y]: [f64; 2]) -> &'static str {
        let at = (y as usize * CLIP_SIDE + x as usize) * 3;
        let off = |c: &[f32; 3]| (0..3).map(|i| (c[i] - f32::from(frame[at + i])).abs()).sum::<f32>();
        COLORS.iter().min_by(|a, b| off(&a.1).total_cmp(&off(&b.1))).map_or("", |c| c.0)
    }

    #[test]
    fn sets_are_balanced_disjoint_and_reproducible() {
        let sets = ClipSet::ALL.map(|set| make_clips(set, set.default_clip_count(), 0));
        for clips in &sets {
            let mut counts = BTreeMap::new();
            for c in clips {
                *counts.entry((c.task, c.answer.clone())).or_insert(0) += 1;
            }
            for ((task, _), n) in counts {
                let of = TURNS.iter().filter(|t| **t == task).count() * clips.len() / TURNS.len();
                assert_eq!(n, of / task.answer_count(), "{task:?}");
            }
        }
        let seen: HashSet<&[u8]> = sets.iter().flatten().map(|c| &c.frames[..]).collect();
        assert_eq!(seen.len(), sets.iter().map(Vec::len).sum::<usize>());
        assert_eq!(make_clips(ClipSet::Rl, 18, 0)[17].frames, sets[1][17].frames);
        assert_ne!(make_clips(ClipSet::Rl, 18, 1)[17].frames, sets[1][17].frames);
    }

    /// The color tells the direction in 4 of 5 motion clips for SFT and evaluation, and only by chance (1 of 4) in
    /// motion clips for GRPO.
    #[test]
    fn color_hints_are_in_sft_and_held_out_clips_only() {
        for set in ClipSet::ALL {
            let made = make_clips(set, set.default_clip_count(), 5);
            let motions: Vec<Clip> = made.into_iter().filter(|c| c.task == ClipTask::Motion).collect();
            let hinted = motions.iter().filter(|c| {
                let direction = ["left", "right", "up", "down"].iter().position(|d| *d == c.answer);
                let frame = &c.frames[..CLIP_SIDE * CLIP_SIDE * 3];
                direction == COLORS.iter().position(|(name, _)| *name == color_at(frame, centroid(frame)))
            });
            let (hinted, all) = (hinted.count(), motions.len());
            match set {
                ClipSet::Rl => assert!((all / 6..all / 3).contains(&hinted), "{hinted} of {all}"),
                _ => assert!((3 * all / 4..=7 * all / 8).contains(&hinted), "{hinted} of {all}"),
            }
        }
    }
}
