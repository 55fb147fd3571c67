//! A custom reward by HTTP: each batch is one POST request.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use reel_support::client::check_http_url;
use serde_json::{Value, json};
use ureq::Agent;

use super::reply::{
    RewardReply, custom_reward_error, format_seconds, parse_json_with_nan, parse_reply, shorten_for_message,
};
use super::wait::{NoMessageReason, STOPPED_HELP, STOPPED_PROBLEM, receive_until};
use super::{TRAINER_STATE, TrainerState};
use crate::error::{Error, Result};

const FLAG: &str = "--reward-url";

/// Maximum length of a response in bytes.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// A request that ends this long after its time limit was not slow: this process was stopped (SIGSTOP, Ctrl-Z), and
/// the reply may have arrived while it was stopped.
const STOPPED_FOR: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct HttpReward {
    client: Client,
    /// The batch that is being scored.
    batch: Option<SentBatch>,
}

/// A batch that was sent to the server.
#[derive(Debug)]
struct SentBatch {
    rows: usize,
    /// Receives the text of the response from the thread that makes the request. The thread gives up at the request's
    /// time limit.
    response: mpsc::Receiver<Result<String>>,
}

#[derive(Clone, Debug)]
struct Client {
    url: String,
    timeout: Duration,
    agent: Agent,
}

impl HttpReward {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self> {
        check_http_url(url).map_err(|(what, help)| Error::usage(FLAG, what, help))?;
        let config = Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).max_redirects(0);
        let client = Client { url: url.to_string(), timeout, agent: config.build().into() };
        Ok(Self { client, batch: None })
    }

    /// Sends a batch of rows on another thread, so that a stop flag can end the wait for the response.
    pub(super) fn send_batch(&mut self, rows: &[Value], state: Option<&TrainerState>) -> Result<()> {
        let (sender, response) = mpsc::sync_channel(1);
        let body = match state {
            Some(state) => json!({"rows": rows, TRAINER_STATE: state}),
            None => json!({"rows": rows}),
        };
        let (client, body) = (self.client.clone(), body.to_string());
        thread::Builder::new()
            .name("custom reward".into())
            .spawn(move || drop(sender.send(client.post(&body))))
            .map_err(|e| {
                self.client.error(format!("cannot be requested: {e}"), "free some memory, or end other processes")
            })?;
        self.batch = Some(SentBatch { rows: rows.len(), response });
        Ok(())
    }

    /// Waits for the rewards of the batch, at most until `until` if it is given. Returns `None` if the rewards have not
    /// arrived by then.
    pub(super) fn wait_for_rewards(
        &mut self,
        until: Option<Instant>,
        stop: &AtomicBool,
    ) -> Option<Result<Vec<RewardReply>>> {
        let batch = self.batch.take()?;
        let client = &self.client;
        Some(match receive_until(&batch.response, until, stop) {
            Ok(response) => response.and_then(|text| client.rewards(&text, batch.rows)),
            Err(NoMessageReason::Timeout) => {
                self.batch = Some(batch);
                return None;
            }
            Err(NoMessageReason::Stopped) => Err(client.error(STOPPED_PROBLEM, STOPPED_HELP)),
            Err(NoMessageReason::Disconnected) => Err(client.timed_out()),
        })
    }
}

impl Client {
    /// Parses the rewards in the text of a response to a batch of `rows` rows.
    fn rewards(&self, text: &str, rows: usize) -> Result<Vec<RewardReply>> {
        let help = "reply with {\"rewards\": [...]}, one number per row";
        let response = parse_json_with_nan(text)
            .map_err(|_| self.error(format!("replied `{}`, which is not JSON", shorten_for_message(text)), help))?;
        let Some(values) = response.get("rewards").and_then(Value::as_array) else {
            return Err(self.error(format!("replied {}, without `rewards`", shorten_for_message(text)), help));
        };
        if values.len() != rows {
            return Err(self.error(format!("gave {} rewards for {rows} rows", values.len()), help));
        }
        let rewards = values.iter().enumerate().map(|(i, value)| parse_reply(value).map_err(|why| (i, why)));
        rewards.collect::<Result<_, _>>().map_err(|(i, why)| self.error(format!("rewards[{i}] {why}"), help))
    }

