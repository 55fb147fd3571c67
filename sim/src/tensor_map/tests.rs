use super::*;
use crate::test_random::Random;

fn matrix(swizzle: Swizzle) -> TensorMap {
    let columns = swizzle.span_bytes().unwrap_or(64) / 2;
    TensorMap::tiled(DataType::Bf16, 0x1000, &[128, 100], &[256], &[columns, 16], swizzle).unwrap()
}

#[test]
fn validation_errors_name_the_field() {
    let good = matrix(Swizzle::B128);
    let broken = |change: fn(&mut TensorMap), field: &str| {
        let mut map = good;
        change(&mut map);
        let error = map.validate().unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert_eq!(map.encode().unwrap_err(), error);
    };
    broken(|map| map.rank = 0, "tensorRank");
    broken(|map| map.rank = 6, "tensorRank");
    broken(|map| map.interleave = Interleave::B16, "tensorRank");
    broken(|map| map.address = 0x1008, "globalAddress");
    broken(|map| map.dims[1] = 0, "globalDim[1]");
    broken(|map| map.dims[0] = (1 << 32) + 1, "globalDim[0]");
    broken(|map| map.strides[0] = 264, "globalStrides[0]");
    broken(|map| map.strides[0] = 1 << 40, "globalStrides[0]");
    broken(|map| map.box_dims[1] = 257, "boxDim[1]");
    broken(|map| map.box_dims[1] = 0, "boxDim[1]");
    broken(|map| map.box_dims[0] = 12, "boxDim[0]");
    broken(|map| map.box_dims[0] = 72, "boxDim[0]");
    broken(|map| map.element_strides[1] = 9, "elementStrides[1]");
    broken(|map| map.element_strides[0] = 0, "elementStrides[0]");
    broken(
        |map| {
            map.data_type = DataType::U16;
            map.oob_fill = OobFill::NanRequestZeroFma;
        },
        "oobFill",
    );
    broken(
        |map| {
            map.rank = 3;
            map.interleave = Interleave::B32;
        },
        "swizzle",
    );
}

#[test]
fn rejects_lists_of_wrong_length() {
    let field = |dims: &[u64], strides: &[u64], boxes: &[u32]| {
        TensorMap::tiled(DataType::F32, 0, dims, strides, boxes, Swizzle::None).unwrap_err().field
    };
    assert_eq!(field(&[], &[], &[]), "tensorRank");
    assert_eq!(field(&[1; 6], &[16; 5], &[1; 6]), "tensorRank");
    assert_eq!(field(&[8, 8], &[], &[8, 8]), "globalStrides");
    assert_eq!(field(&[8, 8], &[32], &[8]), "boxDim");
}

#[test]
fn encoded_maps_round_trip() {
    let mut map = matrix(Swizzle::B64);
    map.box_dims[0] = 32;
    map.l2_promotion = L2Promotion::B256;
    map.oob_fill = OobFill::NanRequestZeroFma;
    map.element_strides[1] = 3;
    let blob = map.encode().unwrap();
    assert!(is_tensor_map(&blob));
    assert_eq!(TensorMap::decode(&blob).unwrap(), map);
    assert_eq!(TensorMap::decode(&[0; 128]).unwrap_err().field, "bytes");
    for at in 0..ENCODED_MAP_BYTES {
        let mut damaged = blob;
        damaged[at] ^= 0x10;
        assert_eq!(TensorMap::decode(&damaged).unwrap_err().field, "bytes", "byte {at}");
        assert!(replace_field(&mut damaged, MapField::GlobalAddress, 0, 0).is_err());
    }
}

