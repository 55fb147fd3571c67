//! Tests of the fields of a request.

use super::*;

fn read(text: &str) -> Result<ChatRequest> {
    ChatRequest::parse("body.json", text.as_bytes())
}

#[test]
fn a_request_body_gives_messages_and_sampling_fields() {
    let body = json!({
        "model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "temperature": 0.5, "top_p": 0.9, "top_k": -1,
        "max_tokens": 7, "max_completion_tokens": 5, "n": 2, "stop": "END", "seed": 3, "stream": true, "tools": [],
        "presence_penalty": 0.5, "frequency_penalty": -1, "min_p": 0.1, "logprobs": true, "top_logprobs": 4,
        "logit_bias": {"7": -100, "8": 1.5}, "stop_token_ids": [3], "ignore_eos": true, "min_tokens": 2, "priority": -1,
        "guided_regex": "a|b", "prompt_logprobs": 3, "response_format": {"type": "text"},
    });
    let request = read(&body.to_string()).unwrap();
    assert_eq!(request.messages, body["messages"]);
    let wanted = RequestSettings {
        sampling: SamplingOptions {
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(0),
            min_p: Some(0.1),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(-1.0),
            repetition_penalty: None,
            max_new_tokens: Some(5),
            seed: Some(3),
        },
        n: Some(2),
        stop: vec!["END".into()],
        stop_token_ids: vec![3],
        ignore_eos: true,
        min_new_tokens: 2,
        logit_bias: vec![(7, -100.0), (8, 1.5)],
        top_log_probs: Some(4),
        prompt_log_probs: Some(3),
        grammar: Some(GrammarSpec::Regex("a|b".into()).into()),
        priority: -1,
    };
    assert_eq!(request.settings, wanted);
    let list = read("[{\"role\": \"user\", \"content\": \"x\"}]").unwrap();
    assert_eq!((list.settings, &list.messages), (RequestSettings::default(), &body["messages"]));
}

