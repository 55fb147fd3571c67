//! `reel serve` answers OpenAI's Responses API. The model's weights are random, so its calls and its JSON are forced by
//! `tool_choice` or by a grammar of the request.

#[path = "support/server.rs"]
mod server;
mod support;

use serde_json::{Value, json};
use server::{Reply, Server, question};

/// A grey image of 28 x 28 pixels.
const IMAGE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAFElEQVR42mM4gQcwjEqOSo5KwgAAnxFkn8CmS3YAAAAASUVORK5CYII=";

/// The bodies of requests of foreign clients, one a line, with the name and the version of the client.
const CLIENTS: &str = include_str!("foreign_clients/responses.jsonl");

fn post(server: &Server, body: &Value) -> Reply {
    server.send("POST", "/v1/responses", "", &body.to_string())
}

fn tool() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    json!({"type": "function", "name": "get_weather", "parameters": parameters, "strict": true})
}

/// Returns a response without its ids and times, which differ from answer to answer.
fn without_ids(response: &Value) -> Value {
    let mut response = response.clone();
    for item in response["output"].as_array_mut().unwrap() {
        for (key, start) in [("id", ["msg_", "fc_", "rs_"]), ("call_id", ["call_"; 3])] {
            if let Some(id) = item.get(key) {
                assert!(start.iter().any(|start| id.as_str().unwrap().starts_with(start)), "{item}");
                item[key] = Value::Null;
            }
        }
    }
    assert!(response["id"].as_str().unwrap().starts_with("resp_"), "{response}");
    for key in ["id", "created_at", "completed_at"] {
        response[key] = Value::Null;
    }
    // The second answer finds the prompt in the prefix cache.
    response["usage"]["input_tokens_details"] = Value::Null;
    response
}

/// Returns the texts, or the arguments, that the pieces of a streamed answer make up, one for each item.
fn joined_deltas(events: &[Value]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for event in events {
        match event["type"].as_str().unwrap() {
            "response.output_item.added" => texts.push(String::new()),
            name if name.ends_with(".delta") => {
                texts[event["output_index"].as_u64().unwrap() as usize] += event["delta"].as_str().unwrap();
            }
            _ => {}
        }
    }
    texts
}

/// Sends a request twice, once streamed. Checks that both answers are equal, and returns the first.
#[track_caller]
fn ask(server: &Server, mut body: Value) -> Value {
    body["seed"] = json!(5);
    let whole = post(server, &body).ok();
    body["stream"] = json!(true);
    let reply = post(server, &body);
    let events: Vec<Value> = reply.events().iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let names: Vec<&str> = reply.body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, events.iter().map(|event| event["type"].as_str().unwrap()).collect::<Vec<_>>());
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    assert!(events.iter().enumerate().all(|(i, event)| event["sequence_number"] == i), "{events:?}");
    let last = &events.last().unwrap()["response"];
    assert_eq!(names.last().unwrap().strip_prefix("response."), last["status"].as_str());
    assert_eq!(without_ids(last), without_ids(&whole), "{body}");
    let text = |item: &Value| {
        let text = if item["type"] == "function_call" { &item["arguments"] } else { &item["content"][0]["text"] };
        text.as_str().unwrap().to_string()
    };
    let texts: Vec<String> = last["output"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(joined_deltas(&events), texts);
    whole
}

/// Returns the text of a response with one message.
#[track_caller]
fn text(response: &Value) -> &str {
    let output = response["output"].as_array().unwrap();
    assert!(output.len() == 1 && output[0]["type"] == "message" && output[0]["role"] == "assistant", "{response}");
    output[0]["content"][0]["text"].as_str().unwrap()
}

