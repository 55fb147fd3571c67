use super::*;
use crate::checks::run_test_on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn each_element_moves_once() {
    run_test_on_sim(|| {
        let shape = HeadShape { heads: 28, kv_heads: 4, head_dim: 128 };
        for dtype in [F32, BF16] {
            let case = Case::new(&mut RandomChoices::new(3), dtype, 250, shape);
            // Every token has a slot.
            let slots: Vec<i32> = (0..250).rev().collect();
            assert_traffic_matches_cost(&write(dtype, &Params { slots: addr(&slots), ..case.params() }));
        }
    });
}
