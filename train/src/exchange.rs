//! Exchanges the results of micro-batches between the processes (ranks) of a run. Micro-batch i of a step, counted from
//! 0, belongs to rank `i mod N`.

use bytemuck::Pod;
use reel_ranks::Ranks;

use crate::Result;

/// Gathers one list for each micro-batch of a step, in the order of the micro-batches. `own` has the lists of this
/// rank's micro-batches, in order; without `ranks`, it has the lists of all micro-batches and is returned. `name` names
/// the call in messages. All ranks call it together.
///
/// # Errors
/// Another rank has failed.
pub fn gather_in_order<T: Pod>(ranks: Option<&Ranks>, name: &str, own: Vec<Vec<T>>) -> Result<Vec<Vec<T>>> {
    let Some(ranks) = ranks.filter(|ranks| ranks.size() > 1) else { return Ok(own) };
    let lengths: Vec<u64> = own.iter().map(|list| list.len() as u64).collect();
    let lengths = ranks.all_gather(name, bytemuck::cast_slice(&lengths))?;
    let items = ranks.all_gather(name, bytemuck::cast_slice(&own.concat()))?;
    let lists = |(lengths, items): (Vec<u8>, Vec<u8>)| {
        let mut items = bytemuck::pod_collect_to_vec::<u8, T>(&items).into_iter();
        let lengths: Vec<u64> = bytemuck::pod_collect_to_vec(&lengths);
        lengths.into_iter().map(|length| items.by_ref().take(length as usize).collect()).collect()
    };
    Ok(interleave(lengths.into_iter().zip(items).map(lists).collect()))
}

/// Returns the items of all ranks in the order of their micro-batches. Rank 0 has the items of micro-batches 0, N, 2 N
/// …, rank 1 the items of micro-batches 1, N + 1, ….
fn interleave<T>(of_ranks: Vec<Vec<T>>) -> Vec<T> {
    let mut of_ranks: Vec<_> = of_ranks.into_iter().map(Vec::into_iter).collect();
    let (mut all, size) = (Vec::new(), of_ranks.len());
    while let Some(next) = of_ranks[all.len() % size].next() {
        all.push(next);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_in_the_order_of_micro_batches() {
        for size in [1, 2, 3, 5] {
            for count in 0..8 {
                let of_rank = |rank: usize| (rank..count).step_by(size).collect::<Vec<_>>();
                assert_eq!(interleave((0..size).map(of_rank).collect()), (0..count).collect::<Vec<_>>());
            }
        }
    }
}
