//! Splits the time of a profiled round by op.

use std::collections::BTreeMap;
use std::fmt::Write;

use reel_device::{DType, OpTotals};
use serde_json::{Value, json};

use crate::measure::ceilings::Ceilings;
use crate::measure::machine::PublishedLimits;

/// All launches of one op in a round, with their total time and work.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Name of the kernel.
    pub op: &'static str,
    /// Number of launches.
    pub launches: u64,
    /// Seconds of all launches, by the clock of the device.
    pub seconds: f64,
    /// Share of the round's time that these launches took, 0 to 1.
    pub share: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that must be read and written.
    pub bytes: f64,
    /// Least seconds on this machine.
    pub floor: f64,
    /// Whether the op was faster than the GPU's data sheet allows. If so, its operations or bytes are counted wrong.
    pub is_miscounted: bool,
    /// Whether the operations need more time than the bytes.
    pub is_bound_by_arithmetic: bool,
}

/// The time of each op of a round, longest first. `seconds` is the length of the round; `limits` are the limits of the
/// GPU's data sheet.
pub fn op_times(
    totals: &BTreeMap<&'static str, OpTotals>,
    ceilings: &Ceilings,
    limits: Option<&PublishedLimits>,
    dtype: DType,
    seconds: f64,
) -> Vec<OpTime> {
    let row = |(&op, t): (&&'static str, &OpTotals)| OpTime {
        op,
        launches: t.launches,
        seconds: t.seconds,
        share: t.seconds / seconds,
        flops: t.cost.flops,
        bytes: t.cost.bytes,
        floor: ceilings.roofline_seconds_of_launches(op, t, dtype),
        is_miscounted: limits.is_some_and(|limits| limits.is_exceeded_by(op, t, dtype)),
        is_bound_by_arithmetic: ceilings.is_bound_by_arithmetic(op, t, dtype),
    };
    let mut rows: Vec<OpTime> = totals.iter().map(row).collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    rows
}

impl OpTime {
    /// Operations per second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops / self.seconds
    }

    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes / self.seconds
    }

    /// Least possible time divided by the measured time: 1 if the op is as fast as the roofline allows, never more;
    /// `None` if its operations or bytes are counted wrong.
    pub fn roofline_share(&self) -> Option<f64> {
        (!self.is_miscounted).then(|| (self.floor / self.seconds).min(1.0))
    }

    /// The time of this op as `reel bench --json` prints it.
    pub fn json(&self) -> Value {
        json!({
            "op": self.op, "launches": self.launches, "seconds": self.seconds, "share_of_step": self.share,
            "flops": self.flops, "bytes": self.bytes, "gflops_per_second": self.flops_per_second() / 1e9,
            "gigabytes_per_second": self.bytes_per_second() / 1e9, "floor_seconds": self.floor, "share_of_floor": self.roofline_share(),
            "is_miscounted": self.is_miscounted,
        })
    }
}

/// A share of the roofline as text. `None` means that the operations or bytes are counted wrong.
pub fn share_text(share: Option<f64>) -> String {
    share.map_or_else(|| "wrong count".to_string(), |share| format!("{:.1} %", 100.0 * share))
}

/// A table sums ops with a smaller share of the time in one line, unless it shows all ops.
pub const MIN_SHOWN_SHARE: f64 = 0.005;

/// The line of a table that sums up `count` small ops, which take `seconds` together. Empty if `count` is 0.
pub fn hidden_ops_line(count: usize, seconds: f64) -> String {
    match count {
        0 => String::new(),
        1 => format!("  1 op below 0.5 %: {:.3} ms (-v shows it)\n", seconds * 1e3),
        n => format!("  {n} ops below 0.5 %: {:.3} ms (-v shows them)\n", seconds * 1e3),
    }
}

