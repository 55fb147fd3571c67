//! Tests of captured graphs on cpu, sim, and cuda with the fake driver, which checks the driver's rules.

use std::sync::Arc;

use reel_device::cuda::Gpu;
use reel_device::cuda::fake::FakeDriver;
use reel_device::launch::{Matmul, Operand, RightLayout};
use reel_device::{Addr, Arch, DType, Device, Launch, MemoryCategory, SimOptions, compile};
use reel_kernels::elementwise::{self, AddParams, FillParams};
use reel_kernels::matmul::PRODUCT_CODE;
use reel_runtime::{Result, RuntimeError, Tensor};

/// Devices cpu, sim, and cuda with the fake driver.
fn devices() -> Vec<(Device, Option<FakeDriver>)> {
    let mut all = vec![(Device::cpu(2), None)];
    if compile::skip_without_nvrtc().is_some() {
        all.push((Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).unwrap(), None));
        let fake = FakeDriver::new(Arch::H100, 512 << 20);
        let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
        all.push((Device::on_gpu(gpu).unwrap(), Some(fake)));
    }
    all
}

fn numbers(device: &Device, values: &[f32]) -> Tensor {
    Tensor::from_f32(device, &[values.len()], DType::F32, values, MemoryCategory::Inputs).unwrap()
}

fn room(device: &Device, count: usize) -> Result<Tensor> {
    Tensor::empty(device, &[count], DType::F32, MemoryCategory::Activations)
}

/// Computes `y = a + steps · b` through temporary sums, so memory is freed and allocated again.
fn sums(device: &Device, a: &Tensor, b: &Tensor, y: &Tensor, steps: usize) -> Result<()> {
    let add = |a: &Tensor, b: &Tensor, y: &Tensor| {
        let params = AddParams { a: a.addr(), b: b.addr(), y: y.addr(), count: a.count() as u64 };
        Ok(device.launch(&elementwise::add(DType::F32, &params))?)
    };
    let mut sum = room(device, a.count())?;
    add(a, b, &sum)?;
    for _ in 1..steps {
        let next = room(device, a.count())?;
        add(&sum, b, &next)?;
        sum = next;
    }
    add(&sum, b, y)
}

#[track_caller]
fn fails<T: std::fmt::Debug, E: std::fmt::Debug + ToString>(result: std::result::Result<T, E>, words: &str) {
    let e = result.unwrap_err().to_string();
    assert!(e.contains(words) && !e.contains('\n'), "{words} in {e}");
}

#[test]
fn replay_reads_current_memory_and_does_not_share_its_own() {
    for (d, fake) in devices() {
        let (a, b, y) = (numbers(&d, &[1.0, 2.0, 3.0]), numbers(&d, &[0.5; 3]), numbers(&d, &[0.0; 3]));
        let graph = d.capture((a.clone(), b.clone(), y.clone()), || sums(&d, &a, &b, &y, 4)).unwrap();
        assert_eq!(graph.launch_count(), 5, "{d:?}");
        // At most two sums of 12 bytes are alive at the same time.
        assert_eq!(graph.bytes(), 2 * 12);
        assert_eq!(y.to_f32().unwrap(), [0.0; 3], "{d:?}: capturing runs no launch");
        // Other tensors of the same sizes, freed and live, must not share memory with the graph.
        let before = numbers(&d, &[7.0; 3]);
        drop(room(&d, 3).unwrap());
        for step in 0..3 {
            a.write(&[step as f32; 3]).unwrap();
            d.replay(&graph).unwrap();
            let between = numbers(&d, &[9.0; 3]);
            d.replay(&graph).unwrap();
            assert_eq!(y.to_f32().unwrap(), [step as f32 + 2.5; 3], "{d:?}");
            assert_eq!((before.to_f32().unwrap(), between.to_f32().unwrap()), (vec![7.0; 3], vec![9.0; 3]));
        }
        drop((graph, a, b, y, before));
        assert_eq!(d.memory().current, 0, "{d:?}");
        drop(d);
        if let Some(fake) = fake {
            assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
        }
    }
}

#[test]
fn launch_parameters_keep_their_captured_values() {
    for (d, _) in devices() {
        let (y, value) = (numbers(&d, &[0.0; 3]), std::cell::Cell::new(2.0));
        let fill = || {
            let params = FillParams { dst: y.addr(), count: 3, value: value.get(), reserved: 0 };
            d.launch(&elementwise::fill(DType::F32, &params))
        };
        let graph = d.capture(y.clone(), fill).unwrap();
        value.set(5.0);
        d.replay(&graph).unwrap();
        assert_eq!(y.to_f32().unwrap(), [2.0; 3], "{d:?}");
    }
}

