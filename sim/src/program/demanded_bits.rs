//! Finds which bytes of the values that loads read can change what a function does. A compiler may load a whole word
//! although the function needs only one byte of it. In this example, the other bytes are padding:
//!
//! ```text
//! ld.global.u64 %rd1, [%rd0];     used: byte 0
//! cvt.u16.u64   %rs1, %rd1;       demanded of %rd1: the bits that are demanded of %rs1
//! and.b16       %rs2, %rs1, 255;  demanded of %rs1: bits 0 to 7
//! st.global.u8  [%rd2], %rs2;     demanded of %rs2: bits 0 to 7
//! ```
//!
//! A bit of a register is demanded if an instruction uses the bit, or computes from it a demanded bit of another
//! register. The analysis starts with the bits that instructions use and follows copies, conversions, masks, shifts and
//! sums backwards until nothing is added. It does not follow the order of instructions: all uses of a register in the
//! function count. Therefore [`rename_overwritten_registers`] first gives a register of its own to each value that is replaced
//! within a basic block. A register that one `mov` sets to a constant counts as that constant.

use std::borrow::Cow;
use std::collections::HashMap;

use super::uses::{collect_registers, destination_count, is_load, is_store};
use super::values::rename_overwritten_registers;
use crate::ptx::ast::{Function, Instruction, Operand, RegisterIndex, Type};

/// Returns, for each load instruction, the mask of the bytes that can change what the function does; all bits are set
/// for every other instruction, and for a load into a register that nothing reads.
pub(super) fn used_bytes(function: &Function) -> Vec<u32> {
    let function = &*rename_overwritten_registers(function);
    let mut demanded = vec![0u64; function.registers.len()];
    let mut is_read = vec![false; function.registers.len()];
    let mut rules = Vec::new();
    let constants = constant_registers(function);
    for i in &function.body {
        for (register, used) in sources(function, &with_constants(i, &constants)) {
            is_read[register as usize] = true;
            match used {
                Used::Bits(bits) => demanded[register as usize] |= bits,
                Used::Through(list) => rules.extend(list.into_iter().map(|rule| (register as usize, rule))),
            }
        }
    }
    loop {
        let mut changed = false;
        // Visit the rules backwards: most registers are read after they are written, so few rounds are needed.
        for (source, rule) in rules.iter().rev() {
            let bits = rule.bits_of_source(demanded[rule.result as usize]);
            changed |= bits & !demanded[*source] != 0;
            demanded[*source] |= bits;
        }
        if !changed {
            break;
        }
    }
    let bits_of = |register: RegisterIndex| match is_read[register as usize] {
        true => demanded[register as usize],
        false => u64::MAX,
    };
    function.body.iter().map(|i| bytes_of_load(i, bits_of).unwrap_or(u32::MAX)).collect()
}

/// Returns the value of each register that only one instruction writes, if that instruction is an unconditional `mov`
/// of an integer.
fn constant_registers(function: &Function) -> HashMap<RegisterIndex, i64> {
    let (mut writes, mut constants) = (HashMap::<RegisterIndex, u32>::new(), HashMap::new());
    for i in &function.body {
        let mut written = Vec::new();
        let destinations = &i.operands[..destination_count(i)];
        destinations.iter().for_each(|o| collect_registers(function, o, &mut written, &mut Vec::new()));
        written.iter().for_each(|&register| *writes.entry(register).or_default() += 1);
        if let ([Operand::Register(register), Operand::Integer(value)], None) = (&i.operands[..], &i.guard)
            && i.opcode.starts_with("mov.")
        {
            constants.insert(*register, *value);
        }
    }
    constants.retain(|register, _| writes.get(register) == Some(&1));
    constants
}

