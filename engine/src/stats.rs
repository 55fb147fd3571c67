//! The engine's current state and its counters, for metrics.

/// The current state of a running batch, and its counters since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Number of sequences that decode.
    pub running: usize,
    /// Number of sequences that wait for KV blocks, for a slot, or for the prefill of their prompt.
    pub waiting: usize,
    /// Number of all KV blocks.
    pub blocks: usize,
    /// Number of KV blocks that unfinished sequences hold.
    pub blocks_in_use: usize,
    /// Number of prompt tokens that were looked up in the prefix cache.
    pub prefix_tokens_queried: u64,
    /// Number of prompt tokens that were found in the prefix cache and not computed.
    pub prefix_tokens_found: u64,
    /// Number of prompt tokens that were computed.
    pub prefill_tokens: u64,
    /// Number of tokens that decode steps have generated.
    pub generated_tokens: u64,
    /// Number of keys that the computed tokens have attended to: 1 for the first token of a prompt, 2 for the second,
    /// ….
    pub attended_keys: u64,
    /// Number of positions at which a next token was sampled.
    pub sampled_positions: u64,
    /// Number of floating-point operations of the vision tower.
    pub vision_flops: u64,
    /// Number of preemptions. A preempted sequence gives up its KV blocks to another sequence.
    pub preemptions: u64,
}
