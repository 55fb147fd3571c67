use reel_device::DType::{BF16, F32};

use super::{GatherParams, ScatterParams, formula, gather, scatter, test_cases_n_m_cols};
use crate::checks::{TestArray, addr, checks, normal_numbers, run};

checks!(gathers_and_scatters);

/// Returns `m` different row indices below `n` in shuffled order. If there are at least four, the fourth is replaced
/// by one that is out of range.
fn index(n: usize, m: usize) -> Vec<i32> {
    let step = (1..).map(|k| k * 2 + 1).find(|s| gcd(*s, n) == 1 && (n < 8 || s % n > 2)).unwrap_or(1);
    (0..m).map(|i| if i == 3 { n as i32 } else { ((i * step + 2) % n) as i32 }).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn gathers_and_scatters() {
    for (n, m, cols) in test_cases_n_m_cols() {
        for dtype in [F32, BF16] {
            let (x, index) = (TestArray::new(dtype, &normal_numbers(n * cols, 1, 1.0)), index(n, m));
            let y = TestArray::output(dtype, m * cols);
            let (m32, cols32, n32) = (m as u32, cols as u32, n as u32);
            let params = GatherParams {
                x: x.addr(),
                index: addr(&index),
                y: y.addr(),
                m: m32,
                cols: cols32,
                n: n32,
                reserved: 0,
            };
            run(&gather(dtype, &params), 2);
            assert_eq!(y.values(), formula::gather(&x.values(), &index, cols), "gather {dtype} {n} {m} {cols}");

            let src = TestArray::new(dtype, &normal_numbers(m * cols, 2, 1.0));
            let dst = TestArray::new(dtype, &normal_numbers(n * cols, 3, 1.0));
            let before = dst.values();
            let params = ScatterParams {
                src: src.addr(),
                index: addr(&index),
                dst: dst.addr(),
                m: m32,
                cols: cols32,
                n: n32,
                reserved: 0,
            };
            run(&scatter(dtype, &params), 3);
            let want = formula::scatter(&src.values(), &index, &before, cols);
            assert_eq!(dst.values(), want, "scatter {dtype} {n} {m} {cols}");
        }
    }
}
