//! Vector operations on a warp's lanes, with AVX-512, or AVX2 and FMA, where the CPU has them. Results do not depend
//! on the CPU: a multiply-add always rounds once.
//!
//! In fragments, each *quad* of four lanes holds four elements of one row (or column). A vector is two or four quads.

use super::{Lanes, ldmatrix};

/// Operations on vectors that consist of quads of f32.
pub(super) trait LaneVector: Copy {
    /// The vector type.
    type F: Copy;

    /// Quads per vector: 2 or 4.
    const QUADS: usize;

    /// Loads the `n`-th vector of a register's lanes.
    fn load(self, lanes: &[f32; 32], n: usize) -> Self::F;

    /// Stores the `n`-th vector of a register's lanes.
    fn store(self, values: Self::F, lanes: &mut [f32; 32], n: usize);

    /// Returns a vector that repeats one quad.
    fn repeat(self, quad: &[f32; 4]) -> Self::F;

    /// Within each quad, copies the `T`-th value to all four.
    fn spread<const T: usize>(self, values: Self::F) -> Self::F;

    /// Returns `a · b + sum`, rounded once.
    fn multiply_add(self, a: Self::F, b: Self::F, sum: Self::F) -> Self::F;

    /// Converts the lower and the upper bf16 of each lane to f32.
    #[inline(always)]
    fn bf16(self, words: &Lanes) -> [[f32; 32]; 2] {
        [words.map(|word| f32::from_bits(word << 16)), words.map(|word| f32::from_bits(word & 0xffff_0000))]
    }

    /// Transposes a fragment like [`ldmatrix::transposed`].
    #[inline(always)]
    fn transposed(self, fragment: &Lanes) -> Lanes {
        ldmatrix::transposed(fragment)
    }
}

/// A computation that is generic over the vector type.
pub(super) trait VectorKernel {
    /// Implement `run`, and every function that it calls, with `#[inline(always)]`. Only then is the code compiled
    /// for the vector instructions that were selected.
    fn run<V: LaneVector>(self, vector: V);
}

/// Runs the kernel with the best vector instructions of this CPU.
#[inline(always)]
pub(super) fn run_vector_kernel(kernel: impl VectorKernel) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(vector) = pulp::x86::V4::try_new() {
            return vector.vectorize(On { vector, kernel });
        }
        if let Some(vector) = pulp::x86::V3::try_new() {
            return vector.vectorize(On { vector, kernel });
        }
    }
    kernel.run(Plain);
}

/// Portable vectors: plain arrays, which the compiler may vectorise.
#[derive(Clone, Copy)]
struct Plain;

impl LaneVector for Plain {
    type F = [f32; 8];
    const QUADS: usize = 2;

    #[inline(always)]
    fn load(self, lanes: &[f32; 32], n: usize) -> [f32; 8] {
        std::array::from_fn(
            #[inline(always)]
            |i| lanes[8 * n + i],
        )
    }

    #[inline(always)]
    fn store(self, values: [f32; 8], lanes: &mut [f32; 32], n: usize) {
        lanes[8 * n..8 * n + 8].copy_from_slice(&values);
    }

    #[inline(always)]
    fn repeat(self, quad: &[f32; 4]) -> [f32; 8] {
        std::array::from_fn(
            #[inline(always)]
            |i| quad[i % 4],
        )
    }

    #[inline(always)]
    fn spread<const T: usize>(self, values: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(
            #[inline(always)]
            |i| values[i / 4 * 4 + T],
        )
    }

    #[inline(always)]
    fn multiply_add(self, a: [f32; 8], b: [f32; 8], mut sum: [f32; 8]) -> [f32; 8] {
        for (sum, (a, b)) in sum.iter_mut().zip(a.into_iter().zip(b)) {
            *sum = a.mul_add(b, *sum);
        }
        sum
    }
}

#[cfg(target_arch = "x86_64")]
struct On<V, K> {
    vector: V,
    kernel: K,
}

#[cfg(target_arch = "x86_64")]
impl<V: LaneVector, K: VectorKernel> pulp::NullaryFnOnce for On<V, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.kernel.run(self.vector);
    }
}

#[cfg(target_arch = "x86_64")]
impl LaneVector for pulp::x86::V3 {
    type F = pulp::f32x8;
    const QUADS: usize = 2;

