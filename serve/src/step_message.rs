//! The message that rank 0 of a divided model sends to the other ranks before each step of the engine, so that all
//! ranks do the same step.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use reel_engine::AdapterId;
use reel_input::ModelInput;
use reel_input::TokenId;
use reel_input::request::RequestSettings;

use crate::prompt_bytes::{ByteReader, ByteWriter};

/// A change before a step.
#[derive(Debug, PartialEq)]
pub(crate) enum StepChange {
    /// A new request.
    Generate(Box<NewRequest>),
    /// The weights are replaced by those in this folder.
    ReplaceWeights(PathBuf),
    /// The adapter in this folder is loaded.
    LoadAdapter(PathBuf),
    /// An adapter is unloaded.
    UnloadAdapter(AdapterId),
}

/// A request with everything that the engine needs. `settings` has the request's grammar.
#[derive(Debug, PartialEq)]
pub(crate) struct NewRequest {
    pub(crate) prompt: ModelInput,
    pub(crate) settings: RequestSettings,
    pub(crate) adapter: Option<AdapterId>,
}

/// What happens before a step.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct StepMessage {
    /// The changes, in order.
    pub(crate) changes: Vec<StepChange>,
    /// The numbers of the requests that are dropped after the changes have been applied.
    pub(crate) dropped: Vec<u64>,
}

const GENERATE: u64 = 0;
const REPLACE_WEIGHTS: u64 = 1;
const LOAD_ADAPTER: u64 = 2;
const UNLOAD_ADAPTER: u64 = 3;

/// Writes the bytes of a [`StepMessage`].
#[derive(Debug)]
pub(crate) struct StepWriter(ByteWriter);

impl StepWriter {
    /// Begins the message of a step with `changes` changes, after which the requests `dropped` are dropped.
    pub(crate) fn new(changes: usize, dropped: &[u64]) -> Self {
        let mut bytes = ByteWriter::default();
        bytes.write_list(dropped);
        bytes.write_number(changes as u64);
        Self(bytes)
    }

    /// Adds a new request.
    ///
    /// # Errors
    /// A setting cannot be written.
    pub(crate) fn add_request(
        &mut self,
        prompt: &ModelInput,
        settings: &RequestSettings,
        adapter: Option<AdapterId>,
    ) -> serde_json::Result<()> {
        let Self(bytes) = self;
        // A bias of negative infinity forbids a token. JSON has no infinity, so biases are written as the bits of an
        // f32.
        let biases: Vec<[u32; 2]> = settings.logit_bias.iter().map(|(id, bias)| [*id, bias.to_bits()]).collect();
        let settings = RequestSettings { logit_bias: Vec::new(), ..settings.clone() };
        bytes.write_number(GENERATE);
        bytes.write_list(&serde_json::to_vec(&settings)?);
        bytes.write_list(&biases);
        bytes.write_list(&adapter.map(AdapterId::as_u64).into_iter().collect::<Vec<_>>());
        bytes.write_prompt(prompt);
        Ok(())
    }

    /// Adds the replacement of the weights by those in `folder`.
    pub(crate) fn add_weight_replacement(&mut self, folder: &Path) {
        self.0.write_number(REPLACE_WEIGHTS);
        self.0.write_list(folder.as_os_str().as_bytes());
    }

    /// Adds the loading of the adapter in `folder`.
    pub(crate) fn add_adapter_load(&mut self, folder: &Path) {
        self.0.write_number(LOAD_ADAPTER);
        self.0.write_list(folder.as_os_str().as_bytes());
    }

    /// Adds the unloading of an adapter.
    pub(crate) fn add_adapter_unload(&mut self, id: AdapterId) {
        self.0.write_number(UNLOAD_ADAPTER);
        self.0.write_number(id.as_u64());
    }

    /// The bytes of the message; not empty.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

impl StepMessage {
    /// Reads a message; `None` if the bytes are not one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<StepMessage> {
        let mut bytes = ByteReader(bytes);
        let dropped = bytes.read_list()?;
        let changes = (0..bytes.read_number()?).map(|_| change(&mut bytes)).collect::<Option<_>>()?;
        bytes.0.is_empty().then_some(StepMessage { changes, dropped })
    }
}

