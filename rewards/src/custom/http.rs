//! The address behind an own reward.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Uri;

use super::{STOPPED, Silence, fault, number, receive, seconds, shortened};
use crate::{Result, RewardError};

const FLAG: &str = "--reward-url";

/// No answer is longer, in bytes.
const LONGEST_ANSWER: u64 = 64 << 20;

/// How much longer than its deadline an answer may take to be handed over.
const LATER: Duration = Duration::from_secs(10);

/// An address to ask.
#[derive(Clone, Debug)]
pub(super) struct Http {
    url: String,
    timeout: Duration,
    agent: Agent,
}

impl Http {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self> {
        let parsed = url.parse::<Uri>().ok();
        let known = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !parsed.is_some_and(|uri| known(&uri)) {
            let what = format!("`{}` is no address", shortened(url));
            return Err(RewardError::option(FLAG, what, "give http://HOST:PORT/PATH"));
        }
        let config = Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).max_redirects(0);
        Ok(Self { url: url.to_string(), timeout, agent: config.build().into() })
    }

    /// The rewards of a batch.
    pub(super) fn score(&self, rows: &[Value], stop: &AtomicBool) -> Result<Vec<f64>> {
        let text = self.wait_for(json!({"rows": rows}).to_string(), stop)?;
        let cure = "answer {\"rewards\": [...]}, one number a row";
        let answer: Value = serde_json::from_str(&text)
            .map_err(|_| self.fault(format!("answered `{}`, which is not JSON", shortened(&text)), cure))?;
        let Some(answers) = answer.get("rewards").and_then(Value::as_array) else {
            return Err(self.fault(format!("answered {}, without `rewards`", shortened(&text)), cure));
        };
        if answers.len() != rows.len() {
            return Err(self.fault(format!("gave {} rewards for {} rows", answers.len(), rows.len()), cure));
        }
        let rewards = answers.iter().enumerate().map(|(i, answer)| number(answer).map_err(|why| (i, why)));
        rewards.collect::<Result<_, _>>().map_err(|(i, why)| self.fault(format!("rewards[{i}] {why}"), cure))
    }

    /// Asks on a thread of its own, which ends by its deadline though nobody waits for it any more.
    fn wait_for(&self, body: String, stop: &AtomicBool) -> Result<String> {
        let (answer, answered) = mpsc::sync_channel(1);
        let asker = self.clone();
        thread::Builder::new()
            .name("own reward".into())
            .spawn(move || drop(answer.send(asker.ask(&body))))
            .map_err(|e| self.fault(format!("cannot be asked: {e}"), "free some memory or processes"))?;
        // The thread has the deadline; here a little more, for its answer.
        let deadline = Instant::now() + self.timeout + LATER;
        receive(&answered, deadline, stop).unwrap_or_else(|silence| match silence {
            Silence::Stopped => Err(self.fault(STOPPED.0, STOPPED.1)),
            Silence::Late | Silence::Ended => Err(self.late()),
        })
    }

    fn late(&self) -> RewardError {
        let what = format!("gave no answer in {} and was given up", seconds(self.timeout));
        self.fault(what, "see that the server runs, or make it faster or the batch smaller")
    }

    fn ask(&self, body: &str) -> Result<String> {
        let failed = |e: ureq::Error| match e {
            ureq::Error::Timeout(_) => self.late(),
            e => self.fault(format!("cannot be asked ({e})"), "check the address, and that the server runs"),
        };
        let request = self.agent.post(&self.url).header("content-type", "application/json");
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(LONGEST_ANSWER).lossy_utf8(true).read_to_string();
        if status != 200 {
            let said = text.map(|text| shortened(&text)).unwrap_or_default();
            let said = if said.is_empty() { said } else { format!(" ({said})") };
            return Err(self.fault(format!("answered with status {status}{said}"), "see the server's own log"));
        }
        text.map_err(failed)
    }

    fn fault(&self, what: impl std::fmt::Display, cure: &str) -> RewardError {
        fault(FLAG, &self.url, what, cure)
    }
}

#[cfg(test)]
mod tests {
    use super::super::CustomReward;
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};

    const LONG: Duration = Duration::from_secs(30);

    /// A server that gives `answer` of each request's body.
    fn server(answer: impl Fn(&Value) -> String + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/reward", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let asked = request(&stream);
                let _ = (&stream).write_all(answer(&asked).as_bytes());
            }
        });
        address
    }

    /// The body of one request.
    fn request(stream: &TcpStream) -> Value {
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn says(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn rows(n: usize) -> Vec<Value> {
        (0..n).map(|i| json!({"prompt": "p", "completion": "x".repeat(i)})).collect()
    }

    #[test]
    fn rows_in_rewards_out() {
        let url = server(|asked| {
            let rows = asked["rows"].as_array().unwrap();
            let lengths: Vec<usize> = rows.iter().map(|row| row["completion"].as_str().unwrap().len()).collect();
            says(200, &json!({"rewards": lengths}).to_string())
        });
        let mut own = CustomReward::url(&url, LONG).unwrap();
        assert_eq!(own.score(&rows(4)).unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(own.score(&rows(2)).unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn wrong_answers_are_named() {
        for (status, body, named) in [
            (200, "{\"rewards\": [1]}", "1 rewards for 2 rows"),
            (200, "{\"rewards\": [1, 2, 3]}", "3 rewards for 2 rows"),
            (200, "{\"rewards\": [1, NaN]}", "not JSON"),
            (200, "{\"rewards\": [1, null]}", "rewards[1] is null"),
            (200, "{\"rewards\": [1, 1e300]}", "rewards[1] is"),
            (200, "{\"rewards\": 1}", "without `rewards`"),
            (200, "[1, 2]", "without `rewards`"),
            (200, "", "not JSON"),
            (500, "boom\nat line 3", "status 500 X (boom at line 3)"),
            (302, "", "status 302"),
        ] {
            let url = server(move |_| says(status, body));
            let e = CustomReward::url(&url, LONG).unwrap().score(&rows(2)).unwrap_err().to_string();
            let named = named.replace(" X ", " Internal Server Error ");
            assert!(
                e.starts_with("--reward-url `http://127") && e.contains(&named) && !e.contains('\n'),
                "{body}: {e}"
            );
        }
        let url = server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".into());
        assert!(CustomReward::url(&url, LONG).unwrap().score(&rows(1)).is_err());
    }

    #[test]
    fn silence_has_a_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let began = Instant::now();
        let e = CustomReward::url(&url, Duration::from_millis(300)).unwrap().score(&rows(1)).unwrap_err().to_string();
        assert!(e.contains("no answer in 0.3 s") && began.elapsed() < LONG, "{e}");
        drop(listener);
        let e = CustomReward::url(&url, LONG).unwrap().score(&rows(1)).unwrap_err().to_string();
        assert!(e.contains("cannot be asked"), "{e}");
    }

    #[test]
    fn a_wait_can_be_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let began = Instant::now();
        let e = CustomReward::url(&url, LONG).unwrap().score_or_stop(&rows(1), &AtomicBool::new(true)).unwrap_err();
        assert!(e.to_string().contains("was not waited for") && began.elapsed() < LONG / 2, "{e}");
    }

    #[test]
    fn addresses_are_checked() {
        for url in ["", "x", "ftp://host/", "http://", "file:///tmp/x", "http://a b/"] {
            let e = CustomReward::url(url, LONG).unwrap_err();
            assert!(e.is_usage() && e.to_string().starts_with("--reward-url: "), "{url}: {e}");
        }
    }
}
