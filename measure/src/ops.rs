//! Splits the time of a profiled round by op.

use std::collections::BTreeMap;
use std::fmt::Write;

use reel_kernels::DType;
use reel_runtime::OpTotals;
use serde_json::{Value, json};

use crate::ceilings::Ceilings;

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
    /// Whether the operations need more time than the bytes.
    pub is_bound_by_arithmetic: bool,
}

/// The time of each op of a round, longest first. `seconds` is the length of the round.
pub fn op_times(
    totals: &BTreeMap<&'static str, OpTotals>,
    ceilings: &Ceilings,
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

    /// Least possible time divided by the measured time: 1 if the op is as fast as the roofline allows, never more.
    pub fn roofline_share(&self) -> f64 {
        (self.floor / self.seconds).min(1.0)
    }

    /// This row as `reel bench --json` prints it.
    pub fn json(&self) -> Value {
        json!({
            "op": self.op, "launches": self.launches, "seconds": self.seconds, "share_of_step": self.share,
            "flops": self.flops, "bytes": self.bytes, "gflops_per_second": self.flops_per_second() / 1e9,
            "gigabytes_per_second": self.bytes_per_second() / 1e9, "floor_seconds": self.floor, "share_of_floor": self.roofline_share(),
        })
    }
}

/// The ops as a table of text. Its last line is the share of the round in which no launch ran.
pub fn op_table(rows: &[OpTime]) -> String {
    let mut text = format!(
        "\n  {:34} {:>8} {:>11} {:>8} {:>10} {:>8}  of roofline\n",
        "op", "launches", "ms", "of step", "GFLOP/s", "GB/s"
    );
    for r in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:34} {:>8} {:>11.3} {:>6.1} % {:>10.1} {:>8.1}  {:>5.1} %",
            r.op,
            r.launches,
            r.seconds * 1e3,
            100.0 * r.share,
            r.flops_per_second() / 1e9,
            r.bytes_per_second() / 1e9,
            100.0 * r.roofline_share()
        );
    }
    let rest = 1.0 - rows.iter().map(|r| r.share).sum::<f64>();
    text + &format!("  {:34} {:>8} {:>11} {:>6.1} %", "between ops", "", "", 100.0 * rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_kernels::Cost;

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
        let rows = op_times(&totals, &ceilings, DType::BF16, 4.0);
        assert_eq!(
            rows.iter().map(|r| r.op).collect::<Vec<_>>(),
            ["matmul_fwd", "linear_log_prob_fwd_bf16", "add_bf16"]
        );
        assert_eq!(rows.iter().map(|r| r.share).collect::<Vec<_>>(), [0.5, 0.25, 0.02]);
        // With these ceilings, the rate of bf16 products limits matrix kernels and memory limits all others.
        assert_eq!(rows.iter().map(OpTime::roofline_share).collect::<Vec<_>>(), [0.5, 0.5, 0.5]);
        assert_eq!((rows[0].flops_per_second(), rows[2].bytes_per_second()), (2e9, 5e7));
    }
}
