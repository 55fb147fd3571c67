//! Encoding of a tensor map in 128 bytes of memory. The format is the simulator's own, because the format of the
//! hardware is not documented.
//!
//! A kernel may copy the bytes and change fields with `tensormap.replace`; any other change breaks the checksum. The
//! fields with their bytes, little endian:
//!
//! ```text
//!   magic 4, checksum 4, address 8, dims 5 × 8, strides 4 × 8, box 5 × 2, element strides 5 × 2,
//!   type 1, rank 1, interleave 1, swizzle 1, promotion 1, fill 1; the rest is zero
//! ```

use super::{DataType, Interleave, InvalidTensorMap, L2Promotion, MAX_RANK, OobFill, Swizzle, TensorMap};

/// Bytes of an encoded tensor map.
pub const ENCODED_MAP_BYTES: usize = 128;

/// An encoded tensor map.
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

/// A field that `tensormap.replace` can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapField {
    /// `.global_address`, 64 bits.
    GlobalAddress,
    /// `.rank`, which stores the rank minus one.
    Rank,
    /// `.box_dim`; the ordinal is the dimension.
    BoxDim,
    /// `.global_dim`; the ordinal is the dimension.
    GlobalDim,
    /// `.global_stride`, 64 bits; the ordinal is the dimension minus one.
    GlobalStride,
    /// `.element_stride`; the ordinal is the dimension.
    ElementStride,
    /// `.elemtype`, in the numbering of PTX.
    ElemType,
    /// `.interleave_layout`
    InterleaveLayout,
    /// `.swizzle_mode`
    SwizzleMode,
    /// `.fill_mode`
    FillMode,
}

