//! Operands in braces, `{%r1}`: the simulator accepts exactly the forms that ptxas 13.0 accepts. `braces.txt` lists the
//! forms with ptxas's verdict; a test of `reel sim run` compares the list with ptxas if ptxas is installed. A form with
//! the verdict `unstable` is accepted by ptxas in most runs and crashes it in the others.

use super::harness::{Case, bytes_of_words};
use reel_sim::program::Program;
use reel_sim::program::op::Op;

const FORMS: &str = include_str!("braces.txt");

/// Declarations of the registers and variables that the statements in `braces.txt` use.
const DECLARATIONS: &str = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<16>; .reg .f32 %f<16>;
    .reg .f64 %e<8>; .reg .v2 .b32 %v; .shared .align 128 .b8 sm[1024];";

/// Checks that the simulator can execute an instruction; otherwise returns the error of the parser or of the decoder.
fn decoded(statement: &str) -> Result<(), String> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 a) {{ {DECLARATIONS}\n{statement}\nret; }}\n"
    );
    let program = Program::parse(&text).map_err(|e| e.to_string())?;
    let kernel = program.kernel("k").map_err(|e| e.to_string())?;
    match &kernel.functions[0].instrs[0].op {
        Op::Unsupported(what) => Err(what.to_string()),
        _ => Ok(()),
    }
}

#[test]
fn operands_in_braces_are_those_that_ptxas_takes() {
    for form in FORMS.lines() {
        let (verdict, statement) = form.split_once(' ').unwrap();
        match (verdict, decoded(statement)) {
            ("accepted" | "unstable", result) => assert_eq!(result, Ok(()), "{statement}"),
            ("refused", Ok(())) => panic!("{statement} is accepted"),
            ("refused", Err(message)) => assert!(!message.is_empty(), "{statement}"),
            other => panic!("{form}: {other:?}"),
        }
    }
}

/// Loads and stores as Triton writes them, with a predicate before each.
#[test]
fn scalar_loads_and_stores_in_braces_copy() {
    let text = "
        .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<6>;
        ld.param.b64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;
        setp.lt.u32 %p1, %r1, 20;
        mov.u32 %r2, 0x0;
        @%p1 ld.global.b32 { %r2 }, [ %rd4 + 0 ];
        mov.b32 { %r3 }, %r2;
        @%p1 st.global.b32 [ %rd4 + 512 ], { %r3 };
        ret;";
    let mut buffer = bytes_of_words(1..33);
    buffer.resize(1024, 0);
    let report = Case { buffers: vec![buffer], ..Case::new("sm_80", 32, text) }.run();
    assert_eq!(report.findings.concat(), []);
    let base = report.memory.iter().next().unwrap().base;
    let after = &report.memory.buffer_bytes(base).unwrap()[512..640];
    assert_eq!(after, bytes_of_words((1..33).map(|i| if i <= 20 { i } else { 0 })));
}
