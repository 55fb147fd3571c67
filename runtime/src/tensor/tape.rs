//! The autograd tape: the recorded ops of a forward pass, and the backward pass over them.
//!
//! ```text
//! forward:   y = op(x)            pushes Node { outputs: [id(y)], backward: rule of op }
//! backward:  gradient = { id(loss): dy }
//!            for node in tape, last first:
//!                dy = gradient.remove(node.outputs)      # if no output has a gradient, the node is skipped
//!                node.backward(dy)                       # adds to gradient[id(x)] of each input x
//!                drop(node)                              # frees the tensors that the rule kept
//! ```
//!
//! Gradients are added in the reverse order of the tape, so equal inputs give equal bits. The gradients of parameters
//! are in [`Grads`]: f32, one buffer per parameter, summed over all micro-batches of a step: `(g1 + g2) + g3 …`, where
//! g2 is the whole gradient of the second micro-batch. Ops are recorded by [`super::cx::Cx::record`].
//!
//! The gradient of a parameter is finished when no node is left that uses the parameter. The backward pass then calls
//! the caller's function `observe`, so that several ranks can exchange gradients and free their memory during the
//! pass. It also calls `observe` before the ops of each unit of weights ([`super::cx::Cx::with_weight_unit`]), so
//! that the weights of this unit can be gathered.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use reel_device::{
    DType, Device, Launch, LaunchOrigin, LayerId, MemoryCategory, current_origin, in_layer, with_origin,
};
use reel_kernels::{column_sum, elementwise};

use super::meta::{GradRole, JoinedParameters};
use super::{Tensor, TensorMeta};
use crate::error::{Result, RuntimeError, shape_error};

type BackwardFn = Box<dyn FnOnce(&mut BackwardContext<'_>) -> Result<()>>;

/// The name of the node that computes the intermediate results of its ops again (gradient checkpointing).
pub(super) const RECOMPUTE: &str = "recompute";

/// A part of a model whose weights are used together, such as a layer. Units are ordered as a forward pass uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeightUnit {
    /// The stack of layers, or the single layer, in the order of a forward pass.
    pub stage: usize,
    /// The index in a stack of layers; 0 for a single layer.
    pub index: usize,
}

/// An event that a backward pass reports to its caller.
#[derive(Debug)]
pub enum BackwardEvent {
    /// The gradients of these parameters are finished.
    Finished(Vec<Arc<str>>),
    /// The following ops may use the weights of this unit, and no weights of other units.
    Begins(WeightUnit),
}

/// An entry of the tape.
enum Entry {
    Op(Node),
    /// The ops between the previous entry of this kind and this entry use the weights of the unit.
    EndOfUnit(WeightUnit),
}

struct Node {
    name: &'static str,
    /// The layer that the op belongs to, for profiles of the backward pass.
    layer: Option<LayerId>,
    /// The ids of the op's output tensors on the tape. `backward` gets the gradients of the outputs in this order.
    outputs: Vec<u64>,
    /// The trained parameters among the inputs. After the backward pass each of them must have a gradient.
    parameters: Vec<Arc<str>>,
    backward: BackwardFn,
}

/// The recorded ops, in the order in which they ran.
#[derive(Default)]
pub struct Tape(RefCell<Vec<Entry>>);

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.borrow().iter().filter_map(Entry::op).map(|n| n.name)).finish()
    }
}

impl Entry {
    fn op(&self) -> Option<&Node> {
        match self {
            Entry::Op(node) => Some(node),
            Entry::EndOfUnit(_) => None,
        }
    }
}

impl Tape {
    /// The number of entries.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Records that the ops since the last call use the weights of `unit`.
    pub(super) fn end_weight_unit(&self, unit: WeightUnit) {
        self.0.borrow_mut().push(Entry::EndOfUnit(unit));
    }