impl MapField {
    /// Parses a field qualifier of `tensormap.replace`, given without its dot. (`swizzle_atomicity` exists on sm_100
    /// only.)
    pub fn from_qualifier(qualifier: &str) -> Option<Self> {
        Some(match qualifier {
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
}

/// Returns the element type with the number `value` in `tensormap.replace`, where PTX numbers the types in another
/// order than the driver.
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
    /// Encodes the map in 128 bytes.
    ///
    /// # Errors
    /// Returns an error if the map breaks a rule of [`Self::validate`].
    pub fn encode(&self) -> Result<EncodedMap, InvalidTensorMap> {
        self.validate()?;
        let mut bytes = [0; ENCODED_MAP_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        put64(&mut bytes, ADDRESS, self.address);
        for i in 0..MAX_RANK {
            put64(&mut bytes, DIMS + 8 * i, self.dims[i]);
            put16(&mut bytes, BOX + 2 * i, self.box_dims[i]);
            put16(&mut bytes, ELEMENT_STRIDES + 2 * i, self.element_strides[i]);
        }
        for (i, stride) in self.strides.iter().enumerate() {
            put64(&mut bytes, STRIDES + 8 * i, *stride);
        }
        bytes[DATA_TYPE] = self.data_type as u8;
        bytes[RANK] = self.rank as u8;
        bytes[INTERLEAVE] = self.interleave as u8;
        bytes[SWIZZLE] = self.swizzle as u8;
        bytes[PROMOTION] = self.l2_promotion as u8;
        bytes[FILL] = self.oob_fill as u8;
        seal(&mut bytes);
        Ok(bytes)
    }

    /// Decodes 128 bytes.
    ///
    /// # Errors
    /// Returns an error if the bytes are not a tensor map, were changed other than by [`replace_field`], or break a
    /// rule of [`Self::validate`].
    pub fn decode(bytes: &EncodedMap) -> Result<Self, InvalidTensorMap> {
        check(bytes)?;
        let tag = |at: usize, field: &str| InvalidTensorMap::new(field, format!("has the unknown value {}", bytes[at]));
        let mut map = Self {
            data_type: DataType::from_driver_value(bytes[DATA_TYPE] as u32)
                .ok_or_else(|| tag(DATA_TYPE, "tensorDataType"))?,
            rank: bytes[RANK] as u32,
            address: get64(bytes, ADDRESS),
            dims: [0; MAX_RANK],
            strides: [0; MAX_RANK - 1],
            box_dims: [0; MAX_RANK],
            element_strides: [0; MAX_RANK],
            interleave: *[Interleave::None, Interleave::B16, Interleave::B32]
                .get(bytes[INTERLEAVE] as usize)
                .ok_or_else(|| tag(INTERLEAVE, "interleave"))?,
            swizzle: *[Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128]
                .get(bytes[SWIZZLE] as usize)
                .ok_or_else(|| tag(SWIZZLE, "swizzle"))?,
            l2_promotion: *[L2Promotion::None, L2Promotion::B64, L2Promotion::B128, L2Promotion::B256]
                .get(bytes[PROMOTION] as usize)
                .ok_or_else(|| tag(PROMOTION, "l2Promotion"))?,
            oob_fill: *[OobFill::Zero, OobFill::NanRequestZeroFma]
                .get(bytes[FILL] as usize)
                .ok_or_else(|| tag(FILL, "oobFill"))?,
        };
        for i in 0..MAX_RANK {
            map.dims[i] = get64(bytes, DIMS + 8 * i);
            map.box_dims[i] = get16(bytes, BOX + 2 * i);
            map.element_strides[i] = get16(bytes, ELEMENT_STRIDES + 2 * i);
        }
        for i in 0..MAX_RANK - 1 {
            map.strides[i] = get64(bytes, STRIDES + 8 * i);
        }
        map.validate()?;
        Ok(map)
    }
}

/// Returns true if the bytes begin like an encoded tensor map, which may still be damaged or invalid.
pub fn is_tensor_map(bytes: &EncodedMap) -> bool {
    bytes[..4] == MAGIC
}

/// Executes `tensormap.replace.tile.FIELD [map], {ordinal,} value`. 32-bit values are zero-extended; `ordinal` is 0
/// for fields without one. The map may be invalid until further fields are replaced; [`TensorMap::decode`] checks it.
/// 128 zero bytes are a map whose fields are all zero, which is rank 1: compilers fill a map with zeros and then
/// replace the other fields.
///
/// # Errors
/// Returns an error if the bytes are neither zero nor an intact map, or if the ordinal or element type does not exist.
pub fn replace_field(
    bytes: &mut EncodedMap,
    field: MapField,
    ordinal: u32,
    value: u64,
) -> Result<(), InvalidTensorMap> {
    if *bytes == [0; ENCODED_MAP_BYTES] {
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[RANK] = 1;
        seal(bytes);
    }
    check(bytes)?;
    let ordinals = match field {
        MapField::GlobalStride => MAX_RANK - 1,
        MapField::BoxDim | MapField::GlobalDim | MapField::ElementStride => MAX_RANK,
        _ => 1,
    };
    let i = ordinal as usize;
    if i >= ordinals {
        return Err(InvalidTensorMap::new(
            "ordinal",
            format!("is {ordinal}, but must be below {ordinals} for {field:?}"),
        ));
    }
    // Clamp values that do not fit the field: the clamped value is invalid as well, so decoding the map still reports
    // it.
    let (byte, short) = (value.min(0xff) as u8, value.min(0xffff) as u32);
    match field {
        MapField::GlobalAddress => put64(bytes, ADDRESS, value),
        MapField::Rank => bytes[RANK] = byte.saturating_add(1),
        MapField::BoxDim => put16(bytes, BOX + 2 * i, short),
        MapField::GlobalDim => put64(bytes, DIMS + 8 * i, value),
        MapField::GlobalStride => put64(bytes, STRIDES + 8 * i, value),
        MapField::ElementStride => put16(bytes, ELEMENT_STRIDES + 2 * i, short),
        MapField::ElemType => {
            let unknown = || InvalidTensorMap::new("elemtype", format!("has the unknown value {value}"));
            bytes[DATA_TYPE] = element_type_of_ptx(value).ok_or_else(unknown)? as u8;
        }
        MapField::InterleaveLayout => bytes[INTERLEAVE] = byte,
        MapField::SwizzleMode => bytes[SWIZZLE] = byte,
        MapField::FillMode => bytes[FILL] = byte,
    }
    seal(bytes);
    Ok(())
}

fn check(bytes: &EncodedMap) -> Result<(), InvalidTensorMap> {
    if !is_tensor_map(bytes) {
        return Err(InvalidTensorMap::new("bytes", "are not a tensor map"));
    }
    if bytes[4..8] != checksum(bytes).to_le_bytes() {
        return Err(InvalidTensorMap::new("bytes", "were changed other than by tensormap.replace"));
    }
    Ok(())
}

fn seal(bytes: &mut EncodedMap) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Returns the FNV-1a hash of all bytes after the checksum.
fn checksum(bytes: &EncodedMap) -> u32 {
    bytes[8..].iter().fold(0x811c_9dc5, |sum, byte| (sum ^ *byte as u32).wrapping_mul(0x0100_0193))
}

fn put64(bytes: &mut EncodedMap, at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put16(bytes: &mut EncodedMap, at: usize, value: u32) {
    bytes[at..at + 2].copy_from_slice(&(value.min(0xffff) as u16).to_le_bytes());
}

fn get64(bytes: &EncodedMap, at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn get16(bytes: &EncodedMap, at: usize) -> u32 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]]) as u32
}
