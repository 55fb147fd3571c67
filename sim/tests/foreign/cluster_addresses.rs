//! Shared addresses in clusters, as an H200 has them: a block's own addresses contain its rank.

use super::harness::{Case, bytes_of_words};

/// Runs one warp in each of two blocks of a cluster. Each block stores 100 plus its rank in `word`, and after the
/// barrier runs `body`, whose result `%r9` goes to the word of the block's rank in the buffer. `%r0` is the rank, `%r1`
/// the address of `word`, `%r2` this address without the rank, and `%r3` the address of `word` in the other block.
fn case(body: &str) -> Case {
    let text = format!(
        ".reg .b32 %r<12>; .reg .b64 %d<8>; .reg .pred %p<3>; .shared .b32 word;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %cluster_ctarank; mov.u32 %r1, word; and.b32 %r2, %r1, 0xffffff;
        mov.u32 %r4, %tid.x; setp.ne.u32 %p0, %r4, 0; @%p0 bra STORED;
        add.u32 %r5, %r0, 100; st.shared.u32 [word], %r5;
        STORED: xor.b32 %r6, %r0, 1; mapa.shared::cluster.u32 %r3, %r1, %r6;
        barrier.cluster.arrive; barrier.cluster.wait;
        {body}
        barrier.cluster.arrive; barrier.cluster.wait;
        @%p0 bra DONE; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; st.global.u32 [%d1], %r9;
        DONE: ret;"
    );
    Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 32, &text) }
}

/// Returns the results of rank 0 and rank 1.
fn results(body: &str) -> [u32; 2] {
    let report = case(body).run();
    assert_eq!(report.findings.concat(), [], "{body}");
    let buffer = report.memory.iter().next().unwrap();
    [0, 4]
        .map(|at| u32::from_le_bytes(report.memory.buffer_bytes(buffer.base).unwrap()[at..at + 4].try_into().unwrap()))
}

#[test]
fn own_addresses_contain_the_rank() {
    assert_eq!(results("mov.u32 %r9, %r1;"), [0x400, 0x0100_0400]);
    assert_eq!(results("mov.u32 %r9, word; add.u32 %r9, %r9, 4;"), [0x404, 0x0100_0404]);
    assert_eq!(results("mapa.shared::cluster.u32 %r9, %r1, %r0;"), [0x400, 0x0100_0400]);
    assert_eq!(results("mapa.shared::cluster.u32 %r9, %r2, %r0;"), [0x400, 0x0100_0400]);
    assert_eq!(results("mov.u32 %r9, %r3;"), [0x0100_0400, 0x400]);
    assert_eq!(results("getctarank.shared::cluster.u32 %r9, %r1;"), [0, 1]);
    assert_eq!(results("getctarank.shared::cluster.u32 %r9, %r2;"), [0, 0]);
    let through = "cvt.u64.u32 %d2, %r1; cvta.shared.u64 %d2, %d2; cvta.to.shared.u64 %d2, %d2; cvt.u32.u64 %r9, %d2;";
    assert_eq!(results(through), [0x400, 0x0100_0400]);
}

#[test]
fn addresses_without_a_rank_name_rank_0() {
    assert_eq!(results("ld.shared::cta.u32 %r9, [%r1];"), [100, 101]);
    assert_eq!(results("ld.shared.u32 %r9, [word];"), [100, 101]);
    assert_eq!(results("ld.shared::cluster.u32 %r9, [%r1];"), [100, 101]);
    assert_eq!(results("ld.shared::cluster.u32 %r9, [%r2];"), [100, 100]);
    assert_eq!(results("ld.shared::cluster.u32 %r9, [%r3];"), [101, 100]);
    let generic = |register: &str| format!("cvt.u64.u32 %d2, {register}; cvta.shared.u64 %d2, %d2; ld.u32 %r9, [%d2];");
    assert_eq!(results(&generic("%r1")), [100, 101]);
    assert_eq!(results(&generic("%r2")), [100, 100]);
    let own = |register: &str| {
        format!(
            "cvt.u64.u32 %d2, {register}; cvta.shared.u64 %d2, %d2; isspacep.shared::cta %p1, %d2; selp.b32 %r9, 1, 0, %p1;"
        )
    };
    assert_eq!(results(&own("%r1")), [1, 1]);
    assert_eq!(results(&own("%r2")), [1, 0]);
    assert_eq!(results(&own("%r3")), [0, 0]);
}

/// On the GPU, each of these accesses is an illegal instruction in the block of rank 1, because its address names rank
/// 0.
#[test]
fn cta_accesses_to_another_block_are_reported() {
    for access in [
        "ld.shared::cta.u32 %r9, [%r2];",
        "ld.shared.u32 %r9, [%r2];",
        "@!%p0 st.shared.u32 [%r2], %r0; mov.u32 %r9, 0;",
        "@!%p0 atom.shared.add.u32 %r9, [%r2], 1; mov.u32 %r9, 0;",
        "@!%p0 mbarrier.init.shared.b64 [%r2], 1; mov.u32 %r9, 0;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r2];",
    ] {
        let findings =
            case(access).replace(".shared .b32 word", ".shared .align 16 .b32 word[64]").run().findings.concat();
        let found: Vec<_> = findings.iter().filter(|f| f.kind.name() == "out-of-bounds").collect();
        assert!(!found.is_empty() && found.iter().all(|f| f.block == [1, 0, 0]), "{access}: {findings:?}");
        assert!(found[0].message.contains("the block of rank 0"), "{}", found[0].message);
        assert!(found[0].message.contains("use .shared::cluster"), "{}", found[0].message);
    }
}

/// Without clusters every block has rank 0.
#[test]
fn blocks_without_a_cluster_have_addresses_without_a_rank() {
    let text = ".reg .b32 %r<3>; .reg .b64 %d<2>; .shared .b32 word; ld.param.u64 %d0, [p]; mov.u32 %r0, %ctaid.x;
        mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1; mov.u32 %r1, word; st.global.u32 [%d1], %r1; ret;";
    let report = Case { blocks: 2, ..Case::new("sm_90a", 1, text) }.run();
    let buffer = report.memory.iter().next().unwrap().base;
    assert_eq!(report.memory.buffer_bytes(buffer).unwrap()[..8], bytes_of_words([0x400, 0x400]));
}
