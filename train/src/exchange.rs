//! Exchanges the results of micro-batches between the processes (ranks) of a run.

use bytemuck::Pod;
use reel_support::ranks::Ranks;

use crate::Result;

/// Gathers one list for each micro-batch of a step, in the order of the micro-batches. `own` has the lists of this
/// rank's micro-batches, in order. Without `ranks`, `own` has the lists of all micro-batches and is returned.
/// `rank_of(i)` is the rank of micro-batch i. `name` is the name of the call in messages. All ranks call it together.
///
/// # Errors
/// Another rank has failed.
pub fn gather_in_order<T: Pod>(
    ranks: Option<&Ranks>,
    name: &str,
    own: Vec<Vec<T>>,
    rank_of: impl Fn(usize) -> usize,
) -> Result<Vec<Vec<T>>> {
    let Some(ranks) = ranks.filter(|ranks| ranks.size() > 1) else { return Ok(own) };
    let lengths: Vec<u64> = own.iter().map(|list| list.len() as u64).collect();
    let lengths = ranks.all_gather(name, bytemuck::cast_slice(&lengths))?;
    let items = ranks.all_gather(name, bytemuck::cast_slice(&own.concat()))?;
    let lists = |(lengths, items): (Vec<u8>, Vec<u8>)| {
        let mut items = bytemuck::pod_collect_to_vec::<u8, T>(&items).into_iter();
        let lengths: Vec<u64> = bytemuck::pod_collect_to_vec(&lengths);
        lengths.into_iter().map(|length| items.by_ref().take(length as usize).collect()).collect()
    };
    Ok(in_order_of_micro_batches(lengths.into_iter().zip(items).map(lists).collect(), rank_of))
}

/// Returns the items of all ranks in the order of their micro-batches; `rank_of(i)` is the rank of micro-batch i.
fn in_order_of_micro_batches<T>(of_ranks: Vec<Vec<T>>, rank_of: impl Fn(usize) -> usize) -> Vec<T> {
    let count = of_ranks.iter().map(Vec::len).sum();
    let mut of_ranks: Vec<_> = of_ranks.into_iter().map(Vec::into_iter).collect();
    (0..count).filter_map(|index| of_ranks[rank_of(index)].next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_in_the_order_of_micro_batches() {
        for size in [1, 2, 3, 5] {
            for count in 0..8 {
                let in_turn = |index: usize| index % size;
                let backwards = |index: usize| size - 1 - index % size;
                for rank_of in [&in_turn as &dyn Fn(usize) -> usize, &backwards] {
                    let of_rank = |rank: usize| (0..count).filter(|&index| rank_of(index) == rank).collect::<Vec<_>>();
                    let of_ranks = (0..size).map(of_rank).collect();
                    assert_eq!(in_order_of_micro_batches(of_ranks, rank_of), (0..count).collect::<Vec<_>>());
                }
            }
        }
    }
}
