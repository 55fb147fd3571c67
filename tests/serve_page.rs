//! The web page of `reel serve`: its files and content security policy and, if there is a browser, what it shows and
//! does.
//!
//! The browser is the program in REEL_CHROMIUM, else chromium, chromium-headless-shell or google-chrome in PATH.
//! Without one these tests are skipped.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/scripted_server.rs"]
mod scripted_server;
#[path = "support/serving.rs"]
mod serving;
mod support;

use std::collections::BTreeSet;
use std::process::Command;

use browser::{Browser, find_browser};
use scripted_server::{ScriptedServer, ScriptedStep};
use serde_json::{Value, json};
use serving::{
    CHAT_PATH, GREY_PIXEL_PNG_BASE64, PREVIEW_PATH, Server, data_uri, http_agent, one_token_request, read_reply,
    write_clip,
};

#[test]
fn the_page_and_all_its_files_are_served_with_a_policy() {
    let server = Server::start(&["--api-key", "secret", "--max-body", "3"]);
    let html = server.get("/");
    let (mut waiting, mut seen) = (vec!["/".to_string()], BTreeSet::new());
    while let Some(path) = waiting.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let file = server.get(&path);
        assert_eq!(file.status, 200, "{path}");
        let wanted = match path.rsplit_once('.').map(|(_, end)| end) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(file.header("content-type"), wanted, "{path}");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        let policy = file.header("content-security-policy");
        for part in
            ["default-src 'none'", "script-src 'self'", "style-src 'self'", "require-trusted-types-for 'script'"]
        {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        // The files load nothing from other servers: the only URLs in them are XML namespaces.
        let foreign = file.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http:") && !foreign.contains("https:") && !foreign.contains("innerHTML"), "{path}");
        for (mark, end) in [("src=\"", '"'), ("href=\"", '"'), (" from './", '\'')] {
            let names = file.body.split(mark).skip(1).filter_map(|rest| rest.split(end).next());
            let names = names.filter(|name| !name.starts_with("data:"));
            waiting.extend(names.map(|name| format!("/page/{}", name.trim_start_matches("page/"))));
        }
    }
    assert!(seen.len() > 10, "{seen:?}");
    // The content security policy forbids inline scripts and styles, so the page must have none.
    assert!(!html.body.contains("<script>") && !html.body.contains("style=") && !html.body.contains("<style"));
    assert!(!html.body.contains(" onclick="));
    let limits: Value = serde_json::from_str(&server.get("/page/limits.json").body).unwrap();
    assert_eq!(limits["max_body_bytes"], 3 << 20);
    server.get("/page/none.js").error(404);
    server.post("/", "{}").error(405);
    // The page needs no API key, but the requests that it sends do.
    server.post(PREVIEW_PATH, &one_token_request(json!("x")).to_string()).error(401);
    let with_key =
        http_agent().post(format!("{}{PREVIEW_PATH}", server.address)).header("Authorization", "Bearer secret");
    assert_eq!(read_reply(with_key.send(one_token_request(json!("x")).to_string())).status, 200);
}

/// Starts a browser with a window of 1200 × 800. Without a browser, prints that the test is skipped and returns `None`.
fn browser(test: &str) -> Option<Browser> {
    let found = find_browser();
    if found.is_none() {
        println!(
            "skipped: {test}: no browser; install Debian's chromium-headless-shell, or set REEL_CHROMIUM to a Chromium"
        );
    }
    found.map(|program| Browser::start(&program, 1200, 800))
}

/// Types a question and sends it.
fn ask(page: &mut Browser, question: &str) {
    page.eval("document.getElementById('question').focus()");
    page.type_text(question);
    page.press_key("Enter", false);
}

/// Waits until no answer is being streamed.
#[track_caller]
fn wait_for_end(page: &mut Browser) {
    page.wait_until("!document.querySelector('[aria-busy=true]') && document.getElementById('stop').hidden");
}

/// Waits until the browser's store has the end of every answer.
fn wait_until_kept(page: &mut Browser) {
    page.eval(
        "import('/page/store.js').then(async (store) => {
            const streams = (one) => one.exchanges.some(({ answer }) => answer.status === 'streaming');
            while ((await store.conversations()).some(streams)) await new Promise((next) => setTimeout(next, 15));
        })",
    );
}

