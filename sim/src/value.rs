//! Element types of simulated buffers: their names, the conversion between numbers and bytes, and generated buffer
//! contents (0, 1, 2, …, or normally distributed numbers).

use crate::alu::soft_float::{BF16, E4M3, F16, RoundingMode, decode_float, encode_float};

/// The type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    E4m3,
}

impl ElementType {
    /// All element types.
    pub const ALL: [ElementType; 13] = [
        ElementType::U8,
        ElementType::I8,
        ElementType::U16,
        ElementType::I16,
        ElementType::U32,
        ElementType::I32,
        ElementType::U64,
        ElementType::I64,
        ElementType::F16,
        ElementType::Bf16,
        ElementType::F32,
        ElementType::F64,
        ElementType::E4m3,
    ];

    /// Returns the name of the type, for example `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::U8 => "u8",
            ElementType::I8 => "i8",
            ElementType::U16 => "u16",
            ElementType::I16 => "i16",
            ElementType::U32 => "u32",
            ElementType::I32 => "i32",
            ElementType::U64 => "u64",
            ElementType::I64 => "i64",
            ElementType::F16 => "f16",
            ElementType::Bf16 => "bf16",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
            ElementType::E4m3 => "e4m3",
        }
    }

    /// Returns the type with this name.
    pub fn from_name(name: &str) -> Option<ElementType> {
        ElementType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// Returns the size of an element in bytes.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::U8 | ElementType::I8 | ElementType::E4m3 => 1,
            ElementType::U16 | ElementType::I16 | ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::U32 | ElementType::I32 | ElementType::F32 => 4,
            ElementType::U64 | ElementType::I64 | ElementType::F64 => 8,
        }
    }

    /// Appends to `to` the bytes of the element nearest to `value`. Integers are rounded to the nearest (ties to
    /// even) and saturate; e4m3 saturates to its largest finite value.
    pub fn append_rounded(self, value: f64, to: &mut Vec<u8>) {
        let whole = value.round_ties_even();
        match self {
            ElementType::U8 => to.push(whole as u8),
            ElementType::I8 => to.push(whole as i8 as u8),
            ElementType::U16 => to.extend((whole as u16).to_le_bytes()),
            ElementType::I16 => to.extend((whole as i16).to_le_bytes()),
            ElementType::U32 => to.extend((whole as u32).to_le_bytes()),
            ElementType::I32 => to.extend((whole as i32).to_le_bytes()),
            ElementType::U64 => to.extend((whole as u64).to_le_bytes()),
            ElementType::I64 => to.extend((whole as i64).to_le_bytes()),
            ElementType::F16 => to.extend((encode_float(value, F16, RoundingMode::Nearest) as u16).to_le_bytes()),
            ElementType::Bf16 => to.extend((encode_float(value, BF16, RoundingMode::Nearest) as u16).to_le_bytes()),
            ElementType::F32 => to.extend((value as f32).to_le_bytes()),
            ElementType::F64 => to.extend(value.to_le_bytes()),
            ElementType::E4m3 => to.push(encode_float(value.clamp(-448.0, 448.0), E4M3, RoundingMode::Nearest) as u8),
        }
    }

    /// Formats the element in `bytes` as a decimal number, with enough digits to distinguish it from the next larger
    /// and smaller value of the type.
    pub fn format_element(self, bytes: &[u8]) -> String {
        let mut wide = [0; 8];
        wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
        let bits = u64::from_le_bytes(wide);
        match self {
            ElementType::U8 | ElementType::U16 | ElementType::U32 | ElementType::U64 => bits.to_string(),
            ElementType::I8 => (bits as i8).to_string(),
            ElementType::I16 => (bits as i16).to_string(),
            ElementType::I32 => (bits as i32).to_string(),
            ElementType::I64 => (bits as i64).to_string(),
            ElementType::F16 => decode_float(bits, F16).to_string(),
            ElementType::Bf16 => decode_float(bits, BF16).to_string(),
            ElementType::F32 => f32::from_bits(bits as u32).to_string(),
            ElementType::F64 => f64::from_bits(bits).to_string(),
            ElementType::E4m3 => decode_float(bits, E4M3).to_string(),
        }
    }

    /// Returns the bytes of `count` elements 0, 1, 2, …, rounded to the type; integers wrap around.
    pub fn arange_bytes(self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * self.bytes());
        for i in 0..count as u64 {
            match self {
                ElementType::F16 | ElementType::Bf16 | ElementType::F32 | ElementType::F64 | ElementType::E4m3 => {
                    self.append_rounded(i as f64, &mut bytes)
                }
                _ => bytes.extend(&i.to_le_bytes()[..self.bytes()]),
            }
        }
        bytes
    }

    /// Returns the bytes of `count` normally distributed elements (mean 0, standard deviation 1), generated from a
    /// seed. Integers are rounded and saturate.
    pub fn normal_bytes(self, count: usize, seed: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * self.bytes());
        let mut next = normals(seed);
        (0..count).for_each(|_| self.append_rounded(next(), &mut bytes));
        bytes
    }
}

