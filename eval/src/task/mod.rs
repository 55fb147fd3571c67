//! Tasks: one declarative file for each benchmark (`eval/tasks/*.toml`), so that a user can add a benchmark without
//! writing Rust.
//!
//! | table | contents |
//! |---|---|
//! | top | `name`, `title`, `version`, `source` |
//! | `[prompt]` | the text around the question; if absent, the recipe's text (`--parity`) |
//! | `[score]` | how row scores become the benchmark's score |
//! | `[reference]` | prompt and answer extraction of the benchmark's harness ([`ReferenceProtocol`]) |
//! | `[[layout]]` | the forms in which the benchmark is published: files, columns, rules ([`Layout`]) |
//! | `[[published]]` | published scores, for the report |
//!
//! Task files are untrusted input: each field is checked, and an error names the file and the field.

mod layout;
mod options;
mod pattern;
mod reference;
mod rules;
mod suite;
mod template;

use std::path::Path;
use std::sync::LazyLock;

use reel_samples::prompts::{QuestionTemplate, answer_instruction, question_text};
use reel_samples::rewards::Recipe;
use reel_support::diagnostic::input;
use serde::Deserialize;

pub use layout::{AnswerForm, Layout, LookupColumn, OptionalColumns, RowRules, text_of_scalar};
pub use options::{AnswerOptions, option_error};
pub use reference::{FoundAnswer, ReferenceProtocol};
pub use rules::{GroupRule, Headline, MetricKind, PromptRules, PublishedScore, ScoreRules};
pub use suite::Suite;
pub use template::{Template, column};

use self::options::text_without_letter;

use crate::error::{Error, Result};

/// The name under which a user's own rows are reported.
pub const OWN_ROWS: &str = "own rows";

/// A benchmark task: a benchmark and the protocol by which it is evaluated.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Task {
    /// The task's name in `--benchmark` and in the names of result files.
    pub name: String,
    /// The benchmark's name in tables.
    pub title: String,
    /// The version of the protocol, which is part of every result. A change that may change a score raises it.
    pub version: u32,
    /// Where the benchmark is published.
    pub source: String,
    /// Number of questions on which the published scores are based. The report notes if a run has another number.
    pub rows: Option<usize>,
    /// The folder of the benchmark's videos as it is written in the paths of VideoRFT's and Video-R1's files.
    pub media_folder: Option<String>,
    /// The text around the question.
    #[serde(default)]
    pub prompt: PromptRules,
    /// How the scores of rows become the benchmark's score.
    #[serde(default)]
    pub score: ScoreRules,
    /// The protocol of the harness with which published scores are made (`--protocol reference`).
    pub reference: Option<ReferenceProtocol>,
    /// The forms in which the benchmark is published. The first layout that fits the data is used.
    #[serde(rename = "layout")]
    pub layouts: Vec<Layout>,
    /// Published scores of the benchmark.
    #[serde(default)]
    pub published: Vec<PublishedScore>,
    /// The text of the file, for a task that is not built in.
    #[serde(skip)]
    pub user_file_text: Option<String>,
}

/// The files of the built-in tasks: first those of the VideoRFT and Video-R1 papers, in the order of their result tables.
const BUILT_IN: [(&str, &str); 19] = [
    ("vsibench.toml", include_str!("../../tasks/vsibench.toml")),
    ("videommmu.toml", include_str!("../../tasks/videommmu.toml")),
    ("mmvu.toml", include_str!("../../tasks/mmvu.toml")),
    ("mvbench.toml", include_str!("../../tasks/mvbench.toml")),
    ("tempcompass.toml", include_str!("../../tasks/tempcompass.toml")),
    ("videomme.toml", include_str!("../../tasks/videomme.toml")),
    ("videoholmes.toml", include_str!("../../tasks/videoholmes.toml")),
    ("longvideobench.toml", include_str!("../../tasks/longvideobench.toml")),
    ("lvbench.toml", include_str!("../../tasks/lvbench.toml")),
    ("mlvu.toml", include_str!("../../tasks/mlvu.toml")),
    ("charadessta.toml", include_str!("../../tasks/charadessta.toml")),
    ("activitynettvg.toml", include_str!("../../tasks/activitynettvg.toml")),
    ("videomathqa.toml", include_str!("../../tasks/videomathqa.toml")),
    ("videomathqambin.toml", include_str!("../../tasks/videomathqambin.toml")),
    ("motionbench.toml", include_str!("../../tasks/motionbench.toml")),
    ("videommev2.toml", include_str!("../../tasks/videommev2.toml")),
    ("nextgqa.toml", include_str!("../../tasks/nextgqa.toml")),
    ("vstar.toml", include_str!("../../tasks/vstar.toml")),
    ("longvideoreason.toml", include_str!("../../tasks/longvideoreason.toml")),
];

