//! Grammars that a completion must follow: a JSON schema, a regular expression, a choice of texts, or a grammar in
//! Lark's syntax. The crate `llguidance` says after each token which tokens may follow; sampling takes only one of
//! these tokens.
//!
//! [`LocalCompiler`] is made once for a vocabulary. It compiles the [`GrammarSpec`] of a request to a [`Grammar`], which
//! each completion copies and advances. Compiling is recursive, so a deep grammar needs much stack. Read
//! `grammar_compiler.rs` next: it limits time, memory and depth.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};
use reel_input::TokenId;
pub use reel_input::grammar::GrammarSpec;
use reel_input::grammar::{AnswerWithoutCalls, ToolCallGrammar};
use reel_support::diagnostic::catch_panic;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::json_schema::rewrite_schema;
use crate::tool_calls;

/// The maximum size of the lexer and the parser's items of one completion, in bytes. It grows with the completion: by 1
/// to 2 kB for each lexer state that the text reaches, and by some items for each terminal. The lexer of a schema of
/// 1000 properties has 0.4 MB, of 100 000 choices 4 MB.
const MAX_STATE_BYTES: usize = 32 << 20;

/// The size of an item of the parser, in bytes.
const ITEM_BYTES: usize = 8;

/// The steps of the lexer that a completion may take, about 70 ns each: a reserve, and an addition for each token.
/// `llguidance` allows 200 000 steps (14 ms) for a single token. The engine waits, so this limit holds for the mean.
const RESERVED_LEXER_STEPS: u64 = 2_000_000;
const LEXER_STEPS_PER_TOKEN: u64 = 20_000;

/// The advice for a grammar that exceeds a limit.
const SIMPLER: &str = "use a simpler grammar";

/// The tokens of a model and its end tokens, as a message to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Vocabulary {
    pub(crate) end_token_ids: Vec<TokenId>,
    /// The number of bytes of each token.
    lengths: Vec<usize>,
    /// The bytes of all tokens, each as the character with its number: JSON has no bytes, and lists of numbers are long.
    bytes: String,
}

impl Vocabulary {
    pub(crate) fn new(words: impl Iterator<Item = Vec<u8>>, end_token_ids: &[TokenId]) -> Self {
        let (mut lengths, mut bytes) = (Vec::new(), String::new());
        for word in words {
            lengths.push(word.len());
            bytes.extend(word.into_iter().map(char::from));
        }
        Self { end_token_ids: end_token_ids.to_vec(), lengths, bytes }
    }

    /// The bytes of each token.
    pub(crate) fn words(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.chars().map(|byte| byte as u8);
        self.lengths.iter().map(|&length| bytes.by_ref().take(length).collect()).collect()
    }
}

/// Compiles grammars for the vocabulary of a model, on the stack of the current thread.
pub(crate) struct LocalCompiler {
    factory: ParserFactory,
    end_token_ids: Arc<[TokenId]>,
    mask_words: usize,
}

