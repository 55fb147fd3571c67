use bytemuck::Zeroable;
use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::{BwdParams, FwdParams, bwd, formula, fwd, test_cases_tokens_hidden_vocab};
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{assert_close, assert_rounded, f32_sum_error};

checks!(picks_rows, adds_gradients_to_rows, places_rows_of_vision, gradients_of_placed_rows_go_to_vision);

/// Returns ids with repeats, some of them below 0 or beyond the vocabulary.
fn ids(tokens: usize, vocab: usize) -> Vec<i32> {
    let spread = |t: usize| (t * t * 31 + 7 * t) % vocab;
    (0..tokens).map(|t| if t % 13 == 5 { [-1, vocab as i32][t % 2] } else { spread(t) as i32 }).collect()
}

fn picks_rows() {
    for (tokens, hidden, vocab) in test_cases_tokens_hidden_vocab() {
        for (from, to) in [(F32, F32), (F32, BF16), (BF16, F32), (BF16, BF16)] {
            let (table, ids) = (TestArray::new(from, &normal_numbers(vocab * hidden, 1, 1.0)), ids(tokens, vocab));
            let y = TestArray::output(to, tokens * hidden);
            let params = FwdParams {
                table: table.addr(),
                ids: addr(&ids),
                y: y.addr(),
                tokens: tokens as u32,
                hidden: hidden as u32,
                vocab: vocab as u32,
                ..Zeroable::zeroed()
            };
            run(&fwd(from, to, &params), 2);
            let want: Vec<f32> = formula::fwd(&table.to_f64(), &ids, hidden).iter().map(|&x| x as f32).collect();
            assert_eq!(y.values(), TestArray::new(to, &want).values(), "{from} to {to}, {tokens} of {vocab}");
        }
    }
}

/// Tolerance as a multiple of the error of one rounding. Ten additions to one element of dw need a tolerance of four.
const ROUNDING_FACTOR_SUM: f64 = 4.0;

fn adds_gradients_to_rows() {
    for (tokens, hidden, vocab) in test_cases_tokens_hidden_vocab() {
        for dtype in [F32, BF16] {
            let (dy, ids) = (TestArray::new(dtype, &normal_numbers(tokens * hidden, 1, 1.0)), ids(tokens, vocab));
            let before = normal_numbers(vocab * hidden, 2, 1.0);
            let grads = [1, 4].map(|threads| {
                let mut dw = before.clone();
                let params = BwdParams {
                    ids: addr(&ids),
                    dy: dy.addr(),
                    dw: addr_mut(&mut dw),
                    tokens: tokens as u32,
                    hidden: hidden as u32,
                    vocab: vocab as u32,
                    ..Zeroable::zeroed()
                };
                run(&bwd(dtype, &params), threads);
                dw
            });
            assert_eq!(grads[0], grads[1]);
            let before = TestArray::new(F32, &before).to_f64();
            let [with, want] = [formula::bwd_rounded, formula::bwd].map(|f| f(&ids, &dy.to_f64(), &before, hidden));
            assert_rounded(
                &format!("dw {dtype} {tokens} of {vocab}"),
                F32,
                &grads[0],
                &with,
                &want,
                ROUNDING_FACTOR_SUM,
            );
        }
    }
}

/// Returns a vision index (for each token the vision row that replaces it, or -1), and the number of vision rows. Two
/// tokens in three have a vision row. The rows descend, and one of them is out of range.
fn vision_index(tokens: usize) -> (Vec<i32>, usize) {
    let mut vision_index: Vec<i32> =
        (0..tokens as i32).map(|t| if t % 3 == 1 { -1 } else { tokens as i32 - 1 - t }).collect();
    let rows = tokens + 2;
    if tokens > 3 {
        vision_index[2] = rows as i32;
    }
    (vision_index, rows)
}

