//! Tests that an access list (the older accesses of a shadow cell) drops an entry only if a later access of the same
//! lanes replaces it.

use super::xorshift;
use crate::order::access_lists::{AccessLists, AccessRecord};
use crate::order::{AccessStamp, AccessStrength};
use std::collections::HashMap;

#[test]
fn list_keeps_the_last_access_of_every_lane_and_stays_short() {
    let mut state = 88172645463325252u64;
    let mut random = move |below: u64| (xorshift(&mut state) >> 11) as u32 % below as u32;
    let mut chains = AccessLists::default();
    let (mut list, mut last) = (0, HashMap::new());
    for epoch in 1..2000 {
        let (key, mask) = (random(7), [0b1, 0b10, 0b11, 0b1][random(4) as usize]);
        let stamp = AccessStamp::new(epoch, 2, false, AccessStrength::Weak);
        list = chains.push(list, &AccessRecord { key, stamp, mask, pc: random(3), write: false });
        (0..2).filter(|lane| mask >> lane & 1 != 0).for_each(|lane| _ = last.insert((key, lane), epoch));
        for (&(key, lane), &epoch) in &last {
            let stands =
                |entry: &AccessRecord| entry.key == key && entry.mask >> lane & 1 != 0 && entry.stamp.epoch() == epoch;
            assert!(chains.accesses(list).any(stands), "warp {key}, lane {lane}, epoch {epoch} is missing in the list");
        }
        assert!(chains.accesses(list).count() <= 7 * 3, "{} entries", chains.accesses(list).count());
        if chains.needs_garbage_collection() {
            chains.collect_garbage(std::iter::once(&mut list));
        }
    }
}
