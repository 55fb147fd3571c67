//! Inspects a data file without training: finds out which rows cannot be used and why, and counts what the rows hold.
//! `reel data check` and `reel data stats` print the result.

mod media;
mod stats;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::rewards::{AnswerRules, Recipe};
use clap::ValueEnum;
use rayon::prelude::*;
use reel_input::chat::CHAT_TEMPLATE;
use reel_input::config::Family;
use reel_input::encode::ModelFolder;
use reel_input::media_loading::MediaOptions;
use reel_input::{Conversation, messages::ContentPart};
use reel_support::files::fingerprint::bytes_fingerprint;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::dataset::Dataset;
use crate::reward_columns::prepare_reward_columns;
use crate::rows::layouts::ConversationLayout;
use crate::rows::{DataRow, PromptContent, SupervisedRow};
use crate::sample::{nothing_to_learn_error, to_row_error, tokenize_conversation, tokenize_text_with_media};
use crate::turn_marks::refuse_turn_marks;

pub use media::{MediaInspector, MediaProperties};
pub use stats::{DataStats, Distribution, UsableRowCount};

/// A command that trains on rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TrainingCommand {
    /// `reel sft`.
    Sft,
    /// `reel grpo`.
    Grpo,
}

impl TrainingCommand {
    const ALL: [Self; 2] = [Self::Sft, Self::Grpo];

    /// The command as it is typed in a shell.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "reel sft",
            Self::Grpo => "reel grpo",
        }
    }
}

/// The kind of problem of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The row is not JSON, or a field is missing or wrong.
    Malformed,
    /// A file that the row names does not exist.
    MissingMedia,
    /// An image or a video cannot be decoded.
    UnusableMedia,
    /// The row cannot be tokenized for the model.
    Tokens,
    /// The row has no answer: no text to train on, and no solution to compare a completion with.
    NoAnswer,
    /// An earlier row has the same fields.
    Duplicate,
}

impl ProblemKind {
    /// All kinds of problems, the most severe first.
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::MissingMedia, Self::UnusableMedia, Self::Tokens, Self::NoAnswer, Self::Duplicate];

    /// The name of this kind of problem in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::MissingMedia => "missing media",
            Self::UnusableMedia => "media that cannot be decoded",
            Self::Tokens => "no tokens for this model",
            Self::NoAnswer => "no answer",
            Self::Duplicate => "equal to an earlier row",
        }
    }

    /// Whether no command can use a row with this problem. A row with another kind of problem may still be usable,
    /// for example for generating answers.
    pub fn is_unusable(self) -> bool {
        !matches!(self, Self::NoAnswer | Self::Duplicate)
    }
}

/// A row with a problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowProblem {
    /// The row, counted from 0 over all files.
    pub row: usize,
    /// The kind of the problem.
    pub kind: ProblemKind,
    /// The error message: file, line, field, the reason, and what the user can do.
    pub message: String,
}

/// The settings of an inspection of a data file.
#[derive(Debug)]
pub struct DataInspection<'a> {
    /// The folder that media paths are relative to.
    pub media_root: &'a Path,
    /// The command that the rows are for. If it is `None`, a row is usable if any command can use the row.
    pub command: Option<TrainingCommand>,
    /// The recipe whose prompt templates are used.
    pub recipe: Recipe,
    /// Frame and pixel limits, and the decoder.
    pub media: &'a MediaOptions,
    /// Whether images and videos are decoded; otherwise only their existence is checked.
    pub decodes: bool,
    /// The model whose tokenizer counts the tokens of a row; `None` if tokens are not counted.
    pub bundle: Option<&'a ModelFolder>,
}

