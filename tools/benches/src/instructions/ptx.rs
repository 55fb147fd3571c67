//! Generates the PTX module for one instruction, and its random inputs.

use super::format::{OperandFormat, correlate_inputs};
use super::{InstructionCase, KERNEL_NAME, THREADS_PER_BLOCK};
use reel_sim::exec::SeededRng;
use std::fmt::Write;

/// The first lines of every module.
const MODULE_HEADER: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

/// Returns the name of a case: `text`, which is one expansion of a pattern, and the formats of its operands.
pub fn case_name(text: &str, formats: &str) -> String {
    format!("{} {formats}", text.replace('$', ""))
}

/// Makes the case of `text`, which is one expansion of a pattern, with the formats of its operands.
pub fn case_from_expanded_pattern(text: &str, formats: &str, lanes: usize) -> InstructionCase {
    let (results, sources) = formats.split_once('=').expect("results=sources");
    let named = |letters: &str| letters.chars().map(OperandFormat::from_letter).collect::<Vec<_>>();
    case_from_formats(text, case_name(text, formats), named(results), named(sources), lanes)
}

/// Makes the case of an instruction from the formats of its operands.
pub fn case_from_formats(
    text: &str,
    name: String,
    results: Vec<OperandFormat>,
    sources: Vec<OperandFormat>,
    lanes: usize,
) -> InstructionCase {
    let lanes = if sources.len() == 1 { 8 * lanes } else { lanes };
    let lanes = lanes.next_multiple_of(cluster_blocks(text) * THREADS_PER_BLOCK);
    let input = random_inputs(&name, &sources, lanes);
    let ptx = module(&statements(text, results.len(), sources.len()), &results, &sources, lanes);
    InstructionCase { name, ptx, lanes, sources, results, input, magnitudes: None, tolerance: 0.0, finding: None }
}

/// Returns the number of blocks per cluster of the kernel that runs `text`.
fn cluster_blocks(text: &str) -> usize {
    if text.contains("$c,") || text.contains("$c;") { 2 } else { 1 }
}

/// Returns the PTX statements of `text`, which is one expansion of a pattern. If `text` is a single opcode, the
/// operands are appended; whole statements are returned unchanged.
fn statements(text: &str, results: usize, sources: usize) -> String {
    if text.contains('$') {
        return text.to_string();
    }
    let operands = (0..results).map(|k| format!("$d{k}")).chain((0..sources).map(|k| format!("$a{k}")));
    format!("{text} {};", operands.collect::<Vec<_>>().join(", "))
}

/// Returns the inputs of all lanes. An instruction with one 16-bit source gets every 16-bit value, if there are enough
/// lanes.
pub fn random_inputs(name: &str, sources: &[OperandFormat], lanes: usize) -> Vec<u8> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut rng = SeededRng::new(seed);
    let mut bytes = vec![0; 8 * lanes * sources.len()];
    let mut tuple = vec![0; sources.len()];
    let mut warp_random = 0;
    for i in 0..lanes {
        if i % 32 == 0 {
            warp_random = rng.draw();
        }
        tuple.iter_mut().zip(sources).for_each(|(v, format)| *v = format.random_input(&mut rng, warp_random));
        correlate_inputs(sources, &mut tuple, &mut rng);
        if sources.len() == 1 && sources[0].bit_width() == 16 && lanes >= 1 << 16 {
            tuple[0] = i as u64 & 0xffff;
        }
        for (k, v) in tuple.iter().enumerate() {
            let at = 8 * (k * lanes + i);
            bytes[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
    }
    bytes
}

/// Returns the PTX type with which an operand is declared, loaded and stored.
fn register(format: OperandFormat) -> &'static str {
    match format.bit_width() {
        1 => "pred",
        16 => "b16",
        32 => "b32",
        _ => "b64",
    }
}

/// Returns the text of a module up to the body of its kernel, which has clusters of `cluster` blocks.
pub fn kernel_entry_ptx(cluster: usize) -> String {
    let parameters = ".param .u64 in, .param .u64 out, .param .u64 scratch";
    let cluster = if cluster > 1 { format!(" .reqnctapercluster {cluster}, 1, 1") } else { String::new() };
    format!("{MODULE_HEADER}.visible .entry {KERNEL_NAME}({parameters}){cluster} {{\n")
}

fn module(statements: &str, results: &[OperandFormat], sources: &[OperandFormat], lanes: usize) -> String {
    let cluster = cluster_blocks(statements);
    let mut p = kernel_entry_ptx(cluster);
    let mut line = |text: String| writeln!(p, "    {text}").expect("a string takes all");
    for (letter, formats) in [("a", sources), ("d", results)] {
        for (k, &format) in formats.iter().enumerate() {
            line(format!(".reg .{} %{letter}{k};", register(format)));
        }
    }
    line(".reg .b32 %t<4>, %i, %s, %w, %n; .reg .b64 %u<4>, %g, %in, %out; .reg .pred %q<4>;".into());
    line(format!("mov.u32 %i, %ctaid.x; mov.u32 %n, %tid.x; mad.lo.u32 %i, %i, {THREADS_PER_BLOCK}, %n;"));
    line("ld.param.u64 %in, [in]; ld.param.u64 %out, [out];".into());
    line("mad.wide.u32 %in, %i, 8, %in; mad.wide.u32 %out, %i, 8, %out;".into());
    if statements.contains("$g") {
        line("ld.param.u64 %g, [scratch]; mad.wide.u32 %g, %i, 16, %g;".into());
    }
    if cluster > 1 {
        line(".reg .b32 %c; mov.u32 %c, %cluster_ctarank;".into());
    }
    if statements.contains("$s") || statements.contains("$w") {
        line(format!(".shared .align 128 .b8 sm[{}];", 16 * THREADS_PER_BLOCK));
        line("mov.u32 %s, sm; and.b32 %w, %n, 0xffffffe0; mad.lo.u32 %w, %w, 16, %s;".into());
        line("mad.lo.u32 %s, %n, 16, %s;".into());
    }
    for (k, &format) in sources.iter().enumerate() {
        let at = 8 * k * lanes;
        line(match format {
            OperandFormat::Pred => format!("ld.global.b32 %t0, [%in+{at}]; setp.ne.u32 %a{k}, %t0, 0;"),
            _ => format!("ld.global.{} %a{k}, [%in+{at}];", register(format)),
        });
    }
    // Initialises the result registers, because an instruction under a false predicate does not write them.
    for (k, &format) in results.iter().enumerate() {
        line(match format {
            OperandFormat::Pred => format!("setp.ne.u32 %d{k}, 0, 0;"),
            _ => format!("mov.{} %d{k}, 0;", register(format)),
        });
    }
    for statement in statements.split_inclusive(';') {
        line(statement.trim().replace('$', "%"));
    }
    for (k, &format) in results.iter().enumerate() {
        let at = 8 * k * lanes;
        line(match format {
            OperandFormat::Pred => format!("selp.b32 %t0, 1, 0, %d{k}; st.global.b32 [%out+{at}], %t0;"),
            _ => format!("st.global.{} [%out+{at}], %d{k};", register(format)),
        });
    }
    line("ret;".into());
    p.push_str("}\n");
    p
}
