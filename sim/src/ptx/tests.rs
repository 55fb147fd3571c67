use super::ast::*;
use super::cfg::{reconvergence_points, successors};
use super::parse;
use std::sync::Arc;

const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";
const FUNCTIONS: &str = include_str!("testdata/functions.ptx");
const HOPPER: &str = include_str!("testdata/hopper.ptx");
const DEBUG: &str = include_str!("testdata/debug.ptx");

fn module(text: &str) -> Module {
    parse(&format!("{HEAD}{text}")).unwrap()
}

/// Parses a module that must be rejected: the usual module head, then `text`. Returns the error's line within `text`,
/// and its message.
fn error(text: &str) -> (u32, String) {
    let error = parse(&format!("{HEAD}{text}")).unwrap_err();
    (error.line - 3, error.what)
}

/// Parses a kernel with the given body.
fn kernel(body: &str) -> Function {
    let text = format!(
        ".visible .entry k(.param .u64 k_param_0) {{\n.reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %rd<8>;\n{body}\n}}\n"
    );
    Arc::unwrap_or_clone(module(&text).functions.pop().unwrap())
}

fn kernel_error(body: &str) -> (u32, String) {
    let (line, what) =
        error(&format!(".entry k() {{ .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>;\n{body}\n}}\n"));
    (line - 1, what)
}

/// Returns the operands of a kernel's last instruction.
fn operands(instruction: &str) -> Vec<Operand> {
    kernel(instruction).body.pop().unwrap().operands
}

fn name(function: &Function, register: RegisterIndex) -> &str {
    &function.registers[register as usize].name
}

#[test]
fn parses_the_module_head() {
    let module = parse(
        "// x\n/* y\n */ .version 8.7\n.target sm_90a, debug\n.address_size 64\n.file 1 \"a b\\\".cu\", 3, 4\0\0",
    )
    .unwrap();
    assert_eq!((module.version, &module.target[..]), ((8, 7), "sm_90a"));
    assert_eq!(module.files, [(1, "a b\\\".cu".to_owned())]);
    assert_eq!(parse("").unwrap_err(), ParseError { line: 1, what: "`.version` is missing".to_owned() });
    assert_eq!(parse("\n\n/* x").unwrap_err().line, 3);
    assert!(error(".address_size 32").1.contains("only 64"));
}

