use reel_device::Addr;

use crate::attention;
use crate::folder::{
    FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes,
    placeholder_params,
};

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (tokens, heads, kv_heads) = (s.get("tokens", SEQUENCE_LEN), s.get("heads", HEADS), s.get("kv_heads", KV_HEADS));
    let (head_dim, causal) = (s.get("head_dim", HEAD_DIM), s.get("causal", 1));
    let scale = 1.0 / (head_dim as f32).sqrt();
    // Sequences of equal length. With `prefix` = 1, the first sequence is the prefix of every other sequence.
    let (seqs, shares_prefix) = (s.get("seqs", 1).clamp(1, tokens.max(1)), s.get("prefix", 0) == 1);
    let max_seqlen = tokens.div_ceil(seqs);
    let ends = (0..=seqs).map(|i| (u64::from(i) * u64::from(tokens) / u64::from(seqs)) as usize);
    let lengths: Vec<usize> = ends.clone().zip(ends.skip(1)).map(|(from, to)| to - from).collect();
    let of_prefix: usize = lengths.iter().skip(1).map(|n| n * lengths[0]).sum();
    let pairs = attention::query_key_pair_count(lengths.iter().copied(), causal == 1);
    let (prefix, pairs) =
        if shares_prefix { (PLACEHOLDER_ADDRESS, pairs + of_prefix as f64) } else { (Addr::NULL, pairs) };
    let fwd = attention::FwdParams {
        prefix,
        tokens,
        seqs,
        heads,
        kv_heads,
        head_dim,
        causal,
        scale,
        max_seqlen,
        ..placeholder_params()
    };
    let bwd = attention::BwdParams {
        workspace: Addr::NULL,
        prefix,
        tokens,
        seqs,
        heads,
        kv_heads,
        head_dim,
        causal,
        scale,
        max_seqlen,
        ..placeholder_params()
    };
    let size = "one sequence of 8192 tokens, 28 query and 4 key heads of 128 elements, causal";
    let workspace = |t| if attention::workspace_bytes(t, &bwd, 90) > 0 { PLACEHOLDER_ADDRESS } else { Addr::NULL };
    let bwd = |t| attention::bwd(t, &attention::BwdParams { workspace: workspace(t), ..bwd }, pairs);
    let calls = FLOAT_DTYPES.map(|t| [attention::fwd(t, &fwd, pairs), bwd(t)]);
    calls.into_iter().flatten().map(|launch| (size, launch)).collect()
}
