use std::sync::Arc;

use super::*;
use crate::ptx::parse;

/// Parses a kernel with the given body, which may use the registers `%p0..%p9` and `%r0..%r9`.
fn function(body: &str) -> Arc<Function> {
    let text = format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() {{\n.reg .pred %p<10>;\n.reg .b32 %r<10>;\n{body}\n}}"
    );
    let mut module = parse(&text).unwrap();
    module.functions.pop().unwrap()
}

/// Returns the reconvergence point of each diverging branch as a number: K if the point is the marker instruction
/// `mov.u32 %rN, K`; -1 if the point is a `ret` or the end of the body; -2 if the branch has no point.
fn reconvergence_markers(body: &str) -> Vec<i64> {
    let function = function(body);
    let points = reconvergence_points(&function);
    assert_eq!(points.len(), function.body.len());
    let marker = |place: u32| match function.body.get(place as usize).map(|i| (&i.opcode[..], &i.operands[..])) {
        Some(("mov.u32", [_, Operand::Integer(marker)])) => *marker,
        None | Some(("ret", _)) => -1,
        other => panic!("no marker at {place}: {other:?}"),
    };
    let branches = function.body.iter().zip(&points).filter(|(i, _)| is_branch(&i.opcode));
    let parting = branches.filter(|(i, _)| i.guard.is_some() || i.opcode.starts_with("brx"));
    parting.map(|(_, place)| place.map_or(-2, marker)).collect()
}

#[test]
fn both_sides_of_an_if_reconverge_after_it() {
    let body = "@%p0 bra A; mov.u32 %r0, 1; bra B; A: mov.u32 %r0, 2; B: mov.u32 %r0, 3; ret;";
    assert_eq!(reconvergence_markers(body), [3]);
}

#[test]
fn early_return_does_not_move_the_reconvergence_point() {
    // Source: if (c1) { if (c2) return; x } y; return. The inner `return` is compiled to a jump to the last `ret`, to
    // a `ret` of its own, or to code with a `ret` of its own.
    let shared = "@%p0 bra Y; @%p1 bra END; mov.u32 %r0, 1; Y: mov.u32 %r0, 2; END: ret;";
    assert_eq!(reconvergence_markers(shared), [2, 1]);
    let own = "@%p0 bra Y; @%p1 bra X; ret; X: mov.u32 %r0, 1; Y: mov.u32 %r0, 2; ret;";
    assert_eq!(reconvergence_markers(own), [2, 1]);
    let code = "@%p0 bra Y; @%p1 bra X; mov.u32 %r1, 9; ret; X: mov.u32 %r0, 1; Y: mov.u32 %r0, 2; ret;";
    assert_eq!(reconvergence_markers(code), [2, 1]);
}

#[test]
fn abort_does_not_move_the_reconvergence_point() {
    let trap = "@%p0 bra Y; @%p1 bra X; trap; X: mov.u32 %r0, 1; Y: mov.u32 %r0, 2; ret;";
    assert_eq!(reconvergence_markers(trap), [2, 1]);
    // Two failed assertions share one block, so this block has more than one entry.
    let shared = "@%p1 bra BAD; mov.u32 %r0, 1; @%p0 bra B; mov.u32 %r0, 2; @%p2 bra BAD; mov.u32 %r0, 3; \
                  B: mov.u32 %r0, 4; bra END; BAD: mov.u32 %r0, 5; trap; END: mov.u32 %r0, 6; ret;";
    assert_eq!(reconvergence_markers(shared), [1, 4, 3]);
    // The assertion is in the body of a loop; the loop's only other exit is the code after it.
    let looped = "L: mov.u32 %r0, 1; @%p0 bra OK; trap; OK: mov.u32 %r0, 2; @%p1 bra L; mov.u32 %r0, 3; ret;";
    assert_eq!(reconvergence_markers(looped), [2, 3]);
}

#[test]
fn calls_that_do_not_return_abort() {
    let text = ".version 9.0\n.target sm_80\n.address_size 64\n.extern .func die() .noreturn;\n.visible .entry k() {\n\
                .reg .pred %p<3>;\n@%p0 bra Y;\n@%p1 bra X;\ncall.uni die, ();\nX: bar.sync 0;\nY: bar.sync 1;\nret;\n}";
    let module = parse(text).unwrap();
    let function = &module.functions[1];
    assert_eq!(function.noreturn_calls, [2]);
    assert_eq!(successors(function, 2), [0u32; 0]);
    assert_eq!(reconvergence_points(function), [Some(4), Some(3), None, None, None, None]);
}

