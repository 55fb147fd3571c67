//! Compiles the grammars of requests, a few at a time, so that slow grammars hold up only requests with a grammar.

use std::sync::Arc;
use std::time::Duration;

use reel_engine::{CompileCancellation, Grammar, GrammarCompiler, GrammarSpec};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::shared::ServerState;
use super::{ApiError, encode, wrong_field};
use crate::error::{Error, Kind};

/// The maximum time that a request waits before its grammar is compiled.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The maximum size of the grammar's states of all completions of one request, in bytes. Each completion has a copy, and copying
/// 128 MiB takes about 60 ms of the threads that all requests share.
const MAX_REQUEST_BYTES: usize = 128 << 20;

/// The size of the grammars' states of all requests above which no further grammar is compiled, in bytes.
const MAX_BYTES: usize = 1 << 30;

/// Cancels the compilation when the handler of a request is dropped, because its client has left.
struct CancelOnDrop(Arc<CompileCancellation>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A grammar of a request, and the permit for the memory of the request's body, of which the grammar is a part.
type HeldSpec = (Arc<GrammarSpec>, Option<Arc<OwnedSemaphorePermit>>);

/// Compiles the grammar of a request for this number of completions. `field` is the request field with the grammar; a
/// grammar that was made from tools belongs to `tools`.
pub(crate) async fn compile(
    shared: &Arc<ServerState>,
    spec: HeldSpec,
    field: &'static str,
    completions: usize,
) -> Result<Grammar, ApiError> {
    if Grammar::bytes_of_all_states() > MAX_BYTES {
        let what = "the grammars of other requests take too much memory; try again later";
        return Err(ApiError::too_many_requests(what));
    }
    let grammar = compile_when_permitted(shared, spec, field).await?;
    match grammar.state_bytes().saturating_mul(completions) > MAX_REQUEST_BYTES {
        false => Ok(grammar),
        true => {
            let most = MAX_REQUEST_BYTES >> 20;
            let what = format!("needs more than {most} MiB for {completions} completions");
            Err(wrong_field(field, &what, "use a simpler grammar, or ask for fewer completions"))
        }
    }
}

/// Compiles a grammar on a blocking thread, unless it was compiled for one of the last requests.
async fn compile_when_permitted(
    shared: &Arc<ServerState>,
    spec: HeldSpec,
    field: &'static str,
) -> Result<Grammar, ApiError> {
    if let Some(grammar) = shared.grammar_compiler.get().and_then(|compiler| compiler.kept_grammar(&spec.0)) {
        return Ok(grammar);
    }
    let permit = timeout(MAX_WAIT, shared.grammar_permits.clone().acquire_owned()).await;
    // This semaphore is never closed, so the only error is that of the timeout.
    let Ok(Ok(permit)) = permit else {
        let what = "too many grammars are being compiled; try again later, or use simpler grammars";
        return Err(ApiError::too_many_requests(what));
    };
    let cancellation = Arc::new(CompileCancellation::default());
    let _cancel = CancelOnDrop(cancellation.clone());
    encode::run_on_blocking_thread(shared, move |shared| {
        let _permit = permit;
        compile_now(shared, &spec.0, field, &cancellation)
    })
    .await
}

fn compile_now(
    shared: &ServerState,
    spec: &GrammarSpec,
    field: &str,
    cancellation: &CompileCancellation,
) -> Result<Grammar, ApiError> {
    let compiler = match shared.grammar_compiler.get() {
        Some(compiler) => compiler,
        // If two requests create a compiler at the same time, one of the two compilers is kept.
        None => {
            let made = GrammarCompiler::new(&shared.model.folder).map_err(|e| ApiError::internal(e.to_string()))?;
            shared.grammar_compiler.get_or_init(|| made)
        }
    };
    compiler.compile_unless_cancelled(spec, cancellation).map_err(|e| match e {
        Error { kind: Kind::Request, diagnostic } => {
            let field = if diagnostic.location == "tools" { "tools" } else { field };
            wrong_field(field, &diagnostic.what, &diagnostic.help)
        }
        e => ApiError::of_engine(&e),
    })
}
