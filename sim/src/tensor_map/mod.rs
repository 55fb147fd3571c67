//! Tensor maps: the arguments of `cuTensorMapEncodeTiled` with the driver's rules, and the geometry of their boxes.
//!
//! Sources: CUDA driver API, "Tensor Map Object Management"; PTX ISA, "Tensors" (tiled mode, swizzling,
//! out-of-boundary access) and `tensormap.replace`; CUDA programming guide, "TMA swizzle". Im2col maps and the modes
//! of sm_100 are not supported.

mod boxes;
mod encoding;
mod reduce;
#[cfg(test)]
mod tests;

pub use boxes::{BoxCopy, ContiguousBoxPart};
pub use encoding::{ENCODED_MAP_BYTES, EncodedMap, MapField, is_tensor_map, replace_field};
pub use reduce::{ReduceType, Reduction};

use crate::value::ElementType;

/// Maximum number of dimensions of a tensor map.
pub const MAX_RANK: usize = 5;

/// The reason why a tensor map, or a copy with it, is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor map: {field} {what}")]
pub struct InvalidTensorMap {
    /// The faulty argument of `cuTensorMapEncodeTiled` or of the copy, for example `globalStrides[0]`.
    pub field: String,
    /// What is wrong with the argument.
    pub what: String,
}

impl InvalidTensorMap {
    fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

/// Element types in the order of `CUtensorMapDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DataType {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    Bf16,
    F32Ftz,
    Tf32,
    Tf32Ftz,
}

impl DataType {
    /// Converts an element, given by its bits, as a load to shared memory does: the types with `Ftz` flush subnormals
    /// to zero, and tf32 rounds to 10 bits of mantissa. How the hardware rounds is not documented; the simulator rounds
    /// like `cvt.rna.tf32`, to nearest with ties away from zero. Other types keep their bits.
    pub fn converted_bits(self, bits: u32) -> u32 {
        let is_subnormal = bits & 0x7f80_0000 == 0;
        let flushed = if is_subnormal { bits & 0x8000_0000 } else { bits };
        let is_finite = bits & 0x7f80_0000 != 0x7f80_0000;
        let rounded = |bits: u32| if is_finite { bits.wrapping_add(0x1000) & !0x1fff } else { bits };
        match self {
            Self::F32Ftz => flushed,
            Self::Tf32 => rounded(bits),
            Self::Tf32Ftz => rounded(flushed),
            _ => bits,
        }
    }

    /// Whether [`Self::converted_bits`] can change elements of this type.
    pub fn is_converted(self) -> bool {
        matches!(self, Self::F32Ftz | Self::Tf32 | Self::Tf32Ftz)
    }

    /// All types, in the driver's order.
    pub const ALL: [Self; 13] = [
        Self::U8,
        Self::U16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
        Self::F16,
        Self::F32,
        Self::F64,
        Self::Bf16,
        Self::F32Ftz,
        Self::Tf32,
        Self::Tf32Ftz,
    ];

    /// Returns the type with this value of `CUtensorMapDataType`.
    pub fn from_driver_value(value: u32) -> Option<Self> {
        Self::ALL.get(value as usize).copied()
    }

    /// Returns the type for elements of the type `name` of [`ElementType`], or `tf32`. Types that tensor maps do not have
    /// (i8, i16, e4m3) become unsigned integers of equal width. `None` for other names.
    pub fn from_name(name: &str) -> Option<DataType> {
        Some(match ElementType::from_name(name) {
            Some(ElementType::U8 | ElementType::I8 | ElementType::E4m3) => DataType::U8,
            Some(ElementType::U16 | ElementType::I16) => DataType::U16,
            Some(ElementType::U32) => DataType::U32,
            Some(ElementType::I32) => DataType::I32,
            Some(ElementType::U64) => DataType::U64,
            Some(ElementType::I64) => DataType::I64,
            Some(ElementType::F16) => DataType::F16,
            Some(ElementType::Bf16) => DataType::Bf16,
            Some(ElementType::F32) => DataType::F32,
            Some(ElementType::F64) => DataType::F64,
            None => return (name == "tf32").then_some(DataType::Tf32),
        })
    }

    /// Returns the bytes that an element takes.
    #[inline]
    pub fn bytes(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U32 | Self::I32 | Self::F32 | Self::F32Ftz | Self::Tf32 | Self::Tf32Ftz => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Returns true for floating-point types.
    pub fn is_float(self) -> bool {
        !matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::I32 | Self::U64 | Self::I64)
    }
}

