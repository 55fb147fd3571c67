//! `reel tokenize`: reads texts, prints token ids.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use reel_input::tokenizer::Tokenizer;
use reel_support::diagnostic::input::open_regular_file;

use crate::common::CommonOptions;
use crate::fail::failed;
use crate::{output, prompt};

/// Tokenize texts: one list of token ids per text.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '\"How many shapes are there?\"' | reel tokenize --model tiny")]
pub struct TokenizeArgs {
    /// Model folder, or Hugging Face model id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// File with one JSON string per line; - is stdin
    #[arg(long, value_name = "texts.jsonl", default_value = "-")]
    file: PathBuf,
}

impl TokenizeArgs {
    /// Prints one JSON list of token ids per line. `--json` changes nothing.
    pub fn run(&self, _common: &CommonOptions) -> Result<()> {
        let tokenizer = Tokenizer::open(&prompt::find_or_download_model(&self.model)?)?;
        let (name, lines): (_, Box<dyn BufRead>) = if self.file == Path::new("-") {
            ("stdin".to_string(), Box::new(io::stdin().lock()))
        } else {
            let file = open_regular_file(&self.file).map_err(|e| output::cannot_read(&self.file, e))?;
            (self.file.display().to_string(), Box::new(BufReader::new(file)))
        };
        let mut out = BufWriter::new(io::stdout().lock());
        for (i, line) in lines.lines().enumerate() {
            let location = format!("{name}:{}", i + 1);
            let line = line.map_err(|e| failed(&location, format!("cannot be read: {e}"), "give UTF-8 text"))?;
            if line.trim().is_empty() {
                continue;
            }
            let text: String = serde_json::from_str(&line).map_err(|e| {
                failed(&location, format!("not a JSON string: {e}"), "give one JSON string in quotes per line")
            })?;
            let ids = serde_json::to_string(&tokenizer.encode(&text)?)?;
            writeln!(out, "{ids}").context("stdout: cannot be written; check where it is redirected to")?;
        }
        out.flush().context("stdout: cannot be written; check where it is redirected to")
    }
}
