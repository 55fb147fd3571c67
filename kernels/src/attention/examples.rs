use crate::folder::{
    FLOAT_DTYPES, HEAD_DIM, HEADS, KV_HEADS, LabeledLaunches, PLACEHOLDER_ADDRESS, SEQUENCE_LEN, Sizes,
    placeholder_params,
};
use crate::{Addr, attention};

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let (tokens, heads, kv_heads) = (s.get("tokens", SEQUENCE_LEN), s.get("heads", HEADS), s.get("kv_heads", KV_HEADS));
    let (head_dim, causal) = (s.get("head_dim", HEAD_DIM), s.get("causal", 1));
    let scale = 1.0 / (head_dim as f32).sqrt();
    let pairs = attention::query_key_pair_count([tokens as usize], causal == 1);
    let (seqs, max_seqlen, prefix) = (1, tokens, Addr::NULL);
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
    let workspace = |t| if attention::workspace_bytes(t, &bwd) > 0 { PLACEHOLDER_ADDRESS } else { Addr::NULL };
    let bwd = |t| attention::bwd(t, &attention::BwdParams { workspace: workspace(t), ..bwd }, pairs);
    let calls = FLOAT_DTYPES.map(|t| [attention::fwd(t, &fwd, pairs), bwd(t)]);
    calls.into_iter().flatten().map(|launch| (size, launch)).collect()
}
