//! Tests of rows: which layouts are read, what is learned of them, and which rows are refused.

use super::*;

impl DataRow {
    /// Returns the messages that supervised fine-tuning learns from. A row of plain texts gives two messages, one per
    /// text.
    fn supervised_messages(&self, recipe: Recipe) -> Result<Vec<Value>, Diagnostic> {
        Ok(match self.to_supervised_row(recipe)? {
            SupervisedRow::Chat { messages, .. } => messages,
            SupervisedRow::Text { prompt, completion } => vec![json!(prompt), json!(completion)],
        })
    }
}
use proptest::prelude::*;

/// Arbitrary JSON values, a few levels deep.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let object = prop::collection::btree_map("role|content|type|text|a", inner.clone(), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|map| Value::Object(map.into_iter().collect()))
        ]
    })
}

proptest! {
    /// If one field of a row holds an arbitrary JSON value, the row is either accepted with its texts unchanged, or
    /// refused with an error that names this field.
    #[test]
    fn any_value_in_any_field_is_read_or_named(
        field in prop::sample::select(vec!["problem", "data_type", "problem_type", "options", "process", "solution", "path", "messages", "prompt"]),
        value in anything(),
    ) {
        // A field that is null counts as absent.
        prop_assume!(!(value.is_null() && matches!(field, "messages" | "prompt" | "problem")));
        let row = problem(|f| {
            if matches!(field, "messages" | "prompt") {
                f.shift_remove("path"); // a file that such a row would not read
            }
            f.insert(field.into(), value.clone());
        });
        let turns = row.and_then(|row| row.supervised_messages(Recipe::VideoR1));
        match turns {
            Ok(turns) if field == "messages" => prop_assert_eq!(Value::from(turns), value),
            Ok(turns) => prop_assert!(turns.len() == 3 && ["options", "process"].contains(&field) || value.is_string()),
            Err(fault) if field == "prompt" => prop_assert!(fault.what.contains("answer") || fault.location.starts_with("prompt")),
            Err(fault) => prop_assert!(fault.location.starts_with(field) && !fault.help.is_empty(), "{:?}", fault),
        }
    }
}

fn problem(change: impl FnOnce(&mut Map<String, Value>)) -> Result<DataRow, Diagnostic> {
    let row = json!({"problem_id": 1, "problem": "Which?", "data_type": "video", "problem_type": "multiple choice",
        "options": ["A. x", "B. y"], "process": "<think>t</think>", "solution": "<answer>A</answer>", "path": "./v/a.mp4"});
    let Value::Object(mut fields) = row else { unreachable!() };
    change(&mut fields);
    DataRow::parse(Value::Object(fields))
}

#[test]
fn problem_becomes_three_messages() {
    let turns = problem(|_| ()).unwrap().supervised_messages(Recipe::Paper).unwrap();
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[0]["role"], "system");
    assert_eq!(turns[1]["content"][0], json!({"type": "video", "video": "v/a.mp4"}));
    let asked = turns[1]["content"][1]["text"].as_str().unwrap();
    assert!(
        asked.starts_with("Which?\nPlease") && asked.ends_with("D, etc.) within the <answer> </answer> tags."),
        "{asked}"
    );
    assert_eq!(turns[2]["content"][0]["text"], "<think>t</think>\n<answer>A</answer>");
}

#[test]
fn video_r1_has_its_own_system_message_and_lists_options() {
    let turns = problem(|_| ()).unwrap().supervised_messages(Recipe::VideoR1).unwrap();
    assert_eq!(turns[0]["content"][0]["text"], "You are a helpful assistant");
    assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?Options:\nA. x\nB. y\n\nPlease"));
    let numerical = problem(|f| {
        f.insert("problem_type".into(), "numerical".into());
    });
    let turns = numerical.unwrap().supervised_messages(Recipe::VideoR1).unwrap();
    assert!(turns[1]["content"][1]["text"].as_str().unwrap().starts_with("Which?\nPlease"));
}

#[test]
fn text_problems_need_no_path() {
    let row = problem(|f| {
        f.insert("data_type".into(), "text".into());
        f.shift_remove("path");
    });
    let turns = row.unwrap().supervised_messages(Recipe::Videorft).unwrap();
    assert_eq!(turns[1]["content"].as_array().unwrap().len(), 1);
}

