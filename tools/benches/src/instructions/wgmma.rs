//! Cases of `wgmma`: in each block, one warpgroup computes one product.
//!
//! All of shared memory is filled with matrix elements, so every address that is computed from a descriptor refers to
//! an element, and a wrong interpretation of a descriptor changes the sum.

use super::format::{ElementRange, F16, F32, MatrixElementFormat, OperandFormat, random_matrix_elements};
use super::products::{clear_bits_in_each_word, element_format_from_ptx, sum_tolerance};
use super::{InstructionCase, THREADS_PER_BLOCK, ptx};
use reel_sim::exec::SeededRng;
use reel_sim::finding::FindingKind;
use reel_sim::matrix::wgmma::Descriptor;
use reel_sim::tensor_map::Swizzle;
use std::fmt::Write;

/// Size of shared memory in bytes; matrix A begins at offset 0, matrix B at offset `B`.
const SHARED_BYTES: usize = 40 << 10;
const B: u32 = 8 << 10;

/// A `wgmma` instruction and the layout of its operands.
#[derive(Clone, Copy, Debug)]
struct Product {
    n: u32,
    sum: &'static str,
    a: &'static str,
    b: &'static str,
    swizzle: Swizzle,
    /// Whether A and B are stored transposed: A contiguous along m, B contiguous along n, instead of both along k.
    transposed: [bool; 2],
    from_registers: bool,
    /// The factors by which the instruction multiplies A and B: 1 or -1 each.
    scales: [i32; 2],
    /// Whether the product is added to D instead of replacing it.
    adds: bool,
    /// Offset in bytes of the operands' start addresses, within the first row of a swizzle pattern.
    start: u32,
    span: ElementRange,
    /// Blocks per cluster.
    cluster: u32,
    /// How the operands' addresses are put into the descriptors. An address contains the block's rank in the cluster.
    encoding: AddressEncoding,
}

/// How a shared-memory address is put into a descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AddressEncoding {
    /// `(address & 0x3ffff) >> 4`, as PTX prescribes.
    Masked,
    /// `address >> 4`, combined with the other fields by `or`: bits of the block's rank are set in the leading byte
    /// offset.
    Or,
    /// `address >> 4`, combined with the other fields by `add`: the block's rank is added to the leading byte offset.
    Add,
}

const PLAIN: Product = Product {
    n: 64,
    sum: "f32",
    a: "bf16",
    b: "bf16",
    swizzle: Swizzle::B128,
    transposed: [false; 2],
    from_registers: false,
    scales: [1; 2],
    adds: true,
    start: 0,
    span: ElementRange::Small,
    cluster: 1,
    encoding: AddressEncoding::Masked,
};

/// Returns all cases of `wgmma`.
pub fn wgmma_cases(lanes: usize) -> Vec<InstructionCase> {
    let mut all = Vec::new();
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        for n in [8, 24, 64, 256] {
            for transposed in [[false, false], [true, false], [false, true], [true, true]] {
                all.push(Product { n, swizzle, transposed, ..PLAIN });
            }
            all.push(Product { n, swizzle, from_registers: true, ..PLAIN });
        }
        all.push(Product { swizzle, from_registers: true, transposed: [false, true], ..PLAIN });
        for (sum, a, b) in TYPES {
            all.push(Product { swizzle, sum, a, b, ..PLAIN });
            all.push(Product { swizzle, sum, a, b, from_registers: true, n: 96, ..PLAIN });
            if *sum != "s32" {
                all.push(Product { swizzle, sum, a, b, span: ElementRange::Moderate, ..PLAIN });
            }
        }
    }
    for scales in [[-1, 1], [1, -1], [-1, -1]] {
        all.push(Product { scales, ..PLAIN });
    }
    all.push(Product { adds: false, ..PLAIN });
    all.push(Product { adds: false, sum: "s32", a: "s8", b: "s8", ..PLAIN });
    all.push(Product { span: ElementRange::Moderate, ..PLAIN });
    for (swizzle, start) in [(Swizzle::B64, 32), (Swizzle::B128, 32), (Swizzle::B128, 64), (Swizzle::B128, 96)] {
        all.push(Product { swizzle, start, ..PLAIN });
    }
    all.extend(cluster_products());
    all.iter()
        .map(|p| p.case(lanes.min(8 * THREADS_PER_BLOCK).next_multiple_of(p.cluster as usize * THREADS_PER_BLOCK)))
        .collect()
}

