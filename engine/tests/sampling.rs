//! Sampling options of requests: grammars, biases, penalties, log-probabilities. Other requests of the batch do not
//! change their effect.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use reel_device::{DType, Device};
use reel_engine::{
    Completion, Engine, FinishReason, GenerationRequest, GrammarCompiler, GrammarSpec, SamplingParams, StopCondition,
};
use reel_input::ModelInput;
use reel_input::encode::ModelFolder;
use reel_input::grammar::{AnswerWithoutCalls, ToolCallGrammar};
use reel_model::checkpoint::Checkpoint;
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;
use serde_json::{Value, json};

const SAMPLED: SamplingParams = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::GREEDY };

static FOLDER: LazyLock<ModelFolder> = LazyLock::new(|| ModelFolder::open(&path()).unwrap());
static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| GrammarCompiler::new(&FOLDER).unwrap());

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model")
}

fn request(sampling: SamplingParams, max_new_tokens: usize) -> GenerationRequest {
    let ids: Vec<u32> = FOLDER.tokenizer.encode("What is the speed of the ball?").unwrap();
    let at: Vec<i64> = (0..ids.len() as i64).collect();
    let prompt = ModelInput { input_ids: ids, position_ids: [at.clone(), at.clone(), at], ..ModelInput::default() };
    GenerationRequest {
        sampling,
        max_new_tokens,
        eos_token_ids: FOLDER.stop_token_ids().to_vec(),
        ..GenerationRequest::new(prompt)
    }
}

fn with_grammar(spec: &GrammarSpec, sampling: SamplingParams) -> GenerationRequest {
    GenerationRequest { grammar: Some(COMPILER.compile(spec).unwrap()), ..request(sampling, 200) }
}

/// Generates the completions of all requests together on device `cpu`.
fn complete(requests: Vec<GenerationRequest>) -> Vec<Completion> {
    let device = Device::cpu(1);
    let model = QwenVl::open(&device, &Checkpoint::open(&path()).unwrap(), &FOLDER.config, DType::F32).unwrap();
    let engine = Engine::new(&model, &Cx::inference(&device, DType::F32)).unwrap();
    engine.generate(requests, |_| {}).unwrap().0
}

fn text(completion: &Completion) -> String {
    assert_eq!(completion.finish_reason, FinishReason::Stop, "{completion:?}");
    FOLDER.tokenizer.decode(&completion.ids, true)
}

fn schema() -> GrammarSpec {
    GrammarSpec::JsonSchema(json!({
        "type": "object",
        "properties": {
            "speed": {"type": "integer", "minimum": 0, "maximum": 999},
            "unit": {"enum": ["m/s", "km/h"]},
            "words": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,4}$"}, "maxItems": 3},
        },
        "required": ["speed", "unit", "words"],
        "additionalProperties": false,
    }))
}

#[test]
fn a_json_schema_is_followed_alone_and_beside_others() {
    let sampled = |seed| SamplingParams { seed, ..SAMPLED };
    let mut requests = vec![request(SAMPLED, 30)];
    requests.extend((0..4).map(|seed| with_grammar(&schema(), sampled(seed))));
    requests.push(GenerationRequest {
        stop_conditions: (0..3).map(|_| StopCondition::none()).collect(),
        ..with_grammar(&schema(), SamplingParams { repetition_penalty: 1.1, ..sampled(40) })
    });
    requests.push(request(SamplingParams::GREEDY, 20));
    let together = complete(requests);
    let mut answers = 0;
    for completion in together.iter().filter(|c| (1..=5).contains(&c.request)) {
        let answer: Value = serde_json::from_str(&text(completion)).unwrap();
        assert!(answer["speed"].as_u64().is_some_and(|speed| speed <= 999), "{answer}");
        assert!(answer["unit"] == "m/s" || answer["unit"] == "km/h", "{answer}");
        assert!(answer["words"].as_array().is_some_and(|words| words.len() <= 3), "{answer}");
        answers += 1;
    }
    assert_eq!(answers, 7);
    for seed in 0..4 {
        let alone = complete(vec![with_grammar(&schema(), sampled(seed))]);
        assert_eq!(alone[0].ids, together.iter().find(|c| c.request == 1 + seed as usize).unwrap().ids);
    }
    // A request without a grammar gets the same completion when other requests of the batch have a grammar.
    let plain = complete(vec![request(SAMPLED, 30)]);
    assert_eq!((&plain[0].ids, &plain[0].log_probs), (&together[0].ids, &together[0].log_probs));
}

#[test]
fn regular_expressions_and_lark_grammars_are_followed() {
    let regex = complete(vec![with_grammar(&GrammarSpec::Regex("[ab]{3}-(x|yz)".into()), SAMPLED)]);
    let got = text(&regex[0]);
    let (letters, end) = got.split_once('-').unwrap();
    assert!(letters.len() == 3 && letters.chars().all(|c| "ab".contains(c)) && ["x", "yz"].contains(&end), "{got:?}");
    let lark = "start: \"<think>\" /[a-z ]{1,8}/ \"</think>\" \"<answer>\" (\"A\" | \"B\") \"</answer>\"";
    let got = text(&complete(vec![with_grammar(&GrammarSpec::Lark(lark.into()), SAMPLED)])[0]);
    assert!(got.starts_with("<think>") && got.ends_with("</answer>"), "{got:?}");
}

