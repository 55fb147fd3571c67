//! Compares tensor copies with the geometry that the arguments of `cuTensorMapEncodeTiled` describe.

use super::common::*;
use reel_sim::exec::LaunchConfig;
use reel_sim::finding::FindingKind;
use reel_sim::memory::SimMemory;
use reel_sim::program::Program;
use reel_sim::tensor_map::{DataType, Swizzle, TensorMap};

const FILE: &str = "tensor";

fn blob(map: &TensorMap) -> [u8; 128] {
    map.encode().expect("a good map")
}

/// Runs a kernel that loads a box of 32-bit elements of type `data_type` at coordinates `at`, and checks that shared
/// memory holds the swizzled box.
fn load_elements(data_type: DataType, dims: &[u64], box_dims: &[u32], swizzle: Swizzle, at: &[i32]) {
    let count: u64 = dims.iter().product();
    let mut strides = vec![4 * dims[0]];
    (1..dims.len()).for_each(|i| strides.push(strides[i - 1] * dims[i]));
    strides.truncate(dims.len() - 1);
    let bytes: u32 = 4 * box_dims.iter().product::<u32>();
    let setup = |memory: &mut SimMemory| {
        let tensor = memory.alloc(le_bytes(&distinct_words(count as usize)));
        let map = TensorMap::tiled(data_type, tensor, dims, &strides, box_dims, swizzle).expect("a good map");
        let out = memory.alloc_uninitialized(bytes as usize);
        let coordinates = memory.alloc(at.iter().flat_map(|c| c.to_le_bytes()).collect());
        let params = Params::default()
            .append_aligned(128, &blob(&map))
            .append_u64(out)
            .append_i32(bytes as i32)
            .append_u64(coordinates);
        launch_config(1, 64, params)
    };
    let tensor = distinct_words(count as usize);
    let mut want = vec![0u32; bytes as usize / 4];
    for i in 0..want.len() {
        let (mut left, mut index, mut stride, mut inside) = (i as u32, 0i64, 1i64, true);
        for d in 0..dims.len() {
            let c = at[d] as i64 + (left % box_dims[d]) as i64;
            left /= box_dims[d];
            inside &= (0..dims[d] as i64).contains(&c);
            index += c * stride;
            stride *= dims[d] as i64;
        }
        let bits = match swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        let byte = 4 * i;
        let place = byte ^ (byte >> 7 & bits) << 4;
        want[place / 4] = if inside { data_type.converted_bits(tensor[index as usize]) } else { 0 };
    }
    assert_no_finding(FILE, &format!("load_{}", dims.len()), &setup, &|memory| {
        assert_eq!(buffer_words(memory, 1), want);
    });
}

fn load(dims: &[u64], box_dims: &[u32], swizzle: Swizzle, at: &[i32]) {
    load_elements(DataType::F32, dims, box_dims, swizzle, at);
}

#[test]
fn tensor_loads_convert_elements() {
    for data_type in [DataType::F32Ftz, DataType::Tf32, DataType::Tf32Ftz] {
        load_elements(data_type, &[40, 20], &[32, 16], Swizzle::B128, &[-3, 13]);
    }
}

#[test]
fn tensor_loads() {
    load(&[100], &[32], Swizzle::None, &[84]);
    for (swizzle, width) in [(Swizzle::None, 12), (Swizzle::B32, 8), (Swizzle::B64, 16), (Swizzle::B128, 32)] {
        load(&[40, 20], &[width, 16], swizzle, &[8, 3]);
        load(&[40, 20], &[width, 16], swizzle, &[-3, 13]);
    }
    load(&[32, 9, 5], &[16, 4, 3], Swizzle::B64, &[16, 6, -1]);
    load(&[16, 5, 4, 3], &[8, 2, 3, 2], Swizzle::None, &[4, 4, -1, 2]);
    load(&[16, 3, 4, 3, 2], &[4, 2, 3, 2, 2], Swizzle::None, &[12, 2, 2, 1, 1]);
}

#[test]
fn tensor_stores_and_reductions() {
    for add in [0, 1] {
        let setup = move |memory: &mut SimMemory| {
            let from = memory.alloc((0..20 * 16).flat_map(|i: u32| (i as f32).to_le_bytes()).collect());
            let to = memory.alloc((0..20 * 16).flat_map(|_| 1000f32.to_le_bytes()).collect());
            let map = |address| TensorMap::tiled(DataType::F32, address, &[16, 20], &[64], &[8, 8], Swizzle::B32);
            let (from, to) = (map(from).expect("a good map"), map(to).expect("a good map"));
            let params = Params::default().append_aligned(128, &blob(&from)).append_aligned(128, &blob(&to));
            launch_config(1, 32, params.append_i32(256).append_i32(12).append_i32(16).append_i32(add))
        };
        assert_no_finding(FILE, "move", &setup, &|memory| {
            let got = buffer_words(memory, 1);
            for (i, bits) in got.into_iter().enumerate() {
                let inside = i % 16 >= 12 && i / 16 >= 16;
                let want = if !inside { 1000.0 } else { i as f32 + 1000.0 * add as f32 };
                assert_eq!(f32::from_bits(bits), want, "element {i}, add {add}");
            }
        });
    }
}

