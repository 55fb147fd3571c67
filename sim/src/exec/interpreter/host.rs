//! Functions of the CUDA library that kernels call: `printf`, `assert`, `malloc` and `free`.

use super::frames::{read_argument, write_argument};
use crate::exec::context::{InstructionContext, NextAction, lanes_in_mask};
use crate::exec::memory_system::MemorySystem;
use crate::finding::FindingKind;
use crate::layout;
use crate::program::op::Call;

/// Returns the 64-bit argument number `n` of a call in one lane; 0 if the call has fewer arguments.
fn argument(cx: &mut InstructionContext, call: &Call, n: usize, lane: u32) -> u64 {
    let Some(&arg) = call.args.get(n) else { return 0 };
    let bytes = read_argument(cx.warp, cx.fragment.frame, arg, lane as usize);
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn set_result(cx: &mut InstructionContext, call: &Call, lane: u32, bytes: &[u8]) {
    if let Some(&to) = call.returns.first() {
        write_argument(cx.warp, cx.fragment.frame, to, lane as usize, bytes);
    }
}

/// Executes a call of `vprintf`, which `printf` compiles to.
pub fn vprintf(cx: &mut InstructionContext, memory: &MemorySystem, call: &Call) -> NextAction {
    for lane in lanes_in_mask(cx.mask) {
        let format = memory.c_string_at(argument(cx, call, 0, lane));
        let args = argument(cx, call, 1, lane);
        let offset = args.wrapping_sub(layout::LOCAL_BASE) as usize;
        let (size, l) = (cx.warp.local_size as usize, lane as usize);
        let bytes: &[u8] = if layout::state_space_of(args).is_some() && offset < size {
            &cx.warp.local[l * size + offset..(l + 1) * size]
        } else {
            &[]
        };
        let text = format_printf(&format, bytes, |address| memory.c_string_at(address));
        cx.grid.reporter.add_printed_text(&text);
        set_result(cx, call, lane, &1u32.to_le_bytes());
    }
    NextAction::Next
}

/// Reports the failed assertion of a call of `__assertfail`.
pub fn report_failed_assertion(cx: &mut InstructionContext, memory: &MemorySystem, call: &Call) {
    let lane = cx.first_lane();
    let condition = memory.c_string_at(argument(cx, call, 0, lane));
    cx.report(FindingKind::Trap, lane, || format!("assertion failed: {condition}"));
}

pub fn malloc(cx: &mut InstructionContext, memory: &mut MemorySystem, call: &Call) -> NextAction {
    for lane in lanes_in_mask(cx.mask) {
        let address = memory.malloc(argument(cx, call, 0, lane));
        set_result(cx, call, lane, &address.to_le_bytes());
    }
    NextAction::Next
}

pub fn free(cx: &mut InstructionContext, memory: &mut MemorySystem, call: &Call) -> NextAction {
    for lane in lanes_in_mask(cx.mask) {
        memory.free(argument(cx, call, 0, lane));
    }
    NextAction::Next
}

/// Formats text as C's `printf` does. `args` are laid out as `vprintf` gets them: 8 bytes for doubles, pointers and
/// long integers, 4 bytes for others, each aligned to its size. `string` reads the C string at an address.
fn format_printf(format: &str, args: &[u8], string: impl Fn(u64) -> String) -> String {
    let mut out = String::new();
    let mut at = 0usize;
    let mut next = |size: usize| {
        at = at.next_multiple_of(size);
        let mut buffer = [0u8; 8];
        if let Some(bytes) = args.get(at..at + size) {
            buffer[..size].copy_from_slice(bytes);
        }
        at += size;
        u64::from_le_bytes(buffer)
    };
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(&f) = rest.peek().filter(|f| "-+ #0".contains(**f)) {
            flags.push(f);
            rest.next();
        }
        let number = |rest: &mut std::iter::Peekable<std::str::Chars>, next: &mut dyn FnMut(usize) -> u64| {
            if rest.peek() == Some(&'*') {
                rest.next();
                return Some(next(4) as i32 as i64 as usize);
            }
            let mut n = None;
            while let Some(d) = rest.peek().and_then(|d| d.to_digit(10)) {
                n = Some(n.unwrap_or(0usize).saturating_mul(10).saturating_add(d as usize).min(4096));
                rest.next();
            }
            n
        };
        let width = number(&mut rest, &mut next).unwrap_or(0).min(4096);
        let mut precision = None;
        if rest.peek() == Some(&'.') {
            rest.next();
            precision = Some(number(&mut rest, &mut next).unwrap_or(0).min(4096));
        }
        let mut long = 0;
        while let Some(&m) = rest.peek().filter(|m| "hlLqjzt".contains(**m)) {
            if "lqjzt".contains(m) {
                long += 1;
            }
            rest.next();
        }
        let Some(kind) = rest.next() else { break };
        let wide = long > 0;
        let integer = |next: &mut dyn FnMut(usize) -> u64| if wide { next(8) } else { next(4) };
        let body = match kind {
            'd' | 'i' => {
                let v = integer(&mut next);
                let v = if wide { v as i64 } else { v as i32 as i64 };
                let plus = if v >= 0 && flags.contains('+') { "+" } else { "" };
                format!("{plus}{v}")
            }
            'u' => integer(&mut next).to_string(),
            'x' => format!("{}{:x}", if flags.contains('#') { "0x" } else { "" }, integer(&mut next)),
            'X' => format!("{}{:X}", if flags.contains('#') { "0X" } else { "" }, integer(&mut next)),
            'o' => format!("{:o}", integer(&mut next)),
            'c' => char::from(next(4) as u8).to_string(),
            'p' => format!("{:#x}", next(8)),
            's' => {
                let text = string(next(8));
                precision.map_or(text.clone(), |p| text.chars().take(p).collect())
            }
            'f' | 'F' => format!("{:.*}", precision.unwrap_or(6), f64::from_bits(next(8))),
            'e' | 'E' | 'g' | 'G' | 'a' | 'A' => {
                let v = f64::from_bits(next(8));
                if "gG".contains(kind) { format!("{v}") } else { format_exponent(v, precision.unwrap_or(6)) }
            }
            '%' => "%".into(),
            other => format!("%{other}"),
        };
        let pad = width.saturating_sub(body.chars().count());
        if flags.contains('-') {
            out += &body;
            out.extend(std::iter::repeat_n(' ', pad));
        } else if flags.contains('0') && !"sc".contains(kind) {
            let (sign, digits) = match body.strip_prefix('-') {
                Some(d) => ("-", d),
                None => ("", body.as_str()),
            };
            out += sign;
            out.extend(std::iter::repeat_n('0', pad));
            out += digits;
        } else {
            out.extend(std::iter::repeat_n(' ', pad));
            out += &body;
        }
    }
    out
}

/// Formats `%e`, which has at least two digits of exponent.
fn format_exponent(v: f64, precision: usize) -> String {
    let text = format!("{v:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, e)) => {
            let (sign, digits) = e.strip_prefix('-').map_or(('+', e), |d| ('-', d));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::format_printf;

    #[test]
    fn formats_numbers_as_c_does() {
        let mut args = Vec::new();
        args.extend(7i32.to_le_bytes());
        args.extend([0; 4]);
        args.extend(1.5f64.to_le_bytes());
        args.extend((-3i64).to_le_bytes());
        let text = format_printf("%d|%5.2f|%-4lld|%%", &args, |_| String::new());
        assert_eq!(text, "7| 1.50|-3  |%");
        assert_eq!(
            format_printf("%04d %e", &[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f], |_| String::new(
            )),
            "-001 1.000000e+00"
        );
    }
}