/// Sets a field in the page's settings.
fn set(page: &mut Browser, field: &str, value: &str) {
    let input = format!("document.getElementById('set-{field}')");
    page.eval(&format!("{input}.value = '{value}'; {input}.dispatchEvent(new Event('input')); 0"));
}

/// Checks that no script failed and that the content security policy blocked nothing. The browser also reports every
/// response with an error status; `statuses` lists those that the test expects.
#[track_caller]
fn check_errors(page: &mut Browser, statuses: &[&str]) {
    page.eval("0");
    let is_expected = |error: &&String| !statuses.iter().any(|status| error.contains(&format!("status of {status}")));
    let errors: Vec<&String> = page.errors.iter().filter(is_expected).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn a_video_is_asked_about_in_the_browser() {
    let Some(mut page) = browser("a_video_is_asked_about_in_the_browser") else { return };
    let server = Server::start(&[]);
    let clip = server.file("it's $HOME`x`.mp4");
    write_clip(&clip);
    page.open(&format!("{}/", server.address));
    page.wait_until("document.getElementById('model').textContent === 'tiny'");

    // After a clip is dropped onto the page, its frames and their times are shown, before a question is asked.
    page.drop_file(&clip);
    page.wait_until("document.querySelectorAll('.attached .frames img').length === 4");
    page.wait_until("[...document.querySelectorAll('.attached .frames img')].every((image) => image.naturalWidth > 0)");
    assert_eq!(page.visible_text(".attached .frames li:nth-child(2) figcaption"), "0.50 s");
    // Other frame settings change the frames that are shown.
    set(&mut page, "nframes", "8");
    page.wait_until("document.querySelectorAll('.attached .frames img').length === 8");
    assert_eq!(page.visible_text(".attached .frames li:nth-child(2) figcaption"), "0.25 s");
    set(&mut page, "max_completion_tokens", "2000");
    set(&mut page, "temperature", "0");

    // Shift+Enter inserts a line break, Enter sends. The answer grows while it is streamed.
    page.eval("document.getElementById('question').focus()");
    page.type_text("What");
    page.press_key("Enter", true);
    page.type_text("is this?");
    page.press_key("Enter", false);
    page.wait_until("document.querySelector('.answer[aria-busy=true] .parts')?.textContent.length > 5");
    let begun = page.visible_text(".parts").len();
    page.wait_until(&format!("document.querySelector('.parts').innerText.length > {}", begun + 20));
    assert!(page.count_elements(".answer[aria-busy=true]") == 1, "the answer was shown as a whole, not as it streamed");
    wait_for_end(&mut page);
    assert_eq!(page.visible_text(".question"), "What\nis this?");
    assert_eq!(page.count_elements(".exchange .frames img"), 8);
    let shown = page.visible_text(".measures");
    let body = json!({"messages": [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": data_uri(&clip)}, "nframes": 8},
        {"type": "text", "text": "What\nis this?"}]}], "max_completion_tokens": 2000, "temperature": 0});
    let wanted = server.ok(CHAT_PATH, &body);
    let raw = page.eval("document.querySelector('.actions button:nth-child(3)').click()").is_null();
    assert!(
        raw && page.visible_text(".raw").trim() == wanted["choices"][0]["message"]["content"].as_str().unwrap().trim()
    );
    // The page separates groups of digits by thin spaces. It shows no speed if the answer took less than 0.1 s.
    let shown = shown.replace('\u{2009}', "");
    for name in ["prompt", "completion"] {
        let tokens = wanted["usage"][format!("{name}_tokens")].to_string();
        assert!(shown.contains(&format!("{tokens} tokens")), "{name}: {tokens}, shown {shown}");
    }
    assert!(shown.contains("first token") && shown.contains("tokens/s"), "{shown}");
    check_curl(&mut page, &server, &wanted);

    // An API error is shown in place of the answer. The question does not become part of the conversation and can be
    // asked again.
    set(&mut page, "temperature", "-1");
    ask(&mut page, "And now?");
    wait_for_end(&mut page);
    let error = page.visible_text(".exchange:last-child .error");
    assert!(error.contains("temperature") && error.contains("status 400"), "{error}");
    set(&mut page, "temperature", "0");
    set(&mut page, "max_completion_tokens", "3");
    page.click(".exchange:last-child .actions button:nth-child(4)");
    wait_for_end(&mut page);
    assert_eq!(page.count_elements(".exchange"), 2);
    assert_eq!(page.eval("document.querySelectorAll('.error:not([hidden])').length"), 0);
    assert!(page.visible_text(".exchange:last-child .measures").contains("cut at max tokens"));

    // After a reload, the conversation with its frames is still there and can be continued.
    wait_until_kept(&mut page);
    page.open("about:blank");
    page.open(&format!("{}/", server.address));
    page.wait_until("document.querySelectorAll('#conversations li').length === 1");
    page.click("#conversations .open");
    page.wait_until("document.querySelectorAll('.exchange').length === 2");
    assert_eq!(page.count_elements(".exchange .frames img"), 8);
    let before = page.visible_text(".exchange:last-child .measures");
    ask(&mut page, "Go on");
    wait_for_end(&mut page);
    assert_eq!(page.count_elements(".exchange"), 3);
    assert!(prompt_tokens(&page.visible_text(".exchange:last-child .measures")) > prompt_tokens(&before));

    // The page shows an error for files that are not media, and for a broken video.
    let notes = server.file("notes.txt");
    std::fs::write(&notes, "no video").unwrap();
    page.choose_files("#file", &[&notes]);
    page.wait_until("document.getElementById('notice').textContent.includes('notes.txt is neither')");
    let broken = server.file("broken.mp4");
    std::fs::write(&broken, "no video either").unwrap();
    page.choose_files("#file", &[&broken]);
    page.wait_until("document.querySelector('.attached .error')?.textContent.length > 10");
    page.wait_until("!document.querySelector('.attached video')");
    page.click(".attached .head button");
    page.wait_until("!document.querySelector('.attached .medium')");
    // An image is pasted from the clipboard.
    let paste = format!(
        "const bytes = Uint8Array.from(atob('{GREY_PIXEL_PNG_BASE64}'), (c) => c.charCodeAt(0)); const data = new DataTransfer();
        data.items.add(new File([bytes], 'grey.png', {{type: 'image/png'}}));
        document.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: data, cancelable: true}}));"
    );
    page.eval(&paste);
    page.wait_until("document.querySelectorAll('.attached .frames img').length === 1");

    // The edit button puts the last question and its media back into the input field.
    ask(&mut page, "How grey?");
    wait_for_end(&mut page);
    page.click(".exchange:last-child .actions button:nth-child(5)");
    page.wait_until("document.querySelectorAll('.exchange').length === 3");
    assert_eq!(page.eval("document.getElementById('question').value"), "How grey?");
    assert_eq!(page.count_elements(".attached .frames img"), 1);

    // A click on a frame moves the player to its time.
    page.eval("document.querySelector('.exchange .frames li:nth-child(5) button').click()");
    page.wait_until("document.querySelector('.exchange video')?.currentTime === 1");

    check_names(&mut page);
    check_layout(&mut page);
    // The button deletes all conversations.
    page.resize(1200, 800);
    page.click("#clear");
    page.click("#clear");
    page.wait_until("document.querySelectorAll('#conversations li, .exchange').length === 0");
    check_errors(&mut page, &["400"]);
}

