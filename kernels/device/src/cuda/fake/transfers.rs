//! Sends and receives of the fake NCCL between GPUs: how they match, and how a deadlock of the ranks is found.
//!
//! ```text
//! a stream reaches a group of sends and receives   it posts them: the bytes of sends, the sizes of receives
//! the k-th send to a rank                          matches the k-th receive from this rank there
//! a group is done                                  when each of its sends and receives has a match
//! ```
//!
//! A thread that waits for its stream also runs the streams of the other ranks up to their next group, as their GPUs
//! would do by themselves. If no rank can go on, this is a hang: the wait ends with an error that says which rank waits
//! for which other rank.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use reel_sim::memory::SimMemory;

use super::Inner;

/// A rank that has waited this long is reported as hanging, even if the rank that it waits for may still be
/// computing.
const HANG_TIME: Duration = Duration::from_secs(1200);

/// The ranks of one communicator.
#[derive(Debug)]
pub(super) struct RankGroup {
    pub size: usize,
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct GroupState {
    /// The ranks that have joined, by their number.
    pub members: HashMap<usize, JoinedRank>,
    /// The messages between ranks, by sender and receiver.
    channels: HashMap<(usize, usize), Channel>,
    /// A counter that increases with every change after which a waiting rank may be able to continue.
    version: u64,
    /// If all ranks wait for each other: a text that says which rank waits for which.
    hang: Option<String>,
}

/// A rank that has joined a communicator.
#[derive(Debug)]
pub(super) struct JoinedRank {
    pub gpu: Weak<Inner>,
    pub life: CommunicatorState,
    /// The number of NCCL groups (from ncclGroupStart to ncclGroupEnd) that this rank has enqueued.
    pub groups: u64,
    /// If a thread of this rank waits: [`GroupState::version`] at the start of the wait, and a text that says what
    /// the thread waits for.
    waits: Option<(u64, String)>,
}

/// The state of a rank's communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommunicatorState {
    Active,
    Finalized,
    Destroyed,
    Aborted,
    /// The process of the rank was killed.
    Dead,
}

impl CommunicatorState {
    /// Returns why a rank in this state can no longer send and receive; `None` if it can.
    fn end(self) -> Option<&'static str> {
        match self {
            CommunicatorState::Active => None,
            CommunicatorState::Finalized => Some("has finalized its communicator"),
            CommunicatorState::Destroyed => Some("has destroyed its communicator"),
            CommunicatorState::Aborted => Some("has aborted its communicator"),
            CommunicatorState::Dead => Some("was killed"),
        }
    }
}

#[derive(Debug, Default)]
struct Channel {
    /// The number of posted sends. `messages` has the bytes of each unfinished send, by the number of the send.
    sent: u64,
    messages: HashMap<u64, Vec<u8>>,
    /// The number of posted receives. `sizes` has the bytes of each unfinished receive, by the number of the receive.
    received: u64,
    sizes: HashMap<u64, usize>,
}

/// A part of a group: memory that is sent to a rank or received from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferPart {
    pub peer: usize,
    pub addr: u64,
    pub bytes: usize,
}

/// A group of sends and receives of one rank.
#[derive(Debug)]
pub(super) struct Transfer {
    pub group: Arc<RankGroup>,
    pub rank: usize,
    /// The number of this group among the groups that this rank has enqueued.
    pub number: u64,
    pub sends: Vec<TransferPart>,
    pub receives: Vec<TransferPart>,
    /// The indices of the group's sends and receives in the channels between the ranks; `None` until the stream has
    /// reached the group.
    pub posted: Mutex<Option<PostedParts>>,
}

#[derive(Debug)]
pub(super) struct PostedParts {
    sends: Vec<u64>,
    receives: Vec<u64>,
}

/// A group of sends and receives that cannot run before other ranks make matching calls.
pub(super) struct BlockedTransfer {
    transfer: Arc<Transfer>,
    /// [`GroupState::version`] at the time when the group could not run.
    version: u64,
    waits: String,
}

