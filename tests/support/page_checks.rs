//! Shared code of the tests of HTML pages in a browser: finding the browser, opening a file, and checks of errors and
//! layout.
//!
//! The browser is the program in REEL_CHROMIUM, else chromium, chromium-headless-shell or google-chrome in PATH.
//! Without a browser these tests are skipped. If REEL_SCREENSHOTS names a folder, screenshots of the pages are
//! written there.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::path::Path;

use serde_json::json;

use super::browser::{Browser, find_browser};

/// Starts a browser with a window of 1200 × 900. Without a browser, prints that the test is skipped and returns `None`.
pub fn start_browser(test: &str) -> Option<Browser> {
    let found = find_browser();
    if found.is_none() {
        println!(
            "skipped: {test}: no browser; install Debian's chromium-headless-shell, or set REEL_CHROMIUM to a Chromium"
        );
    }
    found.map(|program| Browser::start(&program, 1200, 900))
}

/// Opens an HTML file; `state` is appended to its URL.
pub fn open_page(page: &mut Browser, file: &Path, state: &str) {
    page.open("about:blank");
    page.open(&format!("file://{}{state}", file.display()));
}

/// Writes a screenshot of the page, if REEL_SCREENSHOTS names a folder for it.
pub fn save_screenshot(page: &mut Browser, name: &str) {
    if let Some(folder) = std::env::var_os("REEL_SCREENSHOTS") {
        page.screenshot(&Path::new(&folder).join(format!("{name}.png")));
    }
}

/// Checks that no script failed and that the content security policy blocked nothing.
#[track_caller]
pub fn check_errors(page: &mut Browser) {
    page.eval("0");
    assert!(page.errors.is_empty(), "{:#?}", page.errors);
}

/// Checks that nothing is cut off at the right in a window of this size.
#[track_caller]
pub fn check_width(page: &mut Browser, width: u32, height: u32) {
    page.resize(width, height);
    // The vertical scroll bar takes some of the width, so `clientWidth` is compared.
    let widths = "[document.documentElement, document.body].map((e) => e.scrollWidth - e.clientWidth)";
    assert_eq!(page.eval(widths), json!([0, 0]));
    // Every visible element lies inside the window, or inside an element that scrolls.
    let outside = "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility({visibilityProperty: true})
        && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5 && !e.closest('.scroll')).map((e) => e.outerHTML.slice(0, 80))";
    assert_eq!(page.eval(outside), json!([]));
}

/// Checks that nothing is cut off at the right at a width of 390 pixels, and that the colours follow the system
/// setting.
#[track_caller]
pub fn check_layout(page: &mut Browser) {
    check_width(page, 390, 844);
    let color = "getComputedStyle(document.body).backgroundColor";
    page.set_preferred_color_scheme("dark");
    assert_eq!(page.eval(color), "rgb(16, 18, 22)");
    page.set_preferred_color_scheme("light");
    assert_eq!(page.eval(color), "rgb(251, 251, 250)");
}