/// The result of inspecting one row.
#[derive(Debug, Default)]
pub(super) struct InspectedRow {
    /// The layout of the row, named by its main field such as `messages`; `None` if the row is malformed.
    layout: Option<&'static str>,
    /// Name and value of those columns whose values are counted: `data_type`, `problem_type`, `source`.
    labels: Vec<(&'static str, String)>,
    content: Option<RowContent>,
    /// The commands that cannot use the row, with the reason.
    refusals: Vec<(TrainingCommand, String)>,
    /// Number of tokens, vision tokens included.
    tokens: Option<usize>,
    problems: Vec<(ProblemKind, Error)>,
    hash: String,
}

/// The part of a row that a command tokenizes.
#[derive(Debug)]
enum RowContent {
    Conversation(Conversation),
    /// A text that is used without the chat template.
    Text(String),
}

impl RowContent {
    fn conversation(&self) -> Option<&Conversation> {
        match self {
            Self::Conversation(conversation) => Some(conversation),
            Self::Text(_) => None,
        }
    }
}

/// Names of the columns for which the inspection counts how many rows have each value.
const COUNTED: [&str; 3] = ["data_type", "problem_type", "source"];

impl DataInspection<'_> {
    /// Inspects all rows of `data` and returns their statistics and problems.
    ///
    /// # Errors
    /// An error that does not concern a single row, such as a decoder that cannot be started.
    pub fn run(&self, data: &Dataset) -> Result<DataStats> {
        let mut rows: Vec<InspectedRow> =
            (0..data.len()).into_par_iter().map(|row| self.fields(data, row)).collect::<Result<_>>()?;
        let mut seen = HashSet::new();
        for (row, facts) in rows.iter_mut().enumerate() {
            if facts.layout.is_some() && !seen.insert(facts.hash.clone()) {
                let e = Error::row(data.location(row), "is equal to an earlier row", "remove one of the two");
                facts.problems.push((ProblemKind::Duplicate, e));
            }
        }
        let media = self.media_of(data, &mut rows)?;
        if let Some(bundle) = self.bundle {
            let counted: Vec<Option<Result<usize>>> =
                rows.par_iter().enumerate().map(|(row, facts)| self.tokens(bundle, data, row, facts)).collect();
            for (facts, counted) in rows.iter_mut().zip(counted) {
                match counted {
                    Some(Ok(tokens)) => facts.tokens = Some(tokens),
                    Some(Err(e)) => facts.problems.push((ProblemKind::Tokens, usable_row_error(e)?)),
                    None => {}
                }
            }
        }
        Ok(DataStats::new(data, &rows, media, self.commands()))
    }

    /// The commands for which the inspection checks whether they can use the rows.
    fn commands(&self) -> &[TrainingCommand] {
        self.command.as_ref().map_or(&TrainingCommand::ALL, std::slice::from_ref)
    }

    /// Parses the fields of a row as training would.
    fn fields(&self, data: &Dataset, row: usize) -> Result<InspectedRow> {
        let mut facts = InspectedRow::default();
        let malformed = |e| (ProblemKind::Malformed, e);
        let value = match data.value(row) {
            Ok(value) => value,
            Err(e) => {
                facts.problems.push(malformed(usable_row_error(e)?));
                return Ok(facts);
            }
        };
        facts.hash = bytes_fingerprint(value.to_string().as_bytes());
        let columns = value.as_object().cloned().unwrap_or_default();
        let label = |name: &&'static str| Some((*name, columns.get(*name)?.as_str()?.to_string()));
        facts.labels = COUNTED.iter().filter_map(label).collect();
        match data.add_location_to_error(row, DataRow::parse(value)) {
            Err(e) => facts.problems.push(malformed(e)),
            Ok(parsed) => {
                facts.layout = ConversationLayout::detect(&columns).map(ConversationLayout::field);
                let mut refusals = Vec::new();
                for &command in self.commands() {
                    match self.content(command, data, row, &parsed) {
                        Ok(content) => drop(facts.content.get_or_insert(content)),
                        Err(e) => refusals.push((command, usable_row_error(e)?)),
                    }
                }
                facts.refusals = refusals.iter().map(|(command, e)| (*command, e.to_string())).collect();
                match (&facts.content, refusals.into_iter().next()) {
                    (None, Some((_, e))) => facts.problems.push(malformed(e)),
                    _ => facts.problems.extend(self.missing_answer(data, row, &parsed, &columns)),
                }
            }
        }
        Ok(facts)
    }

    /// Returns what a command tokenizes: for `reel sft` the conversation to train on, for `reel grpo` the prompt.
    ///
    /// # Errors
    /// The reason why the command does not use the row.
    fn content(&self, command: TrainingCommand, data: &Dataset, row: usize, parsed: &DataRow) -> Result<RowContent> {
        let location = data.location(row);
        let (messages, tools) = match command {
            TrainingCommand::Sft => match data.add_location_to_error(row, parsed.to_supervised_row(self.recipe))? {
                SupervisedRow::Chat { learned, .. } if !learned.contains(&true) => {
                    return Err(nothing_to_learn_error(location));
                }
                SupervisedRow::Chat { messages, tools, .. } => (messages, tools),
                SupervisedRow::Text { prompt, completion } => return Ok(RowContent::Text(prompt + &completion)),
            },
            TrainingCommand::Grpo => {
                let (content, mut columns) = data.add_location_to_error(row, parsed.prompt_and_columns(self.recipe))?;
                data.add_location_to_error(row, prepare_reward_columns(&mut columns, true, AnswerRules::default()))?;
                match content {
                    PromptContent::Chat(messages) => (messages, Value::Null),
                    PromptContent::Text(text) => return Ok(RowContent::Text(text)),
                }
            }
        };
        // Without a model, the template of the published models is assumed.
        let template = self.bundle.map_or(CHAT_TEMPLATE, |bundle| bundle.template.template_text());
        let read = Conversation::from_row(&location, &Value::Array(messages), self.media_root, Some(template));
        let read = read.and_then(|conversation| conversation.with_tools_column(tools));
        let mut conversation = read.map_err(|e| to_row_error(&location, e))?;
        if command == TrainingCommand::Sft {
            refuse_turn_marks(&location, &mut conversation)?;
        }
        Ok(RowContent::Conversation(conversation))
    }

