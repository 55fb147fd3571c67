//! Runs one stage of a curation: asks a model about each video or question without an accepted answer, on several
//! threads, and appends each outcome to the stage's table as soon as it is known.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reel_support::client::{ChatRequest, FailureKind};

use crate::curate::model::ChatModel;
use crate::curate::recipe::StageName;
use crate::curate::record::{RECORD_FORMAT, RecordStatus, StageRecord, unix_time};
use crate::curate::table::StageTable;
use crate::error::{Error, Result};

/// One request of a stage: the key of the video or question to ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageTask {
    /// The key.
    pub key: String,
    /// The index of the first row of the list that this task is about.
    pub row: usize,
    /// `FILE:LINE` of that row.
    pub location: String,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEnd {
    /// Each key has an outcome.
    Finished,
    /// Further requests could exceed the cap on cost.
    CapReached,
    /// The process was asked to stop.
    Stopped,
}

/// Makes the request of a task. An `Err` is the reason why the task fails, such as a video that cannot be decoded.
pub type MakeRequest<'a> = &'a (dyn Fn(&StageTask) -> Result<ChatRequest, String> + Sync);

/// A stage that is about to run.
pub struct StageRun<'a> {
    /// The stage.
    pub stage: StageName,
    /// The model.
    pub model: &'a dyn ChatModel,
    /// The name of the prompt in records.
    pub prompt: &'a str,
    /// The stage's table.
    pub table: &'a StageTable,
    /// Maximum number of requests that are in flight at the same time.
    pub concurrency: usize,
    /// Set by Ctrl-C.
    pub stop: &'a AtomicBool,
    /// Called after each outcome with the number of outcomes so far.
    pub progress: &'a (dyn Fn(usize) + Sync),
}

/// The state that the threads of a stage share.
struct Shared {
    next: AtomicUsize,
    done: AtomicUsize,
    /// Set when no further request may be sent.
    ended: AtomicBool,
    end: Mutex<Result<StageEnd>>,
}

impl Shared {
    fn end_with(&self, end: Result<StageEnd>) {
        let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*first, Ok(StageEnd::Finished)) {
            *first = end;
        }
        self.ended.store(true, Ordering::SeqCst);
    }
}

