//! Decides on rank 0 whether the job has failed, and which rank is the cause.
//!
//! The input is the information that rank 0 receives from the other ranks: heartbeats, activities, closed
//! connections. Only rank 0 decides, so that all ranks report the same cause. This module has no connections and gets
//! the time as an argument, so tests can simulate any amount of time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::diagnostic::Diagnostic;

use crate::ranks::call::{Call, CallKind, RankActivity, mismatched_calls};
use crate::ranks::error::{RankError, format_rank_list, format_ranks};
use crate::ranks::member::JobMember;
use crate::ranks::timeouts::Timeouts;

/// The time after which a suspicion counts as a failure. If the suspected rank was killed, its connection to rank 0
/// closes within this time, and the closed connection is the better explanation.
const SUSPICION_TIME: Duration = Duration::from_secs(2);

/// The state of all ranks, as far as rank 0 knows it.
#[derive(Debug)]
pub(crate) struct FailureDetector {
    members: Vec<JobMember>,
    peers: Vec<Peer>,
    suspicions: Vec<Suspicion>,
    timeouts: Timeouts,
    /// Whether ranks that have left must stay connected until all ranks have left.
    leaves_together: bool,
}

#[derive(Debug)]
struct Peer {
    /// The time at which bytes last arrived from the rank.
    last_received: Instant,
    activity: RankActivity,
    has_left: bool,
}

/// A report that rank `by` cannot reach rank `about`, to which `call` needs a connection.
#[derive(Debug)]
struct Suspicion {
    by: usize,
    about: usize,
    call: Call,
    since: Instant,
}

impl FailureDetector {
    /// Creates the detector. `leaves_together`: a rank that has left must not end before all ranks have left.
    pub fn new(members: Vec<JobMember>, timeouts: Timeouts, leaves_together: bool, now: Instant) -> Self {
        let peer = |_: &JobMember| Peer { last_received: now, activity: RankActivity::default(), has_left: false };
        Self { peers: members.iter().map(peer).collect(), members, suspicions: Vec::new(), timeouts, leaves_together }
    }

    /// Records the time at which bytes last arrived from a rank.
    pub fn record_receive_time(&mut self, rank: usize, at: Instant) {
        self.peers[rank].last_received = at;
    }

    /// Records the activity of a rank.
    pub fn record_activity(&mut self, rank: usize, activity: RankActivity) {
        self.peers[rank].activity = activity;
    }

    /// Records that a rank will make no more calls.
    pub fn record_leave(&mut self, rank: usize) {
        self.peers[rank].has_left = true;
    }

    /// Records that rank `by` cannot reach rank `about`.
    pub fn record_suspicion(&mut self, by: usize, about: usize, call: Call, now: Instant) {
        if about < self.peers.len() {
            self.suspicions.push(Suspicion { by, about, call, since: now });
        }
    }

    /// Returns the failure that a closed control connection means; `None` if the rank has left and may end.
    pub fn failure_of_closed_connection(&self, rank: usize) -> Option<RankError> {
        self.is_needed(&self.peers[rank]).then(|| process_ended_error(&self.members[rank]))
    }

    /// Tells whether the job fails if this rank ends now.
    fn is_needed(&self, peer: &Peer) -> bool {
        !peer.has_left || self.leaves_together
    }

    /// Whether all ranks but rank 0 have left.
    pub fn all_others_have_left(&self) -> bool {
        self.peers[1..].iter().all(|peer| peer.has_left)
    }

    /// Returns the failure of the job, if the job has failed at this time.
    pub fn failure(&self, now: Instant) -> Option<RankError> {
        self.silent_rank(now, self.timeouts.silence)
            .or_else(|| self.lost_connection(now))
            .or_else(|| self.mismatch())
            .or_else(|| self.stall())
    }

    /// Returns the error of a rank that has sent no heartbeats for longer than `limit`.
    pub fn silent_rank(&self, now: Instant, limit: Duration) -> Option<RankError> {
        let is_silent = |peer: &Peer| self.is_needed(peer) && now.duration_since(peer.last_received) > limit;
        let rank = (1..self.peers.len()).find(|rank| is_silent(&self.peers[*rank]))?;
        Some(silent_rank_error(&self.members[rank], limit))
    }

    /// Returns the failure of a rank that another rank cannot reach.
    fn lost_connection(&self, now: Instant) -> Option<RankError> {
        let failure = |suspicion: &Suspicion| {
            if self.peers[suspicion.about].has_left {
                return Some(self.has_left(suspicion.about, suspicion.by, &suspicion.call));
            }
            (now.duration_since(suspicion.since) > SUSPICION_TIME).then(|| self.unreachable(suspicion))
        };
        self.suspicions.iter().find_map(failure)
    }

