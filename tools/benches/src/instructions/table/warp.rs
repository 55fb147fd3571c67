//! Instructions that the lanes of a warp execute together.

use super::PatternAndFormats;

pub const INSTRUCTION_PATTERNS: &[PatternAndFormats] = &[
    ("shfl.sync.<idx|up|down|bfly>.b32 $d0|$d1, $a0, $a1, $a2, -1;", "rp=rlc"),
    ("shfl.sync.<idx|up|down|bfly>.b32 $d0|$d1, $a0, $a1, $a2, -1;", "rp=rsc"),
    ("shfl.sync.<idx|down|bfly>.b32 $d0|$d1, $a0, <0|1|5|16|31>, 31, -1;", "rp=r"),
    ("shfl.sync.up.b32 $d0|$d1, $a0, <0|1|5|16|31>, 0, -1;", "rp=r"),
    ("vote.sync.<all|any|uni>.pred $d0, <|!>$a0, -1;", "p=p"),
    ("vote.sync.ballot.b32 $d0, <|!>$a0, -1;", "r=p"),
    ("vote.sync.ballot.b32 $t0, $a0, -1; @$a0 vote.sync.<all|any|uni>.pred $d0, $a1, $t0;", "p=pp"),
    ("vote.sync.ballot.b32 $t0, $a0, -1; @$a0 vote.sync.ballot.b32 $d0, $a1, $t0;", "r=pp"),
    ("match.any.sync.b32 $d0, $a0, -1;", "r=w"),
    ("match.any.sync.b64 $d0, $a0, -1;", "r=W"),
    ("match.all.sync.b32 $d0|$d1, $a0, -1;", "rp=w"),
    ("match.all.sync.b64 $d0|$d1, $a0, -1;", "rp=W"),
    ("vote.sync.ballot.b32 $t0, $a1, -1; @$a1 match.any.sync.b32 $d0, $a0, $t0;", "r=wp"),
    ("vote.sync.ballot.b32 $t0, $a1, -1; @$a1 match.all.sync.b64 $d0|$d1, $a0, $t0;", "rp=Wp"),
    ("redux.sync.<add|min|max>.<u32|s32> $d0, $a0, -1;", "r=r"),
    ("redux.sync.<and|or|xor>.b32 $d0, $a0, -1;", "r=w"),
    ("vote.sync.ballot.b32 $t0, $a1, -1; @$a1 redux.sync.<add|min|max>.s32 $d0, $a0, $t0;", "r=rp"),
    ("activemask.b32 $d0;", "r="),
    ("@$a0 activemask.b32 $d0;", "r=p"),
    ("elect.sync $d0|$d1, -1;", "rp="),
    ("vote.sync.ballot.b32 $t0, $a0, -1; @$a0 elect.sync $d0|$d1, $t0;", "rp=p"),
    ("movmatrix.sync.aligned.m8n8.trans.b16", "r=r"),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a2, $a3}; bar.warp.sync -1; mad.lo.u32 $t0, $a4, 16, $w; \
         ldmatrix.sync.aligned.m8n8.x1<|.trans>.shared.b16 {$d0}, [$t0];",
        "r=rrrrl",
    ),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a2, $a3}; bar.warp.sync -1; mad.lo.u32 $t0, $a4, 16, $w; \
         ldmatrix.sync.aligned.m8n8.x2<|.trans>.shared.b16 {$d0, $d1}, [$t0];",
        "rr=rrrrl",
    ),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a2, $a3}; bar.warp.sync -1; mad.lo.u32 $t0, $a4, 16, $w; \
         ldmatrix.sync.aligned.m8n8.x4<|.trans>.shared.b16 {$d0, $d1, $d2, $d3}, [$t0];",
        "rrrr=rrrrl",
    ),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a0, $a1}; bar.warp.sync -1; \
         stmatrix.sync.aligned.m8n8.x1<|.trans>.shared.b16 [$s], {$a0}; bar.warp.sync -1; \
         ld.shared.v4.b32 {$d0, $d1, $d2, $d3}, [$s];",
        "rrrr=rr",
    ),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a0, $a1}; bar.warp.sync -1; \
         stmatrix.sync.aligned.m8n8.x2<|.trans>.shared.b16 [$s], {$a0, $a1}; bar.warp.sync -1; \
         ld.shared.v4.b32 {$d0, $d1, $d2, $d3}, [$s];",
        "rrrr=rr",
    ),
    (
        "st.shared.v4.b32 [$s], {$a0, $a1, $a0, $a1}; bar.warp.sync -1; \
         stmatrix.sync.aligned.m8n8.x4<|.trans>.shared.b16 [$s], {$a0, $a1, $a2, $a3}; bar.warp.sync -1; \
         ld.shared.v4.b32 {$d0, $d1, $d2, $d3}, [$s];",
        "rrrr=rrrr",
    ),
];