#[test]
fn replaces_fields() {
    let mut blob = matrix(Swizzle::None).encode().unwrap();
    let mut set = |field: &str, ordinal, value| {
        let field = MapField::from_qualifier(field).unwrap();
        replace_field(&mut blob, field, ordinal, value)
    };
    set("global_address", 0, 0x2_0000_0040).unwrap();
    set("rank", 0, 2).unwrap();
    set("elemtype", 0, 7).unwrap();
    for (ordinal, (dim, extent)) in [(64, 8), (9, 4), (7, 2)].into_iter().enumerate() {
        set("global_dim", ordinal as u32, dim).unwrap();
        set("box_dim", ordinal as u32, extent).unwrap();
        set("element_stride", ordinal as u32, 1).unwrap();
    }
    set("global_stride", 0, 256).unwrap();
    set("global_stride", 1, 4096).unwrap();
    set("interleave_layout", 0, 0).unwrap();
    set("swizzle_mode", 0, 1).unwrap();
    set("fill_mode", 0, 1).unwrap();
    let mut want =
        TensorMap::tiled(DataType::F32, 0x2_0000_0040, &[64, 9, 7], &[256, 4096], &[8, 4, 2], Swizzle::B32).unwrap();
    want.oob_fill = OobFill::NanRequestZeroFma;
    assert_eq!(TensorMap::decode(&blob).unwrap(), want);
}

/// Compilers fill 128 bytes with zeros and then set all fields; a field that they leave out has no valid value.
#[test]
fn zero_bytes_become_a_map_when_all_fields_are_replaced() {
    let mut random = Random(0x1357_9bdf_2468_ace1);
    for _ in 0..200 {
        let rank = 1 + random.below(5) as u32;
        let swizzle = random.below(4);
        let mut fields = vec![
            (MapField::GlobalAddress, 0, 16 * random.below(1 << 40)),
            (MapField::Rank, 0, u64::from(rank) - 1),
            (MapField::ElemType, 0, 6),
            (MapField::SwizzleMode, 0, swizzle),
        ];
        for i in 0..rank {
            let extent = if i == 0 { 8 * (1 + random.below(2)) } else { 1 + random.below(256) };
            fields.push((MapField::GlobalDim, i, 1 + random.below(1 << 32)));
            fields.push((MapField::BoxDim, i, extent));
            fields.push((MapField::ElementStride, i, 1));
        }
        fields.extend((1..rank).map(|i| (MapField::GlobalStride, i - 1, 16 * random.below(1 << 36))));
        let value = |field, ordinal| fields.iter().find(|f| (f.0, f.1) == (field, ordinal)).map_or(0, |f| f.2);
        let all = |field, count: u32| (0..count).map(|i| value(field, i)).collect::<Vec<u64>>();
        let boxes: Vec<u32> = all(MapField::BoxDim, rank).iter().map(|n| *n as u32).collect();
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let want = TensorMap::tiled(
            DataType::F16,
            value(MapField::GlobalAddress, 0),
            &all(MapField::GlobalDim, rank),
            &all(MapField::GlobalStride, rank - 1),
            &boxes,
            swizzles[swizzle as usize],
        )
        .unwrap();
        let replaced = |left_out: usize| {
            let mut blob = [0; ENCODED_MAP_BYTES];
            let kept = fields.iter().enumerate().filter(|(i, _)| *i != left_out);
            kept.for_each(|(_, &(field, ordinal, value))| replace_field(&mut blob, field, ordinal, value).unwrap());
            TensorMap::decode(&blob)
        };
        let got = replaced(usize::MAX).unwrap();
        let n = rank as usize;
        assert_eq!((got.address, got.rank, got.swizzle), (want.address, want.rank, want.swizzle));
        assert_eq!((got.data_type, &got.dims[..n]), (want.data_type, &want.dims[..n]));
        assert_eq!((&got.strides[..n - 1], &got.box_dims[..n]), (&want.strides[..n - 1], &want.box_dims[..n]));
        // Zero is a valid address, element type, swizzle and stride, and stands for rank 1, but is not a valid extent.
        for (i, (field, ordinal, _)) in fields.iter().enumerate() {
            let name = match field {
                MapField::Rank => {
                    assert_eq!(replaced(i).unwrap().rank, 1);
                    continue;
                }
                MapField::GlobalDim => format!("globalDim[{ordinal}]"),
                MapField::BoxDim => format!("boxDim[{ordinal}]"),
                MapField::ElementStride => format!("elementStrides[{ordinal}]"),
                _ => continue,
            };
            assert_eq!(replaced(i).unwrap_err().field, name);
        }
    }
    let mut other = [0; ENCODED_MAP_BYTES];
    other[ENCODED_MAP_BYTES - 1] = 1;
    assert_eq!(replace_field(&mut other, MapField::Rank, 0, 1).unwrap_err().field, "bytes");
}

