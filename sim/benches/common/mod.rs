//! Timing functions of the benchmarks that run whole kernels.

use std::time::Instant;

/// Runs `call` and returns its result and its time in seconds: the CPU time of this thread, which excludes other
/// processes, or the elapsed time where the system does not report CPU time.
pub fn run_timed<R>(call: impl FnOnce() -> R) -> (R, f64) {
    let (start, before) = (Instant::now(), cpu_seconds());
    let result = call();
    let elapsed = start.elapsed().as_secs_f64();
    (result, cpu_seconds().zip(before).map_or(elapsed, |(after, before)| after - before))
}

fn cpu_seconds() -> Option<f64> {
    // Yielding makes Linux update this thread's CPU time, which it otherwise updates only at each timer tick.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? as f64 * 1e-9)
}
