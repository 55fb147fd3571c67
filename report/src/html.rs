//! What all pages share: head, style sheet, title. A page loads no other files.

const STYLE: &str = include_str!("html.css");

/// The end of a page.
pub const PAGE_END: &str = "</main></html>\n";

/// The start of a page, up to and including its title.
pub fn page_start_html(title: &str) -> String {
    let title = escape_html(title);
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1>"
    )
}

/// Escapes text for HTML content and attributes. Control characters of models and rows become visible.
pub fn escape_html(text: &str) -> String {
    reel_diagnostic::escape_controls(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
