//! Tests of shared steps: a small network whose rows and columns several threads compute.

use reel_kernels::DType;
use reel_kernels::elementwise::{self, AddParams};
use reel_kernels::matmul::Operand;

use super::*;
use crate::device::MemoryCategory;
use crate::tensor::Tensor;

const COLUMNS: usize = 40;
const INNER: usize = 70;

/// The weights of the network, and its input and output, a row for each sequence.
struct Network {
    device: Device,
    up: Tensor,
    gate: Tensor,
    down: Tensor,
    x: Tensor,
    y: Tensor,
}

fn numbers(device: &Device, shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) % 23) as f32 / 23.0 - 0.5).collect();
    Tensor::from_f32(device, shape, DType::F32, &values, MemoryCategory::Inputs).unwrap()
}

impl Network {
    fn new(device: &Device, rows: usize) -> Network {
        let weight = |n, k, seed| numbers(device, &[n, k], seed);
        Network {
            device: device.clone(),
            up: weight(INNER, COLUMNS, 1),
            gate: weight(INNER, COLUMNS, 2),
            down: weight(COLUMNS, INNER, 3),
            x: numbers(device, &[rows, COLUMNS], 4),
            y: numbers(device, &[rows, COLUMNS], 5),
        }
    }

    fn room(&self, rows: usize, columns: usize) -> Result<Tensor> {
        Tensor::empty(&self.device, &[rows, columns], DType::F32, MemoryCategory::Activations)
    }

    fn add(&self, a: &Tensor, b: &Tensor, y: &Tensor) -> Result<()> {
        let params = AddParams { a: a.addr(), b: b.addr(), y: y.addr(), count: a.count() as u64 };
        self.device.launch(&elementwise::add(DType::F32, &params))
    }

    fn product(&self, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<()> {
        let operand = |t: &Tensor| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false };
        self.device.launch(&Launch::Matmul(Matmul {
            m: a.shape()[0],
            n: b.shape()[0],
            k: b.shape()[1],
            a: operand(a),
            b: operand(b),
            b_scale: Addr::NULL,
            b_grouped: false,
            c: c.addr(),
            c_dtype: DType::F32,
            bias: Addr::NULL,
            accumulate: false,
            scale: 1.0,
        }))
    }

    /// `y = x + down(up(x + x) + gate(x + x))` for some rows.
    fn run(&self, rows: Range<usize>) -> Result<()> {
        let (x, y) = (self.x.rows(rows.start, rows.len())?, self.y.rows(rows.start, rows.len())?);
        let twice = self.room(rows.len(), COLUMNS)?;
        self.add(&x, &x, &twice)?;
        let (up, gate) = (self.room(rows.len(), INNER)?, self.room(rows.len(), INNER)?);
        self.product(&twice, &self.up, &up)?;
        self.product(&twice, &self.gate, &gate)?;
        drop(twice);
        // Memory whose size does not follow from the number of rows.
        let constant = self.room(3, 7)?;
        let sum = self.room(rows.len(), INNER)?;
        self.add(&up, &gate, &sum)?;
        drop((up, gate, constant));
        let down = self.room(rows.len(), COLUMNS)?;
        self.product(&sum, &self.down, &down)?;
        self.add(&down, &x, &y)
    }

    fn share(&self, rows: usize, parts: usize, by_columns: bool) -> SharedStep {
        let d = &self.device;
        let whole = d.capture((), || self.run(0..rows)).unwrap();
        let part = |i: usize| {
            let part = i * rows / parts..(i + 1) * rows / parts;
            (part.clone(), d.capture_part(&whole, (part.clone(), rows), (), || self.run(part.clone())).unwrap())
        };
        let parts = (0..parts).map(part).collect();
        SharedStep::new(whole, parts, by_columns).unwrap()
    }
}

#[test]
fn a_shared_step_computes_what_the_whole_step_does() {
    for (threads, parts, rows) in [(2, 2, 8), (2, 2, 5), (3, 3, 7), (2, 3, 3), (1, 2, 4)] {
        let d = Device::cpu(threads);
        let network = Network::new(&d, rows);
        network.run(0..rows).unwrap();
        let expected = network.y.to_f32().unwrap();
        let start = d.memory().current;
        for by_columns in [false, true] {
            let step = network.share(rows, parts, by_columns);
            for _ in 0..20 {
                network.y.write(&vec![f32::NAN; rows * COLUMNS]).unwrap();
                d.replay_shared(&step).unwrap();
                assert_eq!(network.y.to_f32().unwrap(), expected, "{threads} {parts} {rows} {by_columns}");
            }
        }
        assert_eq!(d.memory().current, start, "a dropped step frees the memory of all its parts once");
    }
}

#[test]
fn products_that_read_the_same_rows_are_one_phase() {
    let network = Network::new(&Device::cpu(2), 8);
    let shape = |step: &SharedStep| -> Vec<(bool, usize)> {
        let of = |phase: &Phase| match phase {
            Phase::Rows(lists) => (false, lists[0].len()),
            Phase::Columns(products) => (true, products.len()),
        };
        step.phases.iter().map(of).collect()
    };
    let (rows, columns) = (false, true);
    assert_eq!(shape(&network.share(8, 2, true)), [(rows, 1), (columns, 2), (rows, 1), (columns, 1), (rows, 1)]);
    assert_eq!(shape(&network.share(8, 2, false)), [(rows, 6)]);
}

#[test]
fn a_step_that_launches_something_else_for_some_rows_is_refused() {
    let d = Device::cpu(2);
    let network = Network::new(&d, 4);
    let whole = d.capture((), || network.run(0..4)).unwrap();
    let part = d.capture_part(&whole, (0..2, 4), (), || network.add(&network.x, &network.x, &network.y)).unwrap();
    let e = SharedStep::new(whole, vec![(0..2, part)], true).unwrap_err().to_string();
    assert!(e.contains("6 launches for all rows and 1 for some of them") && !e.contains('\n'), "{e}");
}

#[test]
fn a_profile_counts_the_launches_of_the_whole_step() {
    let d = Device::cpu(2);
    let network = Network::new(&d, 4);
    let step = network.share(4, 2, true);
    d.profiler().collect_totals(true);
    d.replay_shared(&step).unwrap();
    let totals = d.profiler().totals().unwrap();
    assert_eq!((totals["add_f32"].launches, totals["matmul_fwd"].launches), (3, 3));
    let e = Device::cpu(1).replay_shared(&step).unwrap_err().to_string();
    assert!(e.contains("belongs to another device"), "{e}");
}
