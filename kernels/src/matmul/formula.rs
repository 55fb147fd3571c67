//! The definition of the matrix product, in f64.

/// Returns `sum over l of a(i, l) * b(j, l)` for each i and j; `a` is `[m, k]`, `b` is `[n, k]`.
pub fn product(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                c[i * n + j] += a[i * k + l] * b[j * k + l];
            }
        }
    }
    c
}
