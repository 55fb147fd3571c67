use reel_device::Addr;
use reel_device::DType::{self, BF16, F32};

use super::formula::AdapterProduct;
use super::{Params, down, test_cases_m_n_k_adapters, up};
use crate::checks::rounding::f32;
use crate::checks::{TestArray, addr, checks, normal_numbers, run, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(
    rows_are_multiplied_by_the_matrix_of_their_adapter,
    rows_without_an_adapter_are_zero_or_unchanged,
    a_row_does_not_know_its_batch,
    zeros_up_to_a_higher_rank_change_nothing,
);

struct Given {
    x: TestArray,
    w: TestArray,
    y: Vec<f32>,
    scale: Vec<f32>,
    adapter: Vec<i32>,
    sizes: [usize; 4],
}

impl Given {
    /// Makes random data. The rows' adapter numbers include -1 and a number that is too large.
    fn new(dtype: DType, (m, n, k, adapters): (usize, usize, usize, usize)) -> Given {
        let data = |count, seed| TestArray::new(dtype, &normal_numbers(count, seed, 1.0));
        Given {
            x: data(m * k, 1),
            w: data(adapters * n * k, 2),
            y: data(m * n, 3).values(),
            scale: normal_numbers(adapters, 4, 0.5).iter().map(|s| s + 1.0).collect(),
            adapter: (0..m).map(|i| (i * 7 % (adapters + 2)) as i32 - 1).map(|a| if m == 1 { 0 } else { a }).collect(),
            sizes: [m, n, k, adapters],
        }
    }

    fn params(&self, y: &TestArray) -> Params {
        let [m, n, k, adapters] = self.sizes.map(|size| size as u32);
        let (adapter, scale) = (addr(&self.adapter), addr(&self.scale));
        Params { x: self.x.addr(), w: self.w.addr(), adapter, scale, y: y.addr(), m, n, k, adapters }
    }
}

fn all(mut f: impl FnMut(DType, (usize, usize, usize, usize))) {
    for dtype in [F32, BF16] {
        test_cases_m_n_k_adapters().into_iter().for_each(|case| f(dtype, case));
    }
}

/// Returns the tolerance of sums as a multiple of the error of one rounding. In f32 the tolerance grows with
/// cancellation.
fn rounding_factor(dtype: DType, sizes: &[f64], sums: &[f64]) -> f64 {
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let cancellation = if dtype == F32 { norm(sizes) / norm(sums).max(1e-30) } else { 0.0 };
    DEFAULT_ROUNDING_FACTOR * (1.0 + cancellation)
}

fn rows_are_multiplied_by_the_matrix_of_their_adapter() {
    all(|dtype, case| {
        let given = Given::new(dtype, case);
        let ([_, n, k, adapters], (x, w)) = (given.sizes, (given.x.to_f64(), given.w.to_f64()));
        let rows = AdapterProduct { x: &x, w: &w, adapter: &given.adapter, n, k };
        let scale: Vec<f64> = given
            .adapter
            .iter()
            .flat_map(|&a| {
                let scale = usize::try_from(a).ok().filter(|a| *a < adapters).map_or(1.0, |a| given.scale[a] as f64);
                std::iter::repeat_n(scale, n)
            })
            .collect();
        let scaled = |sums: Vec<f64>| sums.iter().zip(&scale).map(|(sum, scale)| sum * scale).collect::<Vec<f64>>();
        let y = TestArray::output(dtype, given.y.len());
        run(&down(dtype, &given.params(&y)), 2);
        let (with, want, sizes) =
            (scaled(rows.products_rounded()), scaled(rows.products()), scaled(rows.sums_of_magnitudes()));
        let factor = rounding_factor(dtype, &sizes, &want);
        assert_rounded(&format!("down {case:?}"), dtype, &y.values(), &with, &want, factor);

        let y = TestArray::new(dtype, &given.y);
        run(&up(dtype, &Params { scale: Addr::NULL, ..given.params(&y) }), 2);
        let added = |sums: Vec<f64>, round: fn(f64) -> f64| -> Vec<f64> {
            sums.iter().zip(&given.y).map(|(sum, &y)| round(y as f64 + sum)).collect()
        };
        let (with, want) = (added(rows.products_rounded(), f32), added(rows.products(), |x| x));
        let sizes: Vec<f64> =
            rows.sums_of_magnitudes().iter().zip(&given.y).map(|(size, y)| size + y.abs() as f64).collect();
        let factor = rounding_factor(dtype, &sizes, &want);
        assert_rounded(&format!("up {case:?}"), dtype, &y.values(), &with, &want, factor);
    });
}

fn rows_without_an_adapter_are_zero_or_unchanged() {
    for dtype in [F32, BF16] {
        let mut given = Given::new(dtype, (3, 20, 40, 2));
        given.adapter = vec![-1, 2, i32::MIN];
        let (zeros, same) = (TestArray::output(dtype, 60), TestArray::new(dtype, &given.y));
        run(&down(dtype, &given.params(&zeros)), 1);
        run(&up(dtype, &given.params(&same)), 1);
        assert!(zeros.values().iter().all(|y| y.to_bits() == 0), "{dtype}: rows without an adapter must be 0");
        assert_eq!(same.values(), given.y, "{dtype}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn a_row_does_not_know_its_batch() {
    with_one_interleaving(|| {
        all(|dtype, case| {
            let given = Given::new(dtype, case);
            let [m, n, k, _] = given.sizes;
            for launch in [down, up] {
                let whole = TestArray::new(dtype, &given.y);
                run(&launch(dtype, &given.params(&whole)), 3);
                for row in [0, m - 1] {
                    let x = TestArray::new(dtype, &given.x.values()[row * k..][..k]);
                    let y = TestArray::new(dtype, &given.y[row * n..][..n]);
                    let adapter = vec![given.adapter[row]];
                    let alone = Params { x: x.addr(), adapter: addr(&adapter), m: 1, ..given.params(&y) };
                    run(&launch(dtype, &alone), 1);
                    let same = bits(&whole.values()[row * n..][..n]) == bits(&y.values());
                    assert!(same, "{dtype} {case:?}: row {row} has other bits alone");
                }
            }
        });
    });
}

/// A rank-5 adapter gives the same bits in a stack of rank 16 as in one of rank 5, apart from the sign of zeros.
fn zeros_up_to_a_higher_rank_change_nothing() {
    with_one_interleaving(|| {
        for dtype in [F32, BF16] {
            let (m, rank, padded, width) = (3, 5, 16, 300);
            let given = Given::new(dtype, (m, rank, width, 1));
            let adapter = vec![0; m];
            let outputs = |r: usize| {
                let widened = |rows: &[f32], row: usize| -> Vec<f32> {
                    rows.chunks_exact(row).flat_map(|x| x.iter().copied().chain(vec![0.0; r - rank])).collect()
                };
                let down_w = [given.w.values(), vec![0.0; (r - rank) * width]].concat();
                let (down_w, up_w) = (TestArray::new(dtype, &down_w), widened(&given.w.values(), rank));
                let up_w = TestArray::new(dtype, &up_w);
                let (thin, y) = (TestArray::output(dtype, m * r), TestArray::new(dtype, &vec![1.0; m * width]));
                let [n, k] = [r, width].map(|size| size as u32);
                let params = Params { w: down_w.addr(), adapter: addr(&adapter), n, k, ..given.params(&thin) };
                run(&down(dtype, &params), 1);
                let (x, w, y_addr) = (thin.addr(), up_w.addr(), y.addr());
                run(&up(dtype, &Params { x, w, y: y_addr, n: k, k: n, ..params }), 1);
                y.values()
            };
            assert_eq!(outputs(rank), outputs(padded), "{dtype}");
        }
    });
}
