//! A curation: the list of questions, the tables of its stages in the folder OUT, and the questions that are still to
//! be asked.
//!
//! ```text
//! Curation::open      list -> rows with keys; OUT is locked; tables of earlier runs
//! pending_tasks       keys without an accepted answer in this stage but with one in the stage before
//! run_stage           asks a model about them                                            stage.rs
//! finish              filters -> dataset.jsonl, rejected.jsonl, failed.jsonl, summary    finish.rs
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use reel_input::media::worker::DecodeWorker;
use reel_input::rows::Table;
use reel_support::files::{FOLDER_LOCK_FILE, FolderLock, LockError};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::curate::complete_file::{cannot_write_curation, write_json};
use crate::curate::filters::FilterSettings;
use crate::curate::frames::FrameSettings;
use crate::curate::list_keys::{LIST_KEYS_FILE, ListKeys};
use crate::curate::media_hash::{MEDIA_HASHES_FILE, MediaHashes};
use crate::curate::model::ChatModel;
use crate::curate::prompts::{ResponseFormat, StagePrompt};
use crate::curate::recipe::{CurationRecipe, StageName};
use crate::curate::record::RecordStatus;
use crate::curate::requests::{RequestMaker, check_answer};
use crate::curate::row_layout::RowLayout;
use crate::curate::rows::{CurationRow, Question, read_list};
use crate::curate::stage::{StageEnd, StageRun, StageTask};
use crate::curate::table::StageTable;
use crate::error::{Error, Result};

/// The file in OUT that records the inputs and options of the curation.
pub const SETTINGS_FILE: &str = "curation.json";

/// What a run does if OUT already holds a curation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingCuration {
    /// Return an error.
    Refuse,
    /// Continue the curation: ask only about videos and questions without an accepted answer.
    Resume,
    /// Remove the answers of the earlier curation and start again.
    Overwrite,
}

/// How a data set is curated.
#[derive(Clone, Debug)]
pub struct CurationOptions {
    /// The list of questions: a data file, or the folder of a data set.
    pub list: PathBuf,
    /// The folder that media paths are relative to.
    pub media_root: PathBuf,
    /// The output folder.
    pub out: PathBuf,
    /// The recipe.
    pub recipe: CurationRecipe,
    /// What to do if OUT already holds a curation.
    pub existing: ExistingCuration,
    /// Whether earlier answers of other models or prompts are kept beside new answers.
    pub accept_changes: bool,
    /// The first stage that is started again; all later stages are started again too.
    pub redo: Option<StageName>,
    /// Whether rows that cannot be used are rejected, instead of being an error.
    pub skip_bad_rows: bool,
    /// Uses only the first rows.
    pub limit: Option<usize>,
    /// The prompts of the stages.
    pub prompts: BTreeMap<StageName, StagePrompt>,
    /// The frames of a video that models see.
    pub frames: FrameSettings,
    /// The way in which requests ask models for descriptions as JSON.
    pub response_format: ResponseFormat,
    /// The sampling seed, which requests carry if it is given.
    pub seed: Option<u64>,
    /// The thresholds of the filters.
    pub filters: FilterSettings,
    /// Whether the data set's rows keep media paths as the list gives them, relative to the media folder. If false,
    /// the paths are made absolute.
    pub keep_paths: bool,
    /// The fields of the data set's rows.
    pub layout: RowLayout,
    /// Decodes videos.
    pub decoder: DecodeWorker,
}

impl CurationOptions {
    /// Whether a stage starts from the beginning and discards its earlier answers.
    fn starts_again(&self, stage: StageName) -> bool {
        self.existing == ExistingCuration::Overwrite || self.redo.is_some_and(|first| stage >= first)
    }
}

/// The content of `curation.json`, for users and for `reel curate status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurationSettings {
    /// The version of reel.
    pub reel: String,
    /// The recipe.
    pub recipe: CurationRecipe,
    /// The list.
    pub list: PathBuf,
    /// The fingerprint of the list.
    pub list_fingerprint: String,
    /// The folder of the media.
    pub media_root: PathBuf,
    /// Number of rows.
    pub rows: usize,
    /// Number of usable rows, without duplicates.
    pub questions: usize,
    /// Number of distinct videos and images.
    pub media: usize,
    /// The frames of a video that models see.
    pub frames: FrameSettings,
    /// The thresholds of the filters.
    pub filters: FilterSettings,
    /// The prompt of each stage, keyed by the prompt's name in records.
    pub prompts: BTreeMap<String, StagePrompt>,
}

