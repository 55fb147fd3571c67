use super::*;
use crate::checks::{run_test_on_sim, simulated_counts};

#[test]
fn keys_and_values_are_read_once_and_without_bank_conflicts() {
    run_test_on_sim(|| {
        let case = ImageBatch { lengths: vec![729], heads: 2, head_dim: 72, spread: 1.0 };
        for dtype in [F32, BF16] {
            let given = Given::new(dtype, &case);
            let (o, mut lse) = (TestArray::new(dtype, &vec![0.5; 144]), vec![1.0f32; 2]);
            let forward = given.forward_params(&o, &mut lse);
            let gradient = TestArray::output(dtype, 729 * 144);
            let FwdParams { q, k, v, cu_seqlens, o, lse, tokens, images, heads, head_dim, scale, reserved } = forward;
            let (dq, d_o, mut partial) = (TestArray::output(dtype, 144), given.d_o.addr(), vec![f32::NAN; 144]);
            let backward = BwdParams {
                q,
                k,
                v,
                cu_seqlens,
                o,
                lse,
                d_o,
                dq: dq.addr(),
                dk: gradient.addr(),
                dv: gradient.addr(),
                partial: addr_mut(&mut partial),
                tokens,
                images,
                heads,
                head_dim,
                scale,
                reserved,
            };
            for launch in [fwd(dtype, &forward), bwd(dtype, &backward)] {
                let (count, cost) = (simulated_counts(&launch), launch.cost());
                let bytes = (count.global_read + count.global_written) as f64;
                assert!(
                    bytes <= 1.1 * cost.bytes,
                    "{}: {bytes} bytes of memory traffic, expected about {}",
                    launch.name(),
                    cost.bytes
                );
                assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
            }
        }
    });
}