    /// Returns the problem of a row without an answer. For `reel grpo` this is the error that the command would report
    /// if the user gave no custom reward.
    fn missing_answer(
        &self,
        data: &Dataset,
        row: usize,
        parsed: &DataRow,
        columns: &Map<String, Value>,
    ) -> Option<(ProblemKind, Error)> {
        let missing = match self.command {
            Some(TrainingCommand::Grpo) => {
                let mut columns = columns.clone();
                data.add_location_to_error(row, prepare_reward_columns(&mut columns, false, AnswerRules::default())).err()
            }
            _ => (!has_answer(parsed, columns)).then(|| {
                let help = "add the answer, use a custom reward (--reward-command or --reward-url), or use the row only with reel generate";
                Error::row(data.location(row), "has no answer", help)
            }),
        };
        missing.map(|e| (ProblemKind::NoAnswer, e))
    }

    /// Inspects the images and videos of all rows, each file once, and adds the problems found to the rows.
    fn media_of(&self, data: &Dataset, rows: &mut [InspectedRow]) -> Result<Vec<MediaProperties>> {
        let family = self.bundle.map_or_else(Family::default, |bundle| bundle.config.family());
        let inspector = MediaInspector { options: self.media, decodes: self.decodes, family };
        let mut parts: Vec<&ContentPart> = Vec::new();
        let mut index_of: HashMap<String, usize> = HashMap::new();
        let mut uses: Vec<(usize, usize, String)> = Vec::new();
        for (row, facts) in rows.iter().enumerate() {
            let conversation = facts.content.as_ref().and_then(RowContent::conversation);
            for part in conversation.into_iter().flat_map(Conversation::media_parts) {
                let (key, location) = media::key_and_location(part);
                let index = *index_of.entry(key).or_insert_with(|| {
                    parts.push(part);
                    parts.len() - 1
                });
                uses.push((row, index, location.to_string()));
            }
        }
        let looked: Vec<Result<MediaProperties, media::MediaFault>> =
            parts.into_par_iter().map(|part| inspector.inspect(part)).collect::<Result<_>>()?;
        for (row, index, location) in uses {
            if let Err(fault) = &looked[index] {
                let kind = if fault.is_missing { ProblemKind::MissingMedia } else { ProblemKind::UnusableMedia };
                let place = if location.starts_with(&data.location(row)) { location } else { data.location(row) };
                let e = Kind::Row(RowFailureKind::Row).error(fault.diagnostic.clone().at(place));
                rows[row].problems.push((kind, e));
            }
        }
        Ok(looked.into_iter().flatten().collect())
    }

    /// Counts the tokens of a row; `None` if the row is already known to be unusable.
    fn tokens(&self, bundle: &ModelFolder, data: &Dataset, row: usize, facts: &InspectedRow) -> Option<Result<usize>> {
        if facts.layout.is_none() || facts.problems.iter().any(|(kind, _)| kind.is_unusable()) {
            return None;
        }
        let location = data.location(row);
        let tokens = match facts.content.as_ref()? {
            RowContent::Conversation(conversation) => {
                let generation_prompt = !conversation.ends_with_assistant();
                tokenize_conversation(bundle, conversation, generation_prompt, self.media, &location)
            }
            RowContent::Text(text) => tokenize_text_with_media(bundle, text, Default::default(), &location),
        };
        Some(tokens.map(|tokens| tokens.len()))
    }
}

/// Returns an error that concerns a single row as `Ok`. Returns any other error as `Err`, which ends the inspection.
fn usable_row_error(e: Error) -> Result<Error> {
    if crate::feed::is_row_error(&e) { Ok(e) } else { Err(e) }
}

/// Whether a row has an answer: a completion, a last chat message of the assistant, or the column `solution` or
/// `answer`.
fn has_answer(row: &DataRow, columns: &Map<String, Value>) -> bool {
    let is_text = |name: &str| match columns.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(_) => true,
    };
    let is_last = |messages: &[Value]| messages.last().is_some_and(|message| message["role"] == "assistant");
    match row {
        DataRow::Completion { .. } => true,
        DataRow::Chat { messages, .. } if is_last(messages) => true,
        _ => is_text("solution") || is_text("answer"),
    }
}

/// Maps a text to the number of its occurrences.
pub type Counts = BTreeMap<String, usize>;
