use super::*;
use crate::checks::on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn each_element_moves_once() {
    on_sim(|| {
        let (tokens, kv_heads, head_dim, page) = (100u32, 4u32, 128u32, 16u32);
        for dtype in [F32, BF16] {
            let data =
                |tokens: u32| TestArray::new(dtype, &normal_numbers((tokens * kv_heads * head_dim) as usize, 1, 1.0));
            let arrays = [tokens, tokens, 128, 128].map(data);
            let [k, v, k_cache, v_cache] = arrays.each_ref().map(TestArray::addr);
            let places: Vec<i32> = (0..tokens as i32).rev().collect();
            let slots = addr(&places);
            let params =
                Params { k, v, k_cache, v_cache, slots, tokens, kv_heads, head_dim, pages: 8, page, reserved: 0 };
            let launch = write(dtype, &params);
            assert_traffic_matches_cost(&launch);
        }
    });
}
