//! `reel tokenize`: texts in, token ids out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use reel_model::input::tokenizer::Tokenizer;

use crate::common::Common;
use crate::fail::failed;
use crate::{output, prompt};

/// Turn texts into token ids.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel init --preset tiny --out tiny
  echo '\"How many shapes are there?\"' | reel tokenize --model tiny")]
pub struct Tokenize {
    /// The model folder, or a hub id
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The texts, one JSON string a line; - is stdin
    #[arg(long, value_name = "texts.jsonl", default_value = "-")]
    file: PathBuf,
}

impl Tokenize {
    /// Prints one list of ids a line, as JSON with and without `--json`.
    pub fn run(&self, _common: &Common) -> Result<()> {
        let tokenizer = Tokenizer::open(&prompt::folder(&self.model)?)?;
        let (name, lines): (_, Box<dyn BufRead>) = if self.file == Path::new("-") {
            ("stdin".to_string(), Box::new(io::stdin().lock()))
        } else {
            let file = File::open(&self.file).map_err(|e| output::not_read(&self.file, e))?;
            (self.file.display().to_string(), Box::new(BufReader::new(file)))
        };
        let mut out = BufWriter::new(io::stdout().lock());
        for (at, line) in lines.lines().enumerate() {
            let place = format!("{name}:{}", at + 1);
            let line = line.map_err(|e| failed(&place, format!("cannot be read: {e}"), "give UTF-8 text"))?;
            if line.trim().is_empty() {
                continue;
            }
            let text: String = serde_json::from_str(&line).map_err(|e| {
                failed(&place, format!("not a JSON string: {e}"), "put each text in quotes, one a line")
            })?;
            let ids = serde_json::to_string(&tokenizer.encode(&text)?)?;
            writeln!(out, "{ids}").context("stdout: cannot be written; check where it leads")?;
        }
        out.flush().context("stdout: cannot be written; check where it leads")
    }
}
