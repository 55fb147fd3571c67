//! Finds the tool calls in the text of an answer, piece by piece.
//!
//! ```text
//! Let me look.                                                     text
//! <tool_call>                                                      a block; white space before it is dropped
//! {"name": "get_weather", "arguments": {"city": "Paris"}}          head: `{"name": "get_weather", "arguments": {`
//! </tool_call>                                                     the arguments are passed on as they come
//! ```
//! A block becomes a call when its head is complete. The arguments are the text up to the bracket that closes them, as
//! the model wrote it. A block with its fields in another order becomes a call when it is complete and valid JSON.
//! Every other block stays text. The result does not depend on how the text is split into pieces, so a streamed answer
//! equals an unstreamed one.

use serde_json::{Map, Value};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// Maximum length of the JSON text of a function's name in a head. Valid names have at most 64 characters.
const MAX_NAME_BYTES: usize = 256;

/// A piece of an answer. The tool calls of an answer have the indices 0, 1, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerPiece {
    /// Text outside of calls.
    Text(String),
    /// Reasoning before the text, which [`super::reasoning`] finds.
    Reasoning(String),
    /// The beginning of a call of the function `name`.
    Call { index: usize, name: String },
    /// The next piece of the arguments of a call.
    Arguments { index: usize, text: String },
}

/// The state of the parser while it reads an answer's text.
#[derive(Debug)]
pub(crate) struct ToolCallParser {
    one_call: bool,
    state: State,
    /// White space after the last text or call. It becomes content if text follows, and is dropped if a call follows.
    space: String,
    /// Characters that were read in the present state but not passed on yet.
    held: String,
    /// The number of calls that have begun.
    calls: usize,
    has_text: bool,
    pieces: Vec<AnswerPiece>,
}

#[derive(Debug)]
enum State {
    /// The parser is outside of a block. `held` may be the beginning of the tag [`BEGIN`].
    Text,
    /// The parser is in the head of a block. `held` is the text of the block so far.
    Head(Head),
    /// The parser is in a block that is a JSON object without the usual head.
    OtherObject,
    /// In the arguments of a call.
    Arguments(Nesting),
    /// The parser is after the arguments, but still in the JSON object of the call. `held` is the text since the
    /// arguments.
    RestOfObject(Nesting),
    /// The parser is after the JSON object of a call. `held` may be the beginning of the tag [`END`].
    AfterObject,
}

impl ToolCallParser {
    /// Creates a parser for one answer. With `one_call`, calls after the first one are left out.
    pub(crate) fn new(one_call: bool) -> Self {
        let (space, held, pieces) = Default::default();
        Self { one_call, state: State::Text, space, held, calls: 0, has_text: false, pieces }
    }

