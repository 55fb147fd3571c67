//! Data sheets of GPUs. Some are built in; others are files that a user gives to `--gpu`. Both have the same format:
//!
//! ```text
//! name = "b200"              # lower-case letters, digits, - and _
//! title = "B200 SXM"         # in reports; default: the name
//! compute_capability = 10.0
//! memory_gb = 180            # 1e9 bytes
//! bandwidth_gb_s = 7700
//! bf16_tflops = 2250         # dense, by tensor cores with f32 sums
//! f32_tflops = 75            # without tensor cores; default: from multiprocessors and clock
//! multiprocessors = 148
//! clock_mhz = 1965           # the highest clock
//! l2_mb = 126.5              # bench compares measured launches with it; a plan does not use it
//! nvlink_gb_s = 900          # in one direction; left out without NVLink
//! pcie = "pcie5"             # or pcie4, the default
//! ```

use std::path::Path;
use std::sync::OnceLock;

use reel_support::diagnostic::input;

use crate::error::{Error, Result};

/// The figures of a GPU. Rates are dense, that is, without sparsity.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSheet {
    /// Short name, such as `h200`.
    pub name: String,
    /// The GPU in words, such as `H200 SXM`.
    pub title: String,
    /// Compute capability times ten, such as 90.
    pub compute_capability: u32,
    /// Memory in bytes.
    pub memory: f64,
    /// Bandwidth of memory in bytes per second.
    pub bandwidth: f64,
    /// Operations per second of bf16 products with f32 sums.
    pub bf16: f64,
    /// Operations per second in f32 without tensor cores.
    pub f32: f64,
    /// Size of the L2 cache in bytes, if known.
    pub l2: Option<f64>,
    /// Bytes per second of NVLink in one direction; `None` without NVLink.
    pub nvlink: Option<f64>,
    /// Name of the PCIe link: `pcie4` or `pcie5`.
    pub pcie: String,
}

const BUILT_IN: [&str; 6] = [
    include_str!("gpus/b200.toml"),
    include_str!("gpus/h200.toml"),
    include_str!("gpus/h100.toml"),
    include_str!("gpus/a100.toml"),
    include_str!("gpus/l40s.toml"),
    include_str!("gpus/rtx4090.toml"),
];

/// The built-in data sheets, all by NVIDIA.
pub fn built_in() -> &'static [DataSheet] {
    static PARSED: OnceLock<Vec<DataSheet>> = OnceLock::new();
    PARSED.get_or_init(|| {
        let parse = |text: &&str| DataSheet::parse("the built-in GPUs", text);
        BUILT_IN.iter().map(parse).collect::<Result<_>>().expect("the tables are part of the source")
    })
}

/// The names of the fields, for messages.
const FIELDS: &str = "name, title, compute_capability, memory_gb, bandwidth_gb_s, bf16_tflops, f32_tflops, \
                      multiprocessors, clock_mhz, l2_mb, nvlink_gb_s and pcie";

/// Maximum relative difference between the f32 rate in a file and the rate computed from its multiprocessors and
/// clock.
const F32_TOLERANCE: f64 = 0.1;

impl DataSheet {
    /// Whether the value of `--gpu` is a file and not the name of a built-in GPU.
    pub fn is_file(text: &str) -> bool {
        text.contains(['/', '\\']) || text.ends_with(".toml")
    }

    /// Reads the file of a GPU.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML; a field is unknown, missing or has a value that no GPU has; the name is
    /// that of a built-in GPU.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let text = input::read_text(path, input::MAX_CONFIG_BYTES).map_err(|e| {
            Error::failed(&file, format!("cannot be read: {e}"), "give a TOML file with the figures of a GPU")
        })?;
        let sheet = Self::parse(&file, &text)?;
        if built_in().iter().any(|known| known.name == sheet.name) {
            let what = format!("is {:?}, the name of a built-in GPU", sheet.name);
            return Err(Error::failed(format!("{file}: name"), what, "give another name"));
        }
        Ok(sheet)
    }

    fn parse(file: &str, text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let what = format!("line {line}: {}", e.message().replace('\n', " "));
            Error::failed(file, what, "write one field a line, as `memory_gb = 80`")
        })?;
        Fields { file, table }.data_sheet()
    }
}

/// The fields of a data sheet's file that are not parsed yet.
struct Fields<'a> {
    file: &'a str,
    table: toml::Table,
}

