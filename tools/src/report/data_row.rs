//! The page of `reel data show`: the text of a row with its learned tokens marked, and the frames of its images and
//! videos.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reel_input::media::Result;
use reel_input::media::strip::{evenly_spaced, frame_thumbnail};
use reel_input::prompt_media::PromptMedium;
use reel_samples::token_runs::TokenRun;

use crate::report::escape::escape_html;
use crate::report::html::HtmlPage;
use crate::report::table::HtmlTable;

/// Maximum width and height of a picture in pixels.
const MAX_SIDE: usize = 224;
/// Maximum number of pictures of an image or video. From a longer video, evenly spaced frames are shown.
const MAX_PICTURES: usize = 64;

const STYLE: &str = "
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--line); \
border-radius: 10px; padding: 10px 12px; }
.tokens mark { background: color-mix(in srgb, var(--good) 25%, transparent); color: inherit; border-radius: 3px; }
.tokens i { color: var(--accent); font-style: normal; }
.frames { display: flex; flex-wrap: wrap; gap: 8px; }
.frames figure { margin: 0; } .frames img { display: block; border-radius: 4px; max-width: 100%; }
.frames figcaption { color: var(--dim); font-variant-numeric: tabular-nums; }
";

/// A row as a training command uses it.
#[derive(Debug)]
pub struct ShownRow<'a> {
    /// File and line of the row.
    pub title: String,
    /// Lines about the whole row: the command, and the numbers of tokens.
    pub summary: Vec<String>,
    /// The rendered text.
    pub runs: Vec<TokenRun>,
    /// The images and videos in the order of the prompt, each with its description.
    pub media: Vec<(PromptMedium<'a>, String)>,
    /// The columns that rewards see, each with its value as text.
    pub reward_columns: Vec<(String, String)>,
}

/// The page about a row.
///
/// # Errors
/// The frames do not have the length that their size states, or memory runs out.
pub fn data_row_page_html(row: &ShownRow) -> Result<String> {
    let mut page = HtmlPage::new(&row.title).with_style(STYLE);
    for line in &row.summary {
        page.add(&format!("<p>{}</p>\n", escape_html(line)));
    }
    page.add("<h2>Text</h2>\n<pre class=\"tokens\">");
    for run in &row.runs {
        let text = escape_html(&run.text);
        let text = if run.is_media { format!("<i>{text}</i>") } else { text };
        page.add(&if run.learned { format!("<mark>{text}</mark>") } else { text });
    }
    page.add("</pre>\n<p class=\"note\">Learned tokens are marked.</p>\n");
    for (medium, description) in &row.media {
        page.add(&format!(
            "<h2>{}</h2>\n<div class=\"frames\">\n{}</div>\n",
            escape_html(description),
            frames(medium)?
        ));
    }
    if !row.reward_columns.is_empty() {
        page.add("<h2>What rewards see</h2>\n");
        let mut table = HtmlTable::new(&["column", "value"]).with_text_columns(2);
        for (name, value) in &row.reward_columns {
            table.add_row(vec![escape_html(name), escape_html(value)]);
        }
        page.add_table(&table);
    }
    Ok(page.into_html())
}

/// The pictures of an image or video, each with its time.
fn frames(medium: &PromptMedium) -> Result<String> {
    let mut html = String::new();
    for index in evenly_spaced(medium.frames.frames, MAX_PICTURES) {
        let png = frame_thumbnail(medium.frames, index, MAX_SIDE)?;
        let caption = medium.times.get(index).map_or(String::new(), |time| format!("frame {}: {time:.2} s", index + 1));
        // Writing to a string cannot fail.
        let _ = writeln!(
            html,
            "<figure><img alt=\"\" width=\"{}\" height=\"{}\" src=\"data:image/png;base64,{}\">\
             <figcaption>{caption}</figcaption></figure>",
            png.width,
            png.height,
            STANDARD.encode(&png.bytes)
        );
    }
    Ok(html)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reel_input::media::frames::FrameBuf;

    #[test]
    fn page_marks_learned_text_and_has_a_picture_for_each_frame() {
        let run = |text: &str, learned, is_media| TokenRun { text: text.into(), tokens: 1, learned, is_media };
        let frames = FrameBuf { data: vec![7; 3 * 28 * 56 * 3].into(), frames: 3, height: 28, width: 56 };
        let times = [0.0, 0.5, 1.0];
        let medium = PromptMedium { kind: "video", frames: &frames, grid: [2, 2, 4], vision_tokens: 4, times: &times };
        let html = data_row_page_html(&ShownRow {
            title: "a<b>.jsonl:1".into(),
            summary: vec!["9 tokens".into()],
            runs: vec![
                run("<|im_start|>", false, false),
                run("<|video_pad|> x 4", false, true),
                run("yes", true, false),
            ],
            media: vec![(medium, "video 1".into())],
            reward_columns: vec![("solution".into(), "<answer>".into())],
        })
        .unwrap();
        assert!(html.contains("a&lt;b&gt;.jsonl:1") && html.contains("&lt;answer&gt;"), "{html}");
        assert!(html.contains("<mark>yes</mark>") && html.contains("<i>&lt;|video_pad|&gt; x 4</i>"), "{html}");
        assert!(html.matches("<img ").count() == 3 && html.contains("frame 2: 0.50 s"), "{html}");
    }
}