#[test]
fn parses_variables_and_initialisers() {
    let module = module(
        ".global .align 1 .b8 $str[5] = {37, 0x64, 012, 0b1};\n\
         .visible .const .v4 .f32 v[2] = {{1.5, 0f40000000, -1, 2e0}, {0, 1, 2, 3}};\n\
         .global .u64 p[4] = {generic($str), $str+4, generic($str+1)-8, 7};\n\
         .global .align 2 .u16 m[3][2] = {{1, 2}, {3}, {65535U, -1}};\n\
         .global .u8 open[] = {0XFF(generic($str)+12), 0xFF00(p), 3};\n\
         .global .attribute(.managed) .f64 d = 0dBFF0000000000000, e = {2.5}, f;\n\
         .const[2] .b32 bank;\n.extern .shared .align 16 .b8 dyn[];\n.extern .global .u32 x[4];\n.global .u32 x[4] = {9};\n.extern .global .u32 x[4];\n.extern .global .u32 y;\n.shared .b128 q[2];",
    );
    let find = |name: &str| module.variables.iter().find(|v| v.name == name).unwrap();
    assert_eq!((find("$str").size, &find("$str").init[..]), (5, &[37, 100, 10, 1][..]));
    let floats: Vec<u8> = [1.5f32, 2.0, -1.0, 2.0, 0.0, 1.0, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!((find("v").align, find("v").size, &find("v").init), (16, 32, &floats));
    let relocations = |name: &str| -> Vec<_> {
        let each = find(name).relocations.iter();
        each.map(|r| (r.at, r.symbol.clone(), r.width, r.shift, r.addend, r.generic)).collect()
    };
    let str = || "$str".to_owned();
    assert_eq!(relocations("p"), [(0, str(), 8, 0, 0, true), (8, str(), 8, 0, 4, false), (16, str(), 8, 0, -7, true)]);
    assert_eq!(find("p").init[24..], 7u64.to_le_bytes());
    assert_eq!(find("m").init, [1, 0, 2, 0, 3, 0, 0, 0, 255, 255, 255, 255]);
    assert_eq!((find("m").size, find("m").align), (12, 2));
    assert_eq!((find("open").size, find("open").init.len()), (3, 3));
    assert_eq!(relocations("open"), [(0, str(), 1, 0, 12, true), (1, "p".to_owned(), 1, 8, 0, false)]);
    assert_eq!((&find("d").init[..], &find("e").init[..]), (&(-1f64).to_le_bytes()[..], &2.5f64.to_le_bytes()[..]));
    assert!(find("f").init.is_empty() && !find("f").external);
    assert_eq!(
        (find("dyn").size, find("dyn").align, find("dyn").space, find("dyn").external),
        (0, 16, StateSpace::Shared, true)
    );
    assert_eq!((find("x").external, find("x").init[0], find("y").external), (false, 9, true));
    assert_eq!((find("q").size, find("q").align, find("bank").space), (32, 16, StateSpace::Const));
}

#[test]
fn rejects_invalid_variables() {
    assert_eq!(
        error("\n.global .u32 a[2] = {1, 2, 3};"),
        (2, "the initialiser of a has more than 2 elements in one dimension".to_owned())
    );
    assert_eq!(error(".global .u32 a;\n.global .u32 a;"), (2, "a is declared twice".to_owned()));
    assert_eq!(error(".global .u64 a[2] = {1,\n nothing};"), (2, "nothing is not declared".to_owned()));
    assert!(error(".global .u32 a[99999999999999];").1.contains("too large"));
    assert!(error(".global .u32 a[4000000000][4000000000];").1.contains("too large"));
    assert!(error(".global .u32 a[-1];").1.contains("negative array dimension: -1"));
    assert!(error(".global .align 3 .u32 a;").1.contains("power of two"));
    assert!(error(".global .u8 a = {0xF0(a)};").1.contains("mask"));
    assert!(error(".global .u32 a = 0d3FF0000000000000;").1.contains("floating-point"));
    assert!(error(".global .texref t;").1.contains("`.texref`"));
    assert!(error(".global a;").1.contains("expected a type, found `a`"));
    assert!(error(".global .u32 a = \"x").1.contains("expected a constant"));
}

#[test]
fn parses_functions_and_their_directives() {
    let module = module(
        ".extern .func (.param .b32 r) f (.param .b64 a, .param .align 8 .b8 b[24]);\n\
         .extern .func die() .noreturn;\n.weak .func (.reg .u32 %out) g(.reg .u32 %in, .reg .pred %p) { .reg .u32 %t; add.u32 %out, %in, 1; ret; }\n\
         .func h;\n.func h { ret; }\n.func alias();\n.alias alias, h;\n\
         .visible .entry k(.param .u64 .ptr .global .align 16 p, .param .align 64 .b8 map[128])\n.maxntid 256, 2\n.minnctapersm 2\n\
         .reqntid 32 .maxnreg 64 .explicitcluster .reqnctapercluster 2, 1, 1 .maxclusterrank 8 .pragma \"x\"; { ret; }",
    );
    let names: Vec<_> = module.functions.iter().map(|f| (&f.name[..], f.kernel, f.declaration, f.noreturn)).collect();
    let declared = [("f", false, true, false), ("die", false, true, true)];
    assert_eq!(names[..2], declared);
    assert_eq!(
        names[2..],
        [
            ("g", false, false, false),
            ("h", false, false, false),
            ("alias", false, false, false),
            ("k", true, false, false)
        ]
    );
    let [f, _, g, _, alias, k] = &module.functions[..] else { panic!() };
    assert_eq!((f.returns[0].size, f.params[0].size, f.params[1].size, f.params[1].align), (4, 8, 24, 8));
    assert_eq!((g.returns[0].register, g.params[0].register, g.params[1].register), (Some(0), Some(1), Some(2)));
    assert_eq!(g.registers[2].ty, Type::Pred);
    assert_eq!(g.body[0].operands[..2], [Operand::Register(0), Operand::Register(1)]);
    assert_eq!(alias.body.len(), 1);
    assert_eq!((k.max_threads, k.required_threads, k.min_blocks), (Some([256, 2, 1]), Some([32, 1, 1]), Some(2)));
    assert_eq!((k.max_registers, k.cluster, k.explicit_cluster), (Some(64), Some([2, 1, 1]), true));
    assert_eq!((k.params[0].align, k.params[1].align, k.params[1].size), (8, 64, 128));
    assert_eq!(error(".func f() { ret; }\n\n.func f() { ret; }"), (3, "f is declared twice".to_owned()));
}

#[test]
fn registers_of_nested_scopes_shadow() {
    let f = kernel(
        "{ .reg .b32 %r<2>; .reg .pred P, q1<3>; mov.u32 %r1, %r7; @!P bra L; L: @q12 ret; }\n { .reg .f32 %r1; mov.f32 %r1, 0f3F800000; } mov.u32 %r1, 0;",
    );
    let destination = |index: usize| match f.body[index].operands[0] {
        Operand::Register(register) => register,
        _ => panic!(),
    };
    assert_eq!(f.body[0].operands[1], Operand::Register(4 + 7));
    let (inner, second, outer) = (destination(0), destination(3), destination(4));
    assert!(inner != outer && second != outer && second != inner);
    assert_eq!((name(&f, inner), name(&f, second), name(&f, outer)), ("%r1", "%r1", "%r1"));
    assert_eq!((f.registers[second as usize].ty, f.registers[outer as usize].ty), (Type::F32, Type::B32));
    let (guard, negated) = f.body[1].guard.unwrap();
    assert_eq!((name(&f, guard), negated), ("P", true));
    assert_eq!(name(&f, f.body[2].guard.unwrap().0), "q12");
    assert_eq!(kernel_error("mov.u32 %r8, 0;"), (1, "register %r8 is not declared".to_owned()));
    assert_eq!(kernel_error("\n@%q bra L;"), (2, "register %q is not declared".to_owned()));
    assert_eq!(kernel_error(".reg .b32 a;\n.reg .b32 a;"), (2, "a is declared twice".to_owned()));
    assert!(kernel_error(".reg .b32 %x<9999999>;").1.contains("registers"));
    assert_eq!(operands("mov.u32 %r01, 0;")[0], Operand::Register(5));
}

#[test]
fn scoped_variables_get_unique_names() {
    let text = ".global .u32 g;\n.entry k() { .shared .u32 g; .local .align 16 .b8 depot[28]; .reg .u64 %a;\n\
                { .param .b64 p0; st.param.b64 [p0+0], %a; }\n{ .param .b64 p0; st.param.b64 [p0], %a; mov.u64 %a, g+2*3-2; } mov.u64 %a, depot; }";
    let module = module(text);
    let f = &module.functions[0];
    let names: std::collections::HashSet<_> = f.variables.iter().map(|v| &v.name).collect();
    assert!(names.len() == 4 && !names.contains(&"g".to_owned()));
    let symbol = |index: usize, operand: usize| match &f.body[index].operands[operand] {
        Operand::Symbol(name, offset) | Operand::Address(AddressBase::Symbol(name), offset) => (name.clone(), *offset),
        other => panic!("{other:?}"),
    };
    assert_eq!(symbol(0, 0), (f.variables[2].name.clone(), 0));
    assert_eq!(symbol(1, 0), (f.variables[3].name.clone(), 0));
    assert_eq!(symbol(2, 1), (f.variables[0].name.clone(), 4));
    assert_eq!(symbol(3, 1), ("depot".to_owned(), 0));
    assert_eq!((f.variables[1].size, f.variables[1].align, f.variables[1].space), (28, 16, StateSpace::Local));
}

#[test]
fn labels_belong_to_their_scope() {
    let f = kernel(
        "bra END; { W: @%p0 bra D; bra W; D: }\n{ W: @%p0 bra D; bra W; bra END; { bra W; } D: } W: bra W; END:",
    );
    let targets: Vec<_> = f.body.iter().map(|i| i.operands[0].clone()).collect();
    let expected = [8, 3, 1, 7, 3, 8, 3, 7];
    assert_eq!(targets, expected.map(Operand::Label));
    assert_eq!(kernel_error("bra X;"), (1, "X is not declared in k".to_owned()));
    assert_eq!(kernel_error("{ X: }\n\nbra X;"), (3, "X is not declared in k".to_owned()));
    assert_eq!(kernel_error("X:\nX: ret;"), (2, "label X is defined twice in one scope".to_owned()));
    let f = kernel("@%p1 bra B; T: .branchtargets A, B, A; brx.idx.uni %r1, T; A: ret; B: ret;");
    assert_eq!(f.body[1].operands, [Operand::Register(5), Operand::Labels(vec![2, 3, 2])]);
    let f = kernel("{ T: .branchtargets A, B; { A: brx.idx %r1, T; } B: } A: ret;");
    assert_eq!(f.body[0].operands[1], Operand::Labels(vec![1, 1]));
    assert_eq!(kernel_error("T: .branchtargets A;\nbrx.idx %r1, T;"), (2, "A is not declared in k".to_owned()));
    assert_eq!(kernel_error("T: .branchtargets T;\nbrx.idx %r1, T;"), (2, "T is not a label".to_owned()));
    assert_eq!(kernel_error("bra %r1;"), (1, "the branch has no label".to_owned()));
    assert!(kernel_error("bra;").1.contains("expected a constant"));
}

#[test]
fn parses_calls() {
    let f = ".func (.param .b32 r) f (.param .b32 a) { ret; }\n.func n() { ret; }\n";
    let text = format!(
        "{f}.entry k() {{ .reg .b64 %rd1; .reg .b32 %r<2>; {{ .param .b32 a; .param .b32 r; call.uni (r), f, (a); }}\n\
         call n;\ncall n, ();\nP: .callprototype (.param .b32 _) _ (.param .b32 _) .noreturn;\ncall (%r0), %rd1, (%r1, 7), P;\nT: .calltargets f, n;\ncall %rd1, T; ret; }}"
    );
    let module = module(&text);
    let k = &module.functions[2];
    let symbol = |name: &str| Operand::Symbol(name.to_owned(), 0);
    let list = Operand::List;
    assert_eq!(k.body[0].opcode, "call.uni");
    assert_eq!(k.body[0].operands, [list(vec![symbol("r")]), symbol("f"), list(vec![symbol("a")])]);
    for call in &k.body[1..3] {
        assert_eq!(call.operands, [list(vec![]), symbol("n"), list(vec![])]);
    }
    let arguments = list(vec![Operand::Register(2), Operand::Integer(7)]);
    assert_eq!(k.body[3].operands, [list(vec![Operand::Register(1)]), Operand::Register(0), arguments, symbol("P")]);
    assert_eq!(k.body[4].operands[3], list(vec![symbol("f"), symbol("n")]));
    assert_eq!(k.noreturn_calls, [3]);
    assert_eq!(kernel_error("\ncall nowhere;"), (2, "nowhere is not declared".to_owned()));
}

#[test]
fn parses_every_kind_of_operand() {
    let register = |n: u32| Operand::Register(n);
    // %p0 is register 0, %r0 is register 4, %rd0 is register 12.
    assert_eq!(
        operands("setp.eq.and.u32 %p1|_, %r1, 4, !%p2;")[..],
        [Operand::Pair(register(1).into(), Operand::Sink.into()), register(5), Operand::Integer(4), Operand::Not(2),]
    );
    let numbers = "x.y 0x1F, 017, 0b101, 5U, -3, 18446744073709551615, 0f3F800000, 0d4000000000000000, 1.5, -2e3, -0f00000000, WARP_SZ, true, !0, ~1;";
    use Operand::{Float32, Float64, Integer};
    assert_eq!(
        operands(numbers),
        [
            Integer(31),
            Integer(15),
            Integer(5),
            Integer(5),
            Integer(-3),
            Integer(-1),
            Float32(0x3f80_0000),
            Float64(2f64.to_bits()),
            Float64(1.5f64.to_bits()),
            Float64((-2000f64).to_bits()),
            Float32(0x8000_0000),
            Integer(32),
            Integer(1),
            Integer(1),
            Integer(-2),
        ]
    );
    let specials =
        "x %tid.x, %clock64, %envreg3, %pm0, %lanemask_lt, %reserved_smem_offset_begin, %cluster_ctaid.y, %tid;";
    let names =
        ["tid.x", "clock64", "envreg3", "pm0", "lanemask_lt", "reserved_smem_offset_begin", "cluster_ctaid.y", "tid"];
    assert_eq!(operands(specials), names.map(|name| Operand::Special(name.to_owned())));
    let addresses = "x [%rd1], [%rd1+16], [%rd1+-8], [%rd1-8], [k_param_0+4], [128], [%rd1+(4*2)+1];";
    let base = AddressBase::Register(13);
    assert_eq!(
        operands(addresses),
        [
            Operand::Address(base.clone(), 0),
            Operand::Address(base.clone(), 16),
            Operand::Address(base.clone(), -8),
            Operand::Address(base.clone(), -8),
            Operand::Address(AddressBase::Symbol("k_param_0".to_owned()), 4),
            Operand::Address(AddressBase::Absolute, 128),
            Operand::Address(base.clone(), 9),
        ]
    );
    let copy = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%r1], [%rd1, {%r2, 0}], [%r3], %rd2;";
    let function = kernel(copy);
    assert!(copy.starts_with(&format!("{} ", function.body[0].opcode)));
    assert_eq!(
        function.body[0].operands,
        [
            Operand::Address(AddressBase::Register(5), 0),
            Operand::TensorAddress(base.clone(), 0, vec![register(6), Integer(0)]),
            Operand::Address(AddressBase::Register(7), 0),
            register(14),
        ]
    );
    let texture = operands("tex [%rd1, %rd2, {%r1}];");
    assert_eq!(texture, [Operand::TensorAddress(base, 0, vec![register(14), Operand::Vector(vec![register(5)])])]);
    assert_eq!(operands("mov.b64 {%r1, _}, %rd1;")[0], Operand::Vector(vec![register(5), Operand::Sink]));
    assert_eq!(
        operands(".reg .v4 .f32 %v; mov.v4.f32 {%v.x, %v.w}, %v;"),
        [Operand::Vector(vec![register(20), register(23)]), Operand::Vector((20..24).map(register).collect()),]
    );
    assert_eq!(operands("mov.u64 %rd1, k;")[1], Operand::Symbol("k".to_owned(), 0));
    assert_eq!(kernel("ld .global .u32 %r1, [%rd1]; ret ;").body[0].opcode, "ld.global.u32");
    for (wrong, what) in [
        ("add.u32 %r1, %r2, nothing;", "nothing is not declared"),
        ("add.u32 %r1 %r2;", "expected `,` or `;`, found `%r2`"),
        ("ld.u32 %r1, k[2];", "`a[i]` as an operand is not supported"),
        ("vadd.s32.s32.s32 %r1, %r2.b0, %r3;", "a selector such as"),
        ("ld.u32 %r1, [%rd1;", "expected `]`"),
        ("ld.u32 %r1, [%p1|%p2];", "expected `]`"),
        ("mov.u32 %r1, 0x;", "`0x` is not a number"),
        ("mov.u32 %r1, 09;", "`09` is not a number"),
        ("mov.u32 %r1, 0f3F80;", "is not a number"),
        ("mov.u32 %r1, {{{{{{1}}}}}};", "too deeply"),
        ("mov.u32 %r1, 4/0;", "division by zero"),
        ("mov.u32 %r1, %tid.q;", "no component"),
        ("mov.u32 %r1, 1", "expected `,` or `;`, found `}`"),
        ("@%p1;", "expected a name"),
        ("5;", "expected an instruction, found `5`"),
    ] {
        let (_, error) = kernel_error(wrong);
        assert!(error.contains(what), "{wrong}: {error}");
    }
}

