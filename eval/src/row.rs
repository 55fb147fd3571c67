//! A row of a benchmark: the question, its options, the answer and the video. All published layouts of a benchmark
//! are converted to this type.

use std::path::{Path, PathBuf};

use reel_samples::rewards::{ProblemType, Recipe, check_solution, extract_answer};
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};

use crate::row_fields::{categories, grounding_answer, scored, source, subtitle_file};
use crate::task::{AnswerForm, AnswerOptions, Layout, RowRules, Task, Template, column, option_error, text_of_scalar};

/// A question of a benchmark with its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchmarkRow {
    /// The place where the row was read, as `FILE:LINE` or similar, for error messages.
    pub location: String,
    /// The row's id, unique within a benchmark.
    pub id: String,
    /// The question.
    pub question: String,
    /// The kind of problem.
    pub kind: ProblemType,
    /// The text after the question that says what form the answer has, if the recipe has none for the kind of problem.
    pub instruction: Option<String>,
    /// The options of a multiple-choice question as the model sees them: `A. red`.
    pub options: Vec<String>,
    /// The correct answer: the letter of an option, a number, or a text.
    pub answer: String,
    /// The categories of the question. Scores are also reported for each category.
    pub categories: Vec<String>,
    /// The group of questions that are scored together.
    pub group: Option<String>,
    /// Further columns that the score needs, with their names in predictions.
    pub scored: Map<String, Value>,
    /// The video.
    pub video: Option<VideoClip>,
    /// Images (paths or data URIs) of the question. The prompt shows them after the video.
    pub images: Vec<String>,
    /// The file with the video's subtitles, if there is one.
    pub subtitle_file: Option<PathBuf>,
    /// The text of the subtitles, which the prompt has before the question. `None`: the prompt has no subtitles.
    pub subtitles: Option<String>,
}

/// A video or a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoClip {
    /// The video file, or the folder with its frames, relative to the media folder.
    pub path: String,
    /// The image files of the frames, relative to the media folder; empty if `path` is a video file.
    pub frames: Vec<String>,
    /// The second at which the shown part of the video begins.
    pub start: Option<f64>,
    /// The second at which the shown part of the video ends.
    pub end: Option<f64>,
    /// Frames per second of `frames`.
    pub fps: Option<f64>,
}

/// The result of parsing a row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum ParsedRow {
    /// A question of the benchmark.
    Question(Box<BenchmarkRow>),
    /// The row does not count in the benchmark's score. The text is the reason.
    Excluded(String),
}