/// Returns products in clusters, with descriptors of addresses that contain the block's rank. The sizes are chosen so
/// that all addresses lie in shared memory even if the rank is part of the leading byte offset.
fn cluster_products() -> Vec<Product> {
    let mut all = Vec::new();
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        all.push(Product { swizzle, cluster: 2, transposed: [true, true], ..PLAIN });
        for encoding in [AddressEncoding::Or, AddressEncoding::Add] {
            for transposed in [[false, false], [true, false], [false, true], [true, true]] {
                all.push(Product { swizzle, transposed, cluster: 2, encoding, ..PLAIN });
            }
            // In a cluster of eight, some rank bits overlap with bits that are set in the leading byte offset, so
            // `Or` and `Add` differ.
            all.push(Product { swizzle, transposed: [true, true], cluster: 8, encoding, ..PLAIN });
            all.push(Product {
                swizzle,
                n: 128,
                transposed: [false, true],
                from_registers: true,
                cluster: 4,
                encoding,
                ..PLAIN
            });
        }
        for (sum, a, b) in [("f32", "tf32", "tf32"), ("f32", "e4m3", "e5m2"), ("s32", "s8", "u8")] {
            all.push(Product { swizzle, sum, a, b, cluster: 2, encoding: AddressEncoding::Add, ..PLAIN });
        }
    }
    all.push(Product { n: 256, transposed: [false, true], cluster: 4, encoding: AddressEncoding::Add, ..PLAIN });
    all.push(Product { n: 24, transposed: [true, true], cluster: 2, encoding: AddressEncoding::Add, ..PLAIN });
    all
}

/// Types of D, A and B that are tested in addition to the types of [`PLAIN`] (f32, bf16 and bf16).
const TYPES: &[(&str, &str, &str)] = &[
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "tf32", "tf32"),
    ("f32", "e4m3", "e4m3"),
    ("f32", "e5m2", "e4m3"),
    ("f16", "e4m3", "e5m2"),
    ("s32", "s8", "s8"),
    ("s32", "u8", "s8"),
    ("s32", "u8", "u8"),
];

impl Product {
    fn k(&self) -> u32 {
        match self.a {
            "tf32" => 8,
            "bf16" | "f16" => 16,
            _ => 32,
        }
    }

    fn opcode(&self) -> String {
        format!("wgmma.mma_async.sync.aligned.m64n{}k{}.{}.{}.{}", self.n, self.k(), self.sum, self.a, self.b)
    }

    fn name(&self) -> String {
        let mut name = format!("{} {:?}", self.opcode(), self.swizzle);
        let more = [
            (self.transposed[0], "trans-a"),
            (self.transposed[1], "trans-b"),
            (self.from_registers, "registers"),
            (!self.adds, "no-d"),
        ];
        more.iter().filter(|(is, _)| *is).for_each(|(_, word)| name.extend([" ", *word]));
        if self.scales != [1; 2] {
            name += &format!(" scales {:?}", self.scales);
        }
        if self.start > 0 {
            name += &format!(" start {}", self.start);
        }
        if self.cluster > 1 {
            name += &format!(" cluster {} {:?}", self.cluster, self.encoding);
        }
        format!("{name} {:?}", self.span)
    }

    /// Returns true if the instruction uses a leading byte offset that contains the block's rank.
    fn reads_rank(&self) -> bool {
        let uses = |which: usize| match self.swizzle.span_bytes() {
            None => true,
            Some(span) => self.transposed[which] && 2 * [64, self.n][which] > span,
        };
        self.encoding != AddressEncoding::Masked && (uses(1) || !self.from_registers && uses(0))
    }

    /// Returns the shared-memory descriptor of A (0) or B (1), with start address 0.
    fn descriptor(&self, which: usize) -> u64 {
        let extent = [64, self.n][which];
        // If each row of the operand is as long as the swizzle span, eight rows make one swizzle pattern. A stride that
        // the hardware does not use, because the operand is too small, can have any value.
        let (leading, stride) = match (self.swizzle.span_bytes(), self.transposed[which]) {
            (Some(span), false) => (16, 8 * span),
            (Some(span), true) => (16 * span, 8 * span),
            (None, false) => (16 * extent, 128),
            (None, true) => (16 * extent, 128),
        };
        Descriptor { start: 0, leading, stride, swizzle: self.swizzle }.encode()
    }

    fn case(&self, lanes: usize) -> InstructionCase {
        let (sum, a) = (element_format_from_ptx(self.sum), element_format_from_ptx(self.a));
        let count = self.n as usize / if self.sum == "f16" { 4 } else { 2 };
        let registers = if self.from_registers { 4 } else { 0 };
        let results = vec![OperandFormat::Matrix(sum, self.span); count];
        let (input, magnitudes) = self.input(lanes, count, registers);
        InstructionCase {
            name: self.name(),
            ptx: self.ptx(lanes, count, registers),
            lanes,
            sources: Vec::new(),
            results,
            input,
            magnitudes: (self.span == ElementRange::Moderate).then_some(magnitudes),
            tolerance: sum_tolerance(a, sum),
            finding: self.reads_rank().then_some(FindingKind::Wgmma),
        }
    }

