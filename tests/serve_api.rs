//! `reel serve`: text completions, tokens, usage, the OpenAPI document, request ids, log, metrics and CORS.

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{REQUEST_TIMEOUT, Reply, Server, question, serve_command, write_request};

fn chunks(reply: &Reply) -> Vec<Value> {
    let mut events = reply.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn texts_and_token_ids_are_continued_alone_together_and_streamed() {
    let server = Server::start(&[]);
    let complete = |body: &Value| server.send("POST", "/v1/completions", "", &body.to_string());
    let tokens =
        |text: &str| server.send("POST", "/tokenize", "", &json!({"prompt": text}).to_string()).ok()["tokens"].clone();
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i && choice["logprobs"].is_null()));
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_string()).collect()
    };
    let base = json!({"temperature": 1.2, "seed": 4, "max_tokens": 12});
    let with = |fields: Value| {
        let mut body = base.clone();
        fields.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let one = complete(&with(json!({"prompt": "Once upon", "n": 2}))).ok();
    assert_eq!((&one["object"], &one["model"]), (&json!("text_completion"), &json!("tiny")));
    let other = complete(&with(json!({"prompt": "a time", "n": 2}))).ok();
    let (one_texts, other_texts) = (texts(&one), texts(&other));
    assert!(one_texts.len() == 2 && one_texts[0] != one_texts[1] && one_texts != other_texts);
    // One request has both prompts, as texts or as token ids; completion j of prompt i is choice 2 i + j.
    let wanted = [one_texts.clone(), other_texts].concat();
    let both = complete(&with(json!({"prompt": ["Once upon", "a time"], "n": 2}))).ok();
    assert_eq!(texts(&both), wanted);
    let sum = |field: &str| one["usage"][field].as_u64().unwrap() + other["usage"][field].as_u64().unwrap();
    assert_eq!(both["usage"]["prompt_tokens"], sum("prompt_tokens"));
    assert_eq!(both["usage"]["completion_tokens"], sum("completion_tokens"));
    let ids = json!([tokens("Once upon"), tokens("a time")]);
    assert_eq!(texts(&complete(&with(json!({"prompt": ids, "n": 2}))).ok()), wanted);
    assert_eq!(texts(&complete(&with(json!({"prompt": ids[0], "n": 2}))).ok()), one_texts);
    // The same request, with a streamed answer.
    let reply = complete(&with(json!({"prompt": ["Once upon", "a time"], "n": 2, "stream": true})));
    let mut streamed = vec![String::new(); 4];
    let mut reasons = vec![Value::Null; 4];
    for chunk in chunks(&reply) {
        assert!(chunk["object"] == "text_completion" && chunk.get("usage").is_none(), "{chunk}");
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        streamed[index].push_str(choice["text"].as_str().unwrap());
        reasons[index] = choice["finish_reason"].clone();
    }
    let wanted_reasons: Vec<Value> =
        both["choices"].as_array().unwrap().iter().map(|choice| choice["finish_reason"].clone()).collect();
    assert_eq!((streamed, reasons), (wanted, wanted_reasons));
    // The default of max_tokens is 16, as in OpenAI's API. Greedy decoding with this model never samples an end
    // token.
    let usual = complete(&json!({"prompt": "x", "temperature": 0})).ok();
    assert_eq!(
        (&usual["usage"]["completion_tokens"], &usual["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
    // The stop string is a part of the first completion.
    let stop: String = one_texts[0].chars().skip(3).take(2).collect();
    let cut = one_texts[0].find(&stop).unwrap();
    let stopped = complete(&with(json!({"prompt": "Once upon", "stop": stop}))).ok();
    assert_eq!(stopped["choices"][0]["text"], one_texts[0][..cut]);
}

#[test]
fn wrong_text_completions_name_their_field() {
    let server = Server::start(&["--max-requests", "4"]);
    let pad = "<|image_pad|>";
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [""]}), "prompt"),
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [4_000_000_000u32]}), "prompt"),
        (json!({"prompt": pad}), "prompt"),
        (json!({"prompt": vec!["x"; 129]}), "prompt"),
        (json!({"prompt": vec!["x"; 5]}), "prompt"),
        (json!({"prompt": "x ".repeat(200_000)}), "prompt"),
        (json!({"prompt": "x", "max_tokens": 1u64 << 40}), "prompt"),
        (json!({"prompt": "x", "echo": true}), "echo"),
        (json!({"prompt": "x", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "x", "best_of": 3}), "best_of"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (json!({"prompt": "x", "messages": []}), "messages"),
        (json!({"prompt": "x", "stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"prompt": "x", "stream": true, "stream_options": {"usage": true}}), "stream_options"),
    ] {
        let error = server.send("POST", "/v1/completions", "", &body.to_string()).error(400);
        assert_eq!(error["param"], param, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("; ") && message.len() < 3000 && message.lines().count() == 1, "{message}");
    }
    server.send("POST", "/v1/completions", "", "{\"prompt\": \"x\"}").ok();
    // A pad token without an image is also refused in a chat message.
    let error = server.chat(&json!({"messages": question(pad), "max_tokens": 2})).error(400);
    let message = "message 0: has the token <|image_pad|>, and there is no image for it; remove this token";
    assert!(error["param"] == "messages" && error["message"].as_str().unwrap().ends_with(message), "{error}");
}

#[test]
fn usage_comes_at_the_end_or_with_each_chunk() {
    let server = Server::start(&[]);
    for (path, prompt, value) in
        [("/v1/chat/completions", "messages", question("Hi")), ("/v1/completions", "prompt", json!("Hi"))]
    {
        let streamed = |options: Value| {
            let body = json!({prompt: value, "temperature": 0, "max_tokens": 6, "n": 2, "stream": true,
                "stream_options": options});
            chunks(&server.send("POST", path, "", &body.to_string()))
        };
        let without = streamed(json!({"continuous_usage_stats": true}));
        assert!(without.iter().all(|chunk| chunk.get("usage").is_none()), "{without:?}");
        let mut at_end = streamed(json!({"include_usage": true}));
        let last = at_end.pop().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
        assert!(at_end.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
        let each = streamed(json!({"include_usage": true, "continuous_usage_stats": true}));
        let counts: Vec<u64> = each.iter().map(|c| c["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && counts.last() == Some(&12) && counts[counts.len() / 2] > 0, "{counts:?}");
        for chunk in &each {
            let usage = &chunk["usage"];
            let number = |name: &str| usage[name].as_u64().unwrap();
            assert_eq!(number("total_tokens"), number("prompt_tokens") + number("completion_tokens"), "{usage}");
            assert_eq!(usage["prompt_tokens"], last["usage"]["prompt_tokens"]);
        }
    }
}

#[test]
fn requests_are_read_as_vllms_and_openais_clients_send_them() {
    let server = Server::start(&[]);
    let send = |path: &str, body: &Value| server.send("POST", path, "", &body.to_string());
    let chat = |fields: Value| {
        let mut body = json!({"messages": question("Hi"), "max_tokens": 40, "temperature": 1.5});
        fields.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let text = |fields: Value| server.chat(&chat(fields)).ok()["choices"][0]["message"]["content"].clone();
    // A seed of -1 means no seed; other negative numbers are seeds.
    assert_ne!(text(json!({"seed": -1})), text(json!({"seed": -1})));
    assert_eq!(text(json!({"seed": -2})), text(json!({"seed": -2})));
    send("/v1/completions", &json!({"prompt": "x", "seed": -1, "max_tokens": 1})).ok();
    // Variables of the chat template (`chat_template_kwargs`).
    let count = |content: Value, variables: Value| {
        let body = json!({"messages": [{"role": "user", "content": content}], "chat_template_kwargs": variables});
        send("/tokenize", &body).ok()["count"].as_u64().unwrap()
    };
    let grey = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    let image =
        json!([{"type": "input_image", "image_url": grey, "detail": "auto"}, {"type": "input_text", "text": "?"}]);
    let plain = count(image.clone(), json!({}));
    assert_eq!(count(image.clone(), json!({"enable_thinking": false})), plain);
    assert!(count(image, json!({"add_vision_id": true})) > plain);
    let error = server.chat(&chat(json!({"chat_template_kwargs": {"enable_thinking": true}}))).error(400);
    assert_eq!(error["param"], "chat_template_kwargs.enable_thinking", "{error}");
    // A schema or a regular expression that cannot be compiled is refused.
    for (rule, param) in
        [(json!({"guided_json": {"$ref": "#"}}), "guided_json"), (json!({"guided_regex": "[a-"}), "guided_regex")]
    {
        let error = server.chat(&chat(rule)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == param && message.len() < 400 && message.lines().count() == 1, "{message}");
        assert!(!message.contains("NoExtension") && !message.contains("non-verbose"), "{message}");
    }
    // A stream has an event for each token, even if the token has no text.
    let end = send("/tokenize", &json!({"prompt": "<|im_end|>"})).ok()["tokens"][0].to_string();
    for (path, prompt) in [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")] {
        let prompted = if prompt == "prompt" { json!("x") } else { question("x") };
        let silent = json!({prompt: prompted, "temperature": 0, "max_tokens": 6, "stream": true, "ignore_eos": true,
            "logit_bias": {end.as_str(): 100}});
        let chunks = chunks(&send(path, &silent));
        let is_token = |chunk: &&Value| {
            let choice = &chunk["choices"][0];
            choice["finish_reason"].is_null() && choice["delta"]["role"].is_null()
        };
        assert_eq!(chunks.iter().filter(is_token).count(), 6, "{chunks:?}");
    }
}

#[test]
fn reasoning_is_a_field_of_its_own_if_the_request_asks_for_it() {
    let server = Server::start(&[]);
    let answer = "<think>a </think> b</think>\nc";
    let tools = json!([{"type": "function", "function": {"name": "now"}}]);
    let call = "<think>x</think><tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let ask = |answer: &str, fields: Value| {
        let mut body = json!({"messages": question("Hi"), "max_tokens": 200, "guided_choice": [answer]});
        fields.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let whole = server.chat(&body).ok()["choices"][0]["message"].clone();
        body["stream"] = json!(true);
        let mut joined = [None::<String>, None, None];
        for chunk in chunks(&server.chat(&body)) {
            for (name, joined) in ["content", "reasoning", "reasoning_content"].into_iter().zip(&mut joined) {
                if let Some(more) = chunk["choices"][0]["delta"][name].as_str() {
                    joined.get_or_insert_default().push_str(more);
                }
            }
        }
        for (name, joined) in ["content", "reasoning", "reasoning_content"].into_iter().zip(joined) {
            assert_eq!(whole[name], json!(joined), "{name}: {body}");
        }
        whole
    };
    assert_eq!(ask(answer, json!({})), json!({"role": "assistant", "content": answer}));
    let split = |content: Value, reasoning: Value| json!({"role": "assistant", "content": content, "reasoning": reasoning, "reasoning_content": reasoning});
    let shown = || json!({"include_reasoning": true});
    assert_eq!(ask(answer, shown()), split(json!(" b</think>\nc"), json!("a ")));
    let cut = ask("<think>a", shown());
    assert_eq!(cut, split(Value::Null, json!("a")));
    // A client sends the answer back as part of its next request.
    let user = &question("Hi")[0];
    for own in [cut, json!({"role": "assistant", "content": null, "refusal": "no"}), json!({"role": "assistant"})] {
        server.chat(&json!({"messages": [user, own, user], "max_tokens": 1})).ok();
    }
    assert_eq!(ask("a", shown()), split(json!("a"), Value::Null));
    let left_out = ask(answer, json!({"include_reasoning": false}));
    assert_eq!(left_out, json!({"role": "assistant", "content": " b</think>\nc"}));
    let called = ask(call, json!({"include_reasoning": true, "tools": tools}));
    assert_eq!((&called["reasoning"], &called["tool_calls"][0]["function"]["name"]), (&json!("x"), &json!("now")));
    assert!(called["content"].is_null(), "{called}");
}

#[test]
fn tokens_of_texts_and_messages_and_back() {
    let server = Server::start(&[]);
    let post = |path: &str, body: Value| server.send("POST", path, "", &body.to_string());
    let made = post("/tokenize", json!({"prompt": "Hello <|im_end|> wörld", "return_token_strs": true})).ok();
    let ids = made["tokens"].as_array().unwrap();
    assert_eq!((&made["count"], ids.len()), (&json!(ids.len()), made["token_strs"].as_array().unwrap().len()));
    assert!(made["max_model_len"].as_u64().unwrap() > 1000);
    assert!(made["token_strs"].as_array().unwrap().contains(&json!("<|im_end|>")));
    assert_eq!(post("/detokenize", json!({"tokens": ids})).ok()["prompt"], "Hello <|im_end|> wörld");
    // For `messages`, /tokenize counts the tokens of the chat prompt.
    let messages = question("Hi");
    let count = |extra: Value| {
        let mut body = json!({"messages": messages});
        extra.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        post("/tokenize", body).ok()["count"].as_u64().unwrap()
    };
    let answer = server.chat(&json!({"messages": messages, "max_tokens": 1})).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], count(json!({})));
    assert_eq!(count(json!({})), count(json!({"add_generation_prompt": true})));
    assert!(count(json!({"add_generation_prompt": false})) < count(json!({})));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "messages": messages}), "prompt"),
        ("/tokenize", json!({"prompt": ["x"]}), "prompt"),
        ("/tokenize", json!({"prompt": "x", "temperature": 1}), "temperature"),
        ("/tokenize", json!({"prompt": "x", "continue_final_message": true}), "continue_final_message"),
        ("/tokenize", json!({"messages": messages, "continue_final_message": true}), "continue_final_message"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/detokenize", json!({"tokens": [u32::MAX]}), "tokens"),
    ] {
        assert_eq!(post(path, body).error(400)["param"], param, "{path}");
    }
    let version = server.send("GET", "/version", "", "").ok();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

/// With `continue_final_message`, the model continues the text of the last message: the prompt ends without the
/// marker for the message's end.
#[test]
fn the_text_of_the_last_message_is_continued() {
    let server = Server::start(&[]);
    let messages = |text: &str| json!([question("Hi")[0], {"role": "assistant", "content": text}]);
    let tokens = |text: &str, more: Value| -> Vec<Value> {
        let mut body = json!({"messages": messages(text), "return_token_strs": true});
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let made = server.send("POST", "/tokenize", "", &body.to_string()).ok();
        made["token_strs"].as_array().unwrap().clone()
    };
    let text_of = |tokens: &[Value]| tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>();
    let continued = json!({"continue_final_message": true, "add_generation_prompt": false});
    let (ended, open) = (tokens("It is", json!({})), tokens("It is", continued));
    assert!(text_of(&open).ends_with("assistant\nIt is"), "{open:?}");
    assert_eq!(text_of(&ended), format!("{}<|im_end|>\n", text_of(&open)));
    // If the last message is empty, the prompt is the same as for a new message.
    let empty = tokens("", json!({"continue_final_message": true}));
    assert!(text_of(&empty).ends_with("<|im_start|>assistant\n"), "{empty:?}");
    let body = json!({
        "messages": messages("It is"), "max_tokens": 4, "temperature": 0, "continue_final_message": true,
    });
    let answer = server.chat(&body).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], open.len());
    // A text completion of the same prompt gives the same continuation.
    let text = json!({"prompt": text_of(&open), "max_tokens": 4, "temperature": 0});
    let same = server.send("POST", "/v1/completions", "", &text.to_string()).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], same["choices"][0]["text"]);
}

