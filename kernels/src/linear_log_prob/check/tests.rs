use super::*;
use crate::linear_log_prob::max_chunk_columns;

#[test]
fn chunks_stay_within_64_mib() {
    for (dtype, rows) in [(BF16, 8192), (F32, 8192), (BF16, 1), (F32, 100_000)] {
        let columns = max_chunk_columns(dtype, rows, 152_064);
        assert!(columns == 152_064 || columns.is_multiple_of(128));
        assert!(rows * columns * dtype.size() <= 64 << 20, "{dtype} {rows}: {columns}");
    }
    assert_eq!(max_chunk_columns(BF16, 8192, 152_064), 4096);
}

#[test]
fn no_bank_conflicts() {
    crate::checks::on_sim(|| {
        for dtype in [F32, BF16] {
            let given = Given::new(dtype, (128, 256, 256, 1.0, 1.0));
            let (mut log_prob, mut lse) = (vec![f32::NAN; 128], vec![f32::NAN; 128]);
            let scratch = TestArray::output(F32, workspace_bytes(128, 256) / 4);
            let params = FwdParams {
                hidden: given.hidden.addr(),
                weight: given.weight.addr(),
                targets: addr(&given.targets),
                log_prob: addr_mut(&mut log_prob),
                entropy: Addr::NULL,
                lse: addr_mut(&mut lse),
                workspace: scratch.addr(),
                rows: 128,
                vocab: 256,
                width: 256,
                inv_temperature: 1.0,
            };
            let count = crate::checks::simulated_counts(&fwd(dtype, &params));
            assert_eq!(count.wavefronts, count.wavefronts_least, "{dtype}: {count:?}");
            if dtype == BF16 {
                assert_eq!(count.matrix_flops, 2 * 128 * 256 * 256);
            }
            let (lse, grad, d_logits) = (vec![5.0f32; 128], vec![1.0f32; 128], TestArray::output(dtype, 128 * 256));
            let params = BwdParams {
                hidden: given.hidden.addr(),
                weight: given.weight.addr(),
                targets: addr(&given.targets),
                lse: addr(&lse),
                entropy: Addr::NULL,
                d_log_prob: addr(&grad),
                d_entropy: Addr::NULL,
                d_logits: d_logits.addr(),
                rows: 128,
                vocab: 256,
                width: 256,
                first: 0,
                columns: 256,
                inv_temperature: 1.0,
            };
            let count = crate::checks::simulated_counts(&bwd(dtype, &params));
            assert_eq!(count.wavefronts, count.wavefronts_least, "{dtype}, backward: {count:?}");
        }
    });
}

#[test]
fn the_chain_rule_equals_differences() {
    let (logits, s, grads) = (TestArray::new(F32, &normal_numbers(12, 1, 1.0)).to_f64(), 0.8, [0.7, -1.3]);
    for target in [-1, 0, 7] {
        let got = formula::bwd(&logits, target, s, grads, &formula::fwd(&logits, target, s));
        for (i, got) in got.iter().enumerate() {
            let want = crate::checks::rounding::derivative_at_zero(|h| {
                let mut moved = logits.clone();
                moved[i] += h;
                let row = formula::fwd(&moved, target, s);
                grads[0] * row.log_prob + grads[1] * row.entropy
            });
            assert!((got - want).abs() < 1e-9, "target {target}, logit {i}: {got}, want {want}");
        }
    }
}
