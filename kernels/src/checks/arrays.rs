//! The host arrays of checks: their addresses, lengths and contents, which launches refer to by address.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use reel_device::Addr;
use reel_device::launch::{AddressTable, KernelLaunch};
use reel_sim::memory::SimMemory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckArray {
    /// Host address of the first byte.
    pub at: u64,
    /// Length in bytes.
    pub bytes: usize,
    /// Name of the element type, for example `f32`.
    pub element: &'static str,
    /// Whether the array's contents are defined, so that a kernel may read them: true for inputs and for results of
    /// earlier launches.
    pub written: bool,
}

thread_local! {
    /// The arrays whose addresses checks on this thread have taken, keyed by address.
    static ARRAYS: RefCell<BTreeMap<u64, CheckArray>> = const { RefCell::new(BTreeMap::new()) };
}

/// Registers an array. Forgets registered arrays whose addresses overlap it, because they no longer exist.
pub fn register_array<T>(x: &[T], written: bool) -> Addr {
    let (at, bytes) = (x.as_ptr() as u64, size_of_val(x));
    ARRAYS.with_borrow_mut(|arrays| {
        let end = at + bytes.max(1) as u64;
        let stale: Vec<u64> =
            arrays.range(..end).filter(|(start, a)| **start + a.bytes as u64 > at).map(|a| *a.0).collect();
        arrays.retain(|at, _| !stale.contains(at));
        arrays.insert(at, CheckArray { at, bytes, element: std::any::type_name::<T>(), written });
    });
    Addr(at)
}

/// Registers a slice that no kernel writes and returns its address. Arrays that a kernel writes are registered by
/// [`addr_mut`] or [`super::TestArray::addr`].
pub fn addr<T>(x: &[T]) -> Addr {
    register_array(x, true)
}

/// Registers a slice that a kernel writes and returns its address.
pub fn addr_mut<T>(x: &mut [T]) -> Addr {
    let at = register_array(x, true);
    debug_assert_eq!(at.0, x.as_mut_ptr() as u64);
    at
}

/// An address in a launch's parameters, or in a table that they point to, that points into a registered array.
pub struct ArrayOperand {
    /// Byte offset of the address among the launch's parameters, or in the table.
    pub offset: usize,
    pub array: CheckArray,
    /// Byte offset in the array of the element that the address points to.
    pub array_offset: usize,
}

impl ArrayOperand {
    /// Returns the operand whose address is stored at `offset`, or `None` if the address is null or in no registered
    /// array.
    fn new(offset: usize, address: Addr) -> Option<ArrayOperand> {
        ARRAYS.with_borrow(|arrays| {
            let (_, array) = arrays.range(..=address.0).next_back()?;
            let inside = address.0 < array.at + array.bytes as u64 || array.bytes == 0;
            let array_offset = (address.0 - array.at) as usize;
            (!address.is_null() && inside).then_some(ArrayOperand { offset, array: *array, array_offset })
        })
    }
}

/// Returns the registered array behind each non-null address in a launch's parameters.
pub fn parameter_operands(launch: &KernelLaunch) -> Vec<ArrayOperand> {
    let address = |offset: usize| bytemuck::pod_read_unaligned(&launch.params[offset..offset + 8]);
    let fields = launch.kernel.fields.iter().filter(|f| f.address);
    fields.filter_map(|f| ArrayOperand::new(f.offset, address(f.offset))).collect()
}

/// Returns the registered array behind each non-null address in a table.
pub fn table_operands(table: &AddressTable) -> Vec<ArrayOperand> {
    table.addresses().filter_map(|(offset, address)| ArrayOperand::new(offset, address)).collect()
}

/// Returns the arrays that a launch's parameters and tables point to, without repetition.
pub fn arrays_of_launch(launch: &KernelLaunch) -> Vec<CheckArray> {
    let mut found: Vec<CheckArray> = Vec::new();
    let nested = launch.tables.iter().flat_map(|(_, table)| table_operands(table));
    for ArrayOperand { array, .. } in parameter_operands(launch).into_iter().chain(nested) {
        if !found.contains(&array) {
            found.push(array);
        }
    }
    found
}

impl CheckArray {
    /// Returns the current bytes of the array.
    pub fn read(&self) -> Vec<u8> {
        // SAFETY: the check on this thread holds the arrays whose addresses it put into the parameters.
        unsafe { std::slice::from_raw_parts(self.at as *const u8, self.bytes) }.to_vec()
    }

    /// Writes a kernel's result to the host array. An unchanged input is not written, because it may be a constant in
    /// read-only memory.
    pub fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes);
        if self.read() != bytes {
            // SAFETY: the check on this thread holds the array; kernels may write the arrays that they are given.
            let place = unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, self.bytes) };
            place.copy_from_slice(bytes);
        }
    }
}

/// Returns simulator memory that has these arrays at their host addresses.
pub fn simulator_memory(arrays: &[CheckArray]) -> SimMemory {
    let mut memory = SimMemory::new();
    for array in arrays {
        memory.map_buffer(array.at, array.read(), array.written);
    }
    memory
}