    fn timed_out(&self) -> Error {
        let what = format!("timed out after {}", format_seconds(self.timeout));
        self.error(what, "check that the server runs, raise --reward-timeout, or make the server faster")
    }

    /// Sends a batch and reads the response. After a timeout, the batch is sent again only if this process was
    /// stopped (SIGSTOP) during the request.
    fn post(&self, body: &str) -> Result<String> {
        loop {
            let begun = Instant::now();
            match self.post_once(body) {
                Ok(text) => return Ok(text),
                Err(PostFailure::Timeout) if begun.elapsed() > self.timeout + STOPPED_FOR => {}
                Err(PostFailure::Timeout) => return Err(self.timed_out()),
                Err(PostFailure::Other(e)) => return Err(e),
            }
        }
    }

    fn post_once(&self, body: &str) -> Result<String, PostFailure> {
        let failed = |e: ureq::Error| match e {
            ureq::Error::Timeout(_) => PostFailure::Timeout,
            e => {
                let what = format!("cannot be reached ({e})");
                PostFailure::Other(self.error(what, "check the URL, and that the server runs"))
            }
        };
        let request = self.agent.post(&self.url).header("content-type", "application/json");
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).lossy_utf8(true).read_to_string();
        if status != 200 {
            let body = text.map(|text| shorten_for_message(&text)).unwrap_or_default();
            let detail = if body.is_empty() { body } else { format!(" ({body})") };
            let what = format!("replied with status {status}{detail}");
            return Err(PostFailure::Other(self.error(what, "check the log of the server")));
        }
        text.map_err(failed)
    }

    fn error(&self, what: impl std::fmt::Display, help: &str) -> Error {
        custom_reward_error(FLAG, &self.url, what, help)
    }
}

enum PostFailure {
    Timeout,
    Other(Error),
}