/// Returns the number of prompt tokens that the page shows.
fn prompt_tokens(shown: &str) -> u64 {
    let after = shown.split_once("prompt").unwrap_or_else(|| panic!("{shown:?}")).1;
    let digits = after.split_once("tokens").unwrap().0.chars().filter(char::is_ascii_digit);
    digits.collect::<String>().parse().unwrap()
}

/// Checks that the curl command of the first question returns the answer that the page shows.
fn check_curl(page: &mut Browser, server: &Server, wanted: &Value) {
    page.eval("navigator.clipboard.writeText = async (text) => { window.copied = text; }");
    page.click(".exchange .actions button:nth-child(2)");
    page.wait_until("window.copied");
    let command = page.eval("window.copied");
    let out = Command::new("sh").args(["-c", command.as_str().unwrap()]).current_dir(server.folder.path()).output();
    let out = out.unwrap();
    if out.status.code() == Some(127) {
        return println!("skipped: the copied command: no curl; install curl");
    }
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e} {out:?} {command}"));
    assert_eq!((&answer["choices"], &answer["usage"]), (&wanted["choices"], &wanted["usage"]), "{command}");
}

/// Checks that every interactive element has an accessible name.
fn check_names(page: &mut Browser) {
    let tree = page.call_method("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false);
    let roles = ["button", "textbox", "spinbutton", "Video", "image", "region", "list", "DisclosureTriangle"];
    let operated: Vec<&Value> = nodes.filter(|node| roles.iter().any(|role| node["role"]["value"] == *role)).collect();
    assert!(operated.len() > 40, "{}", operated.len());
    let nameless: Vec<&&Value> = operated.iter().filter(|node| node["name"]["value"] == "").collect();
    assert!(nameless.is_empty(), "{nameless:#?}");
}

/// Checks that at a width of 390 pixels nothing is cut off at the right, even with an open panel. The colours follow
/// the system setting and the button.
fn check_layout(page: &mut Browser) {
    let color = "getComputedStyle(document.body).backgroundColor";
    let (light, dark) = ("rgb(251, 251, 250)", "rgb(16, 18, 22)");
    page.set_preferred_color_scheme("dark");
    assert_eq!(page.eval(color), dark);
    page.resize(390, 844);
    let widths = "[document.documentElement.scrollWidth, document.body.scrollWidth,
        document.getElementById('thread').scrollWidth - document.getElementById('thread').clientWidth]";
    assert_eq!(page.eval(widths), json!([390, 390, 0]));
    // Every visible element lies inside the window, or inside an element that scrolls.
    let outside = "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility({visibilityProperty: true})
        && e.getBoundingClientRect().right > 390.5 && !e.closest('.frames')).map((e) => e.outerHTML.slice(0, 80))";
    assert_eq!(page.eval(outside), json!([]));
    for panel in ["history", "settings"] {
        page.click(&format!("#open-{panel}"));
        page.wait_until(&format!("getComputedStyle(document.getElementById('{panel}')).visibility === 'visible'"));
        assert_eq!((page.eval(widths), page.eval(outside)), (json!([390, 390, 0]), json!([])), "{panel}");
        page.press_key("Escape", false);
        page.wait_until(&format!("getComputedStyle(document.getElementById('{panel}')).visibility === 'hidden'"));
    }
    page.click("#theme");
    assert_eq!(page.eval(color), light, "the button chooses light");
    page.click("#theme");
    page.set_preferred_color_scheme("light");
    assert_eq!(page.eval(color), dark, "the button chooses dark");
    page.click("#theme");
    assert_eq!(page.eval(color), light, "the button chooses the system's colours");
}

