//! Measures limits of this processor: multiply-adds per second from registers, bytes per second from memory, and the
//! time until a thread sees what another thread has written. Benchmarks compare measured times with the least time
//! that these limits allow.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use reel_device::cpu::large_pages::LargeArray;
use reel_device::cpu::simd::{Isa, isa};
use reel_device::{DType, Team};

/// Number of independent vector accumulators: enough to hide the latency of a multiply-add (four cycles, two issued per
/// cycle), and few enough for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds of each accumulator in one timing. Together they take some milliseconds, so that the time until a
/// thread has woken up is negligible.
const STEPS: usize = 1_000_000;
/// Steps of the loop that measures AMX tiles. The loop takes some milliseconds, like the loop of [`STEPS`]
/// multiply-adds.
const TILE_STEPS: usize = 100_000;
/// Operations of one step of the loop over AMX tiles: four tiles of 16 × 16 sums, 32 multiply-adds each.
const TILE_OPERATIONS: usize = 4 * 16 * 16 * 32 * 2;
/// Number of products of bf16 parts into which one f32 product is split on AMX tiles.
const TILE_PRODUCTS_OF_F32: usize = 6;
/// Bytes of a memory page of normal size.
const PAGE: usize = 4096;

/// Measures the floating-point operations per second of all threads together; a multiply-add counts as two operations.
/// It times the unit that multiplies matrices of this dtype: for bf16 the tiles of AMX or the bf16 dot product of
/// AVX-512; for f32, and for bf16 without these units, f32 multiply-adds, or the tiles of AMX if device `cpu` uses them
/// for f32.
pub fn measure_operations_per_second(dtype: DType, team: &Team) -> f64 {
    let bf16 = dtype == DType::BF16;
    let operations = match isa() {
        Isa::Amx | Isa::AmxF32 if bf16 => TILE_STEPS * TILE_OPERATIONS,
        Isa::AmxF32 => TILE_STEPS * TILE_OPERATIONS / TILE_PRODUCTS_OF_F32,
        Isa::Avx512Bf16 if bf16 => STEPS * CHAINS * 16 * 4,
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => STEPS * CHAINS * 16 * 2,
        Isa::Avx2 => STEPS * CHAINS * 8 * 2,
        Isa::Plain => STEPS * CHAINS * 4 * 2,
    };
    best(8, || at_once(team, |_| multiply_add(bf16)), (operations * team.threads()) as f64)
}

/// Measures how many bytes of an array of `bytes` bytes all threads together read per second. This is the bandwidth
/// of memory if the array is several times as large as all caches.
///
/// # Panics
/// If the system has less memory.
pub fn measure_bytes_per_second(team: &Team, bytes: usize) -> f64 {
    let mut array = LargeArray::zeroed(bytes).expect("the system has memory for the array");
    // Writes to each page. Pages that were never written all map to one page of zeros, which would be read from a
    // cache.
    array.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    let data: &[u32] = bytemuck::cast_slice(&array[..bytes / 1024 * 1024]);
    let part = data.len() / 256;
    let read = || {
        team.run(256, |t| {
            black_box(fold(&data[t * part..][..part]));
        })
    };
    best(5, read, (256 * part * size_of::<u32>()) as f64)
}

/// Measures the seconds from one thread's write of a cache line until another thread has read the new value: the best
/// of several series of exchanges, a few milliseconds in all. It takes some 30 ns between cores that share a cache,
/// and several times as long between others. Returns `None` for a team of one thread.
pub fn measure_cache_line_handover_seconds(team: &Team) -> Option<f64> {
    const EXCHANGES: usize = 2_000;
    if team.threads() < 2 {
        return None;
    }
    let turn = AtomicUsize::new(0);
    let wait_for = |value: usize| {
        let mut looks = 0u32;
        while turn.load(Ordering::Acquire) != value {
            looks += 1;
            // If there are fewer cores than threads, the other thread may need this core, so this thread yields.
            if looks.is_multiple_of(1 << 12) {
                std::thread::yield_now();
            }
        }
    };
    // Threads 0 and 1 take turns: each waits for the number that the other has stored, and stores the next number.
    let exchange = || {
        turn.store(0, Ordering::Release);
        at_once(team, |thread| {
            for i in (thread..2 * EXCHANGES).step_by(2).filter(|_| thread < 2) {
                wait_for(i);
                turn.store(i + 1, Ordering::Release);
            }
        });
    };
    Some(1.0 / best(8, exchange, (2 * EXCHANGES) as f64))
}

/// Runs one task on each thread. A barrier makes each task wait until all have started, so that a thread that wakes
/// up early does not take two tasks.
fn at_once(team: &Team, task: impl Fn(usize) + Sync) {
    let together = std::sync::Barrier::new(team.threads());
    team.run(team.threads(), |i| {
        together.wait();
        task(i);
    });
}

/// Makes `calls` calls and returns the highest rate: `amount`, the work of one call, divided by the shortest time in
/// seconds.
fn best(calls: usize, call: impl Fn(), amount: f64) -> f64 {
    let seconds = (0..calls).map(|_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    });
    amount / seconds.fold(f64::INFINITY, f64::min)
}

