//! The layout of a benchmark's data files: which files they are, and which columns hold the question, the options, the
//! answer and the video.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pattern::Pattern;
use super::template::{Template, column};

/// One of the forms in which a benchmark is published.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layout {
    /// Name of the layout: who publishes the files in this form (`videorft`, `authors`, …).
    pub name: String,
    /// Patterns of file names, relative to the data folder. Only the first pattern that matches a file is used; all
    /// files that match this pattern are read.
    pub files: Vec<String>,
    /// Columns by which the layout is recognised. Each row of the layout has all of these columns.
    pub columns: Vec<String>,
    /// If the file is an object of objects instead of a list of rows: the names of the nesting levels. The keys of
    /// each level become columns with these names. The values of the last level are rows or lists of rows.
    #[serde(default)]
    pub nested: Vec<String>,
    /// Columns with lists whose entries are rows of their own. Each entry replaces the list in a copy of the row; the
    /// lists of several columns have the same length, and their entries of one index are one row.
    #[serde(default)]
    pub each: Vec<String>,
    /// Names of the questions that every row of the file asks. The row is repeated for each name, with the name in the
    /// column `part`.
    #[serde(default)]
    pub parts: Vec<String>,
    /// Columns whose values are in another file of the data folder.
    #[serde(default)]
    pub lookup: Vec<LookupColumn>,
    /// Rules that compute new columns from other columns. The columns `file.stem`, `file.folder` and `row.number`
    /// (from 1) always exist.
    #[serde(default)]
    pub derive: Vec<DerivedColumns>,
    /// Names of the equally long sections of a file, if no column says to which section a row belongs. The row number
    /// determines the section.
    pub blocks: Option<FileBlocks>,
    /// The rules for every row.
    pub row: RowRules,
    /// Rules for some of the rows. If a case applies to a row, its rules replace the rules of the same names in
    /// `row`. If several cases apply, the last one wins.
    #[serde(default)]
    pub case: Vec<RowCase>,
}

/// A rule that makes columns out of the text of another column.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DerivedColumns {
    /// The column whose text the rule reads.
    pub column: String,
    /// A regular expression; each of its named groups becomes a column. If the text does not match, no column is added.
    pub regex: Pattern,
}

/// A column whose value is in another file: a JSON file of nested objects.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LookupColumn {
    /// The name of the new column.
    pub column: String,
    /// The JSON file, relative to the data folder.
    pub file: String,
    /// The keys that lead through the file's objects to the value.
    pub keys: Vec<Template>,
    /// The reason for which rows without a value are left out of the score. Without it, such rows lack the column.
    pub leave_out: Option<String>,
}

/// Names the equally long sections of a file in which no column says to which section a row belongs. If the file has
/// `rows` rows per section, each row gets the column `block` with the name of its section.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileBlocks {
    /// Number of rows of each part.
    pub rows: usize,
    /// The names of the sections, in order.
    pub names: Vec<String>,
}

/// Rules that apply only to rows with certain values in certain columns.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RowCase {
    /// Column names with the values that select the case. A row belongs to the case if each of these columns has one of
    /// the values listed for it.
    pub when: BTreeMap<String, Vec<String>>,
    /// The rules for the rows of this case.
    pub row: RowRules,
}