    /// Returns the failure of two ranks whose collectives of the same number differ. Most mismatches are found in the
    /// headers of messages. But ranks that wait for each other's connection send no message, so their mismatch is
    /// found here.
    fn mismatch(&self) -> Option<RankError> {
        let calls = self.peers.iter().map(|peer| peer.activity.call.as_ref()).enumerate();
        let calls = calls.filter_map(|(rank, call)| Some((rank, call.filter(|call| call.is_collective())?)));
        let mut by_number = BTreeMap::new();
        for (rank, call) in calls {
            let (first, same) = *by_number.entry(call.sequence).or_insert((rank, call));
            if (same.kind, &same.name) != (call.kind, &call.name) {
                return Some(mismatched_calls((rank, call), (first, same)));
            }
        }
        None
    }

    /// Returns the failure of a rank whose call needs a rank that has left, or waits for other ranks longer than the
    /// limit.
    fn stall(&self) -> Option<RankError> {
        (0..self.peers.len()).find_map(|rank| {
            let RankActivity { call, waiting_ms, .. } = &self.peers[rank].activity;
            let (call, waiting) = (call.as_ref()?, Duration::from_millis((*waiting_ms)?));
            let missing = self.missing(rank, call);
            if let Some(left) = missing.iter().find(|rank| self.peers[**rank].has_left) {
                return Some(self.has_left(*left, rank, call));
            }
            (waiting > self.timeouts.call).then(|| self.missing_too_long(rank, call, &missing))
        })
    }

    /// Returns the ranks for which rank `by` waits in this call and that have not made the call.
    fn missing(&self, by: usize, call: &Call) -> Vec<usize> {
        let has_called = |rank: usize| match call.kind {
            CallKind::Leave => self.peers[rank].has_left,
            _ => self.peers[rank].activity.collectives > call.sequence,
        };
        (0..self.peers.len()).filter(|rank| *rank != by && !has_called(*rank)).collect()
    }

    fn has_left(&self, rank: usize, waiting: usize, call: &Call) -> RankError {
        let what = format!("has left, but rank {waiting} waits for it in {call}");
        failure(&self.members[rank], what, "look at the output of this rank: an error of its own may have stopped it")
    }

    fn unreachable(&self, suspicion: &Suspicion) -> RankError {
        let what =
            format!("cannot be reached by {}, which waits for it in {}", self.members[suspicion.by], suspicion.call);
        let help = "let the processes of the job connect to each other at all ports (firewall, network policy)";
        failure(&self.members[suspicion.about], what, help)
    }

    fn missing_too_long(&self, by: usize, call: &Call, missing: &[usize]) -> RankError {
        let seconds = self.timeouts.call.as_secs_f64();
        let Some(first) = missing.first() else {
            let what = format!("has moved no data for {seconds} s in {call}, although no rank is missing");
            return failure(&self.members[by], what, "check the network between the machines");
        };
        let others = if missing.len() > 1 {
            format!(", as are ranks {}", format_rank_list(&missing[1..]))
        } else {
            String::new()
        };
        let waiting = format!("rank {by} has waited {seconds} s for it in {call}");
        let what = format!("is missing{others}: {waiting}, and {}", self.last_call(*first));
        let help = format!("look at the output of {}, which may wait for something else", format_ranks(missing));
        failure(&self.members[*first], what, &help)
    }

    fn last_call(&self, rank: usize) -> String {
        let RankActivity { call, waiting_ms, .. } = &self.peers[rank].activity;
        match call {
            Some(call) if waiting_ms.is_some() => format!("rank {rank} is in {call}"),
            Some(call) => format!("the last call of rank {rank} was {call}"),
            None => format!("rank {rank} has made no call"),
        }
    }
}

fn failure(member: &JobMember, what: String, help: &str) -> RankError {
    RankError { diagnostic: Diagnostic::new(member.to_string(), what, help), rank: Some(member.rank) }
}

/// Returns the failure of a rank whose connection has closed.
pub(crate) fn process_ended_error(member: &JobMember) -> RankError {
    let help = "look at the output of this rank; if it shows no error, the kernel may have killed the rank for lack of \
                memory (dmesg)";
    failure(member, "ended".into(), help)
}

