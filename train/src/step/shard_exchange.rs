//! Exchanges between the processes of a tensor-parallel model ([`reel_model::tensor_parallel`]), by NCCL or by
//! sockets.

use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use reel_device::Device;
use reel_model::tensor_parallel::ShardExchange;
use reel_runtime::Tensor;
use reel_support::diagnostic::Diagnostic;
use reel_support::ranks::Ranks;

use super::tensor_exchange::{self, TensorExchange};
use crate::error::{Error, Kind, Result};

/// Connects the ranks that compute a tensor-parallel model on `device`. All ranks call it together.
///
/// # Errors
/// NCCL is missing, or a rank does not join in time; another rank has failed.
pub fn connect(ranks: &Arc<Ranks>, device: &Device) -> Result<Arc<dyn ShardExchange>> {
    let exchange = Mutex::new(tensor_exchange::connect(ranks, device)?);
    Ok(Arc::new(RankExchange { rank: ranks.rank(), size: ranks.size(), exchange }))
}

#[derive(Debug)]
struct RankExchange {
    rank: usize,
    size: usize,
    exchange: Mutex<Box<dyn TensorExchange>>,
}

impl ShardExchange for RankExchange {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, name: &str, own: &Tensor, parts: &[Tensor]) -> Result<(), Diagnostic> {
        let receive: Vec<Vec<Tensor>> = parts.iter().map(|part| vec![part.clone()]).collect();
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = exchange.start_all_gather(name, slice::from_ref(own), &receive);
        pending.and_then(|pending| Ok(pending.wait()?)).map_err(|e| match e {
            Error { kind: Kind::Rank, diagnostic } => diagnostic,
            e => Diagnostic::new("", e.to_string(), ""),
        })
    }
}