fn places_rows_of_vision() {
    for (tokens, hidden, vocab) in test_cases_tokens_hidden_vocab() {
        for (from, to) in [(F32, F32), (F32, BF16), (BF16, F32), (BF16, BF16)] {
            let (table, ids) = (TestArray::new(from, &normal_numbers(vocab * hidden, 1, 1.0)), ids(tokens, vocab));
            let (vision_index, placed) = vision_index(tokens);
            let vision = TestArray::new(to, &normal_numbers(placed * hidden, 2, 1.0));
            let y = TestArray::output(to, tokens * hidden);
            let params = FwdParams {
                table: table.addr(),
                ids: addr(&ids),
                y: y.addr(),
                vision: vision.addr(),
                vision_index: addr(&vision_index),
                tokens: tokens as u32,
                hidden: hidden as u32,
                vocab: vocab as u32,
                placed: placed as u32,
            };
            run(&fwd(from, to, &params), 2);
            let text = formula::fwd(&table.to_f64(), &ids, hidden);
            let want: Vec<f32> = formula::fwd_with_vision(&text, &vision.to_f64(), &vision_index, hidden)
                .iter()
                .map(|&x| x as f32)
                .collect();
            assert_eq!(y.values(), TestArray::new(to, &want).values(), "{from} to {to}, {tokens} of {vocab}");
        }
    }
}

/// Launches the backward kernel, updates `dw` and returns d_vision. `want` = [write dw, write d_vision].
fn backward(
    dtype: DType,
    ids: &[i32],
    vision_index: &[i32],
    dy: &TestArray,
    dw: &mut [f32],
    hidden: usize,
    want: [bool; 2],
) -> TestArray {
    let placed = ids.len() + 2;
    let d_vision = TestArray::new(dtype, &vec![7.0; placed * hidden]);
    let params = BwdParams {
        ids: addr(ids),
        dy: dy.addr(),
        dw: if want[0] { addr_mut(dw) } else { Addr::NULL },
        vision_index: addr(vision_index),
        d_vision: if want[1] { d_vision.addr() } else { Addr::NULL },
        tokens: ids.len() as u32,
        hidden: hidden as u32,
        vocab: (dw.len() / hidden) as u32,
        placed: placed as u32,
    };
    run(&bwd(dtype, &params), 3);
    d_vision
}

fn gradients_of_placed_rows_go_to_vision() {
    for (tokens, hidden, vocab) in test_cases_tokens_hidden_vocab() {
        for dtype in [F32, BF16] {
            let (dy, ids) = (TestArray::new(dtype, &normal_numbers(tokens * hidden, 1, 1.0)), ids(tokens, vocab));
            let (vision_index, _) = vision_index(tokens);
            let before = normal_numbers(vocab * hidden, 2, 1.0);
            let mut dw = before.clone();
            let d_vision = backward(dtype, &ids, &vision_index, &dy, &mut dw, hidden, [true, true]);
            let text: Vec<i32> =
                ids.iter().zip(&vision_index).map(|(&id, &vision_row)| if vision_row < 0 { id } else { -1 }).collect();
            let initial = TestArray::new(F32, &before).to_f64();
            let want = formula::bwd(&text, &dy.to_f64(), &initial, hidden);
            let magnitudes = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<f64>>();
            let terms = formula::bwd(&text, &magnitudes(&dy.to_f64()), &magnitudes(&initial), hidden);
            let count = |row: usize| 1 + text.iter().filter(|&&id| id == row as i32).count();
            let bound = |i: usize| f32_sum_error(count(i / hidden), terms[i]);
            assert_close(&format!("dw {dtype} {tokens} of {vocab}"), &dw, &want, 1e-6, bound);
            let mut want = vec![7.0; d_vision.values().len()];
            for (dy, &vision_row) in dy.values().chunks_exact(hidden).zip(&vision_index) {
                if vision_row >= 0 && vision_row < tokens as i32 + 2 {
                    want[vision_row as usize * hidden..][..hidden].copy_from_slice(dy);
                }
            }
            assert_eq!(d_vision.values(), want, "{dtype} {tokens} of {vocab}");
            let mut again = before.clone();
            backward(dtype, &ids, &vision_index, &dy, &mut again, hidden, [true, false]);
            assert_eq!(again, dw);
            let alone = backward(dtype, &ids, &vision_index, &dy, &mut again, hidden, [false, true]);
            assert_eq!((again, alone.values()), (dw, d_vision.values()));
        }
    }
}

#[cfg(test)]
mod tests;
