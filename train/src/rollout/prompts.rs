//! Rows that ask for completions, and files of completions that were made elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

use reel_model::config::ModelConfig;
use reel_model::input::encode::LoadedMedia;
use reel_model::input::{Bundle, Conversation, MediaOptions, ModelInput, SecondPerGrid};
use serde_json::{Map, Value};

use super::given::{RolloutFile, RolloutLine};
use super::scorer;
use crate::data::dataset::Dataset;
use crate::data::feed::SampleSource;
use crate::data::rows::PromptContent;
use crate::data::sample::{about_row, tokens_of, tokens_of_text};
use crate::options::Recipe;
use crate::run::DataSource;
use crate::run::grpo::GrpoSetup;
use crate::run_folder::digest;
use crate::{Result, TrainError};

/// A prompt, ready to be completed.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The row of the data file, counted from 0.
    pub row: usize,
    /// File and line, for messages.
    pub location: String,
    /// The model's inputs, P tokens.
    pub tokens: ModelInput,
    /// The chat that it is made of, or its text.
    pub asked: Value,
    /// The columns of the row that answers are judged by.
    pub columns: Map<String, Value>,
    /// Completions that are given.
    pub(crate) given: Option<RolloutLine>,
}

impl Prompt {
    /// Whether its completions are.
    pub(crate) fn is_given(&self) -> bool {
        self.given.is_some()
    }
}

/// Makes prompts of the rows of a data file, or of the lines of a file of completions.
#[derive(Debug)]
pub struct PromptSource {
    data: Dataset,
    bundle: Arc<Bundle>,
    media: MediaOptions,
    media_root: PathBuf,
    parity: Recipe,
    /// Whether the user brings a reward.
    own: bool,
    /// The lines that take the place of rows, where completions are given.
    given: Option<RolloutFile>,
}

impl PromptSource {
    /// Opens the data file of a run, and its completions if there are any.
    pub(crate) fn open(setup: &GrpoSetup) -> Result<Self> {
        let options = setup.options;
        let bundle = Arc::new(Bundle::open(setup.model)?);
        let data = Dataset::open(&options.data)?;
        let given = match &options.rollouts {
            Some(path) => Some(RolloutFile::open(path, options, data.len(), &bundle.config)?),
            None => None,
        };
        let second_per_grid = if options.parity == Recipe::Paper { SecondPerGrid::True } else { SecondPerGrid::One };
        Ok(Self {
            data,
            bundle,
            media: MediaOptions { second_per_grid, ..setup.media.clone() },
            media_root: options.media_root(),
            parity: options.parity,
            own: options.has_own_reward(),
            given,
        })
    }

    /// Ids of which any ends an answer.
    pub fn stop_ids(&self) -> &[u32] {
        self.bundle.stop_ids()
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.bundle.config
    }

    /// Rows of the data file.
    pub(crate) fn data_rows(&self) -> usize {
        self.data.len()
    }

    /// What the tokens of a completion say, control tokens left out.
    pub(crate) fn text(&self, ids: &[u32]) -> String {
        self.bundle.tokenizer.decode(ids, true)
    }

    /// What a row asks, and the columns that answers to it are judged by.
    fn asked(&self, row: usize) -> Result<(PromptContent, Map<String, Value>)> {
        let (asked, columns) = self.data.at(row, self.data.row(row)?.asked(self.parity))?;
        if self.given.is_none() {
            self.data.at(row, scorer::check(&columns, self.own))?;
        }
        Ok((asked, columns))
    }

    fn conversation(&self, location: &str, messages: &[Value]) -> Result<Conversation> {
        Conversation::from_value(location, &Value::Array(messages.to_vec()), &self.media_root)
            .map_err(|e| about_row(location, e))
    }

    /// Looks at the fields of a row of the data file.
    fn look_at(&self, row: usize) -> Result<()> {
        match self.asked(row)?.0 {
            PromptContent::Chat(messages) => self.conversation(&self.data.location(row), &messages).map(drop),
            PromptContent::Text(_) => Ok(()),
        }
    }

    /// The prompt of a row of the data file.
    pub(crate) fn prompt(&self, row: usize) -> Result<Prompt> {
        let location = self.data.location(row);
        let (asked, columns) = self.asked(row)?;
        let tokens = match &asked {
            PromptContent::Chat(messages) => {
                tokens_of(&self.bundle, &self.conversation(&location, messages)?, true, &self.media, &location)?
            }
            PromptContent::Text(text) => tokens_of_text(&self.bundle, text, LoadedMedia::default(), &location)?,
        };
        Ok(Prompt { row, location, tokens, asked: asked.into_value(), columns, given: None })
    }
}

impl SampleSource for PromptSource {
    type Sample = Prompt;

    fn rows(&self) -> usize {
        self.given.as_ref().map_or(self.data.len(), RolloutFile::len)
    }

    fn sample(&self, row: usize) -> Result<Prompt> {
        let Some(given) = &self.given else { return self.prompt(row) };
        let line = given.line(row);
        let mut prompt = self.prompt(line.row)?;
        line.check_ends(&given.location(row))?;
        prompt.given = Some(line.clone());
        Ok(prompt)
    }

    fn token_count(sample: &Prompt) -> usize {
        sample.tokens.len()
    }

    fn location(&self, row: usize) -> (String, usize) {
        match &self.given {
            Some(given) => (given.location(row), given.number(row)),
            None => (self.data.location(row), self.data.line(row)),
        }
    }
}

impl DataSource for PromptSource {
    fn hash(&self) -> String {
        match &self.given {
            Some(given) => digest::bytes(format!("{} {}", self.data.hash(), given.hash()).as_bytes()),
            None => self.data.hash(),
        }
    }

    fn validate_row(&self, row: usize) -> Result<()> {
        let Some(given) = &self.given else { return self.look_at(row) };
        let line = given.line(row);
        line.check_ends(&given.location(row))?;
        self.look_at(line.row)
    }
}

impl TrainError {
    /// A prompt whose completions have no token: nothing can be learned from it.
    pub(crate) fn nothing_said(location: &str) -> Self {
        Self::row(location, "has completions without any token", "give completions with at least an end token")
    }
}