/// Returns the instruction with constants in place of the registers that hold them.
fn with_constants<'a>(i: &'a Instruction, constants: &HashMap<RegisterIndex, i64>) -> Cow<'a, Instruction> {
    let sources = destination_count(i)..i.operands.len();
    let constant = |operand: &Operand| match operand {
        Operand::Register(register) => constants.get(register).copied(),
        _ => None,
    };
    if !i.operands[sources.clone()].iter().any(|operand| constant(operand).is_some()) {
        return Cow::Borrowed(i);
    }
    let mut resolved = i.clone();
    for operand in &mut resolved.operands[sources] {
        if let Some(value) = constant(operand) {
            *operand = Operand::Integer(value);
        }
    }
    Cow::Owned(resolved)
}

/// How an instruction uses a register that it reads.
enum Used {
    /// The instruction uses these bits, even if its results are not used.
    Bits(u64),
    /// The instruction uses the bits that affect demanded bits of a result.
    Through(Vec<Rule>),
}

/// A rule that tells which bits of a source affect which bits of a result.
#[derive(Clone, Copy)]
struct Rule {
    result: RegisterIndex,
    /// Mask of the bits of the result that are copies of bits of the source, possibly at another position.
    moved: u64,
    /// Number of positions by which the copied bits are higher in the source than in the result; negative if lower.
    left: i32,
    /// Bits of the result that repeat the source's bit `sign`.
    extended: u64,
    sign: u32,
    /// Whether a bit of the result depends on all lower bits of the source, as it does in a sum.
    carries: bool,
    /// Mask of bits that belong together, such as one half of an `f16x2`: each of these bits of the result depends on
    /// all of these bits of the source.
    together: u64,
}

impl Rule {
    /// Returns the rule that each bit of the result in the mask `moved` is the same bit of the source.
    fn same(result: RegisterIndex, moved: u64) -> Rule {
        Rule { result, moved, left: 0, extended: 0, sign: 0, carries: false, together: 0 }
    }

    fn bits_of_source(&self, demanded: u64) -> u64 {
        let moved = demanded & self.moved;
        let moved = if self.left >= 0 { moved << self.left } else { moved >> -self.left };
        let lower = if self.carries { low(u64::BITS - moved.leading_zeros()) } else { 0 };
        let together = if demanded & self.together != 0 { self.together } else { 0 };
        moved | lower | together | u64::from(demanded & self.extended != 0) << self.sign
    }
}

/// Returns a mask of the lowest `count` bits.
fn low(count: u32) -> u64 {
    if count >= u64::BITS { u64::MAX } else { (1 << count) - 1 }
}

/// Returns the registers that an instruction reads, except predicates, and how it uses them.
fn sources(function: &Function, i: &Instruction) -> Vec<(RegisterIndex, Used)> {
    if let Some(known) = rules(function, i) {
        return known;
    }
    let (mut read, mut addresses) = (Vec::new(), Vec::new());
    let written = destination_count(i);
    i.operands[..written].iter().for_each(|o| collect_registers(function, o, &mut Vec::new(), &mut addresses));
    i.operands[written..].iter().for_each(|o| collect_registers(function, o, &mut read, &mut addresses));
    let stored = match bits_of_type(i.opcode.rsplit('.').next()) {
        Some(bits) if is_store(i) => low(bits),
        _ => u64::MAX,
    };
    let read = read.into_iter().map(|r| (r, Used::Bits(stored)));
    read.chain(addresses.into_iter().map(|r| (r, Used::Bits(u64::MAX)))).collect()
}

