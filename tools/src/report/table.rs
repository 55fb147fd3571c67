//! HTML tables that fit narrow screens. On a narrow screen, a table with many columns shows each row as a card: a
//! block with the column's name next to each value.

use std::fmt::Write;

use crate::report::escape::escape_html;

/// Tables with more columns than this become cards on a narrow screen.
const MAX_NARROW_COLUMNS: usize = 3;

/// A table. The first column holds names and is left-aligned.
#[derive(Debug)]
pub struct HtmlTable {
    columns: Vec<String>,
    /// The first `text_columns` columns hold texts, all other columns hold numbers.
    text_columns: usize,
    rows: Vec<(String, Vec<String>)>,
}

impl HtmlTable {
    /// A table with these column titles.
    pub fn new(columns: &[&str]) -> HtmlTable {
        HtmlTable { columns: columns.iter().map(|c| c.to_string()).collect(), text_columns: 1, rows: Vec::new() }
    }

    /// Makes the first `count` columns left-aligned texts.
    #[must_use]
    pub fn with_text_columns(self, count: usize) -> HtmlTable {
        HtmlTable { text_columns: count, ..self }
    }

    /// Adds a row of cells. A cell is HTML: the caller has escaped the texts in it.
    pub fn add_row(&mut self, cells: Vec<String>) {
        self.add_row_with_attributes("", cells);
    }

    /// Adds a row with HTML attributes, such as ` id="x"`.
    pub fn add_row_with_attributes(&mut self, attributes: &str, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push((attributes.to_string(), cells));
    }

    /// Returns the table as HTML; empty if it has no rows.
    pub fn html(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let is_wide = self.columns.len() > MAX_NARROW_COLUMNS;
        let cards = if is_wide { " class=\"cards\"" } else { "" };
        let align = |i: usize| if i < self.text_columns { " class=\"text\"" } else { "" };
        let mut html = format!("<div class=\"scroll\"><table{cards}><thead><tr>");
        for (i, column) in self.columns.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(html, "<th{}>{}</th>", align(i), escape_html(column));
        }
        html += "</tr></thead><tbody>\n";
        for (attributes, cells) in &self.rows {
            let _ = write!(html, "<tr{attributes}>");
            for (i, (cell, column)) in cells.iter().zip(&self.columns).enumerate() {
                // A card hides empty cells. The first cell of a card is the card's title and needs no label.
                let label = match !is_wide || column.is_empty() || cell.is_empty() || i == 0 {
                    true => String::new(),
                    false => format!(" data-label=\"{}\"", escape_html(column)),
                };
                let _ = write!(html, "<td{}{label}>{cell}</td>", align(i));
            }
            html += "</tr>\n";
        }
        html + "</tbody></table></div>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_with_many_columns_become_cards() {
        let mut narrow = HtmlTable::new(&["a", "b"]);
        assert_eq!(narrow.html(), "");
        narrow.add_row(vec!["1".into(), "2".into()]);
        assert!(!narrow.html().contains("cards") && narrow.html().contains("<th class=\"text\">a</th><th>b</th>"));
        let mut wide = HtmlTable::new(&["kernel", "ms", "GB/s", "\"x\""]).with_text_columns(2);
        wide.add_row_with_attributes(" id=\"k\"", vec!["k".into(), "1".into(), String::new(), "3".into()]);
        let html = wide.html();
        assert!(html.contains("class=\"cards\"") && html.contains("<tr id=\"k\"><td class=\"text\">k</td>"));
        assert!(html.contains("data-label=\"ms\">1</td><td></td><td data-label=\"&quot;x&quot;\">3</td>"), "{html}");
    }
}
