//! Compares the special functions with f64 results, within the errors that the PTX ISA allows.

use super::{Random, register_operands, run_instruction};

#[test]
fn approximations_are_within_their_documented_errors() {
    let float = |x: u64| f32::from_bits(x as u32);
    let mut random = Random(17);
    // A test case: opcode, exact function, whether an argument is tested, error bound of the PTX ISA, and whether the
    // bound is relative (otherwise it is absolute).
    type Case = (&'static str, fn(f64) -> f64, fn(f64) -> bool, f64, bool);
    let cases: [Case; 7] = [
        ("ex2.approx.f32", f64::exp2, |x| x.abs() < 125.0, 2.0f64.powi(-22), true),
        ("lg2.approx.f32", f64::log2, |x| x > 0.0 && !(0.5..2.0).contains(&x), 2.0f64.powi(-22), true),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt(), |x| x > 0.0, 2.0f64.powi(-22), true),
        ("rcp.approx.f32", |x| 1.0 / x, |x| x.abs() > 1e-37 && x.abs() < 1e37, 2.0f64.powi(-23), true),
        ("sqrt.approx.f32", f64::sqrt, |x| x > 0.0, 2.0f64.powi(-23), true),
        ("sin.approx.f32", f64::sin, |x| x.abs() < 3.0, 2.0f64.powi(-20), false),
        ("tanh.approx.f32", f64::tanh, |_| true, 2.0f64.powi(-11), true),
    ];
    for (opcode, f, within, bound, relative) in cases {
        for _ in 0..300 {
            let ran = run_instruction(opcode, &register_operands(2), &[], &mut |_| {
                let x = (random.next() % 4_000_000) as f32 / 8000.0 - 250.0;
                x.to_bits() as u64
            });
            for lane in 0..32 {
                let (x, y) = (float(ran.sources[0][lane]) as f64, float(ran.results[0][lane]) as f64);
                let exact = f(x);
                let scale = if relative { exact.abs() } else { 1.0 };
                assert!(!within(x) || (y - exact).abs() <= bound * scale, "{opcode} of {x}: {y}, exactly {exact}");
            }
        }
    }
    let of = |opcode: &str, x: f32| {
        run_instruction(opcode, &register_operands(2), &[], &mut |_| x.to_bits() as u64).results[0][0]
    };
    let inf = f32::INFINITY;
    for (opcode, x, y) in [
        ("ex2.approx.f32", inf, inf),
        ("ex2.approx.f32", -inf, 0.0),
        ("ex2.approx.f32", 128.0, inf),
        ("ex2.approx.f32", -149.0, f32::from_bits(1)),
        ("ex2.approx.ftz.f32", -149.0, 0.0),
        ("ex2.approx.ftz.f32", f32::from_bits(1), 1.0),
        ("ex2.approx.f32", 3.0, 8.0),
        ("lg2.approx.f32", 0.0, -inf),
        ("lg2.approx.ftz.f32", f32::from_bits(5), -inf),
        ("lg2.approx.f32", inf, inf),
        ("rcp.approx.f32", -0.0, -inf),
        ("rcp.approx.ftz.f32", f32::from_bits(1), inf),
        ("rcp.approx.f32", -inf, -0.0),
        ("rsqrt.approx.f32", -0.0, -inf),
        ("rsqrt.approx.f32", inf, 0.0),
        ("tanh.approx.f32", -inf, -1.0),
    ] {
        assert_eq!(of(opcode, x), y.to_bits() as u64, "{opcode} of {x}");
    }
    for (opcode, x) in
        [("sin.approx.f32", inf), ("lg2.approx.f32", -1.0), ("sqrt.approx.f32", -1.0), ("ex2.approx.f32", f32::NAN)]
    {
        assert_eq!(of(opcode, x), 0x7fff_ffff, "{opcode} of {x}");
    }
    // `div.approx` gives zero for a divisor above 2^126.
    let big = |i: usize| if i == 0 { 2f32.powi(100) } else { 2f32.powi(127) }.to_bits() as u64;
    assert_eq!(run_instruction("div.approx.f32", &register_operands(3), &[], &mut |i| big(i)).results[0][0], 0);
}
