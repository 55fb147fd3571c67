//! `reel serve` with tools in chat requests. The model's weights are random, so it makes valid calls only if they are
//! forced: by `tool_choice`, or by a grammar of the request.

#[path = "support/server.rs"]
mod server;
mod support;

use serde_json::{Map, Value, json};
use server::{Reply, Server, question};

/// Returns two functions whose argument schemas a model with random weights can complete.
fn tools() -> Value {
    let speed = json!({
        "type": "object",
        "properties": {
            "value": {"type": "integer", "minimum": 0, "maximum": 9},
            "unit": {"enum": ["m/s", "km/h"]},
            "notes": {"type": "array", "items": {"type": "string", "pattern": "^[a-z\"é]{1,3}$"}, "maxItems": 2},
        },
        "required": ["value", "unit", "notes"],
        "additionalProperties": false,
    });
    json!([
        {"type": "function", "function": {"name": "speed", "description": "Tells a speed — é", "parameters": speed}},
        {"type": "function", "function": {"name": "stop-now"}},
    ])
}

fn body(fields: Value) -> Value {
    let mut body = json!({"messages": question("How fast?"), "tools": tools(), "temperature": 1.3, "max_tokens": 300});
    fields.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

/// Checks the calls in a message: ids, types, and arguments that match the schemas. Returns the names of the called
/// functions.
#[track_caller]
fn check_calls(message: &Value) -> Vec<String> {
    let calls = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{message}"));
    let mut ids = Vec::new();
    let name = |call: &Value| {
        assert!(call["type"] == "function" && call["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
        ids.push(call["id"].clone());
        let function = &call["function"];
        let arguments: Map<String, Value> = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        match function["name"].as_str().unwrap() {
            "speed" => {
                let keys: Vec<&String> = arguments.keys().collect();
                assert_eq!(keys, ["value", "unit", "notes"]);
                assert!(arguments["value"].as_u64().is_some_and(|value| value <= 9), "{call}");
                assert!(["m/s", "km/h"].contains(&arguments["unit"].as_str().unwrap()), "{call}");
                assert!(arguments["notes"].as_array().unwrap().len() <= 2, "{call}");
            }
            "stop-now" => assert!(arguments.is_empty(), "{call}"),
            other => panic!("{other}"),
        }
        function["name"].as_str().unwrap().to_string()
    };
    let names = calls.iter().map(name).collect();
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), calls.len());
    names
}

/// Assembles the choices of a streamed answer as a client does, in the form of an answer that is not streamed.
fn streamed(reply: &Reply, n: usize) -> Vec<Value> {
    let mut events = reply.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let mut choices: Vec<Value> = (0..n).map(|index| json!({"index": index, "message": {"content": null}})).collect();
    for event in events {
        let chunk: Value = serde_json::from_str(&event).unwrap();
        let Some(part) = chunk["choices"].get(0) else { continue };
        let choice = &mut choices[part["index"].as_u64().unwrap() as usize];
        assert!(choice["finish_reason"].is_null(), "a piece after the end: {event}");
        let (delta, message) = (&part["delta"], &mut choice["message"]);
        if delta["role"].is_string() {
            message["role"] = delta["role"].clone();
        }
        if let Some(more) = delta["content"].as_str() {
            message["content"] = json!(message["content"].as_str().unwrap_or_default().to_string() + more);
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if call["id"].is_string() {
                let calls = message.as_object_mut().unwrap().entry("tool_calls").or_insert(json!([]));
                assert_eq!(calls.as_array().unwrap().len(), index, "{event}");
                let mut call = call.clone();
                call.as_object_mut().unwrap().remove("index");
                calls.as_array_mut().unwrap().push(call);
            } else {
                let arguments = &mut message["tool_calls"][index]["function"]["arguments"];
                let more = call["function"]["arguments"].as_str().unwrap();
                *arguments = json!(arguments.as_str().unwrap().to_string() + more);
            }
        }
        choice["finish_reason"] = part["finish_reason"].clone();
    }
    choices
}

/// Returns the choices without log-probabilities and without the ids of calls, which are random.
fn without_ids(choices: &Value) -> Value {
    let mut choices = choices.clone();
    for choice in choices.as_array_mut().unwrap() {
        choice.as_object_mut().unwrap().remove("logprobs");
        for call in choice["message"]["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
    }
    choices
}

/// Sends a request twice, once streamed. Checks that both answers are equal, and returns the choices.
#[track_caller]
fn ask(server: &Server, fields: Value) -> Vec<Value> {
    let mut body = body(fields);
    body["seed"] = json!(body["seed"].as_u64().unwrap_or(5));
    let whole = server.chat(&body).ok();
    let choices = whole["choices"].as_array().unwrap().clone();
    body["stream"] = json!(true);
    let streamed = streamed(&server.chat(&body), choices.len());
    assert_eq!(without_ids(&json!(streamed)), without_ids(&whole["choices"]), "{body}");
    choices
}

#[test]
fn forced_calls_follow_their_schemas_whole_and_streamed() {
    let server = Server::start(&[]);
    let mut called = Vec::new();
    for choice in ask(&server, json!({"tool_choice": "required", "parallel_tool_calls": false, "n": 12})) {
        let names = check_calls(&choice["message"]);
        assert_eq!((names.len(), &choice["finish_reason"]), (1, &json!("tool_calls")), "{choice}");
        assert!(choice["message"]["content"].is_null(), "{choice}");
        called.extend(names);
    }
    assert!(called.iter().any(|name| name == "speed") && called.iter().any(|name| name == "stop-now"), "{called:?}");
    for name in ["speed", "stop-now"] {
        let named = json!({"type": "function", "function": {"name": name}});
        for choice in ask(&server, json!({"tool_choice": named, "n": 3})) {
            // The finish reason of a forced call is `stop`, as in OpenAI's API.
            assert_eq!(
                (check_calls(&choice["message"]), &choice["finish_reason"]),
                (vec![name.into()], &json!("stop"))
            );
        }
    }
    // The model makes further calls until the answer has `min_tokens` tokens.
    let fields = json!({"tool_choice": "required", "tools": [tools()[1]], "min_tokens": 100, "max_tokens": 200});
    let mut several = ask(&server, fields).remove(0);
    if several["finish_reason"] == "length" {
        several["message"]["tool_calls"].as_array_mut().unwrap().pop();
    }
    assert!(check_calls(&several["message"]).len() > 1, "{several}");
    // If an answer is cut off within a call, it has the beginning of the call's arguments.
    let named = json!({"type": "function", "function": {"name": "speed"}});
    let whole = server.chat(&body(json!({"tool_choice": named, "seed": 1}))).ok();
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
    let cut = ask(&server, json!({"tool_choice": named, "seed": 1, "max_tokens": tokens - 20})).remove(0);
    let arguments = |choice: &Value| choice["message"]["tool_calls"][0]["function"]["arguments"].clone();
    let (start, all) = (arguments(&cut), arguments(&whole["choices"][0]));
    assert_eq!(cut["finish_reason"], "length");
    assert!(all.as_str().unwrap().starts_with(start.as_str().unwrap()) && start != all, "{start} of {all}");
}

#[test]
fn calls_that_the_model_is_free_to_make_are_found() {
    let server = Server::start(&[]);
    // A grammar makes the model generate the text that a model trained for tool calls would generate.
    let call =
        |arguments: &str| format!("<tool_call>\n{{\"name\": \"speed\", \"arguments\": {arguments}}}\n</tool_call>");
    let (one, two) = (call("{\"a\": \"</tool_call> é\"}"), call("{}"));
    let grammar = |text: &str| json!({"structured_outputs": {"choice": [text]}});
    let with = |text: &str, more: Value| {
        let mut fields = grammar(text);
        more.as_object().unwrap().iter().for_each(|(key, value)| fields[key] = value.clone());
        ask(&server, fields).remove(0)
    };
    let calls = |choice: &Value| -> Vec<Value> {
        let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        calls.iter().map(|call| call["function"]["arguments"].clone()).collect()
    };
    let text = format!("I look.\n{one}\n{two}");
    let both = with(&text, json!({}));
    assert_eq!(calls(&both), ["{\"a\": \"</tool_call> é\"}", "{}"]);
    assert_eq!((&both["message"]["content"], &both["finish_reason"]), (&json!("I look."), &json!("tool_calls")));
    let first = with(&text, json!({"parallel_tool_calls": false, "tool_choice": "auto", "n": 2}));
    assert_eq!(calls(&first), ["{\"a\": \"</tool_call> é\"}"]);
    assert!(with(&one, json!({}))["message"]["content"].is_null());
    // The text is not parsed for calls if the request has no tools or tool_choice none, or if a block is not a valid
    // call.
    for (text, more) in [
        (&*text, json!({"tool_choice": "none"})),
        (&*text, json!({"tools": []})),
        ("<tool_call>\n{\"name\": \"speed\"}\n</tool_call>", json!({})),
        (" a <tool_call", json!({})),
    ] {
        let choice = with(text, more);
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")));
        assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
    }
    // Stop strings cut the text before it is parsed for calls. The log-probabilities cover all tokens.
    let stopped = with(&text, json!({"stop": ["I look.\n"]}));
    assert_eq!(stopped["message"]["content"], "");
    let mut logged = body(grammar(&text));
    logged["logprobs"] = json!(true);
    logged["seed"] = json!(6);
    let wanted = server.chat(&logged).ok();
    let tokens = &wanted["choices"][0]["logprobs"]["content"];
    assert_eq!(wanted["usage"]["completion_tokens"], tokens.as_array().unwrap().len());
    logged["stream"] = json!(true);
    let events = server.chat(&logged).events();
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let names = |content: &Value| -> Vec<Value> {
        content.as_array().into_iter().flatten().map(|token| token["token"].clone()).collect()
    };
    let streamed: Vec<Value> = chunks.flat_map(|chunk| names(&chunk["choices"][0]["logprobs"]["content"])).collect();
    assert_eq!(streamed, names(tokens));
}

#[test]
fn strict_functions_are_called_with_arguments_that_follow_their_schemas() {
    let server = Server::start(&[]);
    let mut strict = tools();
    strict[0]["function"]["strict"] = json!(true);
    // A logit bias makes the tokens that begin a call likely.
    let tokens = server.send("POST", "/tokenize", "", &json!({"prompt": "<tool_call>"}).to_string()).ok();
    let bias: Map<String, Value> =
        tokens["tokens"].as_array().unwrap().iter().map(|id| (id.to_string(), json!(30))).collect();
    let fields = json!({"tools": strict, "logit_bias": bias, "n": 8, "max_tokens": 400});
    let mut count = 0;
    for choice in ask(&server, fields) {
        let mut message = choice["message"].clone();
        // At the token limit, the last call may be incomplete, so it is removed.
        if choice["finish_reason"] == "length" {
            message["tool_calls"].as_array_mut().map(Vec::pop);
        }
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        let is_strict = |call: &Value| call["function"]["name"] == "speed";
        let strict: Vec<Value> = calls.into_iter().filter(is_strict).collect();
        if !strict.is_empty() {
            count += check_calls(&json!({"tool_calls": strict})).len();
        }
    }
    assert!(count > 0, "no call in any answer");
}

/// As in OpenAI's API, the model calls functions or answers by the schema of `response_format`.
#[test]
fn an_answer_beside_response_format_is_calls_or_follows_its_schema() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "c", "strict": true, "schema": schema}});
    // A logit bias makes the text that begins a call or a JSON object the likeliest.
    let bias = |text: &str| -> Map<String, Value> {
        let tokens = server.send("POST", "/tokenize", "", &json!({"prompt": text}).to_string()).ok();
        tokens["tokens"].as_array().unwrap().iter().map(|id| (id.to_string(), json!(100))).collect()
    };
    let one_call = |choice: &Value| {
        assert_eq!(check_calls(&choice["message"]).len(), 1, "{choice}");
        assert!(choice["message"]["content"].is_null(), "{choice}");
    };
    let is_json = |choice: &Value| {
        let content = choice["message"]["content"].as_str().unwrap_or_else(|| panic!("{choice}"));
        let answer: Value = serde_json::from_str(content).unwrap();
        assert!(["x", "y"].contains(&answer["b"].as_str().unwrap()) && choice["finish_reason"] == "stop", "{choice}");
        assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
    };
    let mut strict = tools();
    strict.as_array_mut().unwrap().iter_mut().for_each(|tool| tool["function"]["strict"] = json!(true));
    let with = |more: Value| {
        let mut fields = json!({"response_format": format, "tools": strict, "parallel_tool_calls": false, "n": 4});
        more.as_object().unwrap().iter().for_each(|(key, value)| fields[key] = value.clone());
        ask(&server, fields)
    };
    with(json!({"logit_bias": bias("<tool_call>")})).iter().for_each(one_call);
    with(json!({"logit_bias": bias("{")})).iter().for_each(is_json);
    with(json!({"tool_choice": "none"})).iter().for_each(is_json);
    with(json!({"tool_choice": "required", "logit_bias": bias("{")})).iter().for_each(one_call);
    let named = json!({"type": "function", "function": {"name": "speed"}});
    with(json!({"tool_choice": named})).iter().for_each(one_call);
    // Arguments of a function that is not strict are any JSON object.
    for choice in with(json!({"tools": tools(), "logit_bias": bias("<tool_call>"), "max_tokens": 60})) {
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert!(["speed", "stop-now"].contains(&call["name"].as_str().unwrap()), "{choice}");
    }
    with(json!({"tools": tools(), "logit_bias": bias("{")})).iter().for_each(is_json);
}

