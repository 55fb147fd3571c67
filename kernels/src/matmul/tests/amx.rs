//! Tests that only the AMX code needs: sizes of blocks, shapes of the vision tower, accesses beyond the operands.
#![allow(unsafe_code)]

use super::*;
use crate::matmul::cpu::amx::{self, Blocking};

/// Runs a product on AMX tiles, with the given sizes of blocks, or the usual sizes if `blocking` is `None`.
fn blocked(c: &Case, x: &Inputs, blocking: Option<&Blocking>, threads: usize) -> Vec<f32> {
    // SAFETY: the arrays live and have the shapes of the case; the callers have installed the emulator.
    with_arrays(c, &x.a, &x.b, &x.bias, &x.old, |p| unsafe {
        amx::run(p, &Team::new(threads), blocking.unwrap_or_else(|| Blocking::usual(p)));
    })
}

fn any_blocking() -> impl Strategy<Value = Blocking> {
    (1..4usize, 1..3usize, 1..4usize, any::<[bool; 2]>()).prop_map(|(steps, row_blocks, panels, [own_rows, thin])| {
        // With `packed_words` of 1, the smallest value, A is packed in groups of 128 rows.
        let shared_words = if own_rows { 0 } else { usize::MAX };
        Blocking { steps, row_blocks, panels, packed_words: 1, shared_words, thin }
    })
}

