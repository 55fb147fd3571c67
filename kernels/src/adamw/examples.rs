use crate::DType::{BF16, F32};
#[cfg(test)]
use crate::checks::traffic::{TRAFFIC_ELEMENTS, TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{
    FLOAT_DTYPES, HIDDEN_SIZE, INTERMEDIATE_SIZE, LabeledLaunches, PLACEHOLDER_ADDRESS, Sizes, WEIGHTS_DESCRIPTION,
    placeholder_params,
};
use crate::{Addr, adamw};

pub(crate) fn example_calls(s: &Sizes) -> LabeledLaunches {
    let n = s.get_u64("count", INTERMEDIATE_SIZE as u64 * HIDDEN_SIZE as u64);
    let step = adamw::Params { low: Addr::NULL, n, ..placeholder_params() };
    let split = adamw::SplitParams { n, ..placeholder_params() };
    let mut all = vec![
        (WEIGHTS_DESCRIPTION, adamw::step(F32, &step)),
        (WEIGHTS_DESCRIPTION, adamw::step(BF16, &adamw::Params { low: PLACEHOLDER_ADDRESS, ..step })),
        (WEIGHTS_DESCRIPTION, adamw::join_master(&adamw::JoinParams { n, ..placeholder_params() })),
    ];
    let small = adamw::SmallMomentParams { low: Addr::NULL, scales: Addr::NULL, n, ..placeholder_params() };
    let blocks = adamw::SmallMomentParams { scales: PLACEHOLDER_ADDRESS, ..small };
    for (t, low) in [(F32, Addr::NULL), (BF16, PLACEHOLDER_ADDRESS)] {
        all.push((WEIGHTS_DESCRIPTION, adamw::step_bf16_moments(t, &adamw::SmallMomentParams { low, ..small })));
        all.push((WEIGHTS_DESCRIPTION, adamw::step_8bit(t, &adamw::SmallMomentParams { low, ..blocks })));
    }
    all.extend(FLOAT_DTYPES.map(|t| (WEIGHTS_DESCRIPTION, adamw::split_master(t, &split))));
    all
}

/// Returns launches whose memory traffic a test compares with the traffic that their `Cost` states.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    let (n, count) = (TRAFFIC_ELEMENTS, TRAFFIC_ELEMENTS as usize);
    let low = arrays.elements(count, 2);
    let clip = arrays.f32(2usize);
    use bytemuck::Zeroable;
    let scalars =
        adamw::StepHyperparameters { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 2 };
    let numbers = scalars.numbers();
    let [w, m, v, g] = [(); 4].map(|()| arrays.f32(count));
    let step = adamw::Params { w, m, v, g, clip, n, numbers, low: Addr::NULL };
    let scales = arrays.f32(2 * count.div_ceil(adamw::WEIGHTS_PER_SCALE));
    let small = adamw::SmallMomentParams { w, m, v, g, clip, n, numbers, ..Zeroable::zeroed() };
    let mut all = vec![
        adamw::step(F32, &step),
        adamw::step(BF16, &adamw::Params { low, ..step }),
        adamw::join_master(&adamw::JoinParams { w, low, dst: m, n }),
    ];
    for (dtype, low) in [(F32, Addr::NULL), (BF16, low)] {
        all.push(adamw::step_bf16_moments(dtype, &adamw::SmallMomentParams { low, ..small }));
        all.push(adamw::step_8bit(dtype, &adamw::SmallMomentParams { low, scales, ..small }));
    }
    all.extend(FLOAT_DTYPES.map(|t| adamw::split_master(t, &adamw::SplitParams { src: g, w, low, n })));
    allow_one_tenth_more(all)
}