/// `CUtensorMapInterleave`: whether channels are interleaved in groups of 16 or 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Interleave {
    None,
    B16,
    B32,
}

/// `CUtensorMapSwizzle` of sm_90: permutes the 16-byte units within each span of 32, 64 or 128 bytes of shared
/// memory. The permutation depends on address bits 7 to 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Returns the size in bytes of the span within which 16-byte units are permuted; `None` without a swizzle.
    #[inline]
    pub fn span_bytes(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::B32 => Some(32),
            Self::B64 => Some(64),
            Self::B128 => Some(128),
        }
    }

    /// Returns the shared address to which the swizzle moves a byte: the lowest 1, 2 or 3 of address bits 7 to 9 are
    /// XORed into the bits from 4 on. Tensor copies and wgmma operands use the same function.
    #[inline(always)]
    pub fn swizzled_address(self, address: u32) -> u32 {
        let mask = match self {
            Self::None => return address,
            Self::B32 => 1,
            Self::B64 => 3,
            Self::B128 => 7,
        };
        address ^ (address >> 7 & mask) << 4
    }
}

/// `CUtensorMapL2promotion`, a hint that changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum L2Promotion {
    None,
    B64,
    B128,
    B256,
}

/// `CUtensorMapFloatOOBfill`: what a load writes for elements outside of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OobFill {
    /// Elements outside of the tensor are loaded as zeros.
    Zero,
    /// Elements outside of the tensor are loaded as a special NaN that a later multiply-add may treat as zero.
    NanRequestZeroFma,
}

/// A tiled tensor map: the arguments of `cuTensorMapEncodeTiled`, innermost dimension first. Array elements from
/// `rank` on are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// `tensorDataType`
    pub data_type: DataType,
    /// `tensorRank`
    pub rank: u32,
    /// `globalAddress`
    pub address: u64,
    /// `globalDim`, in elements.
    pub dims: [u64; MAX_RANK],
    /// `globalStrides`, in bytes; element i is the stride of dimension i + 1.
    pub strides: [u64; MAX_RANK - 1],
    /// `boxDim`, in elements.
    pub box_dims: [u32; MAX_RANK],
    /// `elementStrides`
    pub element_strides: [u32; MAX_RANK],
    /// `interleave`
    pub interleave: Interleave,
    /// `swizzle`
    pub swizzle: Swizzle,
    /// `l2Promotion`
    pub l2_promotion: L2Promotion,
    /// `oobFill`
    pub oob_fill: OobFill,
}