impl LocalCompiler {
    /// Creates a compiler. Sorting the vocabulary takes some tens of milliseconds for 150 000 tokens.
    ///
    /// # Errors
    /// The model has no end token, so no grammar could end.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Result<LocalCompiler> {
        let end_token_ids: Arc<[TokenId]> = vocabulary.end_token_ids.as_slice().into();
        let Some(&end) = end_token_ids.first() else {
            let help = "add eos_token_id to generation_config.json";
            return Err(refused("the model has no end token".into(), help));
        };
        let words = vocabulary.words();
        let info = TokRxInfo::new(words.len() as u32, end);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| refused(e.to_string(), "report this"))?;
        factory.quiet();
        // Users of the model read these errors; verbose errors would contain the whole state of the parser.
        factory.limits_mut().verbose_errors = false;
        Ok(LocalCompiler { factory, end_token_ids, mask_words: words.len().div_ceil(32) })
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// The grammar is invalid, uses a feature that is not supported, or exceeds a limit of `llguidance`.
    pub(crate) fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        match self.parser(top_level_grammar(spec)?) {
            Err(e) => match spec {
                GrammarSpec::ToolCalls(calls) => Err(self.wrong_call_grammar(calls, &e)),
                _ => Err(refused(one_line(&e), "correct the grammar, or use a simpler one")),
            },
            Ok(parser) => {
                let (end_token_ids, mask_words) = (self.end_token_ids.clone(), self.mask_words);
                let (allowed, steps_left, memory) = (Vec::new(), RESERVED_LEXER_STEPS, StateMemory::of(0));
                let mut grammar = Grammar { parser, end_token_ids, mask_words, allowed, steps_left, items: 0, memory };
                grammar.update_mask()?;
                Ok(grammar)
            }
        }
    }

    fn parser(&self, grammar: TopLevelGrammar) -> std::result::Result<TokenParser, String> {
        let parser = self.factory.create_parser(grammar).map_err(|e| e.to_string());
        // `llguidance` catches its own panics.
        let mut parser = parser.map_err(|e| e.replacen("panic: ", "its compiler cannot process it: ", 1))?;
        parser.start_without_prompt();
        Ok(parser)
    }

    /// The error for tools whose grammar cannot be compiled. It names the first function with an invalid parameter
    /// schema, or what is wrong with the form of an answer without calls.
    fn wrong_call_grammar(&self, calls: &ToolCallGrammar, e: &str) -> Error {
        let error_of = |(name, schema): &(String, Value)| {
            let grammar = TopLevelGrammar::from_json_schema(rewrite_schema(schema, tool_calls::spaces()));
            let e = self.parser(grammar).err()?;
            Some(format!("the parameters of {name}: {}", one_line(&e)))
        };
        let what = calls.functions.iter().find_map(error_of);
        if let (None, AnswerWithoutCalls::Form(form)) = (&what, &calls.otherwise)
            && let Err(e) = self.compile(form)
        {
            return e;
        }
        let help = "correct the schema, or use a simpler one";
        Error::request("tools", what.unwrap_or_else(|| one_line(e)), help)
    }
}

/// The grammar of a spec as `llguidance` reads it.
///
/// # Errors
/// A choice has no text.
fn top_level_grammar(spec: &GrammarSpec) -> Result<TopLevelGrammar> {
    Ok(match spec {
        // Small models would generate white space without end.
        GrammarSpec::JsonSchema(schema) => {
            TopLevelGrammar::from_json_schema(rewrite_schema(schema, json!({"whitespace_flexible": false})))
        }
        GrammarSpec::Regex(regex) => TopLevelGrammar::from_regex(regex),
        GrammarSpec::Choice(texts) if texts.is_empty() => {
            return Err(refused("choice: has no text".into(), "give at least one"));
        }
        GrammarSpec::Choice(texts) => {
            let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
            // One terminal for all texts: as a rule, each text would be a terminal, and 100 000 of them take a minute.
            TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | ")))
        }
        GrammarSpec::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        GrammarSpec::ToolCalls(calls) => {
            let mut grammar = TopLevelGrammar::from_lark(tool_calls::lark_grammar(calls));
            if let AnswerWithoutCalls::Form(form) = &calls.otherwise {
                let mut form = top_level_grammar(form)?.grammars.swap_remove(0);
                form.name = Some(tool_calls::FORM.into());
                grammar.grammars.push(form);
            }
            grammar
        }
    })
}

/// The size of the states of all grammars of this process, in bytes.
static STATE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The size of one state in bytes, which counts in [`STATE_BYTES`] while this value lives.
struct StateMemory(usize);

impl StateMemory {
    fn of(bytes: usize) -> Self {
        STATE_BYTES.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }
}

impl Drop for StateMemory {
    fn drop(&mut self) {
        STATE_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A compiled grammar, with the parser's state after the tokens so far.
pub struct Grammar {
    parser: TokenParser,
    end_token_ids: Arc<[TokenId]>,
    mask_words: usize,
    allowed: Vec<u32>,
    /// The number of steps that the lexer may still take, without the addition for the next token.
    steps_left: u64,
    /// The number of items that the tokens so far have added to the parser.
    items: usize,
    memory: StateMemory,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("stopped", &self.parser.stopped()).finish_non_exhaustive()
    }
}

impl Clone for Grammar {
    /// Copies the grammar with its state. The parser of the copy advances independently.
    fn clone(&self) -> Grammar {
        Grammar {
            parser: self.parser.deep_clone(),
            end_token_ids: self.end_token_ids.clone(),
            mask_words: self.mask_words,
            allowed: self.allowed.clone(),
            steps_left: self.steps_left,
            items: self.items,
            memory: StateMemory::of(self.memory.0),
        }
    }
}

impl Grammar {
    /// The tokens that may come next: bit `id % 32` of word `id / 32`.
    pub fn allowed_token_mask(&self) -> &[u32] {
        &self.allowed
    }

