//! Eight floats at a time, with AVX2 and FMA where the machine has them. Results do not depend on it: multiply-add is
//! fused either way.

/// Operations on eight floats.
pub(super) trait Vector: Copy {
    /// Eight floats.
    type F: Copy;

    fn load(self, values: &[f32; 8]) -> Self::F;

    fn store(self, values: Self::F) -> [f32; 8];

    /// `a · b + sum`, rounded once, with one `a` for all.
    fn multiply_add(self, a: f32, b: Self::F, sum: Self::F) -> Self::F;
}

/// A computation over either kind of vector.
pub(super) trait Kernel {
    /// `run` is to be `#[inline(always)]`, and so is what it calls: then it is compiled for the vectors at hand.
    fn run<V: Vector>(self, vector: V);
}

/// Runs it with the best vectors of this machine.
#[inline(always)]
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if let Some(v3) = pulp::x86::V3::try_new() {
        return v3.vectorize(OnV3 { v3, kernel });
    }
    kernel.run(Plain);
}

/// Arrays, as the compiler makes of them what it can.
#[derive(Clone, Copy)]
struct Plain;

impl Vector for Plain {
    type F = [f32; 8];

    #[inline(always)]
    fn load(self, values: &[f32; 8]) -> [f32; 8] {
        *values
    }

    #[inline(always)]
    fn store(self, values: [f32; 8]) -> [f32; 8] {
        values
    }

    #[inline(always)]
    fn multiply_add(self, a: f32, b: [f32; 8], mut sum: [f32; 8]) -> [f32; 8] {
        for (sum, b) in sum.iter_mut().zip(b) {
            *sum = a.mul_add(b, *sum);
        }
        sum
    }
}

#[cfg(target_arch = "x86_64")]
struct OnV3<K> {
    v3: pulp::x86::V3,
    kernel: K,
}

#[cfg(target_arch = "x86_64")]
impl<K: Kernel> pulp::NullaryFnOnce for OnV3<K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.kernel.run(self.v3);
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for pulp::x86::V3 {
    type F = pulp::f32x8;

    #[inline(always)]
    fn load(self, values: &[f32; 8]) -> pulp::f32x8 {
        pulp::cast(*values)
    }

    #[inline(always)]
    fn store(self, values: pulp::f32x8) -> [f32; 8] {
        pulp::cast(values)
    }

    #[inline(always)]
    fn multiply_add(self, a: f32, b: pulp::f32x8, sum: pulp::f32x8) -> pulp::f32x8 {
        self.mul_add_f32x8(self.splat_f32x8(a), b, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe<'a> {
        b: [f32; 8],
        sum: [f32; 8],
        out: &'a mut [f32; 8],
    }

    impl Kernel for Probe<'_> {
        #[inline(always)]
        fn run<V: Vector>(self, v: V) {
            *self.out = v.store(v.multiply_add(1.0 + f32::EPSILON, v.load(&self.b), v.load(&self.sum)));
        }
    }

    /// With one rounding the low part of the product survives its difference.
    #[test]
    fn both_kinds_fuse() {
        let b: [f32; 8] = std::array::from_fn(|i| 1.0 + (i + 1) as f32 * f32::EPSILON);
        let sum = b.map(|b| -((1.0 + f32::EPSILON) * b));
        let (mut plain, mut best) = ([0.0; 8], [0.0; 8]);
        Probe { b, sum, out: &mut plain }.run(Plain);
        dispatch(Probe { b, sum, out: &mut best });
        assert_eq!(plain, best);
        assert!(plain.iter().all(|value| *value != 0.0));
    }
}