impl StageRun<'_> {
    /// Asks the model about all tasks. `accept` checks the text of an answer and returns the text that is recorded.
    ///
    /// # Errors
    /// The endpoint cannot be used, or the table cannot be written. Answers that arrived before the error are recorded.
    pub fn run(
        &self,
        tasks: &[StageTask],
        make_request: MakeRequest<'_>,
        accept: &(dyn Fn(&str) -> Result<String, String> + Sync),
    ) -> Result<StageEnd> {
        let shared = Shared {
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            end: Mutex::new(Ok(StageEnd::Finished)),
        };
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency.min(tasks.len()) {
                scope.spawn(|| self.work(tasks, make_request, accept, &shared));
            }
        });
        shared.end.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(
        &self,
        tasks: &[StageTask],
        make_request: MakeRequest<'_>,
        accept: &(dyn Fn(&str) -> Result<String, String> + Sync),
        shared: &Shared,
    ) {
        while !shared.ended.load(Ordering::SeqCst) {
            if self.stop.load(Ordering::SeqCst) {
                return shared.end_with(Ok(StageEnd::Stopped));
            }
            let Some(task) = tasks.get(shared.next.fetch_add(1, Ordering::SeqCst)) else { return };
            match self.ask(task, make_request, accept) {
                Ok(None) => (self.progress)(shared.done.fetch_add(1, Ordering::SeqCst) + 1),
                Ok(Some(end)) => shared.end_with(Ok(end)),
                Err(e) => shared.end_with(Err(e)),
            }
        }
    }

    /// Asks the model about one task and records the outcome. Returns `Some` with the stage's end if no further request
    /// can be sent.
    fn ask(
        &self,
        task: &StageTask,
        make_request: MakeRequest<'_>,
        accept: &(dyn Fn(&str) -> Result<String, String> + Sync),
    ) -> Result<Option<StageEnd>> {
        let request = match make_request(task) {
            Ok(request) => request,
            Err(reason) => {
                self.table.append(StageRecord { reason: Some(reason), ..self.record(task, RecordStatus::Failed) })?;
                return Ok(None);
            }
        };
        let max_cost = self.model.max_cost(&request);
        if max_cost > 0.0 {
            self.table.append(StageRecord { cost: max_cost, ..self.record(task, RecordStatus::Asked) })?;
        }
        let begun = Instant::now();
        match self.model.ask(&request, self.stop, accept) {
            Ok((output, answer)) => {
                self.table.append(StageRecord {
                    output: Some(output),
                    prompt_tokens: answer.prompt_tokens,
                    completion_tokens: answer.completion_tokens,
                    attempts: answer.attempts,
                    cost: answer.cost,
                    seconds: answer.seconds,
                    ..self.record(task, RecordStatus::Ok)
                })?;
                Ok(None)
            }
            Err(failure) => {
                // A failed request gets this line even if it was never sent, to replace the task's line of status
                // `asked`.
                self.table.append(StageRecord {
                    reason: Some(failure.message.clone()),
                    attempts: failure.attempts,
                    cost: failure.cost,
                    seconds: begun.elapsed().as_secs_f64(),
                    ..self.record(task, RecordStatus::Failed)
                })?;
                match failure.kind {
                    FailureKind::Exhausted | FailureKind::Refused => Ok(None),
                    FailureKind::Budget => Ok(Some(StageEnd::CapReached)),
                    FailureKind::Stopped => Ok(Some(StageEnd::Stopped)),
                    FailureKind::Unusable => Err(Error::failed(
                        format!("{} {}", self.stage.model_option(), task.location),
                        failure.message,
                        "then continue with --resume",
                    )),
                }
            }
        }
    }

    fn record(&self, task: &StageTask, status: RecordStatus) -> StageRecord {
        StageRecord {
            format: RECORD_FORMAT,
            key: task.key.clone(),
            location: task.location.clone(),
            status,
            reason: None,
            output: None,
            prompt: self.prompt.into(),
            model: self.model.name().into(),
            prompt_tokens: 0,
            completion_tokens: 0,
            attempts: 0,
            cost: 0.0,
            seconds: 0.0,
            unix_time: unix_time(),
            reel: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_support::client::{ChatAnswer, ChatFailure};
    use serde_json::Map;

    /// A model for tests. The text of a request's only message decides the outcome.
    struct Scripted {
        asked: Mutex<Vec<String>>,
    }

    impl ChatModel for Scripted {
        fn name(&self) -> &str {
            "scripted"
        }

        fn max_cost(&self, _: &ChatRequest) -> f64 {
            1.0
        }

        fn ask(
            &self,
            request: &ChatRequest,
            _: &AtomicBool,
            accept: &dyn Fn(&str) -> Result<String, String>,
        ) -> Result<(String, ChatAnswer), ChatFailure> {
            let key = request.messages[0].as_str().unwrap().to_string();
            self.asked.lock().unwrap().push(key.clone());
            let kind = match &*key {
                "refused" => FailureKind::Refused,
                "exhausted" => FailureKind::Exhausted,
                "cap" => FailureKind::Budget,
                "wrong key" => FailureKind::Unusable,
                "stopped" => FailureKind::Stopped,
                _ => {
                    let answer = ChatAnswer {
                        text: key.clone(),
                        reasoning: None,
                        finish_reason: None,
                        model: "scripted".into(),
                        prompt_tokens: 2,
                        completion_tokens: 3,
                        cost: 0.25,
                        attempts: 1,
                        seconds: 0.0,
                    };
                    return Ok((accept(&key).unwrap(), answer));
                }
            };
            Err(ChatFailure { kind, message: format!("http://host: {key}; help"), attempts: 2, cost: 0.5 })
        }
    }

    fn run(keys: &[&str], concurrency: usize) -> (Result<StageEnd>, Vec<String>, StageTable, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let table = StageTable::open(dir.path(), "reason").unwrap();
        let model = Scripted { asked: Mutex::new(Vec::new()) };
        let tasks: Vec<StageTask> = keys
            .iter()
            .enumerate()
            .map(|(row, key)| StageTask { key: key.to_string(), row, location: format!("list:{}", row + 1) })
            .collect();
        let stage = StageRun {
            stage: StageName::Reason,
            model: &model,
            prompt: "reason-1-00",
            table: &table,
            concurrency,
            stop: &AtomicBool::new(false),
            progress: &|_| {},
        };
        let end = stage.run(
            &tasks,
            &|task| match &*task.key {
                "unreadable" => Err("video: cannot be decoded; help".into()),
                key => Ok(ChatRequest { messages: vec![key.into()], max_tokens: 1, params: Map::new() }),
            },
            &|text| Ok(format!("<{text}>")),
        );
        (end, model.asked.into_inner().unwrap(), table, dir)
    }

    #[test]
    fn each_outcome_is_recorded_and_other_rows_go_on() {
        for concurrency in [1, 3] {
            let (end, asked, table, dir) = run(&["a", "refused", "unreadable", "exhausted", "b"], concurrency);
            assert_eq!((end.unwrap(), asked.len()), (StageEnd::Finished, 4));
            let status = |key| table.get(key).map(|r| (r.status, r.output, r.reason.is_some(), r.cost));
            assert_eq!(status("a"), Some((RecordStatus::Ok, Some("<a>".into()), false, 0.25)));
            assert_eq!(status("refused"), Some((RecordStatus::Failed, None, true, 0.5)));
            assert_eq!(status("unreadable"), Some((RecordStatus::Failed, None, true, 0.0)));
            assert_eq!(StageTable::open(dir.path(), "reason").unwrap().cost_in_dollars(), 2.0 * 0.25 + 2.0 * 0.5);
        }
    }

    #[test]
    fn cap_stop_and_unusable_endpoints_end_the_stage() {
        for (key, wanted) in [("cap", StageEnd::CapReached), ("stopped", StageEnd::Stopped)] {
            let (end, asked, table, _dir) = run(&["a", key, "b"], 1);
            assert_eq!((end.unwrap(), &asked[..]), (wanted, &["a".to_string(), key.into()][..]));
            assert!(table.get("b").is_none() && table.cost_in_dollars() == 0.75);
        }
        let (end, asked, ..) = run(&["wrong key", "b"], 1);
        let e = end.unwrap_err().to_string();
        assert!(e.starts_with("--reason list:1: http://host: wrong key; help"), "{e}");
        assert_eq!(asked, ["wrong key"]);
    }
}