impl Fields<'_> {
    fn data_sheet(mut self) -> Result<DataSheet> {
        let name = self.name()?;
        let title = self.text("title")?.unwrap_or_else(|| name.clone());
        let compute_capability = self.compute_capability()?;
        let memory = self.required("memory_gb", [1e-3, 1e5])? * 1e9;
        let bandwidth = self.required("bandwidth_gb_s", [1.0, 1e6])? * 1e9;
        let bf16 = self.required("bf16_tflops", [0.1, 1e6])? * 1e12;
        let given = self.number("f32_tflops", [0.1, 1e5])?.map(|rate| rate * 1e12);
        let multiprocessors = self.number("multiprocessors", [1.0, 10_000.0])?;
        let clock = self.number("clock_mhz", [100.0, 10_000.0])?.map(|mhz| mhz * 1e6);
        let computed = f32_rate(compute_capability, multiprocessors, clock);
        let f32 = self.f32_rate(given, computed)?;
        let l2 = self.number("l2_mb", [0.1, 1e5])?.map(|mb| mb * 1e6);
        let nvlink = self.number("nvlink_gb_s", [1.0, 1e5])?.map(|gb| gb * 1e9);
        let pcie = self.text("pcie")?.unwrap_or_else(|| "pcie4".to_string());
        if !["pcie4", "pcie5"].contains(&pcie.as_str()) {
            return Err(self.wrong("pcie", format!("is {pcie:?}"), "give \"pcie4\" or \"pcie5\""));
        }
        if let Some(unknown) = self.table.keys().next() {
            return Err(self.wrong(unknown, "is not a field of a GPU", &format!("the fields are {FIELDS}")));
        }
        Ok(DataSheet { name, title, compute_capability, memory, bandwidth, bf16, f32, l2, nvlink, pcie })
    }

    fn wrong(&self, field: &str, what: impl Into<String>, help: &str) -> Error {
        Error::failed(format!("{}: {field}", self.file), what, help)
    }

    fn name(&mut self) -> Result<String> {
        let help = "give a short name of a-z, 0-9, - and _";
        let name = self.text("name")?.ok_or_else(|| self.wrong("name", "is missing", help))?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        match (1..=32).contains(&name.len()) && name.chars().all(is_plain) {
            true => Ok(name),
            false => Err(self.wrong("name", format!("is {name:?}"), help)),
        }
    }

    fn text(&mut self, field: &str) -> Result<Option<String>> {
        match self.table.remove(field) {
            None => Ok(None),
            // Control characters would corrupt reports.
            Some(toml::Value::String(text)) if text.len() <= 200 && !text.contains(char::is_control) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "is not a string of one line", "write it between quotation marks")),
        }
    }

    /// The number in a field, within the bounds `[least, most]`.
    fn number(&mut self, field: &str, [least, most]: [f64; 2]) -> Result<Option<f64>> {
        let value = match self.table.remove(field) {
            None => return Ok(None),
            Some(toml::Value::Integer(number)) => number as f64,
            Some(toml::Value::Float(number)) => number,
            Some(_) => return Err(self.wrong(field, "is not a number", "write a number without quotation marks")),
        };
        match (least..=most).contains(&value) {
            true => Ok(Some(value)),
            false => Err(self.wrong(field, format!("is {value}"), &format!("give {least} to {most}"))),
        }
    }

    fn required(&mut self, field: &str, bounds: [f64; 2]) -> Result<f64> {
        let given = self.number(field, bounds)?;
        given.ok_or_else(|| self.wrong(field, "is missing", "a plan needs this figure of the GPU's data sheet"))
    }

    /// The compute capability times ten.
    fn compute_capability(&mut self) -> Result<u32> {
        let field = "compute_capability";
        let given = self.required(field, [8.0, 99.0])?;
        // A value above 20 has no decimal point, as in NVIDIA's names of architectures such as sm_90.
        if given > 20.0 {
            return Err(self.wrong(field, format!("is {given}"), "give one digit after the point: 9.0 for sm_90"));
        }
        let tenfold = 10.0 * given;
        match (tenfold - tenfold.round()).abs() < 1e-6 {
            true => Ok(tenfold.round() as u32),
            false => Err(self.wrong(field, format!("is {}", tenfold / 10.0), "give one digit after the point, as 8.9")),
        }
    }

    /// Returns the given f32 rate, or else the computed rate. If both exist, they must agree: a rate with sparsity or
    /// with tensor cores is easily given by mistake.
    fn f32_rate(&self, given: Option<f64>, computed: Option<f64>) -> Result<f64> {
        let field = "f32_tflops";
        match (given, computed) {
            (Some(given), Some(computed)) if !((given / computed - 1.0).abs() <= F32_TOLERANCE) => {
                let (given, computed) = (given / 1e12, computed / 1e12);
                let what = format!("is {given}, but multiprocessors and clock_mhz give {computed:.1}");
                Err(self.wrong(field, what, "give the rate without tensor cores, or correct the other two fields"))
            }
            (Some(rate), _) | (None, Some(rate)) => Ok(rate),
            (None, None) => {
                Err(self.wrong(field, "is missing", "give it, or multiprocessors and clock_mhz, from which it follows"))
            }
        }
    }
}

/// The f32 operations per second of all lanes: each computes a product and a sum per cycle. A multiprocessor has 64
/// lanes in GPUs of compute capability 8.0, and 128 in all later ones.
fn f32_rate(compute_capability: u32, multiprocessors: Option<f64>, clock: Option<f64>) -> Option<f64> {
    let lanes = if compute_capability == 80 { 64.0 } else { 128.0 };
    Some(2.0 * lanes * multiprocessors? * clock?)
}