/// Returns the sources of an instruction that is used only through its result, such as a copy, a mask, a shift or a
/// sum; `None` for all other instructions.
fn rules(function: &Function, i: &Instruction) -> Option<Vec<(RegisterIndex, Used)>> {
    let parts: Vec<&str> = i.opcode.split('.').collect();
    let ty = parts.last().and_then(|name| Type::from_name(name)).filter(|ty| ty.bits() <= 64)?;
    let (bits, is_integer) = (ty.bits(), integer_type(parts.last()?).is_some());
    let is_wide = |r: RegisterIndex| function.registers[r as usize].ty.bits() > 64;
    if ty == Type::Pred || i.operands.iter().any(|o| matches!(o, Operand::Register(r) if is_wide(*r))) {
        return None;
    }
    // Returns every register among `operands` as a source with the rule `rule`.
    let each = |operands: &[Operand], rule: Rule| {
        let registers = operands.iter().filter_map(|o| match o {
            Operand::Register(r) if function.registers[*r as usize].ty != Type::Pred => Some(*r),
            _ => None,
        });
        registers.map(|r| (r, Used::Through(vec![rule]))).collect::<Vec<_>>()
    };
    let constant = |n: usize| match i.operands.get(n) {
        Some(Operand::Integer(n)) => u32::try_from(*n).ok(),
        _ => None,
    };
    let result = match i.operands.first()? {
        Operand::Register(r) => *r,
        Operand::Pair(first, _) if parts[0] == "shfl" => match **first {
            Operand::Register(r) => r,
            _ => return None,
        },
        Operand::Vector(elements) if parts[0] == "mov" => return unpacked(&i.operands, elements, bits),
        _ => return None,
    };
    let all = Rule::same(result, low(bits));
    Some(match (&parts[..], &i.operands[1..]) {
        (["mov", _], [Operand::Register(_)]) => each(&i.operands[1..], Rule::same(result, u64::MAX)),
        (["mov", _], [Operand::Vector(elements)]) => {
            let width = bits / elements.len().max(1) as u32;
            let packed = |(n, element): (usize, &Operand)| {
                let at = n as u32 * width;
                each(std::slice::from_ref(element), Rule { moved: low(width) << at, left: -(at as i32), ..all })
            };
            elements.iter().enumerate().flat_map(packed).collect()
        }
        (["cvt", to, from], [_]) => {
            let (to, from) = (integer_type(to)?, integer_type(from)?);
            let (width, signed) = (to.0.min(from.0), to.1 || from.1);
            let extended = if signed { !low(width) } else { 0 };
            each(&i.operands[1..], Rule { moved: low(width), extended, sign: width - 1, ..all })
        }
        (["and", _], [_, Operand::Integer(mask)]) => each(&i.operands[1..], Rule::same(result, *mask as u64)),
        (["or", _], [_, Operand::Integer(mask)]) => each(&i.operands[1..], Rule::same(result, !*mask as u64)),
        (["and" | "or" | "xor", _], [_, _]) | (["not", _], [_]) => each(&i.operands[1..], all),
        (["selp", _], [_, _, _]) => each(&i.operands[1..3], all),
        (["shfl", "sync", ..], [value, rest @ ..]) => {
            let mut list = each(std::slice::from_ref(value), all);
            list.extend(each(rest, all).into_iter().map(|(r, _)| (r, Used::Bits(u64::MAX))));
            list
        }
        (["add" | "sub", _], [_, _]) | (["mul", "lo", _], [_, _]) | (["mad", "lo", _], [_, _, _]) if is_integer => {
            each(&i.operands[1..], Rule { carries: true, ..all })
        }
        (["add" | "sub" | "mul" | "fma" | "min" | "max" | "neg" | "abs", ..], operands)
            if parts.last()?.ends_with("f16x2") =>
        {
            let half = |bits| Rule { together: bits, ..Rule::same(result, 0) };
            let registers = operands.iter().filter_map(|o| if let Operand::Register(r) = o { Some(*r) } else { None });
            registers.map(|r| (r, Used::Through(vec![half(0xffff), half(0xffff_0000)]))).collect()
        }
        (["shl", _], [value, Operand::Integer(_)]) => {
            let by = constant(2)?.min(bits);
            let moved = low(bits) & !low(by);
            each(std::slice::from_ref(value), Rule { moved, left: -(by.min(63) as i32), ..all })
        }
        (["shr", _], [value, Operand::Integer(_)]) => {
            let (by, signed) = (constant(2)?.min(bits), integer_type(parts[1])?.1);
            let moved = low(bits - by);
            let extended = if signed { !moved } else { 0 };
            each(std::slice::from_ref(value), Rule { moved, left: by.min(63) as i32, extended, sign: bits - 1, ..all })
        }
        (["bfe", _], [value, Operand::Integer(_), Operand::Integer(_)]) => {
            let (at, count, signed) = (constant(2)?, constant(3)?, integer_type(parts[1])?.1);
            if count == 0 || at.checked_add(count)? > bits {
                return None;
            }
            let extended = if signed { !low(count) } else { 0 };
            let rule = Rule { moved: low(count), left: at as i32, extended, sign: at + count - 1, ..all };
            each(std::slice::from_ref(value), rule)
        }
        (["bfi", _], [bits_in, word, Operand::Integer(_), Operand::Integer(_)]) => {
            let (at, count) = (constant(3)?, constant(4)?);
            if at.checked_add(count)? > bits {
                return None;
            }
            let field = low(count).checked_shl(at).unwrap_or(0);
            let mut list =
                each(std::slice::from_ref(bits_in), Rule { moved: field, left: -(at.min(63) as i32), ..all });
            list.extend(each(std::slice::from_ref(word), Rule::same(result, !field)));
            list
        }
        (["prmt", "b32"], [_, _, Operand::Integer(_)]) => {
            let selector = constant(3)?;
            let of = |n: usize| match i.operands[1 + n] {
                Operand::Register(r) => Some((r, Used::Through(selected_bytes(all, selector, n as u32)))),
                _ => None,
            };
            [of(0), of(1)].into_iter().flatten().collect()
        }
        _ => return None,
    })
}

