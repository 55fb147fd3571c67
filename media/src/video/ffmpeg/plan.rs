//! From wanted frames to runs of packets: where decoding starts and how far it must go. Plain arithmetic.

use super::demux::PacketInfo;

/// A wanted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its number in display order.
    pub frame: u64,
    /// Its presentation time; `None` when frames are found by counting.
    pub pts: Option<i64>,
    /// Its packet's place in decoding order.
    pub place: usize,
}

/// Packets `start..=end` in decoding order give the frames `wanted`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub start: usize,
    pub end: usize,
    pub wanted: Vec<Wanted>,
}

/// Whether every shown packet has a presentation time of its own, by which its frame can be known.
pub(super) fn has_times(entries: &[PacketInfo]) -> bool {
    let mut times: Vec<_> = entries.iter().filter(|e| !e.hidden).map(|e| e.pts).collect();
    times.sort_unstable();
    times.first().is_some_and(|t| t.is_some()) && times.windows(2).all(|w| w[0] != w[1])
}

/// Plans the decoding of `frames` (ascending, no repeats, each below the number of shown packets).
///
/// `seekable`: key flags may be trusted and frames known by their times. Otherwise one run counts from the first packet.
pub(super) fn runs(entries: &[PacketInfo], frames: &[u64], seekable: bool) -> Vec<Run> {
    if !seekable {
        let wanted = frames.iter().map(|&frame| Wanted { frame, pts: None, place: 0 }).collect();
        return vec![Run { start: 0, end: entries.len().saturating_sub(1), wanted }];
    }
    let mut order: Vec<usize> = (0..entries.len()).filter(|&i| !entries[i].hidden).collect();
    order.sort_by_key(|&i| entries[i].pts);
    let wanted: Vec<Wanted> = frames
        .iter()
        .filter_map(|&frame| {
            let place = *order.get(usize::try_from(frame).ok()?)?;
            Some(Wanted { frame, pts: entries[place].pts, place })
        })
        .collect();
    let mut spans: Vec<(usize, Wanted)> =
        wanted.into_iter().map(|w| (key_before(entries, w.place, w.pts), w)).collect();
    spans.sort_by_key(|(start, w)| (*start, w.place));
    let mut runs: Vec<Run> = Vec::new();
    for (start, w) in spans {
        match runs.last_mut() {
            // Also true where a group reaches past the next key frame, for pictures shown before it.
            Some(last) if start <= last.end => {
                last.end = last.end.max(w.place);
                last.wanted.push(w);
            }
            _ => runs.push(Run { start, end: w.place, wanted: vec![w] }),
        }
    }
    runs
}

/// The last key frame at or before `place` that is shown no later than `pts`; the first packet if there is none.
pub(super) fn key_before(entries: &[PacketInfo], place: usize, pts: Option<i64>) -> usize {
    (0..=place).rev().find(|&k| entries[k].key && entries[k].pts.is_some() && entries[k].pts <= pts).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(pts: i64, key: bool) -> PacketInfo {
        PacketInfo { pts: Some(pts), dts: None, size: 1, key, hidden: false }
    }

    #[test]
    fn pictures_shown_before_their_key_frame_start_one_group_earlier() {
        // Decoding order I0 P3 B1 B2 | I6 B4 B5 P9 B7 B8, times as numbered: an open group at I6.
        let e: Vec<_> =
            [(0, true), (3, false), (1, false), (2, false), (6, true), (4, false), (5, false), (9, false), (7, false)]
                .map(|(t, k)| entry(t, k))
                .to_vec();
        let run = |frames: &[u64]| runs(&e, frames, true).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(run(&[6]), [(4, 4)]);
        assert_eq!(run(&[4]), [(0, 5)]);
        assert_eq!(run(&[1, 7]), [(0, 2), (4, 8)]);
        assert_eq!(run(&[5, 7]), [(0, 8)]);
        assert_eq!(run(&[4, 6]), [(0, 5)]);
    }

    #[test]
    fn times_must_be_there_and_differ() {
        assert!(has_times(&[entry(0, true), entry(1, false)]));
        assert!(!has_times(&[entry(0, true), entry(0, false)]));
        assert!(!has_times(&[entry(0, true), PacketInfo { pts: None, ..entry(0, false) }]));
        assert!(has_times(&[entry(0, true), PacketInfo { hidden: true, ..entry(0, false) }]));
        assert!(!has_times(&[]));
    }

    proptest! {
        /// Each wanted frame is in exactly one run, which begins at a key frame not shown after it (or at the first packet)
        /// and reaches its packet; runs do not overlap.
        #[test]
        fn runs_cover_what_is_wanted(
            (times, keys) in (1usize..60).prop_flat_map(|n| (
                Just((0..n as i64).collect::<Vec<_>>()).prop_shuffle(), proptest::collection::vec(any::<bool>(), n))),
            picks in proptest::collection::btree_set(0u64..60, 1..12),
        ) {
            let e: Vec<_> = times.iter().zip(&keys).map(|(&t, &k)| entry(t, k)).collect();
            let frames: Vec<u64> = picks.into_iter().filter(|&f| f < e.len() as u64).collect();
            let got = runs(&e, &frames, true);
            let mut seen: Vec<u64> = got.iter().flat_map(|r| r.wanted.iter().map(|w| w.frame)).collect();
            seen.sort_unstable();
            prop_assert_eq!(&seen, &frames);
            prop_assert!(got.windows(2).all(|w| w[0].end < w[1].start));
            for r in &got {
                for w in &r.wanted {
                    prop_assert_eq!(e[w.place].pts, Some(w.frame as i64));
                    prop_assert!(r.start <= w.place && w.place <= r.end);
                    prop_assert!(r.start == 0 || (e[r.start].key && e[r.start].pts <= w.pts));
                }
            }
        }
    }
}
