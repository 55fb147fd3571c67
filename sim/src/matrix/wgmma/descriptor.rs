//! Shared-memory descriptors of wgmma: where an operand's 16-byte units lie.
//!
//! Source: PTX ISA, "Asynchronous warpgroup level matrix instructions", strides, canonical layouts and matrix descriptor.
//! An instruction's step along k is always 32 bytes of elements, so two units of a K-major row. With S the swizzle's span,
//! W = S / 16 its units and s, L, D the start, leading and stride byte offsets, unit addresses before the swizzle are
//! - K-major, swizzled (row mn, unit u): `s + (mn % 8)·S + (mn / 8)·D + 16·u`;
//! - K-major, none: `s + (mn % 8)·16 + (mn / 8)·D + u·L`;
//! - MN-major, swizzled (16-bit elements; row k, unit v of eight along mn): `s + 16·(v % W) + (v / W)·L + (k % 8)·S + (k / 8)·D`;
//! - MN-major, none: `s + (k % 8)·16 + (k / 8)·L + v·D`.

use crate::tensor_map::Swizzle;

/// Why a descriptor is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Bits that belong to no field.
    #[error("wgmma descriptor {bits:#018x}: bits outside of its fields are set")]
    Reserved {
        /// The descriptor.
        bits: u64,
    },
    /// A base offset other than 0.
    #[error("wgmma descriptor: base offset {base_offset} is not simulated (align the tile to its swizzle pattern)")]
    BaseOffset {
        /// The field.
        base_offset: u32,
    },
    /// The swizzle's pattern does not begin on its boundary, and the base offset is 0.
    #[error(
        "wgmma descriptor: start {start:#x} is in row {row} of a {span}-byte swizzle's pattern of {pattern} bytes; with base \
         offset 0 the tile has to begin on a multiple of {pattern}"
    )]
    Pattern {
        /// Start address.
        start: u32,
        /// Row of the pattern that it falls into.
        row: u32,
        /// The swizzle's bytes.
        span: u32,
        /// Bytes after which the pattern repeats.
        pattern: u32,
    },
    /// The instruction would read on beyond the pattern's row that it starts in.
    #[error(
        "wgmma descriptor: start {start:#x} leaves {left} bytes of a {span}-byte swizzle's row, the instruction reads {bytes}"
    )]
    Row {
        /// Start address.
        start: u32,
        /// Bytes of the row from there on.
        left: u32,
        /// The swizzle's bytes.
        span: u32,
        /// Bytes that a row has to have.
        bytes: u32,
    },
    /// A read outside of the shared memory.
    #[error("wgmma descriptor: reads {bytes} bytes at shared address {address:#x}, outside of {first:#x}..{end:#x}")]
    Range {
        /// Where.
        address: u32,
        /// How many.
        bytes: u32,
        /// Where shared memory begins.
        first: u32,
        /// Where it ends.
        end: u32,
    },
}

/// A decoded descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Start address, a multiple of 16.
    pub start: u32,
    /// Leading dimension byte offset, a multiple of 16.
    pub leading: u32,
    /// Stride dimension byte offset, a multiple of 16.
    pub stride: u32,
    /// The layout.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Bits of all fields: addresses of 14 bits at 0, 16 and 32, base offset at 49, layout at 62.
    pub(super) const FIELDS: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;

    /// Reads the 64 bits.
    pub fn decode(bits: u64) -> Result<Self, DescriptorError> {
        if bits & !Self::FIELDS != 0 {
            return Err(DescriptorError::Reserved { bits });
        }
        let base_offset = (bits >> 49 & 7) as u32;
        if base_offset != 0 {
            return Err(DescriptorError::BaseOffset { base_offset });
        }
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * 16;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Ok(Self { start: field(0), leading: field(16), stride: field(32), swizzle })
    }

    /// The 64 bits.
    pub fn encode(&self) -> u64 {
        let field = |value: u32| (value as u64 & 0x3_ffff) >> 4;
        let layout: u64 = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        field(self.start) | field(self.leading) << 16 | field(self.stride) << 32 | layout << 62
    }
}

/// Rows of 16-bit elements along k that an instruction reads, MN-major.
const K_ROWS: u32 = 16;

/// One operand of one instruction in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedOperand {
    descriptor: Descriptor,
    /// The transposed form: contiguous along m or n, 16-bit elements.
    mn_major: bool,
    /// Rows of A (64) or columns of B.
    extent: u32,
}