/// A curation whose folder is locked by this process.
#[derive(Debug)]
pub struct Curation {
    pub(crate) options: CurationOptions,
    pub(crate) rows: Vec<CurationRow>,
    /// For each key of a video or question, the index of its first row.
    pub(crate) first_rows: HashMap<String, usize>,
    pub(crate) tables: BTreeMap<StageName, StageTable>,
    list_fingerprint: String,
    hashes: MediaHashes,
    _lock: Option<FolderLock>,
}

impl Curation {
    /// Reads the list and the tables of earlier runs. With `is_dry`, nothing is locked or written.
    ///
    /// # Errors
    /// The list has a row that cannot be used; OUT holds a curation and the options say neither to resume nor to
    /// overwrite it; OUT is in use by another process, or has a damaged table.
    pub fn open(options: CurationOptions, is_dry: bool) -> Result<Self> {
        let out = &options.out;
        let lock = if is_dry { None } else { Some(lock(out)?) };
        refuse_existing(&options)?;
        let mut hashes = MediaHashes::open(out);
        let list_fingerprint = Table::open(&options.list)?.fingerprint();
        let mut rows = read_list(&options.list, &options.media_root, &mut hashes, options.skip_bad_rows)?;
        rows.truncate(options.limit.unwrap_or(usize::MAX));
        let mut first_rows = HashMap::new();
        for (i, row) in rows.iter().enumerate() {
            if let Ok(question) = &row.question {
                first_rows.entry(question.key.clone()).or_insert(i);
            }
        }
        let mut tables = BTreeMap::new();
        for &stage in options.recipe.stages() {
            let table = match options.starts_again(stage) {
                true => StageTable::empty(out, stage.name()),
                false => StageTable::open(out, stage.name())?,
            };
            tables.insert(stage, table);
        }
        Ok(Self { rows, first_rows, tables, list_fingerprint, hashes, _lock: lock, options })
    }

    /// The recipe.
    pub fn recipe(&self) -> CurationRecipe {
        self.options.recipe
    }

    /// The output folder.
    pub fn output_folder(&self) -> &Path {
        &self.options.out
    }

    /// Number of rows of the list.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Whether any question asks for a free-form answer. The chains of free-form questions are compared with the
    /// frames.
    pub fn has_free_form_rows(&self) -> bool {
        self.questions().any(|(_, question)| question.kind == reel_samples::rewards::ProblemType::FreeForm)
    }

    /// US dollars that earlier runs have spent, including requests that may have been charged when a run was killed.
    pub fn dollars_spent(&self) -> f64 {
        self.tables.values().map(StageTable::cost_in_dollars).sum()
    }

    /// The distinct usable questions, each with the index of its first row.
    pub(crate) fn questions(&self) -> impl Iterator<Item = (usize, &Question)> {
        let usable = self.rows.iter().enumerate().filter_map(|(i, row)| Some((i, row.question.as_ref().ok()?)));
        usable.filter(|(i, question)| self.first_rows.get(&question.key) == Some(i))
    }

    /// The keys of the list.
    pub(crate) fn list_keys(&self) -> ListKeys {
        let mut keys = ListKeys::default();
        self.questions().for_each(|(_, question)| keys.add(&question.media_key, &question.key));
        keys
    }

    /// The key under which the table of a stage holds the answer to a question.
    pub(crate) fn key_of(stage: StageName, question: &Question) -> &str {
        match stage {
            StageName::Caption => &question.media_key,
            StageName::Reason | StageName::Revise | StageName::Answer => &question.key,
        }
    }

    /// The accepted answer of a stage to a question.
    pub(crate) fn accepted_answer(&self, stage: StageName, question: &Question) -> Option<String> {
        let record = self.tables.get(&stage)?.get(Self::key_of(stage, question))?;
        record.output.filter(|_| record.status == RecordStatus::Ok)
    }

