//! Finds the reasoning of an answer: the text between `<think>` and `</think>` at its beginning.
//!
//! ```text
//! <think>It rolls to the left.</think><answer>left</answer>
//!        reasoning                    text
//! ```
//! White space before the first tag is dropped. An answer without the first tag is text, unless the prompt ends with
//! that tag, as those of Qwen3-VL's Thinking models do. An answer that ends before the second tag is reasoning. The
//! result does not depend on how the answer is split into pieces.

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// Separates reasoning from text while an answer is read.
#[derive(Debug)]
pub(crate) struct ReasoningParser {
    state: State,
    has_reasoning: bool,
    /// Characters that were read but not passed on, because they may be part of a tag.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first tag.
    Begin,
    Reasoning,
    Text,
}

/// The reasoning and the text that a piece of an answer adds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AddedText {
    pub(crate) reasoning: String,
    pub(crate) text: String,
}

impl ReasoningParser {
    /// A parser of an answer; `is_begun` says whether the prompt has begun the reasoning.
    pub(crate) fn new(is_begun: bool) -> Self {
        let state = if is_begun { State::Reasoning } else { State::Begin };
        Self { state, has_reasoning: is_begun, held: String::new() }
    }

    /// Reads a piece of an answer.
    pub(crate) fn push(&mut self, piece: &str) -> AddedText {
        let mut added = AddedText::default();
        self.held.push_str(piece);
        if self.state == State::Begin {
            let begun = self.held.trim_start();
            if let Some(rest) = begun.strip_prefix(BEGIN) {
                (self.state, self.held) = (State::Reasoning, rest.to_string());
                self.has_reasoning = true;
            } else if BEGIN.starts_with(begun) {
                return added;
            } else {
                self.state = State::Text;
            }
        }
        if self.state == State::Reasoning {
            match self.held.split_once(END) {
                Some((reasoning, rest)) => {
                    added.reasoning = reasoning.to_string();
                    (self.state, self.held) = (State::Text, rest.to_string());
                }
                None => {
                    // Holds back the last characters of the text if they may be the beginning of the second tag.
                    let is_begun = |&at: &usize| self.held.is_char_boundary(at) && END.starts_with(&self.held[at..]);
                    let first = self.held.len().saturating_sub(END.len() - 1);
                    let at = (first..self.held.len()).find(is_begun).unwrap_or(self.held.len());
                    let held = self.held.split_off(at);
                    added.reasoning = std::mem::replace(&mut self.held, held);
                }
            }
        }
        if self.state == State::Text {
            added.text = std::mem::take(&mut self.held);
        }
        added
    }

    /// Ends the answer. Returns the characters that were held back as reasoning or as text.
    pub(crate) fn finish(&mut self) -> AddedText {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Reasoning => AddedText { reasoning: held, ..AddedText::default() },
            State::Begin | State::Text => AddedText { text: held, ..AddedText::default() },
        }
    }
}

/// The reasoning of a whole answer, if it has one, and the text after it. `is_begun` says whether the prompt has begun
/// the reasoning.
pub(crate) fn split_reasoning(answer: &str, is_begun: bool) -> (Option<String>, String) {
    let mut parser = ReasoningParser::new(is_begun);
    let (first, last) = (parser.push(answer), parser.finish());
    (parser.has_reasoning.then_some(first.reasoning + &last.reasoning), first.text + &last.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_and_text_do_not_depend_on_the_pieces() {
        for (answer, reasoning, text) in [
            ("<think>a b</think><answer>c</answer>", Some("a b"), "<answer>c</answer>"),
            (" \n<think>\na\n</think>\n\nc", Some("\na\n"), "\n\nc"),
            ("<think></think>", Some(""), ""),
            ("<think>x </thin </think>c", Some("x </thin "), "c"),
            ("<think>é</é</think></think>", Some("é</é"), "</think>"),
            ("<think>open </thi", Some("open </thi"), ""),
            ("<thin", None, "<thin"),
            ("<thinking>a</think>", None, "<thinking>a</think>"),
            ("a<think>b</think>", None, "a<think>b</think>"),
            (" ", None, " "),
            ("", None, ""),
        ] {
            let wanted = (reasoning.map(String::from), text.to_string());
            assert_eq!(split_reasoning(answer, false), wanted, "{answer:?}");
            let after_tag = answer.trim_start().strip_prefix(BEGIN).filter(|_| reasoning.is_some());
            assert!(after_tag.is_none_or(|rest| split_reasoning(rest, true) == wanted), "{answer:?}");
            let mut parser = ReasoningParser::new(false);
            let mut joined = AddedText::default();
            let pieces: Vec<String> = answer.chars().map(String::from).collect();
            let parts: Vec<AddedText> = pieces.iter().map(|piece| parser.push(piece)).collect();
            for part in parts.into_iter().chain([parser.finish()]) {
                joined.reasoning += &part.reasoning;
                joined.text += &part.text;
            }
            let wanted = AddedText { reasoning: reasoning.unwrap_or_default().to_string(), text: text.to_string() };
            assert_eq!(joined, wanted, "{answer:?}");
        }
    }
}