    /// Whether only an end token may come next.
    pub(crate) fn is_complete(&self) -> bool {
        let ends = self.end_token_ids.iter().map(|&id| self.allows(id)).filter(|&allowed| allowed).count();
        self.allowed.iter().map(|word| word.count_ones() as usize).sum::<usize>() == ends
    }

    /// Whether a sampled token is an end token and the grammar allows the completion to end here.
    pub fn is_end_token(&self, id: TokenId) -> bool {
        self.end_token_ids.contains(&id) && self.end_token_ids.first().is_some_and(|&first| self.allows(first))
    }

    fn allows(&self, id: TokenId) -> bool {
        self.allowed.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Advances the parser by a token that the grammar allows and that is not an end token.
    ///
    /// # Errors
    /// The grammar exceeds a limit of time or memory. No other function may then be called.
    pub fn accept(&mut self, id: TokenId) -> Result<()> {
        let parser = &mut self.parser;
        let items = parser.parser_stats().all_items;
        without_panic(|| parser.consume_token(id).map_err(|e| e.to_string()))?;
        self.items += parser.parser_stats().all_items.saturating_sub(items);
        without_panic(|| parser.check_stop().map_err(|e| e.to_string()))?;
        self.update_mask()
    }

    /// The size of the state, in bytes. Each copy of the grammar has its own.
    pub fn state_bytes(&self) -> usize {
        self.memory.0
    }

    /// The size of the states of all grammars of this process and their copies, in bytes.
    pub fn bytes_of_all_states() -> usize {
        STATE_BYTES.load(Ordering::Relaxed)
    }

    /// Follows the grammar for a few tokens, to find out whether this works.
    pub(crate) fn rehearse(mut self) {
        for step in 0..8 {
            let words = self.allowed.iter().enumerate().filter(|(_, word)| **word != 0);
            let ids: Vec<u32> = words.map(|(at, word)| at as u32 * 32 + word.trailing_zeros()).collect();
            // An end token ends a completion. A grammar that exceeds a limit here may stay below it for other tokens.
            match ids.get(step * 7919 % ids.len().max(1)) {
                Some(&id) if !self.end_token_ids.contains(&id) && self.accept(id).is_ok() => {}
                _ => return,
            }
        }
    }

    fn update_mask(&mut self) -> Result<()> {
        let parser = &mut self.parser;
        let mask: SimpleVob = without_panic(|| match parser.stop_reason() {
            StopReason::NotStopped => parser.compute_mask().map_err(|e| e.to_string()),
            _ => Ok(parser.token_env.tok_trie().eos_token_set()),
        })?;
        self.allowed.clear();
        self.allowed.extend_from_slice(&mask.as_slice()[..self.mask_words.min(mask.as_slice().len())]);
        self.allowed.resize(self.mask_words, 0);
        // `llguidance` knows only the model's first end token. Where the grammar allows this token, all end tokens of
        // the model are allowed.
        if self.end_token_ids.first().is_some_and(|&id| self.allows(id)) {
            for &id in self.end_token_ids.iter() {
                self.allowed[id as usize / 32] |= 1 << (id % 32);
            }
        }
        self.check_limits()
    }

    /// Refuses to continue if the lexer has taken too many steps, or if the state has become too large.
    fn check_limits(&mut self) -> Result<()> {
        let left = (self.steps_left + LEXER_STEPS_PER_TOKEN).checked_sub(self.parser.last_step_stats().lexer_cost);
        let Some(left) = left else {
            let what = format!("takes more than {LEXER_STEPS_PER_TOKEN} steps of its lexer per token");
            return Err(refused(what, SIMPLER));
        };
        self.steps_left = left.min(RESERVED_LEXER_STEPS);
        let stats = self.parser.parser.lexer_stats();
        // The statistics leave out the set of possible terminals that each state has.
        let lexer = stats.num_bytes + stats.num_states * stats.num_regexps / 8;
        self.memory = StateMemory::of(lexer + self.items * ITEM_BYTES);
        match self.memory.0 > MAX_STATE_BYTES {
            true => Err(refused(format!("needs more than {} MiB for its state", MAX_STATE_BYTES >> 20), SIMPLER)),
            false => Ok(()),
        }
    }
}

/// Runs `work` of `llguidance`, and turns its errors and panics into errors of the request.
fn without_panic<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    let done = catch_panic(work)
        .map_err(|panic| refused(format!("its parser cannot continue: {}", one_line(&panic)), SIMPLER))?;
    done.map_err(|e| stopped(&e))
}

pub(crate) fn refused(what: String, help: &str) -> Error {
    Error::request("grammar", what, help)
}

/// The error of a grammar for which `llguidance` cannot compute the allowed next tokens.
fn stopped(text: &str) -> Error {
    match one_line(text) {
        // The names by which `llguidance` reports a state in which no token is allowed.
        line if ["NoExtension", "NoExtensionBias"].contains(&line.as_str()) => refused(
            "no text satisfies it".into(),
            "correct the grammar; for example, a schema that always refers to itself has no finite text",
        ),
        line => refused(line, SIMPLER),
    }
}

/// Shortens an error text of `llguidance`, which may quote the whole grammar, to one line of 300 characters. Also
/// removes the tag `<non-verbose/>` at the end, which says that the parser's state is left out.
fn one_line(text: &str) -> String {
    // `llguidance` adds a backtrace to the message of a panic that it caught.
    let text = text.split("<backtrace>").next().unwrap_or(text).trim_end().trim_end_matches("<non-verbose/>");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.char_indices().nth(300).map_or(line.clone(), |(end, _)| format!("{} ...", &line[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A compiler for a vocabulary of all bytes and an end token.
    fn byte_compiler() -> LocalCompiler {
        let words = (0..=255).map(|byte| vec![byte]).chain([Vec::new()]);
        LocalCompiler::new(&Vocabulary::new(words, &[256])).unwrap()
    }

    #[test]
    fn the_state_of_a_completion_is_limited() {
        let mut grammar = byte_compiler().compile(&GrammarSpec::Lark("start: \"a\"*".into())).unwrap();
        let items = grammar.items;
        grammar.accept(97).unwrap();
        assert!(grammar.items > items && grammar.state_bytes() < MAX_STATE_BYTES);
        assert!(Grammar::bytes_of_all_states() >= grammar.state_bytes());
        grammar.items += MAX_STATE_BYTES / ITEM_BYTES;
        let e = grammar.accept(97).unwrap_err().to_string();
        assert!(e.starts_with("grammar: needs more than 32 MiB for its state"), "{e}");
    }

    #[test]
    fn the_error_of_a_compiler_that_panics_has_no_backtrace() {
        let lark = r#"start: "a" start<|im_end|> | "b""#;
        let e = byte_compiler().compile(&GrammarSpec::Lark(lark.into())).unwrap_err().to_string();
        assert!(e.starts_with("grammar: its compiler cannot process it: ") && !e.contains("backtrace"), "{e}");
    }

    /// Each of these grammars takes more work for a token than a server can wait for, or more memory.
    #[test]
    fn hostile_grammars_end_with_an_error_or_are_followed() {
        let compiler = byte_compiler();
        let alternatives = |count: usize, text: fn(usize) -> String| {
            format!("start: a*\na: {}", (0..count).map(text).collect::<Vec<_>>().join(" | "))
        };
        for (lark, is_followed) in [
            (alternatives(3000, |i| format!("/w[a-z]*{i}/")), false),
            (alternatives(3000, |i| format!("\"w{i}\"")), false),
            (alternatives(900, |i| format!("\"w{i}\"")), true),
            ("start: s\ns: s s | s s s | \"w\" |".to_string(), true),
        ] {
            let followed = compiler.compile(&GrammarSpec::Lark(lark.clone())).and_then(|mut grammar| {
                (0..20).try_for_each(|i| grammar.accept(if i % 2 == 0 || lark.len() < 50 { b'w' } else { b'1' }.into()))
            });
            assert_eq!(followed.is_ok(), is_followed, "{}: {followed:?}", &lark[..30]);
        }
    }

    #[test]
    fn the_vocabulary_has_all_bytes() {
        let words = vec![vec![0, 255, b'"', 0x80], Vec::new(), "é\n".as_bytes().to_vec()];
        let vocabulary = Vocabulary::new(words.clone().into_iter(), &[1, 2]);
        let sent = serde_json::to_string(&vocabulary).unwrap();
        let received: Vocabulary = serde_json::from_str(&sent).unwrap();
        assert_eq!((received.words(), received.end_token_ids), (words, vec![1, 2]));
    }
}