#[test]
fn branches_whose_sides_both_end() {
    assert_eq!(reconvergence_markers("@%p0 bra A; mov.u32 %r0, 1; ret; A: mov.u32 %r0, 2; ret;"), [-2]);
    // Both sides of the branch end in the same `ret`, so the lanes reconverge there.
    let shared = "@%p0 bra A; mov.u32 %r0, 1; bra END; A: mov.u32 %r0, 2; END: ret;";
    assert_eq!(reconvergence_markers(shared), [-1]);
    // A `ret` after common code is not an early return.
    let common = "@%p0 bra A; mov.u32 %r0, 1; A: mov.u32 %r0, 2; ret;";
    assert_eq!(reconvergence_markers(common), [2]);
    // The bounds check of most kernels: lanes out of range return at once.
    assert_eq!(reconvergence_markers("@%p0 bra END; mov.u32 %r0, 1; bar.sync 0; END: ret;"), [1]);
    // The branch goes to the end of a body without a `ret`.
    assert_eq!(reconvergence_markers("@%p0 bra END; mov.u32 %r0, 1; bar.sync 0; END:"), [1]);
    assert_eq!(reconvergence_markers("@%p0 bra A; mov.u32 %r0, 1; bra END; A: mov.u32 %r0, 2; END:"), [-1]);
}

#[test]
fn loops_reconverge_at_their_exit() {
    assert_eq!(reconvergence_markers("L: mov.u32 %r0, 1; @%p0 bra L; mov.u32 %r0, 2; ret;"), [2]);
    assert_eq!(reconvergence_markers("L: mov.u32 %r0, 1; @%p0 bra L; ret;"), [-1]);
    let condition_first = "H: @%p0 bra X; mov.u32 %r0, 1; bra H; X: mov.u32 %r0, 2; ret;";
    assert_eq!(reconvergence_markers(condition_first), [2]);
    // A loop with a `break` and a `continue`.
    let both = "H: mov.u32 %r0, 1; @%p0 bra X; mov.u32 %r0, 2; @%p1 bra C; mov.u32 %r0, 3; C: mov.u32 %r0, 4; \
                @%p2 bra H; X: mov.u32 %r0, 5; ret;";
    assert_eq!(reconvergence_markers(both), [5, 4, 5]);
    // An early return from inside a loop, without and with code before it: lanes still reconverge at the code after
    // the loop.
    let bare = "H: mov.u32 %r0, 1; @%p0 bra END; mov.u32 %r0, 2; @%p2 bra H; mov.u32 %r0, 3; END: ret;";
    assert_eq!(reconvergence_markers(bare), [2, 3]);
    let code = "H: mov.u32 %r0, 1; @%p0 bra R; mov.u32 %r0, 2; @%p2 bra H; mov.u32 %r0, 3; bar.sync 0; ret; \
                R: mov.u32 %r0, 4; ret;";
    assert_eq!(reconvergence_markers(code), [2, 3]);
    // An early return before a loop does not move the reconvergence point, although the loop's exit is the same
    // `ret`.
    let before = "@%p0 bra Y; @%p1 bra X; mov.u32 %r1, 9; bra END; X: mov.u32 %r0, 1; Y: mov.u32 %r0, 2; \
                  L: mov.u32 %r0, 3; @%p2 bra END; bra L; END: ret;";
    assert_eq!(reconvergence_markers(before), [2, 1, -1]);
    // Two nested loops.
    let nested = "A: mov.u32 %r0, 1; B: mov.u32 %r0, 2; @%p0 bra B; mov.u32 %r0, 3; @%p1 bra A; mov.u32 %r0, 4; ret;";
    assert_eq!(reconvergence_markers(nested), [3, 4]);
}

#[test]
fn endless_loops_have_reconvergence_points() {
    assert_eq!(reconvergence_markers("L: bra L;"), [0i64; 0]);
    assert_eq!(reconvergence_points(&function("L: @%p0 bra L; bra L;")), [Some(0), None]);
    let with_if = "L: mov.u32 %r0, 1; @%p0 bra M; mov.u32 %r0, 2; M: mov.u32 %r0, 3; bra L;";
    assert_eq!(reconvergence_markers(with_if), [3]);
    let with_continue = "L: mov.u32 %r0, 1; @%p0 bra L; mov.u32 %r0, 2; bra L;";
    assert_eq!(reconvergence_markers(with_continue), [1]);
    let left_by_return =
        "L: mov.u32 %r0, 1; @%p0 bra M; mov.u32 %r0, 2; M: mov.u32 %r0, 3; @%p1 bra END; bra L; END: ret;";
    assert_eq!(reconvergence_markers(left_by_return), [3, -1]);
    let behind_a_branch = "@%p0 bra L; mov.u32 %r0, 1; ret; L: mov.u32 %r0, 2; bra L;";
    assert_eq!(reconvergence_markers(behind_a_branch).len(), 1);
}

#[test]
fn spin_loop_with_scoped_labels_reconverges_after_it() {
    let spin = "{ .reg .pred P; W: mbarrier.try_wait.parity.shared::cta.b64 P, [%r1], %r2; @P bra D; bra W; D: }\n";
    let body = format!("{spin} mov.u32 %r0, 1; {spin} mov.u32 %r0, 2; ret;");
    assert_eq!(reconvergence_markers(&body), [1, 2]);
}

