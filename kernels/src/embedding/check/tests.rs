use super::*;
use crate::checks::{counted, on_sim};

#[test]
fn rows_move_once() {
    on_sim(|| {
        let (tokens, hidden, vocab) = (512usize, 2048usize, 700);
        // Different ids for all: what the gradient of a repeated one costs depends on how often it is.
        let (ids, slots): (Vec<i32>, Vec<i32>) =
            (0..tokens as i32).map(|t| (t, if t % 4 == 0 { -1 } else { t })).unzip();
        let data = |rows: usize| Data::new(BF16, &numbers(rows * hidden, 1, 1.0));
        let (table, vision, y, mut dw) = (data(vocab), data(tokens), data(tokens), vec![0.0f32; vocab * hidden]);
        let (placed, tokens, hidden, vocab) = (384, tokens as u32, hidden as u32, vocab as u32);
        let (ids, slots, y) = (addr(&ids), addr(&slots), y.addr());
        let (table, vision, dw) = (table.addr(), vision.addr(), addr_mut(&mut dw));
        let forward = FwdParams { table, ids, y, vision, slots, tokens, hidden, vocab, placed: tokens };
        let backward = BwdParams { ids, dy: y, dw, slots, d_vision: vision, tokens, hidden, vocab, placed: tokens };
        let costs = [FwdParams { placed, ..forward }, forward].map(|p| fwd(BF16, BF16, &p).cost());
        assert!(costs[0].bytes >= costs[1].bytes);
        let least = bwd(BF16, &BwdParams { placed, ..backward }).cost();
        for (launch, least) in [(fwd(BF16, BF16, &forward), costs[0]), (bwd(BF16, &backward), least)] {
            let count = counted(&launch);
            let bytes = (count.global_read + count.global_written) as f64;
            println!("{}: {bytes} of {}", launch.name(), least.bytes);
            assert!(bytes <= 1.1 * least.bytes, "{}: {bytes} bytes, {} at least", launch.name(), least.bytes);
        }
    });
}
