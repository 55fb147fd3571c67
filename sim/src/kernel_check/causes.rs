//! Groups findings by their cause. One defect can cause several findings: a missing wait, for example, often also
//! leads to wrong mbarrier phases and to a deadlock.
//!
//! The simulator itself merges findings that lack the same synchronisation (`crate::finding`). This module groups
//! findings of different kinds that may follow from one defect and would disappear with it.

use crate::finding::{Finding, FindingKind};

/// A finding, and other findings that it may have caused.
#[derive(Debug)]
pub struct FindingGroup<'a> {
    /// The finding that comes first.
    pub finding: &'a Finding,
    /// Findings that may follow from it.
    pub may_follow: Vec<&'a Finding>,
}

/// Groups findings by cause; every finding is in exactly one group.
pub fn group_by_cause<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<FindingGroup<'a>> {
    let findings: Vec<&Finding> = findings.collect();
    let is_unordered = |f: &Finding| matches!(f.kind, FindingKind::Race | FindingKind::AsyncNotWaited);
    let first = |is: &dyn Fn(&Finding) -> bool| findings.iter().position(|f| is(f));
    let unordered = first(&is_unordered);
    let mbarrier = first(&|f| f.kind == FindingKind::Mbarrier);
    let cause_of = |at: usize| -> Option<usize> {
        let finding = findings[at];
        match finding.kind {
            FindingKind::Deadlock => unordered.or(mbarrier),
            FindingKind::Mbarrier => unordered.or_else(|| {
                let same = |other: &&Finding| other.kind == finding.kind && defect(other) == defect(finding);
                findings[..at].iter().position(same)
            }),
            _ => None,
        }
    };
    let mut groups: Vec<(usize, FindingGroup)> = (0..findings.len())
        .filter(|at| cause_of(*at).is_none())
        .map(|at| (at, FindingGroup { finding: findings[at], may_follow: Vec::new() }))
        .collect();
    for (at, finding) in findings.iter().enumerate() {
        // If the cause itself is an mbarrier finding that follows from another finding, the group is that of the
        // first cause.
        let Some(cause) = cause_of(at).map(|cause| cause_of(cause).unwrap_or(cause)) else { continue };
        if let Some((_, group)) = groups.iter_mut().find(|(of, _)| *of == cause) {
            group.may_follow.push(finding);
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Describes the defect of a finding: the first clause of its message, without numbers.
fn defect(finding: &Finding) -> String {
    first_clause(finding).split(|c: char| c.is_ascii_digit()).collect()
}

/// The first clause of a finding's message.
pub fn first_clause(finding: &Finding) -> &str {
    finding.message.split([';', ':']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::SourcePosition;

    fn finding(kind: FindingKind, line: u32, message: &str) -> Finding {
        let (block, thread) = ([0; 3], [0; 3]);
        let position = SourcePosition { file: None, line, ptx_line: line };
        let (space, address, other) = (None, None, None);
        Finding { kind, message: message.into(), line, position, other, block, thread, space, address, count: 1 }
    }

    fn lines(findings: &[Finding]) -> Vec<(u32, Vec<u32>)> {
        let of = |cause: FindingGroup| (cause.finding.line, cause.may_follow.iter().map(|f| f.line).collect());
        group_by_cause(findings.iter()).into_iter().map(of).collect()
    }

    #[test]
    fn what_follows_from_a_missing_wait_is_grouped_with_it() {
        use FindingKind::{AsyncNotWaited, Deadlock, Mbarrier, OutOfBounds, Race};
        let late = finding(Mbarrier, 4, "1 arrivals at an mbarrier whose phase lacks 0; async.cuh:1");
        let copy = finding(AsyncNotWaited, 5, "write of shared memory at 0x80 while the copy of line 5 may use it");
        let stuck = finding(Deadlock, 6, "no thread can continue: 7 warps wait");
        let race = finding(Race, 7, "read of shared memory");
        let outside = finding(OutOfBounds, 8, "read of arg0");
        let all = [late.clone(), copy.clone(), stuck.clone(), race.clone(), outside.clone()];
        assert_eq!(lines(&all), [(5, vec![4, 6]), (7, vec![]), (8, vec![])]);
        // Without unordered accesses, a deadlock is grouped with a wrong mbarrier use if there is one, and is a group
        // of its own otherwise.
        assert_eq!(lines(&[late, stuck.clone()]), [(4, vec![6])]);
        assert_eq!(lines(&[stuck, outside]), [(6, vec![]), (8, vec![])]);
        let more = |line, bytes| finding(Mbarrier, line, &format!("copies deliver {bytes} bytes more; f.cuh:{line}"));
        let other = finding(Mbarrier, 11, "the mbarrier is not initialised");
        assert_eq!(lines(&[more(9, 16), more(10, 32), other]), [(9, vec![10]), (11, vec![])]);
        assert_eq!(lines(&[]), []);
    }
}