    pub(super) fn push(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
        backward: impl FnOnce(&mut BackwardContext<'_>) -> Result<()> + 'static,
    ) {
        let parameters = inputs.iter().flat_map(|t| t.parameter_names()).collect();
        let outputs = outputs.iter().map(|t| t.id()).collect();
        let layer = current_origin().layer;
        let node = Node { name, layer, outputs, parameters, backward: Box::new(backward) };
        self.0.borrow_mut().push(Entry::Op(node));
    }

    /// Moves the recorded nodes to a new tape. This tape is empty afterwards.
    pub(super) fn take_nodes(&self) -> Tape {
        Tape(RefCell::new(self.0.take()))
    }

    /// The trained parameters that more than one recorded op uses.
    pub(super) fn parameters_of_several_ops(&self) -> BTreeSet<Arc<str>> {
        let mut seen = BTreeSet::new();
        let nodes = self.0.borrow();
        let parameters = nodes.iter().filter_map(Entry::op).flat_map(|node| node.parameters.iter());
        parameters.filter(|name| !seen.insert(Arc::clone(name))).cloned().collect()
    }

    /// Runs the backward pass from `output` with the gradient `dy`. Calls `observe` with the names of the parameters
    /// whose gradients are finished, and before the ops of each unit of weights, in the order of the pass. Returns the
    /// gradients of leaves that are not parameters.
    pub(super) fn backward<E: From<RuntimeError>>(
        self,
        output: &Tensor,
        dy: Tensor,
        grads: &mut Grads,
        observe: &mut impl FnMut(BackwardEvent, &mut Grads) -> std::result::Result<(), E>,
    ) -> std::result::Result<LeafGrads, E> {
        let device = output.device().clone();
        let mut by_id = HashMap::from([(output.id(), dy)]);
        let mut sums = PendingColumnSums::default();
        // Each node is dropped after its rule ran. This frees the tensors that the rule kept.
        let mut nodes = self.0.into_inner();
        let mut uses_left = HashMap::<Arc<str>, usize>::new();
        for name in nodes.iter().filter_map(Entry::op).flat_map(|node| &node.parameters) {
            *uses_left.entry(name.clone()).or_default() += 1;
        }
        // Parameters that no further node uses. Only the pending column sums in `sums` may still add to their
        // gradients.
        let mut complete = Vec::new();
        // The layer of the current node. All consecutive nodes of a layer form one range in the profile.
        let mut layer = None;
        while let Some(entry) = nodes.pop() {
            let node = match entry {
                Entry::Op(node) => node,
                Entry::EndOfUnit(unit) => {
                    sums.launch(&device)?;
                    observe(BackwardEvent::Finished(std::mem::take(&mut complete)), grads)?;
                    observe(BackwardEvent::Begins(unit), grads)?;
                    continue;
                }
            };
            if sums.layer != node.layer {
                sums.launch(&device)?;
                sums.layer = node.layer;
                drop(layer.take());
                layer = node.layer.map(|layer| in_layer(layer.stack, layer.index));
                observe(BackwardEvent::Finished(std::mem::take(&mut complete)), grads)?;
            }
            let dys: Vec<Option<Tensor>> = node.outputs.iter().map(|id| by_id.remove(id)).collect();
            let mut of_recomputed = Vec::new();
            if dys.iter().any(Option::is_some) {
                // Ops that gradient checkpointing computes again set their own names.
                let op = if node.name == RECOMPUTE { "" } else { node.name };
                let _origin = with_origin(LaunchOrigin { op, is_backward: !op.is_empty(), layer: node.layer });
                let (by_id, sums, of_recomputed) = (&mut by_id, &mut sums, &mut of_recomputed);
                (node.backward)(&mut BackwardContext { device: &device, dys, by_id, grads, sums, of_recomputed })?;
            }
            for name in node.parameters {
                let uses = uses_left.entry(name.clone()).or_default();
                *uses -= 1;
                if *uses == 0 && !grads.has(&name) {
                    return Err(RuntimeError::NoGradient(name.to_string()).into());
                }
                complete.extend((*uses == 0).then_some(name));
            }
            complete.extend(of_recomputed.into_iter().filter(|name| uses_left.get(name).is_none_or(|uses| *uses == 0)));
        }
        sums.launch(&device)?;
        observe(BackwardEvent::Finished(complete), grads)?;
        Ok(LeafGrads(by_id))
    }
}

/// Gradients of the leaves of a tape, other than trained parameters.
pub(super) struct LeafGrads(HashMap<u64, Tensor>);

impl LeafGrads {
    pub(super) fn get(&self, leaf: &TensorMeta) -> Option<Tensor> {
        self.0.get(&leaf.id()).cloned()
    }
}

/// The argument of a backward rule: it has the gradients of the op's outputs and collects the gradients of its inputs.
pub struct BackwardContext<'a> {
    device: &'a Device,
    dys: Vec<Option<Tensor>>,
    by_id: &'a mut HashMap<u64, Tensor>,
    grads: &'a mut Grads,
    sums: &'a mut PendingColumnSums,
    /// The parameters whose gradients were finished by ops that the rule has computed again.
    of_recomputed: &'a mut Vec<Arc<str>>,
}

