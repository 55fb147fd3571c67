//! Makes a prompt for each row of a data file: the token ids and frames that a model reads.

use std::sync::Arc;

use reel_input::media_loading::LoadedMedia;
use reel_input::{Conversation, ModelFolder, ModelInput};
use reel_samples::Result;
use reel_samples::conversations::RowConversations;
use reel_samples::feed::SampleSource;
use reel_samples::rows::PromptContent;
use reel_samples::sample::{tokenize_conversation, tokenize_text_with_media};
use reel_train::rollout::tools::{CallContext, ToolSet, text_with_tools};
use serde_json::Value;

/// Makes the model input of each row of a data file.
#[derive(Debug)]
pub struct RowPrompts {
    rows: Arc<RowConversations>,
    bundle: Arc<ModelFolder>,
    tools: Option<ToolSet>,
}

impl RowPrompts {
    /// Makes prompts of rows for the model in `bundle`.
    pub fn new(rows: Arc<RowConversations>, bundle: Arc<ModelFolder>) -> Self {
        Self { rows, bundle, tools: None }
    }

    /// Describes tools in the prompts; the model may then call them.
    #[must_use]
    pub fn with_tools(self, tools: Option<ToolSet>) -> Self {
        Self { tools, ..self }
    }

    /// The tools that the model may call, if any.
    pub fn tools(&self) -> Option<&ToolSet> {
        self.tools.as_ref()
    }

    /// What tools know of the prompt of a row.
    ///
    /// # Errors
    /// The prompt is a text; a video is not a file; a field of the row is missing or wrong.
    pub(super) fn call_context(&self, row: usize) -> Result<CallContext> {
        let conversation = self.rows.conversation(row)?;
        let conversation = conversation.ok_or_else(|| text_with_tools(&self.rows.data().location(row)))?;
        let mut columns = self.rows.columns(row);
        columns.shift_remove("prompt");
        CallContext::new(&conversation, columns)
    }

    fn conversation(&self, row: usize, messages: Vec<Value>) -> Result<Conversation> {
        let conversation = self.rows.parse_conversation(row, messages)?;
        Ok(match &self.tools {
            Some(tools) => conversation.with_tools(tools.definitions().to_vec()),
            None => conversation,
        })
    }

    /// The rows.
    pub fn rows(&self) -> &RowConversations {
        &self.rows
    }

    /// Config, tokenizer and chat template of the model.
    pub fn model_folder(&self) -> &ModelFolder {
        &self.bundle
    }
}

impl SampleSource for RowPrompts {
    type Sample = ModelInput;

    fn row_count(&self) -> usize {
        self.rows.data().len()
    }

    fn sample(&self, row: usize) -> Result<ModelInput> {
        let (rows, bundle) = (&self.rows, &self.bundle);
        let location = rows.data().location(row);
        self.tools.as_ref().map_or(Ok(()), |_| self.call_context(row).map(drop))?;
        match rows.prompt_content(row)? {
            PromptContent::Chat(messages) => {
                let conversation = self.conversation(row, messages)?;
                let generation_prompt = !conversation.ends_with_assistant();
                tokenize_conversation(bundle, &conversation, generation_prompt, rows.media_options(), &location)
            }
            PromptContent::Text(text) => tokenize_text_with_media(bundle, &text, LoadedMedia::default(), &location),
        }
    }

    fn token_count(sample: &ModelInput) -> usize {
        sample.len()
    }

    fn location(&self, row: usize) -> (String, usize) {
        (self.rows.data().location(row), self.rows.data().line_number(row))
    }
}