    /// The stage before the given stage; its answers are the input of the given stage.
    pub(crate) fn stage_before(&self, stage: StageName) -> Option<StageName> {
        let stages = self.options.recipe.stages();
        let at = stages.iter().position(|&own| own == stage)?;
        at.checked_sub(1).map(|before| stages[before])
    }

    /// The tasks of a stage: the videos or questions with an accepted answer in the previous stage, but without one
    /// in this stage. With `all`, also those without an accepted answer in the previous stage.
    pub fn pending_tasks(&self, stage: StageName, all: bool) -> Vec<StageTask> {
        let before = self.stage_before(stage);
        let mut seen = HashSet::new();
        let is_ready =
            |question: &Question| all || before.is_none_or(|before| self.accepted_answer(before, question).is_some());
        self.questions()
            .filter(|(_, question)| is_ready(question) && self.accepted_answer(stage, question).is_none())
            .filter(|(_, question)| seen.insert(Self::key_of(stage, question).to_string()))
            .map(|(row, question)| StageTask {
                key: Self::key_of(stage, question).into(),
                row,
                location: self.rows[row].location.clone(),
            })
            .collect()
    }

    /// The id of a stage's prompt in records. It contains a hash of the prompt and of all settings that change the
    /// request.
    pub fn prompt_id(&self, stage: StageName) -> String {
        let options = &self.options;
        let further = match stage {
            StageName::Reason => json!({}),
            StageName::Caption => json!({"frames": options.frames, "format": options.response_format}),
            StageName::Revise | StageName::Answer => json!({"frames": options.frames}),
        };
        options.prompts[&stage].id(stage, &further)
    }

    /// Returns an error if the stage's table has answers of another model or prompt. `accept_changes` turns this
    /// check off.
    pub fn check_model_and_prompt_unchanged(&self, stage: StageName, model: &str) -> Result<()> {
        let (prompt, mut changed) = (self.prompt_id(stage), None);
        if let Some(table) = self.tables.get(&stage).filter(|_| !self.options.accept_changes) {
            table.for_each(|record| {
                if record.status == RecordStatus::Ok && changed.is_none() {
                    let facts = [("the model", &record.model[..], model), ("the prompt", &record.prompt, &prompt)];
                    changed = facts
                        .into_iter()
                        .find(|(_, before, now)| before != now)
                        .map(|(fact, before, now)| format!("was made with {fact} {before}, but this run uses {now}"));
                }
            });
        }
        let Some(what) = changed else { return Ok(()) };
        let file = self.options.out.join(format!("{stage}.jsonl"));
        let help = format!(
            "give the former model and prompt, --redo {stage} to start the stage again, or --accept-changes to keep both kinds of answers"
        );
        Err(Error::failed(file.display().to_string(), what, help))
    }

    /// Writes `curation.json` and the hashes of the media, and removes the tables of stages that start again. It is
    /// called once, before the first stage.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare_output_folder(&self) -> Result<()> {
        let options = &self.options;
        for stage in StageName::ALL.into_iter().filter(|&stage| options.starts_again(stage)) {
            remove_tables(&options.out, stage)?;
        }
        self.hashes.save(&options.out)?;
        let list = self.list_keys();
        list.save(&options.out)?;
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let stages = options.recipe.stages();
        let settings = CurationSettings {
            reel: env!("CARGO_PKG_VERSION").into(),
            recipe: options.recipe,
            list: absolute(&options.list),
            list_fingerprint: self.list_fingerprint.clone(),
            media_root: absolute(&options.media_root),
            rows: self.rows.len(),
            questions: self.first_rows.len(),
            media: list.key_count(StageName::Caption),
            frames: options.frames,
            filters: options.filters,
            prompts: stages.iter().map(|&s| (self.prompt_id(s), options.prompts[&s].clone())).collect(),
        };
        write_json(&options.out.join(SETTINGS_FILE), &settings)
    }

    /// Returns the object that makes the requests of a stage.
    pub(crate) fn request_maker(&self, stage: StageName) -> RequestMaker<'_> {
        let options = &self.options;
        RequestMaker {
            stage,
            prompt: &options.prompts[&stage],
            frames: &options.frames,
            response_format: options.response_format,
            seed: options.seed,
            decoder: &options.decoder,
        }
    }

    /// Asks a model about all videos or questions that still need an answer in a stage. `progress` is called with the
    /// number of outcomes so far.
    pub fn run_stage(
        &self,
        stage: StageName,
        model: &dyn ChatModel,
        concurrency: usize,
        stop: &AtomicBool,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<StageEnd> {
        let Some(table) = self.tables.get(&stage) else { return Ok(StageEnd::Finished) };
        let maker = self.request_maker(stage);
        let before = self.stage_before(stage);
        let make_request = |task: &StageTask| {
            let question = self.rows[task.row].question.as_ref().map_err(String::clone)?;
            let output = before.and_then(|before| self.accepted_answer(before, question));
            maker.make_request(question, output.as_deref())
        };
        let id = self.prompt_id(stage);
        let run = StageRun { stage, model, prompt: &id, table, concurrency, stop, progress };
        let end = run.run(&self.pending_tasks(stage, false), &make_request, &|text| check_answer(stage, text));
        table.finish()?;
        end
    }
}