/// Two functions, `speed` and `stop`, with schemas that small models can follow to the end.
fn functions() -> Vec<(String, Value)> {
    let speed = json!({
        "type": "object",
        "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}, "unit": {"enum": ["m/s", "km/h"]}},
        "required": ["value", "unit"],
        "additionalProperties": false,
    });
    let stop = json!({"type": "object", "properties": {}, "additionalProperties": false});
    vec![("speed".into(), speed), ("stop".into(), stop)]
}

/// Checks that a text consists of calls of the two functions, and returns the names of the called functions.
fn called(mut text: &str) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(rest) = text.strip_prefix("<tool_call>\n") {
        let (call, rest) = rest.split_once("\n</tool_call>").unwrap_or_else(|| panic!("{rest:?}"));
        let call: Value = serde_json::from_str(call).unwrap();
        let arguments = &call["arguments"];
        match call["name"].as_str().unwrap() {
            "stop" => assert_eq!(arguments, &json!({})),
            "speed" => assert!(
                arguments["value"].as_u64().is_some_and(|value| value <= 9)
                    && ["m/s", "km/h"].contains(&arguments["unit"].as_str().unwrap()),
                "{call}"
            ),
            name => panic!("{name}"),
        }
        names.push(call["name"].as_str().unwrap().to_string());
        text = rest.strip_prefix('\n').unwrap_or(rest);
    }
    assert_eq!(text, "");
    names
}

#[test]
fn forced_calls_follow_the_schemas_of_their_functions() {
    let rule = |functions: Vec<(String, Value)>, several: bool| {
        GrammarSpec::ToolCalls(ToolCallGrammar { functions, several, otherwise: AnswerWithoutCalls::None })
    };
    let sampled = |seed| SamplingParams { seed, temperature: 20.0, ..SAMPLED };
    let one = (0..16).map(|seed| with_grammar(&rule(functions(), false), sampled(seed)));
    let named = (0..4).map(|seed| with_grammar(&rule(functions()[..1].to_vec(), false), sampled(seed)));
    let mut calls: Vec<String> = Vec::new();
    for (i, completion) in complete(one.chain(named).collect()).iter().enumerate() {
        let names = called(&text(completion));
        assert!(names.len() == 1 && (i < 16 || names[0] == "speed"), "{names:?}");
        calls.extend(names);
    }
    assert!(["speed", "stop"].iter().all(|name| calls[..16].iter().any(|called| called == name)), "{calls:?}");
    // With several calls allowed, a model with random weights calls functions until the maximum number of tokens.
    let several = with_grammar(&rule(functions(), true), sampled(1));
    let completion = complete(vec![GenerationRequest { max_new_tokens: 400, ..several }]).remove(0);
    let got = FOLDER.tokenizer.decode(&completion.ids, true);
    let whole = got.rfind("\n</tool_call>").map_or("", |at| &got[..at + "\n</tool_call>".len()]);
    assert!(called(whole).len() > 1, "{got:?}");
}

#[test]
fn a_tool_whose_parameters_cannot_be_compiled_is_named() {
    let mut functions = functions();
    functions.push(("paint".into(), json!({"type": "object", "properties": {"c": {"type": "colour"}}})));
    let rule = ToolCallGrammar { functions, several: false, otherwise: AnswerWithoutCalls::None };
    let e = COMPILER.compile(&GrammarSpec::ToolCalls(rule)).unwrap_err().to_string();
    assert!(e.starts_with("tools: the parameters of paint: ") && e.contains("colour") && !e.contains('\n'), "{e}");
}

#[test]
fn wrong_grammars_are_refused_in_one_line() {
    for spec in [
        GrammarSpec::Regex("[".into()),
        GrammarSpec::JsonSchema(json!({"type": "colour"})),
        GrammarSpec::JsonSchema(json!(7)),
        GrammarSpec::Choice(Vec::new()),
        GrammarSpec::Lark("start: undefined".into()),
        GrammarSpec::Lark(String::new()),
    ] {
        let Err(e) = COMPILER.compile(&spec) else { panic!("{spec:?} is accepted") };
        let e = e.to_string();
        assert!(e.starts_with("grammar: ") && !e.contains('\n') && e.len() < 500, "{spec:?}: {e}");
    }
}