#[test]
fn an_answer_has_the_text_of_the_chat_answer() {
    let server = Server::start(&[]);
    let parts = json!([{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": IMAGE}]);
    let input = json!([{"role": "developer", "content": "Look."}, {"role": "user", "content": parts}]);
    let chat_parts =
        json!([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]);
    let settings = json!({"model": "tiny", "temperature": 0.9, "top_p": 0.8, "seed": 5});
    let with = |more: Value| {
        let mut body = settings.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let mut chats = Vec::new();
    for (instructions, system, input, user) in [
        (Value::Null, vec![], json!("Hi"), vec![("user", json!("Hi"))]),
        (
            json!("Be brief."),
            vec![("system", json!("Be brief."))],
            input,
            vec![("system", json!("Look.")), ("user", chat_parts)],
        ),
    ] {
        let messages: Value =
            [system, user].concat().iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        let chat = server
            .chat(&with(json!({"messages": messages, "max_tokens": 9, "logprobs": true, "top_logprobs": 1})))
            .ok();
        let body = json!({"input": input, "instructions": instructions, "max_output_tokens": 9, "top_logprobs": 1,
            "metadata": {"topic": "x"}, "include": ["message.output_text.logprobs", "reasoning.encrypted_content"]});
        let response = ask(&server, with(body));
        let choice = &chat["choices"][0];
        assert_eq!(text(&response), choice["message"]["content"].as_str().unwrap());
        assert_eq!(response["output"][0]["content"][0]["logprobs"], choice["logprobs"]["content"]);
        let (status, reason) = match choice["finish_reason"] == "length" {
            true => ("incomplete", json!({"reason": "max_output_tokens"})),
            false => ("completed", Value::Null),
        };
        assert_eq!((&response["status"], &response["incomplete_details"]), (&json!(status), &reason));
        let (usage, wanted) = (&response["usage"], &chat["usage"]);
        assert_eq!(usage["input_tokens"], wanted["prompt_tokens"]);
        assert_eq!(usage["output_tokens"], wanted["completion_tokens"]);
        assert_eq!(usage["total_tokens"], wanted["total_tokens"]);
        assert_eq!((&response["temperature"], &response["top_p"]), (&json!(0.9), &json!(0.8)));
        assert_eq!((&response["instructions"], &response["metadata"]["topic"]), (&instructions, &json!("x")));
        assert_eq!(
            (&response["object"], &response["model"], &response["store"]),
            (&json!("response"), &json!("tiny"), &json!(false))
        );
        chats.push(chat);
    }
    assert_ne!(chats[0]["usage"], chats[1]["usage"]);
}

#[test]
fn forms_and_calls_are_items_that_can_be_sent_back() {
    let server = Server::start(&[]);
    let format = json!({"type": "json_schema", "name": "size", "strict": true, "schema": {"enum": ["small", "large"]}});
    let response = ask(&server, json!({"input": "How large?", "text": {"format": format}}));
    assert!(["\"small\"", "\"large\""].contains(&text(&response)), "{response}");
    assert_eq!((&response["status"], &response["text"]["format"]), (&json!("completed"), &format));

    let forced =
        json!({"input": "Weather?", "tools": [tool()], "tool_choice": "required", "parallel_tool_calls": false});
    let response = ask(&server, forced);
    let [call] = &response["output"].as_array().unwrap()[..] else { panic!("{response}") };
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (&json!("function_call"), &json!("get_weather"), &json!("completed"))
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{call}");
    for choice in [
        json!({"type": "function", "name": "get_weather"}),
        json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}),
    ] {
        let other = json!({"type": "function", "name": "stop"});
        let body = json!({"input": "x", "tools": [other, tool()], "tool_choice": choice, "parallel_tool_calls": false});
        assert_eq!(ask(&server, body)["output"][0]["name"], "get_weather", "{choice}");
    }

    // The grammar makes the model write text around two calls, as a trained model may.
    let block = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"é\"}}\n</tool_call>";
    let written = format!("<think>So.</think>I look.\n{block}\n{block}\nWait.");
    let mut tool = tool();
    tool["strict"] = json!(false);
    let body = json!({"input": question("Weather?"), "tools": [tool], "structured_outputs": {"choice": [written]},
        "include_reasoning": true});
    let response = ask(&server, body);
    let output = response["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call", "message"]);
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "So."}]));
    let texts = [&output[1]["content"][0]["text"], &output[4]["content"][0]["text"]];
    assert_eq!((texts, &output[2]["arguments"]), ([&json!("I look."), &json!("\nWait.")], &json!("{\"city\": \"é\"}")));
    let reasoning_tokens = response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(reasoning_tokens > 0 && reasoning_tokens < response["usage"]["output_tokens"].as_u64().unwrap());

    // The answer, and the results of its calls, are the input of the next request; its prompt is that of the chat
    // request with the same conversation.
    let result = |item: &Value| json!({"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"});
    let mut input = question("Weather?").as_array().unwrap().clone();
    input.extend(output.clone());
    input.extend(output.iter().filter(|item| item["type"] == "function_call").map(result));
    let next = ask(&server, json!({"input": input, "tools": [tool], "max_output_tokens": 4}));
    let call = |item: &Value| {
        let function = json!({"name": item["name"], "arguments": item["arguments"]});
        json!({"id": item["call_id"], "type": "function", "function": function})
    };
    let tool_message = |item: &Value| json!({"role": "tool", "tool_call_id": item["call_id"], "content": "sunny"});
    let messages = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.\nWait.", "tool_calls": [call(&output[2]), call(&output[3])]},
        tool_message(&output[2]), tool_message(&output[3]),
    ]);
    let function = json!({"name": tool["name"], "parameters": tool["parameters"], "strict": false});
    let body = json!({"messages": messages, "tools": [{"type": "function", "function": function}], "max_tokens": 4});
    assert_eq!(next["usage"]["input_tokens"], server.chat(&body).ok()["usage"]["prompt_tokens"]);
}

