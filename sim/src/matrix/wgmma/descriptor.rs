//! Shared-memory descriptors of wgmma and tcgen05: the addresses of an operand's 16-byte units.
//!
//! One instruction reads 32 bytes of elements along k, which are two units of a K-major row. Let S be the bytes of a
//! swizzle row (its span), W = S / 16 the units in it, and s, L, D the descriptor's start, leading and stride byte
//! offsets. The address of a unit, before the swizzle, is
//!
//! ```text
//!   layout                 unit                                   address
//!   K-major, swizzled      row mn, unit u along k                 s + (mn % 8)·S + (mn / 8)·D + 16·u
//!   K-major, no swizzle    row mn, unit u along k                 s + (mn % 8)·16 + (mn / 8)·D + u·L
//!   MN-major, swizzled     row k, unit v of 8 elements along mn   s + (k % 8)·S + (k / 8)·D + 16·(v % W) + (v / W)·L
//!   MN-major, no swizzle   row k, unit v of 8 elements along mn   s + (k % 8)·16 + (k / 8)·L + v·D
//! ```
//!
//! MN-major operands have 16-bit elements. Example: K-major with a 128-byte swizzle, s = 1024 and D = 1024: unit 1 of
//! row 9 is at 1024 + 1·128 + 1·1024 + 16, before the swizzle. Source: PTX ISA, "Asynchronous warpgroup level matrix
//! instructions": strides, canonical layouts, matrix descriptor.

use crate::tensor_map::Swizzle;

/// Why a descriptor is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Bits that belong to no field are set.
    #[error("matrix descriptor {bits:#018x}: bits outside of its fields are set")]
    Reserved {
        /// The 64 bits of the descriptor.
        bits: u64,
    },
    /// The descriptor of a `tcgen05` instruction lacks its constant bits.
    #[error("matrix descriptor {bits:#018x}: bits 46 to 48 must be 0b001 for tcgen05")]
    Version {
        /// The 64 bits of the descriptor.
        bits: u64,
    },
    /// The descriptor of a `tcgen05` instruction has a layout that does not exist or is not supported.
    #[error("matrix descriptor: layout {layout} (bits 61 to 63) is not simulated (0, 2, 4 and 6 are)")]
    Layout {
        /// The layout field.
        layout: u32,
    },
    /// The base offset is not 0, which the simulator does not support.
    #[error("matrix descriptor: base offset {base_offset} is not simulated (align the tile to its swizzle pattern)")]
    BaseOffset {
        /// The base offset field.
        base_offset: u32,
    },
    /// The base offset is 0, but the tile does not begin where the swizzle pattern begins.
    #[error(
        "matrix descriptor: start {start:#x} is in row {row} of the {span}-byte swizzle's pattern; with base offset 0 the \
         tile must begin at a multiple of {pattern} bytes"
    )]
    Pattern {
        /// Start address of the tile.
        start: u32,
        /// Row of the swizzle pattern in which the start address lies.
        row: u32,
        /// Bytes of one row of the swizzle pattern.
        span: u32,
        /// Bytes after which the swizzle pattern repeats.
        pattern: u32,
    },
    /// The instruction reads past the end of the swizzle pattern's row in which it starts.
    #[error(
        "matrix descriptor: the instruction reads {bytes} bytes from {start:#x} on, but this row of the {span}-byte swizzle pattern has \
         only {left} bytes left"
    )]
    Row {
        /// Start address of the tile.
        start: u32,
        /// Bytes from the start address to the end of the row that contains it.
        left: u32,
        /// Bytes of one row of the swizzle pattern.
        span: u32,
        /// Bytes of a row that the instruction reads.
        bytes: u32,
    },
    /// The instruction reads outside of shared memory.
    #[error("matrix descriptor: reads {bytes} bytes at shared address {address:#x}, outside of {first:#x}..{end:#x}")]
    Range {
        /// Address of the read.
        address: u32,
        /// Bytes read.
        bytes: u32,
        /// First address of shared memory.
        first: u32,
        /// End of shared memory.
        end: u32,
    },
}

