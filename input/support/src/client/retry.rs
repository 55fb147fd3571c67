//! The wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

/// The longest wait between two attempts, unless the server asks for a longer one.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that the server may ask for. A longer wait is shortened to this maximum.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Tells whether a request may succeed later if it was answered with this HTTP status.
pub(crate) fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 500..=599)
}

/// The wait after failed attempt number `attempt` (from 1): `first`, doubled for each further attempt up to a minute,
/// times a random factor from 0.5 to 1. The random factor prevents clients that failed at the same time from retrying
/// at the same time.
pub(crate) fn backoff_delay(first: Duration, attempt: u32) -> Duration {
    let doubled = first.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(MAX_WAIT.max(first)).mul_f64(0.5 + 0.5 * random_fraction())
}

/// A random number from 0 to 1. The keys of [`RandomState`] are random.
fn random_fraction() -> f64 {
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1u64 << 53) as f64
}

/// The wait that a `Retry-After` header asks for. The header is a number of seconds or a date (RFC 9110, section
/// 10.2.3). `None` for any other value.
pub(crate) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<f64>() {
        // Some servers send fractions of seconds.
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, want) in [
            ("3", Some(3.0)),
            (" 0.25 ", Some(0.25)),
            ("100000", Some(600.0)),
            ("Sun, 06 Nov 1994 08:49:50 GMT", Some(13.0)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0.0)),
            ("-1", None),
            ("nan", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(value, now).map(|wait| wait.as_secs_f64()), want, "{value}");
        }
    }

    proptest! {
        #[test]
        fn waits_double_up_to_a_minute(first_ms in 1u64..2000, attempt in 1u32..200) {
            let first = Duration::from_millis(first_ms);
            let whole = (first.as_secs_f64() * 2f64.powi(attempt as i32 - 1)).min(60.0);
            let wait = backoff_delay(first, attempt).as_secs_f64();
            prop_assert!(wait >= 0.499 * whole && wait <= 1.001 * whole, "{wait} {whole}");
        }
    }
}
