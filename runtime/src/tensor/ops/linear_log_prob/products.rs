//! By plain products of tiles of rows and vocabulary: the logits of a tile are written, read by the kernels of
//! `reel_kernels::log_prob`, and overwritten by the next tile's.

use reel_kernels::matmul::{Matmul, Operand};
use reel_kernels::{Addr, DType, Launch, log_prob as kernel};

use super::super::linear::weight_gradient;
use super::{Head, narrow, parts};
use crate::device::Category;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::tape::Backward;

/// Columns come in multiples of this where they do not come in smaller numbers, for the sake of products.
const ALIGNED: usize = 128;

/// Rows and columns of the vocabulary whose logits are in memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Tile {
    /// The tile for `limit` bytes where an element takes `each`.
    ///
    /// With r rows and c columns, R rows are read V / c times and V rows of the weight R / r times, and so are their gradients where there
    /// are any: `R · V · (1 / c + 1 / r)` rows in all. Of tiles of one size a square has the least of that. At 8192 rows and 152064
    /// words, f32 logits: 4096 by 4096, the weight is read twice, the rows 38 times, 4.4 GB; whole rows of the vocabulary would read the
    /// weight 75 times, 82 GB.
    ///
    /// Columns do not depend on the number of rows: a row's sums are merged where a tile ends, and its bits are to be its own.
    pub(super) fn new(each: usize, vocab: usize, limit: usize) -> Tile {
        let most = (limit / each).max(1);
        let aligned = |n: usize| if n >= ALIGNED { n / ALIGNED * ALIGNED } else { n };
        let side = aligned(most.isqrt());
        // As many tiles as squares would be, of one width but for the last.
        let even = vocab.div_ceil(vocab.div_ceil(side)).next_multiple_of(ALIGNED);
        let columns = even.min(side).min(vocab);
        Tile { rows: most / columns, columns }
    }
}

impl Head {
    /// The logits of rows and of columns, each given by the first and their number, into `to`.
    fn logits(&self, rows: (usize, usize), columns: (usize, usize), to: &Tensor) -> Result<Launch> {
        let of = |t: &Tensor, (first, n): (usize, usize)| {
            t.rows(first, n).map(|t| Operand { addr: t.addr(), dtype: t.dtype(), transposed: false })
        };
        Ok(Launch::Matmul(Matmul {
            m: rows.1,
            n: columns.1,
            k: self.hidden,
            a: of(&self.h, rows)?,
            b: of(&self.w, columns)?,
            c: to.addr(),
            c_dtype: DType::F32,
            bias: Addr::NULL,
            accumulate: false,
            scale: 1.0,
        }))
    }

    /// Tile after tile of a row of tiles; the kernel hands the rows' sums on.
    pub(super) fn forward_by_products(
        &self,
        cx: &Cx,
        lp: &Tensor,
        entropy: Option<&Tensor>,
        lse: &Tensor,
    ) -> Result<()> {
        let tile = Tile::new(DType::F32.size(), self.vocab, self.limit);
        let most = tile.rows.min(self.rows);
        let room = |elements| Tensor::empty(cx.device(), &[elements], DType::F32, Category::Workspace);
        let (logits, state) = (room(most * tile.columns)?, room(most * kernel::STATE / DType::F32.size())?);
        for (start, n) in parts(self.rows, tile.rows) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            for (first, columns) in parts(self.vocab, tile.columns) {
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
        Ok(())
    }

    /// Each tile's logits again, their gradient, and both products with that. The rows' gradient adds up along a row of tiles, in f32: a sum
    /// rounded to bf16 after each tile would lose what later ones bring. That of the weight adds up where it is kept.
    pub(super) fn backward_by_products(
        &self,
        bw: &mut Backward,
        lse: &Tensor,
        d_lp: &Tensor,
        entropies: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let dtype = self.h.dtype();
        let dw = bw.parameter_grad(&self.w)?;
        let dh = if self.h.needs_grad() { Some(bw.empty_like(&self.h)?) } else { None };
        let tile = Tile::new(DType::F32.size() + dtype.size(), self.vocab, self.limit);
        let most = tile.rows.min(self.rows);
        let logits = bw.empty(&[most * tile.columns], DType::F32, Category::Workspace)?;
        let d_logits = bw.empty(&[most * tile.columns], dtype, Category::Workspace)?;
        let sums = match dtype != DType::F32 && tile.columns < self.vocab && dh.is_some() {
            true => Some(bw.empty(&[most, self.hidden], DType::F32, Category::Workspace)?),
            false => None,
        };
        for (start, n) in parts(self.rows, tile.rows) {
            let at = |t: &Tensor| t.rows(start, n).map(|t| t.addr());
            let dh = dh.as_ref().map(|dh| dh.rows(start, n)).transpose()?;
            let sums = sums.as_ref().map(|sums| sums.rows(0, n)).transpose()?;
            for (first, columns) in parts(self.vocab, tile.columns) {
                bw.launch(&self.logits((start, n), (first, columns), &logits)?)?;
                let p = kernel::BwdParams {
                    logits: logits.addr(),
                    targets: at(&self.targets)?,
                    lse: at(lse)?,
                    entropy: entropies.map_or(Ok(Addr::NULL), |e| at(e.0))?,
                    grad: at(d_lp)?,
                    d_entropy: entropies.map_or(Ok(Addr::NULL), |e| at(e.1))?,
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
                if let Some(dw) = &dw {
                    let (h, dw) = (self.h.rows(start, n)?, dw.rows(first, columns)?);
                    bw.launch(&weight_gradient(&d_logits, &h, n, columns, self.hidden, &dw))?;
                }
            }
            if let (Some(sums), Some(dh)) = (&sums, &dh) {
                bw.launch(&narrow(sums, dh))?;
            }
        }
        drop((logits, d_logits, sums));
        match dh {
            Some(dh) => bw.add(&self.h, dh),
            None => Ok(()),
        }
    }
}