#[test]
fn compressed_bodies_are_refused() {
    let server = Server::start(&[]);
    let body = json!({"messages": question("x"), "max_tokens": 1}).to_string();
    let send = |header: &str| server.send("POST", "/v1/chat/completions", header, &body);
    for coding in ["gzip", "br", "identity, gzip"] {
        let e = send(&format!("Content-Encoding: {coding}\r\n")).error(415);
        let wanted = format!("header Content-Encoding: is {coding}, which this server does not decode; send the body");
        assert!(e["message"].as_str().unwrap().starts_with(&wanted), "{e}");
    }
    send("Content-Encoding: identity\r\n").ok();
}

#[test]
fn every_example_of_the_document_is_accepted() {
    let server = Server::start(&[]);
    let document = server.send("GET", "/openapi.json", "", "").ok();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    for (path, needed, schema) in [
        ("/v1/chat/completions", json!({"messages": question("x"), "max_tokens": 1}), "ChatRequest"),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 1}), "ResponsesRequest"),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 1}), "TextRequest"),
        ("/tokenize", json!({"prompt": "x"}), "TokenizeRequest"),
        ("/detokenize", json!({"tokens": [1]}), "DetokenizeRequest"),
    ] {
        let schema = &document["components"]["schemas"][schema];
        for (name, field) in schema["properties"].as_object().unwrap() {
            let field = field["$ref"].as_str().map_or(field, |path| document.pointer(&path[1..]).unwrap());
            for example in field["examples"].as_array().into_iter().flatten() {
                let mut body = needed.clone();
                body[name] = example.clone();
                if name == "stream_options" {
                    body["stream"] = json!(true);
                }
                let reply = server.send("POST", path, "", &body.to_string());
                assert_eq!(reply.status, 200, "{path}: {name}: {}", reply.body);
            }
            let has_example = field["examples"].is_array() || ["model", "messages", "input"].contains(&name.as_str());
            assert!(has_example, "{path}: {name} has no example");
        }
        let mut body = needed;
        body["surprise"] = json!(1);
        let reply = server.send("POST", path, "", &body.to_string());
        match path.starts_with("/v1/") {
            // As in vLLM, unknown fields of a completion request are ignored.
            true => assert_eq!(reply.status, 200, "{path}"),
            false => assert_eq!(reply.error(400)["param"], "surprise", "{path}"),
        }
    }
    let page = server.send("GET", "/docs", "", "");
    assert!(page.status == 200 && page.head.contains("default-src 'none'"), "{}", page.head);
}