/// Column sums that the backward rules of a layer have requested. One launch will compute all of them.
#[derive(Default)]
struct PendingColumnSums {
    layer: Option<LayerId>,
    /// For each matrix: the matrix `[rows, cols]`, its sum `[cols]`, and whether to add to the old contents of the sum.
    /// All matrices have the same number of rows and the same dtype.
    matrices: Vec<(Tensor, Tensor, bool)>,
}

impl PendingColumnSums {
    /// Adds a matrix. If it cannot be in the same launch as the earlier matrices, launches them first.
    fn push(&mut self, device: &Device, x: Tensor, sum: Tensor, accumulate: bool) -> Result<()> {
        let shares_launch = self.matrices.iter().all(|(other, other_sum, _)| {
            other.shape()[0] == x.shape()[0] && other.dtype() == x.dtype() && other_sum.addr() != sum.addr()
        });
        if !shares_launch || self.matrices.len() == column_sum::Params::MAX_MATRICES {
            self.launch(device)?;
        }
        self.matrices.push((x, sum, accumulate));
        Ok(())
    }

    fn launch(&mut self, device: &Device) -> Result<()> {
        let Some((first, ..)) = self.matrices.first() else { return Ok(()) };
        let _origin = with_origin(LaunchOrigin { op: "linear", is_backward: true, layer: self.layer });
        let matrix = |(x, sum, accumulate): &(Tensor, Tensor, bool)| column_sum::SummedMatrix {
            x: x.addr(),
            sum: sum.addr(),
            cols: sum.count() as u32,
            accumulate: *accumulate,
        };
        let params =
            column_sum::Params::new(first.shape()[0] as u64, &self.matrices.iter().map(matrix).collect::<Vec<_>>());
        device.launch(&column_sum::column_sums(first.dtype(), &params))?;
        self.matrices.clear();
        Ok(())
    }
}