#[test]
fn refused_operations_in_a_capture_leave_the_device_usable() {
    for (d, fake) in devices() {
        let (a, y) = (numbers(&d, &[1.0; 3]), numbers(&d, &[0.0; 3]));
        fails(d.capture((), || a.write(&[1.0f32; 3])), "copying from the host is not possible here");
        fails(d.capture((), || a.to_f32().map(|_| ())), "copying to the host is not possible here");
        fails(d.capture((), || a.download_async().map(|_| ())), "copying to the host is not possible here");
        let timed = || {
            let params = FillParams { dst: y.addr(), count: 3, value: 1.0, reserved: 0 };
            d.time_launch(&elementwise::fill(DType::F32, &params)).map(|_| ())
        };
        fails(d.capture((), timed), "timing a launch is not possible here");
        fails(
            d.capture((), || d.capture((), || Ok::<(), RuntimeError>(())).map(|_| ())),
            "another capture is in progress",
        );
        let times = std::cell::Cell::new(0);
        let grows = || {
            times.set(times.get() + 1);
            room(&d, 3 * times.get()).map(|_| ())
        };
        fails(d.capture((), grows), "that the first pass did not allocate");
        let elsewhere = || {
            let params = FillParams { dst: y.addr(), count: 3, value: 1.0, reserved: 0 };
            let launch = elementwise::fill(DType::F32, &params);
            std::thread::scope(|scope| scope.spawn(|| d.launch(&launch)).join().expect("no panic"))
        };
        fails(d.capture((), elsewhere), "while another thread captures a graph");
        // The device still works after all these errors.
        sums(&d, &a, &a, &y, 1).unwrap();
        assert_eq!(y.to_f32().unwrap(), [3.0; 3], "{d:?}");
        let graph = d.capture((), || sums(&d, &a, &a, &y, 2)).unwrap();
        fails(Device::cpu(1).replay(&graph), "belongs to another device");
        drop((graph, a, y));
        assert_eq!(d.memory().current, 0, "{d:?}");
        drop(d);
        if let Some(fake) = fake {
            assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
        }
    }
}

/// On cuda, a product of f32 and bf16 needs a buffer for the bf16 operand as f32, which the graph owns.
#[test]
fn product_of_f32_and_bf16_can_be_captured() {
    for (d, fake) in devices() {
        let x = numbers(&d, &[1.0, 2.0, 3.0, 4.0]);
        let w = Tensor::from_f32(&d, &[3, 2], DType::BF16, &[1.0, 0.5, 2.0, 0.25, -1.0, 1.0], MemoryCategory::Weights)
            .unwrap();
        let y = numbers(&d, &[0.0; 6]);
        let operand = |t: &Tensor| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false };
        let (a, b, c) = (operand(&x), operand(&w), y.addr());
        let product = Matmul {
            m: 2,
            n: 3,
            k: 2,
            a,
            b,
            b_scale: Addr::NULL,
            b_layout: RightLayout::Plain,
            c,
            c_dtype: DType::F32,
            bias: Addr::NULL,
            accumulate: false,
            scale: 1.0,
            code: &PRODUCT_CODE,
        };
        let graph = d.capture((x.clone(), w.clone(), y.clone()), || d.launch(&Launch::Matmul(product))).unwrap();
        let others: Vec<Tensor> = (0..4).map(|_| numbers(&d, &[5.0; 6])).collect();
        d.replay(&graph).unwrap();
        x.write(&[2.0f32, 4.0, 6.0, 8.0]).unwrap();
        d.replay(&graph).unwrap();
        assert_eq!(y.to_f32().unwrap(), [4.0, 5.0, 2.0, 10.0, 14.0, 2.0], "{d:?}");
        assert!(others.iter().all(|t| t.to_f32().unwrap() == [5.0; 6]), "{d:?}");
        drop((graph, x, w, y, others, d));
        if let Some(fake) = fake {
            assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
        }
    }
}

#[test]
fn profiler_counts_each_launch_of_a_replay() {
    for (d, _) in devices() {
        let (a, y) = (numbers(&d, &[1.0; 3]), numbers(&d, &[0.0; 3]));
        let graph = d.capture((a.clone(), y.clone()), || sums(&d, &a, &a, &y, 2)).unwrap();
        d.profiler().collect_totals(true);
        d.replay(&graph).unwrap();
        d.replay(&graph).unwrap();
        assert_eq!(d.profiler().totals().unwrap()["add_f32"].launches, 6, "{d:?}");
        assert_eq!(y.to_f32().unwrap(), [4.0; 3], "{d:?}");
    }
}

#[test]
fn downloads_return_values_as_of_their_enqueueing() {
    for (d, fake) in devices() {
        let (a, y) = (numbers(&d, &[1.0; 3]), numbers(&d, &[0.0; 3]));
        let graph = d.capture((a.clone(), y.clone()), || sums(&d, &a, &a, &y, 1)).unwrap();
        let mut pending = Vec::new();
        for step in 0..40 {
            a.write(&[step as f32; 3]).unwrap();
            d.replay(&graph).unwrap();
            pending.push(y.download_async().unwrap());
            // The test waits late for some downloads, out of order for others, and drops the rest.
            if step % 3 == 2 {
                let second = pending.remove(pending.len() - 2);
                assert_eq!(second.wait::<f32>().unwrap(), [3.0 * (step - 1) as f32; 3], "{d:?}");
                drop(pending.pop());
            }
        }
        for (i, download) in pending.into_iter().enumerate() {
            assert_eq!(download.wait::<f32>().unwrap(), [9.0 * i as f32; 3], "{d:?}");
        }
        // The tensor is larger than one slot of the copy ring.
        let large = numbers(&d, &vec![2.0; 40_000]);
        assert_eq!(large.download_async().unwrap().wait::<f32>().unwrap(), vec![2.0; 40_000]);
        assert!(large.rows(0, 0).unwrap().download_async().unwrap().wait::<f32>().unwrap().is_empty());
        drop((graph, a, y, large, d));
        if let Some(fake) = fake {
            assert_eq!((fake.open_handle_count(), fake.violations()), (0, Vec::new()));
        }
    }
}