#[test]
fn requests_have_ids_and_lines_in_the_log_without_texts() {
    let mut server = Server::start_with_piped_stderr(&["--access-log", "--api-key", "SECRETKEY"]);
    let key = "Authorization: bearer SECRETKEY\r\n";
    let body = json!({"messages": question("SECRETWORD"), "max_tokens": 5, "temperature": 0});
    let send = |headers: &str, body: &Value| server.send("POST", "/v1/chat/completions", headers, &body.to_string());
    let id_of = |reply: &Reply| {
        let line = reply.head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        line.unwrap_or_else(|| panic!("{}", reply.head)).to_string()
    };
    let own = send(&format!("{key}X-Request-Id: mine-1\r\n"), &body);
    assert_eq!(id_of(&own), "mine-1");
    let tokens = own.ok()["usage"]["prompt_tokens"].clone();
    let made = send(&format!("{key}X-Request-Id: not \"sane\"\r\n"), &body);
    assert!(id_of(&made).len() == 32, "{}", made.head);
    assert_eq!(id_of(&send("X-Request-Id: stranger\r\n", &body)), "stranger");
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    send(&format!("{key}X-Request-Id: streamed\r\n"), &streamed);
    let none = server.send("GET", "/none?token=SECRETQUERY", "X-Request-Id: nowhere\r\n", "");
    assert_eq!((none.status, id_of(&none).as_str()), (404, "nowhere"));
    // Clients close the connection before their answer begins, or in the middle of it.
    for (id, stream) in [("left", false), ("stopped", true)] {
        let long = json!({"messages": question("x"), "max_tokens": 100_000, "temperature": 0, "stream": stream});
        let mut connection = server.connect();
        write_request(
            &mut connection,
            "POST",
            "/v1/chat/completions",
            &format!("{key}X-Request-Id: {id}\r\n"),
            &long.to_string(),
        );
        match stream {
            true => connection.read_exact(&mut [0; 64]).unwrap(),
            false => std::thread::sleep(Duration::from_millis(300)),
        }
    }
    let mut stderr = server.child.stderr.take().unwrap();
    assert_eq!(server.stop(15), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(!log.contains("SECRET"), "{log}");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 7, "{log}");
    let line = |id: &str| lines.iter().find(|line| line["request_id"] == id).unwrap();
    for (id, path, status, prompt, completion) in [
        ("mine-1", "/v1/chat/completions", 200, tokens.clone(), 5),
        ("streamed", "/v1/chat/completions", 200, tokens.clone(), 5),
        ("stranger", "/v1/chat/completions", 401, json!(0), 0),
        ("nowhere", "/none", 404, json!(0), 0),
    ] {
        let line = line(id);
        assert_eq!((&line["path"], &line["status"]), (&json!(path), &json!(status)), "{line}");
        assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&prompt, &json!(completion)), "{line}");
        assert!(line["complete"] == true && line["milliseconds"].as_f64().unwrap() > 0.0, "{line}");
    }
    let (left, stopped) = (line("left"), line("stopped"));
    assert_eq!((&left["status"], &left["complete"]), (&json!(499), &json!(false)), "{left}");
    assert_eq!((&stopped["status"], &stopped["complete"]), (&json!(200), &json!(false)), "{stopped}");
}

