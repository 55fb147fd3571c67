//! Makes and parses the messages of a `.wandb` file. Each message is one `Record` of `wandb/proto/wandb_internal.proto`
//! (fields as in wandb 0.19.11 and 0.31.0): num 1 and one of history 2, summary 3, files 6, run 17, exit 18, header 21.
//!
//! | message | fields |
//! |---|---|
//! | `HeaderRecord` | version_info 1: producer 1 |
//! | `RunRecord` | run_id 1, entity 2, project 3, config 4 (update 1), run_group 6, job_type 7, display_name 8, |
//! | | notes 9, tags 10, host 13, start_time 17 |
//! | start_time of `RunRecord` | seconds 1, nanos 2 |
//! | `ConfigItem` | key 1, value_json 16 |
//! | `HistoryRecord` | item 1, step 2 (num 1) |
//! | `SummaryRecord` | update 1 |
//! | `HistoryItem`, `SummaryItem` | nested_key 2 (a path; one name here), value_json 16 |
//! | `FilesRecord` | files 1: path 1 (below `files/`), type 3 (1 what the client writes, 2 media) |
//! | `RunExitRecord` | exit_code 1, runtime 2 (seconds) |

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::runs::reporting::protobuf::{ProtoMessage, length_delimited_fields};

/// A `Record` message without its sequence number: a field number, which determines the kind of record, and the message
/// in that field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WandbRecord {
    kind: u32,
    body: Vec<u8>,
}

const HISTORY: u32 = 2;
const SUMMARY: u32 = 3;
const FILES: u32 = 6;
const RUN: u32 = 17;
const EXIT: u32 = 18;
const HEADER: u32 = 21;

/// The contents of the run record.
#[derive(Debug)]
pub struct RunInfo<'a> {
    /// The run id: 8 letters and digits.
    pub id: &'a str,
    /// The W&B project.
    pub project: &'a str,
    /// The displayed name of the run.
    pub name: &'a str,
    /// The user or team that owns the run; `None` selects the W&B client's default.
    pub entity: Option<&'a str>,
    /// The group of runs.
    pub group: Option<&'a str>,
    /// Notes of the user on the run.
    pub notes: Option<&'a str>,
    /// Tags of the run.
    pub tags: &'a [String],
    /// The job type: the command, unless the user sets another name.
    pub job: &'a str,
    /// The host name, if known.
    pub host: Option<&'a str>,
    /// Start time of this part of the run.
    pub start: DateTime<Utc>,
    /// The W&B config: options, device, fingerprints.
    pub config: &'a Map<String, Value>,
}

#[derive(Clone, Copy, Debug)]
pub enum UploadedFileKind {
    /// A file of the run as a whole, not of a step, such as `wandb-metadata.json`.
    Own = 1,
    /// An image or an HTML page.
    Media = 2,
}

impl WandbRecord {
    fn new(kind: u32, body: ProtoMessage) -> Self {
        Self { kind, body: body.as_ref().to_vec() }
    }

    /// Makes the header record, with the producer's version.
    pub fn header() -> Self {
        let producer = concat!("reel ", env!("CARGO_PKG_VERSION"));
        Self::new(HEADER, ProtoMessage::default().bytes(1, ProtoMessage::default().bytes(1, producer)))
    }

    /// Makes the run record.
    pub fn run(run: &RunInfo) -> Self {
        let config = run.config.iter().fold(ProtoMessage::default(), |all, (key, value)| {
            all.bytes(1, ProtoMessage::default().bytes(1, key).bytes(16, value.to_string()))
        });
        let start = ProtoMessage::default()
            .varint(1, run.start.timestamp().max(0) as u64)
            .varint(2, u64::from(run.start.timestamp_subsec_nanos()));
        // An optional text becomes one field. A list of texts becomes one field per text, all with the same number.
        let texts = |body: ProtoMessage, number: u32, texts: &[&str]| {
            texts.iter().fold(body, |body, text| body.bytes(number, text))
        };
        let tags: Vec<&str> = run.tags.iter().map(String::as_str).collect();
        let body = texts(ProtoMessage::default().bytes(1, run.id), 2, run.entity.as_slice());
        let body = texts(body.bytes(3, run.project).bytes(4, config), 6, run.group.as_slice());
        let body = texts(body.bytes(7, run.job).bytes(8, run.name), 9, run.notes.as_slice());
        let body = texts(texts(body, 10, &tags), 13, run.host.as_slice());
        Self::new(RUN, body.bytes(17, start))
    }

    /// Makes the record that lists a file below `files/`, so that `wandb sync` uploads the file.
    pub fn file(path: &str, kind: UploadedFileKind) -> Self {
        Self::new(
            FILES,
            ProtoMessage::default().bytes(1, ProtoMessage::default().bytes(1, path).varint(3, kind as u64)),
        )
    }

    /// Makes the history record with the values of one step. `values` contains `_step`.
    pub fn history(step: u64, values: &Map<String, Value>) -> Self {
        Self::new(HISTORY, items(values).bytes(2, ProtoMessage::default().varint(1, step)))
    }

    /// Makes the summary record with the latest value of each name, which W&B shows as the run's summary.
    pub fn summary(values: &Map<String, Value>) -> Self {
        Self::new(SUMMARY, items(values))
    }

