use reel_device::{SimOptions, compile};

use super::*;
use crate::tensor::ops::{RowSampling, SampledTokens, SamplingParams, SamplingTable, SequencePages, sample};

fn devices() -> Vec<Device> {
    let sim = compile::skip_without_nvrtc()
        .map(|()| Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap());
    [Device::cpu(2)].into_iter().chain(sim).collect()
}

fn slot(id: i32, keys: usize, limit: usize, blocks: &[i32]) -> DecodeSlot<'_> {
    DecodeSlot { id, position: keys as i32 + 10, keys, limit, blocks, draw: keys as i32, history: &[], adapter: -1 }
}

#[test]
fn advance_moves_rows_through_their_blocks_until_the_limit() {
    for device in devices() {
        let cx = Cx::inference(&device, DType::F32);
        let rows = DecodeRows::new(&device, 4, 3, 5).unwrap();
        let history = [8, 9];
        let long = DecodeSlot { history: &history, ..slot(5, 63, 130, &[7, 2, 11]) };
        rows.assign_rows(1, &[long, slot(6, 2, 3, &[4])]).unwrap();
        let chosen = Tensor::from_i32(&device, &[4], &[1, 2, 3, 4]).unwrap();
        let state = |t: &Tensor| t.to_i32().unwrap();
        assert_eq!(state(&rows.slots), [-1, 7 * 64 + 62, 4 * 64 + 1, -1]);
        // The cache slots of row 1 and row 2 after each step.
        for (step, want) in [[7 * 64 + 63, 4 * 64 + 2], [2 * 64, -1], [2 * 64 + 1, -1]].into_iter().enumerate() {
            rows.advance(&cx, &chosen).unwrap();
            assert_eq!(state(&rows.slots), [-1, want[0], want[1], -1], "{device:?}, step {step}");
        }
        assert_eq!(state(&rows.kv_lens), [0, 66, 0, 0]);
        assert_eq!(state(&rows.ids), [0, 2, 3, 0]);
        assert_eq!(state(&rows.positions), [0, 76, 13, 0]);
        assert_eq!(state(&rows.draws), [0, 66, 3, 0]);
        let (tokens, lens) = rows.history().unwrap();
        assert_eq!(state(&tokens.rows(1, 1).unwrap()), [8, 9, 2, 2, 2]);
        assert_eq!(state(lens), [0, 5, 2, 0]);
        rows.clear_rows(1, 1).unwrap();
        assert_eq!((state(&rows.kv_lens), state(&rows.slots)), (vec![0; 4], vec![-1; 4]));
    }
}

