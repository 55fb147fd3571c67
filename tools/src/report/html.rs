//! The parts that all pages share: head, style sheet, scripts and title. A page is one file that loads no other files:
//! its Content Security Policy forbids all requests, and allows only the two scripts that are part of this crate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::report::chart::Chart;
use crate::report::escape::escape_html;
use crate::report::table::HtmlTable;

const STYLE: &str = include_str!("page.css");
/// The chart library and the script that uses it. `tools/vendor/uplot` has the library's version and licence.
const SCRIPTS: [&str; 2] = [include_str!("../../vendor/uplot/uPlot.iife.min.js"), include_str!("page.js")];
const CHART_STYLE: &str = include_str!("../../vendor/uplot/uPlot.min.css");

/// An HTML page that is being written.
#[derive(Debug)]
pub struct HtmlPage {
    title: String,
    style: &'static str,
    body: String,
    /// Whether the page has charts or rollouts, which need the scripts.
    interactive: bool,
    /// The page's own script.
    script: Option<&'static str>,
}

impl HtmlPage {
    /// An empty page with a title, which is also its headline.
    pub fn new(title: &str) -> HtmlPage {
        HtmlPage { title: escape_html(title), style: "", body: String::new(), interactive: false, script: None }
    }

    /// Adds CSS rules to this page, after the style sheet that all pages have.
    #[must_use]
    pub fn with_style(self, css: &'static str) -> HtmlPage {
        HtmlPage { style: css, ..self }
    }

    /// Adds a script of this crate, which runs after the page is read.
    #[must_use]
    pub(crate) fn with_script(self, script: &'static str) -> HtmlPage {
        HtmlPage { script: Some(script), ..self }
    }

    /// Adds HTML. The caller must have escaped all texts in it.
    pub fn add(&mut self, html: &str) {
        self.body += html;
    }

    /// Adds a chart. If all lines of a line chart are constant, adds a sentence with their values instead.
    pub fn add_chart(&mut self, chart: &Chart) {
        match chart.constant_values_html() {
            Some(values) => self.body += &values,
            None => self.add_interactive(&chart.html()),
        }
    }

    /// Adds a table; adds nothing if it has no rows.
    pub fn add_table(&mut self, table: &HtmlTable) {
        self.body += &table.html();
    }

    /// Adds HTML that `page.js` makes interactive, such as groups of rollouts.
    pub(crate) fn add_interactive(&mut self, html: &str) {
        self.add(html);
        self.interactive = true;
    }

    /// Returns the whole page as HTML.
    pub fn into_html(self) -> String {
        let HtmlPage { title, style, body, interactive, script } = self;
        let of_charts = if interactive { &SCRIPTS[..] } else { &[] };
        let scripts: Vec<&str> = of_charts.iter().copied().chain(script).collect();
        let chart_style = if interactive { CHART_STYLE } else { "" };
        let hashes: String =
            scripts.iter().map(|s| format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(s)))).collect();
        let allowed = if hashes.is_empty() { " 'none'" } else { &hashes };
        let tags: String = scripts.iter().map(|script| format!("<script>{script}</script>\n")).collect();
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
             style-src 'unsafe-inline'; script-src{allowed}\">\
             <title>{title}</title><style>{chart_style}{STYLE}{style}</style></head>\n\
             <body><main><h1>{title}</h1>\n{body}</main>\n{tags}</body></html>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{LineSeries, XAxis, YRange};
    use proptest::prelude::*;

    /// Returns texts with the characters that end HTML elements, strings, comments and attributes.
    fn hostile() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("</script>".to_string()),
            Just("<!--<script>".to_string()),
            Just("\"'>&\u{2028}\u{202e}\u{1b}\0".to_string()),
            ".{0,6}"
        ];
        prop::collection::vec(part, 1..5).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// No text can add an element or a script to a page, and the chart's JSON has every text with its control
        /// characters made visible.
        #[test]
        fn texts_cannot_add_elements_to_a_page(text in hostile()) {
            let page = |text: &str| {
                let mut page = HtmlPage::new(text);
                let series = LineSeries::new(text, vec![(1, 0.5), (2, 1.0)]);
                let (name, series) = (text.to_string(), vec![series]);
                page.add_chart(&Chart::Lines { name, x: XAxis::Steps, unit: "", series, range: YRange::Robust });
                let mut table = HtmlTable::new(&["a"]);
                table.add_row(vec![escape_html(text)]);
                page.add_table(&table);
                page.into_html()
            };
            let html = page(&text);
            let tags = |html: &str| html.matches('<').count();
            prop_assert_eq!(tags(&html), tags(&page("plain")));
            prop_assert!(!html.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
            let data = html.split("<script type=\"application/json\">").nth(1).unwrap();
            let json = data.split("</script>").next().unwrap();
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            prop_assert_eq!(value["name"].as_str().unwrap(), &*reel_support::diagnostic::escape_controls(&text));
        }
    }

    #[test]
    fn page_loads_nothing_and_allows_only_its_own_scripts() {
        let mut page = HtmlPage::new("a page");
        let plain = HtmlPage::new("b").into_html();
        assert!(plain.contains("script-src 'none'") && !plain.contains("<script"));
        page.add_interactive("");
        let html = page.into_html();
        assert_eq!(html.matches("'sha256-").count(), 2);
        for script in SCRIPTS {
            let hash = STANDARD.encode(Sha256::digest(script));
            assert!(html.contains(&format!("'sha256-{hash}'")) && html.contains(&format!("<script>{script}</script>")));
            assert!(!script.contains("</script"), "the script would end early");
        }
        assert!(html.contains("default-src 'none'") && !html.contains("src=\"") && !html.contains("href=\"h"));
    }
}