/// Number of built-in tasks, from the start of `BUILT_IN`, that `--benchmark all` runs: the six of the two papers.
const ALL: usize = 6;

impl Task {
    /// Returns all built-in tasks.
    pub fn built_in_tasks() -> Vec<Self> {
        Self::cached_built_in_tasks().to_vec()
    }

    /// Returns all built-in tasks, which are parsed once per process.
    pub(crate) fn cached_built_in_tasks() -> &'static [Self] {
        static TASKS: LazyLock<Vec<Task>> = LazyLock::new(|| {
            let parse =
                |(name, text)| Task::parse(name, text).expect("the task files are part of the program, and tested");
            BUILT_IN.into_iter().map(parse).collect()
        });
        &TASKS
    }

    /// Returns the tasks that `--benchmark` names: names of built-in tasks and task files (`.toml`), separated by
    /// commas; `all` stands for the six tasks of the papers.
    ///
    /// # Errors
    /// A name is unknown; a file cannot be read or is not a task; two tasks have the same name.
    pub fn from_names(names: &str) -> Result<Vec<Self>> {
        let built_in = Self::built_in_tasks();
        let mut tasks: Vec<Self> = Vec::new();
        for name in names.split(',').map(str::trim) {
            match name {
                "all" => tasks.extend(built_in.iter().take(ALL).cloned()),
                file if file.ends_with(".toml") => tasks.push(Self::open(Path::new(file))?),
                name => tasks.push(built_in.iter().find(|task| task.name == name).cloned().ok_or_else(|| {
                    let known: Vec<&str> = built_in.iter().map(|task| &task.name[..]).collect();
                    let help = format!("use all, a task file (.toml), or one of {}", known.join(", "));
                    Error::usage("--benchmark", format!("unknown benchmark `{name}`"), help)
                })?),
            }
        }
        let twice = (1..tasks.len()).find(|&i| tasks[..i].iter().any(|task| task.name == tasks[i].name));
        match twice {
            Some(i) => {
                let what = format!("names `{}` twice", tasks[i].name);
                Err(Error::usage("--benchmark", what, "give each benchmark once"))
            }
            None => Ok(tasks),
        }
    }

    /// The task of a user's own rows, which belong to no benchmark: the score is the mean over all rows.
    pub fn of_own_rows() -> Self {
        Self {
            name: OWN_ROWS.into(),
            title: OWN_ROWS.into(),
            version: 1,
            source: String::new(),
            rows: None,
            media_folder: None,
            prompt: PromptRules::default(),
            score: ScoreRules::default(),
            reference: None,
            layouts: Vec::new(),
            published: Vec::new(),
            user_file_text: Some(String::new()),
        }
    }

    /// Reads a task file.
    ///
    /// # Errors
    /// The file cannot be read, or a field of it is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let text = input::read_text(path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
        let task = Self::parse(&path.display().to_string(), &text)?;
        Ok(Self { user_file_text: Some(text), ..task })
    }

    /// Parses the text of a task file; `location` names it in error messages.
    ///
    /// # Errors
    /// A field is missing, unknown or wrong.
    pub fn parse(location: &str, text: &str) -> Result<Self> {
        let wrong =
            |what: String| Error::failed(location, what, "compare it with what `reel eval tasks mvbench` prints");
        let task: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(String::new(), |span| format!("line {}: ", line_of(text, span.start)));
            wrong(format!("{line}{}", e.message()))
        })?;
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !name.starts_with('.')
        };
        if !is_name(&task.name) || task.name == "all" {
            return Err(wrong(format!("name: `{}` cannot be the name of a result file", task.name)));
        }
        let prompts = [("prompt", Some(&task.prompt)), ("reference.prompt", task.reference_prompt())];
        for (table, prompt) in prompts {
            let template = prompt.and_then(|prompt| prompt.template.as_ref());
            let Some(template) = template.filter(|template| !template.contains("{question}")) else { continue };
            let start: String = template.chars().take(30).collect();
            return Err(wrong(format!("{table}.template: `{start}` has no {{question}}")));
        }
        if task.layouts.is_empty() {
            return Err(wrong("layout: is missing, so no data file can be read".into()));
        }
        let without_files = task.layouts.iter().find(|layout| layout.files.is_empty() || layout.columns.is_empty());
        match without_files {
            Some(layout) => Err(wrong(format!("layout `{}`: files or columns is empty", layout.name))),
            None => Ok(task),
        }
    }

    /// The text of the task file, if the task is built in.
    pub fn built_in_file_text(&self) -> Option<&'static str> {
        BUILT_IN.into_iter().find(|(name, _)| name.strip_suffix(".toml") == Some(&self.name)).map(|(_, text)| text)
    }

    /// Returns the text of the user's message: question and options in the task's template or, without one, in the
    /// recipe's template. The recipe's template ends with its instruction for the kind of problem, else with the row's.
    pub fn question_text(
        &self,
        question: &str,
        options: Option<&[String]>,
        (kind, instruction): (&str, Option<&str>),
        recipe: Recipe,
    ) -> String {
        match &self.prompt.template {
            None => {
                let instruction = answer_instruction(kind).or(instruction).unwrap_or_default();
                question_text(question, options, instruction, recipe, QuestionTemplate::Evaluation)
            }
            Some(template) => {
                let lines = self.prompt.option_list(options.unwrap_or_default());
                // Only the placeholder `{options}` of the template is replaced. A question that contains the text
                // `{options}` stays as it is.
                let (before, after) = template.split_once("{question}").unwrap_or((template, ""));
                [&before.replace("{options}", &lines), question, &after.replace("{options}", &lines)].concat()
            }
        }
    }

    fn reference_prompt(&self) -> Option<&PromptRules> {
        self.reference.as_ref()?.prompt.as_ref()
    }

    /// Returns the task with the prompt of its reference protocol.
    ///
    /// # Errors
    /// The task has no reference protocol, or the protocol has no prompt.
    pub fn with_reference_prompt(self) -> Result<Self> {
        self.check_reference_protocol()?;
        let prompt = self.reference_prompt().cloned();
        let missing = || {
            let what = format!("is reference, but the task file of {} has no [reference.prompt]", self.name);
            Error::usage("--protocol", what, "leave the option out, or score answers with --score-only")
        };
        Ok(Self { prompt: prompt.ok_or_else(missing)?, ..self })
    }

    /// Refuses a task without the answer extraction of a reference protocol.
    ///
    /// # Errors
    /// The task has no reference protocol.
    pub fn check_reference_protocol(&self) -> Result<()> {
        let what = || format!("is reference, but the task file of {} has no [reference]", self.name);
        let error = || Error::usage("--protocol", what(), "leave the option out");
        self.reference.as_ref().map(|_| ()).ok_or_else(error)
    }

    /// Whether the model sees every option of a question. It does if the template has `{options}`, or if the question
    /// or the text around it contains the text of each option.
    pub fn shows_options(&self, question: &str, options: &[String]) -> bool {
        let Some(template) = self.prompt.template.as_ref().filter(|template| !template.contains("{options}")) else {
            return true;
        };
        let system = self.prompt.system.as_deref().unwrap_or_default();
        let shown = [question, template, system].join("\n").to_lowercase();
        options.iter().all(|option| shown.contains(&text_without_letter(option).to_lowercase()))
    }

    /// Returns the task (part of the benchmark) to which the category of a row belongs, if the benchmark's official
    /// score is a mean over tasks; else `None`.
    pub fn subtask_of_category<'c>(&'c self, category: &'c str) -> Option<&'c str> {
        let is_part = |name: &&String| category.strip_prefix(&name[..]).is_some_and(|rest| rest.starts_with('_'));
        let merged = self.score.merged_categories.iter().find(is_part).map(String::as_str);
        self.score.task_mean.then(|| merged.unwrap_or(category))
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes().iter().take(byte).filter(|&&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::reference::AnswerRules;
    use super::*;

    /// The page of evaluation has every key of a task file, and every name that is a value.
    #[test]
    fn every_key_is_documented() {
        let page = include_str!("../../../docs/evaluation.md");
        let keys = page.split_once("### All keys of a task file").unwrap().1;
        let layout = |row: &str| format!("name = \"x\"\nfiles = []\ncolumns = []\n{row}");
        // A key or value that does not exist gives an error with all that do.
        let tables: [Result<(), toml::de::Error>; 18] = [
            toml::from_str::<Task>("zzz = 1").map(drop),
            toml::from_str::<PromptRules>("zzz = 1").map(drop),
            toml::from_str::<ScoreRules>("zzz = 1").map(drop),
            toml::from_str::<ScoreRules>("headline = \"zzz\"").map(drop),
            toml::from_str::<PublishedScore>("zzz = 1").map(drop),
            toml::from_str::<ScoreRules>("metrics = \"zzz\"").map(drop),
            toml::from_str::<ReferenceProtocol>("zzz = 1").map(drop),
            toml::from_str::<AnswerRules>("zzz = 1").map(drop),
            toml::from_str::<AnswerRules>("sentences = { zzz = 1 }").map(drop),
            toml::from_str::<AnswerRules>("find = [{ zzz = 1 }]").map(drop),
            toml::from_str::<AnswerRules>("find = [{ pattern = \"a\", take = \"zzz\" }]").map(drop),
            toml::from_str::<AnswerRules>("otherwise = \"zzz\"").map(drop),
            toml::from_str::<Layout>("zzz = 1").map(drop),
            toml::from_str::<Layout>(&layout("row = { zzz = 1 }")).map(drop),
            toml::from_str::<Layout>(&layout("derive = [{ zzz = 1 }]")).map(drop),
            toml::from_str::<Layout>(&layout("lookup = [{ zzz = 1 }]")).map(drop),
            toml::from_str::<Layout>(&layout("[blocks]\nzzz = 1")).map(drop),
            toml::from_str::<Layout>(&layout("row = {}\n[[case]]\nzzz = 1")).map(drop),
        ];
        let forms = ["answer-form", "option-marks"].map(|key| format!("{key} = \"zzz\""));
        let values = forms.map(|text| toml::from_str::<RowRules>(&text).map(drop));
        for table in tables.into_iter().chain(values) {
            let message = table.unwrap_err().message().to_string();
            let known = message.split_once("expected").unwrap_or_else(|| panic!("{message}")).1;
            let names: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            assert!(names.len() > 1, "{message}");
            for name in names {
                let forms = [format!("`{name}`"), format!("[{name}]"), format!(".{name}]")];
                assert!(forms.iter().any(|form| keys.contains(form)), "{name}: {message}");
            }
        }
    }

    #[test]
    fn built_in_tasks_are_valid_and_named_as_their_files() {
        let tasks = Task::built_in_tasks();
        for (task, (file, _)) in tasks.iter().zip(BUILT_IN) {
            assert_eq!(format!("{}.toml", task.name), file);
            assert!(task.source.starts_with("https://"), "{file}");
        }
        let all = Task::from_names("all").unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(Task::from_names("mmvu, videoholmes").unwrap().len(), 2);
        let e = Task::from_names("nosuch").unwrap_err();
        assert!(
            e.is_usage_error() && e.to_string().contains("`nosuch`; use all, a task file (.toml), or one of vsibench")
        );
        assert!(Task::from_names("all,mmvu").unwrap_err().to_string().contains("names `mmvu` twice"));
        assert!(Task::from_names("").is_err());
    }

    #[test]
    fn direction_categories_are_one_part() {
        let tasks = Task::from_names("vsibench,mvbench").unwrap();
        assert_eq!(tasks[0].subtask_of_category("object_rel_direction_hard"), Some("object_rel_direction"));
        assert_eq!(tasks[0].subtask_of_category("object_rel_distance"), Some("object_rel_distance"));
        assert_eq!(tasks[1].subtask_of_category("object_rel_direction_hard"), None);
    }

    const TASK: &str = r#"
name = "mine"
title = "Mine"
version = 1
source = "https://example.org"
[prompt]
template = "Q: {question}\n{options}Answer:"
[[layout]]
name = "own"
files = ["*.jsonl"]
columns = ["q"]
row = { question = "{q}" }
"#;

    #[test]
    fn own_templates_replace_the_recipe() {
        let task = Task::parse("t.toml", TASK).unwrap();
        let options = ["A. x".to_string(), "B. y".to_string()];
        let text = |question| task.question_text(question, Some(&options), ("multiple choice", None), Recipe::Paper);
        assert_eq!(text("Why?"), "Q: Why?\nA. x\nB. y\nAnswer:");
        assert_eq!(text("{options}?"), "Q: {options}?\nA. x\nB. y\nAnswer:");
        let mmvu = Task::from_names("mmvu").unwrap().remove(0);
        let text = mmvu.question_text("Why?", Some(&options), ("multiple choice", None), Recipe::Paper);
        assert!(text.starts_with("Why?\nA. x\nB. y\n\nPlease think") && text.ends_with("</answer> tags."), "{text}");
    }

    #[test]
    fn a_template_without_options_needs_questions_that_have_them() {
        let parse = |template: &str| {
            Task::parse("t.toml", &TASK.replace("Q: {question}\\n{options}Answer:", template)).unwrap()
        };
        let options = ["A. red".to_string(), "B. Blue".to_string()];
        let shows = |template: &str, question: &str| parse(template).shows_options(question, &options);
        assert!(shows("{question}\\n{options}", "Which?") && shows("{question}", "Which?\n(A) red\n(B) blue"));
        assert!(shows("{question} Answer A (red) or B (blue).", "Which?"));
        assert!(!shows("{question}\\nAnswer with the letter.", "Which?") && !shows("{question}", "Is it red?"));
        let mmvu = Task::from_names("mmvu").unwrap().remove(0);
        assert!(mmvu.shows_options("Which?", &options));
    }

    #[test]
    fn wrong_task_files_name_line_and_field() {
        for (from, to, words) in [
            ("version = 1", "versoin = 1", "versoin"),
            ("version = 1\n", "", "version"),
            ("name = \"mine\"", "name = \"a/b\"", "name: `a/b`"),
            ("name = \"mine\"", "name = \"all\"", "name: `all`"),
            ("{question}", "{problem}", "prompt.template"),
            ("[\"*.jsonl\"]", "[]", "layout `own`"),
            ("{q}", "{q", "brace"),
            ("version = 1", "version = 1\nname = \"x\"", "line 5"),
        ] {
            let text = TASK.replacen(from, to, 1);
            let e = Task::parse("t.toml", &text).unwrap_err().to_string();
            assert!(e.starts_with("t.toml: ") && e.contains(words) && !e.contains('\n'), "{from} to {to}: {e}");
        }
    }
}
