use reel_device::Addr;

use super::formula::{RowState, state_after_token};
use super::{Params, advance};
use crate::checks::{RandomChoices, addr, addr_mut, checks, run, runs_cuda_code};

checks!(rows_move_on_as_the_formula_says_and_others_stay);

fn rows_move_on_as_the_formula_says_and_others_stay() {
    let mut picks = RandomChoices::new(1);
    for case in 0..if runs_cuda_code() { 12 } else { 60 } {
        let rows = if case == 0 { 0 } else { picks.integer_between(1, 300) };
        let (max_blocks, page_tokens) = (picks.integer_between(1, 5), picks.one_of(&[16usize, 64, 256]));
        let cols = if case % 3 == 0 { 0 } else { picks.integer_between(1, 40) };
        let most = max_blocks * page_tokens;
        let before: Vec<RowState> = (0..rows)
            .map(|_| {
                let kv_limit = picks.integer_between(1, most + 1);
                // Covers rows that are not in use, and rows with one key, with the maximum number of keys, with one
                // key fewer, and with a random number of keys.
                let kv_len = [0, 1, kv_limit, kv_limit.saturating_sub(1), picks.integer_between(0, kv_limit + 1)]
                    [picks.integer_between(0, 5)];
                RowState {
                    id: picks.integer_between(0, 1000) as i64,
                    position: picks.integer_between(0, 5000) as i64,
                    kv_len: kv_len as i64,
                    kv_limit: kv_limit as i64,
                    pages: (0..max_blocks).map(|_| picks.integer_between(0, 900) as i64).collect(),
                    slot: picks.integer_between(0, 7000) as i64,
                    draw: picks.integer_between(0, 9000) as i64,
                    history: (0..cols).map(|_| picks.integer_between(0, 1000) as i64).collect(),
                    history_len: picks.integer_between(0, cols + 1),
                }
            })
            .collect();
        let chosen: Vec<i32> = (0..rows).map(|_| picks.integer_between(0, 1001) as i32 - 1).collect();
        let want: Vec<RowState> =
            before.iter().zip(&chosen).map(|(r, &c)| state_after_token(r, c.into(), page_tokens as i64)).collect();
        assert_eq!(launched(&before, &chosen, max_blocks, page_tokens, cols), want, "case {case}");
    }
}

/// Launches the kernel on `rows` and returns their states after the launch.
fn launched(rows: &[RowState], chosen: &[i32], max_blocks: usize, page_tokens: usize, cols: usize) -> Vec<RowState> {
    let of = |f: &dyn Fn(&RowState) -> i64| -> Vec<i32> { rows.iter().map(|r| f(r) as i32).collect() };
    let (mut ids, mut positions, mut kv_lens) = (of(&|r| r.id), of(&|r| r.position), of(&|r| r.kv_len));
    let (mut slots, mut draws) = (of(&|r| r.slot), of(&|r| r.draw));
    let (kv_limits, mut lens) = (of(&|r| r.kv_limit), of(&|r| r.history_len as i64));
    let tables: Vec<i32> = rows.iter().flat_map(|r| r.pages.iter().map(|&x| x as i32)).collect();
    let mut history: Vec<i32> = rows.iter().flat_map(|r| r.history.iter().map(|&x| x as i32)).collect();
    let some = |a: Addr| if cols == 0 { Addr::NULL } else { a };
    let params = Params {
        chosen: addr(chosen),
        ids: addr_mut(&mut ids),
        positions: addr_mut(&mut positions),
        kv_lens: addr_mut(&mut kv_lens),
        kv_limits: addr(&kv_limits),
        block_tables: addr(&tables),
        slots: addr_mut(&mut slots),
        draws: addr_mut(&mut draws),
        history: some(addr_mut(&mut history)),
        history_lens: some(addr_mut(&mut lens)),
        rows: rows.len() as u32,
        max_blocks: max_blocks as u32,
        page_tokens: page_tokens as u32,
        history_cols: cols as u32,
    };
    run(&advance(&params), 2);
    let row = |r: usize| RowState {
        id: ids[r].into(),
        position: positions[r].into(),
        kv_len: kv_lens[r].into(),
        kv_limit: kv_limits[r].into(),
        pages: tables[r * max_blocks..][..max_blocks].iter().map(|&x| x.into()).collect(),
        slot: slots[r].into(),
        draw: draws[r].into(),
        history: history[r * cols..][..cols].iter().map(|&x| x.into()).collect(),
        history_len: lens[r] as usize,
    };
    (0..rows.len()).map(row).collect()
}
