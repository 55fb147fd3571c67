//! Tests of the answers to single requests: texts, offsets, and errors.

use reel_input::encode::ModelFolder;
use serde_json::{Value, json};

use crate::testing::{TinyServer, error_object, read_to_end, send};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const KV_BYTES: u64 = 16 << 20;

/// The body of a chat request with one message and these fields.
fn chat(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "temperature": 0});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn an_end_token_ends_a_grammar_in_a_request_that_ignores_end_tokens() {
    let server = TinyServer::start(KV_BYTES);
    let ends = ModelFolder::open(server.folder.path()).unwrap().stop_token_ids().to_vec();
    assert!(ends.len() > 1, "{ends:?}");
    for end in ends {
        let fields = json!({"max_tokens": 9, "guided_choice": ["a", "ab"], "ignore_eos": true,
            "logit_bias": {end.to_string(): 100}});
        let choice = server.post_ok(CHAT, &chat(fields))["choices"][0].take();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("a"), &json!("stop")));
    }
}

#[test]
fn text_offsets_point_into_the_text() {
    let server = TinyServer::start(KV_BYTES);
    let end = ModelFolder::open(server.folder.path()).unwrap().tokenizer.token_to_id("<|im_end|>").unwrap();
    for (fields, text, wanted) in [
        (json!({"guided_choice": ["世界!"]}), "世界!", json!([0, 0, 0, 1, 1, 1, 2, 3])),
        (json!({"logit_bias": {end.to_string(): 100}, "ignore_eos": true, "max_tokens": 3}), "", json!([0, 0, 0])),
    ] {
        let mut body = json!({"prompt": "x", "max_tokens": 9, "temperature": 0, "logprobs": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let choice = server.post_ok(COMPLETIONS, &body)["choices"][0].take();
        assert_eq!((&choice["text"], &choice["logprobs"]["text_offset"]), (&json!(text), &wanted));
        body["stream"] = json!(true);
        let offsets = |chunk: &Value| chunk["choices"][0]["logprobs"]["text_offset"].as_array().cloned();
        let streamed: Vec<Value> =
            server.post_and_read_chunks(COMPLETIONS, &body).iter().filter_map(offsets).flatten().collect();
        assert_eq!(Value::from(streamed), wanted, "{text}");
    }
}

#[test]
fn errors_name_the_field_that_is_wrong() {
    let server = TinyServer::start(KV_BYTES);
    let biases: Value = (0..513).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    for (fields, param, words) in [
        (json!({"messages": "hi"}), "messages", "request: messages: is not a list of messages; "),
        (json!({"messages": []}), "messages", "request: messages: has no messages; "),
        (json!({"messages": [{"role": "user"}]}), "messages", "request: message 0: has no `content`; "),
        (json!({"max_tokens": 0}), "max_tokens", "request: max_tokens: is 0; give 1 or more"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens", "request: max_completion_tokens: is 0; "),
        (json!({"n": 0}), "n", "request: n: is 0; give 1 to 128"),
        (json!({"guided_regex": "["}), "guided_regex", "request: guided_regex: "),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "colour"}}}}),
            "response_format",
            "request: response_format: ",
        ),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs", "request: structured_outputs: choice: "),
        (
            json!({"logit_bias": biases}),
            "logit_bias",
            "logit_bias: has the token id 512, but the model has 512 tokens; ",
        ),
        (json!({"max_completion_tokens": 1u64 << 40}), "messages", "or lower max_completion_tokens to "),
        (json!({"max_tokens": 1u64 << 40}), "messages", "or lower max_tokens to "),
        (json!({"max_tokens": 100_000}), "messages", " tokens here. KV cache: has room for "),
    ] {
        let e = server.post_refused(CHAT, &chat(fields.clone()), 400);
        let message = e["message"].as_str().unwrap();
        assert_eq!(e["param"], param, "{fields}: {e}");
        assert!(message.contains(words) && message.contains("; ") && message.lines().count() == 1, "{e}");
        let is_too_long = message.starts_with("This model's maximum context length is ");
        assert_eq!(is_too_long, e["code"] == "context_length_exceeded", "{e}");
    }
    let body = |max_tokens: u64| json!({"prompt": "x", "max_tokens": max_tokens});
    let e = server.post_refused(COMPLETIONS, &body(1 << 40), 400);
    assert!(e["param"] == "prompt" && e["message"].as_str().unwrap().contains("or lower max_tokens to "), "{e}");
    let e = server.post_refused(COMPLETIONS, &body(100_000), 400);
    assert_eq!((&e["param"], &e["code"]), (&json!("prompt"), &json!("context_length_exceeded")), "{e}");
}

