//! Shared-memory addresses in a cluster of two blocks. `$c` is the block's rank, which is in bits 24 and above of a
//! shared address; an address without these bits refers to the block of rank 0. The table has no such access with
//! `.shared::cta`, because it is an illegal instruction in the other block.

use super::PatternAndFormats;

/// Waits for all blocks of the cluster.
macro_rules! cluster_barrier {
    () => {
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; "
    };
}

/// Statements that store `$c + $a0` (rank plus source) in the block's shared memory, then run the statements `$then`
/// between two cluster barriers. `$t1` is the address without the rank.
macro_rules! stored {
    ($then:literal) => {
        concat!(
            "add.u32 $t0, $c, $a0; st.shared.b32 [$s], $t0; and.b32 $t1, $s, 0xffffff; ",
            cluster_barrier!(),
            $then,
            " ",
            cluster_barrier!()
        )
    };
}

pub const INSTRUCTION_PATTERNS: &[PatternAndFormats] = &[
    ("shr.u32 $t0, $s, 24; sub.u32 $t0, $t0, $c; add.u32 $d0, $t0, $a0;", "r=r"),
    ("mapa.shared::cluster.u32 $t0, $s, $c; sub.u32 $t0, $t0, $s; add.u32 $d0, $t0, $a0;", "r=r"),
    (
        "and.b32 $t1, $s, 0xffffff; mapa.shared::cluster.u32 $t0, $t1, $c; sub.u32 $t0, $t0, $s; add.u32 $d0, $t0, $a0;",
        "r=r",
    ),
    ("xor.b32 $t1, $c, 1; mapa.shared::cluster.u32 $t0, $s, $t1; sub.u32 $t0, $t0, $s; add.u32 $d0, $t0, $a0;", "r=r"),
    (
        "cvt.u64.u32 $u1, $s; cvta.shared.u64 $u0, $u1; mapa.u64 $u2, $u0, $c; sub.u64 $u2, $u2, $u0; cvt.u32.u64 $t0, $u2; \
         add.u32 $d0, $t0, $a0;",
        "r=r",
    ),
    ("getctarank.shared::cluster.u32 $t0, $s; add.u32 $d0, $t0, $a0;", "r=r"),
    ("and.b32 $t1, $s, 0xffffff; getctarank.shared::cluster.u32 $t0, $t1; add.u32 $d0, $t0, $a0;", "r=r"),
    (
        "and.b32 $t1, $s, 0xffffff; selp.b32 $t1, $t1, $s, $a0; cvt.u64.u32 $u1, $t1; cvta.shared.u64 $u0, $u1; \
         isspacep.<shared::cta|shared::cluster> $d0, $u0; setp.eq.u32 $q0, $c, 2;",
        "p=p",
    ),
    (stored!("ld.shared::cta.b32 $d0, [$s];"), "r=r"),
    (stored!("ld.shared::cluster.b32 $d0, [<$s|$t1>];"), "r=r"),
    (stored!("mapa.shared::cluster.u32 $t2, $t1, 1; ld.shared::cluster.b32 $d0, [$t2];"), "r=r"),
    (stored!("cvt.u64.u32 $u1, <$s|$t1>; cvta.shared.u64 $u0, $u1; ld.b32 $d0, [$u0];"), "r=r"),
    (
        concat!(stored!("red.relaxed.cluster.shared::cluster.add.u32 [<$s|$t1>], 5;"), "ld.shared::cta.b32 $d0, [$s];"),
        "r=r",
    ),
    (
        concat!(
            stored!("setp.eq.u32 $q0, $c, 1; @$q0 st.shared::cluster.b32 [$t1], 7;"),
            "ld.shared::cta.b32 $d0, [$s];"
        ),
        "r=r",
    ),
];
