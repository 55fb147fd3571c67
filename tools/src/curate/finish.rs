//! The end of a curation: tests the chains, and writes the data set, the rejected and the failed rows.

use std::collections::BTreeMap;

use reel_samples::rewards::check_solution;
use reel_samples::rows::ProblemMedia;
use serde_json::{Map, Value, json};

use crate::curate::answers::ReasoningChain;
use crate::curate::complete_file::{write_json, write_text};
use crate::curate::curation::Curation;
use crate::curate::filters::{CandidateChain, ChainFilters, ChainMeasurements, RejectionReason};
use crate::curate::frames::read_frames;
use crate::curate::recipe::StageName;
use crate::curate::record::RecordStatus;
use crate::curate::row_layout::RowLayout;
use crate::curate::rows::{CurationRow, Question};
use crate::curate::similarity::{SimilarityCache, VisualSimilarity, chain_similarity};
use crate::curate::summary::CurationSummary;
use crate::curate::table::write_parquet;
use crate::error::{Error, Result};

/// The file in OUT with the data set.
pub const DATASET_FILE: &str = "dataset.jsonl";
/// The file in OUT with the rejected rows.
pub const REJECTED_FILE: &str = "rejected.jsonl";
/// The file in OUT with the failed rows.
pub const FAILED_FILE: &str = "failed.jsonl";
/// The file in OUT with the counts and costs of the curation.
pub const SUMMARY_FILE: &str = "summary.json";

/// The outcome of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowOutcome {
    /// The row is in the data set.
    Kept,
    /// A filter rejected the row for this reason. The text has details.
    Rejected(RejectionReason, String),
    /// The row has no accepted answer in this stage. The text is the reason. A stage of `None` means that the
    /// similarity to the frames could not be computed.
    Failed(Option<StageName>, String),
}

/// A row with its outcome.
#[derive(Clone, Debug)]
pub struct FinishedRow {
    /// Location of the row in the list of questions, `FILE:LINE`.
    pub location: String,
    /// The question with its options; empty if the row cannot be used.
    pub question: String,
    /// What happened to the row.
    pub outcome: RowOutcome,
    /// The chain, if there is one.
    pub chain: Option<ReasoningChain>,
    /// What the filters measured.
    pub measured: Option<ChainMeasurements>,
    /// The name of the source data set.
    pub source: String,
    /// The kind of answer.
    pub problem_type: String,
}