impl BenchmarkRow {
    /// Parses the columns of a row by the rules of the layout. Looks for videos in the folder `media_root`.
    ///
    /// # Errors
    /// A column is missing or wrong; the answer is not among the options. The diagnostic's location is the column.
    pub fn parse(
        columns: &Map<String, Value>,
        layout: &Layout,
        location: &str,
        media_root: &Path,
    ) -> Result<ParsedRow, Diagnostic> {
        if let Some(name) = layout.missing_column(columns) {
            let help = format!("add the column, which every row of the layout `{}` must have", layout.name);
            return Err(Diagnostic::new(name, "is missing", help));
        }
        let rules = layout.rules(columns);
        if let Some(reason) = &rules.leave_out {
            return Ok(ParsedRow::Excluded(reason.clone()));
        }
        let text = |template: &Option<Template>| template.as_ref().map_or(Ok(None), |t| t.fill(columns));
        let needed = |name: &str, template: &Option<Template>| {
            let missing = || Diagnostic::new(source(name, template), "is missing or empty", "add the column");
            text(template)?.ok_or_else(missing)
        };
        let kind_name = needed("kind", &rules.kind)?;
        let kind = ProblemType::parse(&kind_name).map_err(|_| {
            let known = ProblemType::ALL.map(ProblemType::name).join(", ");
            let what = format!("names the unknown kind of problem `{kind_name}`");
            Diagnostic::new(source("kind", &rules.kind), what, format!("use one of {known}"))
        })?;
        let mut question = needed("question", &rules.question)?;
        for text in rules.remove.iter().flatten() {
            question = question.replace(text, "");
        }
        let options = options(columns, &rules, kind, &mut question)?;
        let answer = match rules.answer_form {
            Some(form @ (AnswerForm::Segment | AnswerForm::Boxes)) => grounding_answer(columns, &rules, form)?,
            _ => answer(needed("answer", &rules.answer)?, &rules, kind, &options)?,
        };
        let seconds = |name: &str, template: &Option<Template>| {
            let parse = |text: String| {
                let what = format!("is `{text}`, which is not a number of 0 or more");
                let wrong = || Diagnostic::new(source(name, template), what, "write a number");
                text.trim()
                    .parse()
                    .ok()
                    .filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
                    .ok_or_else(wrong)
            };
            text(template)?.map(parse).transpose()
        };
        let (start, end) = (seconds("start", &rules.start)?, seconds("end", &rules.end)?);
        if let (Some(start), Some(end)) = (start, end)
            && end <= start
        {
            let what = format!("is {end} s, not after the start at {start} s");
            return Err(Diagnostic::new(source("end", &rules.end), what, "correct the row"));
        }
        let fps = seconds("fps", &rules.fps)?;
        let video = match &rules.video {
            None => None,
            Some(candidates) => {
                VideoClip::find(columns, candidates, media_root)?.map(|clip| VideoClip { start, end, fps, ..clip })
            }
        };
        let image = |name: &String| match column(columns, name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(image)) => Ok((!image.is_empty()).then(|| image.clone())),
            Some(_) => Err(Diagnostic::new(name, "is not the path of an image", "write a text")),
        };
        let images = rules.images.iter().flatten().filter_map(|name| image(name).transpose());
        Ok(ParsedRow::Question(Box::new(Self {
            location: location.to_string(),
            id: needed("id", &rules.id)?,
            question,
            kind,
            instruction: rules.instruction.clone(),
            options: options.shown,
            answer,
            categories: categories(&rules, columns)?,
            group: text(&rules.group)?,
            scored: scored(&rules, columns),
            video,
            images: images.collect::<Result<_, _>>()?,
            subtitle_file: subtitle_file(&rules, columns, media_root)?,
            subtitles: None,
        })))
    }

    /// Removes the video and the images, so that a model sees only the text.
    pub fn remove_media(&mut self) {
        self.video = None;
        self.images.clear();
    }

    /// Converts the row to JSON: VideoRFT's columns, which are copied into the row's prediction, and the messages in
    /// `prompt`.
    pub fn to_json(&self, task: &Task, recipe: Recipe) -> Map<String, Value> {
        let media = match (&self.video, &self.images[..]) {
            (Some(_), _) => "video",
            (None, []) => "text",
            (None, _) => "image",
        };
        let mut row = json!({
            "benchmark": task.name,
            "problem_id": self.id,
            "problem": self.question,
            "data_type": media,
            "problem_type": self.kind.name(),
            "options": self.options,
            "solution": format!("<answer>{}</answer>", self.answer),
        });
        if let Some(category) = self.categories.first() {
            row["category"] = json!(category);
            row["categories"] = json!(self.categories);
        }
        if let Some(group) = &self.group {
            row["group"] = json!(group);
        }
        if let Some(clip) = &self.video {
            row["path"] = json!(clip.path);
        }
        row["prompt"] = Value::Array(self.messages(task, recipe));
        match row {
            Value::Object(row) => row.into_iter().chain(self.scored.clone()).collect(),
            _ => Map::new(),
        }
    }

    fn messages(&self, task: &Task, recipe: Recipe) -> Vec<Value> {
        let video = self.video.iter().map(VideoClip::content_part);
        let images = self.images.iter().map(|image| json!({"type": "image", "image": image}));
        let options = (self.kind == ProblemType::MultipleChoice).then_some(&self.options[..]);
        let text = task.question_text(&self.question, options, (self.kind.name(), self.instruction.as_deref()), recipe);
        let text = match &self.subtitles {
            Some(subtitles) => format!("This video's subtitles are listed below:\n{subtitles}\n{text}"),
            None => text,
        };
        let content: Vec<Value> = video.chain(images).chain([json!({"type": "text", "text": text})]).collect();
        let system = task.prompt.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain([json!({"role": "user", "content": content})]).collect()
    }
}

impl VideoClip {
    /// Returns the first candidate path that exists, in the media folder or in its folder `videos`; if none exists, the
    /// first candidate.
    fn find(
        columns: &Map<String, Value>,
        candidates: &[Template],
        media_root: &Path,
    ) -> Result<Option<Self>, Diagnostic> {
        let mut paths = Vec::new();
        for candidate in candidates {
            if let Some(path) = candidate.fill(columns)? {
                // VideoRFT's data sets write paths as `./DIR/FILE`, where the dot stands for the media folder.
                paths.push(
                    path.strip_prefix("./").map_or(path.as_str(), |rest| rest.trim_start_matches('/')).to_string(),
                );
            }
        }
        let exists = |path: &&String| media_root.join(path).exists();
        // Users keep the videos of a benchmark in a folder `videos` beside its files.
        let beside: Vec<String> = paths.iter().map(|path| format!("videos/{path}")).collect();
        let Some(path) = paths.iter().chain(&beside).find(exists).or(paths.first()).cloned() else { return Ok(None) };
        let folder = media_root.join(&path);
        let frames = if folder.is_dir() { frames_in(&folder, &path)? } else { Vec::new() };
        Ok(Some(Self { path, frames, start: None, end: None, fps: None }))
    }