/// Returns the failure of a rank that has sent no heartbeats for this time.
pub(crate) fn silent_rank_error(member: &JobMember, time: Duration) -> RankError {
    let what = format!("has sent no heartbeat for {} s", time.as_secs_f64());
    let help = "check that the machine of this rank runs and can be reached, and that its process is not stopped";
    failure(member, what, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::launch::Transport;

    fn detector(size: usize, now: Instant) -> FailureDetector {
        let member = |rank| JobMember {
            rank,
            host: "node".into(),
            pid: 10 + rank as u32,
            machine: String::new(),
            addresses: Vec::new(),
            port: 1,
            transport: Transport::Sockets,
        };
        FailureDetector::new((0..size).map(member).collect(), Timeouts::default(), false, now)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn barrier(sequence: u64) -> Call {
        Call::new(CallKind::Barrier, &format!("step {sequence}"), sequence)
    }

    fn waits(call: Call, collectives: u64, time: Duration) -> RankActivity {
        RankActivity { call: Some(call), waiting_ms: Some(time.as_millis() as u64), collectives }
    }

    #[test]
    fn silence_counts_from_the_last_bytes() {
        let now = Instant::now();
        let mut detector = detector(3, now);
        detector.record_receive_time(1, now + seconds(20));
        assert_eq!(detector.failure(now + seconds(40)), None);
        let error = detector.failure(now + seconds(41)).expect("rank 2 is silent");
        assert_eq!(error.rank, Some(2));
        assert!(
            error.to_string().starts_with("rank 2 (node, process 12): has sent no heartbeat for 40 s; "),
            "{error}"
        );
        detector.record_leave(2);
        assert_eq!(detector.failure(now + seconds(60)), None, "the silence of a rank that has left is no failure");
        assert_eq!(detector.failure(now + seconds(61)).and_then(|e| e.rank), Some(1));
    }

    #[test]
    fn a_lost_connection_is_explained_by_what_else_is_known_of_the_rank() {
        let now = Instant::now();
        let mut detector = detector(3, now);
        detector.record_suspicion(1, 2, barrier(0), now);
        assert_eq!(detector.failure(now + seconds(1)), None);
        assert_eq!(
            detector.failure_of_closed_connection(2).map(|e| e.rank),
            Some(Some(2)),
            "the killed rank's own connection ends"
        );
        let error = detector.failure(now + seconds(3)).expect("a failure").to_string();
        assert!(error.contains("rank 2 (node, process 12): cannot be reached by rank 1 (node, process 11)"), "{error}");
        detector.record_leave(2);
        let error = detector.failure(now).expect("a failure").to_string();
        assert!(error.contains("has left, but rank 1 waits for it in barrier 'step 0'"), "{error}");
        assert_eq!(detector.failure_of_closed_connection(2), None);
    }

    #[test]
    fn ranks_that_do_not_come_are_named_with_their_last_call() {
        let now = Instant::now();
        let mut detector = detector(4, now);
        detector.record_activity(0, waits(barrier(7), 8, seconds(599)));
        detector.record_activity(1, waits(barrier(7), 8, seconds(0)));
        detector.record_activity(2, RankActivity { call: Some(barrier(6)), waiting_ms: None, collectives: 7 });
        assert_eq!(detector.failure(now), None);
        detector.record_activity(1, waits(barrier(7), 8, seconds(601)));
        let error = detector.failure(now).expect("a failure");
        assert_eq!(error.rank, Some(2));
        let text = error.to_string();
        for part in
            ["is missing, as are ranks 3: rank 1 has waited 600 s for it in barrier 'step 7'", "was barrier 'step 6'"]
        {
            assert!(text.contains(part), "{text}");
        }
        detector.record_activity(2, waits(barrier(7), 8, seconds(0)));
        let error = detector.failure(now).expect("a failure").to_string();
        assert!(error.contains("rank 3 has made no call; look at the output of rank 3"), "{error}");
        detector.record_activity(3, waits(barrier(7), 8, seconds(0)));
        let error = detector.failure(now).expect("a failure").to_string();
        assert!(error.contains("although no rank is missing"), "{error}");
    }

    #[test]
    fn ranks_in_different_calls_of_one_number_are_named() {
        let now = Instant::now();
        let mut detector = detector(3, now);
        let gather = Call::new(CallKind::AllGather, "metrics", 3);
        detector.record_activity(0, waits(barrier(3), 4, seconds(0)));
        detector.record_activity(1, waits(barrier(4), 5, seconds(0)));
        assert_eq!(detector.failure(now), None);
        detector.record_activity(2, waits(gather, 4, seconds(0)));
        let error = detector.failure(now).expect("a failure").to_string();
        assert!(
            error.starts_with("rank 2: is in all_gather 'metrics', but rank 0 is in barrier 'step 3'; "),
            "{error}"
        );
    }

    #[test]
    fn ranks_that_have_left_are_missed_only_by_calls_that_they_have_not_made() {
        let now = Instant::now();
        let mut detector = detector(3, now);
        detector.record_activity(2, RankActivity { call: Some(barrier(3)), waiting_ms: None, collectives: 4 });
        detector.record_leave(2);
        detector.record_activity(1, waits(barrier(3), 4, seconds(0)));
        detector.record_activity(0, RankActivity { call: None, waiting_ms: None, collectives: 4 });
        assert_eq!(detector.failure(now), None, "the bytes of the rank that has left may still arrive");
        detector.record_activity(1, waits(barrier(4), 5, seconds(0)));
        assert_eq!(detector.failure(now).and_then(|e| e.rank), Some(2));
    }
}
