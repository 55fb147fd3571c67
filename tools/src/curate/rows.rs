//! The rows of a curation's list: their fields, the video or image file of each row, and the key under which a
//! stage's table holds the answer about a row.
//!
//! ```text
//! key of a video  = SHA-256 of the file
//! key of a row    = SHA-256 of (key of its video, question, options)
//! ```
//! So recorded answers stay valid if rows are added, moved or renumbered, and if files are renamed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use reel_input::rows::Table;
use reel_samples::rewards::{ProblemType, check_solution};
use reel_samples::rows::{DataRow, ProblemMedia, VideorftProblem};
use reel_support::diagnostic::Diagnostic;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::curate::media_hash::MediaHashes;
use crate::curate::prompts::hex;
use crate::error::{Kind, Result};

/// A row of the list.
#[derive(Clone, Debug)]
pub struct CurationRow {
    /// `FILE:LINE`.
    pub location: String,
    /// The columns of the row; empty if the row is not a JSON object.
    pub columns: Map<String, Value>,
    /// The question of the row, or the reason why the row cannot be used.
    pub question: Result<Question, String>,
}

/// What a row asks.
#[derive(Clone, Debug)]
pub struct Question {
    /// The key of the row.
    pub key: String,
    /// The parsed fields.
    pub problem: VideorftProblem,
    /// The kind of answer.
    pub kind: ProblemType,
    /// The video or image file.
    pub media: PathBuf,
    /// The key of that file.
    pub media_key: String,
}

impl Question {
    /// Whether the question is about a video.
    pub fn is_video(&self) -> bool {
        self.problem.data_type == ProblemMedia::Video
    }

    /// The question and its options, one per line.
    pub fn text_with_options(&self) -> String {
        let mut text = self.problem.problem.clone();
        if self.kind == ProblemType::MultipleChoice {
            self.problem.options.iter().for_each(|option| text = format!("{text}\n{option}"));
        }
        text
    }
}

/// Reads the list of questions. Media paths are relative to `media_root`. The hashes of all media are added to
/// `hashes`. With `skip_bad_rows`, the entry of an unusable row has the reason in place of the question. Without
/// `skip_bad_rows`, the first unusable row is an error.
///
/// # Errors
/// The list cannot be read; a row has a wrong or missing field, no usable solution, or media that are missing.
pub fn read_list(
    list: &Path,
    media_root: &Path,
    hashes: &mut MediaHashes,
    skip_bad_rows: bool,
) -> Result<Vec<CurationRow>> {
    let table = Table::open(list)?;
    let parsed: Vec<ListedRow> = (0..table.len())
        .map(|row| {
            let location = table.location(row);
            match table.value(row) {
                Ok(Value::Object(columns)) => {
                    let parsed = parse(&columns, media_root);
                    (location, columns, parsed)
                }
                Ok(_) => (location, Map::new(), Err(Diagnostic::new("", "is not an object", FIELDS))),
                Err(e) => {
                    // The location is empty here, because it is added below.
                    let e = Diagnostic { location: String::new(), ..e.diagnostic };
                    (location, Map::new(), Err(e))
                }
            }
        })
        .collect();
    let media: BTreeSet<PathBuf> =
        parsed.iter().filter_map(|(_, _, parsed)| Some(parsed.as_ref().ok()?.media.clone())).collect();
    let unreadable = hashes.add(media);
    let mut rows = Vec::with_capacity(parsed.len());
    for (location, columns, parsed) in parsed {
        let question = parsed.and_then(|parsed| parsed.with_keys(hashes, &unreadable));
        let question = match question {
            Err(e) if !skip_bad_rows => {
                let help = format!("{}; or leave such rows out with --skip-bad-rows", e.help);
                return Err(Kind::Failed.error(e.with_help(help).at(&location)));
            }
            other => other.map_err(|e| e.to_string()),
        };
        rows.push(CurationRow { location, columns, question });
    }
    Ok(rows)
}

const FIELDS: &str = "give the fields problem, data_type, problem_type, options, solution, path";

/// The location of a row, its columns, and its parsed fields or the reason why they cannot be used.
type ListedRow = (String, Map<String, Value>, Result<Parsed, Diagnostic>);

/// The parsed fields of a row, before its video or image file is hashed.
struct Parsed {
    problem: VideorftProblem,
    kind: ProblemType,
    media: PathBuf,
}

