//! The 128 bytes that stand for a tensor map in memory: a format of our own, because the real one is not documented.
//!
//! A kernel may copy them and change fields with `tensormap.replace`; any other change breaks the checksum. Layout, little
//! endian: magic 4, checksum 4, address 8, dims 5×8, strides 4×8, box 5×2, element strides 5×2, then a byte each for type,
//! rank, interleave, swizzle, promotion and fill; the rest zero.

use super::{DataType, Interleave, InvalidTensorMap, L2Promotion, MAX_RANK, OobFill, Swizzle, TensorMap};

/// Bytes of a tensor map.
pub const ENCODED_MAP_BYTES: usize = 128;

/// A tensor map in memory.
pub type EncodedMap = [u8; ENCODED_MAP_BYTES];

const MAGIC: [u8; 4] = *b"rTM1";
const ADDRESS: usize = 8;
const DIMS: usize = 16;
const STRIDES: usize = 56;
const BOX: usize = 88;
const ELEMENT_STRIDES: usize = 98;
const DATA_TYPE: usize = 108;
const RANK: usize = 109;
const INTERLEAVE: usize = 110;
const SWIZZLE: usize = 111;
const PROMOTION: usize = 112;
const FILL: usize = 113;

/// The fields that `tensormap.replace` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapField {
    /// `.global_address`, 64 bits.
    GlobalAddress,
    /// `.rank`, the rank less one.
    Rank,
    /// `.box_dim`, by ordinal.
    BoxDim,
    /// `.global_dim`, by ordinal.
    GlobalDim,
    /// `.global_stride`, 64 bits, by ordinal: 0 is of dimension 1.
    GlobalStride,
    /// `.element_stride`, by ordinal.
    ElementStride,
    /// `.elemtype`, an immediate of PTX's own numbering.
    ElemType,
    /// `.interleave_layout`
    InterleaveLayout,
    /// `.swizzle_mode`
    SwizzleMode,
    /// `.fill_mode`
    FillMode,
}

impl MapField {
    /// Decodes the qualifier without its dot. (`swizzle_atomicity` is of sm_100.)
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "global_address" => Self::GlobalAddress,
            "rank" => Self::Rank,
            "box_dim" => Self::BoxDim,
            "global_dim" => Self::GlobalDim,
            "global_stride" => Self::GlobalStride,
            "element_stride" => Self::ElementStride,
            "elemtype" => Self::ElemType,
            "interleave_layout" => Self::InterleaveLayout,
            "swizzle_mode" => Self::SwizzleMode,
            "fill_mode" => Self::FillMode,
            _ => return None,
        })
    }

    /// Whether the instruction has an ordinal operand.
    pub fn has_ordinal(self) -> bool {
        matches!(self, Self::BoxDim | Self::GlobalDim | Self::GlobalStride | Self::ElementStride)
    }
}

/// `elemtype` of `tensormap.replace` counts the types in another order than the driver.
fn element_type_of_ptx(value: u64) -> Option<DataType> {
    Some(match value {
        0 => DataType::U8,
        1 => DataType::U16,
        2 => DataType::U32,
        3 => DataType::I32,
        4 => DataType::U64,
        5 => DataType::I64,
        6 => DataType::F16,
        7 => DataType::F32,
        8 => DataType::F32Ftz,
        9 => DataType::F64,
        10 => DataType::Bf16,
        11 => DataType::Tf32,
        12 => DataType::Tf32Ftz,
        _ => return None,
    })
}

impl TensorMap {
    /// The map as 128 bytes, of a map that is valid.
    pub fn encode(&self) -> Result<EncodedMap, InvalidTensorMap> {
        self.validate()?;
        let mut blob = [0; ENCODED_MAP_BYTES];
        blob[..4].copy_from_slice(&MAGIC);
        put64(&mut blob, ADDRESS, self.address);
        for i in 0..MAX_RANK {
            put64(&mut blob, DIMS + 8 * i, self.dims[i]);
            put16(&mut blob, BOX + 2 * i, self.box_dims[i]);
            put16(&mut blob, ELEMENT_STRIDES + 2 * i, self.element_strides[i]);
        }
        for (i, stride) in self.strides.iter().enumerate() {
            put64(&mut blob, STRIDES + 8 * i, *stride);
        }
        blob[DATA_TYPE] = self.data_type as u8;
        blob[RANK] = self.rank as u8;
        blob[INTERLEAVE] = self.interleave as u8;
        blob[SWIZZLE] = self.swizzle as u8;
        blob[PROMOTION] = self.l2_promotion as u8;
        blob[FILL] = self.oob_fill as u8;
        seal(&mut blob);
        Ok(blob)
    }