    /// Returns the input buffer, and the same buffer with all sign bits cleared. A buffer holds the contents of shared
    /// memory for each block, then the registers of D and of A, each register with 8 bytes for every lane.
    fn input(&self, lanes: usize, count: usize, registers: usize) -> (Vec<u8>, Vec<u8>) {
        let mut rng = SeededRng::new(u64::from(self.n) << 8 | self.k() as u64);
        let (mut input, mut unsigned) = (Vec::new(), Vec::new());
        let mut add = |element: MatrixElementFormat, words: usize, wide: bool| {
            let from = input.len();
            for _ in 0..words {
                let low = random_matrix_elements(element, self.span, 32, &mut rng);
                let high = if wide { 0 } else { random_matrix_elements(element, self.span, 32, &mut rng) };
                input.extend((low | high << 32).to_le_bytes());
            }
            unsigned.extend_from_slice(&input[from..]);
            clear_bits_in_each_word(&mut unsigned[from..], element.sign_mask());
        };
        for _ in 0..lanes / THREADS_PER_BLOCK {
            add(element_format_from_ptx(self.a), B as usize / 8, false);
            add(element_format_from_ptx(self.b), (SHARED_BYTES - B as usize) / 8, false);
        }
        add(element_format_from_ptx(self.sum), lanes * count, true);
        add(element_format_from_ptx(self.a), lanes * registers, true);
        (input, unsigned)
    }

    fn ptx(&self, lanes: usize, count: usize, registers: usize) -> String {
        let list = |letter: char, count: usize| {
            let names: Vec<String> = (0..count).map(|k| format!("%{letter}{k}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let mut p = ptx::kernel_entry_ptx(self.cluster as usize);
        let mut line = |text: String| writeln!(p, "    {text}").expect("a string takes all");
        line(format!(".shared .align 1024 .b8 sm[{SHARED_BYTES}];"));
        line(format!(
            ".reg .b32 %d<{count}>, %a<4>, %v<4>, %i, %n, %b, %s, %at; .reg .b64 %in, %out, %from, %da, %db;"
        ));
        line(".reg .pred %p;".into());
        line("mov.u32 %b, %ctaid.x; mov.u32 %n, %tid.x; mov.u32 %s, sm;".into());
        line("ld.param.u64 %in, [in]; ld.param.u64 %out, [out];".into());
        line(format!("mad.wide.u32 %from, %b, {SHARED_BYTES}, %in; mad.wide.u32 %from, %n, 16, %from;"));
        line("mad.lo.u32 %at, %n, 16, %s; mov.u32 %i, 0;".into());
        line("FILL:".into());
        line("ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%from]; st.shared.v4.b32 [%at], {%v0, %v1, %v2, %v3};".into());
        let step = 16 * THREADS_PER_BLOCK;
        line(format!("add.u64 %from, %from, {step}; add.u32 %at, %at, {step}; add.u32 %i, %i, {step};"));
        line(format!("setp.lt.u32 %p, %i, {SHARED_BYTES}; @%p bra FILL;"));
        line("fence.proxy.async.shared::cta; bar.sync 0;".into());
        line(format!("mad.lo.u32 %i, %b, {THREADS_PER_BLOCK}, %n; mad.wide.u32 %out, %i, 8, %out;"));
        line(format!("mad.wide.u32 %in, %i, 8, %in; add.u64 %in, %in, {};", lanes / THREADS_PER_BLOCK * SHARED_BYTES));
        (0..count).for_each(|k| line(format!("ld.global.b32 %d{k}, [%in+{}];", 8 * k * lanes)));
        (0..registers).for_each(|k| line(format!("ld.global.b32 %a{k}, [%in+{}];", 8 * (count + k) * lanes)));
        for (which, (letter, offset)) in [('a', 0), ('b', B)].into_iter().enumerate() {
            line(format!("add.u32 %i, %s, {};", offset + self.start));
            if self.encoding == AddressEncoding::Masked {
                line("and.b32 %i, %i, 0x3ffff;".into());
            }
            line(format!("shr.u32 %i, %i, 4; cvt.u64.u32 %d{letter}, %i;"));
            let combine = if self.encoding == AddressEncoding::Add { "add.s64" } else { "or.b64" };
            line(format!("{combine} %d{letter}, %d{letter}, {:#x};", self.descriptor(which)));
        }
        line(format!("setp.eq.u32 %p, 0, {};", u32::from(!self.adds)));
        line("wgmma.fence.sync.aligned;".into());
        let a = if self.from_registers { list('a', 4) } else { "%da".into() };
        line(format!("{} {}, {a}, %db, %p{};", self.opcode(), list('d', count), self.immediates()));
        line("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;".into());
        (0..count).for_each(|k| line(format!("st.global.b32 [%out+{}], %d{k};", 8 * k * lanes)));
        line("ret;".into());
        p.push_str("}\n");
        p
    }

    /// Returns the instruction's immediates: the signs of floating-point operands, and whether 16-bit operands are
    /// transposed.
    fn immediates(&self) -> String {
        let mut all: Vec<i32> = Vec::new();
        if self.sum != "s32" {
            all.extend(self.scales);
        }
        if self.k() == 16 {
            all.extend(self.transposed.map(i32::from).iter().skip(usize::from(self.from_registers)));
        }
        all.iter().map(|i| format!(", {i}")).collect()
    }
}

/// The comparison requires sums of small integers to be exact, so a sum over the longest k must be exact in f16 and
/// f32.
const _: () = assert!(32 * 9 + 3 < 1 << (F16.fraction + 1) && F16.fraction < F32.fraction);