#[test]
fn without_end_tokens_a_complete_grammar_ends_the_completion() {
    let spec = GrammarSpec::Choice(vec!["yes".into()]);
    let got = complete(vec![GenerationRequest { eos_token_ids: Vec::new(), ..with_grammar(&spec, SAMPLED) }]);
    assert_eq!(text(&got[0]), "yes");
    // Any end token of the model may end the completion, not only the first one.
    assert!(FOLDER.stop_token_ids().len() > 1);
    for &end in FOLDER.stop_token_ids() {
        let spec = GrammarSpec::Choice(vec!["a".into(), "ab".into()]);
        let preferred = GenerationRequest { logit_bias: vec![(end, 100.0)], ..with_grammar(&spec, SAMPLED) };
        let got = complete(vec![GenerationRequest { eos_token_ids: Vec::new(), ..preferred }]);
        assert_eq!((text(&got[0]).as_str(), got[0].ids.last()), ("a", Some(&end)));
    }
    // The grammar also ends a completion before its minimum number of tokens.
    let got = complete(vec![GenerationRequest { min_new_tokens: 50, ..with_grammar(&spec, SAMPLED) }]);
    assert_eq!(text(&got[0]), "yes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_choice_gives_one_of_its_texts(texts in prop::collection::vec("[a-z\"\\\\ é]{1,12}", 1..6), seed in 0u64..1000) {
        let spec = GrammarSpec::Choice(texts.clone());
        let got = complete(vec![with_grammar(&spec, SamplingParams { temperature: 1.5, seed, ..SamplingParams::GREEDY })]);
        prop_assert!(texts.contains(&text(&got[0])), "{:?} is not one of {:?}", text(&got[0]), texts);
    }
}

#[test]
fn biases_force_and_forbid_tokens() {
    let free = complete(vec![request(SamplingParams::GREEDY, 6)]);
    let forced = GenerationRequest { logit_bias: vec![(70, -100.0), (70, 100.0)], ..request(SAMPLED, 6) };
    assert_eq!(complete(vec![forced])[0].ids, [70; 6]);
    let banned: Vec<(u32, f32)> = free[0].ids.iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
    let other = GenerationRequest { logit_bias: banned.clone(), ..request(SamplingParams::GREEDY, 6) };
    let mixed = complete(vec![request(SamplingParams::GREEDY, 6), other, request(SAMPLED, 6)]);
    assert!(mixed[1].ids.iter().all(|id| banned.iter().all(|(other, _)| id != other)), "{mixed:?}");
    assert_eq!((&mixed[0].ids, &mixed[0].log_probs), (&free[0].ids, &free[0].log_probs));
}

/// A large presence or frequency penalty makes each token of a greedy completion a new one; tokens of the prompt are
/// not counted.
#[test]
fn penalties_count_the_completion_only() {
    for penalised in [
        SamplingParams { presence_penalty: 1000.0, ..SamplingParams::GREEDY },
        SamplingParams { frequency_penalty: 1000.0, ..SamplingParams::GREEDY },
    ] {
        let ids =
            complete(vec![GenerationRequest { eos_token_ids: Vec::new(), ..request(penalised, 40) }])[0].ids.clone();
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 40, "{ids:?}");
        let free = complete(vec![request(SamplingParams::GREEDY, 1)]);
        assert_eq!(ids[0], free[0].ids[0], "no token of the completion was there before");
    }
    // The presence penalty does not depend on how often a token has occurred, but the frequency penalty grows with
    // each occurrence. So the two penalties give different long completions.
    let with = |presence_penalty, frequency_penalty| {
        let sampling = SamplingParams { presence_penalty, frequency_penalty, ..SamplingParams::GREEDY };
        complete(vec![GenerationRequest { eos_token_ids: Vec::new(), ..request(sampling, 60) }])[0].ids.clone()
    };
    assert_ne!(with(0.5, 0.0), with(0.0, 0.5));
}

#[test]
fn log_probabilities_come_with_each_token() {
    let asked = |n, sampling| GenerationRequest { top_log_probs: Some(n), ..request(sampling, 8) };
    let all = complete(vec![
        asked(5, SamplingParams::GREEDY),
        request(SAMPLED, 8),
        asked(0, SamplingParams { temperature: 2.0, ..SAMPLED }),
        asked(20, SamplingParams::GREEDY),
    ]);
    let plain = complete(vec![request(SAMPLED, 8)]);
    assert_eq!((&all[1].ids, &all[1].log_probs), (&plain[0].ids, &plain[0].log_probs));
    assert!(all[1].token_log_probs.is_empty());
    for (completion, count) in [(&all[0], 5), (&all[2], 0), (&all[3], 20)] {
        assert_eq!(completion.token_log_probs.len(), completion.ids.len());
        for (id, token) in completion.ids.iter().zip(&completion.token_log_probs) {
            assert_eq!(token.top.len(), count);
            assert!(token.top.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{token:?}");
            assert!(token.top.iter().map(|(_, log_prob)| log_prob.exp()).sum::<f32>() <= 1.0001, "{token:?}");
            if completion.request != 2 {
                assert_eq!((token.top[0].0, token.top[0].1), (*id, token.log_prob), "greedy takes the first");
            }
        }
    }
    assert_eq!(all[3].token_log_probs[0].top[..5], all[0].token_log_probs[0].top[..]);
    // At temperature 2 the completion's log-probability differs from the log-probability under softmax(logits).
    assert_ne!(all[2].log_probs[0], all[2].token_log_probs[0].log_prob);
    assert_eq!(all[0].log_probs[0], all[0].token_log_probs[0].log_prob);
}