/// The ops as a table of text. Ops below [`MIN_SHOWN_SHARE`] of the round are one line, unless `all` are shown. The
/// last line is the share of the round in which no launch ran.
pub fn op_table(rows: &[OpTime], all: bool) -> String {
    let mut text = format!(
        "\n  {:34} {:>8} {:>11} {:>8} {:>10} {:>8}  of roofline\n",
        "op", "launches", "ms", "of step", "GFLOP/s", "GB/s"
    );
    let (shown, hidden): (Vec<&OpTime>, Vec<&OpTime>) = rows.iter().partition(|r| all || r.share >= MIN_SHOWN_SHARE);
    for r in shown {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:34} {:>8} {:>11.3} {:>6.1} % {:>10.1} {:>8.1}  {:>7}",
            r.op,
            r.launches,
            r.seconds * 1e3,
            100.0 * r.share,
            r.flops_per_second() / 1e9,
            r.bytes_per_second() / 1e9,
            share_text(r.roofline_share())
        );
    }
    let rest = 1.0 - rows.iter().map(|r| r.share).sum::<f64>();
    text += &hidden_ops_line(hidden.len(), hidden.iter().map(|r| r.seconds).sum());
    text + &format!("  {:34} {:>8} {:>11} {:>6.1} %", "between ops", "", "", 100.0 * rest)
}

#[cfg(test)]
mod tests {
    use reel_device::Cost;

    use super::*;

    #[test]
    fn rows_are_sorted_by_time_and_have_their_own_floor() {
        let ceilings = Ceilings { f32: 1e9, bf16: 4e9, bytes: 1e8, cache: None };
        let op = |flops, bytes, seconds| OpTotals {
            launches: 2,
            cost: Cost { flops, bytes },
            seconds,
            ..OpTotals::default()
        };
        let totals = BTreeMap::from([
            ("add_bf16", op(1e6, 4e6, 0.08)),
            ("matmul_fwd", op(4e9, 1e6, 2.0)),
            ("linear_log_prob_fwd_bf16", op(2e9, 1e6, 1.0)),
        ]);
        let rows = op_times(&totals, &ceilings, None, DType::BF16, 4.0);
        assert_eq!(
            rows.iter().map(|r| r.op).collect::<Vec<_>>(),
            ["matmul_fwd", "linear_log_prob_fwd_bf16", "add_bf16"]
        );
        assert_eq!(rows.iter().map(|r| r.share).collect::<Vec<_>>(), [0.5, 0.25, 0.02]);
        // With these ceilings, the rate of bf16 products limits matrix kernels and memory limits all others.
        assert_eq!(rows.iter().map(OpTime::roofline_share).collect::<Vec<_>>(), [Some(0.5); 3]);
        assert_eq!((rows[0].flops_per_second(), rows[2].bytes_per_second()), (2e9, 5e7));
    }

    #[test]
    fn small_ops_are_one_line_unless_all_are_shown() {
        let op = |seconds| OpTotals { launches: 1, seconds, ..OpTotals::default() };
        let totals = BTreeMap::from([("a", op(0.9)), ("b", op(0.005)), ("c", op(0.004)), ("d", op(0.0031))]);
        let ceilings = Ceilings { f32: 1e9, bf16: 4e9, bytes: 1e8, cache: None };
        let rows = op_times(&totals, &ceilings, None, DType::F32, 1.0);
        let (short, all) = (op_table(&rows, false), op_table(&rows, true));
        assert!(short.contains("  2 ops below 0.5 %: 7.100 ms (-v shows them)\n"), "{short}");
        assert!(short.contains("\n  b ") && !short.contains("\n  c "), "{short}");
        assert!(all.contains("\n  c ") && all.contains("\n  d ") && !all.contains("below"), "{all}");
        assert_eq!(short.lines().last(), all.lines().last());
    }

    #[test]
    fn an_op_that_is_faster_than_the_data_sheet_has_no_share() {
        let limits = PublishedLimits::of_gpu("NVIDIA H200").unwrap();
        let op = |bytes: f64| OpTotals {
            launches: 1,
            cost: Cost { flops: 0.0, bytes },
            seconds: 1.0,
            ..OpTotals::default()
        };
        let totals = BTreeMap::from([("add_bf16", op(5.186e12)), ("mul_bf16", op(4.8e12))]);
        let rows = op_times(&totals, &limits.rates, Some(&limits), DType::BF16, 2.0);
        assert_eq!(rows.iter().map(OpTime::roofline_share).collect::<Vec<_>>(), [None, Some(1.0)]);
        assert!(op_table(&rows, false).contains("wrong count"));
        assert!(rows[0].json()["share_of_floor"].is_null() && rows[0].json()["is_miscounted"] == true);
    }
}