    /// Whether a call has begun.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Whether the answer has no text and no call so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.calls == 0 && !self.has_text
    }

    /// Reads a piece of the text. Returns the pieces of the answer that are now complete enough to pass on.
    pub(crate) fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        text.chars().for_each(|c| self.read(c));
        std::mem::take(&mut self.pieces)
    }

    /// Ends the answer's text. Returns the pieces that were held back.
    pub(crate) fn finish(&mut self) -> Vec<AnswerPiece> {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text if !held.is_empty() => self.add_text(&held),
            // White space after the last call is dropped.
            State::Text if self.calls == 0 && !self.space.is_empty() => self.add_text(""),
            State::Head(_) => self.add_text(&format!("{BEGIN}{held}")),
            State::OtherObject => self.end_other_object(&held, ""),
            _ => {}
        }
        std::mem::take(&mut self.pieces)
    }

    fn read(&mut self, c: char) {
        match &mut self.state {
            State::Text => self.read_text(c),
            State::Head(head) => {
                self.held.push(c);
                match head.read(c) {
                    HeadStep::Incomplete => {}
                    HeadStep::Complete => {
                        let name = std::mem::take(&mut head.name);
                        self.held.clear();
                        self.begin_call(name);
                        self.add_arguments("{");
                        self.state = State::Arguments(Nesting::INSIDE);
                    }
                    HeadStep::Wrong if self.held.trim_start().starts_with('{') => {
                        self.state = State::OtherObject;
                        self.end_block_at_tag();
                    }
                    HeadStep::Wrong => {
                        // The block is not a JSON object. It has white space and one more character, which may begin
                        // another tag.
                        let block = std::mem::take(&mut self.held);
                        self.state = State::Text;
                        self.add_text(BEGIN);
                        block.chars().for_each(|c| self.read_text(c));
                    }
                }
            }
            State::OtherObject => {
                self.held.push(c);
                self.end_block_at_tag();
            }
            State::Arguments(nesting) => {
                let is_end = nesting.read(c);
                if is_end {
                    self.state = State::RestOfObject(Nesting::INSIDE);
                }
                self.add_arguments(c.encode_utf8(&mut [0; 4]));
            }
            State::RestOfObject(nesting) => {
                let is_end = nesting.read(c);
                self.held.push(c);
                // The end tag also ends an object without its last bracket.
                let is_tag = !nesting.in_string && self.held.ends_with(END);
                if is_end || is_tag {
                    self.state = if is_tag { State::Text } else { State::AfterObject };
                    self.held.clear();
                }
            }
            State::AfterObject => {
                self.held.push(c);
                if self.held == END {
                    self.held.clear();
                    self.state = State::Text;
                } else if !END.starts_with(&self.held) {
                    // Accepts one surplus bracket and a missing end tag, because some models write calls like this.
                    let rest = std::mem::take(&mut self.held);
                    if rest.chars().any(|c| !c.is_ascii_whitespace() && c != '}') {
                        self.state = State::Text;
                        rest.chars().for_each(|c| self.read_text(c));
                    }
                }
            }
        }
    }

    fn read_text(&mut self, c: char) {
        // `held` is not the beginning of a tag, because only the first character of a tag is `<`.
        if c == '<' && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.add_text(&held);
        }
        if c != '<' && self.held.is_empty() {
            match c.is_ascii_whitespace() {
                true => self.space.push(c),
                false => self.add_text(c.encode_utf8(&mut [0; 4])),
            }
            return;
        }
        self.held.push(c);
        if self.held == BEGIN {
            self.held.clear();
            self.state = State::Head(Head::default());
        } else if !BEGIN.starts_with(&self.held) {
            let last = self.held.pop();
            let held = std::mem::take(&mut self.held);
            self.add_text(&held);
            last.into_iter().for_each(|c| self.read_text(c));
        }
    }

    /// Ends a block without the usual head if `held` ends with the end tag.
    fn end_block_at_tag(&mut self) {
        if self.held.ends_with(END) {
            let block = std::mem::take(&mut self.held);
            self.state = State::Text;
            self.end_other_object(&block[..block.len() - END.len()], END);
        }
    }

    /// Passes on a complete block: as a tool call if the block can be parsed as one, otherwise as text.
    fn end_other_object(&mut self, block: &str, end: &str) {
        match parse_call(block) {
            Some((name, arguments)) => {
                self.begin_call(name);
                self.add_arguments(&Value::Object(arguments).to_string());
            }
            None => self.add_text(&format!("{BEGIN}{block}{end}")),
        }
    }

    fn begin_call(&mut self, name: String) {
        self.space.clear();
        self.calls += 1;
        if self.is_shown() {
            self.pieces.push(AnswerPiece::Call { index: self.calls - 1, name });
        }
    }

    fn add_arguments(&mut self, more: &str) {
        if !self.is_shown() {
            return;
        }
        let call = self.calls - 1;
        match self.pieces.last_mut() {
            Some(AnswerPiece::Arguments { text, .. }) => text.push_str(more),
            _ => self.pieces.push(AnswerPiece::Arguments { index: call, text: more.to_string() }),
        }
    }

    /// Whether the current call is passed on. With `one_call`, only the first call of an answer is passed on.
    fn is_shown(&self) -> bool {
        self.calls == 1 || !self.one_call
    }

    /// Passes on text together with the white space before it.
    fn add_text(&mut self, more: &str) {
        let space = std::mem::take(&mut self.space);
        // White space between calls and the first text after them is dropped.
        let space = if self.has_text || self.calls == 0 { &*space } else { "" };
        self.has_text = true;
        match self.pieces.last_mut() {
            Some(AnswerPiece::Text(text)) => {
                text.push_str(space);
                text.push_str(more);
            }
            _ => self.pieces.push(AnswerPiece::Text(format!("{space}{more}"))),
        }
    }
}

