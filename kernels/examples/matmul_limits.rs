//! Times matrix products and measures the limits of the machine, for scripts that alternate between this program and
//! the same measurement of another library. Reads one request per line and answers each with the median and the
//! minimum seconds of its calls.
//!
//! ```text
//! threads 2                                     uses two threads from now on
//! product bf16 bf16 bf16 512 4864 896 24 10     dtypes of A, B and C; m, n, k; copies of B, used in turn; calls
//!                                               (bf16t, f32t: stored transposed; f32g, bf16g: B in groups; i8: B
//!                                               with scales)
//! product … 24 10 cold                          the same with as many copies of C as of B, used in turn
//! limit f32 | limit bf16                        time of 1e9 operations on registers, on all threads
//! read                                          time to read 1e9 bytes from memory
//! handover                                      time until a thread reads what another one has written
//! launch                                        time of an empty launch with one task per thread
//! ```
#![allow(unsafe_code)]

use std::time::Instant;

use memmap2::{Advice, MmapMut};
use reel_device::launch::{self, GROUP_ROWS, Matmul, Operand, RightLayout};
use reel_device::{Addr, DType, Launch, Team};
use reel_kernels::limits;
use reel_kernels::matmul::PRODUCT_CODE;

fn main() -> Result<(), String> {
    let mut team = Team::new(2);
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let times = match words[..] {
            ["threads", n] => {
                team = Team::new(number(n)?);
                continue;
            }
            ["product", a, b, c, ref sizes @ ..] => {
                let (sizes, cold_c) = match sizes {
                    [sizes @ .., "cold"] => (sizes, true),
                    sizes => (sizes, false),
                };
                let sizes = sizes.iter().map(|s| number(s)).collect::<Result<Vec<_>, _>>()?;
                let [m, n, k, copies, calls] = sizes[..] else {
                    return Err(format!("{line}: needs five numbers: m, n, k, copies, calls"));
                };
                let copies = [copies, if cold_c { copies } else { 1 }];
                product([dtype(a)?, dtype(b)?, dtype(c)?], [m, n, k], copies, calls, &team)?
            }
            ["limit", kind] => vec![1e9 / limits::measure_operations_per_second(dtype(kind)?.0, &team)],
            ["read"] => vec![1e9 / limits::measure_bytes_per_second(&team, 1 << 30)],
            ["handover"] => {
                vec![limits::measure_cache_line_handover_seconds(&team).ok_or("handover: needs two threads")?]
            }
            ["launch"] => (0..2000).map(|_| time(|| team.run(team.threads(), |_| {}))).collect(),
            _ => {
                return Err(format!("{line}: unknown request; give threads, product, limit, read, handover or launch"));
            }
        };
        let (median, least) = summary(times);
        println!("{median:e} {least:e}");
    }
    Ok(())
}

fn number(s: &str) -> Result<usize, String> {
    s.parse().map_err(|_| format!("{s}: not a number"))
}

#[derive(Clone, Copy, PartialEq)]
enum Stored {
    Plain,
    Transposed,
    Groups,
}

fn dtype(s: &str) -> Result<(DType, Stored), String> {
    match s {
        "f32" => Ok((DType::F32, Stored::Plain)),
        "f32t" => Ok((DType::F32, Stored::Transposed)),
        "bf16" => Ok((DType::BF16, Stored::Plain)),
        "bf16t" => Ok((DType::BF16, Stored::Transposed)),
        "f32g" => Ok((DType::F32, Stored::Groups)),
        "bf16g" => Ok((DType::BF16, Stored::Groups)),
        "i8" => Ok((DType::I8, Stored::Plain)),
        _ => Err(format!("{s}: unknown dtype; give f32, f32t, bf16, bf16t, f32g (B), bf16g (B) or i8 (B)")),
    }
}

fn time(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn summary(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Allocates an array on huge pages, if the system has them. The array is filled with a bit pattern that is a small
/// finite number both as one f32 and as two bf16.
fn array(bytes: usize) -> Result<MmapMut, String> {
    let mut map = MmapMut::map_anon(bytes.next_multiple_of(4).max(4)).map_err(|e| format!("{bytes} bytes: {e}"))?;
    // `advise` fails on systems without huge pages. The array then has pages of normal size.
    let _ = map.advise(Advice::HugePage);
    for (i, word) in map.chunks_exact_mut(4).enumerate() {
        let bits = 0x3f80_3f80 ^ ((i as u32).wrapping_mul(0x9e37_79b9) & 0x8070_8070);
        word.copy_from_slice(&bits.to_le_bytes());
    }
    Ok(map)
}

fn product(
    dtypes: [(DType, Stored); 3],
    [m, n, k]: [usize; 3],
    [copies, copies_of_c]: [usize; 2],
    calls: usize,
    team: &Team,
) -> Result<Vec<f64>, String> {
    let addr = |x: &MmapMut| Addr(x.as_ptr() as u64);
    let a = array(m * k * dtypes[0].0.size())?;
    let elements_of_b = n.next_multiple_of(GROUP_ROWS) * k.next_multiple_of(2);
    let b = (0..copies).map(|_| array(elements_of_b * dtypes[1].0.size())).collect::<Result<Vec<_>, _>>()?;
    let scales = array(n * 4)?;
    let c = (0..copies_of_c).map(|_| array(m * n * dtypes[2].0.size())).collect::<Result<Vec<_>, _>>()?;
    let call = |i: usize| {
        let operand =
            |x: &MmapMut, (dtype, stored)| Operand { addr: addr(x), dtype, transposed: stored == Stored::Transposed };
        let launch = Launch::Matmul(Matmul {
            m,
            n,
            k,
            a: operand(&a, dtypes[0]),
            b: operand(&b[i % copies], dtypes[1]),
            b_scale: if dtypes[1].0 == DType::I8 { addr(&scales) } else { Addr::NULL },
            b_layout: if dtypes[1].1 == Stored::Groups { RightLayout::Groups } else { RightLayout::Plain },
            c: addr(&c[i % copies_of_c]),
            c_dtype: dtypes[2].0,
            bias: Addr::NULL,
            accumulate: false,
            scale: 1.0,
            code: &PRODUCT_CODE,
        });
        // SAFETY: the arrays have the sizes that the product needs and outlive the call.
        time(|| unsafe { launch::run_on_cpu(&launch, team) })
    };
    for i in 0..2 {
        call(i);
    }
    Ok((0..calls).map(|i| call(i + 2)).collect())
}
