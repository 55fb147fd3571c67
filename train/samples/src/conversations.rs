//! Turns the rows of a data file into conversations, with a random seed for each row.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::prompts::QuestionTemplate;
use crate::rewards::Recipe;
use reel_input::{Conversation, MediaOptions, SecondPerGrid};
use reel_support::philox::philox4x32_10;
use serde_json::{Map, Value};
use twox_hash::XxHash3_64;

use crate::dataset::Dataset;
use crate::rows::{DataRow, PromptContent};
use crate::sample::to_row_error;

/// The stream of random numbers that predictions use ("pred" in ASCII). It separates them from other uses of the
/// seed.
const STREAM: u32 = 0x7072_6564;

/// The columns that a prediction adds to its row. They replace columns of the same names, so that a predictions file
/// can be the data of another run.
pub const RESULT_COLUMNS: [&str; 5] = ["output", "outputs", "tool_calls", "generation", "error"];

/// The rows of a data file, with the media options, question template and seeds that turn a row into a conversation.
#[derive(Debug)]
pub struct RowConversations {
    data: Dataset,
    media: MediaOptions,
    media_root: PathBuf,
    recipe: Recipe,
    template: QuestionTemplate,
    seeds: Vec<u64>,
}

/// The rows whose fields are wrong, found without opening their media.
#[derive(Debug, Default)]
pub struct UnusableRows {
    /// The number of rows with wrong fields.
    pub count: usize,
    /// The error of the first row whose fields are wrong.
    pub first: Option<Error>,
}

impl RowConversations {
    /// Makes conversations of the rows in `data`. For a row with VideoRFT's fields (`problem`, …), `recipe` and
    /// `template` select the text around the question. Relative media paths are relative to `media_root`. `seed` is
    /// the seed of the run.
    pub fn new(
        data: Dataset,
        media: MediaOptions,
        media_root: &Path,
        (recipe, template): (Recipe, QuestionTemplate),
        seed: u64,
    ) -> Self {
        let seeds = row_seeds(&data, seed);
        // The training code of VideoRFT and Video-R1 computes M-RoPE positions with one second between frame pairs,
        // regardless of the true time, in its rollouts as well.
        let true_times = template == QuestionTemplate::Evaluation || recipe.follows_papers();
        let second_per_grid = if true_times { SecondPerGrid::True } else { SecondPerGrid::One };
        let media = MediaOptions { second_per_grid, ..media };
        Self { data, media, media_root: media_root.to_path_buf(), recipe, template, seeds }
    }

    /// The rows of the data file.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// How images and videos are loaded.
    pub fn media_options(&self) -> &MediaOptions {
        &self.media
    }

    /// The columns of a row, except the columns of an earlier prediction; empty if the row is not a JSON object.
    pub fn columns(&self, row: usize) -> Map<String, Value> {
        columns(&self.data, row)
    }

    /// Returns the seed of a row's first completion. The seed depends on the run's seed and the row's columns; two
    /// equal rows get different seeds. The seed is below 2^53, so that every JSON parser reads it exactly.
    pub fn seed(&self, row: usize) -> u64 {
        self.seeds[row]
    }

    /// Checks the fields of all rows, without opening media.
    pub fn find_unusable_rows(&self) -> UnusableRows {
        let mut found = UnusableRows::default();
        for error in (0..self.data.len()).filter_map(|row| self.conversation(row).err()) {
            found.count += 1;
            found.first.get_or_insert(error);
        }
        found
    }

    /// The conversation of a row; `None` for a row whose prompt is a text.
    ///
    /// # Errors
    /// A field of the row is missing or wrong.
    pub fn conversation(&self, row: usize) -> Result<Option<Conversation>> {
        match self.prompt_content(row)? {
            PromptContent::Chat(messages) => self.parse_conversation(row, messages).map(Some),
            PromptContent::Text(_) => Ok(None),
        }
    }

    /// The prompt of a row: messages or a text.
    ///
    /// # Errors
    /// A field of the row is missing or wrong.
    pub fn prompt_content(&self, row: usize) -> Result<PromptContent> {
        let mut value = self.data.value(row)?;
        if let Value::Object(columns) = &mut value {
            remove_prediction_columns(columns);
        }
        let content = DataRow::parse(value).and_then(|row| row.generation_prompt(self.recipe, self.template));
        self.data.add_location_to_error(row, content)
    }

    /// Parses the messages of a row. The keys of content parts must be known. The keys of messages are not checked,
    /// because the chat template is not known here.
    ///
    /// # Errors
    /// A message is malformed.
    pub fn parse_conversation(&self, row: usize, messages: Vec<Value>) -> Result<Conversation> {
        let location = self.data.location(row);
        Conversation::from_row(&location, &Value::Array(messages), &self.media_root, None)
            .map_err(|e| to_row_error(&location, e))
    }
}

/// Removes the columns of an earlier prediction from a row.
pub fn remove_prediction_columns(columns: &mut Map<String, Value>) {
    RESULT_COLUMNS.iter().for_each(|name| drop(columns.shift_remove(*name)));
}

/// The columns of a row, except the columns of an earlier prediction; empty if the row is not a JSON object.
fn columns(data: &Dataset, row: usize) -> Map<String, Value> {
    let Ok(Value::Object(mut columns)) = data.value(row) else { return Map::new() };
    remove_prediction_columns(&mut columns);
    columns
}

/// The seed of each row: a random number that depends on the run's seed, the row's columns, and the number of equal
/// rows before it.
fn row_seeds(data: &Dataset, seed: u64) -> Vec<u64> {
    let mut seen: HashMap<u64, u32> = HashMap::new();
    let row_seed = |row| {
        let text = Value::Object(columns(data, row)).to_string();
        let hash = XxHash3_64::oneshot(text.as_bytes());
        let repeats = seen.entry(hash).or_default();
        let counter = [hash as u32, (hash >> 32) as u32, *repeats, STREAM];
        *repeats += 1;
        let [a, b, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
        (u64::from(a) | u64::from(b) << 32) >> 11
    };
    (0..data.len()).map(row_seed).collect()
}