/// Parses a call from JSON with its fields in any order. Returns the name and the arguments. Some models write the
/// arguments as a string that contains JSON.
fn parse_call(block: &str) -> Option<(String, Map<String, Value>)> {
    let mut object: Map<String, Value> = serde_json::from_str(block).ok()?;
    let name = object.get("name")?.as_str().filter(|name| !name.is_empty())?.to_string();
    match object.swap_remove("arguments")? {
        Value::Object(arguments) => Some((name, arguments)),
        Value::String(text) => Some((name, serde_json::from_str(&text).ok()?)),
        _ => None,
    }
}

/// Tracks the nesting of brackets in a JSON text.
#[derive(Debug)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Behind an opening bracket.
    const INSIDE: Nesting = Nesting { depth: 1, in_string: false, is_escaped: false };

    /// Reads a character. Returns whether this character closes the outermost bracket.
    fn read(&mut self, c: char) -> bool {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' if self.in_string => self.is_escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}

/// Reads the head of a call: `{"name": NAME, "arguments": {`, with any white space between its parts.
#[derive(Debug, Default)]
struct Head {
    /// The index in [`HEAD`].
    part: usize,
    /// The part so far.
    read: String,
    is_escaped: bool,
    name: String,
}

/// The parts of a head. The empty part is replaced by the name.
const HEAD: [&str; 8] = ["{", "\"name\"", ":", "", ",", "\"arguments\"", ":", "{"];

enum HeadStep {
    Incomplete,
    Complete,
    Wrong,
}

impl Head {
    fn read(&mut self, c: char) -> HeadStep {
        if self.read.is_empty() && c.is_ascii_whitespace() {
            return HeadStep::Incomplete;
        }
        self.read.push(c);
        let part = HEAD[self.part];
        let is_complete = match part {
            "" => match self.read_name(c) {
                Some(is_complete) => is_complete,
                None => return HeadStep::Wrong,
            },
            part if !part.starts_with(&self.read) => return HeadStep::Wrong,
            part => part == self.read,
        };
        if is_complete {
            self.part += 1;
            self.read.clear();
        }
        if self.part == HEAD.len() { HeadStep::Complete } else { HeadStep::Incomplete }
    }

    /// Reads a character of the name. Returns whether this character ends the name, or `None` if the text is not a
    /// name.
    fn read_name(&mut self, c: char) -> Option<bool> {
        if self.read.len() == 1 {
            return (c == '"').then_some(false);
        }
        let was_escaped = self.is_escaped;
        self.is_escaped = c == '\\' && !was_escaped;
        if c == '"' && !was_escaped {
            self.name = serde_json::from_str(&self.read).ok().filter(|name: &String| !name.is_empty())?;
            return Some(true);
        }
        (self.read.len() <= MAX_NAME_BYTES).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The text of an answer, and its calls as (name, arguments).
    type Parsed = (String, Vec<(String, String)>);

    fn collect(pieces: Vec<AnswerPiece>) -> Parsed {
        let mut parsed = Parsed::default();
        for piece in pieces {
            match piece {
                AnswerPiece::Text(text) => parsed.0 += &text,
                AnswerPiece::Reasoning(text) => panic!("{text:?} is not found here"),
                AnswerPiece::Call { index, name } => {
                    assert_eq!(index, parsed.1.len());
                    parsed.1.push((name, String::new()));
                }
                AnswerPiece::Arguments { index, text } => {
                    assert!(!text.is_empty() && index + 1 == parsed.1.len());
                    parsed.1[index].1 += &text;
                }
            }
        }
        parsed
    }

    fn parse(text: &str, one_call: bool) -> Parsed {
        let mut parser = ToolCallParser::new(one_call);
        let mut pieces = parser.push(text);
        pieces.extend(parser.finish());
        collect(pieces)
    }

    fn block(content: &str) -> String {
        format!("<tool_call>\n{content}\n</tool_call>")
    }

    #[test]
    fn calls_and_text_are_told_apart() {
        let f = |arguments: &str| ("f".to_string(), arguments.to_string());
        let call = block(r#"{"name": "f", "arguments": {"a": 1}}"#);
        let other = block(r#"{"name": "f", "arguments": {"b": [{}, "</tool_call>}"]}}"#);
        let b = r#"{"b": [{}, "</tool_call>}"]}"#;
        for (text, content, calls) in [
            ("", "", vec![]),
            (" \n", " \n", vec![]),
            ("Hello <b> <tool_cal", "Hello <b> <tool_cal", vec![]),
            (&*call, "", vec![f(r#"{"a": 1}"#)]),
            (&format!("\n{call}\n"), "", vec![f(r#"{"a": 1}"#)]),
            (&format!(" Let me <<see. \n{call}\n{other}\n"), " Let me <<see.", vec![f(r#"{"a": 1}"#), f(b)]),
            // Any white space is allowed between the parts of a head.
            ("<tool_call>{\"name\":\"f\",\"arguments\":{ }}</tool_call>", "", vec![f("{ }")]),
            // The fields are in another order, there are more fields, or the arguments are a string.
            (&block(r#"{"arguments": {"a": 1}, "name": "f"}"#), "", vec![f(r#"{"a":1}"#)]),
            (&block(r#"{"name": "f", "arguments": {"a": 1}, "id": "}</tool_call>"}"#), "", vec![f(r#"{"a": 1}"#)]),
            (&block(r#"{"name": "f", "arguments": "{\"a\": 1}"}"#), "", vec![f(r#"{"a":1}"#)]),
            (r#"<tool_call>{"arguments": {}, "name": "f"}"#, "", vec![f("{}")]),
            // There are too many or too few brackets, or the end tag is missing.
            (&block(r#"{"name": "f", "arguments": {"a": 1}}}"#), "", vec![f(r#"{"a": 1}"#)]),
            (&format!("{}{call}", block(r#"{"name": "f", "arguments": {}"#)), "", vec![f("{}"), f(r#"{"a": 1}"#)]),
            (
                &format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {{}}}}\n{call}"),
                "",
                vec![f("{}"), f(r#"{"a": 1}"#)],
            ),
            // The answer was cut.
            (r#"x <tool_call> {"name": "f", "argum"#, r#"x <tool_call> {"name": "f", "argum"#, vec![]),
            (r#"x <tool_call> {"name": "f", "arguments": {"a": "b"#, "x", vec![f(r#"{"a": "b"#)]),
            (r#"x <tool_call> {"name": "f", "arguments": {}, "#, "x", vec![f("{}")]),
            ("x <tool_call> {\"name\": \"f\", \"arguments\": {}}\n</tool", "x", vec![f("{}")]),
        ] {
            assert_eq!(parse(text, false), (content.to_string(), calls), "{text:?}");
        }
        assert_eq!(parse(&format!("A\n{call}\nB \n{other}C"), false).0, "A\nBC");
        assert_eq!(parse(&format!("A {call} B {other} C"), true), ("A B C".into(), vec![f(r#"{"a": 1}"#)]));
    }

    #[test]
    fn blocks_that_are_no_calls_stay_text() {
        for content in [
            "",
            "text",
            "[1]",
            "{}",
            "{\"name\": 3}",
            "{\"name\": \"f\"}",
            "{\"name\": \"\", \"arguments\": {}}",
            "{\"name\": \"f\", \"arguments\": [1]}",
            "{\"name\": \"f\", \"arguments\": \"no JSON\"}",
            "{broken",
            "{\"name\": \"a\nb\"",
            "{\"name\": \"f\", \"x\": 1, \"arguments\": {}",
        ] {
            let text = format!("a {} z", block(content));
            assert_eq!(parse(&text, false), (text.clone(), vec![]), "{text:?}");
        }
        // A block that stays text may be followed by a call.
        let call = block(r#"{"name": "f", "arguments": {}}"#);
        let text = format!("write <tool_call> and <tool_call><tool_call>\n{{\"name\": x</tool_call> {call}");
        let (content, calls) = parse(&text, false);
        assert_eq!(calls, [("f".to_string(), "{}".to_string())]);
        assert_eq!(content, text.strip_suffix(&format!(" {call}")).unwrap());
        let long = format!("{{\"name\": \"{}", "x".repeat(100_000));
        assert_eq!(parse(&block(&long), false).0, block(&long));
    }

    /// A nested JSON value with the characters that the parser treats specially.
    fn value() -> impl Strategy<Value = Value> {
        let text = "([a-c<>/{}\\[\\]\"\\\\\n é]|<tool_call>|</tool_call>){0,6}";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text.prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((text, inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn arguments() -> impl Strategy<Value = Value> {
        prop::collection::vec(("[a-z\"\\\\é]{0,4}", value()), 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    /// Parses a text in pieces. `ends` are the ends of the pieces as indices of characters.
    fn parse_split(text: &str, ends: &[usize], one_call: bool) -> Parsed {
        let mut parser = ToolCallParser::new(one_call);
        let mut pieces = Vec::new();
        let mut piece = String::new();
        for (i, c) in text.chars().enumerate() {
            piece.push(c);
            if ends.contains(&(i % 97)) {
                pieces.extend(parser.push(&std::mem::take(&mut piece)));
            }
        }
        pieces.extend(parser.push(&piece));
        pieces.extend(parser.finish());
        collect(pieces)
    }

    proptest! {
        #[test]
        fn every_call_that_a_template_writes_is_found(
            content in "([a-c<>/{}\" é]|<tool)([a-c<>/{} \n]|<tool_cal){0,8}[a-c.é]",
            calls in prop::collection::vec(("[a-zA-Z0-9_-]{1,64}", arguments(), any::<bool>()), 0..4),
            ends in prop::collection::vec(0usize..97, 0..40),
        ) {
            let mut text = content.clone();
            let mut wanted = Vec::new();
            for (name, arguments, is_pretty) in calls {
                let written = if is_pretty { format!("{arguments:#}") } else { arguments.to_string() };
                text += &format!("\n{}", block(&format!("{{\"name\": {}, \"arguments\": {written}}}", json!(name))));
                wanted.push((name, written));
            }
            prop_assert_eq!(parse(&text, false), (content.clone(), wanted.clone()));
            prop_assert_eq!(parse_split(&text, &ends, false), (content.clone(), wanted.clone()));
            wanted.truncate(1);
            prop_assert_eq!(parse_split(&text, &ends, true), (content, wanted));
        }

        #[test]
        fn pieces_do_not_depend_on_the_split_and_text_without_calls_is_unchanged(
            words in prop::collection::vec(prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "<tool", "_call>", "<", "{", "}", "\"name\"", "\"arguments\"", ":", ",", "\"f\"", "\"",
                "\\", " ", "\n", "{\"name\": \"f\", \"arguments\": {", "é", "a", "[", "]", "}}\n</tool_call>",
            ]), 0..40),
            ends in prop::collection::vec(0usize..97, 0..60),
            one_call in any::<bool>(),
        ) {
            let text = words.concat();
            let whole = parse(&text, one_call);
            prop_assert_eq!(&parse_split(&text, &ends, one_call), &whole);
            prop_assert!(!one_call || whole.1.len() <= 1);
            if whole.1.is_empty() {
                prop_assert_eq!(whole.0, text);
            }
        }
    }
}
