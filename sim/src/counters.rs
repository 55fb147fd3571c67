//! Counters of a run, per instruction: executions, bytes of memory, sectors, and passes through the banks of shared
//! memory.

/// The counters of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionCounts {
    /// Number of warps that executed the instruction, repeated executions included.
    pub warps: u64,
    /// Number of threads that executed the instruction, repeated executions included.
    pub threads: u64,
    /// Floating-point operations of matrix products, two per multiply-add.
    pub matrix_flops: u64,
    /// Bytes that threads read from global memory, repeated reads included.
    pub global_read: u64,
    /// Bytes that threads wrote to global memory.
    pub global_written: u64,
    /// 32-byte sectors of global memory that warps read or wrote; a sector counts once for each access of a warp.
    pub sectors: u64,
    /// Bytes that threads read from or wrote to shared memory.
    pub shared_bytes: u64,
    /// Wavefronts: passes through the 32 banks of shared memory that the accesses needed.
    pub wavefronts: u64,
    /// Wavefronts that the accesses would need without bank conflicts.
    pub wavefronts_least: u64,
}

impl InstructionCounts {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &InstructionCounts) {
        self.warps += other.warps;
        self.threads += other.threads;
        self.matrix_flops += other.matrix_flops;
        self.global_read += other.global_read;
        self.global_written += other.global_written;
        self.sectors += other.sectors;
        self.shared_bytes += other.shared_bytes;
        self.wavefronts += other.wavefronts;
        self.wavefronts_least += other.wavefronts_least;
    }
}

/// The counters of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The counters of each instruction, by the instruction's index in the kernel.
    pub by_instruction: Vec<InstructionCounts>,
    /// Block and cluster barriers that were completed.
    pub barriers: u64,
    /// Blocks that have started.
    pub blocks: u64,
}

impl Counters {
    /// Creates zero counters for a kernel of `instruction_count` instructions.
    pub fn new(instruction_count: usize) -> Counters {
        Counters { by_instruction: vec![InstructionCounts::default(); instruction_count], barriers: 0, blocks: 0 }
    }

    /// Returns the sum of the counters of all instructions.
    pub fn total(&self) -> InstructionCounts {
        let mut sum = InstructionCounts::default();
        self.by_instruction.iter().for_each(|c| sum.add(c));
        sum
    }
}

/// Counts the different 32-byte sectors that the lanes in `lane_mask` access; each lane accesses `bytes` bytes.
#[inline(always)]
pub fn count_sectors(addresses: &[u64; 32], lane_mask: u32, bytes: u32) -> u64 {
    if lane_mask == 0 {
        return 0;
    }
    // The most frequent case: consecutive addresses in lane order.
    if lane_mask == u32::MAX {
        let first = addresses[0];
        if (1..32).all(|l| addresses[l] == first + l as u64 * bytes as u64) {
            return (first + 32 * bytes as u64 - 1) / 32 - first / 32 + 1;
        }
    }
    if lane_mask == u32::MAX
        && let Some(count) = ascending(addresses, bytes)
    {
        return count;
    }
    let mut list = [0u64; 64];
    let mut n = 0;
    let (mut last, mut ascending) = (u64::MAX, true);
    let mut left = lane_mask;
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        let (from, to) = (addresses[lane] / 32, (addresses[lane] + bytes as u64 - 1) / 32);
        for sector in from..=to {
            if sector != last {
                ascending &= last == u64::MAX || sector > last;
                list[n] = sector;
                n += 1;
                last = sector;
            }
        }
    }
    if ascending {
        return n as u64;
    }
    let list = &mut list[..n];
    list.sort_unstable();
    1 + list.windows(2).filter(|w| w[0] != w[1]).count() as u64
}

