//! Drives a headless Chromium through the Chrome DevTools Protocol: JSON messages over two pipes, each followed by a
//! zero byte.
#![allow(dead_code, reason = "no test program uses all of this module")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Time limit for the page to show something.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for the browser to end by itself after it was asked to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Names of browser programs. The first one in PATH is used.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-headless-shell", "google-chrome"];

/// Returns the path of a browser program: the value of REEL_CHROMIUM, or else a program in PATH.
pub fn find_browser() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("REEL_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    PROGRAMS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

/// A running browser with one page. Dropping it ends the browser.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    answers: Receiver<Value>,
    session: Option<String>,
    next: u64,
    /// Uncaught errors of scripts, and errors in the console, such as files that do not load or are blocked by the
    /// content security policy.
    pub errors: Vec<String>,
    _profile: TempDir,
}

/// A shell command that starts the browser with file descriptors 3 and 4 as input and output of the protocol. They
/// are copies of the shell's stdin and stdout.
const SHELL: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null"#;

impl Browser {
    /// Starts the program with an empty profile and opens a page of `width` × `height`.
    pub fn start(program: &Path, width: u32, height: u32) -> Browser {
        let profile = TempDir::new().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", SHELL])
            .arg(program)
            // Chromium's sandbox does not start as root, and tests in containers run as root. Only the test's own page
            // is opened.
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = read_messages(child.stdout.take().unwrap());
        let mut browser =
            Browser { child, commands, answers, session: None, next: 0, errors: Vec::new(), _profile: profile };
        let page = browser.call_method("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.call_method("Target.attachToTarget", target);
        browser.session = attached["sessionId"].as_str().map(String::from);
        for domain in ["Page", "Runtime", "Log", "DOM"] {
            browser.call_method(&format!("{domain}.enable"), json!({}));
        }
        browser.resize(width, height);
        browser
    }

    /// Calls a DevTools method and returns its result.
    #[track_caller]
    pub fn call_method(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap_or_else(|e| panic!("{method}: {e}"));
        loop {
            let mut answer = self
                .answers
                .recv_timeout(REQUEST_TIMEOUT)
                .unwrap_or_else(|e| panic!("{method}: no answer of the browser: {e}"));
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            self.note_error(&answer);
        }
    }

    fn note_error(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.errors.push(params["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                let entry = &params["entry"];
                self.errors.push(format!("{} {}", entry["text"], entry["url"]));
            }
            _ => {}
        }
    }

    /// Opens a URL and waits until it has loaded.
    #[track_caller]
    pub fn open(&mut self, address: &str) {
        let opened = self.call_method("Page.navigate", json!({"url": address}));
        assert!(opened["errorText"].is_null(), "{opened}");
        self.wait_until(&format!("location.href === '{address}' && document.readyState === 'complete'"));
    }

    /// Returns the value of a JavaScript expression.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call_method("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Returns the visible text of the first element that the selector finds. Fails if the element is hidden.
    #[track_caller]
    pub fn visible_text(&mut self, selector: &str) -> String {
        let find = format!("const e = document.querySelector({});", json!(selector));
        let text = self.eval(&format!("(() => {{ {find} return e?.checkVisibility() ? e.innerText : null; }})()"));
        text.as_str().unwrap_or_else(|| panic!("no {selector} is shown")).to_string()
    }

    /// Returns the number of elements that the selector finds.
    #[track_caller]
    pub fn count_elements(&mut self, selector: &str) -> u64 {
        self.eval(&format!("document.querySelectorAll({}).length", json!(selector))).as_u64().unwrap()
    }

    /// Waits until a JavaScript expression is true.
    #[track_caller]
    pub fn wait_until(&mut self, condition: &str) {
        let begun = Instant::now();
        while self.eval(&format!("Boolean({condition})")) != true {
            if begun.elapsed() > REQUEST_TIMEOUT {
                let page = self.eval("document.body.innerText");
                panic!("this did not become true in time: {condition}\nerrors: {:#?}\npage: {page}", self.errors);
            }
            std::thread::sleep(Duration::from_millis(15));
        }
    }

    /// Clicks in the middle of an element, once its position is the same in two consecutive frames of the page.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let selector = json!(selector);
        let place = self.eval(&format!(
            "(async () => {{
                let middle = null;
                for (let before = 'none'; String(middle) !== before;) {{
                    before = String(middle);
                    await new Promise((next) => requestAnimationFrame(next));
                    const element = document.querySelector({selector});
                    element.scrollIntoViewIfNeeded();
                    const box = element.getBoundingClientRect();
                    middle = [box.x + box.width / 2, box.y + box.height / 2];
                }}
                return middle;
            }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call_method("Input.dispatchMouseEvent", click);
        }
    }

    /// Inserts text into the focused element, as if typed.
    pub fn type_text(&mut self, text: &str) {
        self.call_method("Input.insertText", json!({"text": text}));
    }

    /// Presses a key: `Enter`, `Escape`, an arrow, `End`, a letter, or with `shift` Shift and the key.
    pub fn press_key(&mut self, key: &str, shift: bool) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "End" => (35, ""),
            "ArrowUp" => (38, ""),
            "ArrowDown" => (40, ""),
            letter => (letter.to_ascii_uppercase().as_bytes()[0], letter),
        };
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "modifiers": if shift { 8 } else { 0 }});
            if !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call_method("Input.dispatchKeyEvent", event);
        }
    }

    /// Selects files in a file input element.
    pub fn choose_files(&mut self, selector: &str, files: &[&Path]) {
        let document = self.call_method("DOM.getDocument", json!({}));
        let find = json!({"nodeId": document["root"]["nodeId"], "selector": selector});
        let input = self.call_method("DOM.querySelector", find);
        self.call_method("DOM.setFileInputFiles", json!({"nodeId": input["nodeId"], "files": files}));
    }

    /// Drops a file onto the middle of the page.
    pub fn drop_file(&mut self, file: &Path) {
        let data = json!({"items": [], "files": [file], "dragOperationsMask": 1});
        for kind in ["dragEnter", "dragOver", "drop"] {
            self.call_method("Input.dispatchDragEvent", json!({"type": kind, "x": 200, "y": 200, "data": data}));
        }
    }

    /// Writes a screenshot of the window to a PNG file.
    pub fn screenshot(&mut self, file: &Path) {
        let shot = self.call_method("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }

    /// Sets the size of the page.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call_method("Emulation.setDeviceMetricsOverride", size);
    }

    /// Sets the colour scheme that the operating system prefers.
    pub fn set_preferred_color_scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call_method("Emulation.setEmulatedMedia", json!({"features": features}));
    }
}

impl Drop for Browser {
    /// Ends the browser and waits for its end, because it could otherwise write into its profile folder after the
    /// folder was removed. Killing the process is not enough: Debian's program is a script that starts the browser.
    fn drop(&mut self) {
        let close = json!({"id": self.next + 1, "method": "Browser.close"});
        let _ = self.commands.write_all(format!("{close}\0").as_bytes());
        let begun = Instant::now();
        while begun.elapsed() < CLOSE_TIMEOUT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads messages on a separate thread, so that waiting for a message can time out.
fn read_messages(output: ChildStdout) -> Receiver<Value> {
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(output).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { return };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}