impl BackwardContext<'_> {
    /// The gradient of the op's output, in the dtype of the output.
    ///
    /// # Panics
    /// If it is called twice in one rule, or if the first of several outputs got no gradient.
    #[allow(clippy::expect_used)]
    pub fn take_dy(&mut self) -> Tensor {
        self.dys[0].take().expect("a backward rule must not call take_dy twice")
    }

    /// The gradients of both outputs of an op recorded by [`super::cx::Cx::record_pair`]; at least one is present.
    pub fn take_dy_pair(&mut self) -> (Option<Tensor>, Option<Tensor>) {
        let mut dys = std::mem::take(&mut self.dys).into_iter();
        (dys.next().flatten(), dys.next().flatten())
    }

    /// The device of the backward pass.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Executes a launch on the device.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        Ok(self.device.launch(launch)?)
    }

    /// Allocates a gradient with the shape and dtype of `x`, without initialising it.
    pub fn empty_like(&self, x: &TensorMeta) -> Result<Tensor> {
        Tensor::empty(self.device, x.shape(), x.dtype(), MemoryCategory::Activations)
    }

    /// Allocates an intermediate tensor of the backward pass, without initialising it.
    pub fn empty(&self, shape: &[usize], dtype: DType, category: MemoryCategory) -> Result<Tensor> {
        Tensor::empty(self.device, shape, dtype, category)
    }

    /// The gradients of all outputs of an op recorded by [`super::cx::Cx::record_all`]; at least one is present.
    pub fn take_dys(&mut self) -> Vec<Option<Tensor>> {
        std::mem::take(&mut self.dys)
    }

    /// The memory to which a matrix product writes a gradient of `x`, and whether the product must add to the
    /// contents. The memory is new, or holds the gradient that x has so far. Afterwards the rule passes the sum to
    /// [`BackwardContext::add_grad`]. This saves the launch that would add the product to the earlier gradient, and the
    /// rounding of that launch.
    pub fn grad_to_write(&mut self, x: &TensorMeta) -> Result<(Tensor, bool)> {
        match self.by_id.remove(&x.id()) {
            Some(sum) if !sum.is_shared() => return Ok((sum, true)),
            Some(sum) => self.by_id.insert(x.id(), sum),
            None => None,
        };
        Ok((self.empty_like(x)?, false))
    }

    /// Adds `grad` to the gradient of `x`. Does nothing if `x` needs no gradient. Gradients of parameters are f32.
    pub fn add_grad(&mut self, x: &TensorMeta, grad: Tensor) -> Result<()> {
        if !x.needs_grad() {
            return Ok(());
        }
        if x.is_trained() {
            let sum = self.grads.sum(self.device, x)?;
            return accumulate(self.device, &grad, &sum);
        }
        let Some(sum) = self.by_id.remove(&x.id()) else {
            self.by_id.insert(x.id(), grad);
            return Ok(());
        };
        // A rule may pass the same memory for two inputs. So a gradient is added in place only if no other tensor
        // shares its memory.
        let sum = if sum.is_shared() {
            let fresh = self.empty_like(&sum)?;
            let params =
                elementwise::AddParams { a: sum.addr(), b: grad.addr(), y: fresh.addr(), count: sum.count() as u64 };
            self.launch(&elementwise::add(sum.dtype(), &params))?;
            fresh
        } else {
            accumulate(self.device, &grad, &sum)?;
            sum
        };
        self.by_id.insert(x.id(), sum);
        Ok(())
    }

    /// The f32 buffer that collects the gradient of the parameter or joined parameters `x`; `None` if `x` is not
    /// trained.
    pub fn parameter_grad(&mut self, x: &TensorMeta) -> Result<Option<Tensor>> {
        if x.is_trained() { self.grads.sum(self.device, x).map(Some) } else { Ok(None) }
    }

    /// Like [`BackwardContext::parameter_grad`], for launches that write every element of the buffer. The boolean
    /// says whether they must add to the buffer's contents. The first gradient of a step replaces the contents, so
    /// they need not be set to zero.
    pub fn parameter_grad_to_write(&mut self, x: &TensorMeta) -> Result<Option<(Tensor, bool)>> {
        if !x.is_trained() {
            return Ok(None);
        }
        let (sum, is_first) = self.grads.buffer(self.device, x)?;
        Ok(Some((sum, !is_first)))
    }

    /// Like [`BackwardContext::parameter_grad_to_write`], for launches over `rows` rows. Launches over 0 rows write
    /// nothing. In this case the function sets the buffer to zero if this is its first use in the step.
    pub fn parameter_grad_over_rows(&mut self, x: &TensorMeta, rows: usize) -> Result<Option<(Tensor, bool)>> {
        match rows {
            0 => Ok(self.parameter_grad(x)?.map(|sum| (sum, true))),
            _ => self.parameter_grad_to_write(x),
        }
    }

    /// Like [`BackwardContext::parameter_grad_over_rows`], for a rule whose `parts` launches add to the buffer one
    /// after the other. After these launches, the rule calls [`BackwardContext::end_grad_parts`].
    pub fn parameter_grad_in_parts(
        &mut self,
        x: &TensorMeta,
        rows: usize,
        parts: usize,
    ) -> Result<Option<(Tensor, bool)>> {
        if parts > 1 {
            self.grads.pass.in_parts.extend(x.parameter_names());
        }
        self.parameter_grad_over_rows(x, rows)
    }

    /// Ends a series of launches for `x` that [`BackwardContext::parameter_grad_in_parts`] began.
    pub fn end_grad_parts(&mut self, x: &TensorMeta) -> Result<()> {
        self.grads.end_grad_parts(self.device, &x.parameter_names())
    }

    /// Adds the column sums of x `[rows, cols]` to the gradient of parameter `bias` `[cols]`, if it is trained. One
    /// launch after the backward rules of the layer computes the sums of several biases; x must not change before
    /// this launch.
    ///
    /// # Errors
    /// More columns than a kernel supports; a device error.
    pub fn add_column_sums(&mut self, bias: &TensorMeta, x: &Tensor, [rows, cols]: [usize; 2]) -> Result<()> {
        let Some((sum, adds)) = self.parameter_grad_to_write(bias)? else { return Ok(()) };
        if u32::try_from(cols).is_err() {
            return Err(shape_error("bias", format!("{cols} columns are more than a kernel supports (2^32 - 1)")));
        }
        self.sums.push(self.device, x.reshape(&[rows, cols])?, sum, adds)
    }

    /// Runs the backward pass over ops that the rule has computed again.
    pub(super) fn backward_recomputed(&mut self, tape: Tape, output: &Tensor, dy: Tensor) -> Result<LeafGrads> {
        tape.backward(output, dy, self.grads, &mut |event, _| {
            if let BackwardEvent::Finished(names) = event {
                self.of_recomputed.extend(names);
            }
            Ok(())
        })
    }
}

