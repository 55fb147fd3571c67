//! Computes the forward and backward pass tile by tile. For each tile of rows and columns, a matrix product writes
//! the logits and the kernels of `reel_kernels::log_prob` read them. The next tile overwrites the logits, unless they
//! are kept for the backward pass.

use reel_device::launch::Operand;
use reel_device::{Addr, DType, Device, Kernels, Launch, MemoryCategory};
use reel_kernels::log_prob as kernel;
use reel_kernels::matmul::plain_product;

use super::super::linear::weight_gradient_launch;
use super::{Head, narrow, parts};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::tape::BackwardContext;

/// The width of a tile is rounded up to a multiple of this number of columns, for which matrix products are fastest.
const ALIGNED: usize = 128;

/// The size of a tile of logits: its rows, and its columns of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogitTile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl LogitTile {
    /// The largest tile of at most `max_bytes` bytes.
    ///
    /// With r rows and c columns per tile, each of the R rows of h is read V / c times and each of the V rows of the
    /// weight R / r times: `R · V · (1 / c + 1 / r)` rows in total. The gradients of both are read as often. For a
    /// given area of a tile, this number is smallest for a square tile. With 8192 rows, a vocabulary of 152064 tokens
    /// and f32 logits, a tile is 4096 by 4096: the weight is read twice and the rows 38 times, 4.4 GB. Tiles as wide
    /// as the vocabulary would read the weight 75 times, 82 GB.
    ///
    /// A tile of 64 MiB does not fit into the 50 MB of L2 of an H100 or H200, so its logits pass through memory.
    /// Smaller tiles would not be faster. The table shows a forward and backward pass over 8192 rows of 3584 elements
    /// with a vocabulary of 152064 tokens, by size of a tile. A test counts launches and bytes. Times are modelled,
    /// not measured (128 × 256 elements per block of a product, whole waves of 132 blocks, 791 TFLOP/s, 3.75 TB/s,
    /// 0.5 us per launch):
    ///
    /// | tile | launches | bytes of all launches | bytes if L2 keeps the logits | modelled time |
    /// |---|---|---|---|---|
    /// | 24 MiB | 1710 | 86.0 GB | 58.6 GB | 56.4 ms |
    /// | 64 MiB | 709 | 65.5 GB | it cannot | 52.9 ms |
    /// | 128 MiB | 376 | 53.8 GB | it cannot | 51.3 ms |
    ///
    /// L2 could save 27 GB of logits, but smaller tiles read the weight, the rows and the f32 gradient of the weight
    /// more often. The matrix products take most of the time, and with smaller tiles their blocks leave more of the
    /// last wave empty: a tile of 2586 × 2432 logits has 210 blocks, 80 % of two waves; a tile of 4096 × 4096 has 512
    /// blocks, 97 % of four waves. Tiles of 128 MiB would take 3 % less time of the output layer, but 64 MiB more
    /// memory at the peak of a step.
    ///
    /// The number of columns does not depend on the number of rows. The sums of a row are merged where a tile ends,
    /// so the bits of a row would otherwise depend on the number of rows.
    pub(super) fn new(bytes_per_logit: usize, vocab: usize, max_bytes: usize) -> LogitTile {
        let elements = (max_bytes / bytes_per_logit).max(1);
        let aligned = |n: usize| if n >= ALIGNED { n / ALIGNED * ALIGNED } else { n };
        let side = aligned(elements.isqrt());
        // All tiles except the last have the same width. It is the smallest width that gives no more tiles than
        // square tiles would.
        let even = vocab.div_ceil(vocab.div_ceil(side)).next_multiple_of(ALIGNED);
        let columns = even.min(side).min(vocab);
        LogitTile { rows: elements / columns, columns }
    }
}

