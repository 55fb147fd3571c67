//! A run: warm-up requests, then measured requests at their arrival times. A limit bounds the requests in flight; the
//! run ends when its number of requests or its time is reached.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use crate::error::{Error, Result};
use crate::loadgen::answer::MeasuredAnswer;
use crate::loadgen::arrivals::ArrivalTimes;
use crate::loadgen::client::{HttpClient, cannot_start};
use crate::loadgen::error::RequestFailure;
use crate::loadgen::prompts::RequestBodies;
use crate::loadgen::report::LoadReport;
use crate::loadgen::settings::{LoadSettings, RequestAmount};

/// Index of the first warm-up request. Measured requests have smaller indices. The index decides the words of the
/// prompt, so measured prompts differ from warm-up prompts.
const FIRST_WARMUP: u64 = 1 << 62;
/// Maximum of all durations that a user gives. Much longer ones would overflow the clock's arithmetic.
const MAX_TIME: Duration = Duration::from_secs(10 * 365 * 86400);

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Number of requests that are being answered now.
    pub running: usize,
    /// The highest value of `running` so far.
    pub peak_running: usize,
    /// Complete answers.
    pub answered: usize,
    /// Failed requests.
    pub failed: usize,
}

/// Called after each measured request. It must return soon, because it delays the time measurement of other requests.
pub type OnProgress = Arc<dyn Fn(LoadProgress) + Send + Sync>;

/// Sends the requests that `settings` describes, and measures their answers. Blocks until all requests are answered.
///
/// # Errors
/// An option is wrong, or a request before the measurement failed: the list of models, or a warm-up. Failures of
/// measured requests are part of the report.
pub fn run(settings: &LoadSettings, on_progress: OnProgress) -> Result<LoadReport> {
    check(settings)?;
    let client = HttpClient::new(settings.api_key.as_deref(), settings.timeout)?;
    // The runtime has one thread, so that the client takes little processor time from a server on the same machine.
    let runtime = Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let report = runtime.block_on(async {
        let model = match &settings.model {
            Some(model) => model.clone(),
            None => first_model(&client, settings).await?,
        };
        let sender = Arc::new(Sender {
            client,
            address: settings.url.v1_url(settings.endpoint.path()),
            bodies: RequestBodies::new(settings, &model)?,
            progress: Mutex::default(),
            on_progress,
        });
        warm_up(&sender, settings).await?;
        let begun = Instant::now();
        let results = send_all(&sender, settings, begun).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let peak_concurrency = sender.progress().peak_running;
        Ok(LoadReport::new(settings, model, seconds, peak_concurrency, results))
    });
    // Does not wait for blocking tasks, because a host name may still be in resolution.
    runtime.shutdown_background();
    report
}

/// Refuses settings with which a run would never end or would send no request.
fn check(settings: &LoadSettings) -> Result<()> {
    let wrong = |option: &str, what: &str, help: &str| Err(Error::usage(option, what, help));
    match settings.amount {
        RequestAmount::Requests(0) => wrong("--num-prompts", "is 0", "give 1 or more"),
        RequestAmount::Time(time) if time.is_zero() || time > MAX_TIME => {
            wrong("--duration", "is not between 0 seconds and ten years", "give another time")
        }
        RequestAmount::Time(_) if settings.request_rate.is_none() && settings.max_concurrency.is_none() => {
            wrong("--duration", "does not limit the requests in flight", "give --max-concurrency or --request-rate")
        }
        _ if settings.timeout.is_zero() || settings.timeout > MAX_TIME => {
            wrong("--timeout", "is not between 0 seconds and ten years", "give another time")
        }
        _ if settings.max_concurrency == Some(0) => wrong("--max-concurrency", "is 0", "give 1 or more"),
        _ => ArrivalTimes::new(settings.request_rate, settings.burstiness, settings.seed).map(drop),
    }
}

