//! `/openapi.json`: the document of this API. `/docs`: a page that shows it and loads nothing.
//!
//! The document is a file, `openapi.json`. Tests compare it with the routes of the server and send each of its examples
//! to a server (`tests/serve.rs`).

use std::fmt::Write;
use std::sync::LazyLock;

use axum::Json;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse};
use serde_json::Value;

/// The document, with the version of this program.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("openapi.json").replace("\"VERSION\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""));
    // A test parses the file, so it is JSON.
    serde_json::from_str(&text).unwrap_or_default()
});

static PAGE: LazyLock<String> = LazyLock::new(|| page_of(&DOCUMENT));

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
    color:#222;background:#fff}code{font:14px ui-monospace,monospace}h2{margin-top:2.5rem}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;\
    border-bottom:1px solid #ddd}td:last-child{width:60%}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}}";

/// `GET /openapi.json`
pub(crate) async fn openapi_json() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

/// `GET /docs`
pub(crate) async fn openapi_page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
    ([(CONTENT_SECURITY_POLICY, policy)], Html(PAGE.as_str()))
}

/// The page of a document: each endpoint with the fields of its request, then the objects of answers.
fn page_of(document: &Value) -> String {
    let mut page = String::new();
    let (title, about) = (text(&document["info"]["title"]), text(&document["info"]["description"]));
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <h1>{title} {}</h1>\n<p>{about}</p>\n",
        text(&document["info"]["version"])
    );
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let key = if operation["security"].is_array() { " Needs an API key if the server has keys." } else { "" };
            let (method, path) = (method.to_uppercase(), escape(path));
            let summary = text(&operation["summary"]);
            let _ = writeln!(page, "<h2><code>{method} {path}</code></h2>\n<p>{summary}.{key}</p>");
            let body = resolve(document, &operation["requestBody"]);
            write_fields(&mut page, document, &body["content"]["application/json"]["schema"]);
        }
    }
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    for (name, schema) in schemas.filter(|(name, _)| !name.ends_with("Request")) {
        let _ = writeln!(page, "<h2 id=\"{0}\">{0}</h2>", escape(name));
        write_fields(&mut page, document, schema);
    }
    page + "</html>\n"
}

/// Writes a table of the fields of an object.
fn write_fields(page: &mut String, document: &Value, schema: &Value) {
    let schema = resolve(document, schema);
    let Some(fields) = schema["properties"].as_object() else { return };
    page.push_str("<table><tr><th>field<th>type<th>meaning</tr>\n");
    for (name, field) in fields {
        let required = schema["required"].as_array().is_some_and(|names| names.iter().any(|other| other == name));
        let mark = if required { " (required)" } else { "" };
        let meaning = text(&resolve(document, field)["description"]);
        let _ = writeln!(page, "<tr><td><code>{}</code>{mark}<td>{}<td>{meaning}</tr>", escape(name), type_of(field));
    }
    page.push_str("</table>\n");
}

/// The type of a field as HTML. If the type is an object with a name, a link to the object.
fn type_of(field: &Value) -> String {
    if let Some(name) = field["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    if let Some(kinds) = field["anyOf"].as_array() {
        return kinds.iter().map(type_of).collect::<Vec<_>>().join(" or ");
    }
    let plain = match (&field["type"], &field["const"], &field["enum"]) {
        (Value::String(name), ..) => name.clone(),
        (Value::Array(names), ..) => names.iter().map(text).collect::<Vec<_>>().join(" or "),
        (_, _, Value::Array(values)) => values.iter().map(Value::to_string).collect::<Vec<_>>().join(" or "),
        (_, value, _) => value.to_string(),
    };
    match field.get("items").filter(|items| items.get("$ref").is_some()) {
        Some(items) => format!("{} of {}", escape(&plain), type_of(items)),
        None => escape(&plain),
    }
}

/// Follows a `$ref` to the value that it refers to. Returns any other value unchanged.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let path = value["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
    path.and_then(|path| document.pointer(path)).unwrap_or(value)
}

/// A text as HTML.
fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_exactly_the_routes_of_the_server() {
        let routes = include_str!("../server.rs").split(".route(\"").skip(1);
        let mut routes: Vec<String> =
            routes.filter_map(|rest| rest.split('"').next()).map(|path| path.replace("{*name}", "{name}")).collect();
        let mut paths: Vec<String> = DOCUMENT["paths"].as_object().unwrap().keys().cloned().collect();
        routes.sort();
        paths.sort();
        assert_eq!(routes, paths);
    }

    #[test]
    fn every_reference_has_a_target_and_every_schema_is_used() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| match value.as_str() {
                    Some(target) if key == "$ref" => found.push(target.to_string()),
                    _ => references(value, found),
                }),
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        for target in &found {
            assert!(DOCUMENT.pointer(target.strip_prefix('#').unwrap()).is_some(), "{target}");
        }
        for name in DOCUMENT["components"]["schemas"].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/schemas/{name}")), "{name}");
        }
    }

    /// With `include_usage`, every chunk except the last one has the field `usage` with the value null.
    #[test]
    fn chunks_may_have_a_usage_that_is_null() {
        let usage = serde_json::json!([{"$ref": "#/components/schemas/Usage"}, {"type": "null"}]);
        for schema in ["ChatChunk", "TextAnswer"] {
            assert_eq!(DOCUMENT["components"]["schemas"][schema]["properties"]["usage"]["anyOf"], usage, "{schema}");
        }
        assert!(PAGE.contains("<td><code>usage</code><td><a href=\"#Usage\">Usage</a> or null<td>"));
    }

    #[test]
    fn the_page_shows_every_path_and_field_and_loads_nothing() {
        for path in DOCUMENT["paths"].as_object().unwrap().keys() {
            assert!(PAGE.contains(&format!(" {path}</code>")), "{path}");
        }
        let schemas = DOCUMENT["components"]["schemas"].as_object().unwrap();
        for field in schemas.values().filter_map(|schema| schema["properties"].as_object()).flatten() {
            assert!(PAGE.contains(&format!("<td><code>{}</code>", field.0)), "{}", field.0);
        }
        assert!(PAGE.starts_with("<!doctype html>") && PAGE.ends_with("</html>\n"));
        for word in ["<script", "src=", "url(", "@import", "http:", "https:"] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
