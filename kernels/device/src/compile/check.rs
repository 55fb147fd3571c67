//! Checks the machine code of a kernel folder for spilled registers, for local memory that its `mod.rs` does not
//! allow, and for ptxas remarks that an optimisation was dropped (`wgmma` serialised, `setmaxnreg` ignored).

use super::ptxas::FunctionResources;
use super::{CompileError, compile_to_cubin};
use crate::Source;

/// One function compiled for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFunction {
    /// Registers, spills and memory as ptxas reports them.
    pub resources: FunctionResources,
    /// Number of `ld.local` and `st.local` instructions in the function's PTX. They access arrays that are not in
    /// registers.
    pub local_accesses: u32,
}

/// The result of checking a source for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// The source's functions, sorted by symbol.
    pub functions: Vec<CheckedFunction>,
    /// The problems that were found, one line each.
    pub problems: Vec<String>,
}

/// Compiles `source` for `sm` and checks every function. `module` is the text of the folder's `mod.rs`. Its lines
/// that begin with `//! Local memory:` name the symbols that may use local memory.
pub fn check_machine_code(source: &Source, sm: &str, module: &str) -> Result<CheckResult, CompileError> {
    let built = compile_to_cubin(source, sm)?;
    let local = local_accesses(&built.ptx);
    let local_of = |symbol: &str| local.iter().find(|(name, _)| *name == symbol).map_or(0, |(_, count)| *count);
    let functions: Vec<CheckedFunction> = (built.report.functions.iter())
        .map(|r| CheckedFunction { local_accesses: local_of(&r.symbol), resources: r.clone() })
        .collect();
    let mut problems: Vec<String> = functions.iter().flat_map(|f| problems_of(f, module)).collect();
    problems.extend(built.report.warnings.iter().map(|w| format!("ptxas: {w}")));
    let problems = problems.iter().map(|p| format!("{} {sm}: {p}", source.name)).collect();
    Ok(CheckResult { functions, problems })
}

fn problems_of(f: &CheckedFunction, module: &str) -> Vec<String> {
    let FunctionResources { symbol, spill_stores, spill_loads, stack, .. } = &f.resources;
    let mut problems = Vec::new();
    if spill_stores + spill_loads > 0 {
        problems.push(format!("{symbol}: {spill_stores} bytes of spilled registers stored, {spill_loads} loaded"));
    }
    if f.local_accesses > 0 && !may_use_local_memory(module, symbol) {
        let what = format!("{symbol}: {} accesses of local memory, {stack} bytes of stack", f.local_accesses);
        problems
            .push(format!("{what}; index arrays by constants, or name the kernel in mod.rs (`//! Local memory: …`)"));
    }
    problems
}

/// Tells whether a line ``//! Local memory: `a`, `b`: reason`` of the module names the symbol.
fn may_use_local_memory(module: &str, symbol: &str) -> bool {
    let named = format!("`{symbol}`");
    module.lines().any(|l| l.starts_with("//! Local memory:") && l.contains(&named))
}

/// Returns the functions that access local memory, each with its number of accesses.
fn local_accesses(ptx: &str) -> Vec<(&str, u32)> {
    let mut found = Vec::new();
    // Most kernels use no local memory. For them this test avoids a pass over all lines, which takes longer than
    // reading the unit from the cache.
    if !ptx.contains("ld.local") && !ptx.contains("st.local") {
        return found;
    }
    let (mut function, mut count) = ("", 0);
    for line in ptx.lines() {
        if line.starts_with('.') || line.starts_with("\t.") {
            function = declared(line).unwrap_or(function);
        } else if line.contains("ld.local") || line.contains("st.local") {
            count += 1;
        } else if line.starts_with('}') && count > 0 {
            found.push((function, count));
            count = 0;
        }
    }
    found
}

/// Returns the function that a line of PTX declares. Its name precedes the parameters: `.visible .entry name(` or
/// `.func (.param .b32 r) name(`.
fn declared(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(".entry ").or_else(|| line.split_once(".func "))?;
    let rest = rest.trim_start();
    let name = if rest.starts_with('(') { rest.split_once(')')?.1.trim_start() } else { rest };
    name.split(['(', ')', ' ', '\t', ',', ';']).next()
}

#[cfg(test)]
mod tests {
    use super::super::skip_without_nvrtc;
    use super::*;

    const BAD: &str = r#"
extern "C" __global__ void fine(float* x) { x[threadIdx.x] += 1.f; }
extern "C" __global__ void indexed(float* x, int n) {
    float a[16];
    for (int i = 0; i < 16; i++) a[i] = x[i * n];
    for (int i = 0; i < n; i++) a[(i * 7) & 15] += a[i & 15];
    for (int i = 0; i < 16; i++) x[i] = a[i];
}
extern "C" __global__ void __launch_bounds__(1024, 2) spilled(float* x, int n) {
    float a[64];
#pragma unroll
    for (int i = 0; i < 64; i++) a[i] = x[i * n];
#pragma unroll
    for (int i = 0; i < 64; i++) for (int j = 0; j < 64; j++) a[i] = a[i] * a[j] + 1;
#pragma unroll
    for (int i = 0; i < 64; i++) x[i] = a[i];
}
"#;

    fn source(text: &'static str) -> Source {
        Source { name: "bad", sm80: text, params: &[], shared_headers: &[], headers: &[], header_owners: &[] }
    }

    #[test]
    fn spills_and_local_memory_are_problems() {
        let Some(()) = skip_without_nvrtc() else { return };
        let checked = check_machine_code(&source(BAD), "sm_80", "").unwrap();
        let names: Vec<_> = checked.functions.iter().map(|f| f.resources.symbol.as_str()).collect();
        assert_eq!(names, ["fine", "indexed", "spilled"]);
        assert_eq!(checked.problems.len(), 2, "{:?}", checked.problems);
        assert!(
            checked.problems[0].starts_with("bad sm_80: indexed: ") && checked.problems[0].contains("local memory")
        );
        assert!(checked.problems[1].contains("spilled: ") && checked.problems[1].contains("spilled registers"));
        let allowed = "//! Local memory: `indexed`, which is a test.\n";
        assert_eq!(check_machine_code(&source(BAD), "sm_80", allowed).unwrap().problems.len(), 1);
        assert_eq!(check_machine_code(&source(BAD), "sm_80", "//! Local memory: `index`\n").unwrap().problems.len(), 2);
    }

    #[test]
    fn what_ptxas_gives_up_is_a_problem() {
        let Some(()) = skip_without_nvrtc() else { return };
        let text = "extern \"C\" __global__ void __launch_bounds__(1024, 4) k(float* x) {\n  x[0] = 1;\n}\n";
        let checked = check_machine_code(&source(text), "sm_90a", "").unwrap();
        assert_eq!(checked.problems.len(), 1, "{:?}", checked.problems);
        assert!(checked.problems[0].contains("threads per SM"), "{:?}", checked.problems);
    }

    #[test]
    fn local_accesses_are_counted_by_function() {
        let ptx = "\
.visible .entry a(\n\t.param .u64 a_param_0\n)\n{\n\tst.local.f32 \t[%rd1], %f1;\n\tld.local.v4.f32 \t{%f1}, [%rd1];\n}
.func  (.param .b32 func_retval0) f(\n\t.param .b32 p\n)\n{\n\tld.local.u32 \t%r1, [%rd1];\n}
.entry b()\n{\n\tld.global.u32 \t%r1, [%rd1];\n}\n";
        assert_eq!(local_accesses(ptx), [("a", 2), ("f", 1)]);
        assert_eq!(local_accesses(&ptx.replace("local", "shared")), []);
    }
}
