//! A server beside a training run, which answers with the weights in training.
//!
//! The run calls [`TrainingServer::lend_device`] between its launches, where it holds no activations. Requests then get
//! the device for their share of the time: each call adds time to an account, from which turns are paid.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reel_model::features::FeatureCache;
use reel_model::qwen2_5_vl::Qwen25Vl;

use crate::api::shared::Shared;
use crate::device_turns::{Borrower, DeviceTurns};
use crate::server::serve_in_turns;
use crate::settings::{ServeError, ServeOptions, ServedModel, ServedWeights};

/// The most time that the account of a server without requests has saved.
const MAX_SAVED: Duration = Duration::from_secs(1);

/// Host memory for the vision tokens of requests (256 MiB), if the run trains the vision tower and so keeps none
/// itself.
const VISION_CACHE_BYTES: usize = 256 << 20;

/// A server that answers requests with a model while it is trained. Dropping it ends it as [`TrainingServer::finish`]
/// does.
#[derive(Debug)]
pub struct TrainingServer {
    turns: Arc<DeviceTurns>,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the server is started with.
    prepared: Option<(ServedModel, ServeOptions)>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    /// What the handlers share. They alone keep it, so that the server can end.
    shared: Weak<Shared>,
    account: Account,
}

/// The time that requests may take from training.
#[derive(Debug)]
struct Account {
    /// Seconds that requests get for each second of training.
    rate: f64,
    /// Seconds saved; below 0 if the last turn was longer than what was saved.
    saved: f64,
    /// The end of the last call.
    counted: Instant,
}

impl Account {
    fn new(share: f64) -> Self {
        Self { rate: share / (1.0 - share), saved: 0.0, counted: Instant::now() }
    }

    /// Adds the share of the time since the last turn. Returns the time that a turn may take now.
    fn turn(&mut self, now: Instant) -> Option<Duration> {
        let trained = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.saved = (self.saved + trained * self.rate).min(MAX_SAVED.as_secs_f64());
        (self.saved > 0.0).then(|| Duration::from_secs_f64(self.saved))
    }

    /// Subtracts a turn that has ended now.
    fn spend(&mut self, time: Duration, now: Instant) {
        self.saved -= time.as_secs_f64();
        self.counted = now;
    }
}

impl TrainingServer {
    /// A server that takes at most `share` (above 0, below 1) of the time from training while there are requests. It
    /// listens once it is started. [`ServeOptions::stop`] is set when it ends.
    pub fn new(model: ServedModel, options: ServeOptions, share: f64) -> Self {
        let stop = options.stop.clone();
        let account = Account::new(share);
        let state = State { prepared: Some((model, options)), thread: None, shared: Weak::new(), account };
        Self { turns: Arc::default(), stop, state: Mutex::new(state) }
    }

    /// Starts to answer requests with `model`, whose weights are those after training step `step` and are changed in
    /// place by later ones. Returns the address.
    ///
    /// # Errors
    /// The address cannot be listened on; the device is out of memory; the server was started before.
    pub fn start(&self, model: &Qwen25Vl, step: u64) -> Result<SocketAddr, ServeError> {
        let mut state = self.state();
        let Some((served, options)) = state.prepared.take() else {
            return Err(std::io::Error::other("the server of a training run was started twice").into());
        };
        let mut weights = model.clone();
        weights.features.get_or_insert_with(|| Arc::new(FeatureCache::new(VISION_CACHE_BYTES)));
        let weights = ServedWeights { weights, name: step_name(&served.name, step) };
        let (listening, started) = mpsc::channel();
        let borrower = Borrower(self.turns.clone());
        let thread = std::thread::Builder::new().name("server".into()).spawn(move || {
            serve_in_turns(served, weights, options, Some(borrower), |address, shared| {
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
            // The sender is dropped: the server has ended.
            Err(mpsc::RecvError) => match thread.join() {
                Ok(outcome) => Err(outcome.err().unwrap_or(ServeError::EnginePanicked)),
                Err(_) => Err(ServeError::EnginePanicked),
            },
        }
    }

    /// Lets requests use the device for their share of the time since the last call. Returns at once if there are none.
    pub fn lend_device(&self) {
        let mut state = self.state();
        if let Some(time) = state.account.turn(Instant::now()) {
            let taken = self.turns.lend(time);
            state.account.spend(taken, Instant::now());
        }
    }

    /// Lets requests use the device until [`TrainingServer::end_host_work`]. This time is not charged to them.
    pub fn begin_host_work(&self) {
        self.turns.begin_host_work();
    }

    /// Takes the device back after the step that requests are doing.
    pub fn end_host_work(&self) {
        self.turns.end_host_work();
        self.state().account.counted = Instant::now();
    }

    /// Makes requests go on with the weights after training step `step`, which the run has written in place.
    pub fn weights_changed(&self, step: u64) {
        self.turns.weights_changed();
        if let Some(shared) = self.state().shared.upgrade() {
            shared.set_weights(step_name(&shared.model.name, step));
            shared.metrics.weights_replaced();
        }
    }

    /// Ends the server: new requests are refused, and running ones are answered. The run no longer uses the device.
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
        // The error is lost here; a caller that reports it calls `finish` before.
        let _ = self.finish();
    }
}

/// The name of the weights of a run after a step, for `/v1/models`.
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
            // A turn has at least one step, which may take longer than what is saved.
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