#[test]
fn errors_about_models_are_objects_of_limited_length() {
    let server = TinyServer::start(KV_BYTES);
    let e = server.post_refused(CHAT, &chat(json!({"model": "x".repeat(500_000)})), 404);
    assert!(e["param"] == "model" && e.to_string().len() < 10_000, "{e}");
    assert!(e["message"].as_str().unwrap().contains("characters…] ") && e.to_string().contains("tiny"), "{e}");
    let get = |path: &str| {
        read_to_end(send(
            server.address,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        ))
    };
    let e = error_object(&get("/v1/models/%E9"), 400);
    assert!(e["param"] == "model" && e["message"].as_str().unwrap().contains("is not UTF-8; "), "{e}");
    let e = error_object(&get("/v1/models/other"), 404);
    assert_eq!(e["message"], "model: the model \"other\" does not exist; this server has \"tiny\"");
    assert_eq!(e["code"], "model_not_found");
    let e = error_object(&get(&format!("/{}", "y".repeat(30_000))), 404);
    assert!(e.to_string().len() < 10_000, "{e}");
}

#[test]
fn fields_that_ask_for_what_happens_anyway_are_accepted() {
    let server = TinyServer::start(KV_BYTES);
    let fields = json!({
        "best_of": 1, "add_generation_prompt": true, "continue_final_message": false, "skip_special_tokens": true,
        "include_stop_str_in_output": false, "add_special_tokens": false, "use_beam_search": false,
        "length_penalty": 1.0, "bad_words": [], "chat_template_kwargs": {}, "modalities": ["text"],
        "function_call": "none", "safety_identifier": "a", "prompt_cache_key": "b",
        "structured_outputs": {"choice": ["q"], "regex": null, "disable_any_whitespace": false},
    });
    assert_eq!(server.post_ok(CHAT, &chat(fields))["choices"][0]["message"]["content"], "q");
    // If the last message is from the assistant, the prompt ends after this message, unless the request sets another
    // end.
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
    let prompt_tokens = |fields: Value| {
        let mut body = chat(fields);
        body["messages"] = messages.clone();
        server.post_ok(CHAT, &body)["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let ended = prompt_tokens(json!({}));
    assert_eq!(prompt_tokens(json!({"add_generation_prompt": false})), ended);
    for fields in [json!({"add_generation_prompt": true}), json!({"continue_final_message": false})] {
        assert!(prompt_tokens(fields.clone()) > ended, "{fields}");
    }
    // If the model continues a message, the prompt does not contain the end token of this message.
    let continued = json!({"continue_final_message": true, "add_generation_prompt": false});
    assert!(prompt_tokens(continued) < ended);
    assert!(prompt_tokens(json!({"continue_final_message": true})) < ended);
    let e = server.post_refused(CHAT, &chat(json!({"continue_final_message": true})), 400);
    assert_eq!(e["param"], "continue_final_message");
}

#[test]
fn token_ids_and_limits_that_cannot_be_met_are_refused() {
    let server = TinyServer::start(KV_BYTES);
    for (fields, param, words) in [
        (json!({"logit_bias": {"99999999": 5}}), "logit_bias", "has the token id 99999999, but the model has"),
        (json!({"stop_token_ids": [99_999_999]}), "stop_token_ids", "has the token id 99999999"),
        (json!({"min_tokens": 7, "max_tokens": 6}), "min_tokens", "is 7, but an answer has at most 6 tokens"),
    ] {
        let e = server.post_refused(CHAT, &chat(fields), 400);
        assert!(e["param"] == param && e["message"].as_str().unwrap().contains(words), "{e}");
    }
    let text = json!({"prompt": "x", "min_tokens": 17});
    let e = server.post_refused("/v1/completions", &text, 400);
    assert!(e["param"] == "min_tokens" && e["message"].as_str().unwrap().contains("at most 16 tokens"), "{e}");
}

#[test]
fn the_log_probabilities_of_an_answer_have_a_limit() {
    let server = TinyServer::start(KV_BYTES);
    let wide = |fields: Value| {
        let mut fields = fields;
        fields["ignore_eos"] = json!(true);
        fields
    };
    for (path, body, param) in [
        (CHAT, chat(wide(json!({"logprobs": true, "top_logprobs": 20, "n": 128, "max_tokens": 100}))), "top_logprobs"),
        (CHAT, chat(wide(json!({"logprobs": true, "n": 128, "max_tokens": 2049}))), "top_logprobs"),
        (
            CHAT,
            chat(wide(json!({"logprobs": true, "top_logprobs": 20, "n": 128, "max_tokens": 800, "stream": true}))),
            "top_logprobs",
        ),
        (COMPLETIONS, json!({"prompt": ["x", "y"], "logprobs": 20, "n": 8, "max_tokens": 1000}), "logprobs"),
        (
            COMPLETIONS,
            json!({"prompt": vec![3; 200], "prompt_logprobs": 20, "n": 128, "max_tokens": 1}),
            "prompt_logprobs",
        ),
        ("/v1/responses", json!({"input": "x", "top_logprobs": 20, "max_output_tokens": 13_000}), "top_logprobs"),
    ] {
        let e = server.post_refused(path, &body, 400);
        let message = e["message"].as_str().unwrap();
        assert!(e["param"] == param && message.contains("log-probabilities, and an answer has at most "), "{e}");
    }
    let most = chat(wide(json!({"logprobs": true, "top_logprobs": 20, "n": 2, "max_tokens": 4})));
    let answer = server.post_ok(CHAT, &most);
    assert_eq!(answer["choices"][1]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().len(), 20);
}