/// PTX and the driver number the element types differently from number 8 on. The expected PTX numbers are those of
/// LLVM's `TensormapElemType`.
#[test]
fn ptx_element_type_numbers() {
    use DataType::*;
    let order = [U8, U16, U32, I32, U64, I64, F16, F32, F32Ftz, F64, Bf16, Tf32, Tf32Ftz];
    let map = TensorMap::tiled(U8, 0, &[64], &[], &[16], Swizzle::None).unwrap();
    for (value, data_type) in order.into_iter().enumerate() {
        let mut blob = map.encode().unwrap();
        replace_field(&mut blob, MapField::ElemType, 0, value as u64).unwrap();
        assert_eq!(TensorMap::decode(&blob).unwrap().data_type, data_type);
    }
}

#[test]
fn rejects_invalid_replacements() {
    let good = matrix(Swizzle::None).encode().unwrap();
    let field = |field, ordinal, value| {
        let mut blob = good;
        match replace_field(&mut blob, field, ordinal, value) {
            Err(error) => error.field,
            Ok(()) => TensorMap::decode(&blob).unwrap_err().field,
        }
    };
    assert_eq!(field(MapField::GlobalStride, 4, 16), "ordinal");
    assert_eq!(field(MapField::BoxDim, 5, 16), "ordinal");
    assert_eq!(field(MapField::Rank, 0, 5), "tensorRank");
    assert_eq!(field(MapField::Rank, 0, 0xffff_ffff), "tensorRank");
    assert_eq!(field(MapField::BoxDim, 0, 0x1_0008), "boxDim[0]");
    assert_eq!(field(MapField::GlobalDim, 1, 0), "globalDim[1]");
    assert_eq!(field(MapField::ElemType, 0, 13), "elemtype");
    assert_eq!(field(MapField::SwizzleMode, 0, 4), "swizzle");
    assert_eq!(field(MapField::SwizzleMode, 0, 0x103), "swizzle");
    assert_eq!(field(MapField::InterleaveLayout, 0, 9), "interleave");
    assert_eq!(field(MapField::FillMode, 0, 2), "oobFill");
}

/// The swizzle as the programming guide defines it: the 16-byte unit x of the 128-byte row y moves to unit (y % rows) ^
/// x, where `rows`, the number of 16-byte units per span, is 8, 4 or 2.
#[test]
fn swizzle_matches_the_programming_guide() {
    for base in (0..4096).step_by(128) {
        for byte in 0..1024 {
            let address = base + byte;
            let line = address / 128;
            let (unit, rest) = (address % 128 / 16, address % 16);
            let at = |unit: u32| line * 128 + unit * 16 + rest;
            assert_eq!(Swizzle::B128.swizzled_address(address), at((line % 8) ^ unit));
            assert_eq!(Swizzle::B64.swizzled_address(address), at((line % 4) ^ unit));
            assert_eq!(Swizzle::B32.swizzled_address(address), at((line % 2) ^ unit));
            assert_eq!(Swizzle::None.swizzled_address(address), address);
        }
    }
}

/// A reference implementation of a box copy: computes the addresses of each element by the definition, one by one.
fn naive(map: &TensorMap, coordinates: &[i32], shared: u32) -> Vec<ContiguousBoxPart> {
    let rank = map.rank as usize;
    let element = map.data_type.bytes();
    let extents: Vec<u32> = (0..rank)
        .map(|i| if i == 0 { map.box_dims[0] } else { map.box_dims[i].div_ceil(map.element_strides[i]) })
        .collect();
    let pitch = map.swizzle.span_bytes().unwrap_or(0).max(extents[0] * element);
    let mut out = Vec::new();
    for linear in 0..extents.iter().product::<u32>() {
        let (mut rest, mut inside, mut global) = (linear, true, map.address as i128);
        for i in 0..rank {
            let index = rest % extents[i];
            rest /= extents[i];
            let step = if i == 0 { 1 } else { map.element_strides[i] };
            let at = coordinates[i] as i128 + (index * step) as i128;
            inside &= at >= 0 && at < map.dims[i] as i128;
            global += at * if i == 0 { element as i128 } else { map.strides[i - 1] as i128 };
        }
        let (row, column) = (linear / extents[0], linear % extents[0]);
        let place = map.swizzle.swizzled_address(shared + row * pitch + column * element);
        out.push(ContiguousBoxPart { global: inside.then_some(global as u64), shared: place, bytes: element });
    }
    out
}