/// Allocates the buffers of kernel `replaced_0` and returns its launch.
fn launch_of_replaced_map(memory: &mut SimMemory) -> LaunchConfig {
    let other = memory.alloc(le_bytes(&distinct_words(64)));
    let map = TensorMap::tiled(DataType::U32, other, &[16, 4], &[64], &[16, 4], Swizzle::None).expect("a good map");
    let made = memory.alloc_uninitialized(128);
    let input = memory.alloc(le_bytes(&distinct_words(64).iter().map(|w| w ^ 1).collect::<Vec<u32>>()));
    let output = memory.alloc_uninitialized(256);
    let flag = memory.alloc(vec![0; 4]);
    let params = Params::default()
        .append_aligned(128, &blob(&map))
        .append_u64(made)
        .append_u64(input)
        .append_u64(output)
        .append_u64(flag);
    launch_config(2, 32, params)
}

#[test]
fn tensor_maps_changed_on_the_device() {
    assert_no_finding(FILE, "replaced_0", &launch_of_replaced_map, &|memory| {
        // The kernel changes the map to another tensor with only three rows, so the fourth row of the box is outside
        // of the tensor and is loaded as zeros.
        let want: Vec<u32> =
            distinct_words(64).iter().enumerate().map(|(i, w)| if i < 48 { w ^ 1 } else { 0 }).collect();
        assert_eq!(buffer_words(memory, 3), want);
    });
}

#[test]
fn a_tensor_map_that_the_device_changed_needs_a_fence_of_its_proxy() {
    let text = program_text(FILE);
    let kinds = |text: &str| {
        let program = Program::parse(text).expect("the changed corpus parses");
        let (outcome, _) = run_once(&program, "replaced_0", &early_deadlock_options(), &launch_of_replaced_map);
        outcome.findings.into_list().iter().map(|f| f.kind).collect::<Vec<_>>()
    };
    let acquire = "fence.proxy.tensormap::generic.acquire.gpu [%rd3], 128;";
    assert_eq!(kinds(&text), []);
    assert_eq!(kinds(&text.replace(acquire, "")), [FindingKind::AsyncProxy]);
    assert_eq!(kinds(&text.replace(acquire, "fence.proxy.async;")), [FindingKind::AsyncProxy]);
    assert_eq!(kinds(&text.replace(acquire, &acquire.replace("%rd3", "%rd3+128"))), [FindingKind::AsyncProxy]);
    // A relaxed flag does not order the accesses to the map: without the acquire fence of the tensormap proxy they
    // race.
    let relaxed = text.replace("st.release.gpu.global.u32", "st.relaxed.gpu.global.u32");
    let relaxed = relaxed.replace("ld.acquire.gpu.global.u32", "ld.relaxed.gpu.global.u32");
    assert_eq!(kinds(&relaxed.replace(acquire, "")), [FindingKind::Race]);
}

#[test]
fn rows_outside_of_the_tensor_are_not_stored() {
    let setup = |memory: &mut SimMemory| {
        let to = memory.alloc(vec![0; 4 * 20 * 16]);
        let from = memory.alloc((0..32).flat_map(|i: u32| (i as f32 + 1.0).to_le_bytes()).collect());
        let map = TensorMap::tiled(DataType::F32, to, &[16, 20], &[64], &[8, 8], Swizzle::None).expect("a good map");
        launch_config(1, 32, Params::default().append_aligned(128, &blob(&map)).append_u64(from))
    };
    assert_no_finding(FILE, "ragged_0", &setup, &|memory| {
        let got = buffer_words(memory, 0);
        for (i, bits) in got.into_iter().enumerate() {
            let (row, column) = (i / 16, i % 16);
            let want = if row >= 16 && column >= 8 { ((row - 16) * 8 + column - 8) as f32 + 1.0 } else { 0.0 };
            assert_eq!(f32::from_bits(bits), want, "element {i}");
        }
    });
    assert_planted_bug_is_reported(FILE, "ragged", 1, &setup);
}
