//! Tests of device `sim`.

use std::sync::Arc;

use reel_device::launch::{Matmul, WeightGroups};
use reel_device::{DType, Device, Launch, MappedFile, MemoryCategory, SimOptions, compile};
use reel_kernels::elementwise::{self, AccumulateParams, AddParams, FillParams};
use reel_kernels::matmul::PRODUCT_CODE;
use reel_runtime::Tensor;

use crate::cuda::{f32_tensor, matrix_product};

fn device(interleavings: u32) -> Option<Device> {
    compile::skip_without_nvrtc()?;
    Some(Device::sim(SimOptions { interleavings, threads: 1, ..SimOptions::default() }).unwrap())
}

fn product(a: &Tensor, b: &Tensor, c: &Tensor, accumulate: bool) -> Launch {
    Launch::Matmul(Matmul { accumulate, ..matrix_product(a, b, c) })
}

#[track_caller]
fn fails<T: std::fmt::Debug, E: std::fmt::Debug + ToString>(result: Result<T, E>, words: &[&str]) {
    let e = result.unwrap_err().to_string();
    assert!(words.iter().all(|w| e.contains(w)), "{words:?} in {e}");
    assert!(e.contains("; "), "no advice: {e}");
}

#[test]
fn kernels_and_products_compute() {
    for interleavings in [1, 3] {
        let Some(d) = device(interleavings) else { return };
        let x = f32_tensor(&d, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let y = Tensor::empty(&d, &[2, 3], DType::F32, MemoryCategory::Activations).unwrap();
        let params = AddParams { a: x.addr(), b: x.addr(), y: y.addr(), count: 6 };
        d.launch(&elementwise::add(DType::F32, &params)).unwrap();
        assert_eq!(y.to_f32().unwrap(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        let c = Tensor::empty(&d, &[2, 2], DType::F32, MemoryCategory::Activations).unwrap();
        d.launch(&product(&x, &y, &c, false)).unwrap();
        d.launch(&product(&x.rows(1, 1).unwrap(), &y, &c.rows(1, 1).unwrap(), true)).unwrap();
        assert_eq!(c.to_f32().unwrap(), [28.0, 64.0, 128.0, 308.0]);
    }
}

#[test]
fn refuses_reads_of_unwritten_bytes() {
    let Some(d) = device(1) else { return };
    let fresh = |shape: &[usize]| Tensor::empty(&d, shape, DType::F32, MemoryCategory::Activations).unwrap();
    fails(fresh(&[3]).to_f32(), &["host reads 12 bytes, of which byte 0 was never written"]);
    let (x, y) = (f32_tensor(&d, &[1, 2], &[1.0, 2.0]), fresh(&[1, 2]));
    fails(
        d.launch(&product(&x, &y, &fresh(&[1, 1]), false)),
        &["matmul_fwd: b: reads 8 bytes, of which byte 0 was never written"],
    );
    fails(
        d.launch(&product(&x, &x, &fresh(&[1, 1]), true)),
        &["matmul_fwd: c: reads 4 bytes, of which byte 0 was never written"],
    );
    let params = AccumulateParams { src: x.addr(), dst: y.addr(), count: 2 };
    let result = d.launch(&elementwise::accumulate(DType::F32, DType::F32, &params));
    fails(result, &["accumulate_f32", "elementwise/sm80.cu:", "uninitialized"]);
}

#[test]
fn refuses_writes_outside_the_operands_of_a_launch() {
    let Some(d) = device(1) else { return };
    let (x, other) = (f32_tensor(&d, &[2], &[1.0, 2.0]), f32_tensor(&d, &[2], &[3.0, 4.0]));
    let params = FillParams { dst: x.addr(), count: 3, value: 7.0, reserved: 0 };
    fails(d.launch(&elementwise::fill(DType::F32, &params)), &["fill_f32", "sm80.cu:", "out-of-bounds"]);
    // The result of the matrix product has more rows than the tensor that it is written to.
    let (a, b, c) = (f32_tensor(&d, &[3, 1], &[1.0; 3]), f32_tensor(&d, &[1, 1], &[1.0]), x.reshape(&[2, 1]).unwrap());
    let Launch::Matmul(m) = product(&a, &b, &c, false) else { return };
    fails(d.launch(&Launch::Matmul(Matmul { m: 3, ..m })), &["matmul_fwd: c: is larger than its buffer"]);
    assert_eq!(other.to_f32().unwrap(), [3.0, 4.0]);
}

#[test]
fn weights_are_not_arranged_in_groups() {
    let Some(d) = device(1) else { return };
    let weight = f32_tensor(&d, &[1, 2], &[1.0, 2.0]);
    let launch =
        WeightGroups { n: 1, k: 2, dtype: DType::F32, from: weight.addr(), to: weight.addr(), code: &PRODUCT_CODE };
    fails(d.launch(&Launch::WeightGroups(launch)), &["weight_groups: runs on device cpu only"]);
}

#[test]
fn mapped_files_are_read_only() {
    let Some(d) = device(1) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytemuck::cast_slice::<f32, u8>(&[0.0, 1.0, 2.0])).unwrap();
    let mapped: Arc<MappedFile> = MappedFile::open(file.path()).unwrap();
    let x = Tensor::from_buffer(d.map_file_range(&mapped, 4, 8).unwrap(), &[2], DType::F32).unwrap();
    assert_eq!(x.to_f32().unwrap(), [1.0, 2.0]);
    let params = FillParams { dst: x.addr(), count: 2, value: 7.0, reserved: 0 };
    fails(d.launch(&elementwise::fill(DType::F32, &params)), &["fill_f32", "sm80.cu:"]);
    let one = f32_tensor(&d, &[1, 1], &[1.0]);
    let row = x.reshape(&[1, 2]).unwrap();
    fails(d.launch(&product(&one, &f32_tensor(&d, &[2, 1], &[1.0, 1.0]), &row, false)), &["matmul_fwd: c:"]);
    assert_eq!(x.to_f32().unwrap(), [1.0, 2.0]);
    drop((x, row));
    assert_eq!(d.memory().current, one.bytes());
}