#[test]
fn media_paths_lose_the_leading_dot() {
    for (path, want) in [
        ("./a/b.mp4", "a/b.mp4"),
        (".//a.png", "a.png"),
        ("a.png", "a.png"),
        ("/abs/a.png", "/abs/a.png"),
        ("../a.png", "../a.png"),
        ("https://host/./a.png", "https://host/./a.png"),
    ] {
        assert_eq!(media_path(path), want);
    }
}

#[test]
fn names_missing_and_wrong_fields() {
    for field in ["data_type", "problem_type", "solution", "path"] {
        let gone = problem(|f| drop(f.shift_remove(field))).unwrap_err();
        assert_eq!((gone.location.as_str(), gone.what.as_str()), (field, "is missing"));
        let wrong = problem(|f| drop(f.insert(field.into(), json!(3)))).unwrap_err();
        assert_eq!((wrong.location.as_str(), wrong.what.as_str()), (field, "is not a string"));
    }
    assert_eq!(problem(|f| drop(f.insert("data_type".into(), json!("audio")))).unwrap_err().what, "is `audio`");
    assert!(
        problem(|f| drop(f.insert("problem_type".into(), json!("essay"))))
            .unwrap_err()
            .help
            .contains("multiple choice, numerical")
    );
    assert_eq!(problem(|f| drop(f.insert("options".into(), json!([1])))).unwrap_err().location, "options");
    let row = problem(|f| drop(f.shift_remove("process"))).unwrap();
    assert_eq!(row.supervised_messages(Recipe::Paper).unwrap_err().location, "process");
}

#[test]
fn sharegpt_turns_become_messages() {
    let row = |row: Value| DataRow::parse(row)?.supervised_messages(Recipe::Paper);
    let turns = json!([{"from": "human", "value": "<video>Where?"}, {"from": "gpt", "value": "Here."}]);
    let with = json!({"conversations": turns, "videos": ["a.mp4"], "system": "Be brief.", "tools": null});
    assert_eq!(
        Value::from(row(with).unwrap()),
        json!([{"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": "Here."}])
    );
    for (bad, location) in [
        (json!({"conversations": turns}), "conversations[0].content"),
        (json!({"conversations": turns, "videos": ["a.mp4", "b.mp4"]}), "videos"),
        (json!({"conversations": []}), "conversations"),
        (json!({"conversations": [{"value": "x"}]}), "conversations[0].from"),
        (json!({"conversations": [{"from": "observation", "value": "x"}]}), "conversations[0].from"),
        (json!({"conversations": [{"from": "human", "value": 3}]}), "conversations[0].value"),
        (json!({"conversations": [{"from": "human", "value": "x"}], "system": 3}), "system"),
    ] {
        assert_eq!(row(bad.clone()).unwrap_err().location, location, "{bad}");
    }
}

/// The columns `system` and `tools` beside a chat are either used or refused, never ignored silently.
#[test]
fn columns_of_a_chat_are_used_or_refused() {
    let (ask, answer) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "!"}));
    let system = json!({"role": "system", "content": "Be brief."});
    let row = |row: Value| DataRow::parse(row)?.supervised_messages(Recipe::Paper).map(Value::from);
    let tools_of = |row: Value| match DataRow::parse(row).unwrap().to_supervised_row(Recipe::Paper).unwrap() {
        SupervisedRow::Chat { tools, .. } => tools,
        SupervisedRow::Text { .. } => panic!("a text"),
    };
    let with = |chat: Value, more: (&str, Value)| json!({"messages": chat, more.0: more.1});
    let whole = json!([system, ask, answer]);
    for chat in [json!([ask, answer]), whole.clone()] {
        assert_eq!(row(with(chat, ("system", json!("Be brief.")))).unwrap(), whole);
    }
    for none in [json!(null), json!("")] {
        assert_eq!(row(with(json!([ask, answer]), ("system", none))).unwrap(), json!([ask, answer]));
    }
    let prompt = DataRow::parse(json!({"prompt": [ask], "system": "Be brief.", "solution": "4"})).unwrap();
    assert_eq!(prompt.prompt_and_columns(Recipe::Paper).unwrap().0.into_json(), json!([system, ask]));
    for none in [json!(null), json!([]), json!("[]"), json!("")] {
        assert_eq!(tools_of(with(json!([ask, answer]), ("tools", none.clone()))), Value::Null, "{none}");
    }
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for given in [tools.clone(), json!(tools.to_string())] {
        let chat = with(json!([ask, answer]), ("tools", given));
        assert_eq!(tools_of(chat.clone()), tools);
        let parsed = DataRow::parse(chat).unwrap();
        assert_eq!(parsed.prompt_and_columns(Recipe::Paper).unwrap_err().location, "tools");
        assert_eq!(parsed.generation_prompt(Recipe::Paper, QuestionTemplate::Training).unwrap_err().location, "tools");
    }
    for (bad, location) in [
        (with(whole, ("system", json!("Be long."))), "system"),
        (with(json!([ask, answer]), ("system", json!(3))), "system"),
    ] {
        assert_eq!(row(bad.clone()).unwrap_err().location, location, "{bad}");
    }
}

