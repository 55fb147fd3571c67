//! The arguments of a kernel: numbers, buffers, structs and tensor maps.

use std::path::PathBuf;
use std::sync::Arc;

use crate::tensor_map::{DataType, Swizzle};
use crate::value::ElementType;

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelArgument {
    /// A number: its type and bytes.
    Scalar(ElementType, Vec<u8>),
    /// An integer that takes the type of its parameter.
    Integer(i128),
    /// A floating-point number that takes the type of its parameter.
    Float(f64),
    /// A pointer to a new buffer.
    Buffer(BufferSpec),
    /// A pointer into the buffer of another argument.
    Pointer(BufferIndex, u64),
    /// An array of numbers as a struct field: the element type, and the bytes of all elements.
    Array(ElementType, Vec<u8>),
    /// Raw bytes: a struct passed by value, or padding between struct fields.
    Bytes(Vec<u8>),
    /// A struct passed by value, given as its fields; the layout is that of C.
    Struct(Vec<KernelArgument>),
    /// A tensor map (TMA descriptor). If the kernel's parameter is a pointer, the map is put into memory and its
    /// address passed.
    TensorMap(TensorMapArgument),
}

/// An argument, and how messages name it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedArgument {
    /// How findings name the argument's buffer: `arg0`.
    pub name: String,
    /// How errors name the argument: `--arg i32:5`.
    pub location: String,
    /// What the user wrote on the command line, so that errors can say what to write; `None` if the argument is a value
    /// of a program.
    pub text: Option<String>,
    /// The argument.
    pub argument: KernelArgument,
}

impl NamedArgument {
    /// Makes an argument that errors and findings call `name`.
    pub fn new(name: &str, argument: KernelArgument) -> NamedArgument {
        NamedArgument { name: name.into(), location: name.into(), text: None, argument }
    }

    /// Makes a pointer to a buffer with these bytes.
    pub fn bytes(name: &str, bytes: Vec<u8>) -> NamedArgument {
        let (dtype, count, fill) = (ElementType::U8, bytes.len(), BufferFill::Bytes(bytes.into()));
        NamedArgument::new(name, KernelArgument::Buffer(BufferSpec { dtype, count, fill }))
    }
}

/// A buffer to allocate.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferSpec {
    /// The type of the elements.
    pub dtype: ElementType,
    /// The number of elements.
    pub count: usize,
    /// The initial contents.
    pub fill: BufferFill,
}

/// The initial contents of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum BufferFill {
    /// All bytes are 0.
    Zeros,
    /// Uninitialised memory. A kernel that reads it causes a finding.
    Uninitialized,
    /// Consecutive integers: 0, 1, 2, …
    Arange,
    /// Normally distributed numbers.
    Random,
    /// The same value in all elements, given as the bytes of one element.
    Constant(Vec<u8>),
    /// The elements of a tensor in a safetensors file: the path of the file and the name of the tensor.
    Stored(PathBuf, String),
    /// These bytes.
    Bytes(Arc<[u8]>),
}

impl KernelArgument {
    /// Returns true if this argument is a tensor map over the buffer of argument number `argument` or a pointer into
    /// it, or a struct that contains one.
    pub fn refers_to(&self, argument: usize) -> bool {
        match self {
            KernelArgument::TensorMap(map) => map.buffer.argument == argument,
            KernelArgument::Pointer(buffer, _) => buffer.argument == argument,
            KernelArgument::Struct(fields) => fields.iter().any(|field| field.refers_to(argument)),
            _ => false,
        }
    }

    /// Returns the total bytes of the buffers in this argument.
    pub fn buffer_bytes(&self) -> u64 {
        match self {
            KernelArgument::Buffer(spec) => spec.count as u64 * spec.dtype.bytes() as u64,
            KernelArgument::Struct(fields) => fields.iter().map(KernelArgument::buffer_bytes).sum(),
            _ => 0,
        }
    }
}

/// The location of a buffer among the kernel arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BufferIndex {
    /// Index of the argument, from 0.
    pub argument: usize,
    /// If the argument is a struct: the index of the field that holds the buffer.
    pub field: Option<usize>,
}

/// A tensor map (TMA descriptor), as described by `tmap:…` on the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMapArgument {
    /// The buffer that holds the tensor.
    pub buffer: BufferIndex,
    /// Bytes from the beginning of the buffer to the tensor's first element.
    pub offset: u64,
    /// The type of the elements.
    pub data_type: DataType,
    /// Extents of the tensor in elements, innermost first.
    pub dims: Vec<u64>,
    /// Strides of the tensor in bytes, for dimension 1 and up; the elements of dimension 0 are contiguous.
    pub strides: Vec<u64>,
    /// Extents in elements of the box that one copy moves, innermost first.
    pub box_dims: Vec<u32>,
    /// The swizzle mode of the box in shared memory.
    pub swizzle: Swizzle,
}