impl Curation {
    /// Tests all chains and writes the result files. `model` is the SigLIP model; without one, free-form rows that need
    /// the similarity test fail.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(&self, mut model: Option<&mut dyn VisualSimilarity>) -> Result<(CurationSummary, Vec<FinishedRow>)> {
        let mut filters = ChainFilters::new(self.options.filters);
        let mut known = SimilarityCache::open(&self.options.out);
        let mut finished = Vec::with_capacity(self.rows.len());
        for (i, row) in self.rows.iter().enumerate() {
            let mut end = FinishedRow {
                location: row.location.clone(),
                question: row.question.as_ref().map(Question::text_with_options).unwrap_or_default(),
                outcome: RowOutcome::Kept,
                chain: None,
                measured: None,
                source: self.source(row),
                problem_type: text_of(&row.columns, "problem_type").unwrap_or_else(|| "unknown".into()),
            };
            match self.chains(i) {
                Err(outcome) => end.outcome = outcome,
                Ok((question, before, chain)) => {
                    let candidate = CandidateChain {
                        question: &end.question,
                        kind: question.kind,
                        solution: &question.problem.solution,
                        before: before.as_ref(),
                        chain: &chain,
                    };
                    let similarity = || self.similarity(question, &chain, &mut known, &mut model);
                    match filters.test_chain(&candidate, &row.location, similarity) {
                        Ok((measured, rejection)) => {
                            end.measured = Some(measured);
                            if let Some((reason, what)) = rejection {
                                end.outcome = RowOutcome::Rejected(reason, what);
                            }
                        }
                        Err(SimilarityError::OfRow(what)) => end.outcome = RowOutcome::Failed(None, what),
                        Err(SimilarityError::OfRun(e)) => return Err(e),
                    }
                    end.chain = Some(chain);
                }
            }
            finished.push(end);
        }
        let summary = self.summary(&finished);
        self.write(&summary, &finished)?;
        Ok((summary, finished))
    }

    /// Returns the question of a row, the chain before the revision, and the final chain. If there is no final chain,
    /// returns the outcome of the row as the error.
    fn chains(&self, row: usize) -> Result<(&Question, Option<ReasoningChain>, ReasoningChain), RowOutcome> {
        let unusable = |what: &String| RowOutcome::Rejected(RejectionReason::UnusableRow, what.clone());
        let question = self.rows[row].question.as_ref().map_err(unusable)?;
        let first = self.first_rows[&question.key];
        if first != row {
            let what = format!("it has the same video and question as the earlier row {}", self.rows[first].location);
            return Err(RowOutcome::Rejected(RejectionReason::DuplicateRow, what));
        }
        let mut chains = Vec::new();
        for &stage in self.options.recipe.stages() {
            let record = self.tables.get(&stage).and_then(|table| table.get(Self::key_of(stage, question)));
            let output = match record {
                Some(record) if record.status == RecordStatus::Ok => record.output.unwrap_or_default(),
                Some(record) => return Err(RowOutcome::Failed(Some(stage), record.reason.unwrap_or_default())),
                None => return Err(RowOutcome::Failed(Some(stage), "was not asked".into())),
            };
            if stage != StageName::Caption {
                let damaged =
                    |what: String| RowOutcome::Failed(Some(stage), format!("the answer in the stage's table {what}"));
                chains.push(ReasoningChain::parse(&output).map_err(damaged)?);
            }
        }
        let missing = || RowOutcome::Failed(None, "has no chain".into());
        let chain = chains.pop().ok_or_else(missing)?;
        Ok((question, chains.pop(), chain))
    }

    fn similarity(
        &self,
        question: &Question,
        chain: &ReasoningChain,
        known: &mut SimilarityCache,
        model: &mut Option<&mut dyn VisualSimilarity>,
    ) -> Result<f32, SimilarityError> {
        let Some(model) = model.as_deref_mut() else {
            return Err(SimilarityError::OfRow(
                "cannot be compared with its frames without a SigLIP model; give --siglip".into(),
            ));
        };
        let text = chain.to_tagged_text();
        let id = model.id().to_string();
        let compute = || {
            let options = &self.options;
            let frames = read_frames(&question.media, question.is_video(), &options.frames, &options.decoder);
            let frames = frames.map_err(|e| e.to_string())?;
            chain_similarity(model, &text, &frames.frames)
        };
        let value = known.get_or_compute(&id, &question.key, &text, compute).map_err(SimilarityError::OfRun)?;
        value.map_err(SimilarityError::OfRow)
    }

    fn source(&self, row: &CurationRow) -> String {
        let list = || self.options.list.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        text_of(&row.columns, "data_source").unwrap_or_else(list)
    }

    fn summary(&self, finished: &[FinishedRow]) -> CurationSummary {
        let mut summary = CurationSummary {
            rows: finished.len(),
            kept: 0,
            rejected: 0,
            failed: 0,
            cost: self.dollars_spent(),
            stages: self.stage_summaries(),
            reasons: BTreeMap::new(),
            sources: BTreeMap::new(),
            problem_types: BTreeMap::new(),
        };
        for row in finished {
            let is_kept = usize::from(row.outcome == RowOutcome::Kept);
            match &row.outcome {
                RowOutcome::Kept => summary.kept += 1,
                RowOutcome::Rejected(reason, _) => {
                    summary.rejected += 1;
                    *summary.reasons.entry(*reason).or_default() += 1;
                }
                RowOutcome::Failed(..) => summary.failed += 1,
            }
            for (counts, name) in [(&mut summary.sources, &row.source), (&mut summary.problem_types, &row.problem_type)]
            {
                let (all, kept) = counts.entry(name.clone()).or_default();
                *all += 1;
                *kept += is_kept;
            }
        }
        summary
    }

    fn write(&self, summary: &CurationSummary, finished: &[FinishedRow]) -> Result<()> {
        let (mut dataset, mut rejected, mut failed, mut tested) =
            (String::new(), String::new(), String::new(), Vec::new());
        for (i, (row, end)) in self.rows.iter().zip(finished).enumerate() {
            let key = row.question.as_ref().map(|question| &*question.key).unwrap_or_default();
            let id = row.columns.get("problem_id").cloned().unwrap_or_else(|| json!(i + 1));
            let mut about = json!({"location": row.location, "key": key, "problem_id": id});
            let (outcome, reason, what) = match &end.outcome {
                RowOutcome::Kept => ("kept", None, None),
                RowOutcome::Rejected(reason, what) => ("rejected", Some(reason.name()), Some(what)),
                RowOutcome::Failed(stage, what) => {
                    ("failed", Some(stage.map_or("similarity", StageName::name)), Some(what))
                }
            };
            let measured = end.measured.as_ref();
            tested.push(
                json!({"location": row.location, "key": key, "outcome": outcome, "reason": reason, "detail": what,
                    "accuracy": measured.map(|m| m.accuracy), "similarity": measured.and_then(|m| m.similarity),
                    "words": measured.map(|m| m.words)})
                .to_string(),
            );
            match (&end.outcome, &row.question, &end.chain) {
                (RowOutcome::Kept, Ok(question), Some(chain)) => {
                    dataset += &format!("{}\n", Value::Object(self.dataset_row(row, question, chain, id)));
                }
                (RowOutcome::Failed(..), ..) => {
                    about["stage"] = json!(reason);
                    about["reason"] = json!(what);
                    failed += &format!("{about}\n");
                }
                _ => {
                    about["reason"] = json!(reason);
                    about["detail"] = json!(what);
                    about["problem"] = row.columns.get("problem").cloned().unwrap_or_default();
                    about["process"] =
                        json!(end.chain.as_ref().map(|chain| format!("<think>{}</think>", chain.thought)));
                    about["answer"] = json!(end.chain.as_ref().map(|chain| &chain.answer));
                    rejected += &format!("{about}\n");
                }
            }
        }
        let out = &self.options.out;
        for (file, text) in [(DATASET_FILE, dataset), (REJECTED_FILE, rejected), (FAILED_FILE, failed)] {
            write_text(&out.join(file), &text)?;
        }
        write_text(&out.join("filter.jsonl"), &(tested.join("\n") + "\n"))?;
        write_parquet(&out.join("filter.parquet"), &tested)?;
        write_json(&out.join(SUMMARY_FILE), summary)
    }

    /// A row of the data set.
    fn dataset_row(
        &self,
        row: &CurationRow,
        question: &Question,
        chain: &ReasoningChain,
        id: Value,
    ) -> Map<String, Value> {
        let problem = &question.problem;
        let media = match problem.data_type {
            ProblemMedia::Image => "image",
            ProblemMedia::Video | ProblemMedia::Text => "video",
        };
        let absolute = std::path::absolute(&question.media).unwrap_or_else(|_| question.media.clone());
        let path = if self.options.keep_paths { problem.path.clone() } else { absolute.display().to_string() };
        debug_assert!(check_solution(Some(question.kind), &problem.solution).is_ok());
        let process = format!("<think>{}</think>", chain.thought);
        let fields = match self.options.layout {
            RowLayout::Problem => json!({
                "problem_id": id,
                "problem": problem.problem,
                "data_type": media,
                "problem_type": problem.problem_type,
                "options": problem.options,
                "process": process,
                "solution": problem.solution,
                "path": path,
                "data_source": self.source(row),
            }),
            RowLayout::Chat => {
                let asked =
                    json!([{"type": media, media: path}, {"type": "text", "text": question.text_with_options()}]);
                let answer = process + &problem.solution;
                json!({
                    "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
                    "problem_id": id,
                    "problem_type": problem.problem_type,
                    "solution": problem.solution,
                    "data_source": self.source(row),
                })
            }
        };
        let Value::Object(fields) = fields else { return Map::new() };
        fields
    }
}

/// The reason why the similarity of a chain could not be computed: an error of this row, or an error that ends the run.
enum SimilarityError {
    OfRow(String),
    OfRun(Error),
}

fn text_of(columns: &Map<String, Value>, name: &str) -> Option<String> {
    columns.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(String::from)
}
