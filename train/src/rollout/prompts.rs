//! Makes the prompts of GRPO: turns the rows of a data file, or the rows that a `--rollouts` file names, into model
//! inputs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reel_input::config::ModelConfig;
use reel_input::expected_tokens::expected_tokens;
use reel_input::media_loading::LoadedMedia;
use reel_input::{Conversation, MediaOptions, ModelFolder, ModelInput, SecondPerGrid, TokenId};
use reel_samples::dataset::{DataFile, Dataset};
use reel_samples::feed::SampleSource;
use reel_samples::media_files::{ReadMediaFiles, local_files};
use reel_samples::order::mixture::Mixture;
use reel_samples::reward_columns::prepare_reward_columns;
use reel_samples::rewards::AnswerRules;
use reel_samples::rows::PromptContent;
use reel_samples::sample::{to_row_error, tokenize_conversation, tokenize_text_with_media};
use reel_samples::source::DataSource;
use reel_support::diagnostic::Diagnostic;
use reel_support::files::fingerprint::bytes_fingerprint;
use serde_json::{Map, Value};

use super::expected_lengths::ExpectedLengths;
use super::given::{RolloutFile, RolloutLine};
use super::offline::{offline_completions, offline_texts};
use super::reward_log::program_log;
use super::tools::{CallContext, ToolSet, text_with_tools};
use crate::error::{Error, Result};
use crate::options::{GrpoOptions, Recipe};
use crate::setup::DataSetup;

/// The tokens that end a completion.
#[derive(Clone, Debug, Default)]
pub struct EndTokens {
    /// `<|im_end|>`, the end-of-turn token. Tokens after the first `<|im_end|>` of a completion are not learned.
    pub turn: Option<TokenId>,
    /// The tokens at which sampling stops, usually including `<|im_end|>`.
    pub stop: Vec<TokenId>,
}

impl EndTokens {
    /// Whether sampling stopped after `ids` because the last token is an end token.
    pub fn are_reached(&self, ids: &[TokenId]) -> bool {
        ids.last().is_some_and(|id| self.stop.contains(id))
    }
}

/// A prompt as model inputs, with the data that the rewards of its completions need.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The row of the data file, counted from 0.
    pub row: usize,
    /// File and line of the row, for messages.
    pub location: String,
    /// The model's inputs, P tokens; no tokens if another process prepares this prompt.
    pub tokens: Arc<ModelInput>,
    /// The `prompt` of the row: chat messages or a text.
    pub content: Value,
    /// The other columns of the row. Rewards read them to score completions: `solution`, `problem_type`, …
    pub columns: Map<String, Value>,
    /// The line of the `--rollouts` file with this prompt's completions and rewards; `None` without such a file.
    pub given: Option<RolloutLine>,
}

impl Prompt {
    /// Makes a prompt that has only model inputs, without row, text and columns.
    pub fn from_model_input(tokens: ModelInput) -> Self {
        let (location, columns) = (String::new(), Map::new());
        Self { row: 0, location, tokens: Arc::new(tokens), content: Value::Null, columns, given: None }
    }

    /// Whether this process has the model's inputs of the prompt.
    pub fn is_prepared(&self) -> bool {
        !self.tokens.input_ids.is_empty()
    }

    /// Whether the completions come from a `--rollouts` file.
    pub fn has_given_completions(&self) -> bool {
        self.given.is_some()
    }
}

/// The data source of GRPO, which makes prompts from the rows of the data file. With `--rollouts`, it makes prompts
/// only from the rows that the lines of that file name.
#[derive(Debug)]
pub struct PromptSource {
    data: Dataset,
    bundle: Arc<ModelFolder>,
    media: MediaOptions,
    media_root: PathBuf,
    /// The media files read so far.
    files: ReadMediaFiles,
    parity: Recipe,
    /// Whether the options specify a reward command or a reward URL.
    custom_reward: bool,
    /// The rules that score answers, which may need columns of a row.
    answers: AnswerRules,
    /// The number of completions of a group, and the maximum tokens of one.
    completion_limits: (usize, usize),
    /// The `--rollouts` file. If it is given, the run goes through the lines of this file instead of the data rows.
    given: Option<RolloutFile>,
    lengths: Mutex<ExpectedLengths>,
    /// The tools that the model may call.
    tools: Option<ToolSet>,
}

impl PromptSource {
    /// Opens the data file of a run and its `--rollouts` file, if any.
    pub fn open(options: &GrpoOptions, setup: &DataSetup) -> Result<Self> {
        let bundle = Arc::new(ModelFolder::open(setup.model)?);
        let data = Dataset::open_first_rows(&options.data, options.max_samples)?;
        if options.rollouts.is_some() {
            data.refuse_weights()?;
        }
        let given = match &options.rollouts {
            Some(path) => Some(RolloutFile::open(path, options, data.len(), &bundle.config)?),
            None => None,
        };
        let second_per_grid = if options.parity.follows_papers() { SecondPerGrid::True } else { SecondPerGrid::One };
        let media = MediaOptions { second_per_grid, ..setup.media.clone() };
        let log = program_log(&options.out, None, false);
        let tools = options.tool.are_given().then(|| ToolSet::open(&options.tool, &media, &log)).transpose()?;
        Ok(Self {
            data,
            bundle,
            media,
            tools,
            media_root: options.media_root(),
            files: ReadMediaFiles::default(),
            parity: options.parity,
            custom_reward: options.has_custom_reward(),
            answers: options.answer_rules(),
            completion_limits: (options.num_generations, options.max_completion_length),
            given,
            lengths: Mutex::new(ExpectedLengths::default()),
        })
    }