    /// The content part of a chat message that shows the clip.
    fn content_part(&self) -> Value {
        if self.frames.is_empty() {
            let mut part = json!({"type": "video", "video": self.path});
            for (key, seconds) in [("video_start", self.start), ("video_end", self.end)] {
                if let Some(seconds) = seconds {
                    part[key] = json!(seconds);
                }
            }
            return part;
        }
        json!({"type": "video", "video": self.frames, "fps": self.fps.unwrap_or(1.0)})
    }

    /// Keeps only the frames of a clip that a model sees, if the clip's frames are image files. `select` gets the
    /// number of frames between start and end and their rate; it returns the indices of the kept frames and their
    /// rate.
    ///
    /// # Errors
    /// `select` returns an error.
    pub fn select_frames<E>(&mut self, select: impl Fn(usize, f64) -> Result<(Vec<u64>, f64), E>) -> Result<(), E> {
        if self.frames.is_empty() {
            return Ok(());
        }
        let fps = self.fps.unwrap_or(1.0);
        let is_inside = |index: usize| {
            let second = index as f64 / fps;
            self.start.is_none_or(|start| second >= start) && self.end.is_none_or(|end| second <= end)
        };
        let inside: Vec<usize> = (0..self.frames.len()).filter(|&index| is_inside(index)).collect();
        let inside = if inside.is_empty() { (0..self.frames.len()).collect() } else { inside };
        let (indices, rate) = select(inside.len(), fps)?;
        let kept = indices.iter().filter_map(|&i| self.frames.get(*inside.get(i as usize)?).cloned()).collect();
        (self.frames, self.fps) = (kept, Some(rate));
        Ok(())
    }
}

/// Returns the paths of the image files in a folder, sorted by name (names have leading zeros). Each path begins with
/// `path`.
fn frames_in(folder: &Path, path: &str) -> Result<Vec<String>, Diagnostic> {
    let failed = |e| Diagnostic::cannot_read(folder, &e);
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        if ["jpg", "jpeg", "png", "webp", "bmp"].contains(&extension.as_str()) {
            frames.push(format!("{}/{name}", path.trim_end_matches('/')));
        }
    }
    frames.sort();
    match frames.is_empty() {
        true => Err(Diagnostic::new(folder.display().to_string(), "has no image files", "extract the frames into it")),
        false => Ok(frames),
    }
}

/// Reads the options of a question. Options that are the last lines of the question are removed from the question.
fn options(
    columns: &Map<String, Value>,
    rules: &RowRules,
    kind: ProblemType,
    question: &mut String,
) -> Result<AnswerOptions, Diagnostic> {
    let marks = rules.option_marks.unwrap_or_default();
    let list =
        |list: &[String]| AnswerOptions::parse(&json!(list), marks).map_err(|what| option_error("options", what));
    let found = match (&rules.options, &rules.option_list) {
        (_, Some(options)) => Some(list(options)?),
        (None, None) if rules.option_columns.is_some() => {
            let texts = rules.option_columns.iter().flatten().filter_map(|name| text_of_scalar(column(columns, name)?));
            Some(list(&texts.filter(|text| !["", "N/A"].contains(&text.trim())).collect::<Vec<_>>())?)
        }
        (None, None) if rules.options_in_question == Some(true) => {
            let (text, options) = split_options(question);
            *question = text;
            Some(list(&options)?)
        }
        (None, None) => None,
        (Some(name), None) => match column(columns, name) {
            None | Some(Value::Null) => None,
            Some(value) => Some(AnswerOptions::parse(value, marks).map_err(|what| option_error(name, what))?),
        },
    };
    let found = found.unwrap_or_default();
    if kind == ProblemType::MultipleChoice && found.shown.len() < 2 {
        let first_column = rules.option_columns.iter().flatten().next();
        let name = rules.options.as_ref().or(first_column).map_or("options", String::as_str);
        let what = match &found.shown[..] {
            [] => "has no options, but the question is multiple choice".to_string(),
            [only, ..] => {
                let only: String = only.chars().take(60).collect();
                format!("has only one option (`{only}`), but the question is multiple choice")
            }
        };
        return Err(option_error(name, what));
    }
    Ok(found)
}

