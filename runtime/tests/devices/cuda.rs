//! Tests of device `cuda` on the fake driver, which checks the driver's rules.

use std::sync::Arc;

use proptest::prelude::*;
use reel_device::cuda::fake::FakeDriver;
use reel_device::cuda::{Gpu, MULTI_STREAM_BYTES};
use reel_device::launch::{Matmul, Operand, RightLayout};
use reel_device::{
    Addr, Arch, Buffer, DType, Device, Launch, MappedFile, MatmulImplementation, MemoryCategory, compile,
};
use reel_kernels::elementwise::{self, AddParams, FillParams};
use reel_kernels::matmul::PRODUCT_CODE;
use reel_runtime::{Cx, Tensor, ops};

pub(crate) fn fake_gpu_device(memory: u64) -> (FakeDriver, Device) {
    let fake = FakeDriver::new(Arch::H100, memory);
    let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
    let device = Device::on_gpu(gpu).unwrap();
    (fake, device)
}

pub(crate) fn f32_tensor(device: &Device, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(device, shape, DType::F32, values, MemoryCategory::Inputs).unwrap()
}

pub(crate) fn matrix_product(a: &Tensor, b: &Tensor, c: &Tensor) -> Matmul {
    let operand = |t: &Tensor| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false };
    Matmul {
        m: c.shape()[0],
        n: c.shape()[1],
        k: a.shape()[1],
        a: operand(a),
        b: operand(b),
        b_scale: Addr::NULL,
        b_layout: RightLayout::Plain,
        c: c.addr(),
        c_dtype: c.dtype(),
        bias: Addr::NULL,
        accumulate: false,
        scale: 1.0,
        code: &PRODUCT_CODE,
    }
}