#[test]
fn a_request_has_one_grammar() {
    let one = json!({"messages": [], "structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}});
    assert_eq!(read(&one.to_string()).unwrap().settings.grammar, Some(GrammarSpec::Regex("a".into()).into()));
    let both = json!({"messages": [], "guided_regex": "a", "guided_choice": ["a"]});
    assert!(read(&both.to_string()).unwrap_err().to_string().contains("second grammar"));
}

#[test]
fn seeds_have_64_bits_and_minus_one_is_none() {
    for (seed, wanted) in
        [(json!(-1), None), (json!(0), Some(0)), (json!(u64::MAX), Some(u64::MAX)), (json!(-2), Some(u64::MAX - 1))]
    {
        let body = json!({"messages": [], "seed": seed});
        assert_eq!(read(&body.to_string()).unwrap().settings.sampling.seed, wanted, "{body}");
    }
}

#[test]
fn fields_that_are_not_supported_may_have_values_without_effect() {
    let fields = json!({
        "best_of": 1, "add_generation_prompt": true, "continue_final_message": false, "skip_special_tokens": true,
        "include_stop_str_in_output": false, "add_special_tokens": false, "use_beam_search": false,
        "length_penalty": 1.0, "bad_words": [], "chat_template_kwargs": {}, "modalities": ["text"], "seed": -1,
        "include_reasoning": true, "spaces_between_special_tokens": true, "return_token_ids": false,
        "return_tokens_as_token_ids": false, "stream_interval": 1, "thinking_token_budget": -1, "watermarking": false,
        "return_weight_versions": false, "routed_experts_prompt_start": 0, "return_prompt_text": false,
        "return_token_offsets": false, "mm_payload": "tensors", "reasoning_effort": "none", "verbosity": "low",
        "prediction": {"type": "content", "content": "x"}, "session_id": "s", "prompt_cache_retention": "24h",
        "function_call": "none", "functions": [], "echo": false, "safety_identifier": "a", "prompt_cache_key": "b",
    });
    let with_messages = |messages: Value, fields: &Value| {
        let mut body = fields.clone();
        body["messages"] = messages;
        read(&body.to_string())
    };
    let user = json!({"role": "user", "content": "x"});
    assert_eq!(with_messages(json!([user]), &fields).unwrap().settings, RequestSettings::default());
    // The prompt ends after the assistant's message, so fields that ask for a new message, or for the continuation
    // of this message, are refused.
    let messages = json!([user, {"role": "assistant", "content": "y"}]);
    assert!(with_messages(messages.clone(), &json!({"add_generation_prompt": false})).is_ok());
    for (name, value) in
        [("add_generation_prompt", true), ("continue_final_message", false), ("continue_final_message", true)]
    {
        let e = with_messages(messages.clone(), &json!({name: value})).unwrap_err().to_string();
        assert!(e.contains(&format!("body.json: {name}: is a field of the request that reel does not")), "{e}");
    }
}

#[test]
fn a_minimum_of_tokens_is_within_the_maximum() {
    let read = |fields: Value| {
        let mut body = json!({"messages": [], "min_tokens": 7});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        read(&body.to_string())
    };
    for fields in [json!({}), json!({"max_tokens": 7}), json!({"max_tokens": 6, "max_completion_tokens": 8})] {
        assert_eq!(read(fields).unwrap().settings.min_new_tokens, 7);
    }
    for (fields, name) in [
        (json!({"max_tokens": 6}), "max_tokens"),
        (json!({"max_tokens": 9, "max_completion_tokens": 6}), "max_completion_tokens"),
        (json!({"max_tokens": 6, "max_completion_tokens": null}), "max_tokens"),
    ] {
        let wanted = format!("body.json: min_tokens: is 7, but an answer has at most 6 tokens ({name}); lower");
        let e = read(fields).unwrap_err().to_string();
        assert!(e.starts_with(&wanted), "{e}");
    }
}

#[test]
fn token_ids_are_those_of_the_model() {
    let settings = RequestSettings { logit_bias: vec![(9, 1.0)], stop_token_ids: vec![7], ..Default::default() };
    assert!(settings.check_token_ids("body.json", 10).is_ok());
    for (size, name, id) in [(9, "logit_bias", 9), (7, "logit_bias", 9)] {
        let e = settings.check_token_ids("body.json", size).unwrap_err().to_string();
        let wanted = format!("body.json: {name}: has the token id {id}, but the model has {size} tokens; give ids");
        assert!(e.starts_with(&wanted), "{e}");
    }
    let only_stop = RequestSettings { stop_token_ids: vec![7], ..Default::default() };
    assert!(only_stop.check_token_ids("r", 7).unwrap_err().to_string().starts_with("r: stop_token_ids: has the"));
}

/// The fields of the classes ChatCompletionRequest, BatchChatCompletionRequest and CompletionRequest of vLLM 0.33.0,
/// and those of chat completions in openai 2.
const FIELDS: &str = "add_generation_prompt add_special_tokens allowed_token_ids audio bad_words best_of cache_salt \
    chat_template chat_template_kwargs continue_final_message documents early_stopping echo ec_transfer_params \
    frequency_penalty function_call functions guided_decoding_backend ignore_eos include_reasoning \
    include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_completion_tokens \
    max_tokens media_io_kwargs metadata min_p min_tokens mm_payload mm_processor_kwargs modalities model moderation n \
    parallel_tool_calls prediction presence_penalty priority prompt prompt_cache_key prompt_cache_options \
    prompt_cache_retention prompt_embeds prompt_logprobs reasoning_effort repetition_detection repetition_penalty \
    request_id response_format return_mm_kwargs return_prompt_text return_token_ids return_token_offsets \
    return_tokens_as_token_ids return_weight_versions routed_experts_prompt_start safety_identifier seed service_tier \
    session_id skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream stream_interval \
    stream_options structured_outputs suffix temperature thinking_token_budget tool_choice tools top_k top_logprobs top_p \
    truncate_prompt_tokens truncation_side use_beam_search user verbosity vllm_xargs watermarking web_search_options";

/// No field of these requests is taken for an unknown one, which would be ignored.
#[test]
fn fields_of_openai_and_vllm_are_read_or_refused_or_known_to_have_no_effect() {
    for name in FIELDS.split_ascii_whitespace() {
        let mut body = json!({"messages": []});
        body[name] = json!([{"odd": 1}]);
        match read(&body.to_string()) {
            Ok(_) => assert!(WITHOUT_EFFECT.contains(&name) || ["prediction", "verbosity"].contains(&name), "{name}"),
            Err(e) => assert!(e.to_string().starts_with(&format!("body.json: {name}")), "{name}: {e}"),
        }
    }
}

/// A field that only another server reads has no effect, as in vLLM.
#[test]
fn fields_that_no_server_knows_are_ignored() {
    let body = json!({"messages": [], "my_own_field": {"a": [1]}, "temprature": 1});
    assert_eq!(read(&body.to_string()).unwrap().settings, RequestSettings::default());
}

#[test]
fn unsupported_and_wrong_fields_are_refused_by_name() {
    for (field, value) in [
        ("tools", json!({"type": "function"})),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!("high")),
        ("min_p", json!(-0.1)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("stop_token_ids", json!([-1])),
        ("min_tokens", json!(-1)),
        ("ignore_eos", json!(1)),
        ("top_logprobs", json!(3)),
        ("priority", json!(0.5)),
        ("temperature", json!("hot")),
        ("n", json!(-1)),
        ("n", json!(0)),
        ("n", json!(100_000_000)),
        ("temperature", json!(-0.5)),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(1e-45)),
        ("repetition_penalty", json!(1e30)),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!([1])),
        ("logprobs", json!(3)),
        ("response_format", json!({"type": "yaml"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("guided_json", json!([1])),
        ("guided_choice", json!("a")),
        ("structured_outputs", json!({"regex": "a", "choice": ["b"]})),
        ("structured_outputs", json!({"lark": "a"})),
        ("structured_outputs", json!({"regex": null})),
        ("best_of", json!(2)),
        ("add_generation_prompt", json!(false)),
        ("continue_final_message", json!(true)),
        ("skip_special_tokens", json!(false)),
        ("include_stop_str_in_output", json!(true)),
        ("add_special_tokens", json!(1)),
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(0.8)),
        ("bad_words", json!(["x"])),
        ("chat_template_kwargs", json!([1])),
        ("include_reasoning", json!("yes")),
        ("seed", json!(1.5)),
        ("seed", json!("1")),
        ("return_token_ids", json!(true)),
        ("modalities", json!(["text", "audio"])),
        ("function_call", json!("auto")),
        ("thinking_token_budget", json!(64)),
        ("logprob_token_ids", json!([1])),
        ("repetition_detection", json!({"max_pattern_size": 4, "min_count": 3})),
        ("truncation_side", json!("left")),
        ("return_prompt_text", json!(true)),
        ("stream_interval", json!(4)),
        ("reasoning_effort", json!("low")),
    ] {
        let mut body = json!({"messages": []});
        body[field] = value;
        let e = read(&body.to_string()).unwrap_err().to_string();
        assert!(e.contains(&format!("body.json: {field}: ")) && e.contains("; "), "{e}");
    }
    assert!(read("{\"role\": \"user\"}").unwrap_err().to_string().contains("neither a list"));
    assert!(read("[{").unwrap_err().to_string().contains("is not JSON"));
}