impl SharedOperand {
    /// The operand with this descriptor; `extent` is 64 for A, N for B (a multiple of 8).
    pub fn new(bits: u64, mn_major: bool, extent: u32) -> Result<Self, DescriptorError> {
        let descriptor = Descriptor::decode(bits)?;
        let start = descriptor.start;
        if let Some(span) = descriptor.swizzle.span() {
            let row = start / span % 8;
            if row != 0 {
                return Err(DescriptorError::Pattern { start, row, span, pattern: 8 * span });
            }
            let bytes = if mn_major { (2 * extent).min(span) } else { 32 };
            let left = span - start % span;
            if left < bytes {
                return Err(DescriptorError::Row { start, left, span, bytes });
            }
        }
        Ok(Self { descriptor, mn_major, extent })
    }

    /// Contiguous along m or n.
    pub fn is_mn_major(&self) -> bool {
        self.mn_major
    }

    /// Rows of A or columns of B.
    pub fn extent(&self) -> u32 {
        self.extent
    }

    /// Absolute shared address of a 16-byte unit. K-major: `line` is the row m or n, `unit` 0 or 1 along k. MN-major: `line`
    /// is k in 0..16, `unit` counts eight elements along m or n.
    #[inline(always)]
    pub fn unit(&self, line: u32, unit: u32) -> u32 {
        let pitch = self.descriptor.swizzle.span().unwrap_or(16);
        self.descriptor.swizzle.apply(self.eight(line / 8, unit) + line % 8 * pitch)
    }

    /// Where a unit of the first of eight lines would lie without a swizzle.
    #[inline(always)]
    fn eight(&self, eight: u32, unit: u32) -> u32 {
        let Descriptor { start, leading, stride, swizzle } = self.descriptor;
        start
            + match (swizzle.span(), self.mn_major) {
                (Some(_), false) => eight * stride + 16 * unit,
                (None, false) => eight * stride + unit * leading,
                (Some(span), true) => 16 * (unit % (span / 16)) + unit / (span / 16) * leading + eight * stride,
                (None, true) => eight * leading + unit * stride,
            }
    }

    /// [`Self::unit`] of eight lines from `line`, a multiple of 8, on.
    #[inline(always)]
    pub fn units(&self, line: u32, unit: u32) -> [u32; 8] {
        let (swizzle, first) = (self.descriptor.swizzle, self.eight(line / 8, unit));
        let pitch = swizzle.span().unwrap_or(16);
        std::array::from_fn(
            #[inline(always)]
            |i| swizzle.apply(first + i as u32 * pitch),
        )
    }

    /// The bytes that the instruction reads, as (absolute shared address, length), neighbours joined; no byte twice unless
    /// the offsets make parts overlap.
    pub fn for_each_run(&self, mut each: impl FnMut(u32, u32)) {
        let (mut at, mut bytes) = (0, 0);
        let mut add = |address: u32, length: u32| {
            if address == at + bytes && bytes > 0 {
                bytes += length;
            } else {
                if bytes > 0 {
                    each(at, bytes);
                }
                (at, bytes) = (address, length);
            }
        };
        match (self.descriptor.swizzle.span(), self.mn_major) {
            (Some(_), false) => {
                for line in 0..self.extent {
                    let (a, b) = (self.unit(line, 0), self.unit(line, 1));
                    if a ^ b == 16 {
                        add(a.min(b), 32);
                    } else {
                        add(a, 16);
                        add(b, 16);
                    }
                }
            }
            (None, false) => {
                for unit in 0..2 {
                    for line in 0..self.extent {
                        add(self.unit(line, unit), 16);
                    }
                }
            }
            (Some(span), true) => {
                let (units, all) = (span / 16, self.extent / 8);
                for first in (0..all).step_by(units as usize) {
                    for line in 0..K_ROWS {
                        // A whole row of the pattern is read, in whatever order.
                        if first + units <= all {
                            add(self.unit(line, first) & !(span - 1), span);
                            continue;
                        }
                        for unit in first..all {
                            add(self.unit(line, unit), 16);
                        }
                    }
                }
            }
            (None, true) => {
                for unit in 0..self.extent / 8 {
                    for line in 0..K_ROWS {
                        add(self.unit(line, unit), 16);
                    }
                }
            }
        }
        if bytes > 0 {
            each(at, bytes);
        }
    }

    /// [`Self::for_each_run`], collected.
    pub fn runs(&self) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        self.for_each_run(|address, bytes| runs.push((address, bytes)));
        runs
    }

    /// Whether all that is read lies in the shared memory `first..end`.
    pub fn check_range(&self, first: u32, end: u32) -> Result<(), DescriptorError> {
        let mut outside = None;
        self.for_each_run(|address, bytes| {
            if address < first || address + bytes > end {
                outside = outside.or(Some((address, bytes)));
            }
        });
        match outside {
            Some((address, bytes)) => Err(DescriptorError::Range { address, bytes, first, end }),
            None => Ok(()),
        }
    }
}
