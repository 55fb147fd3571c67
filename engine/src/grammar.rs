//! Grammars that a completion must follow: a JSON schema, a regular expression, a choice of texts, or a grammar in
//! Lark's syntax. The crate `llguidance` says after each token which tokens may follow; sampling takes only one of
//! these tokens.
//!
//! [`GrammarCompiler`] is made once for a vocabulary. It compiles the [`GrammarSpec`] of a request to a [`Grammar`],
//! which each completion copies and advances.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use reel_diagnostic::Diagnostic;
use reel_input::TokenId;
use reel_input::encode::ModelFolder;
pub use reel_input::grammar::GrammarSpec;
use reel_input::grammar::{AnswerWithoutCalls, ToolCallGrammar};
use serde_json::{Value, json};

use crate::error::{EngineError, Result};
use crate::json_schema::rewrite_schema;
use crate::tool_calls;

/// Compiles grammars for the vocabulary of a model.
pub struct GrammarCompiler {
    factory: ParserFactory,
    end_token_ids: Arc<[TokenId]>,
    mask_words: usize,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("end_token_ids", &self.end_token_ids).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// Creates a compiler for a model. Sorting the vocabulary takes some tens of milliseconds for 150 000 tokens.
    ///
    /// # Errors
    /// The model has no end token, so no grammar could end.
    pub fn new(folder: &ModelFolder) -> Result<GrammarCompiler> {
        let vocab = folder.config.text.vocab_size;
        let end_token_ids: Arc<[TokenId]> = folder.stop_token_ids().into();
        let Some(&end) = end_token_ids.first() else {
            let help = "add eos_token_id to generation_config.json";
            return Err(refused("the model has no end token".into(), help));
        };
        // A special token has no text that a grammar could match.
        let bytes =
            |id: u32| if folder.tokenizer.is_special(id) { Vec::new() } else { folder.tokenizer.token_bytes(id) };
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(bytes).collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words)));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| refused(e.to_string(), "report this"))?;
        factory.quiet();
        // Users of the model read these errors; verbose errors would contain the whole state of the parser.
        factory.limits_mut().verbose_errors = false;
        Ok(GrammarCompiler { factory, end_token_ids, mask_words: vocab.div_ceil(32) })
    }

    /// Compiles a grammar. Time and memory are limited.
    ///
    /// # Errors
    /// The grammar is invalid, uses a feature that is not supported, or is too large.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        let grammar = top_level_grammar(spec)?;
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            Some(e) => match spec {
                GrammarSpec::ToolCalls(calls) => Err(self.wrong_call_grammar(calls, &e)),
                _ => Err(refused(one_line(&e), "correct the grammar, or use a simpler one")),
            },
            None => {
                let (end_token_ids, mask_words) = (self.end_token_ids.clone(), self.mask_words);
                let mut grammar = Grammar { matcher, end_token_ids, mask_words, allowed: Vec::new() };
                grammar.update_mask()?;
                Ok(grammar)
            }
        }
    }
}

impl GrammarCompiler {
    /// The error for tools whose grammar cannot be compiled. It names the first function with an invalid parameter
    /// schema, or what is wrong with the form of an answer without calls.
    fn wrong_call_grammar(&self, calls: &ToolCallGrammar, e: &str) -> EngineError {
        let error_of = |(name, schema): &(String, Value)| {
            let grammar = TopLevelGrammar::from_json_schema(rewrite_schema(schema, tool_calls::spaces()));
            let e = Matcher::new(self.factory.create_parser(grammar)).get_error()?;
            Some(format!("the parameters of {name}: {}", one_line(&e)))
        };
        let what = calls.functions.iter().find_map(error_of);
        if let (None, AnswerWithoutCalls::Form(form)) = (&what, &calls.otherwise)
            && let Err(e) = self.compile(form)
        {
            return e;
        }
        let help = "correct the schema, or use a simpler one";
        EngineError::Request(Diagnostic::new("tools", what.unwrap_or_else(|| one_line(e)), help))
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
            TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
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

/// A compiled grammar, with the parser's state after the tokens so far.
pub struct Grammar {
    matcher: Matcher,
    end_token_ids: Arc<[TokenId]>,
    mask_words: usize,
    allowed: Vec<u32>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("stopped", &self.matcher.is_stopped()).finish_non_exhaustive()
    }
}

impl Clone for Grammar {
    /// Copies the grammar with its state. The parser of the copy advances independently.
    fn clone(&self) -> Grammar {
        Grammar {
            matcher: self.matcher.deep_clone(),
            end_token_ids: self.end_token_ids.clone(),
            mask_words: self.mask_words,
            allowed: self.allowed.clone(),
        }
    }
}

impl Grammar {
    /// The tokens that may come next: bit `id % 32` of word `id / 32`.
    pub(crate) fn allowed_token_mask(&self) -> &[u32] {
        &self.allowed
    }

    /// Whether only an end token may come next.
    pub(crate) fn is_complete(&self) -> bool {
        let ends = self.end_token_ids.iter().map(|&id| self.allows(id)).filter(|&allowed| allowed).count();
        self.allowed.iter().map(|word| word.count_ones() as usize).sum::<usize>() == ends
    }

    /// Whether a sampled token is an end token and the grammar allows the completion to end here.
    pub(crate) fn is_end_token(&self, id: TokenId) -> bool {
        self.end_token_ids.contains(&id) && self.end_token_ids.first().is_some_and(|&first| self.allows(first))
    }

    fn allows(&self, id: TokenId) -> bool {
        self.allowed.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Advances the parser by a token that the grammar allows and that is not an end token.
    ///
    /// # Errors
    /// Computing the tokens that may follow takes too long.
    pub(crate) fn accept(&mut self, id: TokenId) -> Result<()> {
        self.matcher.consume_token(id).map_err(|e| stopped(&e.to_string()))?;
        self.update_mask()
    }

    fn update_mask(&mut self) -> Result<()> {
        let mask = self.matcher.compute_mask_or_eos();
        let mask: SimpleVob = mask.map_err(|e| stopped(&e.to_string()))?;
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
        Ok(())
    }
}

fn refused(what: String, help: &str) -> EngineError {
    EngineError::Request(Diagnostic::new("grammar", what, help))
}

/// The error of a grammar for which `llguidance` cannot compute the allowed next tokens.
fn stopped(text: &str) -> EngineError {
    match one_line(text) {
        // The names by which `llguidance` reports a state in which no token is allowed.
        line if ["NoExtension", "NoExtensionBias"].contains(&line.as_str()) => refused(
            "no text satisfies it".into(),
            "correct the grammar; for example, a schema that always refers to itself has no finite text",
        ),
        line => refused(line, "use a simpler grammar"),
    }
}

/// Shortens an error text of `llguidance`, which may quote the whole grammar, to one line of 300 characters. Also
/// removes the tag `<non-verbose/>` at the end, which says that the parser's state is left out.
fn one_line(text: &str) -> String {
    let text = text.trim_end().trim_end_matches("<non-verbose/>");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.char_indices().nth(300).map_or(line.clone(), |(end, _)| format!("{} ...", &line[..end]))
}
