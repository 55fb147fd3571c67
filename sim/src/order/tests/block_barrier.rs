//! A block barrier made of releases and acquires, for the tests of this module and for `benches/order.rs`.

use super::{VectorClock, WarpVectorClocks};

/// Executes a barrier. Each participant is a warp, the mask of its lanes that arrive, and the mask of its lanes that
/// wait. The arriving lanes of all warps release; the waiting lanes acquire all that was released.
pub fn barrier(participants: &mut [(&mut WarpVectorClocks, u32, u32)]) {
    let mut released: Option<VectorClock> = None;
    for (warp, lanes, _) in participants.iter_mut() {
        let clock = warp.release(*lanes);
        match &mut released {
            Some(all) => all.join(&clock),
            none => *none = Some(clock),
        }
    }
    for (warp, _, waiting) in participants.iter_mut() {
        if let Some(all) = released.as_ref().filter(|_| *waiting != 0) {
            warp.acquire(*waiting, all);
        }
    }
}
