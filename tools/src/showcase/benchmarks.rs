//! Writes the held-out clips as three small benchmarks, in the file formats of MVBench and VSI-Bench, each with a
//! task file of `reel eval`.
//!
//! | benchmark | questions | form |
//! |---|---|---|
//! | `demo-mvbench` | motion and colors: four options, of which the answer names one | `json/*.json` of MVBench |
//! | `demo-shuffled` | motion: half of the clips, with their frames in random order | `json/*.json` of MVBench |
//! | `demo-vsibench` | count: a number | `test.jsonl` of VSI-Bench |

use std::path::Path;

use reel_eval::Extraction;
use serde_json::{Value, json};

use crate::showcase::clips::{COLORS, Clip, ClipTask, DIRECTIONS, colors_answer};
use crate::showcase::{Result, write};

/// The rule by which the demo extracts the answer from an output; an answer may be given as the text of an option.
pub const EXTRACTION: Extraction = Extraction::Lenient;

/// The folder of the clips. Rows in VSI-Bench's form name it in the field `dataset`.
pub const CLIP_FOLDER: &str = "clips";

/// A benchmark of held-out clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipBenchmark {
    /// Motion and colors.
    MvBench,
    /// Motion with shuffled frames.
    Shuffled,
    /// Count.
    VsiBench,
}

impl ClipBenchmark {
    /// All benchmarks.
    pub const ALL: [Self; 3] = [Self::MvBench, Self::Shuffled, Self::VsiBench];

    /// The name in files and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::MvBench => "demo-mvbench",
            Self::Shuffled => "demo-shuffled",
            Self::VsiBench => "demo-vsibench",
        }
    }

    /// The text of the benchmark's task file.
    pub fn task_file(self) -> &'static str {
        match self {
            Self::MvBench => include_str!("tasks/demo-mvbench.toml"),
            Self::Shuffled => include_str!("tasks/demo-shuffled.toml"),
            Self::VsiBench => include_str!("tasks/demo-vsibench.toml"),
        }
    }

    /// The data files of the benchmark, as (path, contents). They hold the questions about clips.
    fn data_files(self, clips: &[Clip]) -> Vec<(String, String)> {
        let of = |task: ClipTask| clips.iter().filter(move |clip| clip.task == task);
        let list = |rows: Vec<Value>| format!("{:#}\n", Value::Array(rows));
        match self {
            Self::MvBench => [ClipTask::Motion, ClipTask::Colors]
                .map(|task| {
                    let rows = of(task).map(|clip| choice(clip, &clip.file)).collect();
                    (format!("json/{}.json", task.name()), list(rows))
                })
                .into(),
            Self::Shuffled => {
                let rows = shuffled_clips(clips).map(|clip| choice(clip, &shuffled_file(clip))).collect();
                vec![("json/motion.json".into(), list(rows))]
            }
            Self::VsiBench => {
                let rows = of(ClipTask::Count).enumerate().map(|(i, clip)| {
                    let row = json!({"id": i, "dataset": CLIP_FOLDER, "scene_name": clip.file.trim_end_matches(".mp4"),
                        "question_type": "object_counting", "question": clip.task.question(),
                        "ground_truth": clip.answer, "options": null});
                    format!("{row}\n")
                });
                vec![("test.jsonl".into(), rows.collect())]
            }
        }
    }

    /// Writes the task file into `folder`, and the data files into the sub-folder with the benchmark's name.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(self, folder: &Path, clips: &[Clip]) -> Result<()> {
        write(&folder.join(format!("{}.toml", self.name())), self.task_file())?;
        let files = self.data_files(clips);
        files.iter().try_for_each(|(file, text)| write(&folder.join(self.name()).join(file), text))
    }
}

/// The clips of the benchmark with shuffled frames: every second clip of the task motion, with its frames in random
/// order. The accuracy is much lower with shuffled frames, so half of the clips are enough to see the difference.
pub fn shuffled_clips(clips: &[Clip]) -> impl Iterator<Item = &Clip> {
    clips.iter().filter(|clip| clip.task == ClipTask::Motion).step_by(2)
}

/// The file of a clip with its frames in random order.
pub fn shuffled_file(clip: &Clip) -> String {
    format!("shuffled-{}", clip.file)
}

/// A question with four options, as a row with MVBench's fields.
fn choice(clip: &Clip, file: &str) -> Value {
    json!({"video": file, "question": clip.task.question(), "candidates": candidates(clip), "answer": clip.answer})
}

/// The four options of a question. Motion: all directions. Colors: the right pair of colors, the pair in reverse order,
/// and two pairs with only one right color.
fn candidates(clip: &Clip) -> Vec<String> {
    let colors = clip.answer.split_once(", ").filter(|_| clip.task == ClipTask::Colors);
    let Some((a, b)) = colors else { return DIRECTIONS.map(|(answer, ..)| answer.to_string()).into() };
    let others: Vec<&str> = COLORS.iter().map(|color| color.0).filter(|color| ![a, b].contains(color)).collect();
    let mut candidates: Vec<String> =
        [(a, b), (b, a), (a, others[0]), (others[1], b)].map(|(first, then)| colors_answer(first, then)).into();
    // Sorting by name makes the position of the right option depend on the colors.
    candidates.sort();
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::showcase::clips::{ClipSet, make_clips};
    use reel_eval::{Task, load_benchmark};

    /// The built-in tasks of the real benchmarks can also read these files.
    #[test]
    fn files_have_the_published_forms() {
        let folder = tempfile::tempdir().unwrap();
        let clips = make_clips(ClipSet::HeldOut, 24, 1);
        for benchmark in ClipBenchmark::ALL {
            benchmark.write(folder.path(), &clips).unwrap();
            let own = Task::open(&folder.path().join(format!("{}.toml", benchmark.name()))).unwrap();
            assert_eq!(own.name, benchmark.name());
            let rows = load_benchmark(&own, folder.path(), None, false).unwrap().rows;
            let published = if benchmark == ClipBenchmark::VsiBench { "vsibench" } else { "mvbench" };
            let published = Task::from_names(published).unwrap().remove(0);
            let data = folder.path().join(benchmark.name());
            let read = load_benchmark(&published, &data, None, false).unwrap();
            assert_eq!((read.layout.as_str(), read.rows.len()), ("authors", rows.len()));
            for (own, read) in rows.iter().zip(&read.rows) {
                assert_eq!((&own.question, &own.options, &own.answer), (&read.question, &read.options, &read.answer));
                assert!(own.video.as_ref().unwrap().path.starts_with("clips/"), "{own:?}");
            }
            assert_eq!(rows.len(), if benchmark == ClipBenchmark::MvBench { 18 } else { 6 });
        }
    }
}