#[test]
fn metrics_count_tokens_ends_and_times() {
    let server = Server::start(&["--api-key", "k"]);
    let key = "Authorization: Bearer k\r\n";
    let value = |name: &str| -> f64 {
        let reply = server.send("GET", "/metrics", "", "");
        assert!(reply.status == 200 && reply.head.contains("text/plain; version=0.0.4"), "{}", reply.head);
        let line = reply.body.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.unwrap_or_else(|| panic!("{name} is not in {}", reply.body)).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let body = json!({"messages": question("x"), "max_tokens": 5, "temperature": 0, "n": 2});
    let answer = server.send("POST", "/v1/chat/completions", key, &body.to_string()).ok();
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    assert_eq!(server.send("POST", "/v1/chat/completions", key, &streamed.to_string()).status, 200);
    assert_eq!(value("vllm:prompt_tokens_total"), 2.0 * answer["usage"]["prompt_tokens"].as_f64().unwrap());
    assert_eq!(value("vllm:generation_tokens_total"), 20.0);
    assert_eq!(value("vllm:request_success_total{finished_reason=\"length\""), 4.0);
    assert_eq!(value("vllm:request_success_total{finished_reason=\"abort\""), 0.0);
    assert_eq!(value("vllm:time_to_first_token_seconds_count"), 2.0);
    assert_eq!(value("vllm:inter_token_latency_seconds_count"), 16.0);
    assert_eq!(value("vllm:e2e_request_latency_seconds_count"), 4.0);
    assert_eq!(value("vllm:request_generation_tokens_sum"), 20.0);
    assert!(value("vllm:estimated_flops_per_gpu_total") > 0.0 && value("process_resident_memory_bytes") > 1e6);
    assert!(value("vllm:prefix_cache_queries_total") > 0.0 && value("vllm:num_preemptions_total") == 0.0);
    // If a client disconnects, its completions are aborted.
    let mut stream = server.connect();
    let long = json!({"messages": question("x"), "max_tokens": 100_000, "temperature": 0, "stream": true});
    write_request(&mut stream, "POST", "/v1/chat/completions", key, &long.to_string());
    stream.read_exact(&mut [0; 64]).unwrap();
    drop(stream);
    let begun = Instant::now();
    while value("vllm:request_success_total{finished_reason=\"abort\"") != 1.0 {
        assert!(begun.elapsed() < REQUEST_TIMEOUT, "the request of a client that is gone still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn pages_of_allowed_origins_may_use_the_server_and_others_not() {
    let server =
        Server::start(&["--api-key", "k", "--allow-origin", "https://a.example", "--allow-origin", "http://b"]);
    let asked = |origin: &str| {
        let headers = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization,content-type\r\n"
        );
        server.send("OPTIONS", "/v1/chat/completions", &headers, "").head.to_ascii_lowercase()
    };
    for origin in ["https://a.example", "http://b"] {
        let head = asked(origin);
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains(&format!("access-control-allow-origin: {origin}\r\n")), "{head}");
        assert!(head.contains("access-control-allow-headers: authorization,content-type"), "{head}");
    }
    assert!(!asked("https://evil.example").contains("access-control-allow-origin"));
    // Answers and errors also have the CORS header, so that a web page can read them.
    let models = server.send("GET", "/v1/models", "Origin: http://b\r\n", "");
    assert!(models.head.to_ascii_lowercase().contains("www-authenticate: bearer"), "{}", models.head);
    assert!(models.status == 401 && models.head.contains("access-control-allow-origin: http://b"), "{}", models.head);
    let closed = Server::start(&[]);
    let head = closed.send("GET", "/v1/models", "Origin: http://b\r\n", "").head;
    assert!(!head.to_ascii_lowercase().contains("access-control"), "{head}");
    for origin in ["example.org", "https://a/b", "https://A", "null", ""] {
        let run = support::finished_run(serve_command(&server.model, &["--allow-origin", origin]).output().unwrap());
        run.assert_refused(2, &["--allow-origin", "is not an origin"]);
    }
}

#[test]
fn log_probabilities_have_the_form_of_each_api() {
    let server = Server::start(&[]);
    let body = json!({"messages": question("x"), "max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 3,
        "ignore_eos": true});
    let answer = server.chat(&body).ok();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 6);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["token"], &top[0]["logprob"]), (3, &token["token"], &token["logprob"]));
        assert!(token["logprob"].as_f64().is_some_and(|value| value <= 0.0) && token["bytes"].is_array(), "{token}");
    }
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let reply = server.chat(&streamed);
    let of_chunk = |chunk: Value| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    assert_eq!(chunks(&reply).into_iter().flat_map(of_chunk).collect::<Vec<_>>(), tokens);
    let plain = server.chat(&json!({"messages": question("x"), "max_tokens": 6, "temperature": 0, "ignore_eos": true}));
    assert_eq!(plain.ok()["choices"][0]["message"], answer["choices"][0]["message"]);
    let body = json!({"prompt": "Once", "max_tokens": 5, "temperature": 0, "logprobs": 2, "ignore_eos": true});
    let text = server.send("POST", "/v1/completions", "", &body.to_string()).ok();
    let log_probs = &text["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(log_probs[list].as_array().map(Vec::len), Some(5), "{list}: {log_probs}");
    }
    assert_eq!(log_probs["text_offset"][0], 0);
}