    /// Reads 128 bytes back. An error when they are no tensor map, were changed other than by [`replace`], or break a rule.
    pub fn decode(blob: &EncodedMap) -> Result<Self, InvalidTensorMap> {
        check(blob)?;
        let tag = |at: usize, field: &str| InvalidTensorMap::new(field, format!("has the unknown value {}", blob[at]));
        let mut map = Self {
            data_type: DataType::from_driver(blob[DATA_TYPE] as u32).ok_or_else(|| tag(DATA_TYPE, "tensorDataType"))?,
            rank: blob[RANK] as u32,
            address: get64(blob, ADDRESS),
            dims: [0; MAX_RANK],
            strides: [0; MAX_RANK - 1],
            box_dims: [0; MAX_RANK],
            element_strides: [0; MAX_RANK],
            interleave: *[Interleave::None, Interleave::B16, Interleave::B32]
                .get(blob[INTERLEAVE] as usize)
                .ok_or_else(|| tag(INTERLEAVE, "interleave"))?,
            swizzle: *[Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128]
                .get(blob[SWIZZLE] as usize)
                .ok_or_else(|| tag(SWIZZLE, "swizzle"))?,
            l2_promotion: *[L2Promotion::None, L2Promotion::B64, L2Promotion::B128, L2Promotion::B256]
                .get(blob[PROMOTION] as usize)
                .ok_or_else(|| tag(PROMOTION, "l2Promotion"))?,
            oob_fill: *[OobFill::Zero, OobFill::NanRequestZeroFma]
                .get(blob[FILL] as usize)
                .ok_or_else(|| tag(FILL, "oobFill"))?,
        };
        for i in 0..MAX_RANK {
            map.dims[i] = get64(blob, DIMS + 8 * i);
            map.box_dims[i] = get16(blob, BOX + 2 * i);
            map.element_strides[i] = get16(blob, ELEMENT_STRIDES + 2 * i);
        }
        for i in 0..MAX_RANK - 1 {
            map.strides[i] = get64(blob, STRIDES + 8 * i);
        }
        map.validate()?;
        Ok(map)
    }
}

/// Whether these bytes begin as a tensor map of ours does (it may still be damaged or invalid).
pub fn is_tensor_map(blob: &EncodedMap) -> bool {
    blob[..4] == MAGIC
}

/// `tensormap.replace.tile.FIELD [blob], {ordinal,} value`: 32-bit values zero-extended; `ordinal` is 0 for fields without.
/// The map may be invalid until further fields are replaced: rules are checked by [`TensorMap::decode`].
pub fn replace(blob: &mut EncodedMap, field: MapField, ordinal: u32, value: u64) -> Result<(), InvalidTensorMap> {
    check(blob)?;
    let ordinals = match field {
        MapField::GlobalStride => MAX_RANK - 1,
        MapField::BoxDim | MapField::GlobalDim | MapField::ElementStride => MAX_RANK,
        _ => 1,
    };
    let i = ordinal as usize;
    if i >= ordinals {
        return Err(InvalidTensorMap::new("ordinal", format!("is {ordinal}, {field:?} has {ordinals}")));
    }
    // Values too wide for their bytes stay invalid: every limit is below.
    let (byte, short) = (value.min(0xff) as u8, value.min(0xffff) as u32);
    match field {
        MapField::GlobalAddress => put64(blob, ADDRESS, value),
        MapField::Rank => blob[RANK] = byte.saturating_add(1),
        MapField::BoxDim => put16(blob, BOX + 2 * i, short),
        MapField::GlobalDim => put64(blob, DIMS + 8 * i, value),
        MapField::GlobalStride => put64(blob, STRIDES + 8 * i, value),
        MapField::ElementStride => put16(blob, ELEMENT_STRIDES + 2 * i, short),
        MapField::ElemType => {
            let unknown = || InvalidTensorMap::new("elemtype", format!("has the unknown value {value}"));
            blob[DATA_TYPE] = element_type_of_ptx(value).ok_or_else(unknown)? as u8;
        }
        MapField::InterleaveLayout => blob[INTERLEAVE] = byte,
        MapField::SwizzleMode => blob[SWIZZLE] = byte,
        MapField::FillMode => blob[FILL] = byte,
    }
    seal(blob);
    Ok(())
}

fn check(blob: &EncodedMap) -> Result<(), InvalidTensorMap> {
    if !is_tensor_map(blob) {
        return Err(InvalidTensorMap::new("bytes", "are not a tensor map"));
    }
    if blob[4..8] != checksum(blob).to_le_bytes() {
        return Err(InvalidTensorMap::new("bytes", "were changed other than by tensormap.replace"));
    }
    Ok(())
}

fn seal(blob: &mut EncodedMap) {
    let sum = checksum(blob);
    blob[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// FNV-1a of all behind the checksum.
fn checksum(blob: &EncodedMap) -> u32 {
    blob[8..].iter().fold(0x811c_9dc5, |sum, byte| (sum ^ *byte as u32).wrapping_mul(0x0100_0193))
}

fn put64(blob: &mut EncodedMap, at: usize, value: u64) {
    blob[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put16(blob: &mut EncodedMap, at: usize, value: u32) {
    blob[at..at + 2].copy_from_slice(&(value.min(0xffff) as u16).to_le_bytes());
}

fn get64(blob: &EncodedMap, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blob[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn get16(blob: &EncodedMap, at: usize) -> u32 {
    u16::from_le_bytes([blob[at], blob[at + 1]]) as u32
}
