//! Escaping of text and data in HTML.

/// Escapes text for HTML content and attributes. Control characters in texts of models and data rows are made visible.
pub fn escape_html(text: &str) -> String {
    reel_support::diagnostic::escape_controls(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// Writes a value as JSON for a `<script>` element. No string in the JSON can end the element or begin an HTML comment,
/// and control characters are escaped. A JSON parser reads the same value.
pub(crate) fn json_in_script(value: &serde_json::Value) -> String {
    reel_support::diagnostic::escape_controls_in_json(&value.to_string())
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}