/// The rules by which the columns of a row become a question with its answer. Each [`Template`] is a text with
/// placeholders for columns.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RowRules {
    /// The row's id, unique within the benchmark.
    pub id: Option<Template>,
    /// The text of the question.
    pub question: Option<Template>,
    /// The kind of problem, such as `multiple choice` or `temporal grounding`.
    pub kind: Option<Template>,
    /// The text after the question that says what form the answer has, if the recipe has none for the kind of problem.
    pub instruction: Option<String>,
    /// Texts that are removed from the question.
    pub remove: Option<Vec<String>>,
    /// The column with the options: a list of texts, an object whose keys are letters, or a text with one option per
    /// line.
    pub options: Option<String>,
    /// Columns with an option each; options that are missing, empty or `N/A` are left out.
    pub option_columns: Option<Vec<String>>,
    /// The options, if they are the same for all rows.
    pub option_list: Option<Vec<String>>,
    /// Whether the options are the last lines of the question.
    pub options_in_question: Option<bool>,
    /// How the options are shown to the model.
    pub option_marks: Option<OptionMarks>,
    /// The text that names the correct answer; `answer_form` says how.
    pub answer: Option<Template>,
    /// How the answer text names the answer: letter, number or text of an option, or the answer itself.
    pub answer_form: Option<AnswerForm>,
    /// The category by which scores are reported: the first of these templates whose columns the row has.
    pub category: Option<Vec<Template>>,
    /// Categories in all of which the row counts. A column with a list gives a category for each entry.
    pub categories: Option<Vec<Template>>,
    /// The group of rows that are scored together.
    pub group: Option<Template>,
    /// Columns that predictions have for the score: the name in predictions, and the column of the row.
    pub scored: Option<BTreeMap<String, String>>,
    /// Paths of the video relative to the media folder; the first path that exists is taken. A folder is a video whose
    /// frames are image files.
    pub video: Option<Vec<Template>>,
    /// The second at which the part of the video that is asked about begins.
    pub start: Option<Template>,
    /// The second at which the part of the video that is asked about ends.
    pub end: Option<Template>,
    /// Frames per second of a video whose frames are image files.
    pub fps: Option<Template>,
    /// Columns with images (a path or a data URI), which are shown after the video.
    pub images: Option<Vec<String>>,
    /// Paths of the video's subtitles relative to the media folder; the first file that exists is taken.
    pub subtitles: Option<Vec<Template>>,
    /// If set, the row is left out of the benchmark's score for this reason.
    pub leave_out: Option<String>,
}

/// How the options of a question are shown to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptionMarks {
    /// Options are shown as `A. text`, whatever marks they have in the file.
    #[default]
    Letters,
    /// Options are shown as they are in the file.
    AsIs,
}

/// How the text of an answer names the correct answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerForm {
    /// The answer is the letter of an option, alone or before its text: `B`, `(B)`, `B. red`.
    Letter,
    /// The answer is the number of an option, counted from 0.
    Index,
    /// The answer is the text of an option.
    OptionText,
    /// The text or number is itself the answer.
    Plain,
    /// The answer is in `<answer>` tags within the text.
    Tagged,
    /// The answer is a list of a start and an end in seconds, or a list of such lists.
    Segment,
    /// The answer is a list of objects with `timestamp`, `xmin`, `ymin`, `xmax` and `ymax`.
    Boxes,
}

/// A rule that is ignored for rows without the columns that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalColumns<'l> {
    /// The name of the rule.
    pub rule: &'static str,
    /// Lists of columns. The rule has an effect on a row that has all columns of one of the lists.
    pub alternatives: Vec<Vec<&'l str>>,
}

impl RowRules {
    /// Returns these rules, in which each rule that `more` sets replaces the rule of the same name.
    fn replaced_by(mut self, more: &Self) -> Self {
        fn replace<T: Clone>(rule: &mut Option<T>, more: &Option<T>) {
            if more.is_some() {
                rule.clone_from(more);
            }
        }
        // The pattern names every field, so the compiler refuses a new field that the lines below do not handle.
        let Self {
            id,
            question,
            kind,
            instruction,
            remove,
            options,
            option_columns,
            option_list,
            options_in_question,
            option_marks,
            answer,
            answer_form,
            category,
            categories,
            group,
            scored,
            video,
            start,
            end,
            fps,
            images,
            subtitles,
            leave_out,
        } = &mut self;
        replace(id, &more.id);
        replace(question, &more.question);
        replace(kind, &more.kind);
        replace(instruction, &more.instruction);
        replace(remove, &more.remove);
        replace(options, &more.options);
        replace(option_columns, &more.option_columns);
        replace(option_list, &more.option_list);
        replace(options_in_question, &more.options_in_question);
        replace(option_marks, &more.option_marks);
        replace(answer, &more.answer);
        replace(answer_form, &more.answer_form);
        replace(category, &more.category);
        replace(categories, &more.categories);
        replace(group, &more.group);
        replace(scored, &more.scored);
        replace(video, &more.video);
        replace(start, &more.start);
        replace(end, &more.end);
        replace(fps, &more.fps);
        replace(images, &more.images);
        replace(subtitles, &more.subtitles);
        replace(leave_out, &more.leave_out);
        self
    }
}

impl Layout {
    /// Whether a row has the columns of this layout.
    pub fn is_layout_of(&self, row: &Map<String, Value>) -> bool {
        self.missing_column(row).is_none()
    }