/// Generates products whose operands are bf16 or f32, in any combination.
fn any_case_on_tiles() -> impl Strategy<Value = Case> {
    let size = |most: usize| prop_oneof![1..=4usize, 1..=most];
    let of_storage = (any::<[bool; 2]>(), any::<bool>(), any::<bool>(), any::<[bool; 3]>(), 0..3usize);
    ((size(200), size(150), size(150)), of_storage).prop_map(
        |((m, n, k), (transposed, bias, accumulate, is_f32, scale))| Case {
            m,
            n,
            k,
            dtypes: is_f32.map(|is_f32| if is_f32 { F32 } else { BF16 }),
            transposed,
            bias,
            accumulate,
            scale: SCALES[scale],
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_bit_depends_on_the_sizes_of_blocks(
        c in any_case_on_tiles(),
        blocking in any_blocking(),
        threads in 1..4usize,
        seed in 0..1000u64,
    ) {
        if !amx_works() {
            return Ok(());
        }
        let x = inputs(&c, seed);
        let usual = blocked(&c, &x, None, 1);
        let got = blocked(&c, &x, Some(&blocking), threads);
        same(&format!("{c:?} {blocking:?}"), &usual, &got).map_err(TestCaseError::fail)?;
    }

    /// The three bf16 parts of an f32 add up to it exactly: its product with 1 has all of its bits.
    #[test]
    fn a_product_with_ones_gives_an_f32_exactly(
        x in prop::collection::vec((any::<bool>(), -103..=126i32, 0..1u32 << 23), 1..100),
        transposed in any::<[bool; 2]>(),
        first_is_a in any::<bool>(),
    ) {
        if !amx_works() {
            return Ok(());
        }
        let x: Vec<f32> = x.into_iter().map(|(negative, exponent, significand)| {
            f32::from_bits(u32::from(negative) << 31 | ((exponent + 127) as u32) << 23 | significand)
        }).collect();
        let (m, n) = if first_is_a { (x.len(), 1) } else { (1, x.len()) };
        let c = Case { m, n, k: 1, dtypes: [F32; 3], transposed, bias: false, accumulate: false, scale: 1.0 };
        let (ones, none) = (vec![1.0; 1], vec![0.0; x.len()]);
        let (a, b) = if first_is_a { (&x, &ones) } else { (&ones, &x) };
        let got = product(Isa::AmxF32, &c, a, b, &vec![0.0; n], &none, 1);
        same(&format!("{c:?}"), &x, &got).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn shapes_of_the_vision_tower_are_computed_by_tiles() {
    if !amx_works() {
        return println!("skipped: the processor has no AVX-512");
    }
    // 3420 is a multiple of 4 and 1712 of 16, but neither is one of 32, the step along k. 1176 is the length of a
    // patch. With k = 2048 the rows of B fall into the same sets of a cache.
    for (i, (m, n, k)) in
        [(3, 3420, 40), (70, 33, 1712), (40, 50, 3420), (1, 65, 1176), (130, 32, 2048)].into_iter().enumerate()
    {
        for transposed in [[false, false], [false, true], [true, true]] {
            let dtypes = [BF16, BF16, if i % 2 == 0 { BF16 } else { F32 }];
            for (isa, dtypes) in [(Isa::Amx, dtypes), (Isa::AmxF32, [F32; 3])] {
                let c = Case { m, n, k, dtypes, transposed, bias: i % 2 == 0, accumulate: i % 2 == 1, scale: 1.0 };
                check(isa, &c, 3 + i as u64).unwrap();
            }
        }
    }
}

/// Only k decides whether AMX tiles compute a product with an f32 operand. If the number of rows did, a row would have
/// other bits in a batch than alone.
#[test]
fn tiles_multiply_f32_from_a_certain_k_on() {
    if !amx_works() {
        return println!("skipped: the processor has no AVX-512");
    }
    for dtypes in [[F32; 3], [F32, BF16, F32], [BF16, F32, BF16]] {
        for (k, on_tiles) in [(cpu::MIN_K_FOR_AMX_F32 - 1, false), (cpu::MIN_K_FOR_AMX_F32, true)] {
            for m in [1, 40] {
                let c = Case { m, n: 35, k, dtypes, transposed: [false; 2], bias: true, accumulate: false, scale: 1.0 };
                let x = inputs(&c, 5);
                // SAFETY: the arrays live and have the shapes of the case; the emulator is installed.
                let chosen = with_arrays(&c, &x.a, &x.b, &x.bias, &x.old, |p| unsafe {
                    cpu::run_on(Isa::AmxF32, p, &Team::new(2));
                });
                let isa = if on_tiles { Isa::AmxF32 } else { Isa::Amx };
                let want = product(isa, &c, &x.a, &x.b, &x.bias, &x.old, 2);
                same(&format!("{c:?}"), &want, &chosen).unwrap();
            }
        }
    }
}

#[test]
fn large_products_on_tiles_cross_every_block() {
    if !amx_works() {
        return println!("skipped: the processor has no AVX-512");
    }
    // The sizes give more rows than a task multiplies with one panel of B, two blocks of k, and several panels.
    for (transposed, dtypes) in [[false, false], [true, true]]
        .into_iter()
        .flat_map(|stored| [(stored, [BF16, BF16, F32]), (stored, [F32, F32, F32])])
    {
        let c = Case { m: 530, n: 70, k: 600, dtypes, transposed, bias: true, accumulate: true, scale: 0.7 };
        let x = inputs(&c, 1);
        let whole = product(Isa::AmxF32, &c, &x.a, &x.b, &x.bias, &x.old, 2);
        for at in (0..c.m * c.n).step_by(1911) {
            let got = alone(Isa::AmxF32, &c, &x, at / c.n, at % c.n);
            same(&format!("{c:?}, element {at} alone"), &whole[at..=at], &[got]).unwrap();
        }
    }
}

/// Memory whose last bytes are followed by a page that cannot be accessed.
struct Guarded {
    base: *mut u8,
    bytes: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new(bytes: usize) -> Guarded {
        let whole = bytes.next_multiple_of(PAGE) + PAGE;
        // SAFETY: the call maps new memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: the last page of the new memory.
        assert_eq!(unsafe { libc::mprotect(base.byte_add(whole - PAGE), PAGE, libc::PROT_NONE) }, 0);
        Guarded { base: base.cast(), bytes }
    }

    /// Returns the address of the last `bytes` bytes before the page that cannot be accessed.
    fn addr(&self) -> Addr {
        Addr(self.base as u64 + (self.bytes.next_multiple_of(PAGE) - self.bytes) as u64)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: these bytes are mapped, and no other reference to them lives.
        unsafe { std::slice::from_raw_parts_mut(self.addr().0 as *mut u8, self.bytes) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the memory that `new` has mapped.
        unsafe { libc::munmap(self.base.cast(), self.bytes.next_multiple_of(PAGE) + PAGE) };
    }
}

/// Products with a B in groups access nothing beyond their operands, with the code of each instruction set: such an
/// access would end the process.
#[test]
fn nothing_beyond_groups_is_accessed() {
    for (m, n, k) in [(1, 1, 1), (1, 33, 31), (13, 32, 2), (17, 32, 33), (40, 64, 1025), (75, 20, 64)] {
        let dtypes = [(BF16, BF16), (F32, BF16), (F32, F32), (BF16, F32)];
        for (isa, (a_dtype, b_dtype)) in isas().into_iter().flat_map(|isa| dtypes.map(|dtypes| (isa, dtypes))) {
            let elements = group_elements(b_dtype, n, k);
            let mut arrays = [m * k * a_dtype.size(), elements * b_dtype.size(), m * n * 4].map(Guarded::new);
            let one = half::bf16::ONE.to_bits().to_le_bytes();
            match a_dtype {
                F32 => arrays[0].bytes().chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&1f32.to_le_bytes())),
                _ => arrays[0].bytes().chunks_exact_mut(2).for_each(|x| x.copy_from_slice(&one)),
            }
            let of_b = arrays[1].bytes();
            match b_dtype {
                F32 => of_b.copy_from_slice(bytemuck::cast_slice(&formula::arrange_in_row_groups(
                    &vec![1f32; n * k],
                    n,
                    k,
                ))),
                _ => of_b.copy_from_slice(bytemuck::cast_slice(&formula::arrange_in_row_groups(
                    &vec![half::bf16::ONE; n * k],
                    n,
                    k,
                ))),
            }
            let operand = |i: usize, dtype| Operand { addr: arrays[i].addr(), dtype, transposed: false };
            let p = Matmul {
                m,
                n,
                k,
                a: operand(0, a_dtype),
                b: operand(1, b_dtype),
                b_scale: Addr::NULL,
                b_layout: RightLayout::Groups,
                c: arrays[2].addr(),
                c_dtype: F32,
                bias: Addr::NULL,
                accumulate: false,
                scale: 1.0,
                code: &PRODUCT_CODE,
            };
            // SAFETY: the arrays have the sizes of the product; `isas` returns instruction sets that work here.
            unsafe { run_with(isa, &p, 2) };
            let got = arrays[2].bytes().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()));
            assert!(got.eq(std::iter::repeat_n(k as f32, m * n)), "{isa:?} {m} {n} {k} {a_dtype} {b_dtype}");
        }
    }
}

/// Products on AMX tiles access nothing beyond their operands: such an access would end the process.
#[test]
fn nothing_beyond_the_operands_is_accessed() {
    if !amx_works() {
        return println!("skipped: the processor has no AVX-512");
    }
    for (m, n, k) in [(1, 1, 1), (1, 33, 31), (17, 32, 33), (33, 47, 65), (40, 64, 1025)] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for (dtypes, c_dtype) in [([BF16; 2], F32), ([BF16; 2], BF16), ([F32; 2], F32), ([F32, BF16], F32)] {
                let sizes = dtypes.map(DType::size);
                let mut arrays =
                    [m * k * sizes[0], n * k * sizes[1], n * c_dtype.size(), m * n * c_dtype.size()].map(Guarded::new);
                let one = half::bf16::ONE.to_bits().to_le_bytes();
                for (operand, dtype) in arrays.iter_mut().zip(dtypes) {
                    match dtype {
                        F32 => operand.bytes().chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&1f32.to_le_bytes())),
                        _ => operand.bytes().chunks_exact_mut(2).for_each(|x| x.copy_from_slice(&one)),
                    }
                }
                let operand =
                    |i: usize| Operand { addr: arrays[i].addr(), dtype: dtypes[i], transposed: transposed[i] };
                let p = Matmul {
                    m,
                    n,
                    k,
                    a: operand(0),
                    b: operand(1),
                    b_scale: Addr::NULL,
                    b_layout: RightLayout::Plain,
                    c: arrays[3].addr(),
                    c_dtype,
                    bias: arrays[2].addr(),
                    accumulate: true,
                    scale: 1.0,
                    code: &PRODUCT_CODE,
                };
                // SAFETY: the arrays have the sizes of the product; the emulator is installed.
                unsafe { amx::run(&p, &Team::new(2), Blocking::usual(&p)) };
                let k_rounded = <half::bf16 as reel_device::Element>::from_f32(k as f32).to_f32();
                let (bytes, want) = (arrays[3].bytes(), if c_dtype == F32 { k as f32 } else { k_rounded });
                let got: Vec<f32> = match c_dtype {
                    F32 => bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
                    _ => bytes
                        .chunks_exact(2)
                        .map(|x| half::bf16::from_le_bytes(x.try_into().unwrap()).to_f32())
                        .collect(),
                };
                assert!(got.iter().all(|&x| x == want), "{m} {n} {k} {transposed:?} {c_dtype}: {got:?}");
            }
        }
    }
}
