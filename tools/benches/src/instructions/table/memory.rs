//! Loads, stores and atomics. Each lane has 16 bytes of memory to itself, so no lane depends on another.

use super::PatternAndFormats;

pub const INSTRUCTION_PATTERNS: &[PatternAndFormats] = &[
    ("st.global.v2.b64 [$g], {$a0, $a1}; ld.global.<u8|s8|b8> $d0, [$g+<0|3|13>];", "h=dd"),
    ("st.global.v2.b64 [$g], {$a0, $a1}; ld.global.<u8|s8|u16|s16|u32|s32> $d0, [$g+<0|4|12>];", "r=dd"),
    ("st.global.v2.b64 [$g], {$a0, $a1}; ld.global.<u8|s8|u16|s16|u32|s32|u64> $d0, [$g+8];", "d=dd"),
    ("st.shared.v2.b64 [$s], {$a0, $a1}; ld.shared.<u8|s8|u16|s16|u32|s32|u64> $d0, [$s+8];", "d=dd"),
    ("st.global.b64 [$g], $a0; st.global.<b8|u8|s8> [$g+3], $a1; ld.global.b64 $d0, [$g];", "d=dh"),
    ("st.shared.b64 [$s], $a0; st.shared.<b8|b16|u32> [$s+4], $a1; ld.shared.b64 $d0, [$s];", "d=dr"),
    ("st.global.v4.b32 [$g], {$a0, $a1, $a2, $a3}; ld.global.v4.<u8|s8> {$d0, $d1, $d2, $d3}, [$g+4];", "rrrr=rrrr"),
    ("st.global.v4.b32 [$g], {$a0, $a1, $a2, $a3}; ld.global.v2.<s8|s16|u16|u32> {$d0, $d1}, [$g+8];", "rr=rrrr"),
    ("st.global.v4.b32 [$g], {$a0, $a1, $a2, $a3}; ld.global.v2.b64 {$d0, $d1}, [$g];", "dd=rrrr"),
    ("st.shared.v4.b32 [$s], {$a0, $a1, $a2, $a3}; ld.shared.v4.<s8|s16> {$d0, $d1, $d2, $d3}, [$s+8];", "hhhh=rrrr"),
    ("st.shared.v4.b16 [$s], {$a0, $a1, $a2, $a3}; ld.shared.b64 $d0, [$s];", "d=hhhh"),
    ("st.shared.v4.b8 [$s], {$a0, $a1, $a2, $a3}; ld.shared.b32 $d0, [$s];", "r=hhhh"),
    (
        "st.global.b32 [$g], $a0; atom.global.<add|min|max|inc|dec>.u32 $d0, [$g], $a1; ld.global.b32 $d1, [$g];",
        "rr=rr",
    ),
    ("st.global.b32 [$g], $a0; atom.global.<add|min|max>.s32 $d0, [$g], $a1; ld.global.b32 $d1, [$g];", "rr=rr"),
    ("st.global.b32 [$g], $a0; atom.global.<and|or|xor|exch>.b32 $d0, [$g], $a1; ld.global.b32 $d1, [$g];", "rr=rr"),
    (
        "st.shared.b32 [$s], $a0; atom.shared.<add|min|max|inc|dec>.u32 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];",
        "rr=rr",
    ),
    ("st.shared.b32 [$s], $a0; atom.shared.<and|or|xor|exch>.b32 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];", "rr=rr"),
    ("st.shared.b32 [$s], $a0; atom.shared.<min|max>.s32 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];", "rr=rr"),
    ("st.global.b64 [$g], $a0; atom.global.<add|min|max>.u64 $d0, [$g], $a1; ld.global.b64 $d1, [$g];", "dd=dd"),
    ("st.global.b64 [$g], $a0; atom.global.<min|max>.s64 $d0, [$g], $a1; ld.global.b64 $d1, [$g];", "dd=dd"),
    ("st.global.b64 [$g], $a0; atom.global.<and|or|xor|exch>.b64 $d0, [$g], $a1; ld.global.b64 $d1, [$g];", "dd=dd"),
    ("st.shared.b64 [$s], $a0; atom.shared.<add|min|max>.u64 $d0, [$s], $a1; ld.shared.b64 $d1, [$s];", "dd=dd"),
    ("st.global.b16 [$g], $a0; atom.global.cas.b16 $d0, [$g], $a1, $a2; ld.global.b16 $d1, [$g];", "hh=hhh"),
    ("st.global.b32 [$g], $a0; atom.global.cas.b32 $d0, [$g], $a1, $a2; ld.global.b32 $d1, [$g];", "rr=rrr"),
    ("st.global.b64 [$g], $a0; atom.global.cas.b64 $d0, [$g], $a1, $a2; ld.global.b64 $d1, [$g];", "dd=ddd"),
    ("st.shared.b32 [$s], $a0; atom.shared.cas.b32 $d0, [$s], $a1, $a2; ld.shared.b32 $d1, [$s];", "rr=rrr"),
    ("st.global.b32 [$g], $a0; atom.global.add.f32 $d0, [$g], $a1; ld.global.b32 $d1, [$g];", "ff=ff"),
    ("st.shared.b32 [$s], $a0; atom.shared.add.f32 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];", "ff=ff"),
    ("st.global.b64 [$g], $a0; atom.global.add.f64 $d0, [$g], $a1; ld.global.b64 $d1, [$g];", "DD=DD"),
    ("st.shared.b64 [$s], $a0; atom.shared.add.f64 $d0, [$s], $a1; ld.shared.b64 $d1, [$s];", "DD=DD"),
    ("st.global.b16 [$g], $a0; atom.global.add.noftz.f16 $d0, [$g], $a1; ld.global.b16 $d1, [$g];", "HH=HH"),
    ("st.global.b16 [$g], $a0; atom.global.add.noftz.bf16 $d0, [$g], $a1; ld.global.b16 $d1, [$g];", "BB=BB"),
    ("st.global.b32 [$g], $a0; atom.global.add.noftz.f16x2 $d0, [$g], $a1; ld.global.b32 $d1, [$g];", "xx=xx"),
    ("st.global.b32 [$g], $a0; atom.global.add.noftz.bf16x2 $d0, [$g], $a1; ld.global.b32 $d1, [$g];", "yy=yy"),
    ("st.shared.b32 [$s], $a0; atom.shared.add.noftz.f16x2 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];", "xx=xx"),
    ("st.shared.b32 [$s], $a0; atom.shared.add.noftz.bf16x2 $d0, [$s], $a1; ld.shared.b32 $d1, [$s];", "yy=yy"),
    ("st.global.b32 [$g], $a0; red.global.<add|min|max|inc|dec>.u32 [$g], $a1; ld.global.b32 $d0, [$g];", "r=rr"),
    ("st.global.b32 [$g], $a0; red.global.<and|or|xor>.b32 [$g], $a1; ld.global.b32 $d0, [$g];", "r=rr"),
    ("st.global.b32 [$g], $a0; red.global.add.f32 [$g], $a1; ld.global.b32 $d0, [$g];", "f=ff"),
    ("st.global.b32 [$g], $a0; red.global.add.noftz.f16x2 [$g], $a1; ld.global.b32 $d0, [$g];", "x=xx"),
    ("st.global.b32 [$g], $a0; red.global.add.noftz.bf16x2 [$g], $a1; ld.global.b32 $d0, [$g];", "y=yy"),
    (
        "st.global.v2.b32 [$g], {$a0, $a1}; red.global.add.v2.f32 [$g], {$a2, $a3}; ld.global.v2.b32 {$d0, $d1}, [$g];",
        "ff=ffff",
    ),
    (
        "st.global.v2.b32 [$g], {$a0, $a1}; atom.global.add.v2.f32 {$d0, $d1}, [$g], {$a2, $a3}; \
         ld.global.v2.b32 {$d2, $d3}, [$g];",
        "ffff=ffff",
    ),
    (
        "st.global.v2.b32 [$g], {$a0, $a1}; atom.global.<add|min|max>.noftz.v2.f16x2 {$d0, $d1}, [$g], {$a2, $a3}; \
         ld.global.v2.b32 {$d2, $d3}, [$g];",
        "xxxx=xxxx",
    ),
    (
        "st.global.v2.b32 [$g], {$a0, $a1}; atom.global.<add|min|max>.noftz.v2.bf16x2 {$d0, $d1}, [$g], {$a2, $a3}; \
         ld.global.v2.b32 {$d2, $d3}, [$g];",
        "yyyy=yyyy",
    ),
    (
        "cvt.u64.u32 $u1, $s; cvta.shared.u64 $u0, $u1; selp.b64 $u0, $u0, $g, $a0; \
         isspacep.<global|shared|local|const> $d0, $u0;",
        "p=p",
    ),
    ("createpolicy.fractional.L2::evict_last.b64 $u0, 1.0; mov.b32 $d0, $a0;", "r=r"),
];