    /// The first column of the layout that a row does not have.
    pub fn missing_column(&self, row: &Map<String, Value>) -> Option<&str> {
        self.columns.iter().map(String::as_str).find(|name| column(row, name).is_none())
    }

    /// Returns the rules that are ignored for rows without their columns, with these columns. A misspelled column name
    /// in such a rule would go unnoticed. For all other rules, a row without the columns is an error.
    pub fn optional_columns(&self) -> Vec<OptionalColumns<'_>> {
        fn columns(template: &Template) -> Vec<&str> {
            template.columns().collect()
        }
        let one = |rule, name| OptionalColumns { rule, alternatives: vec![vec![name]] };
        let mut all = Vec::new();
        all.extend(self.derive.iter().map(|derived| one("derive", derived.column.as_str())));
        all.extend(self.case.iter().flat_map(|case| case.when.keys()).map(|name| one("when", name.as_str())));
        for rules in std::iter::once(&self.row).chain(self.case.iter().map(|case| &case.row)) {
            all.extend(rules.images.iter().flatten().map(|name| one("images", name.as_str())));
            all.extend(rules.scored.iter().flatten().map(|(_, name)| one("scored", name.as_str())));
            all.extend(
                rules
                    .categories
                    .iter()
                    .flatten()
                    .map(|template| OptionalColumns { rule: "categories", alternatives: vec![columns(template)] }),
            );
            let templates =
                [("start", &rules.start), ("end", &rules.end), ("fps", &rules.fps), ("group", &rules.group)];
            for (rule, template) in templates {
                let of_rule = |template| OptionalColumns { rule, alternatives: vec![columns(template)] };
                all.extend(template.iter().map(of_rule));
            }
            for (rule, candidates) in [("category", &rules.category), ("video", &rules.video)] {
                if let Some(list) = candidates {
                    all.push(OptionalColumns { rule, alternatives: list.iter().map(columns).collect() });
                }
            }
        }
        all
    }

    /// Whether a rule of this layout makes the column `name`, at least for some rows.
    fn makes_column(&self, name: &str) -> bool {
        let is_derived = |derived: &DerivedColumns| derived.regex.capture_names().flatten().any(|group| group == name);
        self.derive.iter().any(is_derived)
            || self.nested.iter().any(|level| level == name)
            || self.lookup.iter().any(|lookup| lookup.column == name)
            || (!self.parts.is_empty() && name == "part")
            || (self.blocks.is_some() && name == "block")
    }

    /// Removes from `wanted` each entry whose columns exist: the row or the layout's rules provide all columns of one
    /// of its alternatives.
    pub fn remove_found_columns(&self, wanted: &mut Vec<OptionalColumns<'_>>, row: &Map<String, Value>) {
        let has = |name: &&str| column(row, name).is_some() || self.makes_column(name);
        wanted.retain(|columns| !columns.alternatives.iter().any(|names| names.iter().all(has)));
    }

    /// Adds the derived columns to a row. `index` is the row's index in its file (from 0), `rows` the file's number of
    /// rows.
    pub fn add_derived_columns(&self, row: &mut Map<String, Value>, index: usize, rows: usize) {
        row.insert("row.number".into(), json!(index + 1));
        if let Some(blocks) = self.blocks.as_ref().filter(|blocks| blocks.rows * blocks.names.len() == rows) {
            row.insert("block".into(), json!(blocks.names[index / blocks.rows]));
        }
        for DerivedColumns { column: name, regex } in &self.derive {
            let Some(text) = column(row, name).and_then(text_of_scalar) else { continue };
            let Some(found) = regex.captures(&text) else { continue };
            let groups = regex.capture_names().flatten().filter_map(|group| Some((group, found.name(group)?.as_str())));
            let groups: Vec<(String, Value)> = groups.map(|(name, text)| (name.into(), json!(text))).collect();
            row.extend(groups);
        }
    }

    /// Returns the rules for a row: the layout's rules, with the replacements by cases that apply to the row.
    pub fn rules(&self, row: &Map<String, Value>) -> RowRules {
        let applies = |case: &&RowCase| {
            case.when
                .iter()
                .all(|(name, values)| values.contains(&column(row, name).and_then(text_of_scalar).unwrap_or_default()))
        };
        self.case.iter().filter(applies).fold(self.row.clone(), |rules, case| rules.replaced_by(&case.row))
    }
}