/// Returns the sources of a `mov` that splits a register of `bits` bits into the registers of a vector.
fn unpacked(operands: &[Operand], elements: &[Operand], bits: u32) -> Option<Vec<(RegisterIndex, Used)>> {
    let [_, Operand::Register(source)] = operands else { return None };
    let width = bits / elements.len().max(1) as u32;
    let rules = elements.iter().enumerate().filter_map(|(n, element)| match element {
        Operand::Register(r) => Some(Rule { left: (n as u32 * width) as i32, ..Rule::same(*r, low(width)) }),
        _ => None,
    });
    Some(vec![(*source, Used::Through(rules.collect()))])
}

/// Returns the rules for source `n` (0 or 1) of `prmt` in its default mode. A hexadecimal digit of the selector names
/// a byte of the two sources. The result byte is this byte or, if the digit's top bit is set, the byte's sign bit.
fn selected_bytes(all: Rule, selector: u32, n: u32) -> Vec<Rule> {
    let digits = (0..4).map(|byte| (byte, selector >> (4 * byte) & 0xf));
    let of_source = digits.filter(|(_, digit)| digit >> 2 & 1 == n);
    let rule = |(byte, digit): (u32, u32)| {
        let (mask, from) = (0xff << (8 * byte), digit & 3);
        match digit >> 3 {
            0 => Rule { moved: mask, left: 8 * (from as i32 - byte as i32), ..all },
            _ => Rule { moved: 0, extended: mask, sign: 8 * from + 7, ..all },
        }
    };
    of_source.map(rule).collect()
}

/// Returns the number of bits of the type with this name.
fn bits_of_type(name: Option<&str>) -> Option<u32> {
    name.and_then(Type::from_name).map(Type::bits)
}

/// Returns the number of bits of an integer type, and whether it is signed; `None` for other types.
fn integer_type(name: &str) -> Option<(u32, bool)> {
    let is_integer = name.starts_with(['b', 'u', 's']) && !name.starts_with("bf");
    Some((bits_of_type(Some(name)).filter(|_| is_integer)?, name.starts_with('s')))
}