/// Returns a generator of normally distributed numbers: splitmix64 and Marsaglia's polar method.
fn normals(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    let mut spare = None;
    move || {
        if let Some(second) = spare.take() {
            return second;
        }
        loop {
            let (x, y) = (uniform(), uniform());
            let s = x * x + y * y;
            if s > 0.0 && s < 1.0 {
                let scale = (-2.0 * s.ln() / s).sqrt();
                spare = Some(y * scale);
                return x * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_round_trips_its_name_and_size() {
        for t in ElementType::ALL {
            assert_eq!(ElementType::from_name(t.name()), Some(t));
            assert_eq!(t.arange_bytes(3).len(), 3 * t.bytes());
            assert_eq!(t.format_element(&t.arange_bytes(8)[7 * t.bytes()..]), "7", "{t:?}");
        }
        assert_eq!(ElementType::from_name("f8"), None);
    }

    #[test]
    fn push_rounds_to_nearest_and_saturates() {
        let of = |t: ElementType, v: f64| {
            let mut bytes = Vec::new();
            t.append_rounded(v, &mut bytes);
            t.format_element(&bytes)
        };
        assert_eq!(of(ElementType::U8, -3.0), "0");
        assert_eq!(of(ElementType::I8, 2.5), "2");
        assert_eq!(of(ElementType::I8, 300.0), "127");
        assert_eq!(of(ElementType::Bf16, 1.0 + 3.0 / 256.0), "1.015625");
        assert_eq!(of(ElementType::F16, -0.1), "-0.0999755859375");
        assert_eq!(of(ElementType::E4m3, 1e9), "448");
        assert_eq!(of(ElementType::E4m3, 0.3), "0.3125");
        assert_eq!(of(ElementType::F32, 0.1), "0.1");
        assert_eq!(ElementType::U8.arange_bytes(258)[255..], [255, 0, 1]);
    }

    #[test]
    fn normal_numbers_have_the_expected_moments_and_depend_on_the_seed() {
        let of = |seed| -> Vec<f64> {
            let bytes = ElementType::F64.normal_bytes(1 << 16, seed);
            bytes.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().expect("eight bytes"))).collect()
        };
        let x = of(7);
        let n = x.len() as f64;
        // Tolerance: five standard deviations of the estimated moments; these deviations are 1/√n, √(2/n), √(15/n),
        // √(96/n).
        for (power, mean, spread) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let moment = x.iter().map(|v| v.powi(power)).sum::<f64>() / n;
            assert!((moment - mean).abs() < 5.0 * (spread / n).sqrt(), "moment {power}: {moment}");
        }
        assert_eq!(x, of(7));
        assert_ne!(x, of(8));
    }
}
