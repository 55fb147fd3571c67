//! Finds wgmma descriptors that wrongly contain the rank of the block in its cluster.
//!
//! On sm_90 the shared addresses of a block's own variables have the block's rank in bits 24 and above. A descriptor
//! encodes an address as `(address & 0x3ffff) >> 4` (PTX ISA, "Matrix descriptor format"). Without the mask, bit 24 of
//! the address becomes bit 20 of the descriptor, which belongs to the leading byte offset: if the address is added with
//! `+`, this offset grows by 256 bytes times the rank; with `|` the rank's bits are set in the offset. One descriptor
//! alone does not show the mistake, so the descriptors that blocks of different ranks give to the same instruction are
//! compared.

use crate::exec::context::InstructionContext;
use crate::finding::{FindingKind, FindingSite};
use crate::matrix::wgmma::SharedOperand;
use std::collections::HashMap;

/// Bit of a leading byte offset to which bit 24 of a shared address moves: bit 20 of the descriptor is bit 4 of the
/// field, which counts units of 16 bytes.
const RANK_SHIFT: u32 = 8;
/// Maximum number of different leading byte offsets that are kept for an operand.
const MAX_KEPT: usize = 64;

/// A leading byte offset that a block gave to an operand of a wgmma.
#[derive(Clone, Copy, Debug)]
struct LeadingOffset {
    /// The block's rank in its cluster.
    rank: u32,
    bytes: u32,
    site: FindingSite,
}

impl LeadingOffset {
    /// Whether two blocks of different rank computed this offset and the offset `other` from one common offset, to
    /// which each block added its rank or in which each block set the bits of its rank.
    fn differs_by_rank(&self, other: &LeadingOffset) -> bool {
        let (ours, theirs) = (self.rank << RANK_SHIFT, other.rank << RANK_SHIFT);
        let added = self.bytes.wrapping_sub(ours) == other.bytes.wrapping_sub(theirs);
        let set = self.bytes & ours == ours
            && other.bytes & theirs == theirs
            && (self.bytes ^ other.bytes) & !(ours | theirs) == 0;
        self.rank != other.rank && self.bytes != other.bytes && (added || set)
    }
}

/// For each wgmma (by `pc`) and operand (true: B): the leading byte offsets of its descriptors so far.
#[derive(Debug, Default)]
pub(super) struct LeadingOffsets(HashMap<(u32, bool), Vec<LeadingOffset>>);

impl LeadingOffsets {
    /// Reports a descriptor that contains the block's rank: a finding if the product reads wrong bytes because of the
    /// rank, else a note.
    pub(super) fn check(&mut self, cx: &mut InstructionContext, a: Option<&SharedOperand>, b: &SharedOperand) {
        let (pc, rank, site) = (cx.pc, cx.block().rank, cx.finding_site(cx.first_lane()));
        for (is_b, operand) in a.map(|a| (false, a)).into_iter().chain([(true, b)]) {
            let here = LeadingOffset { rank, bytes: operand.leading_byte_offset(), site };
            let seen = self.0.entry((pc, is_b)).or_default();
            if seen.len() == MAX_KEPT || seen.iter().any(|s| (s.rank, s.bytes) == (rank, here.bytes)) {
                continue;
            }
            let other = seen.iter().find(|s| here.differs_by_rank(s)).copied();
            seen.push(here);
            let Some(other) = other else { continue };
            let wrong = if here.rank > other.rank { here } else { other };
            let text = format!(
                "the leading byte offset of operand {} ({} bytes) contains the block's rank in its cluster, which a \
                 shared address has in bits 24 and above: encode the address in the wgmma descriptor as (address & \
                 0x3ffff) >> 4",
                if is_b { 'B' } else { 'A' },
                wrong.bytes,
            );
            if operand.reads_leading_offset() {
                cx.grid.reporter.report(FindingKind::Wgmma, wrong.site, || text);
            } else {
                cx.grid
                    .reporter
                    .add_note(pc, &format!("{text}; the product is right here, because its layout ignores the offset"));
            }
        }
    }
}
