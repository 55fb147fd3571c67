//! Instructions with too few operands, a wrong guard or a wrong address, as in PTX that was cut or written by hand. The
//! decoder turns each into an unsupported instruction, which the simulator reports when it executes it.

use reel_sim::program::Program;
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Returns the texts of the PTX files in a folder of this crate.
fn corpus(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "ptx"));
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The guard of an instruction must be a predicate register; %r50 is a register of another type.
#[test]
fn guard_that_is_not_a_predicate_makes_an_instruction_unsupported() {
    let text =
        ".version 8.0 .target sm_90a .address_size 64 .entry k() { .reg .b32 %r<60>; @%r50 mov.u32 %r1, 1; ret; }";
    let program = Program::parse(text).unwrap();
    let kernel = program.kernel("k").unwrap();
    let instruction = &kernel.functions[0].instrs[0];
    assert!(instruction.guard.is_none());
    assert!(format!("{:?}", instruction.op).contains("the guard is not a predicate"), "{:?}", instruction.op);
}

/// A predicate register is refused as an address: its index is not a row of the register file.
#[test]
fn predicate_as_an_address_makes_an_instruction_unsupported() {
    for address in ["[%p2]", "[%p2+8]"] {
        let text = format!(
            ".version 8.0 .target sm_90a .address_size 64 .entry k() {{ .reg .pred %p<3>; st.global.u32 {address}, 1; ret; }}"
        );
        let program = Program::parse(&text).unwrap();
        let kernel = program.kernel("k").unwrap();
        let op = format!("{:?}", kernel.functions[0].instrs[0].op);
        assert!(op.contains("%p2 is a predicate, not an address"), "{op}");
    }
}

/// The decoder must not panic on an instruction that has only its first 0 to 3 operands. The test PTX contains most
/// opcodes.
#[test]
fn decoder_does_not_panic_on_too_few_operands() {
    let texts: Vec<String> = ["tests/corpus_async", "src/ptx/testdata"].into_iter().flat_map(corpus).collect();
    assert!(texts.len() > 8);
    for kept in 0..4 {
        for text in &texts {
            let mut module = Program::parse(text).unwrap().module;
            for instruction in module.functions.iter_mut().flat_map(|f| &mut Arc::make_mut(f).body) {
                instruction.operands.truncate(kept);
            }
            let Ok(program) = Program::from_module(module) else { continue };
            for name in program.kernel_names() {
                // A `call` that has lost the name of its function is an error; every other instruction is decoded.
                if let Err(e) = program.kernel(name) {
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn unsupported_instruction_names_its_missing_operand() {
    for (instruction, missing) in
        [("cp.async.ca.shared.global", 1), ("mbarrier.init.shared.b64 [%r0]", 2), ("mapa.u32 %r0", 2)]
    {
        let text = format!(
            ".version 8.0 .target sm_90a .address_size 64 .entry k() {{ .reg .b32 %r<2>; {instruction}; ret; }}"
        );
        let program = Program::parse(&text).unwrap();
        let kernel = program.kernel("k").unwrap();
        let op = format!("{:?}", kernel.functions[0].instrs[0].op);
        assert!(op.contains(&format!("operand {missing} is missing")), "{instruction}: {op}");
    }
}
