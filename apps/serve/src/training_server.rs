//! A server beside a training run. It answers requests with the model in training.
//!
//! The training run calls [`TrainingServer::lend_device`] between its launches, at moments without activations in
//! memory. Requests then use the device for their share of the time. Each call adds the requests' share of the
//! elapsed time to an account. The turns of the engine's thread are subtracted from this account.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reel_model::features::FeatureCache;
use reel_model::qwen2_5_vl::Qwen25Vl;

use crate::api::shared::ServerState;
use crate::device_turns::{DeviceBorrower, DeviceTurns};
use crate::server::serve_with_turns;
use crate::settings::{ServeError, ServeOptions, ServedModel, ServedWeights};

/// Maximum time that the account can hold, reached while there are no requests.
const MAX_SAVED: Duration = Duration::from_secs(1);

/// Size of the feature cache for vision tokens of requests, in bytes of host memory (256 MiB). It is used if the run
/// trains the vision tower, because such a run has no feature cache.
const VISION_CACHE_BYTES: usize = 256 << 20;

/// A server that answers requests with a model while the model is trained. Dropping the server ends it as
/// [`TrainingServer::finish`] does.
#[derive(Debug)]
pub struct TrainingServer {
    turns: Arc<DeviceTurns>,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The model and the options to start the server with; `None` once it was started.
    prepared: Option<(ServedModel, ServeOptions)>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    /// The state that the handlers share. Only the handlers keep it alive, so that the server can end.
    shared: Weak<ServerState>,
    account: Account,
}

/// An account of the time that requests may take from training.
#[derive(Debug)]
struct Account {
    /// Seconds that requests get for each second of training.
    rate: f64,
    /// Saved time in seconds. Below 0 if the last turn was longer than the time that was saved.
    saved: f64,
    /// The end of the last call.
    counted: Instant,
}

impl Account {
    fn new(share: f64) -> Self {
        Self { rate: share / (1.0 - share), saved: 0.0, counted: Instant::now() }
    }

    /// Adds the requests' share of the training time since the last call. Returns the time that a turn may take now.
    fn turn(&mut self, now: Instant) -> Option<Duration> {
        let trained = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.saved = (self.saved + trained * self.rate).min(MAX_SAVED.as_secs_f64());
        (self.saved > 0.0).then(|| Duration::from_secs_f64(self.saved))
    }

    /// Subtracts the time of a turn that has just ended from the account.
    fn spend(&mut self, time: Duration, now: Instant) {
        self.saved -= time.as_secs_f64();
        self.counted = now;
    }
}

impl TrainingServer {
    /// Creates a server that takes at most `share` (above 0, below 1) of the time from training while there are
    /// requests. It listens after [`TrainingServer::start`]. Its end sets [`ServeOptions::stop`].
    pub fn new(model: ServedModel, options: ServeOptions, share: f64) -> Self {
        let stop = options.stop.clone();
        let account = Account::new(share);
        let state = State { prepared: Some((model, options)), thread: None, shared: Weak::new(), account };
        Self { turns: Arc::default(), stop, state: Mutex::new(state) }
    }

    /// Starts to answer requests with `model`, which has the weights after training step `step`. Later steps change
    /// these weights in place. Returns the address.
    ///
    /// # Errors
    /// The server cannot listen on the address; the device is out of memory; the server was started before.
    pub fn start(&self, model: &Qwen25Vl, step: u64) -> Result<SocketAddr, ServeError> {
        let mut state = self.state();
        let Some((served, options)) = state.prepared.take() else {
            return Err(std::io::Error::other("the server of a training run was started twice").into());
        };
        let mut weights = model.clone();
        weights.features.get_or_insert_with(|| Arc::new(FeatureCache::new(VISION_CACHE_BYTES)));
        let weights = ServedWeights { weights, name: step_name(&served.name, step) };
        let (listening, started) = mpsc::channel();
        let borrower = DeviceBorrower(self.turns.clone());
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            serve_with_turns(served, weights, options, Some(borrower), |address, shared| {
                // The receiver waits for it.
                let _ = listening.send((address, Arc::downgrade(shared)));
            })
        })?;
        // The engine allocates its KV cache before the server listens, so the first step's peak of memory includes it.
        self.turns.begin_host_work();
        let started = started.recv();
        self.turns.end_host_work();
        match started {
            Ok((address, shared)) => {
                (state.shared, state.thread) = (shared, Some(thread));
                state.account.counted = Instant::now();
                Ok(address)
            }
            // The sender was dropped, so the server has ended.
            Err(mpsc::RecvError) => match thread.join() {
                Ok(outcome) => Err(outcome.err().unwrap_or(ServeError::EnginePanicked)),
                Err(_) => Err(ServeError::EnginePanicked),
            },
        }
    }

    /// Lets requests use the device for their share of the time since the last call. Returns at once if there are no
    /// requests.
    pub fn lend_device(&self) {
        let mut state = self.state();
        if let Some(time) = state.account.turn(Instant::now()) {
            let taken = self.turns.lend_device_for(time);
            state.account.spend(taken, Instant::now());
        }
    }

    /// Lets requests use the device until [`TrainingServer::end_host_work`]. This time is not subtracted from the
    /// account of requests.
    pub fn begin_host_work(&self) {
        self.turns.begin_host_work();
    }

    /// Takes the device back, after the end of the step that is running for requests.
    pub fn end_host_work(&self) {
        self.turns.end_host_work();
        self.state().account.counted = Instant::now();
    }

    /// Makes requests continue with the weights after training step `step`. The run has already written these weights
    /// in place.
    pub fn weights_changed(&self, step: u64) {
        self.turns.weights_changed();
        if let Some(shared) = self.state().shared.upgrade() {
            shared.set_weights_name(step_name(&shared.model.name, step));
            shared.metrics.record_weight_replacement();
        }
    }

    /// Ends the server. New requests are refused, and running requests are answered. The run must not use the device
    /// any more.
    ///
    /// # Errors
    /// The server has ended before, by an error of its device or a panic.
    pub fn finish(&self) -> Result<(), ServeError> {
        self.stop.store(true, Ordering::SeqCst);
        self.turns.begin_host_work();
        let thread = self.state().thread.take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or(Err(ServeError::EnginePanicked)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TrainingServer {
    fn drop(&mut self) {
        // The error is dropped. To report it, the caller must call `finish` before the drop.
        let _ = self.finish();
    }
}

/// The name of the weights after a training step, for `/v1/models`.
fn step_name(model: &str, step: u64) -> String {
    format!("{model}/step-{step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_their_share_of_the_time() {
        let second = Duration::from_secs(1);
        let mut account = Account::new(0.2);
        let mut now = account.counted;
        let (mut trained, mut served) = (Duration::ZERO, Duration::ZERO);
        for i in 0..1000u32 {
            let work = second / (1 + i % 7);
            trained += work;
            now += work;
            // A turn has at least one step, which may take longer than the saved time.
            let Some(time) = account.turn(now) else { continue };
            let turn = time.max(second * (i % 3) / 2);
            served += turn;
            now += turn;
            account.spend(turn, now);
        }
        let share = served.as_secs_f64() / (trained + served).as_secs_f64();
        assert!((share - 0.2).abs() < 0.01, "{share}");
    }

    #[test]
    fn a_server_without_requests_saves_little_time() {
        let mut account = Account::new(0.5);
        let now = account.counted;
        assert_eq!(account.turn(now + Duration::from_secs(1000)), Some(MAX_SAVED));
    }
}