#[test]
fn kernels_and_products_compute_and_free_all_memory() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, d) = fake_gpu_device(128 << 20);
    assert_eq!(d.matmul_library(), None);
    let x = f32_tensor(&d, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = Tensor::empty(&d, &[2, 3], DType::F32, MemoryCategory::Activations).unwrap();
    let params = AddParams { a: x.addr(), b: x.addr(), y: y.addr(), count: 6 };
    d.launch(&elementwise::add(DType::F32, &params)).unwrap();
    assert_eq!(fake.launch_count(), 0, "the host has not waited yet");
    let c = Tensor::empty(&d, &[2, 2], DType::F32, MemoryCategory::Activations).unwrap();
    d.launch(&Launch::Matmul(matrix_product(&x, &y, &c))).unwrap();
    assert_eq!(c.to_f32().unwrap(), [28.0, 64.0, 64.0, 154.0]);
    // A product of another shape changes the hash of the algorithms that cuBLASLt has chosen. Computing the same
    // product again does not change the hash.
    let first = d.matmul_library().unwrap();
    assert_eq!((first.name.as_str(), first.algorithms, first.hash.len()), ("fake products 1.0.0", 1, 16));
    d.launch(&Launch::Matmul(matrix_product(&x, &y, &c))).unwrap();
    assert_eq!(d.matmul_library().unwrap(), first);
    d.launch(&Launch::Matmul(Matmul { m: 1, ..matrix_product(&x, &y, &c) })).unwrap();
    let second = d.matmul_library().unwrap();
    assert!(second.algorithms == 2 && second.hash != first.hash, "{second:?}");
    d.synchronize().unwrap();
    assert_eq!(fake.launch_count(), 4);
    drop((x, y, c));
    assert_eq!(d.memory().current, 0);
    drop(d);
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn product_with_k_0_is_zero_or_keeps_the_accumulator() {
    let (fake, d) = fake_gpu_device(128 << 20);
    let (a, b) = (f32_tensor(&d, &[2, 1], &[1.0; 2]), f32_tensor(&d, &[2, 1], &[1.0; 2]));
    let c = f32_tensor(&d, &[2, 2], &[3.0; 4]);
    d.launch(&Launch::Matmul(Matmul { k: 0, accumulate: true, ..matrix_product(&a, &b, &c) })).unwrap();
    assert_eq!(c.to_f32().unwrap(), [3.0; 4]);
    d.launch(&Launch::Matmul(Matmul { k: 0, ..matrix_product(&a, &b, &c) })).unwrap();
    assert_eq!(c.to_f32().unwrap(), [0.0; 4]);
    d.launch(&Launch::Matmul(Matmul { m: 0, ..matrix_product(&a, &b, &c) })).unwrap();
    assert_eq!((fake.launch_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn out_of_bounds_kernel_is_an_error_of_one_line() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (_fake, d) = fake_gpu_device(1 << 20);
    let x = f32_tensor(&d, &[4], &[1.0; 4]);
    let params = FillParams { dst: x.addr(), count: 1 << 20, value: 7.0, reserved: 0 };
    d.launch(&elementwise::fill(DType::F32, &params)).unwrap();
    let e = x.to_f32().unwrap_err().to_string();
    assert!(e.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && e.contains("fill_f32") && !e.contains('\n'), "{e}");
}

#[test]
fn out_of_memory_error_names_options_to_lower() {
    let (fake, d) = fake_gpu_device(1 << 20);
    let first = d.alloc(1 << 19, MemoryCategory::Activations).unwrap();
    let e = d.alloc(1 << 20, MemoryCategory::Activations).unwrap_err().to_string();
    assert!(
        e.contains("cannot allocate 1.0 MiB for activations, in use: activations 512.0 KiB") && e.contains("lower"),
        "{e}"
    );
    let e = d.alloc(1 << 20, MemoryCategory::Optimizer).unwrap_err().to_string();
    assert!(
        e.contains("cannot allocate 1.0 MiB for optimizer") && e.contains("--optim adamw-bf16 or adamw-8bit"),
        "{e}"
    );
    // A freed block is reused, even if it was not the last block that was allocated.
    let second = d.alloc(1 << 18, MemoryCategory::Activations).unwrap();
    drop(first);
    drop(d.alloc(1 << 19, MemoryCategory::Activations).unwrap());
    drop((second, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn mapped_files_are_copied_completely() {
    let (fake, d) = fake_gpu_device(128 << 20);
    // The size exceeds `MULTI_STREAM_BYTES` and is not a multiple of a staging slot.
    let bytes: Vec<u8> = (0..MULTI_STREAM_BYTES + (5 << 20) + 12).map(|i| (i * i % 251) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let mapped: Arc<MappedFile> = MappedFile::open(file.path()).unwrap();
    let whole = d.map_file_range(&mapped, 4, bytes.len() - 4).unwrap();
    let mut back = vec![0; bytes.len() - 4];
    whole.download(0, &mut back).unwrap();
    assert!(back == bytes[4..]);
    drop((whole, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn large_downloads_wait_for_what_was_enqueued_before() {
    let (fake, d) = fake_gpu_device(256 << 20);
    let bytes = 2 * MULTI_STREAM_BYTES + 4097;
    let mut want: Vec<u8> = (0..bytes).map(|i| (i / 251) as u8).collect();
    let buffer = d.alloc(bytes, MemoryCategory::Weights).unwrap();
    buffer.upload(0, &want).unwrap();
    let mut back = vec![0; bytes];
    for (at, seed) in [(0, 1), (MULTI_STREAM_BYTES - 5, 2), (bytes - 100_000, 3)] {
        // Small uploads run on the device's stream, large downloads on other streams.
        let piece = vec![seed; 100_000];
        buffer.upload(at, &piece).unwrap();
        want[at..at + piece.len()].copy_from_slice(&piece);
        buffer.download(0, &mut back).unwrap();
        assert!(back == want, "after the upload to {at}");
    }
    drop((buffer, d));
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

#[test]
fn repeated_step_needs_no_driver_call() {
    let (fake, d) = fake_gpu_device(1 << 30);
    let step = || {
        let sizes = [300 << 10, 40 << 20, 7, 90 << 20, 1 << 20];
        let kept: Vec<Buffer> = sizes.iter().map(|&n| d.alloc(n, MemoryCategory::Activations).unwrap()).collect();
        kept.iter().map(Buffer::addr).collect::<Vec<_>>()
    };
    let (first, held) = (step(), fake.bytes_in_use());
    assert_eq!((step(), fake.bytes_in_use()), (first, held));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Bytes that are uploaded in pieces of any size are downloaded unchanged, although the fake driver runs copies
    /// as late as CUDA allows.
    #[test]
    fn downloads_return_uploaded_bytes(
        pieces in prop::collection::vec((0usize..3_000_000, 1usize..2_500_000, any::<u8>()), 1..12)
    ) {
        let (fake, d) = fake_gpu_device(64 << 20);
        let buffer = d.alloc(6_000_000, MemoryCategory::Inputs).unwrap();
        let mut want = vec![0u8; 6_000_000];
        buffer.upload(0, &want).unwrap();
        for (at, len, seed) in pieces {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            buffer.upload(at, &bytes).unwrap();
            want[at..at + len].copy_from_slice(&bytes);
            // The upload has already read the host's bytes, so changing them now has no effect.
            bytes.fill(0);
        }
        let mut back = vec![1u8; want.len()];
        buffer.download(0, &mut back).unwrap();
        prop_assert!(back == want);
        drop((buffer, d));
        prop_assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
    }
}

/// On compute capability 9.0 a product of bf16 operands whose rows are multiples of 16 bytes does not need cuBLASLt,
/// also in a captured graph. All other products need it.
#[test]
fn own_products_compute_what_tensor_copies_can_read() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, d) = fake_gpu_device(256 << 20);
    let bf16 = |shape: &[usize], first: i32| {
        let count = shape.iter().product::<usize>() as i32;
        let values: Vec<f32> = (first..first + count).map(|i| (i * 7 % 13 - 6) as f32).collect();
        Tensor::from_f32(&d, shape, DType::BF16, &values, MemoryCategory::Inputs).unwrap()
    };
    let (a, b, c) = (bf16(&[3, 24], 0), bf16(&[16, 24], 5), bf16(&[3, 16], 0));
    let product = matrix_product(&a, &b, &c);
    d.launch(&Launch::Matmul(product)).unwrap();
    let (x, w) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let want = |i: usize| (0..24).map(|l| x[i / 16 * 24 + l] * w[i % 16 * 24 + l]).sum::<f32>();
    let want: Vec<f32> = (0..48).map(|i| half::bf16::from_f32(want(i)).to_f32()).collect();
    assert_eq!(c.to_f32().unwrap(), want);
    assert_eq!(d.matmul_library(), None, "no product by cuBLASLt");
    c.write(&[half::bf16::from_f32(1.0); 48]).unwrap();
    let graph = d.capture((a.clone(), b.clone(), c.clone()), || d.launch(&Launch::Matmul(product))).unwrap();
    d.replay(&graph).unwrap();
    assert_eq!(c.to_f32().unwrap(), want);
    assert_eq!(d.matmul_library(), None, "no product by cuBLASLt");
    // Rows of 46 bytes are not multiples of 16 bytes, so cuBLASLt computes this product.
    let (odd_a, odd_b) = (bf16(&[3, 23], 0), bf16(&[16, 23], 5));
    d.launch(&Launch::Matmul(matrix_product(&odd_a, &odd_b, &c))).unwrap();
    assert!(d.matmul_library().is_some());
    drop((graph, a, b, c, odd_a, odd_b));
    drop(d);
    assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
}

/// A device can be set to compute all products by cuBLASLt, or those with which own kernels would leave much of the GPU
/// idle: all such products, or the gradients.
#[test]
fn cublaslt_computes_the_products_that_its_device_chooses() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let by_share = |batch_invariant| MatmulImplementation::ByWaveShare { batch_invariant };
    // Of the 132 multiprocessors of an H100, this product keeps one busy.
    let cases = [
        (MatmulImplementation::Own, [false, false]),
        (MatmulImplementation::CublasLt, [true, true]),
        (by_share(false), [true, true]),
        (by_share(true), [false, true]),
    ];
    for (implementation, by_cublaslt) in cases {
        for (is_gradient, by_cublaslt) in [false, true].into_iter().zip(by_cublaslt) {
            let gpu = Gpu::from_driver(Arc::new(FakeDriver::new(Arch::H100, 256 << 20))).unwrap();
            let d = Device::on_gpu_with_matmul_implementation(gpu, implementation).unwrap();
            let one = || Tensor::from_f32(&d, &[8, 8], DType::BF16, &[1.0; 64], MemoryCategory::Inputs).unwrap();
            let (a, b, c) = (one(), one(), one());
            let mut product = matrix_product(&a, &b, &c);
            product.b.transposed = is_gradient;
            d.launch(&Launch::Matmul(product)).unwrap();
            assert_eq!(c.to_f32().unwrap(), [8.0; 64]);
            assert_eq!(d.matmul_library().is_some(), by_cublaslt, "{implementation:?}, gradient: {is_gradient}");
        }
    }
}

/// Computes SwiGLU of gate and up for 512 rows, by the op of one launch if the device has it, on a GPU with two
/// multiprocessors, which one tile then fills. Returns the bits and whether it was one launch.
fn swiglu_of_512_rows(arch: Arch, products: MatmulImplementation, rows: usize) -> (Vec<f32>, bool) {
    let gpu = Gpu::from_driver(Arc::new(FakeDriver::new(arch.with_two_multiprocessors(), 256 << 20))).unwrap();
    let d = Device::on_gpu_with_matmul_implementation(gpu, products).unwrap();
    let bf16 = |rows: usize, factor: usize| {
        let values: Vec<f32> = (0..rows * 72).map(|i| (i * factor % 31) as f32 / 16.0 - 0.9).collect();
        Tensor::from_f32(&d, &[rows, 72], DType::BF16, &values, MemoryCategory::Inputs).unwrap()
    };
    let (x, gate, up) = (bf16(rows, 7), bf16(96, 11), bf16(96, 13));
    let cx = Cx::inference(&d, DType::BF16);
    assert!(ops::linear_swiglu(&Cx::training(&d, DType::BF16), &x, &gate, &up).unwrap().is_none());
    let fused = ops::linear_swiglu(&cx, &x, &gate, &up).unwrap();
    let is_fused = fused.is_some();
    let apart = || {
        let [gate, up] = [&gate, &up].map(|w| ops::linear(&cx, &x, w, None).unwrap());
        ops::swiglu(&cx, &gate, &up).unwrap()
    };
    (fused.unwrap_or_else(apart).to_f32().unwrap(), is_fused)
}

/// SwiGLU is part of the launch of its product on Hopper, where own kernels compute the products and fill the GPU. The
/// bits are those of launches of their own.
#[test]
fn swiglu_is_part_of_a_product_that_fills_the_gpu() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let own = MatmulImplementation::ByWaveShare { batch_invariant: true };
    let (fused, is_fused) = swiglu_of_512_rows(Arch::H100, own, 512);
    assert!(is_fused);
    let (few, is_fused) = swiglu_of_512_rows(Arch::H100, own, 200);
    assert!(!is_fused && few == fused[..200 * 96]);
    for (arch, products) in [(Arch::H100, MatmulImplementation::CublasLt), (Arch::A100, own)] {
        assert!(!swiglu_of_512_rows(arch, products, 512).1, "{products:?} on sm_{}", arch.sm);
    }
}
