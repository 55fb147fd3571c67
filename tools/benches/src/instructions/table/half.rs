//! Instructions on f16 and bf16: single numbers, and pairs in one register.

use super::PatternAndFormats;

pub const INSTRUCTION_PATTERNS: &[PatternAndFormats] = &[
    ("<add|sub|mul><|.rn><|.ftz><|.sat>.f16", "H=HH"),
    ("<add|sub|mul><|.rn><|.ftz><|.sat>.f16x2", "x=xx"),
    ("<add|sub|mul><|.rn>.bf16", "B=BB"),
    ("<add|sub|mul><|.rn>.bf16x2", "y=yy"),
    ("fma.rn<|.ftz><|.sat|.relu>.f16", "H=HHH"),
    ("fma.rn<|.ftz><|.sat|.relu>.f16x2", "x=xxx"),
    ("fma.rn<|.relu>.bf16", "B=BBB"),
    ("fma.rn<|.relu>.bf16x2", "y=yyy"),
    ("<neg|abs><|.ftz>.f16", "H=H"),
    ("<neg|abs><|.ftz>.f16x2", "x=x"),
    ("<neg|abs>.bf16", "B=B"),
    ("<neg|abs>.bf16x2", "y=y"),
    ("<min|max><|.ftz><|.NaN><|.xorsign.abs>.f16", "H=HH"),
    ("<min|max><|.ftz><|.NaN><|.xorsign.abs>.f16x2", "x=xx"),
    ("<min|max><|.NaN><|.xorsign.abs>.bf16", "B=BB"),
    ("<min|max><|.NaN><|.xorsign.abs>.bf16x2", "y=yy"),
    ("<ex2|tanh>.approx.f16", "H=H"),
    ("<ex2|tanh>.approx.f16x2", "x=x"),
    ("<ex2.approx.ftz|tanh.approx>.bf16", "B=B"),
    ("<ex2.approx.ftz|tanh.approx>.bf16x2", "y=y"),
];
