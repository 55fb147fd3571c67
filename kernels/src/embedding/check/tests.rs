use super::*;
use crate::checks::run_test_on_sim;
use crate::checks::traffic::assert_traffic_matches_cost;

#[test]
fn rows_move_once() {
    run_test_on_sim(|| {
        let (tokens, hidden, vocab, placed) = (512u32, 2048u32, 700, 384);
        // All ids differ, because the memory traffic for a repeated id depends on how often it occurs.
        let ids: Vec<i32> = (0..tokens as i32).collect();
        let vision_index: Vec<i32> = ids.iter().map(|t| if t % 4 == 0 { -1 } else { t - t / 4 - 1 }).collect();
        let data = |rows: u32| TestArray::new(BF16, &normal_numbers((rows * hidden) as usize, 1, 1.0));
        let arrays = [vocab, placed, tokens].map(data);
        let [table, vision, y] = arrays.each_ref().map(TestArray::addr);
        let (mut dw, ids, vision_index) = (vec![0.0f32; (vocab * hidden) as usize], addr(&ids), addr(&vision_index));
        let forward = FwdParams { table, ids, y, vision, vision_index, tokens, hidden, vocab, placed };
        let (dw, d_vision) = (addr_mut(&mut dw), vision);
        let backward = BwdParams { ids, dy: y, dw, vision_index, d_vision, tokens, hidden, vocab, placed };
        for launch in [fwd(BF16, BF16, &forward), bwd(BF16, &backward)] {
            assert_traffic_matches_cost(&launch);
        }
    });
}