    /// Makes the exit record with the run's exit code and its duration in seconds.
    pub fn exit(code: u8, seconds: u64) -> Self {
        Self::new(EXIT, ProtoMessage::default().varint(1, u64::from(code)).varint(2, seconds))
    }

    /// The complete message with sequence number `num`, as it is stored in the log.
    pub fn with_sequence_number(&self, num: u64) -> ProtoMessage {
        ProtoMessage::default().varint(1, num).bytes(self.kind, &self.body)
    }

    /// Parses a record that this program wrote.
    pub fn parse(record: &[u8]) -> Option<Self> {
        length_delimited_fields(record).next().map(|(kind, body)| Self { kind, body: body.to_vec() })
    }

    /// The values of a history record; `None` for other records.
    pub fn history_values(&self) -> Option<Map<String, Value>> {
        let value = |item: &[u8]| {
            let get = |number| length_delimited_fields(item).find(|field| field.0 == number).map(|field| field.1);
            let key = std::str::from_utf8(get(2)?).ok()?.to_string();
            Some((key, serde_json::from_slice(get(16)?).ok()?))
        };
        let items = || length_delimited_fields(&self.body).filter(|field| field.0 == 1);
        (self.kind == HISTORY).then(|| items().filter_map(|field| value(field.1)).collect())
    }

    /// The media files of a files record: paths below `files/`.
    pub fn media_paths(&self) -> Vec<String> {
        let files = length_delimited_fields(&self.body).filter(|field| self.kind == FILES && field.0 == 1);
        let path = |file: &[u8]| length_delimited_fields(file).find(|field| field.0 == 1).map(|field| field.1.to_vec());
        let paths = files.filter_map(|field| String::from_utf8(path(field.1)?).ok());
        paths.filter(|path| path.starts_with("media/") && !path.contains("..")).collect()
    }
}

fn items(values: &Map<String, Value>) -> ProtoMessage {
    values.iter().fold(ProtoMessage::default(), |all, (key, value)| {
        all.bytes(1, ProtoMessage::default().bytes(2, key).bytes(16, value.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn records_match_the_clients_bytes() {
        // Expected hex: `wandb_internal_pb2.Record(...).SerializeToString().hex()` of wandb 0.31.0 for the same
        // values.
        let hex = |record: WandbRecord| {
            record.with_sequence_number(7).as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        let values = map(json!({"train/loss": 0.5, "_step": 300}));
        assert_eq!(hex(WandbRecord::history(300, &values)), HISTORY_HEX);
        assert_eq!(hex(WandbRecord::summary(&values)), SUMMARY_HEX);
        assert_eq!(hex(WandbRecord::file("media/a.png", UploadedFileKind::Media)), FILES_HEX);
        assert_eq!(hex(WandbRecord::exit(255, 9)), EXIT_HEX);
        let config = map(json!({"a": [1, "x"]}));
        let start = DateTime::from_timestamp(1_700_000_000, 5).unwrap();
        let (entity, group, notes, tags) = (None, None, None, &[][..]);
        let (id, project, name, job, host, config) = ("abcd1234", "p", "n", "sft", Some("h"), &config);
        let run = RunInfo { id, project, name, job, host, start, config, entity, group, notes, tags };
        assert_eq!(hex(WandbRecord::run(&run)), RUN_HEX);
        let tags = &["t".to_string(), "u".to_string()][..];
        let run = RunInfo { entity: Some("e"), group: Some("g"), notes: Some("o"), tags, ..run };
        let with_texts = hex(WandbRecord::run(&run));
        // Each expected text is a field: one byte with its number and type, the length, and the value.
        for text in ["120165", "320167", "4a016f", "520174520175"] {
            assert!(with_texts.contains(text) && !RUN_HEX.contains(text), "{text} in {with_texts}");
        }
    }

    const HISTORY_HEX: &str =
        "080712280a12120a747261696e2f6c6f7373820103302e350a0d12055f73746570820103333030120308ac02";
    const SUMMARY_HEX: &str = "08071a230a12120a747261696e2f6c6f7373820103302e350a0d12055f73746570820103333030";
    const FILES_HEX: &str = "080732110a0f0a0b6d656469612f612e706e671802";
    const EXIT_HEX: &str = "080792010508ff011009";
    const RUN_HEX: &str = "08078a01340a0861626364313233341a0170220f0a0d0a01618201075b312c2278225d3a0373667442016e6a01688a01080880e2cfaa061005";

    #[test]
    fn records_round_trip() {
        let values = map(json!({"_step": 3, "train/loss": 0.1, "h": {"_type": "histogram", "values": [1]}}));
        let parse = |record: &WandbRecord| WandbRecord::parse(record.with_sequence_number(9).as_ref()).unwrap();
        let history = WandbRecord::history(3, &values);
        assert_eq!(parse(&history), history);
        assert_eq!(history.history_values(), Some(values.clone()));
        assert_eq!(WandbRecord::summary(&values).history_values(), None);
        assert_eq!(parse(&WandbRecord::file("media/x.png", UploadedFileKind::Media)).media_paths(), ["media/x.png"]);
        assert!(WandbRecord::file("media/../../x", UploadedFileKind::Media).media_paths().is_empty());
        assert!(WandbRecord::file("wandb-metadata.json", UploadedFileKind::Own).media_paths().is_empty());
        assert!(history.media_paths().is_empty());
    }
}
