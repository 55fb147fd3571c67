//! f32 and f64.

use super::PatternAndFormats;

pub const INSTRUCTION_PATTERNS: &[PatternAndFormats] = &[
    ("<add|sub|mul><|.rn|.rz|.rm|.rp><|.ftz><|.sat>.f32", "f=ff"),
    ("fma.<rn|rz|rm|rp><|.ftz><|.sat>.f32", "f=fff"),
    ("div.<rn|rz|rm|rp><|.ftz>.f32", "f=ff"),
    ("<rcp|sqrt>.<rn|rz|rm|rp><|.ftz>.f32", "f=f"),
    ("div.<approx|full><|.ftz>.f32", "f=ff"),
    ("<rcp|sqrt|rsqrt|ex2|lg2|sin|cos>.approx<|.ftz>.f32", "f=f"),
    ("tanh.approx.f32", "f=f"),
    ("<neg|abs><|.ftz>.f32", "f=f"),
    ("<min|max><|.ftz><|.NaN><|.xorsign.abs>.f32", "f=ff"),
    ("copysign.f32", "f=ff"),
    ("<add|sub|mul><|.rn|.rz|.rm|.rp>.f64", "D=DD"),
    ("fma.<rn|rz|rm|rp>.f64", "D=DDD"),
    ("div.<rn|rz|rm|rp>.f64", "D=DD"),
    ("<rcp|sqrt>.<rn|rz|rm|rp>.f64", "D=D"),
    ("<rcp.approx.ftz|rsqrt.approx|rsqrt.approx.ftz>.f64", "D=D"),
    ("<neg|abs>.f64", "D=D"),
    ("<min|max|copysign>.f64", "D=DD"),
];