fn by_element(runs: &[ContiguousBoxPart], element: u32) -> Vec<ContiguousBoxPart> {
    let mut out = Vec::new();
    for run in runs {
        assert!(run.bytes > 0 && run.bytes % element == 0);
        for at in (0..run.bytes).step_by(element as usize) {
            out.push(ContiguousBoxPart {
                global: run.global.map(|address| address + at as u64),
                shared: run.shared + at,
                bytes: element,
            });
        }
    }
    out
}

#[test]
fn boxes_of_random_maps_match_the_reference() {
    let mut random = Random(0xfeed_beef_1234_5679);
    let mut partly_outside = 0;
    for _ in 0..3000 {
        let types = [DataType::U8, DataType::Bf16, DataType::F32, DataType::F64];
        let data_type = types[random.below(4) as usize];
        let element = data_type.bytes();
        let swizzle = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128][random.below(4) as usize];
        let rank = 1 + random.below(5) as usize;
        let units = 1 + random.below((swizzle.span_bytes().unwrap_or(128) / 16) as u64) as u32;
        let mut boxes = vec![(units * 16 / element).min(256)];
        let mut dims = vec![1 + random.below(200)];
        let mut strides = Vec::new();
        for _ in 1..rank {
            boxes.push(1 + random.below(4) as u32);
            dims.push(1 + random.below(6));
            strides.push(16 * random.below(1000));
        }
        let mut map = TensorMap::tiled(data_type, 1 << 20, &dims, &strides, &boxes, swizzle).unwrap();
        for stride in &mut map.element_strides {
            *stride = 1 + random.below(3) as u32;
        }
        let coordinates: Vec<i32> =
            (0..rank).map(|i| random.below(dims[i] + 2 * boxes[i] as u64) as i32 - boxes[i] as i32).collect();
        let shared = 128 * random.below(16) as u32;
        let copy = map.box_copy_at(&coordinates, shared).unwrap();
        let runs = copy.contiguous_parts();
        let want = naive(&map, &coordinates, shared);
        assert_eq!(by_element(&runs, element), want);
        assert_eq!(copy.bytes(), want.len() as u32 * element);
        let outside = want.iter().filter(|run| run.global.is_none()).count();
        partly_outside += (outside > 0 && outside < want.len()) as u32;
        // The copy accesses no bytes outside of the shared memory that the box occupies, and accesses each of these
        // bytes at most once; if the box is dense, exactly once.
        let mut touched = vec![0u8; copy.occupied_shared_bytes() as usize];
        for run in &runs {
            for at in run.shared..run.shared + run.bytes {
                touched[(at - shared) as usize] += 1;
            }
        }
        assert!(touched.iter().all(|count| *count <= 1));
        assert_eq!(copy.is_dense(), touched.iter().all(|count| *count == 1));
    }
    assert!(partly_outside > 300, "{partly_outside}");
}

#[test]
fn extreme_coordinates_match_the_reference() {
    let map = TensorMap::tiled(DataType::F64, 0, &[1 << 32, 1 << 32], &[16], &[2, 256], Swizzle::None).unwrap();
    for coordinates in [[i32::MIN, i32::MIN], [i32::MAX, i32::MAX], [i32::MIN, 0], [-1, i32::MAX]] {
        let runs = map.box_copy_at(&coordinates, 0).unwrap().contiguous_parts();
        assert_eq!(by_element(&runs, 8), naive(&map, &coordinates, 0));
    }
}

#[test]
fn loads_of_tf32_round_and_those_with_ftz_flush() {
    let subnormal = 0x8000_1001;
    // 1 + 2^-11 is halfway between two tf32 numbers; 1 + 2^-11 - 2^-23 is below the middle.
    for (bits, rounded) in [(0x3f80_1000, 0x3f80_2000), (0x3f80_0fff, 0x3f80_0000), (0x7f80_0000, 0x7f80_0000)] {
        for data_type in [DataType::Tf32, DataType::Tf32Ftz] {
            assert_eq!(data_type.converted_bits(bits), rounded, "{data_type:?} {bits:#x}");
        }
        assert_eq!([DataType::F32, DataType::F32Ftz].map(|t| t.converted_bits(bits)), [bits; 2]);
    }
    let types = [DataType::F32, DataType::F32Ftz, DataType::Tf32, DataType::Tf32Ftz];
    let converted = types.map(|t| t.converted_bits(subnormal));
    assert_eq!(converted, [subnormal, 0x8000_0000, 0x8000_2000, 0x8000_0000]);
}

