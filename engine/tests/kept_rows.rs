//! Outputs of matrix products that generation stores for training: they do not depend on chunks, slots or threads, and
//! storing them changes no completion.

mod support;

use std::ops::Range;
use std::sync::Arc;

use reel_device::{DType, Device};
use reel_engine::{Completion, Engine, GenerationRequest, StoredRequestRows};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::products::{MatmulGrouping, StoredOutputs};
use reel_runtime::Cx;

use support::{TestRequest, image_prompt, int8_model, model, unrelated_requests};

/// Returns the number of stored outputs of a layer, and how many of them the last layer computes for all tokens (q, k
/// and v, attention, log-sum-exps).
fn outputs_per_layer(grouping: MatmulGrouping) -> (usize, usize) {
    match grouping {
        MatmulGrouping::Joined => (6, 3),
        MatmulGrouping::Separate => (9, 5),
    }
}

/// Returns requests that name the rows for their outputs, and the number of rows. Every third request stores no
/// outputs.
fn requests(model: &Qwen25Vl) -> (Vec<GenerationRequest>, usize) {
    let sampling = support::SAMPLED;
    let (max_new_tokens, prompt_tokens) = (9, 1);
    let one_token = TestRequest { prompt_tokens, completions: 3, max_new_tokens, min_new_tokens: 2, sampling };
    let image = GenerationRequest { max_new_tokens: 5, sampling, ..GenerationRequest::new(image_prompt(model)) };
    let mut requests: Vec<GenerationRequest> =
        [one_token.request(&[3]), image].into_iter().chain(unrelated_requests().into_iter().take(10)).collect();
    let mut end = 0;
    for request in requests.iter_mut().enumerate().filter(|(i, _)| i % 3 != 2).map(|(_, request)| request) {
        let rows = StoredRequestRows::new(end, request.prompt.input_ids.len(), request.max_new_tokens);
        end = rows.end_row(request.stop_conditions.len());
        request.kept = Some(rows);
        // These end tokens make some completions end early.
        request.eos_token_ids = (0..40).collect();
    }
    (requests, end)
}

/// Returns the completions, and for each output of each layer the bits of all rows that the completions must have
/// filled.
fn generate(engine: &Engine, model: &Qwen25Vl, grouping: MatmulGrouping, cx: &Cx) -> (Vec<Completion>, Vec<Vec<u32>>) {
    let (requests, rows) = requests(model);
    let kept: Vec<Option<StoredRequestRows>> = requests.iter().map(|request| request.kept).collect();
    let config = &model.config.text;
    let products = Arc::new(StoredOutputs::new(cx.device(), config, grouping, cx.dtype(), rows).unwrap());
    let bytes = products.tensors().map(|t| t.bytes() as u64).sum::<u64>();
    assert_eq!(StoredOutputs::bytes(config, grouping, cx.dtype(), rows), bytes);
    let (completions, _) = engine.generate_and_store_outputs(requests, Some(products.clone()), |_| {}).unwrap();
    let (per_layer, of_all_tokens) = outputs_per_layer(grouping);
    let last_layer = per_layer * (config.num_hidden_layers - 1);
    let filled = products.tensors().enumerate().map(|(i, output)| {
        let (values, columns) = (output.to_f32().unwrap(), output.shape()[1]);
        let bits = |rows: Range<usize>| values[rows.start * columns..rows.end * columns].iter().map(|x| x.to_bits());
        let of_prompts =
            kept.iter().flatten().filter(|_| i < last_layer + of_all_tokens).map(StoredRequestRows::prompt_rows);
        let of_completions =
            completions.iter().filter_map(|c| Some(kept[c.request]?.completion_rows(c.index, c.ids.len())));
        of_prompts.chain(of_completions).flat_map(bits).collect()
    });
    (completions.clone(), filled.collect())
}

#[test]
fn kept_rows_do_not_depend_on_chunks_slots_threads_or_graphs() {
    type Open = fn(&Device, DType) -> Qwen25Vl;
    for (dtype, grouping, open) in [
        (DType::F32, MatmulGrouping::Joined, model as Open),
        (DType::BF16, MatmulGrouping::Separate, model),
        (DType::F32, MatmulGrouping::Separate, int8_model),
    ] {
        let mut want = None;
        for (threads, chunk, slots, captures) in
            [(1, 512, 64, false), (2, 512, 64, true), (2, 1, 64, true), (3, 7, 5, true), (2, 64, 1, false)]
        {
            let device = Device::cpu(threads);
            let (model, cx) = (open(&device, dtype), Cx::inference(&device, dtype));
            let engine = Engine::new(&model, &cx).unwrap().chunk_tokens(chunk).max_slots(slots);
            let engine = if captures { engine } else { engine.without_captured_graphs() };
            let got = generate(&engine, &model, grouping, &cx);
            // A call without memory for outputs stores none, even if its requests name rows.
            let plain = engine.generate(requests(&model).0, |_| {}).unwrap().0;
            assert_eq!(got.0, plain, "{dtype}: keeping changes completions");
            let want = want.get_or_insert_with(|| got.clone());
            assert_eq!(got.0, want.0, "{dtype}: {threads} threads, chunks of {chunk}, {slots} slots");
            assert!(got.1 == want.1, "{dtype}: {threads} threads, chunks of {chunk}, {slots} slots: other rows");
        }
    }
}