/// Counts the sectors of all 32 lanes if each lane accesses one sector only and the sectors ascend or stay equal from
/// lane to lane; else returns `None`.
#[inline(always)]
fn ascending(addresses: &[u64; 32], bytes: u32) -> Option<u64> {
    let unaligned = addresses.iter().fold(0, |bits, address| bits | address) & (bytes as u64 - 1);
    if unaligned != 0 || !bytes.is_power_of_two() || bytes > 32 {
        return None;
    }
    let sectors = addresses.map(|address| address / 32);
    let pairs = || sectors[..31].iter().zip(&sectors[1..]);
    let descends = pairs().fold(false, |any, (last, next)| any | (next < last));
    (!descends).then(|| 1 + pairs().fold(0, |count, (last, next)| count + u64::from(last != next)))
}

/// Numbers of wavefronts (passes through the 32 banks of shared memory) of an access.
#[derive(Clone, Copy)]
pub struct Wavefronts {
    /// Wavefronts that the access needs.
    pub needed: u64,
    /// Wavefronts that the access would need without bank conflicts.
    pub without_conflicts: u64,
}

/// The use of the banks by one group of lanes; the lanes of a group go through the banks together.
struct BankUse {
    /// Number of passes through the banks.
    passes: u64,
    /// Number of different 32-bit words that the lanes access.
    words: u64,
}

/// Counts the wavefronts of a shared-memory access. Half warps with 8 bytes per lane, and quarter warps with 16 bytes,
/// go through the banks one after the other. A word that several lanes access is transferred only once.
#[inline(always)]
pub fn count_wavefronts(addresses: &[u32; 32], lane_mask: u32, bytes: u32) -> Wavefronts {
    if lane_mask == 0 {
        return Wavefronts { needed: 0, without_conflicts: 0 };
    }
    let group = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    let mut wavefronts = Wavefronts { needed: 0, without_conflicts: 0 };
    for first in (0..32).step_by(group) {
        let part = lane_mask >> first & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if part == 0 {
            continue;
        }
        let members = &addresses[first..first + group];
        let used = conflict_free_quads(members, part, bytes).unwrap_or_else(|| bank_use(members, part, bytes));
        wavefronts.needed += used.passes;
        wavefronts.without_conflicts += used.words.div_ceil(32).max(1);
    }
    wavefronts
}

/// Returns the bank use of eight lanes with 16 bytes each if no two of them access the same four banks, else `None`.
#[inline(always)]
fn conflict_free_quads(addresses: &[u32], lanes: u32, bytes: u32) -> Option<BankUse> {
    if bytes != 16 || addresses.len() != 8 || lanes != 0xff {
        return None;
    }
    let seen = addresses.iter().fold(0u32, |seen, address| seen | 1 << (address >> 4 & 7));
    (seen == 0xff).then_some(BankUse { passes: 1, words: 32 })
}