#[test]
fn constant_expressions_have_precedence() {
    let value = |text: &str| match operands(&format!("x {text};"))[..] {
        [Operand::Integer(value)] => value,
        ref other => panic!("{text}: {other:?}"),
    };
    assert_eq!(value("1+2*3-4/2"), 5);
    assert_eq!(value("-7/2 + -7%4"), -6);
    assert_eq!(value("(.u64)-1 >> 60"), 15);
    assert_eq!(value("-16 >> 2"), -4);
    assert_eq!(value("1 << 4 | 3 & 2 ^ 1"), 19);
    assert_eq!(value("1 < 2 && 3 >= 4 || 5 != 5"), 0);
    assert_eq!(value("2 > 1 ? 10 : 20"), 10);
    assert_eq!(value("0 ? 1 : 0 ? 2 : 3"), 3);
    assert_eq!(value("-1 < 0U"), 0);
    assert_eq!(value("!3 + ~0"), -1);
}

#[test]
fn random_expressions_have_the_value_of_the_reference() {
    let mut random = random(7);
    for _ in 0..500 {
        let (text, value) = expression(&mut random, 4);
        assert_eq!(operands(&format!("x {text};")), [Operand::Integer(value)], "{text}");
    }
}

/// Returns a random, fully parenthesised expression and its value.
fn expression(random: &mut impl FnMut(u64) -> u64, depth: u32) -> (String, i64) {
    if depth == 0 {
        let value = random(1 << 20) as i64;
        return (if random(2) == 0 { format!("{value}") } else { format!("0x{value:x}") }, value);
    }
    let (left, a) = expression(random, depth - 1);
    let (right, b) = expression(random, depth - 1);
    let (operator, value) = match random(8) {
        0 => ("+", a.wrapping_add(b)),
        1 => ("-", a.wrapping_sub(b)),
        2 => ("*", a.wrapping_mul(b)),
        3 => ("&", a & b),
        4 => ("|", a | b),
        5 => ("^", a ^ b),
        6 => ("<", i64::from(a < b)),
        _ => ("==", i64::from(a == b)),
    };
    (format!("({left} {operator} {right})"), value)
}

