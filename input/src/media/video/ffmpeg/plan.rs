//! Plans which packets to decode for a list of frames. A run of packets starts at a key frame and ends at the last
//! selected frame that is decoded from it.
//!
//! Example in decoding order, numbers are presentation times: `I0 P3 B1 B2 | I6 B4 B5 P9 B7 B8`. Frame 4 is displayed
//! before the key frame I6, so its run starts one group earlier: packets 0 to 5. Frame 7 needs packets 4 to 8.

use super::demux::PacketInfo;

/// A frame to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TargetFrame {
    /// Index of the frame in display order.
    pub frame: u64,
    /// Presentation time; `None` if the video has no usable times and its frames are identified by counting them.
    pub pts: Option<i64>,
    /// Index of the frame's packet in decoding order.
    pub packet: usize,
}

/// A run of packets, `start..=end` in decoding order, from which the frames `targets` are decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PacketRun {
    pub start: usize,
    pub end: usize,
    pub targets: Vec<TargetFrame>,
}

/// Whether presentation times identify frames and give their order: every displayed packet has a time that no other
/// packet has, and decoding times never decrease.
///
/// Decoding times decrease where a second video was appended to the file and its times start anew (`cat a.ts b.ts`).
/// Sorted by time, the frames of both videos would be mixed.
pub(super) fn has_usable_times(packets: &[PacketInfo]) -> bool {
    let mut times: Vec<_> = packets.iter().filter(|e| !e.hidden).map(|e| e.pts).collect();
    times.sort_unstable();
    let is_unique = times.first().is_some_and(|t| t.is_some()) && times.windows(2).all(|w| w[0] != w[1]);
    is_unique && packets.iter().filter_map(|e| e.dts).is_sorted()
}

/// The number of leading frames. The packets of leading frames follow the first packet, which is a key frame, but the
/// frames are displayed before this key frame.
///
/// Leading frames refer to frames before the key frame. In a video that is cut at an open group of pictures, those
/// earlier frames are missing, and most decoders output no picture for leading frames. A packet without a time counts
/// as leading if all packets after the leading ones have times: Matroska loses times below 0.
pub(super) fn leading_frame_count(packets: &[PacketInfo]) -> u64 {
    let mut displayed = packets.iter().filter(|e| !e.hidden);
    let Some(first) = displayed.next().filter(|e| e.key && e.pts.is_some()) else { return 0 };
    let is_leading = |e: &&PacketInfo| !e.key && e.pts < first.pts;
    let leading = displayed.clone().take_while(is_leading).count();
    if displayed.skip(leading).all(|e| e.pts > first.pts) { leading as u64 } else { 0 }
}

/// Plans the decoding of `frames` (display indices, ascending, without repeats, each below the number of displayed
/// packets).
///
/// `seekable` states that key flags are reliable and times identify frames. If it is false, there is a single run
/// over all packets, and frames are identified by counting.
pub(super) fn plan_packet_runs(packets: &[PacketInfo], frames: &[u64], seekable: bool) -> Vec<PacketRun> {
    if !seekable {
        let targets = frames.iter().map(|&frame| TargetFrame { frame, pts: None, packet: 0 }).collect();
        return vec![PacketRun { start: 0, end: packets.len().saturating_sub(1), targets }];
    }
    let mut display_order: Vec<usize> = (0..packets.len()).filter(|&i| !packets[i].hidden).collect();
    display_order.sort_by_key(|&i| packets[i].pts);
    let targets = frames.iter().filter_map(|&frame| {
        let packet = *display_order.get(usize::try_from(frame).ok()?)?;
        Some(TargetFrame { frame, pts: packets[packet].pts, packet })
    });
    let mut spans: Vec<(usize, TargetFrame)> =
        targets.map(|target| (key_packet_index_before(packets, target.packet, target.pts), target)).collect();
    spans.sort_by_key(|(start, target)| (*start, target.packet));
    let mut runs: Vec<PacketRun> = Vec::new();
    for (start, target) in spans {
        match runs.last_mut() {
            // Decoding of this target starts at a packet of the previous run, so the target joins that run.
            Some(last) if start <= last.end => {
                last.end = last.end.max(target.packet);
                last.targets.push(target);
            }
            _ => runs.push(PacketRun { start, end: target.packet, targets: vec![target] }),
        }
    }
    runs
}

