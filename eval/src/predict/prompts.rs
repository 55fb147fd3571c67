//! Makes a prompt for each row of a data file: the token ids and frames that a model reads.

use std::sync::Arc;

use reel_input::media_loading::LoadedMedia;
use reel_input::{ModelFolder, ModelInput};
use reel_samples::Result;
use reel_samples::conversations::RowConversations;
use reel_samples::feed::SampleSource;
use reel_samples::rows::PromptContent;
use reel_samples::sample::{tokenize_conversation, tokenize_text_with_media};

/// Makes the model input of each row of a data file.
#[derive(Debug)]
pub struct RowPrompts {
    rows: Arc<RowConversations>,
    bundle: Arc<ModelFolder>,
}

impl RowPrompts {
    /// Makes prompts of rows for the model in `bundle`.
    pub fn new(rows: Arc<RowConversations>, bundle: Arc<ModelFolder>) -> Self {
        Self { rows, bundle }
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
        match rows.prompt_content(row)? {
            PromptContent::Chat(messages) => {
                let conversation = rows.parse_conversation(row, messages)?;
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