/// Returns a xorshift generator of random numbers below a bound.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed | 0x9e37_79b9_7f4a_7c15;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn only_the_first_source_location_of_an_inline_assembly_counts() {
    let module = module(
        ".entry k() { .loc 1 5 9\n// begin inline asm\n.loc 1 6 9\nret; .loc 1 7 9\nret;\n// end inline asm\n\
         // begin inline asm\n.loc 1 8 9\nret; .loc 1 9 9\nret;\n// end inline asm\n.loc 1 9 9\nret; }",
    );
    let lines: Vec<u32> =
        module.functions[0].body.iter().map(|i| module.source_locations[i.location.unwrap() as usize].line).collect();
    assert_eq!(lines, [6, 6, 8, 8, 9]);
}

#[test]
fn source_locations_have_the_inlining_chain() {
    let module = module(
        ".entry k() { ret; .loc 1 30 5\nret; .loc 2 10 1, function_name $L__info_string0, inlined_at 1 30 5\nret;\n\
         .loc 3 7 2, function_name $L__info_string0+2, inlined_at 2 10 1\nret; .loc 1 30 5\nret; }\n\
         .file 1 \"a.cu\"\n.section .debug_line { .b8 1 }\n.section .debug_str\n{\n$L__info_string0:\n.b8 102,95\n.b8 103,0,1\n}",
    );
    let place =
        |index: usize| module.functions[0].body[index].location.map(|place| &module.source_locations[place as usize]);
    assert_eq!(place(0), None);
    let outermost = SourceLocation { file: 1, line: 30, column: 5, inlined_at: None };
    assert_eq!(place(1), Some(&outermost));
    let middle =
        SourceLocation { file: 2, line: 10, column: 1, inlined_at: Some((Box::new(outermost), "f_g".to_owned())) };
    assert_eq!(place(2), Some(&middle));
    let inner = SourceLocation { file: 3, line: 7, column: 2, inlined_at: Some((Box::new(middle), "g".to_owned())) };
    assert_eq!(place(3), Some(&inner));
    assert_eq!(module.functions[0].body[4].location, module.functions[0].body[1].location);
}

