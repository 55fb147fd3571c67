//! Fences that order in one direction, in some state spaces, or for some proxies; scopes of mbarriers.

use super::harness::Case;

/// Block 0 stores a word and sets a flag; block 1 waits for the flag and loads the word. `release` and `acquire` are
/// the fences between the two accesses of block 0 and of block 1.
fn flag(release: &str, acquire: &str) -> Case {
    let body = format!(
        "
        .reg .b32 %r<4>; .reg .b64 %d<2>; .reg .pred %p<2>;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %ctaid.x; setp.ne.u32 %p0, %r0, 0; @%p0 bra READ;
        st.global.u32 [%d0], 5; {release} st.relaxed.gpu.global.u32 [%d0+64], 1; ret;
        READ: ld.relaxed.gpu.global.u32 %r1, [%d0+64]; setp.eq.u32 %p1, %r1, 0; @%p1 bra READ;
        {acquire} ld.global.u32 %r2, [%d0]; st.global.u32 [%d0+128], %r2; ret;"
    );
    Case { blocks: 2, ..Case::new("sm_90a", 1, &body) }
}

#[test]
fn fences_of_one_direction_order_only_that_direction() {
    let kinds = |release: &str, acquire: &str| flag(release, acquire).finding_kinds();
    assert_eq!(kinds("fence.release.gpu;", "fence.acquire.gpu;"), [""; 0]);
    assert_eq!(kinds("fence.acq_rel.gpu;", "fence.acquire.gpu;"), [""; 0]);
    assert_eq!(kinds("fence.acquire.gpu;", "fence.acquire.gpu;"), ["race"]);
    assert_eq!(kinds("fence.release.gpu;", "fence.release.gpu;"), ["race"]);
    assert_eq!(kinds("fence.release.gpu; fence.acquire.gpu;", "fence.release.gpu; fence.acquire.gpu;"), [""; 0]);
}

/// Block 0 of a cluster writes its shared memory and sets a flag there; block 1 waits for the flag and reads.
fn cluster_flag(data: &str, release: &str, acquire: &str) -> Case {
    let body = format!(
        "
        .reg .b32 %r<6>; .reg .b64 %d<2>; .reg .pred %p<2>; .shared .b32 word; .shared .b32 flag;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %cluster_ctarank; setp.ne.u32 %p0, %r0, 0; mov.u32 %r3, flag;
        mov.u32 %r4, word; st.shared.u32 [%r3], 0;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        @%p0 bra READ;
        st.shared.u32 [%r4], 5; st.global.u32 [%d0], 5; {release} st.relaxed.cluster.shared.u32 [%r3], 1; bra END;
        READ: mapa.shared::cluster.u32 %r3, %r3, 0; mapa.shared::cluster.u32 %r4, %r4, 0;
        WAIT: ld.relaxed.cluster.shared::cluster.u32 %r1, [%r3]; setp.eq.u32 %p1, %r1, 0; @%p1 bra WAIT;
        {acquire} {data} st.global.u32 [%d0+128], %r2;
        END: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;"
    );
    Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 1, &body) }
}

#[test]
fn sync_restrict_orders_only_shared_memory() {
    let release = "fence.release.sync_restrict::shared::cta.cluster;";
    let acquire = "fence.acquire.sync_restrict::shared::cluster.cluster;";
    for (release, acquire) in
        [(release, acquire), (release, "fence.acquire.cluster;"), ("fence.release.cluster;", acquire)]
    {
        let shared = cluster_flag("ld.shared::cluster.u32 %r2, [%r4];", release, acquire);
        assert_eq!(shared.finding_kinds(), [""; 0], "{release} {acquire}");
        let global = cluster_flag("ld.global.u32 %r2, [%d0];", release, acquire);
        assert_eq!(global.finding_kinds(), ["race"], "{release} {acquire}");
    }
    let unfenced = cluster_flag("ld.shared::cluster.u32 %r2, [%r4];", "", acquire);
    assert_eq!(unfenced.finding_kinds(), ["race"]);
}