#[test]
fn rejects_unsupported_copies() {
    let map = matrix(Swizzle::B128);
    assert_eq!(map.box_copy_at(&[0], 0).unwrap_err().field, "coordinates");
    assert_eq!(map.box_copy_at(&[0, 0], 64).unwrap_err().field, "shared address");
    let mut interleaved =
        TensorMap::tiled(DataType::Bf16, 0, &[64, 8, 8], &[128, 1024], &[8, 8, 8], Swizzle::None).unwrap();
    interleaved.interleave = Interleave::B16;
    interleaved.validate().unwrap();
    assert_eq!(interleaved.box_copy_at(&[0, 0, 0], 0).unwrap_err().field, "interleave");
}

#[test]
fn nan_fill_is_a_nan_of_the_type() {
    let mut map = matrix(Swizzle::None);
    assert_eq!(map.out_of_bounds_fill_bytes(), [0; 16]);
    map.oob_fill = OobFill::NanRequestZeroFma;
    for (data_type, is_nan) in [
        (DataType::Bf16, (|bytes| half::bf16::from_le_bytes([bytes[14], bytes[15]]).is_nan()) as fn(&[u8; 16]) -> bool),
        (DataType::F16, |bytes| half::f16::from_le_bytes([bytes[2], bytes[3]]).is_nan()),
        (DataType::F32, |bytes| f32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]).is_nan()),
        (DataType::F64, |bytes| f64::from_le_bytes(std::array::from_fn(|i| bytes[i])).is_nan()),
    ] {
        map.data_type = data_type;
        assert!(is_nan(&map.out_of_bounds_fill_bytes()), "{data_type:?}");
    }
}

mod reductions {
    use super::super::*;
    use crate::program::op::AtomicOp;

    fn run<const N: usize>(op: &str, noftz: bool, ty: &str, a: [u8; N], b: [u8; N]) -> [u8; N] {
        let mut out = a;
        Reduction::from_bulk_opcode(op, noftz, ty, false).unwrap_or_else(|| panic!("{op}.{ty}")).apply(&mut out, &b);
        out
    }

