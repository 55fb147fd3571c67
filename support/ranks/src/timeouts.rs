//! The time limits of a job.

use std::time::Duration;

/// The time limits of a job. All ranks should use the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The maximum time that [`Ranks::join`](crate::Ranks::join) waits for the other ranks. Default: 300 s.
    pub join: Duration,
    /// The interval of printed notes that name the missing ranks during [`Ranks::join`](crate::Ranks::join). Default:
    /// 30 s.
    pub note: Duration,
    /// The maximum time of a handshake between two processes. Default: 5 s.
    pub handshake: Duration,
    /// The interval of heartbeats. Default: 5 s.
    pub heartbeat: Duration,
    /// The time without heartbeats after which a rank is considered ended. Default: 40 s.
    pub silence: Duration,
    /// The maximum time that a call waits for ranks that are alive, counted from the last byte that the call sent or
    /// received. Default: 600 s, because the other ranks may write a checkpoint before they make the call.
    pub call: Duration,
    /// The time after a failure of the job within which a call should return the failure. After this time,
    /// `on_failure` is called. Default: 5 s.
    pub notice: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(300),
            note: Duration::from_secs(30),
            handshake: Duration::from_secs(5),
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(40),
            call: Duration::from_secs(600),
            notice: Duration::from_secs(5),
        }
    }
}
