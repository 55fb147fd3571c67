//! `reel curate status`: shows the progress of a curation, also while it runs. It reads the answer tables of the
//! stages.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use reel_support::diagnostic::input;
use reel_support::error::Error;
use reel_tools::curate::{CurationSummary, ListKeys, StageSummary, StageTable, read_settings};
use serde_json::json;

use crate::common::CommonOptions;
use crate::output;

/// Show the progress of a curation: answers, failures, tokens and cost by stage.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel curate status curated || echo 'run reel curate first'")]
pub struct StatusArgs {
    /// Folder of the curation
    #[arg(value_name = "OUT")]
    folder: PathBuf,
}

impl StatusArgs {
    /// Prints the numbers of each stage.
    pub fn run(&self, common: &CommonOptions) -> Result<()> {
        let settings = read_settings(&self.folder)?;
        let keys = ListKeys::open(&self.folder)?;
        let stages = settings.recipe.stages().iter().map(|&stage| {
            let table = StageTable::open(&self.folder, stage.name())?;
            Ok(StageSummary::new(stage, &table, &keys))
        });
        let stages = stages.collect::<Result<Vec<_>, Error>>()?;
        let cost: f64 = stages.iter().map(|stage| stage.cost).sum();
        let last = self.folder.join(reel_tools::curate::SUMMARY_FILE);
        let summary = input::read_file(&last, input::MAX_CONFIG_BYTES).ok();
        let summary: Option<CurationSummary> = summary.and_then(|text| serde_json::from_slice(&text).ok());
        if common.json {
            return output::print_json(&json!({"recipe": settings.recipe, "rows": settings.rows,
                "questions": settings.questions, "media": settings.media, "stages": stages, "cost": cost,
                "summary": summary}));
        }
        output::print_line(format!(
            "{}: {} rows, {} different questions about {} videos and images",
            self.folder.display(),
            settings.rows,
            settings.questions,
            settings.media
        ))?;
        for stage in &stages {
            output::print_line(describe_stage(stage))?;
        }
        if let Some(CurationSummary { rows, kept, rejected, failed, .. }) = summary {
            output::print_line(format!(
                "last result: {kept} kept, {rejected} rejected, {failed} failed of {rows} rows"
            ))?;
        }
        output::print_line(format!("cost: ${cost:.4}"))
    }
}

/// Describes a stage in one line.
pub fn describe_stage(stage: &StageSummary) -> String {
    format!(
        "{:8} {} of {} answered, {} failed, {} open; {} + {} tokens, ${:.4}, {:.1} s; {}",
        stage.stage.name(),
        stage.ok,
        stage.keys,
        stage.failed,
        stage.open,
        stage.prompt_tokens,
        stage.completion_tokens,
        stage.cost,
        stage.seconds,
        if stage.models.is_empty() { "no model yet".into() } else { stage.models.join(", ") }
    )
}
