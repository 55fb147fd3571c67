//! Tests of exchanges on fake GPUs. Each rank is a thread with its own fake GPU.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::cuda::fake::FakeDriver;
use crate::cuda::{Gpu, Nvidia};
use crate::launch::Params;
use crate::{
    Addr, Arch, Buffer, Cost, Device, DeviceRange, ExchangeStatus, Kernel, Launch, MemoryCategory, NcclCollectives,
    Source, Stage, Team, compile,
};

/// A time limit that no test reaches.
const LONG: Duration = Duration::from_secs(600);

fn fake_gpus(size: usize) -> Vec<FakeDriver> {
    (0..size).map(|_| FakeDriver::new(Arch::H100, 4 << 20)).collect()
}

fn device_of(gpu: &FakeDriver) -> Device {
    Device::on_gpu(Gpu::from_driver(Arc::new(gpu.clone())).unwrap()).unwrap()
}

/// Calls `f` once for each rank, on a thread per rank. Returns the results by rank.
fn on_ranks<T: Send>(
    gpus: &[FakeDriver],
    time_limit: Duration,
    f: impl Fn(&Device, &NcclCollectives) -> T + Sync,
) -> Vec<T> {
    let id = device_of(&FakeDriver::new(Arch::H100, 1 << 20)).create_nccl_id().unwrap();
    std::thread::scope(|scope| {
        let start = |(rank, gpu)| {
            let f = &f;
            scope.spawn(move || {
                let device = device_of(gpu);
                let ranks = device.join_nccl(rank, gpus.len(), &id, time_limit).unwrap();
                f(&device, &ranks)
            })
        };
        let threads: Vec<_> = gpus.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Asserts that everything was freed and that no rule was broken.
#[track_caller]
fn assert_clean(gpus: &[FakeDriver]) {
    for gpu in gpus {
        assert_eq!((gpu.open_handle_count(), gpu.violations()), (0, Vec::new()));
    }
}

fn buffer(device: &Device, bytes: &[u8]) -> Arc<Buffer> {
    let buffer = device.alloc(bytes.len(), MemoryCategory::Gradients).unwrap();
    buffer.upload(0, bytes).unwrap();
    Arc::new(buffer)
}

fn bytes_of(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.bytes()];
    buffer.download(0, &mut bytes).unwrap();
    bytes
}

fn whole(buffer: &Arc<Buffer>) -> DeviceRange {
    DeviceRange::new(buffer, 0, buffer.bytes())
}

/// Makes one list for each rank, which holds one range.
fn one_each(ranges: &[DeviceRange]) -> Vec<Vec<DeviceRange>> {
    ranges.iter().map(|range| vec![range.clone()]).collect()
}

/// Makes the lists for two ranks: `range` for rank `peer`, no range for the other rank.
fn only_for(peer: usize, range: DeviceRange) -> Vec<Vec<DeviceRange>> {
    let mut lists = vec![Vec::new(); 2];
    lists[peer].push(range);
    lists
}

/// The message that rank `from` sends to rank `to` in a round. Its size depends on both ranks and may be 0.
fn message(from: usize, to: usize, round: usize) -> Vec<u8> {
    let bytes = (from * 5 + to * 3) % 7 * 100 + from % 2;
    (0..bytes).map(|i| (i * 31 + from * 17 + to * 7 + round) as u8).collect()
}

fn exchange_messages(size: usize) {
    let gpus = fake_gpus(size);
    on_ranks(&gpus, LONG, |device, ranks| {
        let rank = ranks.rank();
        let send: Vec<_> = (0..size).map(|to| buffer(device, &message(rank, to, 0))).collect();
        let receive: Vec<_> = (0..size).map(|from| buffer(device, &vec![0; message(from, rank, 0).len()])).collect();
        // A message is sent as two ranges. One or both of them may be empty.
        let range = |buffers: &[Arc<Buffer>]| {
            let halves = |buffer: &Arc<Buffer>| {
                let middle = buffer.bytes() / 3;
                vec![DeviceRange::new(buffer, 0, middle), DeviceRange::new(buffer, middle, buffer.bytes() - middle)]
            };
            buffers.iter().map(halves).collect::<Vec<_>>()
        };
        let mut in_use = Vec::new();
        for round in 0..4 {
            send.iter().enumerate().for_each(|(to, b)| b.upload(0, &message(rank, to, round)).unwrap());
            ranks.exchange("messages", &range(&send), &range(&receive)).unwrap();
            for (from, received) in receive.iter().enumerate() {
                assert_eq!(bytes_of(received), message(from, rank, round), "round {round}: {from} to {rank}");
            }
            ranks.wait_for_all().unwrap();
            in_use.push((gpus[rank].bytes_in_use(), gpus[rank].open_handle_count()));
        }
        assert!(in_use.iter().all(|now| *now == in_use[0]), "an exchange after the first has allocated: {in_use:?}");
        assert_eq!(ranks.status(), ExchangeStatus { started: 4, finished: 4, unfinished: None });
    });
    assert_clean(&gpus);
}

#[test]
fn one_rank_copies_to_itself() {
    exchange_messages(1);
}

#[test]
fn ranks_exchange_ragged_messages() {
    exchange_messages(2);
    exchange_messages(8);
}

/// An all-gather: each rank sends its part of a buffer to all ranks, and receives the other parts in the same buffer.
#[test]
fn parts_of_a_buffer_are_gathered_in_place() {
    let gpus = fake_gpus(3);
    let gathered = on_ranks(&gpus, LONG, |device, ranks| {
        let own = DeviceRange::new(&buffer(device, &[9; 12]), 0, 12);
        let all = buffer(device, &[ranks.rank() as u8; 12]);
        let parts: Vec<_> = (0..3).map(|from| DeviceRange::new(&all, from * 4, 4)).collect();
        let mine = vec![vec![parts[ranks.rank()].clone()]; 3];
        ranks.exchange("weights", &mine, &one_each(&parts)).unwrap();
        let same = vec![vec![own]; 3];
        let overlapping = ranks.exchange("overlap", &same, &same).unwrap_err().to_string();
        assert!(
            overlapping.contains("exchange 'overlap': a range that is received overlaps another one"),
            "{overlapping}"
        );
        bytes_of(&all)
    });
    assert_eq!(gathered, vec![vec![0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]; 3]);
    assert_clean(&gpus);
}

#[test]
fn host_is_at_most_256_exchanges_ahead() {
    let gpus = fake_gpus(2);
    on_ranks(&gpus, LONG, |device, ranks| {
        let (sent, received) = (buffer(device, &[ranks.rank() as u8; 4]), buffer(device, &[7; 8]));
        let receive: Vec<_> = (0..2).map(|from| vec![DeviceRange::new(&received, from * 4, 4)]).collect();
        for _ in 0..300 {
            ranks.exchange("many", &vec![vec![whole(&sent)]; 2], &receive).unwrap();
            let ExchangeStatus { started, finished, .. } = ranks.status();
            assert!(started - finished <= 256);
        }
        assert_eq!(bytes_of(&received), [0, 0, 0, 0, 1, 1, 1, 1]);
    });
    assert_clean(&gpus);
}

#[test]
fn calls_that_cannot_work_are_refused() {
    let gpus = fake_gpus(1);
    let other = device_of(&FakeDriver::new(Arch::H100, 4 << 20));
    on_ranks(&gpus, LONG, |device, ranks| {
        let (own, foreign) = (whole(&buffer(device, &[1; 8])), whole(&buffer(&other, &[2; 8])));
        let fails = |send: &[Vec<DeviceRange>], receive: &[Vec<DeviceRange>], words: &str| {
            let e = ranks.exchange("part 1", send, receive).unwrap_err().to_string();
            assert!(e.contains(words) && e.contains("exchange 'part 1'"), "{words} in {e}");
        };
        let own = [vec![own]];
        fails(&[vec![foreign]], &own, "8 bytes of gradients on cuda belong to another device");
        fails(&[], &own, "sends are given for 0 ranks, but there are 1");
        fails(&own, &[Vec::new()], "sends ranges of [8] bytes to itself, but receives [] bytes from itself");
        assert_eq!(ranks.status().started, 0);
        ranks.exchange("part 1", &own, &own).unwrap();
    });
}

/// The buffers are dropped while the exchange is pending. Their memory is not reused before `wait`, and is reused
/// right after `wait`.
#[test]
fn memory_of_a_pending_exchange_stays_allocated() {
    let gpus = fake_gpus(2);
    on_ranks(&gpus, LONG, |device, ranks| {
        let other = 1 - ranks.rank();
        let (sent, received) = (buffer(device, &[ranks.rank() as u8 + 1; 300]), buffer(device, &[0; 300]));
        let (send, receive) = (only_for(other, whole(&sent)), only_for(other, whole(&received)));
        let pending = ranks.start_exchange("gradients", &send, &receive).unwrap();
        let addr = sent.addr();
        drop((sent, send, receive));
        let next = buffer(device, &[77; 300]);
        assert_ne!(next.addr(), addr);
        pending.wait().unwrap();
        let reused = buffer(device, &[88; 300]);
        assert_eq!(reused.addr(), addr);
        assert_eq!((bytes_of(&received), bytes_of(&reused)), (vec![other as u8 + 1; 300], vec![88; 300]));
    });
    assert_clean(&gpus);
}

/// The fake NCCL reports work that changes bytes before an exchange has sent them, or that writes to a range where an
/// exchange will receive.
#[test]
fn writing_to_a_pending_exchange_is_reported() {
    for write_to_sent in [true, false] {
        let gpus = fake_gpus(2);
        let written = Barrier::new(2);
        on_ranks(&gpus, LONG, |device, ranks| {
            let other = 1 - ranks.rank();
            let (sent, received) = (buffer(device, &[1; 16]), buffer(device, &[2; 16]));
            let (send, receive) = (only_for(other, whole(&sent)), only_for(other, whole(&received)));
            if ranks.rank() == 1 {
                written.wait();
            }
            let pending = ranks.start_exchange("gradients", &send, &receive).unwrap();
            if ranks.rank() == 0 {
                if write_to_sent { &sent } else { &received }.upload(0, &[3; 16]).unwrap();
                device.synchronize().unwrap();
                written.wait();
            }
            pending.wait().unwrap();
            device.synchronize().unwrap();
        });
        let [violations, none] = [&gpus[0], &gpus[1]].map(FakeDriver::violations);
        assert!(none.is_empty() && violations.len() == 1, "{violations:?} {none:?}");
        assert!(violations[0].contains("writing to 16 bytes at"), "{violations:?}");
    }
}

#[test]
fn loss_of_a_rank_is_an_asynchronous_error() {
    let gpus = fake_gpus(3);
    let started = Barrier::new(3);
    let errors = on_ranks(&gpus, LONG, |device, ranks| {
        let part = whole(&buffer(device, &[ranks.rank() as u8; 16]));
        let parts = |range: &DeviceRange| {
            let all = buffer(device, &[0; 48]);
            let receive: Vec<_> = (0..3).map(|from| vec![DeviceRange::new(&all, from * 16, 16)]).collect();
            (vec![vec![range.clone()]; 3], receive)
        };
        let (send, receive) = parts(&part);
        ranks.exchange("layers.0", &send, &receive).unwrap();
        ranks.wait_for_all().unwrap();
        if ranks.rank() == 2 {
            started.wait();
            gpus[2].kill_process();
            return String::new();
        }
        // The calls succeed. The error is found later.
        ranks.exchange("layers.1", &send, &receive).unwrap();
        started.wait();
        let error = ranks.wait_for_all().unwrap_err().to_string();
        assert_eq!(ranks.check().unwrap_err().to_string(), error);
        assert_eq!(ranks.exchange("layers.2", &send, &receive).unwrap_err().to_string(), error);
        error
    });
    for (rank, error) in errors[..2].iter().enumerate() {
        assert!(
            error.starts_with(&format!("NCCL: rank {rank} of 3: exchange 2 'layers.1': ncclRemoteError")),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
    assert_clean(&gpus[..2]);
}

/// Waits at a barrier when it is dropped, also by a panic, so that a failed rank does not leave the other one waiting.
struct WaitAtEnd<'a>(&'a Barrier);

impl Drop for WaitAtEnd<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}

#[test]
fn watchdog_names_the_exchange_and_the_missing_rank() {
    // Long enough for the first exchange on a busy machine.
    const LIMIT: Duration = Duration::from_secs(2);
    let gpus = fake_gpus(2);
    let over = Barrier::new(2);
    let results = on_ranks(&gpus, LIMIT, |device, ranks| {
        let part = whole(&buffer(device, &[1; 16]));
        let received = [0, 1].map(|_| whole(&buffer(device, &[0; 16])));
        let (send, receive) = (vec![vec![part]; 2], one_each(&received));
        let _end = WaitAtEnd(&over);
        ranks.exchange("layers.0", &send, &receive).unwrap();
        ranks.wait_for_all().unwrap();
        let mut found = (String::new(), ranks.status());
        if ranks.rank() == 0 {
            ranks.exchange("layers.1", &send, &receive).unwrap();
            found.1 = ranks.status();
            let start = Instant::now();
            found.0 = ranks.wait_for_all().unwrap_err().to_string();
            assert!(start.elapsed() >= LIMIT);
        }
        found
    });
    let [(error, waiting), (_, missing)] = [results[0].clone(), results[1].clone()];
    assert!(error.starts_with("NCCL: rank 0 of 2: exchange 2 'layers.1': not done after 2s; a rank"), "{error}");
    assert_eq!(ExchangeStatus::missing_ranks(&[waiting, missing]), [1]);
    assert_clean(&gpus);
}

#[test]
fn joining_fails_without_all_ranks_and_with_one_gpu_for_two() {
    let gpus = fake_gpus(2);
    let (device, other) = (device_of(&gpus[0]), device_of(&gpus[1]));
    let limit = Duration::from_millis(50);
    let id = device.create_nccl_id().unwrap();
    let alone = device.join_nccl(0, 2, &id, limit).unwrap_err().to_string();
    assert!(alone.starts_with("NCCL: rank 0 of 2: not all ranks have joined within 50ms"), "{alone}");

    let id = device.create_nccl_id().unwrap();
    let twice = std::thread::scope(|scope| {
        let join = |rank| {
            scope.spawn({
                let device = &device;
                move || device.join_nccl(rank, 2, &id, LONG).unwrap_err().to_string()
            })
        };
        [0, 1].map(join).map(|thread| thread.join().unwrap())
    });
    assert!(twice.iter().any(|e| e.contains("ncclInvalidUsage (Duplicate GPU detected : rank")), "{twice:?}");

    let id = device.create_nccl_id().unwrap();
    drop(device.join_nccl(0, 1, &id, LONG).unwrap());
    let used = other.join_nccl(0, 1, &id, LONG).unwrap_err().to_string();
    assert!(used.contains("ncclSystemError (a second communicator with the same id)"), "{used}");
    drop((device, other));
    assert_eq!(gpus[0].violations(), [""; 0]);
    assert!(gpus.iter().all(|gpu| gpu.open_handle_count() == 0));
}

crate::params! {
    /// Parameters of the test kernels `add_four` and `halve_four`.
    struct PairParams {
        /// f32 `[4]`, read and written.
        y: Addr,
        /// f32 `[4]`, read.
        x: Addr,
    }
}

static SOURCE: Source = Source {
    name: "four_sums",
    sm80: r#"
extern "C" __global__ void __launch_bounds__(4) add_four(const __grid_constant__ PairParams p) {
    ((float*)p.y)[threadIdx.x] += ((const float*)p.x)[threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(4) halve_four(const __grid_constant__ PairParams p) {
    ((float*)p.y)[threadIdx.x] *= 0.5f;
}
"#,
    params: &[<PairParams as Params>::c_declaration],
    shared_headers: &[],
    headers: &[],
    header_owners: &[],
};

crate::kernel!(ADD, "add_four", PairParams, no_cpu, &SOURCE, |_, _| vec![Stage::one_dimensional("add_four", 1, 4)]);
crate::kernel!(HALVE, "halve_four", PairParams, no_cpu, &SOURCE, |_, _| vec![Stage::one_dimensional(
    "halve_four",
    1,
    4
)]);

unsafe fn no_cpu(_: &PairParams, _: &Team) {
    unreachable!("the launches are for a GPU");
}

fn launch(device: &Device, kernel: &'static Kernel, y: &Buffer, x: &Buffer) {
    let params = PairParams { y: Addr(y.addr()), x: Addr(x.addr()) };
    device.launch(&Launch::kernel(kernel, &params, Cost::default())).unwrap();
}

/// One step of a program that all ranks run.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// `own += 1`
    AddOne,
    /// `own /= 2`
    Halve,
    /// Each rank sends `own` to all ranks, and adds the received values in the order of the ranks: `own += sum`.
    Sum,
    /// The same as `Sum`, while this many launches on another buffer run beside the exchange.
    SumBeside(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![Just(Step::AddOne), Just(Step::Halve), Just(Step::Sum), (1usize..4).prop_map(Step::SumBeside)]
}

/// Runs a program on a rank and returns the final value of `own`. `waits` has a bit for each step after which the
/// host waits for the GPU.
fn run_program(device: &Device, ranks: &NcclCollectives, program: &[Step], waits: u32) -> [f32; 4] {
    let array = |value: f32| buffer(device, bytemuck::cast_slice(&[value; 4]));
    let (own, one, beside) = (array(ranks.rank() as f32), array(1.0), array(0.0));
    let received: Vec<_> = (0..ranks.size()).map(|_| array(0.0)).collect();
    let receive: Vec<_> = received.iter().map(|buffer| vec![whole(buffer)]).collect();
    let send = vec![vec![whole(&own)]; ranks.size()];
    for (i, step) in program.iter().enumerate() {
        match *step {
            Step::AddOne => launch(device, &ADD, &own, &one),
            Step::Halve => launch(device, &HALVE, &own, &one),
            Step::Sum => ranks.exchange("own", &send, &receive).unwrap(),
            Step::SumBeside(launches) => {
                let pending = ranks.start_exchange("own", &send, &receive).unwrap();
                (0..launches).for_each(|_| launch(device, &ADD, &beside, &one));
                pending.wait().unwrap();
            }
        }
        if matches!(step, Step::Sum | Step::SumBeside(_)) {
            received.iter().for_each(|x| launch(device, &ADD, &own, x));
        }
        if waits >> i & 1 == 1 {
            device.synchronize().unwrap();
        }
    }
    let mut value = [0.0f32; 4];
    own.download(0, bytemuck::cast_slice_mut(&mut value)).unwrap();
    value
}

/// The value of `own` that each rank must have after a program.
fn values_after(program: &[Step], size: usize) -> Vec<[f32; 4]> {
    let mut own: Vec<f32> = (0..size).map(|rank| rank as f32).collect();
    for step in program {
        let before = own.clone();
        for value in &mut own {
            match step {
                Step::AddOne => *value += 1.0,
                Step::Halve => *value *= 0.5,
                Step::Sum | Step::SumBeside(_) => before.iter().for_each(|x| *value += x),
            }
        }
    }
    own.into_iter().map(|value| [value; 4]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// An exchange sends the values that earlier launches have written, and later launches read the received values.
    /// The places at which each rank's host waits make no difference.
    #[test]
    fn exchanges_follow_the_order_of_launches(
        program in prop::collection::vec(step(), 1..10),
        waits in prop::collection::vec(any::<u32>(), 2..5),
    ) {
        let Some(()) = compile::skip_without_nvrtc() else { return Ok(()) };
        let gpus = fake_gpus(waits.len());
        let values = on_ranks(&gpus, LONG, |device, ranks| run_program(device, ranks, &program, waits[ranks.rank()]));
        prop_assert_eq!(values, values_after(&program, waits.len()));
        assert_clean(&gpus);
    }
}

/// The launch after an exchange may read weights that the exchange wrote, so it must not start early.
#[test]
fn launch_after_an_exchange_waits_for_it() {
    let gpus = fake_gpus(2);
    let id = device_of(&gpus[0]).create_nccl_id().unwrap();
    std::thread::scope(|scope| {
        for (rank, fake) in gpus.iter().enumerate() {
            scope.spawn(move || {
                let gpu = Gpu::from_driver(Arc::new(fake.clone())).unwrap();
                let ranks = super::Communicator::join(&gpu, (rank, 2), &id, LONG).unwrap();
                let memory = gpu.alloc(16).unwrap();
                gpu.fill(&memory, rank as u8).unwrap();
                let span = |offset| crate::exchanges::AddressRange { addr: memory.address() + offset, bytes: 8 };
                let parts = [vec![span(0)], vec![span(8)]];
                let send = [parts[rank].clone(), parts[rank].clone()];
                // SAFETY: the memory is allocated until the GPU is done.
                let ticket = unsafe { ranks.start_exchange("halves", &send, &parts) }.unwrap();
                gpu.next_may_start_early.store(true, std::sync::atomic::Ordering::Relaxed);
                ranks.wait(ticket).unwrap();
                assert!(!gpu.next_may_start_early.load(std::sync::atomic::Ordering::Relaxed));
                let mut bytes = [0; 16];
                gpu.download(&memory, 0, &mut bytes).unwrap();
                assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
            });
        }
    });
    assert_clean(&gpus);
}

/// On a machine with a GPU and NCCL, one rank exchanges with itself, and two ranks cannot share the GPU.
#[test]
fn nccl_of_one_gpu() {
    let device = if Nvidia::has_gpu() { Device::cuda(0).map_err(|e| e.to_string()) } else { Err("no GPU".into()) };
    let opened = device.and_then(|device| device.create_nccl_id().map(|id| (device, id)).map_err(|e| e.to_string()));
    let (device, id) = match opened {
        Ok(opened) => opened,
        Err(e) => return println!("skipped: nccl_of_one_gpu: {e}"),
    };
    let ranks = device.join_nccl(0, 1, &id, LONG).unwrap();
    let (sent, received) = (buffer(&device, &[5; 1000]), buffer(&device, &[0; 1000]));
    ranks.exchange("itself", &[vec![whole(&sent)]], &[vec![whole(&received)]]).unwrap();
    ranks.wait_for_all().unwrap();
    assert_eq!(bytes_of(&received), [5; 1000]);
    drop(ranks);

    let id = device.create_nccl_id().unwrap();
    let refused = std::thread::scope(|scope| {
        let join = |rank| {
            scope.spawn({
                let device = &device;
                move || device.join_nccl(rank, 2, &id, Duration::from_secs(60)).unwrap_err().to_string()
            })
        };
        [0, 1].map(join).map(|thread| thread.join().unwrap())
    });
    assert!(refused.iter().any(|e| e.contains("Duplicate GPU detected")), "{refused:?}");
}
