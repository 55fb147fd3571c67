use reel_device::DType::{BF16, F32};

use super::*;
use crate::checks::{TestArray, addr, addr_mut, checks, normal_numbers, run};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(sums, casts, fill_scale_and_copy);

fn sums() {
    for n in test_element_counts() {
        for dtype in [F32, BF16] {
            let (a, b) =
                (TestArray::new(dtype, &normal_numbers(n, 1, 1.0)), TestArray::new(dtype, &normal_numbers(n, 2, 3.0)));
            let y = TestArray::output(dtype, n);
            run(&add(dtype, &AddParams { a: a.addr(), b: b.addr(), y: y.addr(), count: n as u64 }), 2);
            let want = formula::add(&a.to_f64(), &b.to_f64());
            assert_rounded(&format!("add {n}"), dtype, &y.values(), &want, &want, DEFAULT_ROUNDING_FACTOR);
            for dst in [F32, BF16].into_iter().filter(|&dst| dtype == BF16 || dst == F32) {
                let (sum, before) = (TestArray::new(dst, &b.values()), b.to_f64());
                let params = AccumulateParams { src: a.addr(), dst: sum.addr(), count: n as u64 };
                run(&accumulate(dtype, dst, &params), 3);
                let want = formula::add(&before, &a.to_f64());
                assert_rounded(&format!("+= {dtype} {n}"), dst, &sum.values(), &want, &want, DEFAULT_ROUNDING_FACTOR);
            }
        }
    }
}

fn casts() {
    for n in test_element_counts() {
        let x = normal_numbers(n, 3, 1.0);
        let (wide, narrow) = (TestArray::new(F32, &x), TestArray::output(BF16, n));
        run(&cast(F32, BF16, &CastParams { src: wide.addr(), dst: narrow.addr(), count: n as u64 }), 2);
        let want: Vec<f32> = x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(narrow.values(), want);
        let back = TestArray::output(F32, n);
        run(&cast(BF16, F32, &CastParams { src: narrow.addr(), dst: back.addr(), count: n as u64 }), 2);
        assert_eq!(back.values(), want);
        let same = TestArray::output(BF16, n);
        run(&cast(BF16, BF16, &CastParams { src: narrow.addr(), dst: same.addr(), count: n as u64 }), 2);
        assert_eq!(same.values(), want);
    }
}

fn fill_scale_and_copy() {
    for n in test_element_counts() {
        for dtype in [F32, BF16] {
            let y = TestArray::output(dtype, n);
            run(&fill(dtype, &FillParams { dst: y.addr(), count: n as u64, value: -1.5, reserved: 0 }), 2);
            assert_eq!(y.values(), vec![-1.5; n]);
        }
        let (x, mut y) = (normal_numbers(n, 4, 1.0), vec![f32::NAN; n]);
        let params = MulScalarParams { x: addr(&x), scalar: addr(&[0.1f32]), y: addr_mut(&mut y), count: n as u64 };
        run(&mul_scalar(&params), 2);
        assert_eq!(y, x.iter().map(|x| x * 0.1).collect::<Vec<_>>());
        let mut bytes = vec![0u8; n * 4];
        run(&copy(&CopyParams { src: addr(&x), dst: addr_mut(&mut bytes), bytes: 4 * n as u64 }), 3);
        assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(&x));
    }
}