/// Adds `from` to `to`, elementwise.
fn accumulate(device: &Device, from: &Tensor, to: &Tensor) -> Result<()> {
    let params = elementwise::AccumulateParams { src: from.addr(), dst: to.addr(), count: from.count() as u64 };
    Ok(device.launch(&elementwise::accumulate(from.dtype(), to.dtype(), &params))?)
}

/// Gradients of parameters by name, in f32. The buffers stay allocated between steps. Joined parameters share one
/// buffer: the gradient of each parameter is a range of the buffer's rows.
#[derive(Debug, Default)]
pub struct Grads {
    buffers: BTreeMap<Arc<str>, Tensor>,
    /// Joined parameters and their buffer, keyed by the name of the first parameter of each.
    joined: BTreeMap<Arc<str>, (Arc<JoinedParameters>, Tensor)>,
    /// The parameters that got a gradient since the last [`Grads::clear`].
    reached: BTreeSet<Arc<str>>,
    pass: Pass,
}

/// The state of a backward pass that adds to the gradients of the step's earlier micro-batches.
///
/// A launch adds its result to the sum of the earlier passes. If several launches add to one parameter, their results
/// are first summed in a buffer of this pass. So the step's sum always consists of whole gradients, one per
/// micro-batch.
#[derive(Debug, Default)]
struct Pass {
    /// The parameters that had a gradient when the pass began.
    earlier: BTreeSet<Arc<str>>,
    /// The parameters to which several rules add, such as an embedding that is also the output layer.
    of_several_rules: BTreeSet<Arc<str>>,
    /// The parameters to which one rule adds in several launches.
    in_parts: BTreeSet<Arc<str>>,
    /// The gradient buffers of this pass, by the names of the parameters.
    buffers: BTreeMap<Arc<str>, Tensor>,
}

impl Pass {
    fn has_own_buffer(&self, name: &Arc<str>) -> bool {
        self.earlier.contains(name) && (self.of_several_rules.contains(name) || self.in_parts.contains(name))
    }
}

impl Grads {
    /// Creates an empty set of gradients.
    pub fn new() -> Grads {
        Grads::default()
    }

