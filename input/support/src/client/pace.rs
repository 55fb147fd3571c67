//! Rate limits: the time at which the next attempt may be sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which a wait checks the stop flag.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The size of a burst after an idle time, in seconds: the tokens that the limit allows in this many seconds may be
/// used at once.
const TOKEN_BURST_SECONDS: f64 = 10.0;

/// The rate limits of one server, and the pause that the server has asked for.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limits: Mutex<Limits>,
}

#[derive(Debug)]
struct Limits {
    requests: Option<Allowance>,
    tokens: Option<Allowance>,
    paused_until: Option<Instant>,
}

/// A token bucket: an amount that grows with time up to `most`. A request may be sent while the amount is positive.
/// Its use is then subtracted, so the amount may become negative.
#[derive(Debug)]
struct Allowance {
    per_second: f64,
    most: f64,
    available: f64,
    updated: Instant,
}

impl Allowance {
    fn new(per_minute: f64, most: impl Fn(f64) -> f64) -> Self {
        let per_second = per_minute / 60.0;
        let most = most(per_second);
        Self { per_second, most, available: most, updated: Instant::now() }
    }

    /// Returns the time until the amount is positive.
    fn wait(&mut self, now: Instant) -> Duration {
        self.available += now.saturating_duration_since(self.updated).as_secs_f64() * self.per_second;
        self.available = self.available.min(self.most);
        self.updated = now;
        // At an amount of exactly 0, no request may be sent yet. The smallest wait makes the amount positive.
        let missing = if self.available > 0.0 { 0.0 } else { (-self.available).max(1e-6) };
        Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX)
    }
}

impl RateLimiter {
    pub fn new(requests_per_minute: Option<f64>, tokens_per_minute: Option<f64>) -> Self {
        // Requests are spread evenly: idle time allows almost no burst.
        let requests = requests_per_minute.map(|rate| Allowance::new(rate, |_| 1e-3));
        let tokens = tokens_per_minute.map(|rate| Allowance::new(rate, |per_second| per_second * TOKEN_BURST_SECONDS));
        Self { limits: Mutex::new(Limits { requests, tokens, paused_until: None }) }
    }

    /// Waits until an attempt of about `tokens` tokens may be sent. Returns false if `stop` is set before that.
    pub fn wait_for_permission(&self, tokens: f64, stop: &AtomicBool) -> bool {
        loop {
            let left = self.take(tokens, Instant::now());
            if left.is_zero() {
                return true;
            }
            if !sleep(left.min(STOP_CHECK_INTERVAL), stop) {
                return false;
            }
        }
    }

    /// If a request of `tokens` tokens may be sent at `now`, subtracts the request from the limits and returns zero.
    /// Otherwise returns the time until it may be sent.
    fn take(&self, tokens: f64, now: Instant) -> Duration {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = limits.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let allowances = |limits: &mut Limits| [limits.requests.take(), limits.tokens.take()];
        let mut both = allowances(&mut limits);
        let wait = both.iter_mut().flatten().map(|allowance| allowance.wait(now)).fold(pause, Duration::max);
        if wait.is_zero() {
            for (allowance, amount) in both.iter_mut().zip([1.0, tokens]) {
                if let Some(allowance) = allowance {
                    allowance.available -= amount;
                }
            }
        }
        [limits.requests, limits.tokens] = both;
        wait
    }

    /// Corrects the token limit after an attempt: `estimated` tokens were subtracted from it, but the attempt used
    /// `used` tokens.
    pub fn correct_token_estimate(&self, estimated: f64, used: f64) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = &mut limits.tokens {
            tokens.available += estimated - used;
        }
    }

    /// Delays all attempts by this duration, because the server has asked for a pause. Returns whether the pause ends
    /// at least a second later than earlier pauses. If not, the server has asked for the same pause in replies to
    /// several requests.
    pub fn pause(&self, duration: Duration) -> bool {
        let now = Instant::now();
        let until = now.checked_add(duration);
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let before = limits.paused_until.unwrap_or(now).max(now);
        limits.paused_until = limits.paused_until.max(until);
        until.is_some_and(|until| until.saturating_duration_since(before) >= Duration::from_secs(1))
    }
}

/// Sleeps for `duration`. Returns false as soon as `stop` is set.
pub(crate) fn sleep(duration: Duration, stop: &AtomicBool) -> bool {
    let begun = Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let left = duration.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(STOP_CHECK_INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the times in seconds at which requests with these numbers of tokens are sent, each as early as the
    /// limits allow.
    fn times(pace: &RateLimiter, tokens: &[f64]) -> Vec<f64> {
        let start = Instant::now();
        let mut now = start;
        tokens
            .iter()
            .map(|&tokens| {
                loop {
                    let wait = pace.take(tokens, now);
                    if wait.is_zero() {
                        return (now - start).as_secs_f64();
                    }
                    now += wait + Duration::from_micros(1);
                }
            })
            .collect()
    }

    #[test]
    fn requests_are_spread_evenly() {
        let sent = times(&RateLimiter::new(Some(120.0), None), &[0.0; 5]);
        for (i, time) in sent.iter().enumerate() {
            assert!((time - 0.5 * i as f64).abs() < 0.01, "{sent:?}");
        }
    }

    #[test]
    fn a_pause_holds_back_all_requests() {
        let pace = RateLimiter::new(None, None);
        assert!(pace.take(1.0, Instant::now()).is_zero());
        pace.pause(Duration::from_secs(5));
        pace.pause(Duration::from_secs(1));
        assert!(pace.take(1.0, Instant::now()) > Duration::from_secs(4));
        assert!(pace.take(1.0, Instant::now() + Duration::from_secs(6)).is_zero());
        assert!(!pace.wait_for_permission(1.0, &AtomicBool::new(true)));
    }

    #[test]
    fn corrected_tokens_count() {
        let pace = RateLimiter::new(None, Some(600.0));
        assert!(pace.take(1000.0, Instant::now()).is_zero());
        assert!(pace.take(1.0, Instant::now()) > Duration::from_secs(60));
        pace.correct_token_estimate(1000.0, 10.0);
        assert!(pace.take(1.0, Instant::now()).is_zero());
    }

    proptest! {
        /// Apart from the burst, the tokens of all requests never exceed the limit times the elapsed time.
        #[test]
        fn the_token_limit_holds(tokens in proptest::collection::vec(1.0f64..5000.0, 1..30)) {
            let sent = times(&RateLimiter::new(None, Some(60_000.0)), &tokens);
            let mut before = 0.0;
            for (time, tokens) in sent.iter().zip(&tokens) {
                prop_assert!(before <= 1000.0 * (time + TOKEN_BURST_SECONDS) + 1.0, "{sent:?}");
                before += tokens;
            }
        }
    }
}