#[test]
fn answers_have_the_form_that_the_request_asks_for() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"enum": ["m", "km"]}}, "required": ["n", "unit"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "size", "schema": schema}});
    let ask = |fields: Value| {
        let mut body = json!({"messages": question("x"), "max_tokens": 100, "temperature": 1, "seed": 5});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    // Several requests run at the same time; some of them are streamed.
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (server, body) =
                (&server, ask(json!({"response_format": format, "seed": seed, "stream": seed % 2 == 0})));
            scope.spawn(move || {
                let reply = server.chat(&body);
                let text = match seed % 2 {
                    0 => {
                        let piece = |chunk: Value| chunk["choices"][0]["delta"]["content"].as_str().map(String::from);
                        chunks(&reply).into_iter().filter_map(piece).collect::<String>()
                    }
                    _ => reply.ok()["choices"][0]["message"]["content"].as_str().unwrap().to_string(),
                };
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
                assert!(value["n"].as_u64().is_some_and(|n| n <= 99), "{value}");
                assert!(value["unit"] == "m" || value["unit"] == "km", "{value}");
            });
        }
        scope.spawn(|| server.chat(&ask(json!({"max_tokens": 30}))).ok());
    });
    let text = |fields: Value| {
        server.chat(&ask(fields)).ok()["choices"][0]["message"]["content"].as_str().unwrap().to_string()
    };
    assert!(["yes", "no"].contains(&text(json!({"guided_choice": ["yes", "no"]})).as_str()));
    assert!(text(json!({"structured_outputs": {"regex": "[ab]{2}"}})).chars().all(|c| c == 'a' || c == 'b'));
    assert!(server.chat(&ask(json!({"logit_bias": {"70": 100}, "max_tokens": 3, "logprobs": true}))).ok()["choices"][0]
        ["logprobs"]["content"]
        .as_array()
        .unwrap()
        .windows(2)
        .all(|pair| pair[0]["token"] == pair[1]["token"]));
}