/// A decoded shared-memory descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Start address, a multiple of 16.
    pub start: u32,
    /// Leading dimension byte offset, a multiple of 16.
    pub leading: u32,
    /// Stride dimension byte offset, a multiple of 16.
    pub stride: u32,
    /// The swizzle.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Mask of the bits that belong to a field: 14-bit addresses at bits 0, 16 and 32, the base offset at 49, the
    /// layout at 62.
    pub(super) const FIELD_MASK: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;

    /// Decodes the 64 bits of a descriptor.
    pub fn decode(bits: u64) -> Result<Self, DescriptorError> {
        if bits & !Self::FIELD_MASK != 0 {
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

    /// Decodes the 64 bits of a descriptor of `tcgen05`: bits 46 to 48 are 0b001, the layout is at 61, and bit 52 says
    /// that the leading dimension is an address, which the simulator does not support.
    pub fn decode_tcgen05(bits: u64) -> Result<Self, DescriptorError> {
        let swizzle = match bits >> 61 {
            0 => Swizzle::None,
            2 => Swizzle::B128,
            4 => Swizzle::B64,
            6 => Swizzle::B32,
            _ => return Err(DescriptorError::Layout { layout: (bits >> 61) as u32 }),
        };
        if bits >> 46 & 7 != 1 {
            return Err(DescriptorError::Version { bits });
        }
        let fields = Self::decode(bits & !(7 << 46 | 7 << 61))?;
        Ok(Self { swizzle, ..fields })
    }

    /// Encodes the descriptor in 64 bits.
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

/// Rows of 16-bit elements along k that an MN-major instruction reads.
const K_ROWS: u32 = 16;

/// An operand of one wgmma that lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedOperand {
    descriptor: Descriptor,
    /// True if the 16-bit elements are contiguous along m or n (transposed), false if along k.
    mn_major: bool,
    /// Number of A's rows or of B's columns.
    extent: u32,
}

impl SharedOperand {
    /// Creates the operand from its descriptor. `extent` is 64 for A, N (a multiple of 8) for B.
    pub fn new(bits: u64, mn_major: bool, extent: u32) -> Result<Self, DescriptorError> {
        Self::of_descriptor(Descriptor::decode(bits)?, mn_major, extent)
    }

    /// Creates an operand of `tcgen05.mma` from its descriptor. `extent` is the number of A's rows or of B's columns in
    /// the block.
    pub fn of_tcgen05(bits: u64, mn_major: bool, extent: u32) -> Result<Self, DescriptorError> {
        Self::of_descriptor(Descriptor::decode_tcgen05(bits)?, mn_major, extent)
    }

    fn of_descriptor(descriptor: Descriptor, mn_major: bool, extent: u32) -> Result<Self, DescriptorError> {
        let start = descriptor.start;
        if let Some(span) = descriptor.swizzle.span_bytes() {
            let bytes = if mn_major { (2 * extent).min(span) } else { 32 };
            let left = span - start % span;
            if left < bytes {
                return Err(DescriptorError::Row { start, left, span, bytes });
            }
        }
        Ok(Self { descriptor, mn_major, extent })
    }

    /// Returns the leading dimension byte offset.
    pub fn leading_byte_offset(&self) -> u32 {
        self.descriptor.leading
    }

    /// Returns true if the instruction's addresses depend on the leading dimension byte offset.
    pub fn reads_leading_offset(&self) -> bool {
        match (self.descriptor.swizzle.span_bytes(), self.mn_major) {
            (Some(_), false) => false,
            (Some(span), true) => 2 * self.extent > span,
            (None, _) => true,
        }
    }

    /// Returns true if elements are contiguous along m or n.
    pub fn is_mn_major(&self) -> bool {
        self.mn_major
    }

    /// Checks that the operand begins where the swizzle pattern begins, at a multiple of eight rows. Elsewhere, the
    /// operand is right only if its bytes were swizzled by their addresses, as by a tensor copy.
    pub fn check_pattern(&self) -> Result<(), DescriptorError> {
        let start = self.descriptor.start;
        match self.descriptor.swizzle.span_bytes().map(|span| (span, start / span % 8)) {
            Some((span, row)) if row != 0 => Err(DescriptorError::Pattern { start, row, span, pattern: 8 * span }),
            _ => Ok(()),
        }
    }

    /// Returns the number of A's rows or of B's columns.
    pub fn m_or_n_extent(&self) -> u32 {
        self.extent
    }

    /// Returns the shared address of a 16-byte unit of the operand, after the swizzle. If the operand is K-major,
    /// `line` is the index along m or n, and `unit` (0 or 1) counts units along k. If it is MN-major, `line` is the
    /// index along k (0 to 15), and `unit` counts units of eight elements along m or n.
    #[inline(always)]
    pub fn unit_shared_address(&self, line: u32, unit: u32) -> u32 {
        let pitch = self.descriptor.swizzle.span_bytes().unwrap_or(16);
        self.descriptor.swizzle.swizzled_address(self.eight(line / 8, unit) + line % 8 * pitch)
    }

    /// Returns the address, before the swizzle, of unit number `unit` in line `8 * eight`.
    #[inline(always)]
    fn eight(&self, eight: u32, unit: u32) -> u32 {
        let Descriptor { start, leading, stride, swizzle } = self.descriptor;
        start
            + match (swizzle.span_bytes(), self.mn_major) {
                (Some(_), false) => eight * stride + 16 * unit,
                (None, false) => eight * stride + unit * leading,
                (Some(span), true) => 16 * (unit % (span / 16)) + unit / (span / 16) * leading + eight * stride,
                (None, true) => eight * leading + unit * stride,
            }
    }

    /// Returns the addresses, after the swizzle, of unit number `unit` in the eight lines that begin with `line`, a
    /// multiple of 8.
    #[inline(always)]
    pub fn unit_shared_addresses(&self, line: u32, unit: u32) -> [u32; 8] {
        let (swizzle, first) = (self.descriptor.swizzle, self.eight(line / 8, unit));
        let pitch = swizzle.span_bytes().unwrap_or(16);
        std::array::from_fn(
            #[inline(always)]
            |i| swizzle.swizzled_address(first + i as u32 * pitch),
        )
    }

    /// Calls `each` with the address and the length of every contiguous run of bytes that the instruction reads. The
    /// runs overlap only if the descriptor's offsets make parts of the operand overlap.
    pub fn for_each_contiguous_part(&self, mut each: impl FnMut(u32, u32)) {
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
        match (self.descriptor.swizzle.span_bytes(), self.mn_major) {
            (Some(_), false) => {
                for line in 0..self.extent {
                    let (a, b) = (self.unit_shared_address(line, 0), self.unit_shared_address(line, 1));
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
                        add(self.unit_shared_address(line, unit), 16);
                    }
                }
            }
            (Some(span), true) => {
                let (units, all) = (span / 16, self.extent / 8);
                for first in (0..all).step_by(units as usize) {
                    for line in 0..K_ROWS {
                        // The instruction reads a whole row of the swizzle pattern; the order of its units does not
                        // matter.
                        if first + units <= all {
                            add(self.unit_shared_address(line, first) & !(span - 1), span);
                            continue;
                        }
                        for unit in first..all {
                            add(self.unit_shared_address(line, unit), 16);
                        }
                    }
                }
            }
            (None, true) => {
                for unit in 0..self.extent / 8 {
                    for line in 0..K_ROWS {
                        add(self.unit_shared_address(line, unit), 16);
                    }
                }
            }
        }
        if bytes > 0 {
            each(at, bytes);
        }
    }

    /// Returns (address, bytes) of all runs of [`Self::for_each_contiguous_part`].
    pub fn byte_run_addresses_and_lengths(&self) -> Vec<(u32, u32)> {
        let mut runs = Vec::new();
        self.for_each_contiguous_part(|address, bytes| runs.push((address, bytes)));
        runs
    }

    /// Checks that all bytes that the instruction reads lie in the shared memory `first..end`.
    pub fn check_within_shared_memory(&self, first: u32, end: u32) -> Result<(), DescriptorError> {
        let mut outside = None;
        self.for_each_contiguous_part(|address, bytes| {
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