/// In a decode step, several blocks of threads compute segments of each row's keys. The result has the same bits as
/// attention for each sequence alone. Two rows share the pages of their first 512 keys.
#[test]
fn attention_of_decode_rows_equals_that_of_each_sequence_alone() {
    const HEADS: usize = 14;
    const KV_HEADS: usize = 2;
    const D: usize = 64;
    let numbers = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1013) as f32 / 506.0 - 1.0).collect()
    };
    let shared: Vec<i32> = (0..8).collect();
    let tables: [Vec<i32>; 3] = [[&shared[..], &[8, 9]].concat(), [&shared[..], &[10]].concat(), vec![11, 12]];
    let lens = [600, 530, 70];
    for device in devices() {
        let cx = Cx::inference(&device, DType::BF16);
        let tensor = |shape: &[usize], seed| {
            let values = numbers(shape.iter().product(), seed);
            Tensor::from_f32(&device, shape, DType::BF16, &values, reel_device::MemoryCategory::Inputs).unwrap()
        };
        let cache = |seed| tensor(&[13, BLOCK_TOKENS, KV_HEADS, D], seed);
        let (k, v, q) = (cache(1), cache(2), tensor(&[4, HEADS, D], 3));
        let mut rows = DecodeRows::new(&device, 4, 10, 0).unwrap();
        rows.allocate_attention_counters(&device, HEADS, KV_HEADS).unwrap();
        let slots: Vec<DecodeSlot> = lens.iter().zip(&tables).map(|(&n, blocks)| slot(1, n, n, blocks)).collect();
        rows.assign_rows(0, &slots).unwrap();
        let attention = |q: &Tensor, pages: &KvPages| {
            let o = crate::ops::paged_attention(&cx, q, (&k, &v), pages).unwrap();
            o.to_f32().unwrap()
        };
        let got = attention(&q, &rows.kv_pages());
        for (n, row) in got.chunks(HEADS * D).enumerate() {
            let Some(blocks) = tables.get(n) else {
                assert!(row.iter().all(|&x| x == 0.0), "{device:?}: a row that is not in use");
                continue;
            };
            let one = SequencePages { cached_tokens: lens[n] - 1, new_tokens: 1, blocks };
            let want = attention(&q.rows(n, 1).unwrap(), &KvPages::new(&device, &[one]).unwrap());
            assert!(row == want, "{device:?}: row {n}");
        }
        assert_eq!(rows.counters.as_ref().unwrap().to_i32().unwrap(), [0; 4 * KV_HEADS], "{device:?}");
        let other = Tensor::from_i32(&device, &[4, 1], &[0; 4]).unwrap();
        rows.counters = Some(other);
        let error = crate::ops::paged_attention(&cx, &q, (&k, &v), &rows.kv_pages()).unwrap_err().to_string();
        assert!(error.contains("counters"), "{error}");
    }
}

#[test]
fn rejects_slots_that_exceed_a_row() {
    let device = Device::cpu(1);
    let rows = DecodeRows::new(&device, 2, 2, 3).unwrap();
    let blocks = [0, 1, 2];
    for (first, bad) in [
        (0, slot(1, 0, 5, &blocks)),
        (0, slot(1, 6, 5, &blocks)),
        (0, slot(1, 1, 129, &blocks)),
        (0, slot(1, 64, 65, &blocks[..1])),
        (0, DecodeSlot { history: &[1, 2, 3, 4], ..slot(1, 1, 5, &blocks) }),
        (2, slot(1, 1, 5, &blocks)),
    ] {
        assert!(rows.assign_rows(first, &[bad]).is_err(), "{bad:?} at {first}");
    }
    assert!(rows.row_range(0, 3).is_err() && rows.row_range(1, 2).is_err() && rows.clear_rows(1, 2).is_err());
    assert_eq!((rows.rows(), rows.max_blocks(), rows.max_history()), (2, 2, 3));
}

