//! What kernels call that is not theirs: printf, assert, malloc and free.

use super::run::{Flow, read_argument, write_argument};
use super::warp::{Fragment, Warp};
use super::{Block, Machine};
use crate::finding::FindingKind;
use crate::layout;
use crate::program::op::Call;

impl Machine<'_> {
    /// A byte string in memory of the module, or of a buffer.
    fn string_at(&self, address: u64) -> String {
        let mut out = Vec::new();
        if let Some(i) = self.memory.find(address) {
            let a = self.memory.get(i);
            out.extend(a.data[(address - a.base) as usize..].iter().take_while(|&&b| b != 0));
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    pub(super) fn vprintf(&mut self, warp: &mut Warp, fragment: &mut Fragment, call: &Call, mask: u32) -> Flow {
        for lane in (0..32usize).filter(|l| mask >> l & 1 != 0) {
            let pointer = |warp: &mut Warp, n: usize| {
                let bytes = call.args.get(n).map(|&a| read_argument(warp, fragment.frame, a, lane)).unwrap_or_default();
                bytes.try_into().map(u64::from_le_bytes).unwrap_or(0)
            };
            let (format, args) = (pointer(warp, 0), pointer(warp, 1));
            let format = self.string_at(format);
            let local = args.wrapping_sub(layout::LOCAL) as usize;
            let size = warp.local_size as usize;
            let bytes: &[u8] = if layout::window(args).is_some() && local < size {
                &warp.local[lane * size + local..(lane + 1) * size]
            } else {
                &[]
            };
            let text = print(&format, bytes, |address| self.string_at(address));
            if self.printed.len() < 1 << 20 {
                self.printed += &text;
            }
            if let Some(&to) = call.returns.first() {
                write_argument(warp, fragment.frame, to, lane, &1u32.to_le_bytes());
            }
        }
        Flow::Next
    }

    pub(super) fn assert_fail(
        &mut self,
        block: &mut Block,
        warp: &mut Warp,
        fragment: &mut Fragment,
        call: &Call,
        mask: u32,
        pc: u32,
    ) -> Flow {
        let lane = mask.trailing_zeros();
        let mut text = |n: usize| {
            let bytes =
                call.args.get(n).map(|&a| read_argument(warp, fragment.frame, a, lane as usize)).unwrap_or_default();
            bytes.try_into().map(u64::from_le_bytes).unwrap_or(0)
        };
        let what = self.string_at(text(0));
        let site = self.site(block, warp.index, lane, pc);
        self.report(FindingKind::Trap, site, None, None, || format!("assertion failed: {what}"));
        self.exit(warp, block, fragment, mask)
    }

    pub(super) fn malloc(&mut self, warp: &mut Warp, fragment: &mut Fragment, call: &Call, mask: u32) -> Flow {
        for lane in (0..32usize).filter(|l| mask >> l & 1 != 0) {
            let bytes = call.args.first().map(|&a| read_argument(warp, fragment.frame, a, lane)).unwrap_or_default();
            let size = bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
            // The device heap has 8 MB unless the host asks for more.
            let address = if size == 0 || size > 8 << 20 { 0 } else { self.memory.alloc_uninitialized(size as usize) };
            if address != 0 {
                self.heap.push(address);
            }
            if let Some(&to) = call.returns.first() {
                write_argument(warp, fragment.frame, to, lane, &address.to_le_bytes());
            }
        }
        self.last_allocation = usize::MAX;
        Flow::Next
    }

    pub(super) fn free(&mut self, warp: &mut Warp, fragment: &mut Fragment, call: &Call, mask: u32) -> Flow {
        for lane in (0..32usize).filter(|l| mask >> l & 1 != 0) {
            let bytes = call.args.first().map(|&a| read_argument(warp, fragment.frame, a, lane)).unwrap_or_default();
            let address = bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
            if self.heap.contains(&address) {
                self.heap.retain(|&h| h != address);
                self.memory.free(address);
            }
        }
        self.last_allocation = usize::MAX;
        Flow::Next
    }
}

/// Formats as C's printf does, from arguments laid out as `vprintf` gets them: 8 bytes for doubles, pointers and long
/// integers, 4 for others, each aligned to its size.
fn print(format: &str, args: &[u8], string: impl Fn(u64) -> String) -> String {
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
                if "gG".contains(kind) { format!("{v}") } else { exponent(v, precision.unwrap_or(6)) }
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

/// `%e`: at least two digits of exponent.
fn exponent(v: f64, precision: usize) -> String {
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
    use super::print;

    #[test]
    fn formats_like_c() {
        let mut args = Vec::new();
        args.extend(7i32.to_le_bytes());
        args.extend([0; 4]);
        args.extend(1.5f64.to_le_bytes());
        args.extend((-3i64).to_le_bytes());
        let text = print("%d|%5.2f|%-4lld|%%", &args, |_| String::new());
        assert_eq!(text, "7| 1.50|-3  |%");
        assert_eq!(
            print("%04d %e", &[255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f], |_| String::new()),
            "-001 1.000000e+00"
        );
    }
}
