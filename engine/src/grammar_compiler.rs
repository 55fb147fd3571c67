//! Compiles grammars with limits on time, memory and depth: a worker process compiles a grammar first
//! (`grammar_worker.rs`), then this process does, on a larger stack.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use reel_input::encode::ModelFolder;
use reel_input::grammar::{AnswerWithoutCalls, GrammarSpec};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::grammar::{Grammar, LocalCompiler, Vocabulary, refused};
use crate::grammar_worker::{CompileCancellation, GrammarWorkers, STACK_BYTES, run_on_stack};

/// The maximum number of levels of a JSON schema. A message to another process nests a schema a few levels deeper, and
/// serde_json reads at most 127 levels.
const MAX_SCHEMA_LEVELS: usize = 100;

/// The number of grammars that are kept for later requests with the same grammar.
const KEPT_GRAMMARS: usize = 8;

/// The maximum size of the state of a grammar that is kept, in bytes.
const MAX_KEPT_BYTES: usize = 512 << 10;

/// Compiles grammars for the vocabulary of a model.
pub struct GrammarCompiler {
    local: LocalCompiler,
    /// The grammars that were compiled last, latest first.
    kept: Mutex<VecDeque<(GrammarSpec, Grammar)>>,
    /// `None` if no worker process checks the grammars.
    workers: Option<GrammarWorkers>,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// Creates a compiler for a model, and starts a worker process if the program has workers
    /// ([`reel_support::worker::set_worker_program`]). Sorting a vocabulary of 150 000 tokens takes some
    /// tens of milliseconds.
    ///
    /// # Errors
    /// The model has no end token, so no grammar could end; the worker process cannot be started.
    pub fn new(folder: &ModelFolder) -> Result<GrammarCompiler> {
        let vocabulary = vocabulary_of(folder);
        let Some(program) = reel_support::worker::worker_program() else { return Self::without_workers(folder) };
        // The worker prepares itself while this process sorts the vocabulary.
        let workers = GrammarWorkers::start(program, vocabulary)?;
        let local = LocalCompiler::new(workers.vocabulary())?;
        Ok(GrammarCompiler { local, kept: Mutex::default(), workers: Some(workers) })
    }

    /// Creates a compiler without worker processes, for grammars that another process has checked.
    ///
    /// # Errors
    /// The model has no end token.
    pub fn without_workers(folder: &ModelFolder) -> Result<GrammarCompiler> {
        let local = LocalCompiler::new(&vocabulary_of(folder))?;
        Ok(GrammarCompiler { local, kept: Mutex::default(), workers: None })
    }

    /// Compiles a grammar. Time, memory and depth are limited if the program has workers.
    ///
    /// # Errors
    /// The grammar is invalid, uses a feature that is not supported, or exceeds a limit.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        self.compile_unless_cancelled(spec, &CompileCancellation::default())
    }

    /// Compiles a grammar as [`compile`](Self::compile) does. Ends early if `cancellation` is cancelled.
    ///
    /// # Errors
    /// As [`compile`](Self::compile); [`Kind::Interrupted`](crate::error::Kind::Interrupted) if the work was cancelled.
    pub fn compile_unless_cancelled(&self, spec: &GrammarSpec, cancellation: &CompileCancellation) -> Result<Grammar> {
        if let Some(grammar) = self.kept_grammar(spec) {
            return Ok(grammar);
        }
        refuse_deep_schemas(spec)?;
        if let Some(workers) = &self.workers {
            workers.check(spec, cancellation)?;
        }
        let grammar = run_on_stack(STACK_BYTES, || self.local.compile(spec))?;
        if grammar.state_bytes() <= MAX_KEPT_BYTES {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.truncate(KEPT_GRAMMARS - 1);
            kept.push_front((spec.clone(), grammar.clone()));
        }
        Ok(grammar)
    }

    /// A copy of a grammar that was compiled for one of the last requests. Takes well below a millisecond.
    pub fn kept_grammar(&self, spec: &GrammarSpec) -> Option<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == spec)?;
        let found = kept.remove(at)?;
        let grammar = found.1.clone();
        kept.push_front(found);
        Some(grammar)
    }
}

