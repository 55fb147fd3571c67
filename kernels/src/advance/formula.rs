//! The definition of `advance`, one row at a time.

/// The state of one row of a decode step, as the kernel's arrays hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct RowState {
    pub id: i64,
    pub position: i64,
    pub kv_len: i64,
    pub kv_limit: i64,
    pub pages: Vec<i64>,
    pub slot: i64,
    pub draw: i64,
    pub history: Vec<i64>,
    /// Number of tokens in `history`.
    pub history_len: usize,
}

/// Returns the state of `row` after the token `chosen` was sampled for it.
pub fn state_after_token(row: &RowState, chosen: i64, page_tokens: i64) -> RowState {
    let mut next = row.clone();
    if row.kv_len <= 0 {
        return next;
    }
    if let Some(place) = next.history.get_mut(row.history_len) {
        *place = chosen;
        next.history_len += 1;
    }
    if chosen < 0 || row.kv_len >= row.kv_limit {
        return RowState { kv_len: 0, slot: -1, ..next };
    }
    let key = row.kv_len;
    let slot = row.pages[(key / page_tokens) as usize] * page_tokens + key % page_tokens;
    RowState { id: chosen, position: row.position + 1, kv_len: key + 1, draw: row.draw + 1, slot, ..next }
}