fn parse(columns: &Map<String, Value>, media_root: &Path) -> Result<Parsed, Diagnostic> {
    let DataRow::Problem { problem, .. } = DataRow::parse(Value::Object(columns.clone()))? else {
        return Err(Diagnostic::new("", "has messages instead of a `problem`", FIELDS));
    };
    if problem.data_type == ProblemMedia::Text {
        return Err(Diagnostic::new("data_type", "is text", "give rows about videos or images"));
    }
    let kind = ProblemType::parse(&problem.problem_type)
        .map_err(|e| Diagnostic::new("problem_type", e.to_string(), "use a known problem_type"))?;
    check_solution(Some(kind), &problem.solution)?;
    if kind == ProblemType::MultipleChoice && problem.options.is_empty() {
        return Err(Diagnostic::new("options", "is empty", "give the options of the question"));
    }
    if problem.path.contains("://") || problem.path.starts_with("data:") {
        return Err(Diagnostic::new("path", "is an address", "download the file, and give its path"));
    }
    let path = problem.path.strip_prefix("./").map_or(&*problem.path, |rest| rest.trim_start_matches('/'));
    if path.is_empty() {
        return Err(Diagnostic::new("path", "is empty", "give the path of the video or image"));
    }
    Ok(Parsed { media: media_root.join(path), problem, kind })
}

impl Parsed {
    fn with_keys(
        self,
        hashes: &MediaHashes,
        unreadable: &HashMap<PathBuf, std::io::Error>,
    ) -> Result<Question, Diagnostic> {
        let Self { problem, kind, media } = self;
        if let Some(e) = unreadable.get(&media) {
            return Err(Diagnostic::cannot_read(&media, e).at("path"));
        }
        let media_key = hashes.get(&media).unwrap_or_default().to_string();
        let text = json!([media_key, problem.problem, problem.options]).to_string();
        Ok(Question { key: hex(&Sha256::digest(text.as_bytes())), problem, kind, media, media_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Value {
        json!({"problem": "Which?", "data_type": "video", "problem_type": "multiple choice", "options": ["A. x", "B. y"],
            "solution": "<answer>A</answer>", "path": "./a.mp4"})
    }

    /// Reads a list with these rows in a folder where the files `a.mp4` and `b.mp4` have the same content.
    fn read(rows: &[Value], skip: bool) -> Result<Vec<CurationRow>> {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.mp4", "b.mp4"] {
            std::fs::write(dir.path().join(name), "video").unwrap();
        }
        let list = dir.path().join("list.jsonl");
        std::fs::write(&list, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        read_list(&list, dir.path(), &mut MediaHashes::default(), skip)
    }

    #[test]
    fn keys_follow_from_content_and_question() {
        let change = |field: &str, value: Value| {
            let mut row = row();
            row[field] = value;
            row
        };
        let rows = [
            row(),
            change("path", json!("b.mp4")),
            change("solution", json!("<answer>B</answer>")),
            change("problem", json!("What?")),
            change("options", json!(["A. x", "B. z"])),
        ];
        let rows = read(&rows, false).unwrap();
        let keys: Vec<String> = rows.iter().map(|row| row.question.as_ref().unwrap().key.clone()).collect();
        assert!(keys[0] == keys[1] && keys[0] == keys[2], "{keys:?}");
        assert!(keys[0] != keys[3] && keys[0] != keys[4] && keys[3] != keys[4], "{keys:?}");
        assert_eq!(rows[0].question.as_ref().unwrap().text_with_options(), "Which?\nA. x\nB. y");
    }

    #[test]
    fn unusable_rows_are_named_or_kept_with_their_reason() {
        for (field, value, words) in [
            ("path", json!("none.mp4"), "path: "),
            ("path", json!("https://host/a.mp4"), "path: is an address"),
            ("data_type", json!("text"), "data_type: is text"),
            ("solution", json!("A"), "solution: has no answer"),
            ("problem_type", json!("essay"), "problem_type: is `essay`"),
            ("options", json!([]), "options: is empty"),
            ("problem", json!(3), "problem: is not a string"),
        ] {
            let mut bad = row();
            bad[field] = value;
            let e = read(&[row(), bad.clone()], false).unwrap_err().to_string();
            assert!(e.contains("list.jsonl:2: ") && e.contains(words) && e.contains("--skip-bad-rows"), "{e}");
            let rows = read(&[row(), bad], true).unwrap();
            assert!(rows[0].question.is_ok() && rows[1].question.as_ref().unwrap_err().contains(words));
        }
        let e = read(&[json!([1])], false).unwrap_err().to_string();
        assert!(e.contains("list.jsonl:1: is not an object; "), "{e}");
    }
}
