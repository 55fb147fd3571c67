//! Paged attention on device `cpu`: runs the code of packed attention on keys in the pages of a KV cache.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use reel_device::cpu::simd::{Isa, isa};
use reel_device::launch::view::{OutputArray, slice_at};
use reel_device::{Element, Team};

use super::Params;
use crate::attention::cpu::{BLOCK_KEYS, SequenceArrays, forward_sequences};

// Attention processes BLOCK_KEYS keys at a time. A group of keys must not cross the end of a page of the KV cache.
const _: () = assert!(BLOCK_KEYS == super::BLOCK_TOKENS);

/// # Safety
/// Every address in [`Params`] is valid for the documented shape and dtype.
pub unsafe fn fwd<T: Element>(p: &Params, team: &Team) {
    // SAFETY: the addresses are valid as `Params` documents; `isa` returns an instruction set of this machine.
    unsafe { fwd_on::<T>(isa(), p, team) }
}

/// Runs [`fwd`] on a given instruction set.
///
/// # Safety
/// The machine supports `isa`; the addresses cover what [`Params`] says.
pub unsafe fn fwd_on<T: Element>(isa: Isa, p: &Params, team: &Team) {
    let (heads, kv_heads, d) = (p.heads as usize, p.kv_heads as usize, p.head_dim as usize);
    let (tokens, seqs, max_blocks) = (p.tokens as usize, p.seqs as usize, p.max_blocks as usize);
    let page_tokens = p.page_tokens as usize;
    assert!(
        page_tokens.is_power_of_two() && (16..=256).contains(&page_tokens),
        "a page of the KV cache has {page_tokens} tokens; the number must be a power of two from 16 to 256"
    );
    // SAFETY: cu_seqlens has `[seqs + 1]` i32, kv_lens `[seqs]`, block_tables `[seqs, max_blocks]`.
    let (cu, kv_lens, tables) = unsafe {
        (
            slice_at::<i32>(p.cu_seqlens, seqs + 1),
            slice_at::<i32>(p.kv_lens, seqs),
            slice_at::<i32>(p.block_tables, seqs * max_blocks),
        )
    };
    // SAFETY: o has `[tokens, heads, head_dim]` elements of T.
    let o = unsafe { OutputArray::<T>::new(p.o, tokens * heads * d) };
    for seq in (0..seqs).filter(|&seq| kv_lens[seq] == 0 && cu[seq] < cu[seq + 1]) {
        let (first, end) = (cu[seq] as usize, cu[seq + 1] as usize);
        assert!(
            end <= tokens,
            "cu_seqlens says that sequence {seq} has the tokens {first}..{end}, but there are {tokens} tokens"
        );
        // SAFETY: no other task has started.
        unsafe { o.part(first * heads * d, (end - first) * heads * d) }.fill(T::from_f32(0.0));
    }
    let sequence = |seq: usize, kv_head: usize| {
        let (first, mut end, keys) = (cu[seq] as usize, cu[seq + 1] as usize, kv_lens[seq] as usize);
        if keys == 0 {
            end = first;
        }
        assert!(
            first <= end && end <= tokens,
            "cu_seqlens says that sequence {seq} has the tokens {first}..{end}, but there are {tokens} tokens"
        );
        assert!(
            end - first <= keys && keys <= max_blocks * page_tokens,
            "kv_lens[{seq}] is {keys}, outside {} to {}",
            end - first,
            max_blocks * page_tokens
        );
        let head = first * heads + kv_head * (heads / kv_heads);
        SequenceArrays {
            q: (p.q.0 as *const T).wrapping_add(head * d),
            o: (p.o.0 as *mut T).wrapping_add(head * d),
            lse: null_mut(),
            k: (p.k_cache.0 as *const T).wrapping_add(kv_head * d),
            v: (p.v_cache.0 as *const T).wrapping_add(kv_head * d),
            key_stride: kv_heads * d,
            prefix: (0, 0),
            table: Some((&tables[seq * max_blocks..][..max_blocks], page_tokens)),
            queries: end - first,
            keys,
            causal: true,
            heads,
            kv_heads,
            head_dim: d,
            scale: p.scale,
        }
    };
    // SAFETY: the addresses are valid as `Params` documents; the assertions above check the ranges of each sequence.
    unsafe { forward_sequences(isa, team, seqs, kv_heads, sequence) }
}