    /// Allocates the gradient buffers of these parameters now, so no training step allocates any.
    pub fn reserve<'a>(&mut self, parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
        for parameter in parameters {
            self.buffer(parameter.device(), parameter)?;
        }
        self.clear();
        Ok(())
    }

    /// Discards the gradients of the last step. The buffers stay allocated.
    pub fn clear(&mut self) {
        self.reached.clear();
    }

    /// Removes the gradient of a parameter, and frees its memory unless the caller has a tensor of it. Joined
    /// parameters share memory; it is freed when the last of these parameters is released.
    pub fn release(&mut self, name: &str) {
        self.buffers.remove(name);
        self.reached.remove(name);
        let buffers = &self.buffers;
        let has = |joined: &JoinedParameters| joined.parts.iter().any(|(part, _)| **part == *name);
        let is_left = |joined: &JoinedParameters| joined.parts.iter().any(|(part, _)| buffers.contains_key(part));
        self.joined.retain(|_, entry| !has(&entry.0) || is_left(&entry.0));
    }

    /// The gradient of a parameter; `None` if it got none in this step.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.reached.contains(name).then(|| self.buffers.get(name)).flatten()
    }

    /// The parameters that got a gradient in this step, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.buffers.iter().filter(|(k, _)| self.reached.contains(*k)).map(|(k, t)| (&**k, t))
    }

    fn has(&self, name: &str) -> bool {
        self.reached.contains(name)
    }

    /// Begins a backward pass. Several ops of the pass use the parameters `of_several_rules`.
    pub(super) fn begin_pass(&mut self, of_several_rules: BTreeSet<Arc<str>>) {
        self.pass = Pass { earlier: self.reached.clone(), of_several_rules, ..Pass::default() };
    }

    /// Ends the backward pass: adds the buffers of this pass to the sums of the earlier passes.
    pub(super) fn end_pass(&mut self, device: &Device) -> Result<()> {
        let pass = std::mem::take(&mut self.pass);
        pass.buffers.iter().try_for_each(|(name, buffer)| accumulate(device, buffer, &self.buffers[name]))
    }

    /// Ends a series of launches of one rule that add to the gradients of `names`. The buffer of a parameter stays if
    /// another rule adds to it.
    fn end_grad_parts(&mut self, device: &Device, names: &[Arc<str>]) -> Result<()> {
        for name in names.iter().filter(|name| self.pass.in_parts.remove(*name)) {
            if !self.pass.of_several_rules.contains(name)
                && let Some(buffer) = self.pass.buffers.remove(name)
            {
                accumulate(device, &buffer, &self.buffers[name])?;
            }
        }
        Ok(())
    }

    /// The buffer that sums the gradients of the parameter. The buffer starts at zero in every step.
    fn sum(&mut self, device: &Device, parameter: &TensorMeta) -> Result<Tensor> {
        let (sum, is_first) = self.buffer(device, parameter)?;
        if is_first {
            fill_zero(&sum)?;
        }
        Ok(sum)
    }

    /// The buffer of the parameter's gradient, and whether this is its first use in this step. Before its first use the
    /// buffer holds the gradient of an earlier step.
    fn buffer(&mut self, device: &Device, parameter: &TensorMeta) -> Result<(Tensor, bool)> {
        let f32_like = |shape: &[usize]| Tensor::empty(device, shape, DType::F32, MemoryCategory::Gradients);
        if let GradRole::Part { joined, .. } | GradRole::Joined(joined) = &parameter.grad {
            self.reserve_joined(joined, f32_like)?;
        }
        let names = parameter.parameter_names();
        let is_first: Vec<bool> = names.iter().map(|name| self.reached.insert(name.clone())).collect();
        match (&parameter.grad, &names[..]) {
            (GradRole::Joined(_), [first, ..]) => {
                let whole = self.joined[first].1.clone();
                let all = is_first.iter().all(|first| *first);
                // If only some of the joined parameters have had a gradient in this step, the gradients of the
                // remaining parameters must start at zero.
                for (name, _) in names.iter().zip(is_first).filter(|(_, is_first)| *is_first && !all) {
                    fill_zero(&self.buffers[name])?;
                }
                Ok((whole, all))
            }
            (_, [name, ..]) if self.pass.has_own_buffer(name) => {
                if let Some(buffer) = self.pass.buffers.get(name) {
                    return Ok((buffer.clone(), false));
                }
                let buffer = f32_like(parameter.shape())?;
                self.pass.buffers.insert(name.clone(), buffer.clone());
                Ok((buffer, true))
            }
            (_, [name, ..]) => {
                let sum = match self.buffers.get(name) {
                    Some(sum) => sum.clone(),
                    None => self.buffers.entry(name.clone()).or_insert(f32_like(parameter.shape())?).clone(),
                };
                Ok((sum, is_first[0]))
            }
            (_, []) => Err(shape_error("gradient", "asked for the gradient buffer of a tensor that is not trained")),
        }
    }

    /// Allocates the buffer of joined parameters with `empty`, unless it exists.
    fn reserve_joined(
        &mut self,
        joined: &Arc<JoinedParameters>,
        empty: impl Fn(&[usize]) -> Result<Tensor>,
    ) -> Result<()> {
        let Some((first, _)) = joined.parts.first() else { return Ok(()) };
        if self.joined.contains_key(first) {
            return Ok(());
        }
        let whole = empty(&joined.shape)?;
        let mut start = 0;
        for (name, rows) in &joined.parts {
            self.buffers.insert(name.clone(), whole.rows(start, *rows)?);
            start += rows;
        }
        self.joined.insert(first.clone(), (joined.clone(), whole));
        Ok(())
    }
}

/// Fills a tensor of any dtype with zeros.
pub fn fill_zero(t: &Tensor) -> Result<()> {
    let fill = |at: &Tensor, dtype: DType, count: usize| {
        let params = elementwise::FillParams { dst: at.addr(), count: count as u64, value: 0.0, reserved: 0 };
        Ok(at.device().launch(&elementwise::fill(dtype, &params))?)
    };
    match t.dtype() {
        dtype @ (DType::F32 | DType::BF16) => fill(t, dtype, t.count()),
        DType::I32 => fill(t, DType::F32, t.count()),
        DType::U16 => fill(t, DType::BF16, t.count()),
        DType::U8 | DType::I8 => {
            // There is no fill kernel for bytes. So the bytes are filled as f32 elements, and the last few bytes are
            // copied from the host.
            let (flat, words) = (t.reshape(&[t.count()])?, t.count() / 4);
            fill(&flat, DType::F32, words)?;
            let rest = t.count() - 4 * words;
            if rest == 0 { Ok(()) } else { flat.rows(4 * words, rest)?.write(&vec![0u8; rest]) }
        }
    }
}
