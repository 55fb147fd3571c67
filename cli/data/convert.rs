//! `reel data convert`: writes a data file in another format.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_input::rows::Table;
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// Convert between JSON, JSONL and Parquet, by the extensions of the file names.
///
/// No value changes. A Parquet column gets a type if all its values have the same type. Other columns are written as
/// JSON text, which reel reads back as the original values. Embedded images and videos become data: URIs.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  echo '{\"prompt\": \"2 + 2?\", \"solution\": \"4\"}' > rows.jsonl
  reel data convert rows.jsonl rows.parquet
  reel data convert rows.parquet rows.json")]
pub struct ConvertArgs {
    /// Data: JSON, JSONL, Parquet, or the folder of a data set (DIR, DIR@split, DIR#config@split; default split: train)
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// File to write: .json, .jsonl or .parquet
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Replace OUT when the new file is complete
    #[arg(long)]
    overwrite: bool,
}

impl ConvertArgs {
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        reel_input::rows::check_output(&self.output, self.overwrite)?;
        let table = Table::open(&self.input)?;
        reel_input::rows::convert(&table, &self.output, self.overwrite)?;
        if common.json {
            return output::print_json(&json!({"out": self.output, "rows": table.len()}));
        }
        if common.quiet {
            return Ok(());
        }
        output::print_line(format!("{}: {} rows", self.output.display(), table.len()))
    }
}