reel_device::simd_fn! {
    fn fold(x: &[u32]) -> u32 {
        let mut lanes = [0u32; 64];
        for x in x.chunks_exact(64) {
            for i in 0..64 {
                lanes[i] ^= x[i];
            }
        }
        lanes.iter().fold(0, |a, b| a ^ b)
    }
}

fn multiply_add(bf16: bool) {
    let seed = black_box(1e-3f32);
    black_box(chains(bf16, seed));
}

#[cfg(target_arch = "x86_64")]
fn chains(bf16: bool, seed: f32) -> f32 {
    // SAFETY: `isa` found the features that each function needs.
    unsafe {
        match isa() {
            Isa::Amx if bf16 => x86::run_amx_tiles(seed, TILE_STEPS),
            Isa::AmxF32 => x86::run_amx_tiles(seed, TILE_STEPS),
            Isa::Avx512Bf16 if bf16 => x86::run_avx512_bf16_dot_products(seed),
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => x86::run_avx512_multiply_adds(seed),
            Isa::Avx2 => x86::run_avx2_multiply_adds(seed),
            Isa::Plain => plain_multiply_adds(seed),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn chains(_: bool, seed: f32) -> f32 {
    plain_multiply_adds(seed)
}

fn plain_multiply_adds(seed: f32) -> f32 {
    let mut sums = [[seed; 4]; CHAINS];
    for _ in 0..STEPS {
        for sum in sums.iter_mut().flatten() {
            *sum += seed * seed;
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use reel_device::cpu::simd::amx::Tiles;

    use super::{CHAINS, STEPS};

    /// Multiplies AMX tiles in `steps` steps and returns one of the sums, to which each step adds 32 products of `seed`
    /// rounded to bf16.
    ///
    /// # Safety
    /// The process may use AMX, or the emulator of the tests is installed. `steps` is at least 1.
    pub(super) unsafe fn run_amx_tiles(seed: f32, steps: usize) -> f32 {
        let operand = [[seed.to_bits() >> 16 << 16 | seed.to_bits() >> 16; 16]; 16];
        let mut sums = [[0.0f32; 16]; 16];
        // SAFETY: the process may use AMX; the loads and the store access 16 rows of 64 bytes each.
        unsafe {
            let _tiles = Tiles::configure();
            asm!(
                "tileloadd tmm4, [{operand} + {line}*1]",
                "tileloadd tmm5, [{operand} + {line}*1]",
                "tileloadd tmm6, [{operand} + {line}*1]",
                "tileloadd tmm7, [{operand} + {line}*1]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {line}*1], tmm3",
                operand = in(reg) operand.as_ptr(),
                sums = in(reg) sums.as_mut_ptr(),
                line = in(reg) 64usize,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        sums[15][15]
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn run_avx512_bf16_dot_products(seed: f32) -> f32 {
        let (mut sums, x) = ([_mm512_set1_ps(seed); CHAINS], _mm512_set1_ps(seed));
        // SAFETY: 512 bits as 512 bits.
        let x: __m512bh = unsafe { std::mem::transmute(x) };
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums.iter().map(|s| _mm512_reduce_add_ps(*s)).sum()
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn run_avx512_multiply_adds(seed: f32) -> f32 {
        let (mut sums, x) = ([_mm512_set1_ps(seed); CHAINS], _mm512_set1_ps(seed));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        sums.iter().map(|s| _mm512_reduce_add_ps(*s)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2_multiply_adds(seed: f32) -> f32 {
        let (mut sums, x) = ([_mm256_set1_ps(seed); CHAINS], _mm256_set1_ps(seed));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, x, *sum);
            }
        }
        let lanes = sums.iter().flat_map(|s| {
            let mut lanes = [0f32; 8];
            // SAFETY: eight floats as eight floats.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), *s) };
            lanes
        });
        lanes.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_hand_over_in_more_than_no_time() {
        assert_eq!(measure_cache_line_handover_seconds(&Team::new(1)), None);
        for threads in [2, 3] {
            let seconds = measure_cache_line_handover_seconds(&Team::new(threads)).expect("two threads");
            assert!(seconds > 1e-9 && seconds.is_finite(), "{threads} threads: {seconds}");
        }
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn every_step_of_the_tiles_is_computed() {
        if !reel_device::cpu::simd::amx_emulator::install() {
            return println!("skipped: the processor has no AVX-512");
        }
        // SAFETY: AMX or its emulator is installed.
        let sum = unsafe { x86::run_amx_tiles(1.5, 7) };
        assert_eq!(sum, 7.0 * 32.0 * 1.5 * 1.5);
    }

    #[test]
    fn limits_are_plausible() {
        let team = Team::new(1);
        for dtype in [DType::F32, DType::BF16] {
            let rate = measure_operations_per_second(dtype, &team);
            assert!((1e8..1e13).contains(&rate), "{dtype}: {rate:e}");
        }
        let rate = measure_bytes_per_second(&team, 256 << 20);
        assert!((1e8..1e13).contains(&rate), "{rate:e}");
    }
}