fn change(bytes: &mut ByteReader) -> Option<StepChange> {
    let kind = bytes.read_number()?;
    let folder = |bytes: &mut ByteReader| Some(PathBuf::from(OsStr::from_bytes(&bytes.read_list()?)));
    Some(match kind {
        GENERATE => {
            let settings: RequestSettings = serde_json::from_slice(&bytes.read_list::<u8>()?).ok()?;
            let logit_bias: Vec<(TokenId, f32)> =
                bytes.read_list::<[u32; 2]>()?.into_iter().map(|[id, bits]| (id, f32::from_bits(bits))).collect();
            let adapter = bytes.read_list::<u64>()?.first().map(|&number| AdapterId::from_u64(number));
            let settings = RequestSettings { logit_bias, ..settings };
            StepChange::Generate(Box::new(NewRequest { prompt: bytes.read_prompt()?, settings, adapter }))
        }
        REPLACE_WEIGHTS => StepChange::ReplaceWeights(folder(bytes)?),
        LOAD_ADAPTER => StepChange::LoadAdapter(folder(bytes)?),
        UNLOAD_ADAPTER => StepChange::UnloadAdapter(AdapterId::from_u64(bytes.read_number()?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reel_input::grammar::GrammarSpec;
    use reel_input::media::frames::FrameBuf;
    use reel_input::sampling::SamplingOptions;
    use serde_json::json;

    use super::*;

    fn request() -> NewRequest {
        let mut prompt = ModelInput::from_text_tokens(vec![5, 7, 9]);
        prompt.rope_delta = -3;
        prompt.frames.videos = vec![FrameBuf { data: Arc::new(vec![1, 2, 255]), frames: 1, height: 1, width: 1 }];
        prompt.frames.video_times = vec![vec![0.1, 1.0 / 3.0]];
        prompt.frames.processor.rescale_factor = 1.0 / 255.0;
        prompt.video_grid_thw = vec![[1, 2, 4]];
        prompt.pixel_values = Some(vec![0.25, f32::MIN_POSITIVE]);
        let settings = RequestSettings {
            sampling: SamplingOptions {
                temperature: Some(0.7),
                top_p: Some(0.1 + 0.2),
                seed: Some(u64::MAX),
                ..SamplingOptions::default()
            },
            stop: vec!["é\n".into()],
            logit_bias: vec![(3, f32::NEG_INFINITY), (4, 0.1)],
            grammar: Some(Arc::new(GrammarSpec::JsonSchema(json!({"b": 1, "a": [0.1, null]})))),
            ..RequestSettings::default()
        };
        NewRequest { prompt, settings, adapter: Some(AdapterId::from_u64(4)) }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let of = request();
        let mut writer = StepWriter::new(4, &[3, 8]);
        writer.add_request(&of.prompt, &of.settings, of.adapter).unwrap();
        writer.add_weight_replacement(Path::new("a/ b"));
        writer.add_adapter_load(Path::new(OsStr::from_bytes(b"\xff")));
        writer.add_adapter_unload(AdapterId::from_u64(9));
        let bytes = writer.into_bytes();
        let changes = vec![
            StepChange::Generate(Box::new(of)),
            StepChange::ReplaceWeights("a/ b".into()),
            StepChange::LoadAdapter(OsStr::from_bytes(b"\xff").into()),
            StepChange::UnloadAdapter(AdapterId::from_u64(9)),
        ];
        assert_eq!(StepMessage::parse(&bytes), Some(StepMessage { changes, dropped: vec![3, 8] }));
        for end in 0..bytes.len() {
            assert_eq!(StepMessage::parse(&bytes[..end]), None, "{end} of {} bytes", bytes.len());
        }
        assert_eq!(StepMessage::parse(&[&bytes[..], &[0]].concat()), None);
    }
}