#[cfg(test)]
mod tests {
    use super::super::CustomReward;
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};

    const LONG: Duration = Duration::from_secs(30);

    /// Starts a server that replies to each request with `answer(body)`. Returns the server's URL.
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

    /// Reads the body of one HTTP request.
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

    fn response(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn rows(n: usize) -> Vec<Value> {
        (0..n).map(|i| json!({"prompt": "p", "completion": "x".repeat(i)})).collect()
    }

    #[test]
    fn invalid_ports_are_named() {
        let new = |url: &str| HttpReward::new(url, Duration::from_secs(1)).map(drop).map_err(|e| e.to_string());
        for url in ["http://h:99999/score", "http://h:0", "http://[::1]:65536/x"] {
            let e = new(url).unwrap_err();
            assert!(e.contains("has the port ") && e.contains("; give a port from 1 to 65535"), "{url}: {e}");
        }
        for url in ["http://h", "http://h:8000/score", "https://[::1]:1/x", "http://[::1]/x", "http://user:99999@h:80/"]
        {
            assert_eq!(new(url), Ok(()), "{url}");
        }
        assert!(new("ftp://h:1").unwrap_err().contains("is not an HTTP URL"));
    }

    #[test]
    fn posts_rows_and_reads_rewards() {
        let url = server(|asked| {
            let rows = asked["rows"].as_array().unwrap();
            let lengths: Vec<usize> = rows.iter().map(|row| row["completion"].as_str().unwrap().len()).collect();
            response(200, &json!({"rewards": lengths}).to_string())
        });
        let mut own = CustomReward::from_url(&url, LONG).unwrap();
        assert_eq!(own.score(&rows(4)).unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(own.score(&rows(2)).unwrap(), [0.0, 1.0]);
        let url = server(|_| response(200, "{\"rewards\": [NaN, null, {\"reward\": 2, \"extra\": {\"a\": 1}}]}"));
        let mut own = CustomReward::from_url(&url, LONG).unwrap();
        own.send_batch(&rows(3), None).unwrap();
        let replies = own.finish(&AtomicBool::new(false)).unwrap();
        assert_eq!(replies.iter().map(|reply| reply.is_nan).collect::<Vec<_>>(), [true, false, false]);
        assert!(replies[0].reward.is_nan() && replies[1].reward.is_nan() && replies[2].extra["a"] == 1);
    }

    #[test]
    fn invalid_responses_are_quoted_in_the_error() {
        for (status, body, named) in [
            (200, "{\"rewards\": [1]}", "1 rewards for 2 rows"),
            (200, "{\"rewards\": [1, 2, 3]}", "3 rewards for 2 rows"),
            (200, "{\"rewards\": [1, Infinity]}", "not JSON"),
            (200, "{\"rewards\": [1, {\"reward\": 1, \"metrics\": {\"a\": \"b\"}}]}", "`a` is not a number"),
            (200, "{\"rewards\": [1, true]}", "rewards[1] is true"),
            (200, "{\"rewards\": [1, 1e300]}", "rewards[1] is"),
            (200, "{\"rewards\": 1}", "without `rewards`"),
            (200, "[1, 2]", "without `rewards`"),
            (200, "", "not JSON"),
            (500, "boom\nat line 3", "status 500 X (boom at line 3)"),
            (302, "", "status 302"),
        ] {
            let url = server(move |_| response(status, body));
            let e = CustomReward::from_url(&url, LONG).unwrap().score(&rows(2)).unwrap_err().to_string();
            let named = named.replace(" X ", " Internal Server Error ");
            assert!(
                e.starts_with("--reward-url `http://127") && e.contains(&named) && !e.contains('\n'),
                "{body}: {e}"
            );
        }
        let url = server(|_| "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".into());
        assert!(CustomReward::from_url(&url, LONG).unwrap().score(&rows(1)).is_err());
    }

    #[test]
    fn unresponsive_server_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let began = Instant::now();
        let e =
            CustomReward::from_url(&url, Duration::from_millis(300)).unwrap().score(&rows(1)).unwrap_err().to_string();
        assert!(e.contains("timed out after 0.3 s") && began.elapsed() < LONG, "{e}");
        drop(listener);
        let e = CustomReward::from_url(&url, LONG).unwrap().score(&rows(1)).unwrap_err().to_string();
        assert!(e.contains("cannot be reached"), "{e}");
    }

    /// A server that hangs gets the request only once.
    #[test]
    fn a_batch_whose_time_ran_out_is_not_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/reward", listener.local_addr().unwrap());
        let (limit, begun) = (Duration::from_millis(700), Instant::now());
        let e = CustomReward::from_url(&url, limit).unwrap().score(&rows(2)).unwrap_err().to_string();
        assert!(e.contains("timed out after 0.7 s; check that the server runs"), "{e}");
        assert!(begun.elapsed() >= limit);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.incoming().take_while(Result::is_ok).count(), 1);
    }

    #[test]
    fn stop_flag_ends_the_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let began = Instant::now();
        let e =
            CustomReward::from_url(&url, LONG).unwrap().score_or_stop(&rows(1), &AtomicBool::new(true)).unwrap_err();
        assert!(e.to_string().contains("was stopped before") && began.elapsed() < LONG / 2, "{e}");
    }

    /// Error messages never contain passwords and queries of the URL, even if the message is truncated or the server
    /// repeats the URL.
    #[test]
    fn messages_have_no_secret_of_the_url() {
        let url = server(|_| response(500, "no such key in http://user:SECRET@x/y?key=SECRET"));
        let host = url.strip_prefix("http://").unwrap();
        let with_secrets = format!("http://{}:SECRET@{host}?key=SECRET#SECRET", "u".repeat(200));
        let closed = "http://user:SECRET@127.0.0.1:1/?key=SECRET";
        for url in [with_secrets.as_str(), closed, "user:SECRET@host?key=SECRET", "ftp://user:SECRET@host?SECRET"] {
            let e = CustomReward::from_url(url, LONG).and_then(|mut own| own.score(&rows(1))).unwrap_err().to_string();
            assert!(e.starts_with("--reward-url") && !e.contains("SECRET"), "{e}");
        }
        let e = CustomReward::from_url(&with_secrets, LONG).unwrap().score(&rows(1)).unwrap_err().to_string();
        assert!(e.contains(host) && e.contains("status 500"), "the host stays: {e}");
    }

    #[test]
    fn invalid_urls_are_refused() {
        for url in ["", "x", "ftp://host/", "http://", "file:///tmp/x", "http://a b/"] {
            let e = CustomReward::from_url(url, LONG).unwrap_err();
            assert!(e.is_usage_error() && e.to_string().starts_with("--reward-url: "), "{url}: {e}");
        }
    }
}
