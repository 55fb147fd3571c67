use crate::adamw;
use crate::adamw::{Moments, ParameterEntry, StepTables};
#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    FLOAT_DTYPES, HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes, WEIGHTS_DESCRIPTION,
    placeholder_params,
};
use reel_device::DType::BF16;
#[cfg(test)]
use reel_device::launch::chunks;
use reel_device::launch::{AddressTable, ArrayEntry};
use reel_device::{Addr, DType, Launch};

const ALL_MOMENTS: [Moments; 3] = [Moments::F32, Moments::Bf16, Moments::Int8];

/// Makes the launch of a step of one parameter of `n` weights, at placeholder addresses.
fn example_step(dtype: DType, moments: Moments, n: u64) -> Launch {
    let entry: ParameterEntry = ParameterEntry { n, first: 0, ..placeholder_params() };
    let low = if dtype == BF16 { entry.low } else { Addr::NULL };
    let scales = if moments == Moments::Int8 { entry.scales } else { Addr::NULL };
    let tables = StepTables {
        parameters: AddressTable::new(&[ParameterEntry { low, scales, ..entry }]),
        gradients: AddressTable::new(&[ArrayEntry { x: PLACEHOLDER_ADDRESS, len: n }]),
    };
    let chunk_count = n.div_ceil(adamw::WEIGHTS_PER_CHUNK as u64);
    adamw::step(dtype, moments, &adamw::Params { chunk_count, ..placeholder_params() }, tables, n)
}

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let n = s.get_u64("count", INTERMEDIATE_SIZE as u64 * HIDDEN_SIZE as u64);
    let split = adamw::SplitParams { n, ..placeholder_params() };
    let steps = ALL_MOMENTS.into_iter().flat_map(|moments| FLOAT_DTYPES.map(|dtype| example_step(dtype, moments, n)));
    let mut all: LabeledLaunches = steps.map(|step| (WEIGHTS_DESCRIPTION, step)).collect();
    all.push((WEIGHTS_DESCRIPTION, adamw::split_master(&split)));
    all
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (n, count) = (TRAFFIC_ELEMENTS, TRAFFIC_ELEMENTS as usize);
    let scalars =
        adamw::StepHyperparameters { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 2 };
    let steps = arrays.alloc_structs(&[adamw::StepEntry { stream: 0, numbers: scalars.step_numbers() }; 2]);
    let clip = arrays.alloc_f32(2usize);
    let chunks = chunks([count, count], adamw::WEIGHTS_PER_CHUNK);
    let (chunks, chunk_count) = (arrays.alloc_structs(&chunks), chunks.len() as u64);
    let gradients = [(); 2].map(|()| ArrayEntry { x: arrays.alloc_f32(count), len: n });
    let gradients = (arrays.alloc_structs(&gradients), AddressTable::new(&gradients));
    let mut all = Vec::new();
    for (dtype, moments) in FLOAT_DTYPES.into_iter().flat_map(|dtype| ALL_MOMENTS.map(|moments| (dtype, moments))) {
        let entries = [(); 2].map(|()| {
            let [w, m, v] = [(); 3].map(|()| arrays.alloc_f32(count));
            let low = if dtype == BF16 { arrays.alloc_elements(count, 2) } else { Addr::NULL };
            ParameterEntry {
                w,
                low,
                m,
                v,
                scales: arrays.alloc_f32(2 * count.div_ceil(adamw::WEIGHTS_PER_SCALE)),
                n,
                first: 0,
            }
        });
        let parameters = arrays.alloc_structs(&entries);
        let params = adamw::Params { parameters, gradients: gradients.0, steps, chunks, clip, seed: 3, chunk_count };
        let tables = StepTables { parameters: AddressTable::new(&entries), gradients: gradients.1.clone() };
        all.push((adamw::step(dtype, moments, &params, tables, 2 * n), 1.05));
    }
    let (low, [w, src]) = (arrays.alloc_elements(count, 2), [(); 2].map(|()| arrays.alloc_f32(count)));
    let split = adamw::split_master(&adamw::SplitParams { src, w, low, n });
    all.extend(allow_one_tenth_more([split]));
    all
}