/// Returns the mask of the loaded bytes that contain demanded bits of the destination registers; `None` if the
/// instruction is not a load.
fn bytes_of_load(i: &Instruction, demanded: impl Fn(RegisterIndex) -> u64) -> Option<u32> {
    if !is_load(i) {
        return None;
    }
    let name = i.opcode.rsplit('.').find(|name| Type::from_name(name).is_some())?;
    let bits = bits_of_type(Some(name)).filter(|bits| *bits <= 64)?;
    let elements = match i.operands.first()? {
        Operand::Vector(elements) => &elements[..],
        one => std::slice::from_ref(one),
    };
    let mut used = 0u64;
    for (n, element) in elements.iter().enumerate() {
        let loaded = match element {
            Operand::Register(r) => {
                let (demanded, sign) = (demanded(*r), u64::from(name.starts_with('s')) << (bits - 1));
                if demanded & !low(bits) == 0 { demanded } else { demanded & low(bits) | sign }
            }
            Operand::Sink => 0,
            _ => return None,
        };
        for byte in (0..bits / 8).filter(|byte| loaded >> (8 * byte) & 0xff != 0) {
            used |= 1 << (n as u32 * bits / 8 + byte);
        }
    }
    let loaded = low(elements.len() as u32 * bits / 8);
    Some((used | !loaded) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the used bytes of the first instruction of a kernel.
    fn used(body: &str) -> u32 {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.entry k(.param .u64 p) {{ .reg .b16 %h<9>; .reg .b32 %r<9>;
            .reg .b64 %d<9>; .reg .pred %p; {body} ret; }}"
        );
        used_bytes(&crate::ptx::parse(&text).unwrap().functions[0])[0]
    }

    #[test]
    fn bytes_that_conversions_masks_and_shifts_drop_are_unused() {
        let loads = [
            ("cvt.u16.u64 %h0, %d1; and.b16 %h1, %h0, 255; st.u8 [%d0], %h1;", 0b1),
            ("cvt.u32.u64 %r0, %d1; st.u32 [%d0], %r0;", 0b1111),
            ("st.u16 [%d0], %d1;", 0b11),
            ("shr.u64 %d2, %d1, 40; st.u16 [%d0], %d2;", 0b0110_0000),
            ("shr.s64 %d2, %d1, 56; st.u64 [%d0], %d2;", 0b1000_0000),
            ("shl.b64 %d2, %d1, 48; st.u64 [%d0], %d2;", 0b11),
            ("mov.b64 {%r0, %r1}, %d1; st.u32 [%d0], %r1;", 0b1111_0000),
            ("mov.b64 {_, %r1}, %d1; mov.b64 %d3, {%r1, %r1}; st.u8 [%d0], %d3;", 0b1_0000),
            ("bfe.u64 %d2, %d1, 8, 8; setp.eq.u64 %p, %d2, 0;", 0b10),
            ("bfe.s64 %d2, %d1, 8, 8; shr.u64 %d3, %d2, 32; st.u32 [%d0], %d3;", 0b10),
            ("bfi.b64 %d2, %d3, %d1, 8, 56; st.u64 [%d0], %d2;", 0b1),
            ("and.b64 %d2, %d1, -256; st.u64 [%d0], %d2;", 0b1111_1110),
            ("or.b64 %d2, %d1, 255; st.u64 [%d0], %d2;", 0b1111_1110),
            ("add.s64 %d2, %d1, 7; st.u16 [%d0], %d2;", 0b11),
            ("cvt.s32.s8 %r0, %d1; st.u32 [%d0], %r0;", 0b1),
            ("cvt.u32.u64 %r0, %d1; prmt.b32 %r1, %r0, %r2, 29524; st.u16 [%d0], %r1;", 0),
            ("cvt.u32.u64 %r0, %d1; prmt.b32 %r1, %r2, %r0, 29524; st.u16 [%d0], %r1;", 0b11),
            ("cvt.u32.u64 %r0, %d1; shfl.sync.down.b32 %r1|%p, %r0, 1, 31, -1; st.u8 [%d0], %r1;", 0b1),
            ("mov.u32 %r3, 29524; cvt.u32.u64 %r0, %d1; prmt.b32 %r1, %r2, %r0, %r3; st.u16 [%d0], %r1;", 0b11),
            ("mov.b64 %d3, -256; and.b64 %d2, %d1, %d3; st.u64 [%d0], %d2;", 0b1111_1110),
            ("cvt.u32.u64 %r0, %d1; add.rn.f16x2 %r1, %r0, %r2; st.u8 [%d0], %r1;", 0b11),
            (
                "cvt.u32.u64 %r0, %d1; fma.rn.bf16x2 %r1, %r0, %r2, %r2; shr.u32 %r3, %r1, 16; st.u16 [%d0], %r3;",
                0b1100,
            ),
            ("LOOP: shr.u64 %d1, %d1, 8; st.u8 [%d0], %d1; bra LOOP;", 0b1111_1111),
            // The destination register of `prmt` is also a source.
            ("cvt.u32.u64 %r0, %d1; prmt.b32 %r0, %r0, %r2, 0x4340; st.u32 [%d0], %r0;", 0b1001),
            ("and.b64 %d1, %d1, 255; st.u64 [%d0], %d1;", 0b1),
            ("shr.u64 %d1, %d1, 56; st.u64 [%d1], 0;", 0b1000_0000),
            ("st.u8 [%d0], %d1; @%p and.b64 %d1, %d1, 255; mov.b64 %d1, 0; st.u64 [%d0], %d1;", 0b1),
            ("@%p bra NEXT; NEXT: and.b64 %d1, %d1, 255; st.u8 [%d0], %d1; mov.b64 %d1, 0;", 0b1),
        ];
        for (uses, bytes) in loads {
            let found = used(&format!("ld.u64 %d1, [%d0]; {uses}"));
            assert_eq!(found, !0xff | bytes, "{uses}");
        }
    }

    #[test]
    fn every_byte_of_other_values_is_used() {
        for uses in [
            "",
            "st.u64 [%d0], %d1;",
            "st.u8 [%d1], 0;",
            "setp.eq.u64 %p, %d1, 0;",
            "mov.b64 %d3, -256; @%p mov.b64 %d3, -1; and.b64 %d2, %d1, %d3; st.u64 [%d0], %d2;",
            "st.u8 [%d0], %d1; add.u64 %d2, %d1, 1; st.u64 [%d0], %d2;",
            // A thread may skip the instruction that replaces the value.
            "@%p and.b64 %d1, %d1, 255; st.u64 [%d0], %d1;",
            "@%p bra NEXT; and.b64 %d1, %d1, 255; NEXT: st.u64 [%d0], %d1;",
            "and.b64 %d2, %d1, %d3; st.u64 [%d0], %d2;",
            "shr.u64 %d2, %d1, %r0; st.u8 [%d0], %d2;",
            "mul.hi.u64 %d2, %d1, 3; st.u8 [%d0], %d2;",
            "max.u64 %d2, %d1, 3; st.u8 [%d0], %d2;",
            "add.cc.u64 %d2, %d1, 3; st.u8 [%d0], %d2;",
            "cvt.rn.f32.u64 %r2, %d1; st.u8 [%d0], %r2;",
        ] {
            assert_eq!(used(&format!("ld.u64 %d1, [%d0]; {uses}")), u32::MAX, "{uses}");
        }
    }

    #[test]
    fn elements_of_vectors_and_narrow_loads_count_by_their_own_bytes() {
        let vector = "ld.v2.u32 {%r0, %r1}, [%d0]; st.u8 [%d0], %r0; st.u32 [%d0], %r1;";
        assert_eq!(used(vector), !0xff | 0b1111_0001);
        assert_eq!(used("ld.v2.u32 {%r0, _}, [%d0]; st.u32 [%d0], %r0;"), !0xff | 0b1111);
        assert_eq!(used("ld.s16 %r0, [%d0]; shr.u32 %r1, %r0, 24; st.u32 [%d0], %r1;"), !0b11 | 0b10);
        assert_eq!(used("ld.u16 %r0, [%d0]; shr.u32 %r1, %r0, 24; st.u32 [%d0], %r1;"), !0b11);
    }
}