    /// The tokens that end a completion.
    pub fn end_tokens(&self) -> EndTokens {
        EndTokens { turn: self.bundle.tokenizer.token_to_id("<|im_end|>"), stop: self.bundle.stop_token_ids().to_vec() }
    }

    /// The tokens of the offline answers of a prompt's row ([`offline_completions`]).
    ///
    /// # Errors
    /// The answers cannot be used; the row is then refused when its prompt is made.
    pub fn offline_completions(&self, prompt: &Prompt) -> Result<Vec<Vec<TokenId>>, Diagnostic> {
        let (ids, end) = (&prompt.tokens.input_ids, self.end_tokens().turn);
        offline_completions(&prompt.columns, &self.bundle, ids, end, self.completion_limits)
    }

    /// The tools that the model may call, if any.
    pub fn tools(&self) -> Option<&ToolSet> {
        self.tools.as_ref()
    }

    /// What tools know of a prompt.
    ///
    /// # Errors
    /// A video of the prompt is not a file, so no tool can show parts of it.
    pub fn tool_context(&self, prompt: &Prompt) -> Result<CallContext> {
        let messages = prompt.content.as_array().map_or(&[][..], Vec::as_slice);
        let conversation = self.conversation(&prompt.location, messages)?;
        CallContext::new(&conversation, prompt.columns.clone())
    }

    /// The config of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.bundle.config
    }

    /// Config, tokenizer and chat template of the model.
    pub fn bundle(&self) -> &ModelFolder {
        &self.bundle
    }

    /// Number of rows of the data file.
    pub fn data_row_count(&self) -> usize {
        self.data.len()
    }

    /// Decodes the tokens of a completion of `prompt`, without special tokens. A thought that the prompt has begun is
    /// part of the text, so rewards see both of its tags.
    pub fn decode_completion(&self, prompt: &ModelInput, ids: &[u32]) -> String {
        self.bundle.begun_thought(&prompt.input_ids).to_string() + &self.bundle.tokenizer.decode(ids, true)
    }

    /// Returns the prompt of a row, and the columns that the rewards of its completions need. Checks these columns
    /// unless a `--rollouts` file gives the rewards.
    fn content_and_columns(&self, row: usize) -> Result<(PromptContent, Map<String, Value>), Error> {
        let (content, mut columns) =
            self.data.add_location_to_error(row, self.data.row(row)?.prompt_and_columns(self.parity))?;
        if self.given.is_none() {
            let checked = prepare_reward_columns(&mut columns, self.custom_reward, self.answers);
            let checked = checked.and_then(|()| offline_texts(&columns).map(drop));
            self.data.add_location_to_error(row, checked)?;
        }
        Ok((content, columns))
    }

    fn conversation(&self, location: &str, messages: &[Value]) -> Result<Conversation, Error> {
        let template = Some(self.bundle.template.template_text());
        let conversation =
            Conversation::from_row(location, &Value::Array(messages.to_vec()), &self.media_root, template)
                .map_err(|e| to_row_error(location, e))?;
        Ok(match &self.tools {
            Some(tools) => conversation.with_tools(tools.definitions().to_vec()),
            None => conversation,
        })
    }

    /// Checks the fields of a row of the data file, without loading media.
    fn validate_data_row(&self, row: usize) -> Result<(), Error> {
        match self.content_and_columns(row)?.0 {
            PromptContent::Chat(messages) => {
                let conversation = self.conversation(&self.data.location(row), &messages)?;
                self.tools.as_ref().map_or(Ok(()), |_| CallContext::new(&conversation, Map::new()).map(drop))
            }
            PromptContent::Text(_) => match self.tools {
                Some(_) => Err(text_with_tools(&self.data.location(row))),
                None => Ok(()),
            },
        }
    }

    fn lengths(&self) -> MutexGuard<'_, ExpectedLengths> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The expected number of tokens of the prompt of row `row` of the data file: the number in an earlier rollout,
    /// else an estimate from [`expected_tokens`].
    pub fn expected_prompt_length(&self, row: usize) -> u64 {
        if let Some(tokens) = self.lengths().prompt_tokens(row) {
            return tokens;
        }
        let tokens = match self.content_and_columns(row) {
            Ok((PromptContent::Chat(messages), _)) => self
                .conversation(&self.data.location(row), &messages)
                .map_or(0, |conversation| expected_tokens(&conversation, &self.media, self.bundle.config.family())),
            Ok((PromptContent::Text(text), _)) => text.len().div_ceil(4) as u64,
            Err(_) => 0, // A row that cannot be used.
        };
        self.lengths().set_estimated_prompt_tokens(row, tokens);
        tokens
    }

    /// Records the numbers of tokens of a prompt and of all its completions together, from which
    /// [`SampleSource::expected_length`] predicts the row's length in later epochs. All ranks record the same numbers.
    pub fn record_lengths(&self, row: usize, prompt: usize, completions: usize) {
        self.lengths().record_rollout(row, prompt as u64, completions as u64);
    }

    /// Makes the prompt of row `index` without model inputs, for a row that another process prepares.
    ///
    /// # Errors
    /// The row is malformed.
    pub fn unprepared_prompt(&self, index: usize) -> Result<Prompt, Error> {
        let Some(given) = &self.given else { return self.unprepared_prompt_of_row(index) };
        let line = given.line(index);
        Ok(Prompt { given: Some(line.clone()), ..self.unprepared_prompt_of_row(line.row)? })
    }

    /// Makes the prompt of row `row` of the data file without model inputs.
    ///
    /// # Errors
    /// The row is malformed.
    pub fn unprepared_prompt_of_row(&self, row: usize) -> Result<Prompt, Error> {
        let (content, columns) = self.content_and_columns(row)?;
        let (location, content) = (self.data.location(row), content.into_json());
        Ok(Prompt { row, location, content, columns, given: None, tokens: Arc::default() })
    }

    /// Makes the prompt of row `row` of the data file: tokenizes its text and loads its media.
    pub fn prompt(&self, row: usize) -> Result<Prompt, Error> {
        let location = self.data.location(row);
        let (content, columns) = self.content_and_columns(row)?;
        let tokens = match &content {
            PromptContent::Chat(messages) => {
                let conversation = self.conversation(&location, messages)?;
                self.files.load_with_retry(&conversation, &self.media_root, || {
                    tokenize_conversation(&self.bundle, &conversation, true, &self.media, &location)
                })?
            }
            PromptContent::Text(_) if self.tools.is_some() => return Err(text_with_tools(&location)),
            PromptContent::Text(text) => {
                tokenize_text_with_media(&self.bundle, text, LoadedMedia::default(), &location)?
            }
        };
        let (tokens, content) = (Arc::new(tokens), content.into_json());
        let prompt = Prompt { row, location, tokens, content, columns, given: None };
        if self.given.is_none() {
            self.data.add_location_to_error(row, self.offline_completions(&prompt).map(drop))?;
        }
        Ok(prompt)
    }
}

