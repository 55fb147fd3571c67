//! The HTTP layer below the endpoints: connections and their limits, TLS, request ids and the access log.

mod access_log;
mod body;
mod connections;
mod descriptors;
mod free_memory;
mod limited_stream;
mod stopping;
mod tls;

pub(crate) use access_log::{AccessLog, RequestLog, observe_request, random_number};
pub(crate) use body::{BodyMemory, RequestBody, read_body};
pub(crate) use connections::{PeerAddress, serve_connections};
pub(crate) use descriptors::usable_connections;
pub(crate) use free_memory::return_free_memory;
pub use tls::Tls;

use std::time::Duration;

/// What clients may hold up.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of open connections. Further connections wait in the listen backlog of the system.
    pub connections: usize,
    /// Maximum time for a TLS handshake, for the header of a request, for an idle connection, and for each
    /// MiB of a body.
    pub read_timeout: Duration,
    /// Maximum time in which a client reads nothing of its answer.
    pub write_timeout: Duration,
}
