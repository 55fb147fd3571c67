use super::*;

impl PrototypeRow {
    /// The modelled seconds of the prototype: those of the kernel without what the prototype does not have.
    fn modelled(&self) -> f64 {
        let sizes = self.sizes.iter().map(|(name, size)| (&*name.clone().leak(), *size)).collect();
        let symbol = self.kernel.clone().leak();
        let main = PlannedStage { symbol, blocks: 132, cluster: 1, threads: 384, shared: 0, programmatic: true, sizes };
        let seconds = seconds_of_launch(&main, Cost { flops: self.flops, bytes: self.bytes }).expect("a schedule");
        match &*self.family {
            "attention forward" => (seconds - ATTENTION_LAUNCH_SECONDS) / SEGMENTS + ATTENTION_LAUNCH_SECONDS,
            "paged decode" => seconds - FIND_WORK_SECONDS,
            _ => seconds,
        }
    }
}

/// Times that differ by less than this share have the same rank: the spread of medians of the same prototype.
const SPREAD: f64 = 0.03;

/// Spearman's rank correlation of two series; values within `spread` of each other have their mean rank.
pub(crate) fn rank_correlation(pairs: &[[f64; 2]], spread: f64) -> f64 {
    let ranks = |at: usize| -> Vec<f64> {
        let below = |x: f64, by: f64| pairs.iter().filter(|p| p[at] < x * by).count() as f64;
        let not_above = |x: f64| pairs.iter().filter(|p| p[at] * (1.0 - spread) <= x).count() as f64;
        pairs.iter().map(|p| (below(p[at], 1.0 - spread) + not_above(p[at])) / 2.0).collect()
    };
    let centred = |ranks: Vec<f64>| -> Vec<f64> {
        let mean = ranks.iter().sum::<f64>() / ranks.len() as f64;
        ranks.into_iter().map(|rank| rank - mean).collect()
    };
    let (a, b) = (centred(ranks(0)), centred(ranks(1)));
    let product = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// In each family the model orders the measured times rightly, and four of five are within 15 %.
#[test]
fn the_model_agrees_with_the_times_of_the_prototypes() {
    let mut families: Vec<&str> = PROTOTYPES.rows.iter().map(|row| &*row.family).collect();
    families.dedup();
    assert_eq!(families.len(), 5);
    for family in families {
        let mut pairs = Vec::new();
        for row in PROTOTYPES.rows.iter().filter(|row| row.family == family) {
            let (modelled, sizes) = (row.modelled(), format!("{:?}", row.sizes).replace(['"', '{', '}'], ""));
            let measured = row.measured_seconds().expect("a time");
            println!(
                "{:9.1} us modelled {:9.1} measured {:+6.1} %  {} ({}) {sizes}",
                1e6 * modelled,
                1e6 * measured,
                100.0 * (modelled / measured - 1.0),
                row.kernel,
                row.prototype
            );
            pairs.push([modelled, measured]);
        }
        let near = pairs.iter().filter(|[a, b]| (a / b - 1.0).abs() <= 0.15).count();
        let (correlation, plain) = (rank_correlation(&pairs, SPREAD), rank_correlation(&pairs, 0.0));
        println!(
            "{family}: rank correlation {correlation:.3} (without the spread {plain:.3}), {near} of {} within 15 %\n",
            pairs.len()
        );
        assert!(correlation >= 0.9 && 5 * near >= 4 * pairs.len(), "{family}: {correlation}, {near}");
    }
}

#[test]
fn the_longest_jobs_come_first() {
    let jobs = |long: usize, short: usize| [vec![4e-6; long], vec![1e-6; short]].concat();
    assert!((longest_first(jobs(1, 0)) - 4e-6).abs() < 1e-12);
    assert!((longest_first(jobs(131, 4)) - 4e-6).abs() < 1e-12);
    assert!((longest_first(jobs(133, 0)) - 8e-6).abs() < 1e-12);
}

/// The o-projection of a decode step costs the same with 1 and with 8 rows: the weights are its bytes.
#[test]
fn eight_rows_cost_as_much_as_one() {
    let bytes = |rows: f64| 2.0 * (3584.0 * 3584.0 + 2.0 * rows * 3584.0);
    let seconds = |rows| few_rows("skinny_linear_bf16_64_x1", Cost { flops: 0.0, bytes: bytes(rows) });
    assert!(seconds(8.0) < 1.01 * seconds(1.0) && seconds(1.0) < 7.5e-6, "{} {}", seconds(1.0), seconds(8.0));
    let norm = few_rows("skinny_swiglu_bf16_144_x1", Cost { flops: 0.0, bytes: bytes(1.0) }) - seconds(1.0);
    assert!((norm - NORM_SECONDS).abs() < 1e-12, "{norm}");
}