#[test]
fn prompts_get_their_media_and_keep_their_columns() {
    let ask = |content: &str| json!([{"role": "user", "content": content}]);
    let row = json!({"prompt": ask("<image>?"), "images": ["a.png"], "solution": "<answer>b</answer>"});
    let (content, columns) = DataRow::parse(row).unwrap().prompt_and_columns(Recipe::Paper).unwrap();
    assert_eq!(content.into_json()[0]["content"][0], json!({"type": "image", "image": "a.png"}));
    assert_eq!(columns.keys().collect::<Vec<_>>(), ["images", "solution"]);
    for (bad, location) in [
        (json!({"prompt": ask("<image>?")}), "prompt[0].content"),
        (json!({"prompt": ask("?"), "images": ["a.png"], "videos": ["a.mp4"]}), "images"),
        (json!({"prompt": "<image>?", "images": ["a.png"]}), "prompt"),
        (json!({"prompt": ask("?"), "video_path": "a.mp4"}), "video_path"),
    ] {
        assert_eq!(DataRow::parse(bad.clone()).unwrap_err().location, location, "{bad}");
    }
    assert_eq!(problem(|f| drop(f.insert("videos".into(), json!(["b.mp4"])))).unwrap_err().location, "videos");
}

#[test]
fn generation_leaves_out_the_answer_at_the_end_of_a_chat() {
    let prompt = |row: Value| {
        DataRow::parse(row)?.generation_prompt(Recipe::Paper, QuestionTemplate::Evaluation).map(|p| p.into_json())
    };
    let (ask, answer) = (json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": "!"}));
    assert_eq!(prompt(json!({"messages": [ask, answer]})).unwrap(), json!([ask]));
    assert_eq!(prompt(json!({"messages": [ask, answer, ask]})).unwrap(), json!([ask, answer, ask]));
    assert_eq!(prompt(json!({"prompt": [ask], "solution": "4"})).unwrap(), json!([ask]));
    assert_eq!(prompt(json!({"prompt": "a text"})).unwrap(), json!("a text"));
    assert!(prompt(json!({"messages": [answer]})).unwrap_err().what.contains("only answers of the assistant"));
}

#[test]
fn checks_roles_and_contents_of_messages() {
    let chat = |messages: Value| DataRow::parse(json!({ "messages": messages }));
    let good =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]);
    assert_eq!(chat(good.clone()).unwrap().supervised_messages(Recipe::Paper).unwrap(), *good.as_array().unwrap());
    assert_eq!(chat(json!("x")).unwrap_err().location, "messages");
    assert_eq!(chat(json!([])).unwrap_err().what, "is empty");
    assert_eq!(chat(json!([{"content": "x"}])).unwrap_err().location, "messages[0].role");
    assert_eq!(
        chat(json!([{"role": "user", "content": "x"}, {"role": "user"}])).unwrap_err().location,
        "messages[1].content"
    );
    let prompt = DataRow::parse(json!({"prompt": [{"role": "user", "content": "x"}], "solution": "4"})).unwrap();
    assert!(prompt.supervised_messages(Recipe::Paper).unwrap_err().what.contains("without an answer"));
}

fn row(row: Value) -> Result<SupervisedRow, Diagnostic> {
    DataRow::parse(row)?.to_supervised_row(Recipe::Paper)
}