#[test]
fn a_request_that_takes_too_long_fails_by_itself() {
    let server = Server::start(&["--request-timeout", "1"]);
    let body = json!({"messages": question("x"), "max_tokens": 100_000, "temperature": 0, "ignore_eos": true});
    assert_eq!(server.chat(&body).error(504)["code"], "timeout");
    server.chat(&json!({"messages": question("x"), "max_tokens": 2})).ok();
}

#[test]
fn log_probabilities_of_the_prompt_come_in_vllms_form() {
    let server = Server::start(&[]);
    let body = |stream: bool, n: u32| json!({"messages": question("Hello there"), "max_tokens": 2, "prompt_logprobs": 2, "stream": stream, "n": n});
    let answer = server.chat(&body(false, 2)).ok();
    let (tokens, count) = (&answer["prompt_logprobs"], &answer["usage"]["prompt_tokens"]);
    let tokens = tokens.as_array().unwrap();
    assert!(tokens[0].is_null() && json!(tokens.len()) == *count, "{answer}");
    let ids = server.send("POST", "/tokenize", "", &json!({"messages": question("Hello there")}).to_string()).ok();
    for (token, id) in tokens.iter().zip(ids["tokens"].as_array().unwrap()).skip(1) {
        let entries = token.as_object().unwrap();
        let own = &entries[&id.to_string()];
        let (log_prob, rank) = (own["logprob"].as_f64().unwrap(), own["rank"].as_u64().unwrap());
        assert!(log_prob < 0.0 && own["decoded_token"].is_string(), "{token}");
        assert_eq!(entries.len(), if rank <= 2 { 2 } else { 3 }, "{token}");
        let better = entries.values().filter(|other| other["logprob"].as_f64().unwrap() > log_prob).count() as u64;
        assert_eq!(better, (rank - 1).min(2), "{token}");
    }
    let generated = server.generate(&body(false, 1), &[]);
    for (served, token) in tokens[1..].iter().zip(generated["prompt_logprobs"].as_array().unwrap()) {
        let entry = &served[token["token_id"].to_string()];
        assert_eq!((&entry["logprob"], &entry["rank"]), (&token["logprob"], &token["rank"]));
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let texts = json!({"prompt": ["one", "two words"], "max_tokens": 1, "prompt_logprobs": 0});
    let texts = server.send("POST", "/v1/completions", "", &texts.to_string()).ok();
    for (i, choice) in texts["choices"].as_array().unwrap().iter().enumerate() {
        let tokens = choice["prompt_logprobs"].as_array().unwrap();
        assert!(tokens.len() > i && tokens[0].is_null(), "{choice}");
        assert!(tokens[1..].iter().all(|token| token.as_object().unwrap().len() == 1), "{choice}");
    }
    let streamed = server.chat(&body(true, 1));
    assert!(
        streamed.status == 400 && streamed.body.contains("prompt_logprobs: cannot be streamed"),
        "{}",
        streamed.body
    );
}