/// The tiny model generates no `<think>`, so a scripted server answers the chat requests of this test.
#[test]
fn thinking_is_folded_and_text_stays_text_in_the_browser() {
    let Some(mut page) = browser("thinking_is_folded_and_text_stays_text_in_the_browser") else { return };
    let real = Server::start(&[]);
    let server = ScriptedServer::start(&real.address);
    page.open(&format!("{}/", server.address));
    page.wait_until("document.getElementById('model').textContent === 'tiny'");
    page.eval(
        "document.getElementById('system').value = 'Be brief.'; \
        document.getElementById('system').dispatchEvent(new Event('input')); 0",
    );

    let markup = "<img src=x onerror='window.hacked=1'>";
    ask(&mut page, markup);
    let body = server.next_chat_request();
    assert_eq!(
        body["messages"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": markup}])
    );
    // The reasoning is expanded while it is streamed. A tag that has arrived only in part is not shown.
    server.do_step(ScriptedStep::Piece("<think>The ball starts"));
    page.wait_until("document.querySelector('.think[open] .prose')?.textContent === 'The ball starts'");
    server.do_step(ScriptedStep::Piece(" left <b>.</thi"));
    page.wait_until("document.querySelector('.think[open] .prose').textContent === 'The ball starts left <b>.'");
    server.do_step(ScriptedStep::Piece("nk><answ"));
    page.wait_until("document.querySelector('.think:not([open]) summary')?.textContent.includes('5 words')");
    assert_eq!(page.count_elements(".final"), 0);
    server.do_step(ScriptedStep::Piece(
        "er>right <i onmouseover='window.hacked=1'>x</i><script>window.hacked=1</script>",
    ));
    page.wait_until("document.querySelector('.final')?.textContent.includes('right')");
    server.do_step(ScriptedStep::Piece("\n```py\na < b\n```\n</answer>"));
    server.do_step(ScriptedStep::End);
    wait_for_end(&mut page);
    assert_eq!(
        page.visible_text(".final p"),
        "right <i onmouseover='window.hacked=1'>x</i><script>window.hacked=1</script>"
    );
    assert_eq!(page.visible_text(".final pre"), "a < b");
    assert_eq!(page.count_elements(".final i, .final script, .question img"), 0);
    assert_eq!(page.visible_text(".question"), markup);
    assert_eq!(page.eval("window.hacked === undefined"), true);
    let shown = page.visible_text(".measures");
    assert!(shown.contains("7 tokens") && shown.contains("5 tokens") && shown.contains("first token"), "{shown}");
    assert!(page.visible_text(".context").starts_with("12 / "));
    page.click(".think summary");
    page.wait_until("document.querySelector('.think').open");

    // Esc aborts the request: the server sees a closed connection. The text that has arrived stays.
    ask(&mut page, "And then?");
    let body = server.next_chat_request();
    let earlier: Vec<&str> = body["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(earlier, ["system", "user", "assistant", "user"]);
    assert!(body["messages"][2]["content"].as_str().unwrap().starts_with("<think>The ball starts left"));
    server.do_step(ScriptedStep::Piece("It goes"));
    page.wait_until("document.querySelector('.exchange:last-child .parts').textContent === 'It goes'");
    assert!(page.eval("document.getElementById('send').hidden") == true);
    page.press_key("Escape", false);
    server.wait_until_client_disconnects();
    wait_for_end(&mut page);
    assert!(page.visible_text(".exchange:last-child .measures").contains("stopped"));
    assert_eq!(page.visible_text(".exchange:last-child .parts"), "It goes");
    // The stop button does the same as Esc, even before the first token.
    ask(&mut page, "And?");
    server.next_chat_request();
    page.wait_until("!document.getElementById('stop').hidden");
    page.click("#stop");
    server.wait_until_client_disconnects();
    wait_for_end(&mut page);

    // An error in the middle of a streamed answer is shown below its text.
    ask(&mut page, "Fail");
    server.next_chat_request();
    server.do_step(ScriptedStep::Piece("half"));
    server.do_step(ScriptedStep::Error("the engine has <b>ended</b>"));
    wait_for_end(&mut page);
    assert!(page.visible_text(".exchange:last-child .error").starts_with("the engine has <b>ended</b>"));
    assert_eq!(page.visible_text(".exchange:last-child .parts"), "half");
    ask(&mut page, "Break");
    server.next_chat_request();
    server.do_step(ScriptedStep::Piece("half"));
    server.do_step(ScriptedStep::Hang);
    wait_for_end(&mut page);
    assert!(page.visible_text(".exchange:last-child .error").starts_with("the connection ended"));
    check_errors(&mut page, &[]);
}

#[test]
fn the_page_asks_for_the_api_key_and_refuses_large_files_in_the_browser() {
    let name = "the_page_asks_for_the_api_key_and_refuses_large_files_in_the_browser";
    let Some(mut page) = browser(name) else { return };
    let server = Server::start(&["--api-key", "secret", "--max-body", "1"]);
    page.open(&format!("{}/", server.address));
    page.wait_until("!document.getElementById('key-form').hidden");
    for (key, works) in [("wrong", false), ("secret", true)] {
        page.eval("document.getElementById('key-now').focus()");
        page.type_text(key);
        page.press_key("Enter", false);
        page.wait_until(&format!("(document.getElementById('model').textContent === 'tiny') === {works}"));
        page.wait_until(&format!("document.getElementById('key-form').hidden === {works}"));
    }
    set(&mut page, "max_completion_tokens", "4");
    ask(&mut page, "Hello");
    page.wait_until("document.querySelector('.measures')?.textContent.includes('4 tokens')");
    // The API key is stored only for the session of the browser tab.
    assert_eq!(page.eval("JSON.stringify(localStorage).includes('secret')"), false);
    // The page does not send a file that is larger than the server's limit.
    let large = server.file("large.mp4");
    std::fs::write(&large, vec![0; 1 << 20]).unwrap();
    page.choose_files("#file", &[&large]);
    page.wait_until("document.querySelector('.attached .error')?.textContent.includes('1.3 MiB')");
    assert!(page.visible_text(".attached .error").contains("--max-body"));
    check_errors(&mut page, &["401"]);
}
