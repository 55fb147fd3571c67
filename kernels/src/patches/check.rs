use super::{Params, cases, cut, formula};
use crate::DType::{BF16, F32};
use crate::checks::rounding::f32;
use crate::checks::{Data, addr, checks, run};
use crate::compare::{OF_ONE, assert_rounded};

checks!(equals_the_formula, a_missing_frame_is_the_last);

const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Returns pseudo-random u8 pixel values that include every level.
fn levels(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * i * 31 + i * 7 + i / 251) as u8).collect()
}

fn params(frames: &[u8], patches: &Data, [count, height, width, patch, temporal, merge]: [usize; 6]) -> Params {
    Params {
        frames: addr(frames),
        patches: patches.addr(),
        rescale: (1.0f64 / 255.0).to_bits(),
        count: count as u32,
        height: height as u32,
        width: width as u32,
        patch: patch as u32,
        temporal: temporal as u32,
        merge: merge as u32,
        mean0: MEAN[0],
        mean1: MEAN[1],
        mean2: MEAN[2],
        std0: STD[0],
        std1: STD[1],
        std2: STD[2],
    }
}

fn equals_the_formula() {
    for case in cases() {
        let frames = levels(case[0] * case[1] * case[2] * 3);
        let of = |round: fn(f64) -> f64| -> Vec<f64> {
            let value =
                |(level, c): (u8, usize)| round(round(level as f64 * (1.0 / 255.0)) - MEAN[c] as f64) / STD[c] as f64;
            formula::cut(&frames, case).into_iter().map(value).collect()
        };
        let (with, want) = (of(f32), of(|x| x));
        for dtype in [F32, BF16] {
            let patches = Data::output(dtype, want.len());
            run(&cut(dtype, &params(&frames, &patches, case)), 2);
            assert_rounded(&format!("patches {case:?}"), dtype, &patches.values(), &with, &want, OF_ONE);
        }
    }
}

fn a_missing_frame_is_the_last() {
    let (odd, even) = ([1, 28, 28, 14, 2, 2], [2, 28, 28, 14, 2, 2]);
    let frame = levels(28 * 28 * 3);
    let (one, two) = (Data::output(F32, 4 * 1176), Data::output(F32, 4 * 1176));
    run(&cut(F32, &params(&frame, &one, odd)), 1);
    let twice = frame.repeat(2);
    run(&cut(F32, &params(&twice, &two, even)), 1);
    assert_eq!(one.values(), two.values());
}
