//! `/v1/responses`: OpenAI's Responses API. [`request`] and [`input`] translate a request into a chat request, which is
//! then answered as any other; [`writer`] gives the answer the form of this API. The server stores no responses.

mod input;
mod request;
mod writer;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use reel_support::diagnostic::Diagnostic;

pub(crate) use self::writer::ResponseWriter;
use super::fields::RequestFields;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use super::{ApiError, chat};
use crate::http::RequestLog;

/// `POST /v1/responses`
pub(crate) async fn create_response(
    State(shared): State<Arc<ServerState>>,
    Extension(log): Extension<Arc<RequestLog>>,
    body: Body,
) -> Result<Response, ApiError> {
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::read(&shared, body).await?;
    let request::ChatTranslation { messages, locations, repeated } =
        request::into_chat_request(fields.remaining_fields())?;
    let answer = chat::answer_messages(&shared, log, fields, messages.into(), Some(repeated)).await;
    answer.map_err(|e| request::with_names_of_responses(e, &locations))
}

/// `GET /v1/responses/ID` and `DELETE /v1/responses/ID`
pub(crate) async fn unknown_response(Path(id): Path<String>) -> ApiError {
    let help = "use the answer of the request itself";
    let diagnostic =
        Diagnostic::new(format!("response {id}"), "is not here, because this server stores no responses", help);
    ApiError::not_found(diagnostic.to_string(), Some("response_id".into()))
}