    /// `Reduction::from_bulk_opcode` accepts exactly the element types and operations that ptxas accepts, for
    /// destinations in global and in shared memory.
    #[test]
    fn supports_the_forms_of_the_assembler() {
        let global = "f16 add.noftz min max;bf16 add.noftz min max;b32 and or xor;u32 add min max inc dec;s32 add min max;\
                      b64 and or xor;u64 add min max;s64 min max;f32 add;f64 add";
        let shared = "b32 and or xor;u32 add min max inc dec;s32 add min max;u64 add";
        let has = |table: &str, ty: &str, form: &str| {
            table.split(';').any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(ty) && words.any(|word| word == form)
            })
        };
        for ty in ["f16", "bf16", "b32", "u32", "s32", "b64", "u64", "s64", "f32", "f64"] {
            for op in ["add", "min", "max", "inc", "dec", "and", "or", "xor"] {
                for noftz in [false, true] {
                    let form = if noftz { format!("{op}.noftz") } else { op.to_string() };
                    assert_eq!(
                        Reduction::from_bulk_opcode(op, noftz, ty, false).is_some(),
                        has(global, ty, &form),
                        "{form}.{ty}"
                    );
                    assert_eq!(
                        Reduction::from_bulk_opcode(op, noftz, ty, true).is_some(),
                        has(shared, ty, &form),
                        "{form}.{ty}"
                    );
                }
            }
        }
        assert!(Reduction::from_bulk_opcode("mul", false, "f32", false).is_none());
        assert!(Reduction::from_bulk_opcode("add", false, "u16", false).is_none());
    }

    #[test]
    fn integer_reductions() {
        let u = |op, a: u32, b: u32| u32::from_le_bytes(run(op, false, "u32", a.to_le_bytes(), b.to_le_bytes()));
        assert_eq!(u("add", u32::MAX, 3), 2);
        assert_eq!(u("min", 0x8000_0000, 1), 1);
        assert_eq!(u("max", 0x8000_0000, 1), 0x8000_0000);
        assert_eq!((u("inc", 4, 5), u("inc", 5, 5), u("inc", 9, 5)), (5, 0, 0));
        assert_eq!((u("dec", 4, 5), u("dec", 0, 5), u("dec", 9, 5)), (3, 5, 5));
        let s = |op, a: i32, b: i32| i32::from_le_bytes(run(op, false, "s32", a.to_le_bytes(), b.to_le_bytes()));
        assert_eq!((s("min", -4, 3), s("max", -4, 3), s("add", i32::MAX, 1)), (-4, 3, i32::MIN));
        let b = |op, a: u64, b: u64| u64::from_le_bytes(run(op, false, "b64", a.to_le_bytes(), b.to_le_bytes()));
        assert_eq!((b("and", 12, 10), b("or", 12, 10), b("xor", 12, 10)), (8, 14, 6));
        let l = |op, a: i64, b: i64| i64::from_le_bytes(run(op, false, "s64", a.to_le_bytes(), b.to_le_bytes()));
        assert_eq!((l("min", -4, 3), l("max", -4, 3)), (-4, 3));
    }

    #[test]
    fn float_reductions() {
        let f = |a: f32, b: f32| f32::from_le_bytes(run("add", false, "f32", a.to_le_bytes(), b.to_le_bytes()));
        assert_eq!(f(1.5, -0.25), 1.25);
        let tiny = f32::from_bits(1);
        assert_eq!(f(tiny, tiny), 0.0);
        let mut kept = tiny.to_le_bytes();
        Reduction::for_tensor_map(AtomicOp::Add, DataType::F32).unwrap().apply(&mut kept, &tiny.to_le_bytes());
        assert_eq!(kept, f32::from_bits(2).to_le_bytes());
        let h = |op: &str, a: f32, b: f32| {
            let (a, b) = (half::f16::from_f32(a).to_le_bytes(), half::f16::from_f32(b).to_le_bytes());
            half::f16::from_le_bytes(run(op, op == "add", "f16", a, b)).to_f32()
        };
        assert_eq!(h("add", 2048.0, 1.0), 2048.0);
        assert_eq!(h("add", 6e-8, 6e-8), 2.0 * half::f16::from_f32(6e-8).to_f32());
        assert_eq!(h("min", f32::NAN, 1.0), 1.0);
        assert!(h("min", 0.0, -0.0).is_sign_negative());
        assert!(h("max", -0.0, 0.0).is_sign_positive());
        let b = |a: f32, b: f32| {
            let (a, b) = (half::bf16::from_f32(a).to_le_bytes(), half::bf16::from_f32(b).to_le_bytes());
            half::bf16::from_le_bytes(run("add", true, "bf16", a, b)).to_f32()
        };
        assert_eq!((b(256.0, 1.0), b(256.0, 3.0)), (256.0, 260.0));
    }

    #[test]
    fn tensor_reductions_depend_on_the_element_type() {
        assert!(Reduction::for_tensor_map(AtomicOp::Add, DataType::U8).is_none());
        assert!(Reduction::for_tensor_map(AtomicOp::Min, DataType::F32).is_none());
        assert!(Reduction::for_tensor_map(AtomicOp::Inc, DataType::I32).is_none());
        assert!(Reduction::for_tensor_map(AtomicOp::Max, DataType::Bf16).is_some());
    }

    #[test]
    fn leaves_a_partial_element_unchanged() {
        let mut out = [1u32, 2, 3].map(u32::to_le_bytes).as_flattened()[..11].to_vec();
        let source = [10u32, 20, 30].map(u32::to_le_bytes);
        Reduction::from_bulk_opcode("add", false, "u32", false).unwrap().apply(&mut out, source.as_flattened());
        assert_eq!(out, [11, 0, 0, 0, 22, 0, 0, 0, 3, 0, 0]);
    }
}