fn lock(out: &Path) -> Result<FolderLock> {
    let refuse = |what: String, help: &str| Error::failed(format!("--out {}", out.display()), what, help);
    FolderLock::acquire(out).map_err(|e| match e {
        LockError::InUse(holder) => {
            refuse(format!("is in use by {holder}"), "wait until that process ends, or give another folder")
        }
        LockError::Io(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::AlreadyExists) => {
            refuse("is a file, or has a file in place of a parent folder".into(), "give a folder")
        }
        LockError::Io(e) => cannot_write_curation(out, &e),
    })
}

/// Whether a curation that was killed before it had written `curation.json` can leave a file of this name.
fn is_written_before_settings(name: &str) -> bool {
    let is_unfinished = |file: &str| {
        name.strip_prefix('.').and_then(|rest| rest.strip_prefix(file)).is_some_and(|rest| rest.ends_with(".part"))
    };
    name == FOLDER_LOCK_FILE
        || [MEDIA_HASHES_FILE, LIST_KEYS_FILE].contains(&name)
        || [MEDIA_HASHES_FILE, LIST_KEYS_FILE, SETTINGS_FILE].into_iter().any(is_unfinished)
}

/// Refuses an output folder with files that do not belong to a curation. Refuses a folder with a curation if the
/// options say neither to resume nor to overwrite it, or if that curation has a different recipe.
fn refuse_existing(options: &CurationOptions) -> Result<()> {
    let out = &options.out;
    let has_files = match fs::read_dir(out) {
        Ok(entries) => entries.flatten().any(|entry| !is_written_before_settings(&entry.file_name().to_string_lossy())),
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(Error::cannot_read(out, &e)),
    };
    let is_curation = out.join(SETTINGS_FILE).exists();
    let location = format!("--out {}", out.display());
    if has_files && !is_curation {
        return Err(Error::failed(location, "has files that do not belong to a curation", "choose another folder"));
    }
    if is_curation && options.existing == ExistingCuration::Refuse {
        let help = "continue it with --resume, or start again with --overwrite";
        return Err(Error::failed(location, "has a curation", help));
    }
    if options.existing == ExistingCuration::Resume && is_curation {
        let before = read_settings(out)?;
        if before.recipe != options.recipe {
            let what = "has a curation with another --recipe";
            return Err(Error::failed(location, what, "give the recipe of that curation, or another --out"));
        }
    }
    Ok(())
}

/// Reads `curation.json` of a folder.
///
/// # Errors
/// The file is missing, or was not written by this version of reel.
pub fn read_settings(out: &Path) -> Result<CurationSettings> {
    let path = out.join(SETTINGS_FILE);
    let help = "give the --out of a curation of this version of reel";
    let text = reel_support::diagnostic::input::read_file(&path, reel_support::diagnostic::input::MAX_CONFIG_BYTES)
        .map_err(|e| Error::cannot_read(&path, &e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::failed(path.display().to_string(), format!("is damaged: {e}"), help))
}

fn remove_tables(out: &Path, stage: StageName) -> Result<()> {
    for extension in ["jsonl", "parquet"] {
        let path = out.join(format!("{stage}.{extension}"));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(cannot_write_curation(&path, &e)),
            _ => {}
        }
    }
    Ok(())
}