/// The index of the last packet up to `packet` that holds a key frame displayed no later than `pts`; 0 if there is
/// none.
pub(super) fn key_packet_index_before(packets: &[PacketInfo], packet: usize, pts: Option<i64>) -> usize {
    (0..=packet).rev().find(|&k| packets[k].key && packets[k].pts.is_some() && packets[k].pts <= pts).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(pts: i64, key: bool) -> PacketInfo {
        PacketInfo { pts: Some(pts), dts: None, size: 1, key, hidden: false }
    }

    #[test]
    fn frame_displayed_before_its_key_frame_starts_one_group_earlier() {
        // Packets in decoding order with their times, I0 P3 B1 B2 | I6 B4 B5 P9 B7 B8: an open GOP starts at I6.
        let e: Vec<_> =
            [(0, true), (3, false), (1, false), (2, false), (6, true), (4, false), (5, false), (9, false), (7, false)]
                .map(|(t, k)| packet(t, k))
                .to_vec();
        let run =
            |frames: &[u64]| plan_packet_runs(&e, frames, true).iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(run(&[6]), [(4, 4)]);
        assert_eq!(run(&[4]), [(0, 5)]);
        assert_eq!(run(&[1, 7]), [(0, 2), (4, 8)]);
        assert_eq!(run(&[5, 7]), [(0, 8)]);
        assert_eq!(run(&[4, 6]), [(0, 5)]);
    }

    #[test]
    fn times_must_exist_and_be_unique() {
        assert!(has_usable_times(&[packet(0, true), packet(1, false)]));
        assert!(!has_usable_times(&[packet(0, true), packet(0, false)]));
        assert!(!has_usable_times(&[packet(0, true), PacketInfo { pts: None, ..packet(0, false) }]));
        assert!(has_usable_times(&[packet(0, true), PacketInfo { hidden: true, ..packet(0, false) }]));
        assert!(!has_usable_times(&[]));
    }

    #[test]
    fn leading_frames_follow_the_first_key_frame() {
        let untimed = PacketInfo { pts: None, ..packet(0, false) };
        let hidden = PacketInfo { hidden: true, ..packet(0, false) };
        // I3 B1 B2 P6 B4 starts with an open group of pictures: B1 and B2 are displayed before I3. I0 P3 B1 does not.
        let open = [packet(3, true), packet(1, false), packet(2, false), packet(6, false), packet(4, false)];
        assert_eq!(leading_frame_count(&open), 2);
        assert_eq!(leading_frame_count(&[packet(0, true), packet(3, false), packet(1, false)]), 0);
        assert_eq!(leading_frame_count(&[packet(0, true), untimed, packet(1, false)]), 1);
        assert_eq!(leading_frame_count(&[hidden, packet(3, true), packet(1, false), hidden, packet(2, false)]), 2);
        // No leading frames are counted if times are missing later in the file, or a later time is below the key
        // frame's.
        assert_eq!(leading_frame_count(&[packet(0, true), untimed, packet(1, false), untimed]), 0);
        assert_eq!(leading_frame_count(&[packet(3, true), packet(1, false), packet(4, false), packet(2, false)]), 0);
        assert_eq!(leading_frame_count(&[packet(3, false), packet(1, false)]), 0);
        assert_eq!(leading_frame_count(&[untimed, untimed]), 0);
        assert_eq!(leading_frame_count(&[]), 0);
    }

    #[test]
    fn decoding_times_must_not_decrease() {
        let times = |times: &[(i64, Option<i64>)]| -> Vec<PacketInfo> {
            times.iter().map(|&(pts, dts)| PacketInfo { dts, ..packet(pts, pts == 0) }).collect()
        };
        // With B-frames, presentation times decrease from packet to packet, but decoding times do not.
        assert!(has_usable_times(&times(&[(0, Some(-2)), (3, Some(-1)), (1, Some(0)), (2, Some(1)), (4, Some(2))])));
        assert!(has_usable_times(&times(&[(0, None), (3, Some(1)), (1, None), (2, Some(1))])));
        // The file holds two videos; the times of the second video start before the end of the first video.
        assert!(!has_usable_times(&times(&[(0, Some(0)), (10, Some(10)), (20, Some(20)), (15, Some(15))])));
        assert!(!has_usable_times(&times(&[(0, Some(0)), (20, Some(20)), (10, None), (15, Some(15))])));
    }

    proptest! {
        /// Each target is in exactly one run, which starts at packet 0 or at a key frame that is not displayed after
        /// the target. Runs do not overlap.
        #[test]
        fn runs_cover_all_targets(
            (times, keys) in (1usize..60).prop_flat_map(|n| (
                Just((0..n as i64).collect::<Vec<_>>()).prop_shuffle(), proptest::collection::vec(any::<bool>(), n))),
            picks in proptest::collection::btree_set(0u64..60, 1..12),
        ) {
            let e: Vec<_> = times.iter().zip(&keys).map(|(&t, &k)| packet(t, k)).collect();
            let frames: Vec<u64> = picks.into_iter().filter(|&f| f < e.len() as u64).collect();
            let got = plan_packet_runs(&e, &frames, true);
            let mut seen: Vec<u64> = got.iter().flat_map(|r| r.targets.iter().map(|t| t.frame)).collect();
            seen.sort_unstable();
            prop_assert_eq!(&seen, &frames);
            prop_assert!(got.windows(2).all(|w| w[0].end < w[1].start));
            for r in &got {
                for t in &r.targets {
                    prop_assert_eq!(e[t.packet].pts, Some(t.frame as i64));
                    prop_assert!(r.start <= t.packet && t.packet <= r.end);
                    prop_assert!(r.start == 0 || (e[r.start].key && e[r.start].pts <= t.pts));
                }
            }
        }
    }
}
