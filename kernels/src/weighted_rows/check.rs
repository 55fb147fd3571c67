use reel_device::Addr;
use reel_device::DType::{BF16, F32};

use super::formula::{self, List};
use super::{Params, test_cases_rows_x_rows_cols, weighted_rows};
use crate::checks::{RandomChoices, TestArray, addr, checks, normal_numbers, rounding, run, with_one_interleaving};
use crate::compare::{DEFAULT_ROUNDING_FACTOR, assert_rounded};

checks!(equals_the_formula, an_addition_has_the_bits_of_a_second_kernel, threads_change_nothing);

/// Tolerance as a multiple of the error of one rounding: a sum in f32 rounds once for each entry.
const ROUNDING_FACTOR_F32: f64 = 8.0;

/// The lists of a case as the kernel reads them.
struct Lists {
    offsets: Vec<i32>,
    index: Vec<i32>,
    weight: Vec<f32>,
}

impl Lists {
    /// Lists of 0 to 9 entries, in no order; the same row may occur twice in a list.
    fn random(rows_x: usize, rows: usize) -> Lists {
        let mut picks = RandomChoices::new((rows_x * 31 + rows) as u64);
        let mut lists = Lists { offsets: vec![0], index: Vec::new(), weight: Vec::new() };
        for _ in 0..rows {
            let len = picks.one_of(&[0, 1, 4, 4, 4, 9]);
            lists.index.extend((0..len).map(|_| picks.integer_between(0, rows_x) as i32));
            lists.offsets.push(lists.index.len() as i32);
        }
        lists.weight = normal_numbers(lists.index.len(), 7, 1.0);
        lists
    }

    fn of_formula(&self) -> Vec<List> {
        let entry = |e: usize| (self.index[e] as usize, self.weight[e] as f64);
        self.offsets.windows(2).map(|ends| (ends[0] as usize..ends[1] as usize).map(entry).collect()).collect()
    }

    fn params(&self, [x, add, y]: [Addr; 3], [rows_x, cols]: [usize; 2]) -> Params {
        Params {
            x,
            offsets: addr(&self.offsets),
            index: addr(&self.index),
            weight: addr(&self.weight),
            add,
            y,
            rows: self.offsets.len() as u32 - 1,
            cols: cols as u32,
            rows_x: rows_x as u32,
            entries: self.index.len() as u32,
        }
    }
}

fn equals_the_formula() {
    for (rows_x, rows, cols) in test_cases_rows_x_rows_cols() {
        let lists = Lists::random(rows_x, rows);
        for (of_x, of_y) in [(F32, F32), (BF16, BF16), (BF16, F32)] {
            let (x, y) =
                (TestArray::new(of_x, &normal_numbers(rows_x * cols, 1, 1.0)), TestArray::output(of_y, rows * cols));
            let params = lists.params([x.addr(), Addr::NULL, y.addr()], [rows_x, cols]);
            run(&weighted_rows(of_x, of_y, &params), 2);
            let [with, want] = [rounding::f32, rounding::unrounded]
                .map(|round| formula::weighted_rows(&x.to_f64(), &lists.of_formula(), cols, round));
            let factor = if of_y == F32 { ROUNDING_FACTOR_F32 } else { DEFAULT_ROUNDING_FACTOR };
            assert_rounded(&format!("{of_x} {of_y} {rows}x{cols}"), of_y, &y.values(), &with, &want, factor);
            // Empty lists give zeros.
            let empty = |row: usize| lists.offsets[row] == lists.offsets[row + 1];
            let values = y.values();
            assert!(
                (0..rows).filter(|&row| empty(row)).all(|row| values[row * cols..][..cols].iter().all(|&y| y == 0.0))
            );
        }
    }
}

fn an_addition_has_the_bits_of_a_second_kernel() {
    for (rows_x, rows, cols) in test_cases_rows_x_rows_cols() {
        let lists = Lists::random(rows_x, rows);
        for (of_x, of_y) in [(F32, F32), (BF16, BF16), (BF16, F32)] {
            let x = TestArray::new(of_x, &normal_numbers(rows_x * cols, 1, 1.0));
            let old = TestArray::new(of_y, &normal_numbers(rows * cols, 2, 1.0));
            let launch = |add: Addr, y: &TestArray| {
                run(&weighted_rows(of_x, of_y, &lists.params([x.addr(), add, y.addr()], [rows_x, cols])), 3);
                y.values()
            };
            let sums = launch(Addr::NULL, &TestArray::output(of_y, rows * cols));
            let want: Vec<f32> = sums.iter().zip(old.values()).map(|(sum, old)| sum + old).collect();
            let want = TestArray::new(of_y, &want).values();
            assert_eq!(launch(old.addr(), &TestArray::output(of_y, rows * cols)), want, "{of_x} {of_y} {rows}x{cols}");
            // y and add are one array, as in the sum of a gradient.
            let onto = TestArray::new(of_y, &old.values());
            assert_eq!(launch(onto.addr(), &onto), want, "{of_x} {of_y} {rows}x{cols}, in place");
        }
    }
}

fn threads_change_nothing() {
    with_one_interleaving(|| {
        let (rows_x, rows, cols) = (12, 131, 515);
        let lists = Lists::random(rows_x, rows);
        let x = TestArray::new(F32, &normal_numbers(rows_x * cols, 1, 1.0));
        let sums = |threads: usize| {
            let y = TestArray::output(F32, rows * cols);
            let params = lists.params([x.addr(), Addr::NULL, y.addr()], [rows_x, cols]);
            run(&weighted_rows(F32, F32, &params), threads);
            y.values()
        };
        let one = sums(1);
        assert_eq!(sums(4), one);
    });
}