#[test]
fn a_later_major_version_is_refused() {
    for (version, known) in [("9.9", true), ("10.0", false), ("99.1", false)] {
        let parsed = parse(&format!(".version {version}\n.target sm_80\n.address_size 64\n.entry k() {{ ret; }}"));
        let message = parsed.err().map(|e| e.what);
        assert_eq!(message.is_none(), known, "{message:?}");
    }
}

#[test]
fn inlining_into_itself_ends() {
    let mut body = String::new();
    for step in 0..1000 {
        body += &format!(".loc 1 {} 1, function_name f, inlined_at 1 {} 1\nret;\n", step % 2, (step + 1) % 2);
        body += ".loc 1 5 1, function_name f, inlined_at 1 5 1\n";
    }
    assert_eq!(kernel(&body).body.len(), 1000);
}

#[test]
fn parses_nvcc_output_with_functions_and_tables() {
    let module = parse(FUNCTIONS).unwrap();
    let names: Vec<_> = module.functions.iter().map(|f| (&f.name[..], f.declaration)).collect();
    assert!(
        names.contains(&("vprintf", true))
            && names.contains(&("__assertfail", true))
            && names.contains(&("_Z2f1f", false))
    );
    let packed = module.variables.iter().find(|v| v.name == "packed").unwrap();
    assert_eq!((packed.size, packed.relocations.len(), packed.relocations[7].shift), (9, 8, 56));
    let kernel = module.functions.iter().find(|f| f.kernel).unwrap();
    assert_eq!((kernel.max_threads, kernel.min_blocks), (Some([256, 1, 1]), Some(2)));
    assert_eq!(
        kernel.variables.iter().filter(|v| v.space == StateSpace::Shared).map(|v| v.size).sum::<u64>(),
        32 * 33 * 4
    );
    let calls: Vec<_> =
        kernel.body.iter().filter(|i| i.opcode.starts_with("call")).map(|i| i.operands[1].clone()).collect();
    assert!(
        matches!(&calls[..], [Operand::Symbol(a, 0), Operand::Symbol(b, 0), Operand::Register(_), Operand::Symbol(..)] if a == "__assertfail" && b == "vprintf")
    );
    let inlined: Vec<_> =
        module.source_locations.iter().filter_map(|p| p.inlined_at.as_ref()).map(|(_, name)| &name[..]).collect();
    assert!(inlined.contains(&"_Z5outerf") && inlined.contains(&"_Z5innerf"), "{inlined:?}");
    let inner = module
        .source_locations
        .iter()
        .find(|p| matches!(&p.inlined_at, Some((_, name)) if name == "_Z5innerf"))
        .unwrap();
    let (outer, _) = inner.inlined_at.as_ref().unwrap();
    assert_eq!((inner.line, outer.line, &outer.inlined_at.as_ref().unwrap().1[..]), (19, 20, "_Z5outerf"));
}

