//! Instructions with fewer operands than their opcode needs, in PTX that is cut or written by hand: each becomes an
//! instruction that is not supported, which is reported where it is executed.

use reel_sim::program::Program;
use std::fs;
use std::path::Path;

/// The PTX files in a folder of the tests.
fn corpus(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "ptx"));
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// A guard must be a predicate; another register has no entry among the predicates.
#[test]
fn a_guard_that_is_no_predicate_is_named() {
    let text =
        ".version 8.0 .target sm_90a .address_size 64 .entry k() { .reg .b32 %r<60>; @%r50 mov.u32 %r1, 1; ret; }";
    let program = Program::parse(text).unwrap();
    let kernel = program.kernel("k").unwrap();
    let instruction = &kernel.functions[0].instrs[0];
    assert!(instruction.guard.is_none());
    assert!(format!("{:?}", instruction.op).contains("the guard is not a predicate"), "{:?}", instruction.op);
}

/// Every instruction of the corpus, which has most opcodes, is decoded with its first operands only.
#[test]
fn instructions_without_their_operands_are_decoded() {
    let texts: Vec<String> = ["tests/corpus_async", "src/ptx/testdata"].into_iter().flat_map(corpus).collect();
    assert!(texts.len() > 8);
    for kept in 0..4 {
        for text in &texts {
            let mut module = Program::parse(text).unwrap().module;
            for instruction in module.functions.iter_mut().flat_map(|function| &mut function.body) {
                instruction.operands.truncate(kept);
            }
            let Ok(program) = Program::from_module(module) else { continue };
            for name in program.kernel_names() {
                // A function that is not called by name cannot be found; everything else decodes.
                if let Err(e) = program.kernel(name) {
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn one_missing_operand_is_named() {
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