#[test]
fn switches_reconverge_after_all_cases() {
    let body = "T: .branchtargets A, B, C, A; @%p0 bra D; brx.idx %r0, T; A: mov.u32 %r0, 1; bra E; B: mov.u32 %r0, 2; \
                C: mov.u32 %r0, 3; bra E; D: mov.u32 %r0, 4; E: mov.u32 %r0, 5; ret;";
    assert_eq!(reconvergence_markers(body), [5, 5]);
    let function = function(body);
    assert_eq!(successors(&function, 1), [2, 4, 5]);
    assert_eq!(successors(&function, 0), [7, 1]);
    assert_eq!(successors(&function, 9), [0u32; 0]);
    assert_eq!(successors(&function, 100), [0u32; 0]);
}

/// In random programs, every reconvergence point can be reached from its branch.
#[test]
fn reconvergence_points_are_reachable_from_their_branch() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..2000 {
        let count = 3 + random(12);
        let mut body = String::new();
        for block in 0..count {
            body += &format!("L{block}: mov.u32 %r0, {block};\n");
            body += &match random(10) {
                0 => "ret;\n".to_owned(),
                1 => "trap;\n".to_owned(),
                2 => format!("bra L{};\n", random(count)),
                3..=6 => format!("@%p0 bra L{};\n", random(count)),
                7 => "@%p1 exit;\n".to_owned(),
                _ => String::new(),
            };
        }
        body += "ret;";
        let function = function(&body);
        for (branch, place) in reconvergence_points(&function).into_iter().enumerate() {
            let Some(place) = place else { continue };
            assert!(is_branch(&function.body[branch].opcode));
            assert!(
                reaches(&function, branch as u32, place),
                "{body}\nno path leads from the branch {branch} to its reconvergence point {place}"
            );
        }
    }
}

/// In structured programs with early returns anywhere, the lanes of each `if` and of each loop reconverge directly
/// after it.
#[test]
fn structured_programs_reconverge_at_their_joins() {
    for seed in 1..400 {
        let mut program =
            Structured { state: seed * 0x9e37_79b9, labels: 0, text: String::new(), meetings: Vec::new() };
        program.statements(4);
        program.text += "END: ret;";
        let function = function(&program.text);
        let points = reconvergence_points(&function);
        let barrier = |number: u32| {
            let wanted = [Operand::Integer(i64::from(number))];
            function.body.iter().position(|i| i.opcode == "bar.sync" && i.operands == wanted).unwrap()
        };
        for (at, number) in program.meetings {
            let (branch, meeting) = (barrier(at) + 1, barrier(number));
            assert_eq!(points[branch], Some(meeting as u32), "barrier {at}: {}", program.text);
        }
    }
}

/// Generates a structured program, in which numbered barriers mark positions.
struct Structured {
    state: u64,
    labels: u32,
    text: String,
    /// For each branch, the number of the barrier directly before it, and the number of the barrier at which its
    /// lanes must reconverge.
    meetings: Vec<(u32, u32)>,
}

impl Structured {
    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.state >> 33) % below
    }

    fn number(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    fn statements(&mut self, depth: u64) {
        for _ in 0..1 + self.random(3) {
            match self.random(4) {
                0 if depth > 0 => self.conditional(depth - 1),
                1 if depth > 0 => self.repeated(depth - 1),
                2 => self.early_end(),
                _ => self.text += "mov.u32 %r0, 1;\n",
            }
        }
    }

    fn conditional(&mut self, depth: u64) {
        let (before, join) = (self.number(), self.number());
        self.text += &format!("bar.sync {before}; @%p0 bra E{join};\n");
        self.statements(depth);
        self.text += &format!("bra J{join}; E{join}:\n");
        if self.random(2) == 0 {
            self.statements(depth);
        }
        self.text += &format!("J{join}: bar.sync {join};\n");
        self.meetings.push((before, join));
    }

    fn repeated(&mut self, depth: u64) {
        let (before, behind) = (self.number(), self.number());
        self.text += &format!("L{behind}:\n");
        self.statements(depth);
        self.text += &format!("bar.sync {before}; @%p1 bra L{behind}; bar.sync {behind};\n");
        self.meetings.push((before, behind));
    }

    fn early_end(&mut self) {
        let label = self.number();
        let end = match self.random(4) {
            0 => "@%p2 bra END;\n".to_owned(),
            1 => format!("@%p2 bra C{label}; trap; C{label}:\n"),
            2 => format!("@!%p2 bra C{label}; mov.u32 %r1, 2; ret; C{label}:\n"),
            _ => format!("@!%p2 bra C{label}; mov.u32 %r1, 2; bra END; C{label}:\n"),
        };
        self.text += &end;
    }
}

fn reaches(function: &Function, from: u32, to: u32) -> bool {
    let mut seen = vec![false; function.body.len() + 1];
    let mut open = successors(function, from);
    while let Some(next) = open.pop() {
        if next == to {
            return true;
        }
        if !std::mem::replace(&mut seen[next as usize], true) {
            open.extend(successors(function, next));
        }
    }
    false
}