#[test]
fn parses_nvcc_output_with_hopper_instructions() {
    let module = parse(HOPPER).unwrap();
    let tensor = module.functions.iter().find(|f| f.name.contains("tensor")).unwrap();
    assert_eq!((tensor.cluster, tensor.explicit_cluster, tensor.params[0].size), (Some([2, 1, 1]), true, 128));
    let wgmma = tensor.body.iter().find(|i| i.opcode.starts_with("wgmma.mma_async")).unwrap();
    assert!(matches!(&wgmma.operands[0], Operand::Vector(d) if d.len() == 4) && wgmma.operands.len() == 8);
    let wait = tensor.body.iter().position(|i| i.opcode.starts_with("mbarrier.try_wait")).unwrap();
    assert_eq!(successors(tensor, wait as u32 + 2), [wait as u32]);
    assert_eq!(reconvergence_points(tensor)[wait + 1], Some(wait as u32 + 3));
}

#[test]
fn parses_nvcc_output_with_debug_information() {
    let module = parse(DEBUG).unwrap();
    assert_eq!(module.target, "sm_80");
    assert!(module.functions.iter().all(|f| !f.declaration) && module.functions.len() == 2);
}

/// Truncated, duplicated or overwritten text is parsed or rejected without a panic. If it is parsed, reconvergence
/// points can be computed.
#[test]
fn damaged_text_never_panics() {
    let small = "{ .reg .pred P; W: @P bra D; brx.idx %r1, T; T: .branchtargets W, D; D: } call (%r1), %rd1, (1, %r2), T; \
                 setp.ne.s32 %p1|_, 0x1F, (2+3*4); ld.v4.u32 {%r1,_}, [%rd1+-8]; .loc 1 2 3, function_name a, inlined_at 1 2 3\n";
    let whole = format!(
        "{HEAD}.global .v2 .f32 a[2][3] = {{{{1.5, generic(a)+4}}}};\n.alias k, k;\n.entry k(.param .b32 p) {{ .reg .b32 %r<8>;\n.reg .pred %p<4>; .reg .u64 %rd<4>;\n{small}}}\n.section .debug_str {{ a: .b8 1,2\n}}\n/* é */"
    );
    let mut random = random(3);
    let mut parsed = 0;
    for round in 0..24_000 {
        let base = match round % 8 {
            0 => FUNCTIONS,
            1 => HOPPER,
            _ => &whole,
        };
        let mut bytes = base.as_bytes().to_vec();
        for _ in 0..1 + random(3) {
            mutate(&mut bytes, &mut random);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(module) = parse(&text) {
            parsed += 1;
            module
                .functions
                .iter()
                .for_each(|function| assert_eq!(reconvergence_points(function).len(), function.body.len()));
        }
    }
    assert!(parsed > 100, "{parsed}");
}

fn mutate(bytes: &mut Vec<u8>, random: &mut impl FnMut(u64) -> u64) {
    let at = random(bytes.len() as u64 + 1) as usize;
    let end = (at + random(12) as usize).min(bytes.len());
    match random(5) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let piece = bytes[at..end].to_vec();
            let to = random(bytes.len() as u64 + 1) as usize;
            bytes.splice(to..to, piece);
        }
        3 => bytes.insert(at, *pick(b"{}()[];,.:+-@!%|_\"\n0<>=", random)),
        _ => bytes.splice(at..end, [random(256) as u8]).for_each(drop),
    }
}

fn pick<'a, T>(of: &'a [T], random: &mut impl FnMut(u64) -> u64) -> &'a T {
    &of[random(of.len() as u64) as usize]
}