/// The name of the first model that the server lists.
async fn first_model(client: &HttpClient, settings: &LoadSettings) -> Result<String> {
    let address = settings.url.v1_url("models");
    let list = client.get_json(&address).await;
    let list = list.map_err(|failure| failure.of_first_request(&address))?;
    let name = list.pointer("/data/0/id").and_then(serde_json::Value::as_str);
    name.map(String::from).ok_or_else(|| Error::failed(address, "lists no model", "name one with --model"))
}

/// Sends requests and counts them.
struct Sender {
    client: HttpClient,
    address: String,
    bodies: RequestBodies,
    progress: Mutex<LoadProgress>,
    on_progress: OnProgress,
}

impl Sender {
    fn progress(&self) -> LoadProgress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut LoadProgress)) -> LoadProgress {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        *progress
    }

    /// Sends the measured request with this number. The semaphore permit is held until the request is answered.
    async fn send(
        self: Arc<Self>,
        number: u64,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<MeasuredAnswer, RequestFailure> {
        let body = self.bodies.body(number);
        self.update(|progress| {
            progress.running += 1;
            progress.peak_running = progress.peak_running.max(progress.running);
        });
        let result = self.client.stream_answer(&self.address, body).await;
        drop(permit);
        let progress = self.update(|progress| {
            progress.running -= 1;
            match &result {
                Ok(_) => progress.answered += 1,
                Err(_) => progress.failed += 1,
            }
        });
        (self.on_progress)(progress);
        result
    }
}

/// Maximum number of requests at the same time, bounded by the permits that a semaphore can have.
fn at_once(settings: &LoadSettings) -> Option<usize> {
    settings.max_concurrency.map(|n| n.min(Semaphore::MAX_PERMITS))
}

/// Sends the warm-up requests, with the same limit of concurrent requests as in the measurement.
async fn warm_up(sender: &Arc<Sender>, settings: &LoadSettings) -> Result<()> {
    let slots = Arc::new(Semaphore::new(at_once(settings).unwrap_or(Semaphore::MAX_PERMITS)));
    let mut requests = JoinSet::new();
    for i in 0..settings.warmup {
        let (sender, slots) = (sender.clone(), slots.clone());
        requests.spawn(async move {
            // Acquiring a permit cannot fail, because this semaphore is never closed.
            let _permit = slots.acquire_owned().await;
            let body = sender.bodies.body(FIRST_WARMUP + i as u64);
            sender.client.stream_answer(&sender.address, body).await
        });
    }
    while let Some(done) = requests.join_next().await {
        let result = done.unwrap_or_else(|e| resume_unwind(e.into_panic()));
        result.map_err(|failure| failure.of_first_request(&sender.address))?;
    }
    Ok(())
}

/// Sends the measured requests. Returns their results in the order in which they ended.
async fn send_all(
    sender: &Arc<Sender>,
    settings: &LoadSettings,
    begun: Instant,
) -> Result<Vec<Result<MeasuredAnswer, RequestFailure>>, Error> {
    let (most, deadline) = match settings.amount {
        RequestAmount::Requests(n) => (n as u64, begun + MAX_TIME),
        RequestAmount::Time(time) => (u64::MAX, begun + time),
    };
    let slots = at_once(settings).map(|n| Arc::new(Semaphore::new(n)));
    let arrivals = ArrivalTimes::new(settings.request_rate, settings.burstiness, settings.seed)?;
    let mut requests = JoinSet::new();
    for (number, offset) in (0..most).zip(arrivals) {
        sleep_until((begun + offset).min(deadline).into()).await;
        let permit = match &slots {
            None => None,
            // If no permit is free, this request waits here, and all later requests wait behind it.
            Some(slots) => timeout_at(deadline.into(), slots.clone().acquire_owned()).await.ok().and_then(Result::ok),
        };
        if Instant::now() >= deadline {
            break;
        }
        requests.spawn(sender.clone().send(number, permit));
    }
    let mut results = Vec::with_capacity(requests.len());
    while let Some(done) = requests.join_next().await {
        results.push(done.unwrap_or_else(|e| resume_unwind(e.into_panic())));
    }
    Ok(results)
}