/// The text of a value that is neither a list nor an object nor null.
pub fn text_of_scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(text: &str) -> Layout {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn later_cases_win() {
        let layout = layout(
            r#"
            name = "authors"
            files = ["*.json"]
            columns = ["kind", "meta.subject"]
            row = { kind = "multiple choice", answer-form = "letter" }
            [[case]]
            when = { kind = ["count", "size"] }
            row = { kind = "regression", answer-form = "plain" }
            [[case]]
            when = { kind = ["size"], "meta.subject" = ["room", ""] }
            row = { leave-out = "no rooms" }
            "#,
        );
        let rules = |row: Value| layout.rules(row.as_object().unwrap());
        let kind = |row: Value| rules(row).kind.map(|kind| kind.to_string()).unwrap_or_default();
        assert_eq!(kind(json!({"kind": "order"})), "multiple choice");
        assert_eq!(kind(json!({"kind": "size"})), "regression");
        assert_eq!(rules(json!({"kind": "count"})).leave_out, None);
        for subject in [json!("room"), Value::Null] {
            assert!(rules(json!({"kind": "size", "meta": {"subject": subject}})).leave_out.is_some());
        }
        assert_eq!(layout.missing_column(json!({"kind": 1, "meta": {}}).as_object().unwrap()), Some("meta.subject"));
        assert!(layout.is_layout_of(json!({"kind": 1, "meta": {"subject": null}}).as_object().unwrap()));
    }

    #[test]
    fn columns_are_derived_from_texts_and_positions() {
        let layout = layout(
            r#"
            name = "authors"
            files = ["*.json"]
            columns = ["id"]
            derive = [{ column = "id", regex = "^[a-z]+_(?<subject>.+)_(?<n>[0-9]+)$" }]
            blocks = { rows = 2, names = ["first", "second"] }
            row = {}
            "#,
        );
        let mut row = json!({"id": "dev_Art_Theory_12"}).as_object().unwrap().clone();
        layout.add_derived_columns(&mut row, 2, 4);
        let found = ["subject", "n", "block"].map(|name| row[name].as_str().unwrap_or_default().to_string());
        assert_eq!((found, &row["row.number"]), (["Art_Theory", "12", "second"].map(String::from), &json!(3)));
        let mut other = json!({"id": 7}).as_object().unwrap().clone();
        layout.add_derived_columns(&mut other, 0, 5);
        assert!(!other.contains_key("subject") && !other.contains_key("block"));
    }

    #[test]
    fn columns_that_no_row_has_are_found() {
        let layout = layout(
            r#"
            name = "own"
            files = ["*"]
            columns = ["id"]
            derive = [{ column = "id", regex = "^(?<subject>[a-z]+)" }, { column = "di", regex = "^(?<x>.)" }]
            [row]
            images = ["pic", "other"]
            category = ["{topic}", "{subject}"]
            video = ["{vid}.mp4", "{clip}.mp4"]
            start = "{from}"
            end = "9"
            [[case]]
            when = { topicc = ["a"], "file.stem" = ["b"], "meta.kind" = [""] }
            row = { fps = "{rate}" }
            "#,
        );
        let mut left = layout.optional_columns();
        let mut see = |row: Value| {
            layout.remove_found_columns(&mut left, row.as_object().unwrap());
            left.iter().map(|columns| columns.rule).collect::<Vec<_>>()
        };
        let first = json!({"id": 1, "file.stem": "f", "pic": null, "meta": {"kind": 1}});
        assert_eq!(see(first), ["derive", "when", "images", "start", "video", "fps"]);
        assert_eq!(see(json!({"other": "x", "clip": 1})), ["derive", "when", "start", "fps"]);
        assert_eq!(see(json!({"from": 1, "rate": 2, "di": 3, "topicc": 4})), [""; 0]);
    }

    #[test]
    fn misspelled_rules_are_refused() {
        for text in [
            "row = { quesiton = \"{q}\" }",
            "row = { question = \"{q\" }",
            "row = {}\nnested = 1",
            "row = {}\nderive = [{ column = \"a\", regex = \"(\" }]",
        ] {
            let text = format!("name = \"a\"\nfiles = []\ncolumns = []\n{text}");
            assert!(toml::from_str::<Layout>(&text).is_err(), "{text}");
        }
    }
}