impl Head {
    /// The matrix product that writes the logits of a range of rows and a range of columns, each (start, length), to
    /// `to`.
    fn logits(&self, rows: (usize, usize), columns: (usize, usize), to: &Tensor) -> Result<Launch> {
        let of = |t: &Tensor, (first, n): (usize, usize)| {
            t.rows(first, n).map(|t| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false })
        };
        let (size, h, w) = ([rows.1, columns.1, self.hidden], of(&self.h, rows)?, of(&self.w, columns)?);
        Ok(Launch::Matmul(plain_product(size, h, w, to.addr(), DType::F32)))
    }

    /// The tiles of the backward pass, which holds the logits of a tile and their gradient.
    fn backward_tile(&self) -> LogitTile {
        LogitTile::new(DType::F32.size() + self.h.dtype().size(), self.vocab, self.limit)
    }

    /// The tiles of the forward pass. The CPU uses the tiles of the backward pass, which can then use the logits that
    /// the forward pass has kept.
    fn forward_tile(&self, device: &Device) -> LogitTile {
        match device.kernels() {
            Kernels::Cpu => self.backward_tile(),
            Kernels::Cuda => LogitTile::new(DType::F32.size(), self.vocab, self.limit),
        }
    }

    /// The forward pass goes over the tiles of columns for each tile of rows. From tile to tile, `state` carries the
    /// maximum and the sums of each row that the log-softmax needs. Returns the logits of the first tiles, as many as
    /// fit into `keep` bytes.
    pub(super) fn forward(
        &self,
        cx: &Cx,
        lp: &Tensor,
        entropy: Option<&Tensor>,
        lse: &Tensor,
        keep: usize,
    ) -> Result<Vec<Tensor>> {
        let tile = self.forward_tile(cx.device());
        let max_rows = tile.rows.min(self.rows);
        let room = |elements, category| Tensor::empty(cx.device(), &[elements], DType::F32, category);
        let state = room(max_rows * kernel::STATE_BYTES_PER_ROW / DType::F32.size(), MemoryCategory::Workspace)?;
        let (mut kept, mut left, mut overwritten) = (Vec::new(), keep, None);
        for (start, n) in parts(self.rows, tile.rows) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            for (first, columns) in parts(self.vocab, tile.columns) {
                let bytes = n * columns * DType::F32.size();
                let logits = match &overwritten {
                    Some(logits) => Tensor::clone(logits),
                    None if bytes <= left => {
                        left -= bytes;
                        kept.push(room(n * columns, MemoryCategory::Activations)?);
                        kept[kept.len() - 1].clone()
                    }
                    None => overwritten.insert(room(max_rows * tile.columns, MemoryCategory::Workspace)?).clone(),
                };
                cx.launch(&self.logits((start, n), (first, columns), &logits)?)?;
                cx.launch(&kernel::fwd(&kernel::FwdParams {
                    logits: logits.addr(),
                    targets: at(&self.targets)?,
                    log_prob: at(lp)?,
                    entropy: entropy.map_or(Ok(Addr::NULL), at)?,
                    lse: at(lse)?,
                    state: state.addr(),
                    rows: n as u32,
                    vocab: self.vocab_u,
                    first: first as u32,
                    columns: columns as u32,
                    inv_temperature: self.inv_temperature,
                    reserved: 0,
                }))?;
            }
        }
        Ok(kept)
    }

    /// The backward pass: for each tile, computes the logits again unless they are `kept`, then their gradient, then
    /// the two matrix products of this gradient with w and with h. The gradient of h is summed in f32 over the tiles
    /// of the same rows: rounding the sum to bf16 after each tile would lose the small terms of later tiles. The
    /// gradient of w is summed in its own f32 buffer. `of_entropy` has the entropies and their gradient, if any.
    pub(super) fn backward(
        &self,
        bw: &mut BackwardContext,
        lse: &Tensor,
        kept: Vec<Tensor>,
        d_lp: &Tensor,
        of_entropy: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let (entropy, d_entropy) = of_entropy.unzip();
        let dtype = self.h.dtype();
        let tile = self.backward_tile();
        let dw = bw.parameter_grad_in_parts(&self.w, self.rows, self.rows.div_ceil(tile.rows))?;
        let dh = if self.h.needs_grad() { Some(bw.empty_like(&self.h)?) } else { None };
        let max_rows = tile.rows.min(self.rows);
        let (mut kept, mut overwritten) = (kept.into_iter(), None);
        let d_logits = bw.empty(&[max_rows * tile.columns], dtype, MemoryCategory::Workspace)?;
        let sums = match dtype != DType::F32 && tile.columns < self.vocab && dh.is_some() {
            true => Some(bw.empty(&[max_rows, self.hidden], DType::F32, MemoryCategory::Workspace)?),
            false => None,
        };
        for (start, n) in parts(self.rows, tile.rows) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            let dh = dh.as_ref().map(|dh| dh.rows(start, n)).transpose()?;
            let sums = sums.as_ref().map(|sums| sums.rows(0, n)).transpose()?;
            for (first, columns) in parts(self.vocab, tile.columns) {
                let logits = match (kept.next(), &overwritten) {
                    (Some(logits), _) => logits,
                    (None, Some(logits)) => Tensor::clone(logits),
                    (None, None) => {
                        let elements = max_rows * tile.columns;
                        overwritten.insert(bw.empty(&[elements], DType::F32, MemoryCategory::Workspace)?).clone()
                    }
                };
                if overwritten.is_some() {
                    bw.launch(&self.logits((start, n), (first, columns), &logits)?)?;
                }
                let p = kernel::BwdParams {
                    logits: logits.addr(),
                    targets: at(&self.targets)?,
                    lse: at(lse)?,
                    entropy: entropy.map_or(Ok(Addr::NULL), at)?,
                    grad: at(d_lp)?,
                    d_entropy: d_entropy.map_or(Ok(Addr::NULL), at)?,
                    d_logits: d_logits.addr(),
                    rows: n as u32,
                    vocab: self.vocab_u,
                    first: first as u32,
                    columns: columns as u32,
                    inv_temperature: self.inv_temperature,
                    reserved: 0,
                };
                bw.launch(&kernel::bwd(dtype, &p))?;
                if let Some(dh) = &dh {
                    let (w, to) = (self.w.rows(first, columns)?, sums.as_ref().unwrap_or(dh));
                    bw.launch(&self.row_gradient(&d_logits, &w, (n, columns), to, first > 0))?;
                }
                if let Some((dw, adds)) = &dw {
                    let (h, dw, adds) = (self.h.rows(start, n)?, dw.rows(first, columns)?, *adds || start > 0);
                    bw.launch(&weight_gradient_launch(&d_logits, &h, [n, columns, self.hidden], &dw, adds))?;
                }
            }
            if let (Some(sums), Some(dh)) = (&sums, &dh) {
                bw.launch(&narrow(sums, dh))?;
            }
        }
        drop((overwritten, d_logits, sums));
        bw.end_grad_parts(&self.w)?;
        match dh {
            Some(dh) => bw.add_grad(&self.h, dh),
            None => Ok(()),
        }
    }
}
