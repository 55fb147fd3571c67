//! The time limits of a job.

use std::time::Duration;

/// The time limits of a job. All ranks should use the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The maximum time that [`Ranks::join`](crate::ranks::Ranks::join) waits for the other ranks. Default: 300 s.
    pub join: Duration,
    /// The interval of printed notes that name the missing ranks during [`Ranks::join`](crate::ranks::Ranks::join).
    /// Default: 30 s.
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
    /// The maximum time of an exchange between GPUs, which [`Ranks`](crate::ranks::Ranks) does not carry itself. It
    /// includes the time of waiting for the other ranks, which may have to decode long videos. Default: 600 s, as
    /// PyTorch has for NCCL.
    pub device_exchange: Duration,
    /// The time after a failure of the job within which a call should return the failure. After this time,
    /// `on_failure` is called. Default: 5 s.
    pub notice: Duration,
}

impl Timeouts {
    /// Sets the time without heartbeats after which a rank is considered ended, and an interval of heartbeats that
    /// suits it.
    #[must_use]
    pub fn with_silence(self, silence: Duration) -> Self {
        Self { silence, heartbeat: silence / 8, ..self }
    }

    /// The time without heartbeats after which [`Ranks::check_heartbeats`](crate::ranks::Ranks::check_heartbeats)
    /// returns an error: a quarter of `silence`, and two intervals of heartbeats.
    pub(crate) fn warning(&self) -> Duration {
        self.silence / 4
    }
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
            device_exchange: Duration::from_secs(600),
            notice: Duration::from_secs(5),
        }
    }
}
