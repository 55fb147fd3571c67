//! Runs the program ptxas, and parses the report that `ptxas -v` prints for each function.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{CompileError, CompilerOutput, Unit, temporary_folder};

/// Assembles the PTX that is the text of `unit` by the program at path `ptxas`.
///
/// # Errors
/// The program cannot be run, or reports errors in the PTX.
pub fn assemble(ptxas: &Path, unit: &Unit) -> Result<CompilerOutput, CompileError> {
    let failed = |e: std::io::Error| CompileError::Unusable { path: ptxas.into(), reason: e.to_string() };
    let scratch = temporary_folder().map_err(failed)?;
    let [input, output] = ["in.ptx", "out.cubin"].map(|name| scratch.path().join(name));
    fs::write(&input, &unit.text).map_err(failed)?;
    let mut command = Command::new(ptxas);
    command.args(&unit.options).arg("-o").arg(&output).arg(&input);
    let done = command.stdin(Stdio::null()).output().map_err(failed)?;
    let log = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if !done.status.success() {
        return Err(CompileError::refused(&unit.name, &format!("ptxas: {}", done.status), log));
    }
    Ok(CompilerOutput { ptx: unit.text.clone(), cubin: fs::read(&output).map_err(failed)?, log })
}

/// Resources of one function on one architecture, as ptxas reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionResources {
    /// The symbol.
    pub symbol: String,
    /// True for a kernel, false for a function that was not inlined.
    pub entry: bool,
    /// Registers per thread; 0 for functions that are not kernels, for which ptxas reports none.
    pub registers: u32,
    /// Bytes that a thread stores to spill registers.
    pub spill_stores: u32,
    /// Bytes that a thread loads to restore spilled registers.
    pub spill_loads: u32,
    /// Bytes of a thread's stack frame: local arrays and spilled registers.
    pub stack: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Named barriers.
    pub barriers: u32,
}

/// What ptxas reports about one translation unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PtxasReport {
    /// All functions, sorted by symbol.
    pub functions: Vec<FunctionResources>,
    /// Warnings and numbered performance remarks, one line each, such as C7508 (`setmaxnreg` ignored) or C7510 to
    /// C7519 (`wgmma` serialised, a wait or an arrive inserted).
    pub warnings: Vec<String>,
}

impl PtxasReport {
    /// Parses the log of `ptxas -v`, printed by the program itself or contained in NVRTC's log.
    pub fn from_log(log: &str) -> PtxasReport {
        let mut report = PtxasReport::default();
        // The function that the following "N bytes stack frame" and "Used N registers" lines describe.
        let (mut function, mut entry) = (String::new(), String::new());
        // The program ptxas prints the "bytes stack frame" lines without the prefix `ptxas`, which these lines have in
        // NVRTC's log.
        for line in log.lines().filter(|l| l.starts_with("ptxas") || l.contains(" bytes stack frame")) {
            if let Some(symbol) = quoted_after(line, "Compiling entry function ") {
                entry = symbol.to_string();
                report.of(symbol).entry = true;
            } else if let Some((_, symbol)) = line.split_once("Function properties for ") {
                function = symbol.trim().to_string();
                report.of(&function);
            } else if line.contains(" bytes stack frame") {
                let f = report.of(&function);
                f.stack = number_before(line, " bytes stack frame");
                f.spill_stores = number_before(line, " bytes spill stores");
                f.spill_loads = number_before(line, " bytes spill loads");
            } else if line.contains(": Used ") {
                let f = report.of(&entry);
                f.registers = number_before(line, " registers");
                f.shared = number_before(line, " bytes smem");
                f.barriers = number_before(line, " barriers");
            } else if let Some(warning) = warning(line) {
                report.warnings.push(warning);
            }
        }
        report.functions.sort_by(|a, b| a.symbol.cmp(&b.symbol));
        report.warnings.dedup();
        report
    }

    /// Returns the resources of one function.
    pub fn resources_of_function(&self, symbol: &str) -> Option<&FunctionResources> {
        self.functions.iter().find(|f| f.symbol == symbol)
    }

    fn of(&mut self, symbol: &str) -> &mut FunctionResources {
        let i = self.functions.iter().position(|f| f.symbol == symbol).unwrap_or_else(|| {
            self.functions.push(FunctionResources { symbol: symbol.to_string(), ..FunctionResources::default() });
            self.functions.len() - 1
        });
        &mut self.functions[i]
    }
}

/// Returns the text of a warning: `ptxas warning : …` or a numbered remark `ptxas info    : (C7508) …`.
fn warning(line: &str) -> Option<String> {
    let (kind, text) = line.strip_prefix("ptxas")?.split_once(':')?;
    let numbered = text.trim_start().strip_prefix("(C").is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit()));
    (kind.trim() != "info" || numbered).then(|| text.trim().to_string())
}

fn quoted_after<'a>(line: &'a str, words: &str) -> Option<&'a str> {
    line.split_once(words)?.1.strip_prefix('\'')?.split('\'').next()
}

/// Returns the number directly before `words`, or 0.
fn number_before(line: &str, words: &str) -> u32 {
    let Some((before, _)) = line.split_once(words) else { return 0 };
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    before[before.len() - digits..].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_becomes_data() {
        let log = "\
ptxas info    : (C7517) warpgroup.wait is injected in around line 85 by compiler to allow use of registers in function 'b'
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
ptxas         .     6336 bytes stack frame, 6680 bytes spill stores, 15288 bytes spill loads
ptxas info    : Used 32 registers, used 2 barriers, 400 bytes smem, 6336 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 531.577 ms
ptxas info    : Function properties for _Z1ff
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas warning : Value of threads per SM for entry a is out of range.
";
        let report = PtxasReport::from_log(log);
        assert_eq!(PtxasReport::from_log(&log.replace("ptxas         . ", "   ")), report, "the log of the program");
        let b = FunctionResources {
            symbol: "b".into(),
            entry: true,
            registers: 32,
            spill_stores: 6680,
            spill_loads: 15288,
            stack: 6336,
            shared: 400,
            barriers: 2,
        };
        assert_eq!(report.resources_of_function("b"), Some(&b));
        let a = FunctionResources { symbol: "a".into(), entry: true, registers: 8, ..FunctionResources::default() };
        assert_eq!(report.resources_of_function("a"), Some(&a));
        let f = FunctionResources { symbol: "_Z1ff".into(), stack: 8, ..FunctionResources::default() };
        assert_eq!(report.functions, [f, a, b]);
        let starts: Vec<_> = report.warnings.iter().map(|w| &w[..7]).collect();
        assert_eq!(starts, ["(C7517)", "(C7508)", "Value o"]);
    }
}