    #[inline(always)]
    fn load(self, lanes: &[f32; 32], n: usize) -> pulp::f32x8 {
        let all: &[pulp::f32x8; 4] = bytemuck::cast_ref(lanes);
        all[n]
    }

    #[inline(always)]
    fn store(self, values: pulp::f32x8, lanes: &mut [f32; 32], n: usize) {
        let all: &mut [pulp::f32x8; 4] = bytemuck::cast_mut(lanes);
        all[n] = values;
    }

    #[inline(always)]
    fn repeat(self, quad: &[f32; 4]) -> pulp::f32x8 {
        pulp::cast([*quad, *quad])
    }

    #[inline(always)]
    fn spread<const T: usize>(self, values: pulp::f32x8) -> pulp::f32x8 {
        let values = pulp::cast(values);
        pulp::cast(match T {
            0 => self.avx._mm256_permute_ps::<0x00>(values),
            1 => self.avx._mm256_permute_ps::<0x55>(values),
            2 => self.avx._mm256_permute_ps::<0xaa>(values),
            _ => self.avx._mm256_permute_ps::<0xff>(values),
        })
    }

    #[inline(always)]
    fn multiply_add(self, a: pulp::f32x8, b: pulp::f32x8, sum: pulp::f32x8) -> pulp::f32x8 {
        self.mul_add_f32x8(a, b, sum)
    }

    #[inline(always)]
    fn bf16(self, words: &Lanes) -> [[f32; 32]; 2] {
        let eights: [[u32; 8]; 4] = bytemuck::cast(*words);
        let upper = self.avx._mm256_set1_epi32(0xffff_0000_u32 as i32);
        let mut values = [[[0f32; 8]; 2]; 4];
        // Do not use `map`: its closure would be compiled without the selected vector instructions.
        for (eight, values) in eights.into_iter().zip(&mut values) {
            let eight = pulp::cast(eight);
            values[0] = pulp::cast(self.avx2._mm256_slli_epi32::<16>(eight));
            values[1] = pulp::cast(self.avx2._mm256_and_si256(eight, upper));
        }
        let [[a, b], [c, d], [e, f], [g, h]] = values;
        [bytemuck::cast([a, c, e, g]), bytemuck::cast([b, d, f, h])]
    }
}

#[cfg(target_arch = "x86_64")]
impl LaneVector for pulp::x86::V4 {
    type F = pulp::f32x16;
    const QUADS: usize = 4;

    #[inline(always)]
    fn load(self, lanes: &[f32; 32], n: usize) -> pulp::f32x16 {
        let all: &[pulp::f32x16; 2] = bytemuck::cast_ref(lanes);
        all[n]
    }

    #[inline(always)]
    fn store(self, values: pulp::f32x16, lanes: &mut [f32; 32], n: usize) {
        let all: &mut [pulp::f32x16; 2] = bytemuck::cast_mut(lanes);
        all[n] = values;
    }

    #[inline(always)]
    fn repeat(self, quad: &[f32; 4]) -> pulp::f32x16 {
        pulp::cast([*quad; 4])
    }

    #[inline(always)]
    fn spread<const T: usize>(self, values: pulp::f32x16) -> pulp::f32x16 {
        let values = pulp::cast(values);
        pulp::cast(match T {
            0 => self.avx512f._mm512_permute_ps::<0x00>(values),
            1 => self.avx512f._mm512_permute_ps::<0x55>(values),
            2 => self.avx512f._mm512_permute_ps::<0xaa>(values),
            _ => self.avx512f._mm512_permute_ps::<0xff>(values),
        })
    }

    #[inline(always)]
    fn multiply_add(self, a: pulp::f32x16, b: pulp::f32x16, sum: pulp::f32x16) -> pulp::f32x16 {
        self.mul_add_f32x16(a, b, sum)
    }

    #[inline(always)]
    fn bf16(self, words: &Lanes) -> [[f32; 32]; 2] {
        let halves: [[u32; 16]; 2] = bytemuck::cast(*words);
        let upper = self.avx512f._mm512_set1_epi32(0xffff_0000_u32 as i32);
        let values = halves.map(
            #[inline(always)]
            |half| {
                let half = pulp::cast(half);
                let low: [f32; 16] = pulp::cast(self.avx512f._mm512_slli_epi32::<16>(half));
                let high: [f32; 16] = pulp::cast(self.avx512f._mm512_and_si512(half, upper));
                [low, high]
            },
        );
        let [[a, b], [c, d]] = values;
        [bytemuck::cast([a, c]), bytemuck::cast([b, d])]
    }

