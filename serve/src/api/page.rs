//! `GET /`: a page to try the model, with its style and its scripts. All files are part of the program, and the page
//! requests nothing from other servers.
//!
//! The page is served without an API key, because it holds no data of the model. Its requests to `/v1` carry the key
//! that the user types.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::shared::ServerState;

/// The Content-Security-Policy of the page. Scripts and styles come from this server only. No text can become a
/// script, because the browser refuses inline scripts and every assignment of text as HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
     media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type and text of each file of the page.
const FILES: [(&str, &str, &str); 15] = [
    ("/", HTML, include_str!("../page/index.html")),
    ("/page/page.css", CSS, include_str!("../page/page.css")),
    ("/page/theme.js", SCRIPT, include_str!("../page/theme.js")),
    ("/page/page.js", SCRIPT, include_str!("../page/page.js")),
    ("/page/api.js", SCRIPT, include_str!("../page/api.js")),
    ("/page/answer.js", SCRIPT, include_str!("../page/answer.js")),
    ("/page/composer.js", SCRIPT, include_str!("../page/composer.js")),
    ("/page/dom.js", SCRIPT, include_str!("../page/dom.js")),
    ("/page/exchange.js", SCRIPT, include_str!("../page/exchange.js")),
    ("/page/history.js", SCRIPT, include_str!("../page/history.js")),
    ("/page/media.js", SCRIPT, include_str!("../page/media.js")),
    ("/page/panels.js", SCRIPT, include_str!("../page/panels.js")),
    ("/page/request.js", SCRIPT, include_str!("../page/request.js")),
    ("/page/settings.js", SCRIPT, include_str!("../page/settings.js")),
    ("/page/store.js", SCRIPT, include_str!("../page/store.js")),
];

/// The routes of the page.
pub(crate) fn routes() -> Router<Arc<ServerState>> {
    let with_limits = Router::new().route("/page/limits.json", get(limits));
    FILES.iter().fold(with_limits, |router, &(path, content_type, text)| {
        router.route(path, get(move || async move { file(content_type, text) }))
    })
}

fn file(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The browser must revalidate its copy each time, because a later version of the program may listen on this
        // address.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// `GET /page/limits.json`: the limit of a request's size. The page refuses a larger file before it is sent, because a
/// browser shows no answer to a request that the server stops reading.
async fn limits(State(shared): State<Arc<ServerState>>) -> Json<Value> {
    Json(json!({"max_body_bytes": shared.limits.body_bytes}))
}