/// A call whose arguments are not complete is sent back as it came, with a result that says so.
#[test]
fn a_call_without_valid_arguments_comes_back_as_it_was_written() {
    let server = Server::start(&[]);
    let named = json!({"type": "function", "function": {"name": "speed"}});
    let cut = ask(&server, json!({"tool_choice": named, "max_tokens": 50})).remove(0);
    let (message, mut messages) = (&cut["message"], question("How fast?"));
    let arguments = message["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert!(cut["finish_reason"] == "length" && serde_json::from_str::<Value>(arguments).is_err(), "{cut}");
    let result = json!({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "not JSON"});
    messages.as_array_mut().unwrap().extend([message.clone(), result]);
    let tokens =
        server.send("POST", "/tokenize", "", &json!({"messages": messages, "tools": tools()}).to_string()).ok();
    let text = server.send("POST", "/detokenize", "", &json!({"tokens": tokens["tokens"]}).to_string()).ok();
    let written = format!("<tool_call>\n{{\"name\": \"speed\", \"arguments\": {arguments}}}\n</tool_call>");
    assert!(text["prompt"].as_str().unwrap().contains(&written), "{text}");
    ask(&server, json!({"messages": messages, "max_tokens": 4}));
}

#[test]
fn results_of_tools_go_back_into_the_prompt() {
    let server = Server::start(&[]);
    let tokens = |messages: &Value, tools: Value| {
        let send = |path: &str, body: Value| server.send("POST", path, "", &body.to_string()).ok();
        let reply = send("/tokenize", json!({"messages": messages, "tools": tools}));
        let text = send("/detokenize", json!({"tokens": reply["tokens"]}));
        (reply["count"].clone(), text["prompt"].as_str().unwrap().to_string())
    };
    let mut messages = question("How fast?");
    let (count, prompt) = tokens(&messages, tools());
    assert!(
        prompt.contains(r#"{"type": "function", "function": {"name": "speed", "description": "Tells a speed — é", "#)
    );
    let first = server.chat(&body(json!({"tool_choice": "required", "parallel_tool_calls": false, "seed": 3}))).ok();
    assert_eq!(first["usage"]["prompt_tokens"], count);
    let preview = server.send("POST", "/v1/preview", "", &body(json!({})).to_string()).ok();
    assert_eq!(preview["prompt_tokens"], count);
    // The next request contains the model's message unchanged, and then the result of the call.
    let message = &first["choices"][0]["message"];
    let call = &message["tool_calls"][0];
    messages.as_array_mut().unwrap().push(message.clone());
    messages.as_array_mut().unwrap().push(json!({"role": "tool", "tool_call_id": call["id"], "content": "42 m/s"}));
    let (_, prompt) = tokens(&messages, tools());
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let written = format!(
        "<|im_start|>assistant\n<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n42 m/s\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        call["function"]["name"]
    );
    assert!(prompt.ends_with(&written), "{prompt}");
    let second = ask(&server, json!({"messages": messages, "max_tokens": 8}));
    assert!(second[0]["message"]["content"].is_string(), "{second:?}");
    // `reel generate` accepts the same request.
    let request = body(json!({"messages": messages, "tool_choice": "none", "temperature": 0, "max_tokens": 6}));
    let wanted = server.generate(&request, &[]);
    let answer = server.chat(&request).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], wanted["text"]);
    assert_eq!(answer["usage"]["prompt_tokens"], wanted["prompt_tokens"]);
}