/// Counts the passes that a group of lanes needs, and the different 32-bit words that it accesses.
#[inline(never)]
fn bank_use(addresses: &[u32], lanes: u32, bytes: u32) -> BankUse {
    let per_lane = bytes.div_ceil(4).max(1);
    // A group accesses at most 32 words: 32 lanes with one word each, 16 lanes with two, or 8 lanes with four.
    let mut words = [0u32; 32];
    let mut n = 0;
    let mut consecutive = true;
    let mut left = lanes;
    while left != 0 {
        let first = addresses[left.trailing_zeros() as usize] / 4;
        left &= left - 1;
        for w in 0..per_lane {
            consecutive &= n == 0 || words[n - 1] + 1 == first + w;
            words[n] = first + w;
            n += 1;
        }
    }
    // Up to 32 consecutive words lie in different banks.
    if consecutive {
        return BankUse { passes: 1, words: n as u64 };
    }
    let words = &mut words[..n];
    // Words that all lie in different banks take one pass, too.
    let taken = words.iter().fold(0u32, |taken, word| taken | 1 << (word % 32));
    if taken.count_ones() as usize == n {
        return BankUse { passes: 1, words: n as u64 };
    }
    // A linked list of the different words of each bank: `newest[bank]` is the index in `words` of the bank's last
    // word, `older[i]` the index of the word before `words[i]` in the same bank.
    const NONE: u8 = u8::MAX;
    let (mut newest, mut older, mut counts) = ([NONE; 32], [NONE; 32], [0u8; 32]);
    for i in 0..n {
        let bank = (words[i] % 32) as usize;
        let mut at = newest[bank];
        while at != NONE && words[at as usize] != words[i] {
            at = older[at as usize];
        }
        if at == NONE {
            older[i] = newest[bank];
            newest[bank] = i as u8;
            counts[bank] += 1;
        }
    }
    let (passes, distinct) =
        counts.iter().fold((0, 0), |(most, all), &count| (most.max(count), all + u64::from(count)));
    BankUse { passes: u64::from(passes), words: distinct }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_sector_once() {
        let row = |f: &dyn Fn(u64) -> u64| std::array::from_fn(|l| f(l as u64));
        assert_eq!(count_sectors(&row(&|l| 4 * l), u32::MAX, 4), 4);
        assert_eq!(count_sectors(&row(&|l| 16 + 4 * l), u32::MAX, 4), 5);
        assert_eq!(count_sectors(&row(&|l| 128 * l), u32::MAX, 4), 32);
        assert_eq!(count_sectors(&row(&|_| 64), u32::MAX, 4), 1);
        assert_eq!(count_sectors(&row(&|l| 16 * l), 0b1001, 16), 2);
        assert_eq!(count_sectors(&row(&|l| 4 * (31 - l)), u32::MAX, 4), 4);
        assert_eq!(count_sectors(&row(&|l| 4096 * (l / 4) + 16 * (l % 4)), u32::MAX, 16), 16);
        assert_eq!(count_sectors(&row(&|l| 4096 * (l % 4) + 16 * (l / 4)), u32::MAX, 16), 16);
    }

    #[test]
    fn counts_bank_conflicts() {
        let row = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|l| f(l as u32));
        let counts = |addresses: &[u32; 32], lanes: u32, bytes: u32| {
            let wavefronts = count_wavefronts(addresses, lanes, bytes);
            (wavefronts.needed, wavefronts.without_conflicts)
        };
        assert_eq!(counts(&row(&|l| 4 * l), u32::MAX, 4), (1, 1));
        assert_eq!(counts(&row(&|_| 4), u32::MAX, 4), (1, 1));
        assert_eq!(counts(&row(&|l| 128 * l), u32::MAX, 4), (32, 1));
        assert_eq!(counts(&row(&|l| 8 * l), u32::MAX, 4), (2, 1));
        assert_eq!(counts(&row(&|l| 16 * l), u32::MAX, 16), (4, 4));
        assert_eq!(counts(&row(&|l| 128 * l), u32::MAX, 16), (32, 4));
        assert_eq!(counts(&row(&|l| 2 * l), u32::MAX, 2), (1, 1));
        assert_eq!(counts(&row(&|l| 4 * (l ^ 5)), u32::MAX, 4), (1, 1));
        assert_eq!(counts(&row(&|l| 4 * (l ^ 33)), u32::MAX, 4), (1, 1));
        assert_eq!(counts(&row(&|l| 4 * (l ^ 5) + 128 * (l / 16)), 0xffff_0fff, 4), (1, 1));
        assert_eq!(counts(&row(&|l| 8 * (l ^ 1)), u32::MAX, 4), (2, 1));
    }
    proptest::proptest! {
        #[test]
        fn a_bank_needs_one_pass_for_each_of_its_words(words in proptest::collection::vec(0u32..100, 32), lanes: u32) {
            let accessed: std::collections::BTreeSet<u32> =
                (0..32).filter(|lane| lanes >> lane & 1 == 1).map(|lane| words[lane as usize]).collect();
            let in_bank = |bank| accessed.iter().filter(|&word| word % 32 == bank).count() as u64;
            let addresses: Vec<u32> = words.iter().map(|word| 4 * word).collect();
            let counted = bank_use(&addresses, lanes, 4);
            proptest::prop_assert_eq!(counted.words, accessed.len() as u64);
            proptest::prop_assert_eq!(counted.passes, (0..32).map(in_bank).max().unwrap_or(0).max(u64::from(lanes == 0)));
        }
    }
}