/// The tokens of a model, as grammars see them.
fn vocabulary_of(folder: &ModelFolder) -> Vocabulary {
    // A special token has no text that a grammar could match.
    let bytes = |id: u32| if folder.tokenizer.is_special(id) { Vec::new() } else { folder.tokenizer.token_bytes(id) };
    Vocabulary::new((0..folder.config.text.vocab_size as u32).map(bytes), folder.stop_token_ids())
}

/// Refuses a JSON schema with too many levels, which other processes could not read.
fn refuse_deep_schemas(spec: &GrammarSpec) -> Result<()> {
    let what = format!("has more than {MAX_SCHEMA_LEVELS} levels of JSON");
    let help = "use $ref and $defs for the inner schemas";
    match spec {
        GrammarSpec::JsonSchema(schema) if !has_levels(schema, MAX_SCHEMA_LEVELS) => Err(refused(what, help)),
        GrammarSpec::ToolCalls(calls) => {
            if let Some((name, _)) = calls.functions.iter().find(|(_, schema)| !has_levels(schema, MAX_SCHEMA_LEVELS)) {
                let what = format!("the schema of the parameters of {name} {what}");
                return Err(Error::request("tools", what, help));
            }
            match &calls.otherwise {
                AnswerWithoutCalls::Form(form) => refuse_deep_schemas(form),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether a value has at most this many levels of lists and objects.
fn has_levels(value: &Value, levels: usize) -> bool {
    let inner = |value: &Value| levels > 0 && has_levels(value, levels - 1);
    match value {
        Value::Array(list) => levels > 0 && list.iter().all(inner),
        Value::Object(fields) => levels > 0 && fields.values().all(inner),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::tool_calls::tests::accepts;

    fn compiler() -> (ModelFolder, GrammarCompiler) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/text_multiturn/model");
        let folder = ModelFolder::open(&path).unwrap();
        let compiler = GrammarCompiler::new(&folder).unwrap();
        (folder, compiler)
    }

    #[test]
    fn a_choice_is_exactly_one_of_its_texts() {
        let (folder, compiler) = compiler();
        let texts = ["a", "ab", "", "\"q\"\n", "é|.*"].map(String::from).to_vec();
        let grammar = compiler.compile(&GrammarSpec::Choice(texts.clone())).unwrap();
        assert!(texts.iter().all(|text| accepts(&folder, &grammar, text)));
        assert!(["b", "aa", "aba", "q", "é|."].iter().all(|text| !accepts(&folder, &grammar, text)));
    }

    #[test]
    fn the_last_grammars_are_kept_as_they_were_compiled() {
        let (folder, compiler) = compiler();
        let spec = |i: usize| GrammarSpec::Regex(format!("a{{{i}}}"));
        let mut first = compiler.compile(&spec(1)).unwrap();
        let a = folder.tokenizer.encode("a").unwrap()[0];
        first.accept(a).unwrap();
        assert!(accepts(&folder, &compiler.kept_grammar(&spec(1)).unwrap(), "a"));
        assert!(compiler.kept_grammar(&spec(2)).is_none());
        (2..2 + KEPT_GRAMMARS).for_each(|i| drop(compiler.compile(&spec(i)).unwrap()));
        assert!(compiler.kept_grammar(&spec(1)).is_none() && compiler.kept_grammar(&spec(2)).is_some());
    }

    #[test]
    fn schemas_have_a_limited_number_of_levels() {
        let (_, compiler) = compiler();
        let nested = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({"items": inner}));
        let of_tool = |schema: Value, otherwise: AnswerWithoutCalls| {
            let functions = vec![("f".to_string(), schema)];
            GrammarSpec::ToolCalls(reel_input::grammar::ToolCallGrammar { functions, several: false, otherwise })
        };
        let form = AnswerWithoutCalls::Form(Box::new(GrammarSpec::JsonSchema(nested(100))));
        compiler.compile(&GrammarSpec::JsonSchema(nested(99))).unwrap();
        for (spec, location) in [
            (GrammarSpec::JsonSchema(nested(100)), "grammar: "),
            (of_tool(nested(100), AnswerWithoutCalls::None), "tools: the schema of the parameters of f "),
            (of_tool(json!({"type": "object"}), form), "grammar: "),
        ] {
            let e = compiler.compile(&spec).unwrap_err().to_string();
            assert!(e.starts_with(location) && e.contains("more than 100 levels"), "{e}");
        }
    }
}