#[test]
fn the_usage_counts_prompt_tokens_of_the_prefix_cache() {
    let server = Server::start(&[]);
    let body = json!({"input": "x ".repeat(300), "max_output_tokens": 2});
    let usage = || post(&server, &body).ok()["usage"].clone();
    let cached = |usage: &Value| usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let (first, second) = (usage(), usage());
    assert_eq!(cached(&first), 0);
    assert!(cached(&second) > 200 && cached(&second) < second["input_tokens"].as_u64().unwrap(), "{second}");
}

#[test]
fn errors_name_the_fields_of_the_request() {
    let server = Server::start(&[]);
    let reference = json!([{"type": "item_reference", "id": "msg_1"}]);
    let file = json!([{"type": "input_file", "file_id": "f"}]);
    let file = json!([{"role": "user", "content": "x"}, {"role": "user", "content": file}]);
    let result =
        json!([{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": "x"}]);
    for (more, param, words) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id", "send the whole conversation in `input`"),
        (json!({"input": reference}), "input[0]", "refers to a stored item"),
        (json!({"input": file}), "input", "request: input[1], part 0: has the type `input_file`"),
        (json!({"input": result}), "input", "request: input[1]: has the call_id \"c\", but no tool call"),
        (json!({"input": []}), "input", "request: input: has no messages"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]", "has the type \"web_search\", but this server"),
        (
            json!({"tools": [{"type": "function", "name": "a b"}]}),
            "tools[0].name",
            "request: tools[0].name: is \"a b\"",
        ),
        (json!({"text": {"format": {"type": "yaml"}}}), "text.format", "request: text.format: has the type `yaml`"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format", "has no `schema`"),
        (json!({"max_output_tokens": 0}), "max_output_tokens", "request: max_output_tokens: is 0; give 1 or more"),
        (json!({"max_output_tokens": 1u64 << 40}), "input", "or lower max_output_tokens to "),
        (json!({"truncation": "auto"}), "truncation", "is not supported"),
        (json!({"temperature": -1}), "temperature", "request: temperature: is -1"),
        (json!({"top_logprobs": 21}), "top_logprobs", "give 0 to 20"),
    ] {
        for stream in [false, true] {
            let mut body = json!({"input": "x", "stream": stream});
            more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
            let e = post(&server, &body).error(400);
            assert_eq!(e["param"], param, "{more}: {e}");
            assert!(e["message"].as_str().unwrap().contains(words), "{more}: {e}");
        }
    }
    for method in ["GET", "DELETE"] {
        let e = server.send(method, "/v1/responses/resp_1", "", "").error(404);
        assert!(e["message"].as_str().unwrap().contains("this server stores no responses"), "{e}");
    }
    server.assert_still_answers();
}

#[test]
fn keys_guard_the_path_and_metrics_count_its_tokens() {
    let server = Server::start(&["--api-key", "KEY"]);
    let body = json!({"input": "x", "max_output_tokens": 2}).to_string();
    server.send("POST", "/v1/responses", "", &body).error(401);
    server.send("GET", "/v1/responses/resp_1", "", "").error(401);
    server.send("POST", "/v1/responses", "Authorization: Bearer KEY\r\n", &body).ok();
    let metrics = server.send("GET", "/metrics", "", "").body;
    assert!(metrics.contains("vllm:generation_tokens_total{model_name=\"tiny\"} 2"), "{metrics}");
}

#[test]
fn requests_of_foreign_clients_are_answered() {
    let server = Server::start(&[]);
    for line in CLIENTS.lines() {
        let recorded: Value = serde_json::from_str(line).unwrap();
        let mut body = recorded["body"].clone();
        body.as_object_mut().unwrap().remove("stream");
        let response = ask(&server, body.clone());
        let output = response["output"].as_array().unwrap();
        let kind = match &body["tool_choice"] {
            Value::Null => "message",
            choice if choice == "none" || choice == "auto" => "message",
            _ => "function_call",
        };
        assert!(output.iter().all(|item| item["type"] == kind), "{}: {response}", recorded["client"]);
    }
}