impl RankGroup {
    pub fn new(size: usize) -> RankGroup {
        RankGroup { size, state: Mutex::default(), changed: Condvar::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Changes the state and wakes the ranks that wait.
    pub fn update_and_wake<T>(&self, f: impl FnOnce(&mut GroupState) -> T) -> T {
        let mut state = self.state();
        let result = f(&mut state);
        state.version += 1;
        state.hang = None;
        self.changed.notify_all();
        result
    }

    /// Runs the streams of the other ranks until each is at its next group of this communicator.
    pub fn run_other_gpus(&self, rank: usize) {
        // No lock is held while a GPU runs, because its work locks the group.
        let others = self.state().members.iter().filter(|(r, _)| **r != rank).map(|(_, m)| m.gpu.clone()).collect();
        let others: Vec<Weak<Inner>> = others;
        for gpu in others.iter().filter_map(Weak::upgrade) {
            gpu.run_to_next_transfers(self);
        }
    }
}

impl GroupState {
    /// Records that a rank has ended its communicator, unless the rank was killed before.
    pub fn record_member_end(&mut self, rank: usize, life: CommunicatorState) {
        if let Some(member) = self.members.get_mut(&rank).filter(|m| m.life != CommunicatorState::Dead) {
            member.life = life;
        }
    }
}

impl JoinedRank {
    pub fn new(gpu: &Arc<Inner>) -> JoinedRank {
        JoinedRank { gpu: Arc::downgrade(gpu), life: CommunicatorState::Active, groups: 0, waits: None }
    }
}

impl Transfer {
    /// Runs the group if all its sends and receives have a match. Otherwise posts the group and returns it as
    /// blocked.
    ///
    /// # Errors
    /// The memory cannot be read or written.
    pub fn run_or_post(self: &Arc<Self>, memory: &mut SimMemory) -> Result<Option<BlockedTransfer>, String> {
        let mut state = self.group.state();
        if matches!(
            state.members.get(&self.rank).map(|m| m.life),
            Some(CommunicatorState::Aborted | CommunicatorState::Destroyed) | None
        ) {
            return Ok(None);
        }
        let mut posted = self.posted.lock().unwrap_or_else(|e| e.into_inner());
        if posted.is_none() {
            *posted = Some(self.post(&mut state, memory)?);
            state.version += 1;
            self.group.changed.notify_all();
        }
        let Some(numbers) = &*posted else { return Ok(None) };
        let waits = self.missing_matches(&state, numbers);
        if !waits.is_empty() {
            let waits = format!("rank {} in group {}: {}", self.rank, self.number, waits.join(", "));
            return Ok(Some(BlockedTransfer { transfer: self.clone(), version: state.version, waits }));
        }
        for (part, number) in self.sends.iter().zip(&numbers.sends) {
            state.channels.entry((self.rank, part.peer)).or_default().sizes.remove(number);
        }
        for (part, number) in self.receives.iter().zip(&numbers.receives) {
            let channel = state.channels.entry((part.peer, self.rank)).or_default();
            let message = channel.messages.remove(number).unwrap_or_default();
            if !memory.write(part.addr, &message) {
                return Err(format!("a receive of {} bytes at {:#x}", part.bytes, part.addr));
            }
        }
        state.version += 1;
        self.group.changed.notify_all();
        Ok(None)
    }

    /// Adds the bytes of sends and the sizes of receives to the channels. Returns their numbers in the channels.
    fn post(&self, state: &mut GroupState, memory: &SimMemory) -> Result<PostedParts, String> {
        let mut posted = PostedParts { sends: Vec::new(), receives: Vec::new() };
        for part in &self.sends {
            let message = memory.read(part.addr, part.bytes).map_err(|e| format!("a send {e}"))?.to_vec();
            let channel = state.channels.entry((self.rank, part.peer)).or_default();
            channel.messages.insert(channel.sent, message);
            posted.sends.push(channel.sent);
            channel.sent += 1;
        }
        for part in &self.receives {
            let channel = state.channels.entry((part.peer, self.rank)).or_default();
            channel.sizes.insert(channel.received, part.bytes);
            posted.receives.push(channel.received);
            channel.received += 1;
        }
        Ok(posted)
    }

    /// Describes the sends and receives of this group that have no match.
    fn missing_matches(&self, state: &GroupState, posted: &PostedParts) -> Vec<String> {
        let end = |peer: usize| match state.members.get(&peer).and_then(|m| m.life.end()) {
            Some(end) => format!(", which {end}"),
            None => String::new(),
        };
        let sends = self.sends.iter().zip(&posted.sends).filter_map(|(part, number)| {
            let TransferPart { peer, bytes, .. } = *part;
            let channel = state.channels.get(&(self.rank, peer))?;
            match channel.sizes.get(number) {
                Some(&size) if size == bytes => None,
                Some(size) => Some(format!("sends {bytes} bytes to rank {peer}, which receives {size} bytes")),
                // The receiver has already completed its side of this transfer.
                None if channel.received > *number => None,
                None => Some(format!("sends {bytes} bytes to rank {peer}{}", end(peer))),
            }
        });
        let receives = self.receives.iter().zip(&posted.receives).filter_map(|(part, number)| {
            let TransferPart { peer, bytes, .. } = *part;
            let channel = state.channels.get(&(peer, self.rank));
            match channel.and_then(|c| c.messages.get(number)) {
                Some(message) if message.len() == bytes => None,
                Some(message) => {
                    Some(format!("receives {bytes} bytes from rank {peer}, which sends {} bytes", message.len()))
                }
                None => Some(format!("receives {bytes} bytes from rank {peer}{}", end(peer))),
            }
        });
        sends.chain(receives).collect()
    }

    /// Iterates over the memory ranges that the group uses.
    pub fn memory_ranges(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.sends.iter().chain(&self.receives).map(|part| (part.addr, part.bytes))
    }
}

impl BlockedTransfer {
    /// Returns the communicator, and the number of the rank that waits.
    pub fn waiting_rank(&self) -> (&Arc<RankGroup>, usize) {
        (&self.transfer.group, self.transfer.rank)
    }

    /// Waits until another rank has made a change after which the group may be able to run. No lock may be held.
    ///
    /// # Errors
    /// No rank can continue. The error says which rank waits for which.
    pub fn wait(self) -> Result<(), String> {
        let (group, rank) = self.waiting_rank();
        group.run_other_gpus(rank);
        let start = Instant::now();
        let mut state = group.state();
        let mark = |state: &mut GroupState, waits: Option<(u64, String)>| {
            if let Some(member) = state.members.get_mut(&rank) {
                member.waits = waits;
            }
        };
        mark(&mut state, Some((self.version, self.waits.clone())));
        while state.version == self.version && state.hang.is_none() {
            let can_go_on = |m: &JoinedRank| {
                m.life.end().is_none() && m.waits.as_ref().is_none_or(|(version, _)| *version != self.version)
            };
            if !state.members.values().any(can_go_on) || start.elapsed() > HANG_TIME {
                let mut waits: Vec<&String> =
                    state.members.values().filter_map(|m| Some(&m.waits.as_ref()?.1)).collect();
                waits.sort();
                let waits = waits.into_iter().map(String::as_str).collect::<Vec<_>>().join("; ");
                state.hang = Some(format!("the GPU would wait forever: {waits}"));
                group.changed.notify_all();
                break;
            }
            let woken = group.changed.wait_timeout(state, Duration::from_millis(100));
            state = woken.unwrap_or_else(|e| e.into_inner()).0;
        }
        mark(&mut state, None);
        match &state.hang {
            Some(hang) if state.version == self.version => Err(hang.clone()),
            _ => Ok(()),
        }
    }
}
