use super::*;
use crate::checks::run_test_on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn each_element_moves_once() {
    run_test_on_sim(|| {
        let (rows, cols) = (64usize, 1152usize);
        for dtype in [F32, BF16] {
            let (x, dy) = (
                TestArray::new(dtype, &normal_numbers(rows * cols, 1, 1.0)),
                TestArray::new(dtype, &normal_numbers(rows * cols, 2, 1.0)),
            );
            let mut norm = vec![1.0f32; rows];
            let (y, norm, rows, cols) =
                (TestArray::output(dtype, rows * cols), addr_mut(&mut norm), rows as u32, cols as u32);
            let forward = FwdParams { x: x.addr(), y: y.addr(), norm, rows, cols };
            let backward = BwdParams { x: x.addr(), norm, dy: dy.addr(), dx: y.addr(), rows, cols };
            for launch in [fwd(dtype, &forward), bwd(dtype, &backward)] {
                let count = assert_traffic_matches_cost(&launch);
                assert_eq!(count.wavefronts, count.wavefronts_least, "{}", launch.name());
            }
        }
    });
}

#[test]
fn the_formula_of_the_gradient_equals_differences() {
    for (_, cols, scale) in test_cases_rows_cols_scale().into_iter().filter(|c| c.1 < 2000) {
        let (x, dy) =
            (TestArray::new(F32, &normal_numbers(cols, 1, scale)), TestArray::new(F32, &normal_numbers(cols, 2, 1.0)));
        let (direct, differences) =
            (formula::bwd(&x.to_f64(), &dy.to_f64()), formula::bwd_by_differences(&x.to_f64(), &dy.to_f64()));
        let size = dy.to_f64().iter().map(|d| d * d).sum::<f64>().sqrt() / formula::l2_norm(&x.to_f64());
        for (a, b) in direct.iter().zip(&differences) {
            assert!((a - b).abs() <= 1e-6 * size, "{cols}: {a}, {b}");
        }
    }
}
