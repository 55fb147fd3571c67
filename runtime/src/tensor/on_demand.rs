//! Memory of tensors that exists only while it is needed. With ZeRO-3, the weights of a model have such memory: a
//! rank gathers the weights of a layer from all ranks before the layer and frees their memory after it. The tensors,
//! their names and the ops that hold them remain.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reel_device::{Buffer, DType, Device};

use super::meta::GradRole;
use super::{Memory, Tensor};

/// The memory of one tensor, or of several tensors that share it. Clones are handles of the same memory.
#[derive(Clone, Debug)]
pub struct OnDemandMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: Device,
    bytes: usize,
    /// The tensor that provides the memory; `None` while there is no memory.
    source: Mutex<Option<Tensor>>,
}

impl OnDemandMemory {
    fn source(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.0.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether `other` is a handle of the same memory.
    pub fn shares_memory_with(&self, other: &OnDemandMemory) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes the memory of `source`, a tensor of this size on the same device, until [`Self::release`].
    ///
    /// # Panics
    /// `source` has another size, or has itself memory on demand.
    pub fn provide(&self, source: Tensor) {
        assert!(source.bytes() == self.0.bytes && source.on_demand_memory().is_none(), "{source:?} for {self:?}");
        *self.source() = Some(source);
    }

    /// Releases the memory. Launches that use the memory must have been enqueued before.
    pub fn release(&self) {
        *self.source() = None;
    }

    pub(super) fn device(&self) -> &Device {
        &self.0.device
    }

    /// The buffer in which the memory lies, and the offset of its first byte.
    ///
    /// # Panics
    /// There is no memory: an op uses a weight outside of the weight's unit.
    pub(super) fn buffer_and_offset(&self) -> (Arc<Buffer>, usize) {
        match &*self.source() {
            Some(source) => source.buffer_and_offset(),
            None => panic!("a weight of {} bytes is used while its memory is not gathered", self.0.bytes),
        }
    }
}

impl Tensor {
    /// Creates a tensor without memory. Its elements may be used between [`OnDemandMemory::provide`] and
    /// [`OnDemandMemory::release`] of [`Tensor::on_demand_memory`].
    pub fn on_demand(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let inner = Inner { device: device.clone(), bytes, source: Mutex::default() };
        Tensor::build(shape, dtype, Memory::OnDemand(OnDemandMemory(Arc::new(inner))), 0, GradRole::None)
    }

    /// The on-demand memory of a tensor that was created by [`Tensor::on_demand`], or of a tensor that shares such
    /// memory. `None` for any other tensor.
    pub fn on_demand_memory(&self) -> Option<&OnDemandMemory> {
        match &self.0.memory {
            Memory::OnDemand(memory) => Some(memory),
            Memory::Buffer(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use reel_device::MemoryCategory;

    use super::*;

    #[test]
    fn tensors_keep_name_and_shape_while_their_memory_comes_and_goes() {
        let device = Device::cpu(1);
        let (joined, [a, b]) =
            Tensor::on_demand(&device, &[3, 2], DType::F32).into_joined_parameters([("a", 1), ("b", 2)]).unwrap();
        assert_eq!((device.memory().current, b.shape(), b.parameter_name()), (0, &[2, 2][..], Some("b")));
        let memory = joined.on_demand_memory().unwrap().clone();
        assert!(a.on_demand_memory().unwrap().shares_memory_with(&memory) && memory.bytes() == 24);
        for first in [1.0, 10.0] {
            let values: Vec<f32> = (0..8).map(|i| first + i as f32).collect();
            let source = Tensor::from_f32(&device, &[8], DType::F32, &values, MemoryCategory::Weights).unwrap();
            memory.provide(source.rows(1, 6).unwrap());
            drop(source);
            assert_eq!(a.to_f32().unwrap(), values[1..3]);
            assert_eq!(b.rows(1, 1).unwrap().to_f32().unwrap(), values[5..7]);
            b.write_f32(&[0.0; 4]).unwrap();
            assert_eq!(joined.to_f32().unwrap(), [values[1], values[2], 0.0, 0.0, 0.0, 0.0]);
            memory.release();
            assert_eq!(device.memory().current, 0);
        }
    }
}