impl SampleSource for PromptSource {
    type Sample = Prompt;

    fn row_count(&self) -> usize {
        self.given.as_ref().map_or(self.data.len(), RolloutFile::group_count)
    }

    fn sample(&self, row: usize) -> Result<Prompt, Error> {
        let Some(given) = &self.given else { return self.prompt(row) };
        let line = given.line(row);
        let mut prompt = self.prompt(line.row)?;
        line.check_not_empty(&given.location(row))?;
        prompt.given = Some(line.clone());
        Ok(prompt)
    }

    fn token_count(sample: &Prompt) -> usize {
        sample.tokens.len()
    }

    fn location(&self, row: usize) -> (String, usize) {
        match &self.given {
            Some(given) => (given.location(row), given.line_number(row)),
            None => (self.data.location(row), self.data.line_number(row)),
        }
    }

    /// The expected number of tokens of a group: its prompt and all its completions. The tokens of given completions
    /// (`--rollouts`) are counted. Completions that will be sampled are assumed to be as long as those of the row's
    /// last rollout, else as the mean of all rollouts so far.
    fn expected_length(&self, row: usize) -> u64 {
        match &self.given {
            Some(given) => {
                let line = given.line(row);
                let completions = line.completions.iter().map(|ids| ids.len() as u64).sum::<u64>();
                self.expected_prompt_length(line.row) + completions
            }
            None => self.expected_prompt_length(row) + self.lengths().completion_tokens(row),
        }
    }
}

impl DataSource for PromptSource {
    fn fingerprint(&self) -> String {
        match &self.given {
            Some(given) => bytes_fingerprint(format!("{} {}", self.data.fingerprint(), given.fingerprint()).as_bytes()),
            None => self.data.fingerprint(),
        }
    }

    fn files(&self) -> &[DataFile] {
        self.data.files()
    }

    fn mixture(&self) -> Option<&Mixture> {
        self.data.mixture()
    }

    fn validate_row(&self, row: usize) -> Result<(), Error> {
        let Some(given) = &self.given else { return self.validate_data_row(row) };
        let line = given.line(row);
        line.check_not_empty(&given.location(row))?;
        self.validate_data_row(line.row)
    }

    fn media_files(&self, row: usize) -> Result<Vec<PathBuf>, Error> {
        let row = self.given.as_ref().map_or(row, |given| given.line(row).row);
        let PromptContent::Chat(messages) = self.content_and_columns(row)?.0 else { return Ok(Vec::new()) };
        let conversation = self.conversation(&self.data.location(row), &messages)?;
        Ok(local_files(&conversation).into_iter().map(Path::to_path_buf).collect())
    }
}