fn chat_of(messages: Value, learned: &[bool]) -> SupervisedRow {
    let (messages, learned) = (messages.as_array().cloned().unwrap(), learned.to_vec());
    SupervisedRow::Chat { messages, learned, tools: Value::Null }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn answer(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

/// Each row in a layout of TRL, ms-swift or LLaMA-Factory becomes the chat that this program trains on.
#[test]
fn rows_of_other_programs_become_chats() {
    let image =
        json!({"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]});
    let history = json!([user("q"), answer("a"), user("?"), answer("!")]);
    for (given, messages, learned) in [
        (json!({"prompt": [user("?")], "completion": [answer("!")]}), json!([user("?"), answer("!")]), &[true][..]),
        // Only the completion counts in the loss.
        (
            json!({"prompt": [user("q"), answer("a"), user("?")], "completion": [answer("!")]}),
            history.clone(),
            &[false, true],
        ),
        (
            json!({"prompt": [user("?")], "completion": [answer("!")], "images": ["a.png"]}),
            json!([image, answer("!")]),
            &[true],
        ),
        (json!({"query": "?", "response": "!"}), json!([user("?"), answer("!")]), &[true]),
        (json!({"query": "?", "response": "!", "history": [["q", "a"]]}), history.clone(), &[true, true]),
        (json!({"query": "<image>?", "response": "!", "images": "a.png"}), json!([image, answer("!")]), &[true]),
        (
            json!({"instruction": "Add.", "input": "2, 2", "output": "4", "system": "s", "history": null}),
            json!([{"role": "system", "content": "s"}, user("Add.\n2, 2"), answer("4")]),
            &[true],
        ),
        (
            json!({"instruction": "<image>?", "input": "", "output": "!", "images": ["a.png"], "messages": null}),
            json!([image, answer("!")]),
            &[true],
        ),
        (json!({"query": "?"}), json!([user("?")]), &[]),
        (json!({"messages": [user("?")], "solution": "!"}), json!([user("?")]), &[]),
    ] {
        assert_eq!(row(given.clone()), Ok(chat_of(messages, learned)), "{given}");
    }
    let text = SupervisedRow::Text { prompt: "2 + 2 =".into(), completion: " 4".into() };
    assert_eq!(row(json!({"prompt": "2 + 2 =", "completion": " 4"})), Ok(text));
}

#[test]
fn answers_without_loss_are_not_learned() {
    let with = |key: &str, value: Value| {
        let mut first = answer("a");
        first[key] = value;
        json!({"messages": [user("q"), first, user("?"), answer("!")]})
    };
    for (key, value, first) in [
        ("loss", json!(false), false),
        ("loss", json!(true), true),
        ("loss", json!(null), true),
        ("weight", json!(0), false),
        ("weight", json!(1.0), true),
    ] {
        let Ok(SupervisedRow::Chat { learned, .. }) = row(with(key, value.clone())) else { panic!("{key} {value}") };
        assert_eq!(learned, [first, true], "{key} {value}");
    }
    assert_eq!(row(with("weight", json!(0.5))).unwrap_err().location, "messages[1].weight");
}

/// A GRPO prompt may be a chat without a final answer, or a row of EasyR1; a chat with an answer is refused.
#[test]
fn prompts_may_be_chats_without_an_answer() {
    let prompt = |row: Value| DataRow::parse(row)?.prompt_and_columns(Recipe::Paper);
    let (content, columns) = prompt(json!({"messages": [user("?")], "solution": "4"})).unwrap();
    assert_eq!((content.into_json(), Value::Object(columns)), (json!([user("?")]), json!({"solution": "4"})));
    let images = json!(["data:image/png;base64,iVBO"]);
    let (content, columns) = prompt(json!({"problem": "<image>?", "answer": "3", "images": images})).unwrap();
    assert_eq!(content.into_json()[0]["content"][0], json!({"type": "image", "image": images[0]}));
    assert_eq!(columns["answer"], "3");
    assert_eq!(prompt(json!({"instruction": "?", "answer": "3"})).unwrap().0.into_json(), json!([user("?")]));
    // VLM-R1's rows: the first message is the problem, the second one the solution.
    let turns =
        |answer: Value| json!([{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": answer}]);
    let vlm_r1 = |answer, name: &str, value| json!({"conversations": turns(answer), "image": "a.png", name: value});
    let values = [json!("<answer> 3 </answer>"), json!(" B\n"), json!(4), json!(2.50)];
    for (value, want) in values.into_iter().zip(["3", "B", "4", "2.5"]) {
        let (content, columns) = prompt(vlm_r1(value, "id", json!(1))).unwrap();
        let asked = json!([{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many?"}]);
        assert_eq!(content.into_json(), json!([{"role": "user", "content": asked}]));
        let got = json!([columns["solution"], columns["problem"]]);
        assert_eq!(got, json!([format!("<answer> {want} </answer>"), "How many?"]));
    }
    let several = [turns(json!("!")), json!([{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}])];
    let several: Vec<Value> = several.iter().flat_map(|turns| turns.as_array().cloned().unwrap()).collect();
    for (given, what) in [
        (json!({"conversations": several, "image": "a.png"}), "ends with an answer"),
        (vlm_r1(json!("!"), "solution", json!("?")), "differs from the answer"),
        (vlm_r1(json!("!"), "accu_reward_method", json!("map")), "is \"map\""),
        (json!({"messages": [user("?"), answer("!")]}), "ends with an answer"),
        (json!({"prompt": [user("?")], "completion": [answer("!")]}), "ends with an answer"),
        (json!({"prompt": "?", "completion": "!"}), "has a `completion`"),
        (json!({"query": "?", "response": "!"}), "ends with an answer"),
    ] {
        let error = prompt(given.clone()).unwrap_err();
        assert!(error.what.starts_with(what), "{given}: {error}");
    }
}

/// A row with a text that training would ignore is refused, with an error that names the text's field.
#[test]
fn rows_that_contradict_themselves_are_refused() {
    let chat = json!([user("?"), answer("!")]);
    let and = |name: &str, value: Value| json!({"messages": chat, name: value});
    for (given, location) in [
        (and("prompt", json!("another")), "prompt"),
        (and("prompt", json!([user("another")])), "prompt"),
        (and("conversations", json!([{"from": "human", "value": "another"}])), "conversations"),
        (and("completion", json!([answer("another")])), "completion"),
        (and("query", json!("another")), "query"),
        (and("instruction", json!("another")), "instruction"),
        (and("response", json!("another")), "response"),
        (and("output", json!("another")), "output"),
        (and("output", json!(4)), "output"),
        (and("history", json!([["q", "a"]])), "history"),
        (and("chat_template_kwargs", json!({"enable_thinking": false})), "chat_template_kwargs"),
        (json!({"instruction": "?", "output": "!", "response": "another"}), "response"),
        (json!({"query": "?", "response": "!", "output": "another"}), "output"),
        (json!({"messages": [user("q"), answer("a"), user("?")], "response": "!"}), "response"),
        (json!({"prompt": [user("?")], "solution": "7", "tools": [{"name": "f"}]}), "tools"),
        (json!({"prompt": "?", "solution": "7", "tools": [{"name": "f"}]}), "tools"),
        (json!({"prompt": [user("Find <bbox>")], "objects": {"bbox": [[1, 2, 3, 4]]}, "solution": "7"}), "objects"),
        (json!({"prompt": [user("?")], "query": "another", "solution": "7"}), "query"),
        (json!({"prompt": "?", "query": "another", "solution": "7"}), "query"),
        (json!({"problem": "x", "answer": "7", "tools": [{"name": "f"}]}), "tools"),
        (json!({"problem": "x", "answer": "7", "history": [["q", "a"]]}), "history"),
        (json!({"problem": "x", "data_type": "text", "problem_type": "OCR", "solution": "y", "tools": "f"}), "tools"),
        (json!({"problem": "x", "data_type": "text", "problem_type": "OCR", "solution": "y", "system": "s"}), "system"),
        (json!({"problem": "x", "problem_type": "multiple choice", "options": ["A. y"], "answer": "A"}), "data_type"),
        (json!({"prompt": [user("?")], "completion": "!"}), "completion"),
        (json!({"prompt": "?", "completion": [answer("!")]}), "completion"),
        (json!({"prompt": "?", "completion": "!", "system": "s"}), "system"),
        (json!({"prompt": "?", "completion": "!", "images": ["a.png"]}), "prompt"),
        (json!({"prompt": "?", "completion": "!", "query": "another"}), "query"),
        (json!({"query": "?", "response": ["!"]}), "response"),
        (json!({"query": "?", "response": "!", "history": [["q"]]}), "history[0]"),
        (json!({"instruction": "", "output": "!"}), "instruction"),
        (json!({"instruction": "?", "input": 3, "output": "!"}), "input"),
        (json!({"instruction": "?", "output": "!", "audios": ["a.wav"]}), "audios"),
        (json!({"query": "Find <bbox>", "response": "!", "objects": {"bbox": [[1, 2, 3, 4]]}}), "objects"),
        // The messages already name another image file than the column `images`.
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}], "images": ["a.png"]}),
            "images",
        ),
    ] {
        assert_eq!(row(given.clone()).map_err(|e| e.location), Err(location.to_string()), "{given}");
    }
    // Columns that only repeat the chat are accepted, because public data sets have them.
    for (name, value) in [
        ("prompt", json!("?")),
        ("prompt", json!([user("?")])),
        ("prompt", json!("<image>\n?")),
        ("instruction", json!("?")),
        ("response", json!("!")),
        ("history", json!([["?", "!"]])),
        ("history", json!([])),
        ("conversations", json!([{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}])),
        ("chat_template_kwargs", json!("{}")),
    ] {
        assert!(row(and(name, value.clone())).is_ok(), "{name} {value}");
    }
    // A model's prediction does not count as the answer of its row.
    let mut predicted = and("output", json!("another"));
    predicted["generation"] = json!({"seed": 1});
    assert!(row(predicted).is_ok());
    // Rewards may read the answer of a row whose messages end with a question.
    for given in [
        json!({"prompt": [user("?")], "response": "!", "output": "another"}),
        json!({"messages": [user("?")], "response": "!"}),
        json!({"problem": "?", "response": "!"}),
    ] {
        assert!(DataRow::parse(given.clone()).and_then(|row| row.prompt_and_columns(Recipe::Paper)).is_ok(), "{given}");
    }
}

/// OpenAI's rows for fine-tuning have messages with tool calls and without a text.
#[test]
fn a_message_with_tool_calls_needs_no_text() {
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for content in [json!(null), json!("")] {
        let calls = json!({"role": "assistant", "content": content, "tool_calls": call});
        assert!(row(json!({"messages": [user("?"), calls]})).is_ok(), "{content}");
    }
    let without = json!({"messages": [user("?"), {"role": "assistant", "content": null, "tool_calls": []}]});
    assert_eq!(row(without).unwrap_err().location, "messages[1].content");
}

/// EasyR1's rows may have a `problem_type` too, so this field alone does not make a row one of VideoRFT.
#[test]
fn a_problem_type_alone_does_not_make_a_row_of_videorft() {
    let given = json!({"problem": "<image>?", "images": ["a.png"], "answer": "7", "problem_type": "numerical"});
    let (content, columns) = DataRow::parse(given).unwrap().prompt_and_columns(Recipe::Paper).unwrap();
    assert_eq!(content.into_json()[0]["content"][0], json!({"type": "image", "image": "a.png"}));
    assert_eq!((&columns["answer"], &columns["problem_type"]), (&json!("7"), &json!("numerical")));
}

#[test]
fn json_texts_are_read_and_parts_as_text_are_refused() {
    let chat = json!([user("?"), answer("!")]);
    let messages: Vec<String> = chat.as_array().unwrap().iter().map(Value::to_string).collect();
    for given in [
        json!({"messages": chat.to_string()}),
        json!({"messages": messages}),
        json!({"prompt": json!([chat[0]]).to_string(), "completion": json!([chat[1]]).to_string()}),
    ] {
        assert_eq!(row(given.clone()), Ok(chat_of(chat.clone(), &[true])), "{given}");
    }
    let marked = json!({"messages": [user("<image>?"), answer("!")], "images": "[\"a.png\"]"});
    assert!(row(marked).is_ok());
    let parts = json!([{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]).to_string();
    for (given, location) in [
        (json!({"messages": [user(&parts), answer("!")]}), "messages[0].content"),
        (json!({"prompt": [user(&parts)], "completion": [answer("!")]}), "prompt[0].content"),
        (
            json!({"conversations": [{"from": "human", "value": parts}, {"from": "gpt", "value": "!"}]}),
            "conversations[0].content",
        ),
        (json!({"messages": "not JSON"}), "messages"),
        (json!({"messages": [messages[0], "not JSON"]}), "messages[1]"),
    ] {
        assert_eq!(row(given.clone()).map_err(|e| e.location), Err(location.to_string()), "{given}");
    }
    // A content that is JSON but not a list of parts is trained on as text.
    let boxes = r#"[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]"#;
    assert!(row(json!({"messages": [user("Where?"), answer(boxes)]})).is_ok());
    assert!(row(json!({"prompt": "[1, 2", "completion": "]"})).is_ok());
}