/// Splits a question into its text and the options in its last lines. Options are lines with the marks `A.`, `B.`, …;
/// without such lines, all lines after the first are options.
fn split_options(question: &str) -> (String, Vec<String>) {
    let lines: Vec<&str> = question.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_first = |line: &&str| ["A.", "A)", "A:", "(A)"].iter().any(|mark| line.starts_with(mark));
    let first = lines.iter().rposition(is_first).filter(|first| *first > 0).unwrap_or(lines.len().min(1));
    (lines[..first].join("\n"), lines[first..].iter().map(|line| line.to_string()).collect())
}

/// Returns the correct answer in the form that outputs are compared with: the letter of an option, or the text or
/// number itself.
fn answer(text: String, rules: &RowRules, kind: ProblemType, options: &AnswerOptions) -> Result<String, Diagnostic> {
    let name = source("answer", &rules.answer);
    let form = rules.answer_form.unwrap_or(AnswerForm::Plain);
    let plain = match form {
        AnswerForm::Tagged => {
            check_solution(Some(kind), &text).map_err(|d| Diagnostic::new(&name, d.what, d.help))?;
            extract_answer(&text).to_string()
        }
        _ => text.trim().to_string(),
    };
    if kind != ProblemType::MultipleChoice {
        let tagged = format!("<answer>{plain}</answer>");
        check_solution(Some(kind), &tagged).map_err(|d| Diagnostic::new(&name, d.what, d.help))?;
        return Ok(plain);
    }
    options.letter_of(&plain, form).map(String::from).map_err(|what| option_error(&name, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(rules: &str) -> Layout {
        let text = format!(
            "name = \"own\"\nfiles = [\"*\"]\ncolumns = [\"q\"]\n[row]\nid = \"{{id}}\"\nquestion = \"{{q}}\"\n{rules}"
        );
        toml::from_str(&text).unwrap()
    }

    const CHOICE: &str = "kind = \"multiple choice\"\noptions = \"o\"\nanswer = \"{a}\"\nanswer-form = \"letter\"\n";

    fn parse(rules: &str, row: Value, root: &Path) -> Result<BenchmarkRow, Diagnostic> {
        match BenchmarkRow::parse(row.as_object().unwrap(), &layout(rules), "f:1", root)? {
            ParsedRow::Question(row) => Ok(*row),
            ParsedRow::Excluded(reason) => Err(Diagnostic::new("left out", reason, "")),
        }
    }

    #[test]
    fn rows_become_questions_with_videos() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("data")).unwrap();
        std::fs::write(root.path().join("data/7.mp4"), "").unwrap();
        let rules = [CHOICE, "video = [\"{id}.mp4\", \"./data/{id}.mp4\"]\nstart = \"{s}\"\nend = \"{e}\"\n"].concat();
        let row = json!({"id": 7, "q": "Which?", "o": ["x", "y"], "a": "B", "s": 1.5, "e": "4"});
        let parsed = parse(&rules, row.clone(), root.path()).unwrap();
        assert_eq!((parsed.answer.as_str(), &parsed.options[..]), ("B", &["A. x".to_string(), "B. y".into()][..]));
        let task = Task::from_names("mmvu").unwrap().remove(0);
        let written = Value::Object(parsed.to_json(&task, Recipe::Paper));
        assert_eq!((&written["path"], &written["solution"]), (&json!("data/7.mp4"), &json!("<answer>B</answer>")));
        let part = &written["prompt"][0]["content"][0];
        assert_eq!(*part, json!({"type": "video", "video": "data/7.mp4", "video_start": 1.5, "video_end": 4.0}));
        // If no candidate exists, the path is the first candidate, so that the error names the missing file.
        let gone = parse(&rules, json!({"id": 8, "q": "Which?", "o": ["x", "y"], "a": "B"}), root.path()).unwrap();
        assert_eq!(gone.video.unwrap().path, "8.mp4");
        // A folder `videos` beside the files is found, after the folders that the task names.
        std::fs::create_dir_all(root.path().join("videos/data")).unwrap();
        for file in ["videos/data/8.mp4", "videos/7.mp4"] {
            std::fs::write(root.path().join(file), "").unwrap();
        }
        for (id, path) in [(7, "data/7.mp4"), (8, "videos/data/8.mp4")] {
            let row = json!({"id": id, "q": "Which?", "o": ["x", "y"], "a": "B"});
            assert_eq!(parse(&rules, row, root.path()).unwrap().video.unwrap().path, path);
        }
    }

    #[test]
    fn frames_of_a_folder_are_selected_between_start_and_end() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("v")).unwrap();
        for i in [3, 0, 2, 1, 4] {
            std::fs::write(root.path().join(format!("v/{i:05}.jpg")), "").unwrap();
        }
        std::fs::write(root.path().join("v/notes.txt"), "").unwrap();
        let rules = [CHOICE, "video = [\"v\"]\nstart = \"{s}\"\nend = \"{e}\"\nfps = \"2\"\n"].concat();
        let row = json!({"id": 7, "q": "Which?", "o": ["x", "y"], "a": "B", "s": 0.5, "e": 1.5});
        let mut clip = parse(&rules, row, root.path()).unwrap().video.unwrap();
        assert_eq!(clip.frames.len(), 5);
        clip.select_frames(|total, fps| Ok::<_, ()>((vec![0, total as u64 - 1], fps / 2.0))).unwrap();
        let shown = json!({"type": "video", "video": ["v/00001.jpg", "v/00003.jpg"], "fps": 1.0});
        assert_eq!(clip.content_part(), shown);
    }

    #[test]
    fn options_may_be_the_last_lines_of_the_question() {
        let rules = "kind = \"multiple choice\"\noptions-in-question = true\nanswer = \"{a}\"\nanswer-form = \"{f}\"\n";
        for (question, answer, form, letter, options) in [
            ("What happens?\nA. it sits\nB. it stands", "B. it stands", "letter", "B", ["A. it sits", "B. it stands"]),
            (
                "Which?\nCaption A: x\nCaption B: y\n",
                "Caption B: y",
                "option-text",
                "B",
                ["A. Caption A: x", "B. Caption B: y"],
            ),
        ] {
            let row = json!({"id": 1, "q": question, "a": answer});
            let got = parse(&rules.replace("{f}", form), row, Path::new("")).unwrap();
            assert_eq!((got.answer.as_str(), &got.options[..]), (letter, &options.map(String::from)[..]));
            assert!(!got.question.contains('\n'));
        }
        let none = json!({"id": 1, "q": "What happens?", "a": "A"});
        assert_eq!(parse(&rules.replace("{f}", "letter"), none, Path::new("")).unwrap_err().location, "options");
    }

    #[test]
    fn wrong_rows_name_the_column() {
        let good = json!({"id": 7, "q": "Which?", "o": ["x", "y"], "a": "B", "s": 1, "e": 2});
        let rules = [CHOICE, "start = \"{s}\"\nend = \"{e}\"\nvideo = [\"{id}.mp4\"]\n"].concat();
        assert!(parse(&rules, good.clone(), Path::new("")).is_ok());
        for (column, value) in [
            ("q", Value::Null),
            ("q", json!("")),
            ("o", json!([])),
            ("o", json!(["x"])),
            ("o", json!("x, y")),
            ("o", json!("['x', 'y']")),
            ("o", Value::Null),
            ("o", json!({"X": "y"})),
            ("a", json!("C")),
            ("a", json!("x")),
            ("a", Value::Null),
            ("a", json!(["B"])),
            ("s", json!("soon")),
            ("s", json!(-1)),
            ("e", json!(1)),
            ("e", json!("inf")),
            ("id", Value::Null),
        ] {
            let mut row = good.clone();
            row[column] = value;
            let d = parse(&rules, row.clone(), Path::new("")).unwrap_err();
            assert_eq!(d.location, column, "{row}: {d}");
        }
        let e = parse(&rules, json!({"id": 1}), Path::new("")).unwrap_err();
        let wanted = "q: is missing; add the column, which every row of the layout `own` must have";
        assert!(e.to_string().starts_with(wanted), "{e}");
        let number = "kind = \"{k}\"\nanswer = \"{a}\"\n";
        assert!(parse(number, json!({"id": 1, "q": "How far?", "k": "regression", "a": 2.5}), Path::new("")).is_ok());
        for (kind, answer, column) in [("regression", "far", "a"), ("numerical", "nan", "a"), ("essay", "1", "k")] {
            let row = json!({"id": 1, "q": "How far?", "k": kind, "a": answer});
            assert_eq!(parse(number, row, Path::new("")).unwrap_err().location, column);
        }
    }
}