#[test]
fn wrong_requests_with_tools_are_refused_by_name() {
    let server = Server::start(&[]);
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let broken = json!([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"c": {"type": "colour"}}}}}]);
    let form = json!({"choice": ["a"]});
    let wrong_schema = json!({"type": "json_schema", "json_schema": {"schema": {"not": {"type": "null"}}}});
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
    let orphan = json!([{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "1", "content": "x"}]);
    for (fields, param, word) in [
        (json!({"tools": "x"}), "tools", "is not a list"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name", "a b"),
        (json!({"tool_choice": "any"}), "tool_choice", "is \"any\""),
        (json!({"tool_choice": named("other")}), "tool_choice", "not one of the tools"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice", "there are no tools"),
        (json!({"tool_choice": "required", "structured_outputs": form}), "tool_choice", "structured_outputs"),
        (json!({"tool_choice": named("speed"), "guided_regex": "a"}), "tool_choice", "guided"),
        (json!({"tools": strict, "structured_outputs": form}), "tools", "strict"),
        (json!({"response_format": wrong_schema}), "response_format", "not"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "is \"no\""),
        (json!({"tools": broken, "tool_choice": "required"}), "tools", "the parameters of f"),
        (json!({"messages": orphan}), "messages", "no tool call before it has this id"),
        (json!({"functions": [{"name": "f"}]}), "functions", "does not support"),
        (json!({"function_call": "auto"}), "function_call", "does not support"),
    ] {
        let error = server.chat(&body(fields)).error(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == param && message.contains(word) && message.contains("; "), "{error}");
    }
    for (path, fields, param) in [
        ("/v1/completions", json!({"prompt": "x", "tools": tools()}), "tools"),
        ("/tokenize", json!({"prompt": "x", "tools": tools()}), "tools"),
        ("/tokenize", json!({"messages": question("x"), "tools": [1]}), "tools[0]"),
        ("/v1/preview", json!({"messages": question("x"), "tools": [1]}), "tools[0]"),
    ] {
        assert_eq!(server.send("POST", path, "", &fields.to_string()).error(400)["param"], param, "{path}");
    }
    server.assert_still_answers();
}

#[test]
fn a_model_folder_without_a_template_for_tools_is_named() {
    let server = Server::start(&[]);
    let folder = tempfile::TempDir::new().unwrap();
    let model = folder.path().join("plain");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(&server.model).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let template = "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}\n{% endfor %}";
    let write = |file: &str, template: Option<&str>| {
        let path = model.join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["chat_template"] = json!(template);
        std::fs::write(&path, json.to_string()).unwrap();
    };
    write("chat_template.json", Some(template));
    write("tokenizer_config.json", None);
    drop(server);
    let server = Server::start_with(folder, model.clone(), &[]);
    let error = server.chat(&body(json!({}))).error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("chat_template.json: has no chat template that mentions `tools`"), "{message}");
    server.assert_still_answers();
}
