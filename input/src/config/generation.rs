//! `generation_config.json`: the default sampling parameters and end tokens of a model.

use std::path::Path;

use reel_support::diagnostic::input;

use super::fields::JsonFields;
use crate::error::{Error, Result};
use crate::sampling::SamplingOptions;

/// The default sampling parameters of a model folder; a field is `None` if the file does not set it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// The ids of the tokens that end a completion. If empty, the end tokens of config.json apply.
    pub eos_token_id: Vec<u32>,
    /// Whether to sample; if false or absent, decoding is greedy.
    pub do_sample: Option<bool>,
    /// The sampling options: temperature, top-p, top-k and repetition penalty.
    pub sampling: SamplingOptions,
}

/// The maximum number of end tokens. Each generated token is compared with all of them; published models have one or
/// two.
const MAX_END_TOKENS: usize = 256;

const HELP: &str = "correct the value, or remove the key to use the default";

impl GenerationConfig {
    /// Reads `generation_config.json` of a model folder; without the file, all values are absent.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("generation_config.json");
        match input::read_text(&path, input::MAX_CONFIG_BYTES) {
            Ok(text) => Self::parse(&path.display().to_string(), &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::cannot_read(&path, e)),
        }
    }

    /// Parses the text of a generation_config.json; `file` names its source in error messages.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let fields = JsonFields::parse(file, text, HELP)?;
        let in_range = |key: &str, good: &dyn Fn(f64) -> bool, range: &str| match fields.opt_f64(key)? {
            Some(number) if !good(number) => Err(fields.error(key, format!("is {number}, expected {range}"))),
            found => Ok(found.map(|number| number as f32)),
        };
        let eos_token_ids = fields.int_or_int_list("eos_token_id")?;
        if eos_token_ids.len() > MAX_END_TOKENS {
            let what = format!("has {} ids, above the limit of {MAX_END_TOKENS}", eos_token_ids.len());
            return Err(fields.error("eos_token_id", what));
        }
        let id = |id: usize| {
            u32::try_from(id).map_err(|_| fields.error("eos_token_id", format!("is {id}, which is no token id")))
        };
        Ok(Self {
            eos_token_id: eos_token_ids.into_iter().map(id).collect::<Result<_>>()?,
            do_sample: fields.opt_bool("do_sample")?,
            sampling: SamplingOptions {
                temperature: in_range("temperature", &|x| x >= 0.0, "at least 0")?,
                top_p: in_range("top_p", &|x| x > 0.0 && x <= 1.0, "above 0 and at most 1")?,
                // A number that u32 cannot hold is more than all tokens.
                top_k: fields.opt_int("top_k")?.map(|k| u32::try_from(k).unwrap_or(0)),
                repetition_penalty: in_range("repetition_penalty", &|x| x > 0.0, "above 0")?,
                ..SamplingOptions::default()
            },
        })
    }
}