impl TensorMap {
    /// Creates and validates a map with the usual settings: no interleave, element strides of 1, no L2 promotion,
    /// zero fill. `strides` has one element fewer than `dims`: the innermost dimension is contiguous.
    pub fn tiled(
        data_type: DataType,
        address: u64,
        dims: &[u64],
        strides: &[u64],
        box_dims: &[u32],
        swizzle: Swizzle,
    ) -> Result<Self, InvalidTensorMap> {
        let rank = dims.len();
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(InvalidTensorMap::new("tensorRank", format!("is {rank}, not 1 to {MAX_RANK}")));
        }
        if box_dims.len() != rank {
            return Err(InvalidTensorMap::new(
                "boxDim",
                format!("has {} elements, but the rank is {rank}", box_dims.len()),
            ));
        }
        if strides.len() != rank - 1 {
            let what = format!(
                "has {} elements instead of {} (one per dimension except the innermost)",
                strides.len(),
                rank - 1
            );
            return Err(InvalidTensorMap::new("globalStrides", what));
        }
        let mut map = Self {
            data_type,
            rank: rank as u32,
            address,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK - 1],
            box_dims: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            interleave: Interleave::None,
            swizzle,
            l2_promotion: L2Promotion::None,
            oob_fill: OobFill::Zero,
        };
        map.dims[..rank].copy_from_slice(dims);
        map.strides[..rank - 1].copy_from_slice(strides);
        map.box_dims[..rank].copy_from_slice(box_dims);
        map.validate()?;
        Ok(map)
    }

    /// Checks the rules that the driver applies.
    pub fn validate(&self) -> Result<(), InvalidTensorMap> {
        let least = if self.interleave == Interleave::None { 1 } else { 3 };
        if !(least..=MAX_RANK as u32).contains(&self.rank) {
            return Err(InvalidTensorMap::new("tensorRank", format!("is {}, not {least} to {MAX_RANK}", self.rank)));
        }
        let rank = self.rank as usize;
        let alignment = if self.interleave == Interleave::B32 { 32 } else { 16 };
        if !self.address.is_multiple_of(alignment) {
            let what = format!("{:#x} is not a multiple of {alignment}", self.address);
            return Err(InvalidTensorMap::new("globalAddress", what));
        }
        for (i, dim) in self.dims[..rank].iter().enumerate() {
            if !(1..=1 << 32).contains(dim) {
                return Err(InvalidTensorMap::new(format!("globalDim[{i}]"), format!("is {dim}, not 1 to 2^32")));
            }
        }
        for (i, stride) in self.strides[..rank - 1].iter().enumerate() {
            if !stride.is_multiple_of(alignment) {
                let what = format!("is {stride} bytes, not a multiple of {alignment}");
                return Err(InvalidTensorMap::new(format!("globalStrides[{i}]"), what));
            }
            if *stride >= 1 << 40 {
                return Err(InvalidTensorMap::new(
                    format!("globalStrides[{i}]"),
                    format!("is {stride} bytes, not below 2^40"),
                ));
            }
        }
        for (i, extent) in self.box_dims[..rank].iter().enumerate() {
            if !(1..=256).contains(extent) {
                return Err(InvalidTensorMap::new(format!("boxDim[{i}]"), format!("is {extent}, not 1 to 256")));
            }
        }
        for (i, stride) in self.element_strides[..rank].iter().enumerate() {
            if !(1..=8).contains(stride) {
                return Err(InvalidTensorMap::new(format!("elementStrides[{i}]"), format!("is {stride}, not 1 to 8")));
            }
        }
        self.validate_inner()
    }

    /// Checks the rules for the innermost dimension of the box and for combinations of modes.
    fn validate_inner(&self) -> Result<(), InvalidTensorMap> {
        let inner = self.row_bytes();
        if self.interleave == Interleave::None {
            if !inner.is_multiple_of(16) {
                return Err(InvalidTensorMap::new("boxDim[0]", format!("is {inner} bytes, not a multiple of 16")));
            }
            if let Some(span) = self.swizzle.span_bytes().filter(|span| inner > *span) {
                let what = format!("is {inner} bytes, more than the {span} bytes of a swizzle row");
                return Err(InvalidTensorMap::new("boxDim[0]", what));
            }
        }
        if self.interleave == Interleave::B32 && self.swizzle != Swizzle::B32 {
            return Err(InvalidTensorMap::new(
                "swizzle",
                "must be the 32-byte swizzle, because the interleave is 32 bytes",
            ));
        }
        if self.oob_fill != OobFill::Zero && !self.data_type.is_float() {
            return Err(InvalidTensorMap::new("oobFill", "is NaN, but the elements are not floating-point numbers"));
        }
        Ok(())
    }

    /// Returns the bytes of one row of the box (along dimension 0).
    #[inline]
    fn row_bytes(&self) -> u32 {
        self.box_dims[0].saturating_mul(self.data_type.bytes())
    }

    /// Returns the number of elements along dimension `i` that a box has in shared memory.
    #[inline]
    fn box_extent(&self, i: usize) -> u32 {
        // The element stride of dimension 0 is ignored: it counts only for interleaved maps, which copies do not
        // support.
        if i == 0 { self.box_dims[0] } else { self.box_dims[i].div_ceil(self.element_strides[i].max(1)) }
    }

    /// Returns the bytes of a box, including its parts outside of the tensor. A load counts all of them on its
    /// mbarrier.
    pub fn box_bytes(&self) -> u32 {
        let rows = (1..self.rank as usize).map(|i| self.box_extent(i)).fold(1, u32::saturating_mul);
        self.row_bytes().saturating_mul(rows)
    }

    /// Returns sixteen bytes of the fill value for elements outside of the tensor.
    pub fn out_of_bounds_fill_bytes(&self) -> [u8; 16] {
        let mut out = [0; 16];
        if self.oob_fill == OobFill::NanRequestZeroFma {
            let nan: &[u8] = match self.data_type {
                DataType::F16 | DataType::Bf16 => &[0xff, 0x7f],
                DataType::F64 => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
                _ => &[0xff, 0xff, 0xff, 0x7f],
            };
            for chunk in out.chunks_exact_mut(nan.len()) {
                chunk.copy_from_slice(nan);
            }
        }
        out
    }
}
