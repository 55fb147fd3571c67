//! The funnel of a curation: how many rows the list has, how many each stage accepted and each filter rejected, and
//! how many the data set has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::curate::curation::Curation;
use crate::curate::filters::RejectionReason;
use crate::curate::list_keys::ListKeys;
use crate::curate::recipe::StageName;
use crate::curate::record::RecordStatus;
use crate::curate::table::StageTable;

/// The counts of a curation. `kept + rejected + failed = rows`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurationSummary {
    /// Rows of the list.
    pub rows: usize,
    /// Rows of the data set.
    pub kept: usize,
    /// Rejected rows.
    pub rejected: usize,
    /// Rows without an accepted answer. A resumed run asks the model about them again.
    pub failed: usize,
    /// US dollars of all requests.
    pub cost: f64,
    /// The stages, in order.
    pub stages: Vec<StageSummary>,
    /// Rejected rows by reason.
    pub reasons: BTreeMap<RejectionReason, usize>,
    /// Number of rows by `data_source`: all rows, and kept rows.
    pub sources: BTreeMap<String, (usize, usize)>,
    /// Number of rows by `problem_type`: all rows, and kept rows.
    pub problem_types: BTreeMap<String, (usize, usize)>,
}

/// The numbers of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// The stage.
    pub stage: StageName,
    /// Number of videos (in the stage `caption`) or rows (in all other stages) that the stage is about.
    pub keys: usize,
    /// Accepted answers.
    pub ok: usize,
    /// Keys whose requests failed.
    pub failed: usize,
    /// Number of videos or rows for which no request was sent.
    pub open: usize,
    /// Total number of attempts of the requests that led to the last outcome of each video or question.
    pub attempts: u64,
    /// Prompt tokens of the requests with an accepted answer.
    pub prompt_tokens: u64,
    /// Tokens of accepted answers.
    pub completion_tokens: u64,
    /// Cost in US dollars, with failed requests and with requests that were in flight when the process was killed.
    pub cost: f64,
    /// Sum of the seconds of all requests. Requests run at the same time, so the stage itself takes less time.
    pub seconds: f64,
    /// The models that answered.
    pub models: Vec<String>,
    /// The prompts that were used.
    pub prompts: Vec<String>,
}

impl StageSummary {
    /// Counts the records of a table. Answers about videos and questions that are not in the list are left out.
    pub fn new(stage: StageName, table: &StageTable, list: &ListKeys) -> Self {
        let mut summary = Self {
            stage,
            keys: list.key_count(stage),
            ok: 0,
            failed: 0,
            open: 0,
            attempts: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            cost: table.cost_in_dollars(),
            seconds: 0.0,
            models: Vec::new(),
            prompts: Vec::new(),
        };
        table.for_each(|record| {
            if !list.contains(stage, &record.key) {
                return;
            }
            match record.status {
                RecordStatus::Ok => summary.ok += 1,
                RecordStatus::Failed | RecordStatus::Asked => summary.failed += 1,
            }
            summary.attempts += u64::from(record.attempts);
            summary.prompt_tokens += record.prompt_tokens;
            summary.completion_tokens += record.completion_tokens;
            summary.seconds += record.seconds;
            for (all, own) in [(&mut summary.models, &record.model), (&mut summary.prompts, &record.prompt)] {
                if record.status == RecordStatus::Ok && !all.contains(own) {
                    all.push(own.clone());
                }
            }
        });
        summary.models.sort();
        summary.prompts.sort();
        summary.open = summary.keys.saturating_sub(summary.ok + summary.failed);
        summary
    }
}

impl Curation {
    /// The numbers of all stages.
    pub fn stage_summaries(&self) -> Vec<StageSummary> {
        let list = self.list_keys();
        self.tables.iter().map(|(&stage, table)| StageSummary::new(stage, table, &list)).collect()
    }
}