/// Block 1 of a cluster stores to shared memory of block 0 and arrives at an mbarrier there, for which block 0 waits.
fn remote_arrival(arrive: &str, wait: &str) -> Case {
    let body = format!(
        "
        .reg .b32 %r<6>; .reg .b64 %d<2>; .reg .pred %p<2>; .shared .align 8 .b64 bar; .shared .b32 word;
        ld.param.u64 %d0, [p]; mov.u32 %r0, %cluster_ctarank; setp.ne.u32 %p0, %r0, 0; mov.u32 %r3, bar;
        mov.u32 %r4, word;
        @!%p0 mbarrier.init.shared::cta.b64 [%r3], 1;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        @!%p0 bra WAIT;
        mapa.shared::cluster.u32 %r3, %r3, 0; mapa.shared::cluster.u32 %r4, %r4, 0;
        st.shared::cluster.u32 [%r4], 7; {arrive} bra END;
        WAIT: {wait} @!%p1 bra WAIT;
        {after}
        ld.shared.u32 %r2, [%r4]; st.global.u32 [%d0], %r2;
        END: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;",
        after = if wait.contains("relaxed") { "fence.acquire.cluster;" } else { "" },
    );
    Case { blocks: 2, cluster: 2, ..Case::new("sm_90a", 1, &body) }
}

#[test]
fn mbarriers_order_blocks_only_at_cluster_scope() {
    let arrive = |qualifiers: &str| format!("mbarrier.arrive{qualifiers}.shared::cluster.b64 _, [%r3];");
    let wait = |qualifiers: &str| format!("mbarrier.try_wait.parity{qualifiers}.shared::cta.b64 %p1, [%r3], 0;");
    let kinds = |a: &str, w: &str| remote_arrival(&arrive(a), &wait(w)).finding_kinds();
    assert_eq!(kinds(".release.cluster", ".acquire.cluster"), [""; 0]);
    assert_eq!(kinds(".release.cluster", ".acquire.cta"), ["race"]);
    assert_eq!(kinds(".release.cta", ".acquire.cluster"), ["race"]);
    // CUTLASS writes these instructions without semantics and without a scope.
    assert_eq!(kinds("", ""), [""; 0]);
    assert_eq!(kinds(".relaxed.cluster", ".acquire.cluster"), ["race"]);
    // A relaxed arrival passes on what a fence before it covers, and a fence after a relaxed wait acquires it.
    let fenced = format!("fence.release.cluster; {}", arrive(".relaxed.cluster"));
    assert_eq!(remote_arrival(&fenced, &wait(".acquire.cluster")).finding_kinds(), [""; 0]);
    assert_eq!(remote_arrival(&fenced, &wait(".relaxed.cluster")).finding_kinds(), [""; 0]);
    let fence = "fence.acquire.cluster;";
    let unfenced = remote_arrival(&fenced, &wait(".relaxed.cluster")).replace(fence, "");
    assert_eq!(unfenced.finding_kinds(), ["race"]);
}

/// A bulk copy reads shared memory that a thread has written before a fence; the fence must be one of the async proxy.
#[test]
fn fences_of_the_tensormap_proxy_are_no_fences_of_the_async_proxy() {
    let case = Case::new(
        "sm_90a",
        1,
        "
        .reg .b32 %r<3>; .reg .b64 %d<2>; .shared .align 16 .b8 s[16];
        ld.param.u64 %d0, [p]; mov.u32 %r0, s; st.shared.v4.u32 [%r0], {%r1, %r1, %r1, %r1};
        fence.proxy.async;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r0], 16;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; ret;",
    )
    .replace("mov.u32 %r0, s;", "mov.u32 %r0, s; mov.u32 %r1, 3;");
    assert_eq!(case.finding_kinds(), [""; 0]);
    for fence in
        ["fence.proxy.tensormap::generic.release.gpu;", "fence.proxy.tensormap::generic.acquire.gpu [%d0], 128;"]
    {
        assert_eq!(case.replace("fence.proxy.async;", fence).finding_kinds(), ["async-proxy"], "{fence}");
    }
}
