//! Formats numbers and durations of plans.

/// Formats a number with at least three significant digits; no decimals from 100 on.
pub fn format_rate(rate: f64) -> String {
    let decimals = match rate.abs() {
        x if x >= 100.0 || x == 0.0 || !x.is_finite() => 0,
        x => (2 - x.log10().floor() as i32).clamp(0, 12) as usize,
    };
    format!("{rate:.decimals$}")
}

/// Formats a large number of `unit` with its prefix: giga below `least_tera`, else tera with `decimals` decimals.
pub fn format_large(number: f64, least_tera: f64, decimals: usize, unit: &str) -> String {
    match number >= least_tera {
        true => format!("{:.decimals$} T{unit}", number / 1e12),
        false => format!("{} G{unit}", format_rate(number / 1e9)),
    }
}

/// Formats a duration in s, ms or us.
pub fn format_duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_small_machines_keep_three_digits() {
        for (rate, wanted) in
            [(0.0, "0"), (0.8412, "0.841"), (0.000_123_4, "0.000123"), (7.5, "7.50"), (99.46, "99.5"), (1234.5, "1234")]
        {
            assert_eq!(format_rate(rate), wanted);
        }
        let rates =
            [(989.4e12, "989.4 TFLOP/s"), (1e12, "1.0 TFLOP/s"), (48.7e9, "48.7 GFLOP/s"), (0.8e9, "0.800 GFLOP/s")];
        for (rate, wanted) in rates {
            assert_eq!(format_large(rate, 1e12, 1, "FLOP/s"), wanted);
        }
    }

    #[test]
    fn a_sum_of_nothing_has_no_sign() {
        assert_eq!(format_duration(super::super::costs::total(std::iter::empty())), "0.0 us");
    }
}
