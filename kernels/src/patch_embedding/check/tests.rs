use super::*;
use crate::checks::{run_test_on_sim, simulated_counts};

#[test]
fn products_are_the_useful_ones_and_without_bank_conflicts() {
    run_test_on_sim(|| {
        let (shape, embed) = ([2, 112, 112, 14, 2, 2], 256);
        let (frames, pixels) = (test_pixel_values(2 * 112 * 112 * 3), pixels(shape));
        let (patches, row) = (pixels.patch_count(), pixels.elements_per_patch());
        for dtype in [F32, BF16] {
            let (x, y) = (
                TestArray::new(dtype, &normal_numbers(embed * row, 1, 0.1)),
                TestArray::output(dtype, patches * embed),
            );
            let (frames, embed) = (addr(&frames), embed as u32);
            let params =
                FwdParams { frames, weight: x.addr(), bias: Addr::NULL, y: y.addr(), pixels, embed, reserved: 0 };
            let dy = TestArray::new(dtype, &normal_numbers(patches * embed as usize, 1, 0.1));
            let mut sum = vec![0.0; embed as usize * row];
            let gradient = DwParams { frames, dy: dy.addr(), dw: addr_mut(&mut sum), pixels, embed, accumulate: 1 };
            for launch in [fwd(dtype, &params), dw(dtype, &gradient)] {
                let count = simulated_counts(&launch);
                assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
                if dtype == BF16 {
                    // A patch has 1176 elements: the last slice of 32 or tile of 64 elements holds only 24 of them, the
                    // rest is padding.
                    let useful = launch.cost().flops;
                    assert!(count.matrix_flops as f64 <= 1.04 * useful, "{}: {}", launch.name(), count.matrix_flops);
                }
            }
        }
    });
}
