//! A comparison that can fail: NaN and infinity first, then relative L2 and the largest difference, with coordinates.

/// Checks `got` against `want`: non-finite values must be at the same places and equal, the relative L2 distance at most
/// `rel_l2`, and no element further off than `max_abs`.
///
/// # Errors
/// Says the first place that is wrong with both values, or which bound was passed by how much.
pub fn close(name: &str, got: &[f32], want: &[f64], rel_l2: f64, max_abs: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{name}: {} elements, want {}", got.len(), want.len()));
    }
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let same = (g.is_nan() && w.is_nan()) || (g.is_finite() && w.is_finite()) || g as f64 == w;
        if !same {
            return Err(format!("{name}[{i}]: {g}, want {w}"));
        }
    }
    let (mut diff2, mut want2, mut worst, mut at) = (0.0, 0.0, 0.0, 0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate().filter(|(_, (g, _))| g.is_finite()) {
        let d = (g as f64 - w).abs();
        diff2 += d * d;
        want2 += w * w;
        if d > worst {
            (worst, at) = (d, i);
        }
    }
    let rel = if want2 > 0.0 { (diff2 / want2).sqrt() } else { diff2.sqrt() };
    if !(rel <= rel_l2) {
        return Err(format!(
            "{name}: relative L2 {rel:.3e} > {rel_l2:.1e}; worst at {at}: {}, want {}",
            got[at], want[at]
        ));
    }
    if !(worst <= max_abs) {
        return Err(format!("{name}[{at}]: {}, want {}, off by {worst:.3e} > {max_abs:.1e}", got[at], want[at]));
    }
    Ok(())
}

/// [`close`], as an assertion.
///
/// # Panics
/// When the two differ by more than allowed.
#[track_caller]
pub fn assert_close(name: &str, got: &[f32], want: &[f64], rel_l2: f64, max_abs: f64) {
    if let Err(e) = close(name, got, want, rel_l2, max_abs) {
        panic!("{e}");
    }
}

#[cfg(test)]
mod tests {
    use super::close;

    #[test]
    fn fails_where_it_should() {
        let want = [1.0, 2.0, 3.0];
        assert!(close("x", &[1.0, 2.0, 3.0], &want, 0.0, 0.0).is_ok());
        assert!(close("x", &[1.0, 2.0], &want, 1.0, 1.0).is_err());
        assert!(close("x", &[1.0, f32::NAN, 3.0], &want, 1e9, 1e9).is_err());
        assert!(close("x", &[1.0, f32::INFINITY, 3.0], &want, 1e9, 1e9).is_err());
        assert!(close("x", &[1.0, 2.1, 3.0], &want, 1e-3, 1.0).is_err());
        assert!(close("x", &[1.0, 2.1, 3.0], &want, 1.0, 1e-3).is_err());
        assert!(close("x", &[f32::NAN], &[f64::NAN], 0.0, 0.0).is_ok());
        assert!(close("x", &[f32::INFINITY], &[f64::NEG_INFINITY], 1.0, 1.0).is_err());
    }
}