    #[inline(always)]
    fn transposed(self, fragment: &Lanes) -> Lanes {
        let [a, b]: [[u32; 16]; 2] = bytemuck::cast(*fragment);
        let (a, b) = (pulp::cast(a), pulp::cast(b));
        let half = |from: &[u16; 32]| -> [u32; 16] {
            pulp::cast(self.avx512bw._mm512_permutex2var_epi16(a, pulp::cast(*from), b))
        };
        bytemuck::cast([half(&TRANSPOSED[0]), half(&TRANSPOSED[1])])
    }
}

/// For each element of the transposed 8×8 matrix, row by row, its index in the source matrix.
#[cfg(target_arch = "x86_64")]
static TRANSPOSED: [[u16; 32]; 2] = {
    let mut from = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        from[i / 32][i % 32] = (i % 8 * 8 + i / 8) as u16;
        i += 1;
    }
    from
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that computes `sum + spread(a) · quad`.
    struct Probe<'a> {
        a: &'a [f32; 32],
        quad: &'a [f32; 4],
        sum: &'a [f32; 32],
        out: &'a mut [f32; 32],
    }

    impl VectorKernel for Probe<'_> {
        #[inline(always)]
        fn run<V: LaneVector>(self, v: V) {
            for n in 0..8 / V::QUADS {
                let a = v.spread::<1>(v.load(self.a, n));
                v.store(v.multiply_add(a, v.repeat(self.quad), v.load(self.sum, n)), self.out, n);
            }
        }
    }

    struct Transposition<'a>(&'a Lanes, &'a mut Lanes);

    impl VectorKernel for Transposition<'_> {
        #[inline(always)]
        fn run<V: LaneVector>(self, v: V) {
            *self.1 = v.transposed(self.0);
        }
    }

    #[test]
    fn every_vector_type_transposes() {
        let fragment: Lanes = std::array::from_fn(|i| (0x1_0001 * 2 * i + 0x1_0000) as u32);
        let mut out = [0; 32];
        run_vector_kernel(Transposition(&fragment, &mut out));
        assert_eq!(out, ldmatrix::transposed(&fragment));
        assert_eq!(out[..3], [0x0008_0000, 0x0018_0010, 0x0028_0020]);
    }

    struct Halves<'a>(&'a Lanes, &'a mut [[f32; 32]; 2]);

    impl VectorKernel for Halves<'_> {
        #[inline(always)]
        fn run<V: LaneVector>(self, v: V) {
            *self.1 = v.bf16(self.0);
        }
    }

    #[test]
    fn every_vector_type_splits_bf16_pairs() {
        let words: Lanes = std::array::from_fn(|i| 0x3f80_4000 + 0x3_0005 * i as u32);
        let mut out = [[0.0; 32]; 2];
        run_vector_kernel(Halves(&words, &mut out));
        let value = |bits: u32| half::bf16::from_bits(bits as u16).to_f32();
        assert_eq!(out, [words.map(value), words.map(|word| value(word >> 16))]);
    }

    /// The low part of the product survives a cancelling sum only if the multiply-add is fused.
    #[test]
    fn every_vector_type_fuses_and_spreads_alike() {
        let a: [f32; 32] = std::array::from_fn(|i| 1.0 + (i + 1) as f32 * f32::EPSILON);
        let quad: [f32; 4] = std::array::from_fn(|i| 1.0 + (7 * i + 3) as f32 * f32::EPSILON);
        let sum: [f32; 32] = std::array::from_fn(|i| -(a[i / 4 * 4 + 1] * quad[i % 4]));
        let want: [f32; 32] =
            std::array::from_fn(|i| (a[i / 4 * 4 + 1] as f64 * quad[i % 4] as f64 + sum[i] as f64) as f32);
        assert!(want.iter().all(|value| *value != 0.0));
        let check = |run: &dyn Fn(Probe)| {
            let mut out = [0.0; 32];
            run(Probe { a: &a, quad: &quad, sum: &sum, out: &mut out });
            assert_eq!(out, want);
        };
        check(&|probe| probe.run(Plain));
        check(&|probe| run_vector_kernel(probe));
        #[cfg(target_arch = "x86_64")]
        if let Some(vector) = pulp::x86::V3::try_new() {
            check(&|kernel| vector.vectorize(On { vector, kernel }));
        }
    }
}