/// Samples one token for each of the rows `at .. at + count` of a batch of `rows` rows. Returns the tokens, and the
/// 20 most likely tokens of each row.
fn sampled(device: &Device, rows: usize, at: usize, count: usize) -> (Vec<i32>, Vec<Vec<i32>>) {
    const VOCAB: usize = 70;
    let cx = Cx::inference(device, DType::F32);
    let logits: Vec<f32> = (0..rows * VOCAB).map(|i| ((i * 7919 + 13) % 1009) as f32 / 120.0 - 4.0).collect();
    let logits =
        Tensor::from_f32(device, &[rows, VOCAB], DType::F32, &logits, reel_device::MemoryCategory::Inputs).unwrap();
    // The mask allows even tokens; the bias favours token 12 and forbids 14.
    let (even, bias) = ([0x5555_5555u32; 3], [(12, 3.0), (14, -9.0)]);
    let choice = |r: usize| RowSampling {
        params: SamplingParams {
            temperature: [0.0, 0.8, 1.3][r % 3],
            top_p: [1.0, 0.9][r % 2],
            top_k: [0, 20][r / 2 % 2],
            min_p: [0.0, 0.02][r / 3 % 2],
            repetition_penalty: [1.0, 1.4][r % 2],
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            seed: r as u64 | 1 << 40,
        },
        counted_from: r % 3,
        bias: &bias[..r % 3],
        allowed: if r % 2 == 1 { &even } else { &[] },
    };
    let choices = SamplingTable::new(device, rows, 2, Some(VOCAB)).unwrap();
    choices.set_rows(0, &(0..rows).map(choice).collect::<Vec<_>>()).unwrap();
    let history: Vec<i32> = (0..rows * 4).map(|i| (i * 5 % VOCAB) as i32).collect();
    let history = Tensor::from_i32(device, &[rows, 4], &history).unwrap();
    let lens = Tensor::from_i32(device, &[rows], &(0..rows as i32).map(|r| r % 5).collect::<Vec<_>>()).unwrap();
    let draws = Tensor::from_i32(device, &[rows], &(0..rows as i32).collect::<Vec<_>>()).unwrap();
    let suppressed = Tensor::from_i32(device, &[2], &[3, 4]).unwrap();
    let chosen = SampledTokens::new(device, rows, true, 20).unwrap();
    let part = |t: &Tensor| t.rows(at, count).unwrap();
    let (few, to) = (choices.row_range(at, count).unwrap(), chosen.row_range(at, count).unwrap());
    let seen = (part(&history), part(&lens));
    sample(&cx, &part(&logits), &few, &part(&draws), Some((&seen.0, &seen.1)), &suppressed, &to).unwrap();
    let (tops, values) = to.tops.as_ref().unwrap();
    assert!(values.to_f32().unwrap().chunks(20).all(|v| v.is_sorted_by(|a, b| a >= b) && v[0] < 0.0));
    let both = to.log_prob.to_f32().unwrap().into_iter().zip(to.raw_log_prob.as_ref().unwrap().to_f32().unwrap());
    for (r, (with, raw)) in both.enumerate() {
        // Every third row is greedy (temperature 0). Its log-probability is computed at temperature 1, so it equals
        // the raw one.
        assert!(with < 0.0 && (at + r).is_multiple_of(3) == (with == raw), "row {r}: {with} and {raw}");
    }
    (to.ids.to_i32().unwrap(), tops.to_i32().unwrap().chunks(20).map(<[i32]>::to_vec).collect())
}

#[test]
fn tokens_depend_on_seed_and_draw_but_not_on_device_or_batch() {
    let want = sampled(&Device::cpu(1), 12, 0, 12);
    assert!(want.0.iter().all(|id| (0..70).contains(id) && ![3, 4].contains(id)));
    assert!(want.0.iter().skip(1).step_by(2).all(|id| id % 2 == 0), "a token that is not allowed");
    for device in devices() {
        for (at, count) in [(0, 12), (0, 5), (5, 7)] {
            let got = sampled(&device, 12, at, count);
            assert_eq!(got.0, want.0[at..at + count], "{device:?}");
            assert_eq!(got.1, want.1[at..at + count], "{device:?}");
        }
    }
}

#[test]
fn rejects_sampling_tables_that_do_not_match() {
    let device = Device::cpu(1);
    let (none, some) =
        (SamplingTable::new(&device, 2, 0, None).unwrap(), SamplingTable::new(&device, 2, 1, Some(33)).unwrap());
    let (bias, mask) = ([(1, 1.0), (2, 1.0)], [u32::MAX; 3]);
    assert!(none.set_rows(0, &[RowSampling { bias: &bias[..1], ..RowSampling::default() }]).is_err());
    assert!(some.set_rows(0, &[RowSampling { bias: &bias, ..RowSampling::default() }]).is_err());
    assert!(none.set_rows(0, &[RowSampling { allowed: &mask, ..RowSampling::default() }]).is_err());
    assert!(some.set_rows(0, &[RowSampling { allowed: &mask, ..RowSampling::default() }]).is_err());
    assert!(
        some.set_rows(1, &[RowSampling { allowed: &mask[..2], bias: &bias[..1], ..RowSampling::default() }]).is_ok()
    );
    assert!(some.set_rows(2, &[RowSampling::default()]).is_err());
    assert!(SampledTokens::new(&device, 1, false, 33).is_err());
}