/// The built-in data sheet with this short name, in upper or lower case.
///
/// # Errors
/// No built-in data sheet has this name; the error lists the names that exist.
pub fn by_name(name: &str) -> Result<&'static DataSheet> {
    built_in().iter().find(|sheet| sheet.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<&str> = built_in().iter().map(|sheet| sheet.name.as_str()).collect();
        Error::usage(
            "--gpu",
            format!("there is no data sheet for a GPU named {name:?}"),
            format!("give one of {}, or a file NAME.toml with its figures", names.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: &str = "name = \"mine\"\ncompute_capability = 8.9\nmemory_gb = 24\nbandwidth_gb_s = 1000\n\
                        bf16_tflops = 165\nmultiprocessors = 128\nclock_mhz = 2520\n";

    fn error(text: &str) -> String {
        DataSheet::parse("my.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn built_in_gpus_have_consistent_figures() {
        let names: Vec<&str> = built_in().iter().map(|sheet| sheet.name.as_str()).collect();
        assert_eq!(names, ["b200", "h200", "h100", "a100", "l40s", "rtx4090"]);
        let b200 = by_name("b200").unwrap();
        assert_eq!((b200.compute_capability, b200.bf16, b200.nvlink), (100, 2250e12, Some(900e9)));
        assert!(by_name("b300").unwrap_err().to_string().contains("b200, h200, h100, a100, l40s, rtx4090, or a file"));
    }

    #[test]
    fn f32_rate_follows_from_multiprocessors_and_clock() {
        let mine = DataSheet::parse("my.toml", MINE).unwrap();
        assert!((mine.f32 / 82.6e12 - 1.0).abs() < 1e-3 && mine.title == "mine", "{mine:?}");
        assert_eq!((mine.memory, mine.nvlink, mine.pcie.as_str(), mine.l2), (24e9, None, "pcie4", None));
        let text = error(&format!("{MINE}f32_tflops = 165.2\n"));
        assert!(
            text.starts_with("my.toml: f32_tflops: is 165.2, but multiprocessors and clock_mhz give 82.6; "),
            "{text}"
        );
        assert!(error(&MINE.replace("clock_mhz = 2520\n", "")).starts_with("my.toml: f32_tflops: is missing; give it"));
    }

    #[test]
    fn each_field_is_checked() {
        for (before, after, message) in [
            ("name = \"mine\"\n", "", "my.toml: name: is missing; "),
            ("\"mine\"", "\"My GPU\"", "my.toml: name: is \"My GPU\"; give a short name"),
            ("\"mine\"", "7", "my.toml: name: is not a string of one line; "),
            ("8.9", "8.95", "my.toml: compute_capability: is 8.95; give one digit"),
            ("8.9", "7.5", "my.toml: compute_capability: is 7.5; give 8 to 99"),
            ("memory_gb = 24", "memory_gb = -24", "my.toml: memory_gb: is -24; give 0.001 to 100000"),
            ("memory_gb = 24", "memory_gb = nan", "my.toml: memory_gb: is NaN; "),
            ("memory_gb = 24\n", "", "my.toml: memory_gb: is missing; "),
            ("memory_gb = 24", "memory_gb = \"24\"", "my.toml: memory_gb: is not a number; "),
            ("bandwidth_gb_s = 1000", "bandwidth_gb_s = 0", "my.toml: bandwidth_gb_s: is 0; "),
            ("bf16_tflops = 165", "bf16_tflops = inf", "my.toml: bf16_tflops: is inf; "),
            ("clock_mhz = 2520", "clock_mhz = 2.52", "my.toml: clock_mhz: is 2.52; give 100 to 10000"),
            ("clock_mhz", "pcie = \"pcie3\"\nclock_mhz", "my.toml: pcie: is \"pcie3\"; give \"pcie4\""),
            ("clock_mhz", "fp8_tflops = 9\nclock_mhz", "my.toml: fp8_tflops: is not a field of a GPU; the fields are"),
            ("memory_gb = 24", "memory_gb 24", "my.toml: line 3: "),
            ("memory_gb = 24", "memory_gb = 24\nmemory_gb = 25", "my.toml: line 4: "),
        ] {
            let text = error(&MINE.replace(before, after));
            assert!(text.starts_with(message) && !text.contains('\n'), "{after}: {text}");
        }
    }

    proptest! {
        /// Any text is a data sheet or gives an error of one line.
        #[test]
        fn any_text_is_read_or_refused_in_one_line(at in 0..MINE.len(), put in "[ -~\n]{0,12}", cut in 0..20usize) {
            let end = (at + cut).min(MINE.len());
            let text = format!("{}{put}{}", &MINE[..at], &MINE[end..]);
            if let Err(e) = DataSheet::parse("my.toml", &text) {
                prop_assert!(!e.to_string().contains('\n'), "{e}");
            }
        }
    }
}
