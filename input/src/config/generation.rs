//! `generation_config.json`: the default sampling parameters and end tokens of a model.

use std::path::Path;

use reel_support::diagnostic::input;

use super::fields::JsonFields;
use crate::error::{Error, Result};

/// The default sampling parameters of a model folder; A field is `None` if the file does not set it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// The ids of the tokens that end a completion. If empty, the end tokens of config.json apply.
    pub eos_token_id: Vec<u32>,
    /// Whether to sample; if false or absent, decoding is greedy.
    pub do_sample: Option<bool>,
    /// The softmax temperature; at least 0.
    pub temperature: Option<f64>,
    /// The probability mass that nucleus sampling keeps, in (0, 1].
    pub top_p: Option<f64>,
    /// How many of the most likely tokens to sample from; 0 means all.
    pub top_k: Option<usize>,
    /// The repetition penalty, above 0: positive logits of tokens that already occurred are divided by it, negative
    /// logits are multiplied.
    pub repetition_penalty: Option<f64>,
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
            found => Ok(found),
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
            temperature: in_range("temperature", &|x| x >= 0.0, "at least 0")?,
            top_p: in_range("top_p", &|x| x > 0.0 && x <= 1.0, "above 0 and at most 1")?,
            top_k: fields.opt_int("top_k")?,
            repetition_penalty: in_range("repetition_penalty", &|x| x > 0.0, "above 0")?,
        })
    }
}
