//! Allocates the buffers that the arguments describe, and lays out the parameter bytes of a launch.

use std::collections::BTreeMap;
use std::path::Path;

use crate::check::NamedBuffer;
use crate::memory::SimMemory;
use crate::program::{Kernel, Program};
use crate::tensor_map::TensorMap;
use crate::value::ElementType;
use anyhow::Result;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::KernelCheck;
use super::argument::{BufferFill, BufferIndex, BufferSpec, KernelArgument, NamedArgument, TensorMapArgument};
use super::error::failed;
use super::file;
use super::parameters::{is_from_triton, kernel_parameters};
use super::wording::Wording;

/// The buffers and parameters of a launch.
#[derive(Debug, Default)]
pub struct BoundArguments {
    /// The simulated memory with all buffers.
    pub memory: SimMemory,
    /// The kernel's parameters, as bytes in the kernel's layout.
    pub params: Vec<u8>,
    /// The buffers with their names: `arg0`, or `arg0.1` for a field of a struct.
    pub buffers: Vec<NamedBuffer>,
    /// The addresses of the buffers.
    addresses: BTreeMap<BufferIndex, u64>,
}

/// Alignment of a tensor map in bytes; other struct fields need at most this alignment.
const MAP_ALIGN: usize = 64;

/// Allocates the buffers of all arguments, then lays out the kernel's parameters. There may be more arguments than
/// parameters: a kernel may take only the tensor map of a buffer and not the buffer's pointer; such buffers, and those
/// into which several arguments point, must be the last arguments. All buffers together may have at most the bytes of
/// the limits.
pub fn bind_arguments(program: &Program, kernel: &Kernel, check: &KernelCheck) -> Result<BoundArguments> {
    let KernelCheck { arguments, seed, wording, limits, .. } = check;
    let parameters = kernel_parameters(program, kernel);
    let taken = kernel.params.len();
    let beyond = arguments.iter().enumerate().skip(taken);
    let is_used = |n: usize| arguments.iter().any(|other| other.argument.refers_to(n));
    // A program passes the buffers, into which its arguments point, after the arguments.
    let is_apart = |(n, a): &(usize, &NamedArgument)| matches!(a.argument, KernelArgument::Buffer(_)) && is_used(*n);
    let apart = match wording {
        Wording::CommandLine => 0,
        Wording::Program => arguments.iter().enumerate().rev().take_while(is_apart).count(),
    };
    let given = arguments.len() - apart;
    if given < taken || !beyond.clone().all(|(n, a)| matches!(a.argument, KernelArgument::Buffer(_)) && is_used(n)) {
        let sizes: Vec<String> = kernel.params.iter().map(|p| p.1.to_string()).collect();
        let what = format!(
            "got {given} arguments, but kernel {} has {taken} parameters (sizes in bytes: {})",
            kernel.name,
            sizes.join(", ")
        );
        let of_triton = match given < taken && is_from_triton(program) {
            true => {
                "the last two pointers of a Triton kernel are its global and its profile scratch buffer, such as \
                     --arg buf:u8:4096:zeros (global_scratch_size in Triton's metadata has the bytes per block)"
            }
            false => "more arguments must be buffers of tensor maps",
        };
        let help = match wording {
            Wording::CommandLine => format!("give one --arg per parameter, in order; {of_triton}"),
            Wording::Program => "give one argument per parameter, in order".to_string(),
        };
        return Err(failed(wording.option("arg"), what, help));
    }
    let typed = arguments.iter().zip(&parameters).map(|(argument, parameter)| parameter.typed(argument));
    let typed = typed.collect::<Result<Vec<KernelArgument>>>()?;
    let bytes: u64 = arguments.iter().map(|a| a.argument.buffer_bytes()).sum();
    let max_bytes = limits.memory_bytes;
    if bytes > max_bytes {
        let what = format!("the buffers have {bytes} bytes, but the limit is {} MiB", max_bytes >> 20);
        let help = format!("use smaller buffers, or raise {}", wording.option("max-memory"));
        return Err(failed(wording.option("arg"), what, help));
    }
    let params = vec![0; kernel.param_bytes as usize];
    let mut bound = BoundArguments { params, ..BoundArguments::default() };
    for (n, NamedArgument { name, argument, .. }) in arguments.iter().enumerate() {
        match argument {
            KernelArgument::Buffer(spec) => {
                bound.add_buffer(BufferIndex { argument: n, field: None }, name.clone(), spec, *seed)?
            }
            KernelArgument::Struct(fields) => {
                for (m, field) in fields.iter().enumerate() {
                    if let KernelArgument::Buffer(spec) = field {
                        let index = BufferIndex { argument: n, field: Some(m) };
                        bound.add_buffer(index, format!("{name}.{m}"), spec, *seed)?;
                    }
                }
            }
            _ => {}
        }
    }
    let places = typed.iter().zip(arguments).zip(kernel.params.iter().zip(&parameters));
    for (n, ((argument, given), (&(offset, size), parameter))) in places.enumerate() {
        let index = BufferIndex { argument: n, field: None };
        let mut bytes = bound.bytes_of(&given.location, index, argument)?;
        if let (KernelArgument::TensorMap(_), 8) = (argument, size) {
            bytes = bound.memory.alloc(bytes).to_le_bytes().to_vec();
        }
        if bytes.len() != size as usize {
            return Err(parameter.wrong_size_error(given, bytes.len()));
        }
        bound.params[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(bound)
}

impl BoundArguments {
    fn add_buffer(&mut self, index: BufferIndex, name: String, spec: &BufferSpec, seed: u64) -> Result<()> {
        let n = self.buffers.len() as u64;
        let bytes = spec.count * spec.dtype.bytes();
        let address = match &spec.fill {
            BufferFill::Uninitialized => self.memory.alloc_uninitialized(bytes),
            BufferFill::Zeros => self.memory.alloc(vec![0; bytes]),
            BufferFill::Constant(element) => self.memory.alloc(element.repeat(spec.count)),
            BufferFill::Arange => self.memory.alloc(spec.dtype.arange_bytes(spec.count)),
            // The seed includes the buffer's number, so that each buffer gets different random numbers.
            BufferFill::Random => self
                .memory
                .alloc(spec.dtype.normal_bytes(spec.count, seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(n))),
            BufferFill::Stored(file, tensor) => self.memory.alloc(stored(file, tensor, spec)?),
            BufferFill::Bytes(content) => self.memory.alloc(content.to_vec()),
        };
        self.addresses.insert(index, address);
        self.buffers.push(NamedBuffer { address, name, dtype: spec.dtype });
        Ok(())
    }

    /// Returns the parameter bytes of an argument or struct field: its value, or the address of its buffer.
    fn bytes_of(&self, location: &str, index: BufferIndex, argument: &KernelArgument) -> Result<Vec<u8>> {
        Ok(match argument {
            KernelArgument::Scalar(_, bytes) | KernelArgument::Array(_, bytes) | KernelArgument::Bytes(bytes) => {
                bytes.clone()
            }
            KernelArgument::Buffer(_) => self.addresses[&index].to_le_bytes().to_vec(),
            KernelArgument::Pointer(buffer, offset) => {
                (self.address(location, *buffer)? + offset).to_le_bytes().to_vec()
            }
            KernelArgument::Integer(_) | KernelArgument::Float(_) => {
                return Err(failed(location, "a number in a struct has no type", "give a number of a known type"));
            }
            KernelArgument::TensorMap(map) => self.encode(location, map)?,
            KernelArgument::Struct(fields) => {
                let (mut bytes, mut largest) = (Vec::new(), 1);
                for (m, field) in fields.iter().enumerate() {
                    let of = self.bytes_of(location, BufferIndex { field: Some(m), ..index }, field)?;
                    let align = match field {
                        KernelArgument::TensorMap(_) => MAP_ALIGN,
                        KernelArgument::Array(dtype, _) => dtype.bytes(),
                        KernelArgument::Bytes(_) => 1,
                        _ => of.len().max(1),
                    };
                    bytes.resize(bytes.len().next_multiple_of(align), 0);
                    bytes.extend(of);
                    largest = largest.max(align);
                }
                bytes.resize(bytes.len().next_multiple_of(largest), 0);
                bytes
            }
        })
    }

    /// Returns the address of a buffer to which an argument refers.
    fn address(&self, location: &str, buffer: BufferIndex) -> Result<u64> {
        let number = |BufferIndex { argument: n, field }: BufferIndex| match field {
            Some(m) => format!("{n}.{m}"),
            None => n.to_string(),
        };
        self.addresses.get(&buffer).copied().ok_or_else(|| {
            let known: Vec<String> = self.addresses.keys().copied().map(number).collect();
            let help = match known.is_empty() {
                true => "pass the buffer as its own argument".to_string(),
                false => format!("the buffers are {}", known.join(", ")),
            };
            failed(location, format!("argument {} is not a buffer", number(buffer)), help)
        })
    }

    fn encode(&self, location: &str, of: &TensorMapArgument) -> Result<Vec<u8>> {
        let start = self.address(location, of.buffer)?;
        let refused = |e| {
            failed(location, e, "correct the tensor map; the CUDA driver (cuTensorMapEncodeTiled) would reject it too")
        };
        let address = start + of.offset;
        let map = TensorMap::tiled(of.data_type, address, &of.dims, &of.strides, &of.box_dims, of.swizzle);
        let map = map.map_err(refused)?;
        let blob = map.encode().map_err(refused)?;
        // The last byte of the tensor must be in the buffer.
        let rows = of.dims.iter().skip(1).zip(&of.strides).map(|(dim, stride)| (dim - 1).saturating_mul(*stride));
        let row = of.dims[0].saturating_mul(u64::from(of.data_type.bytes()));
        let needed = rows.fold(of.offset + row, u64::saturating_add);
        let has = self.memory.buffer_bytes(start).map_or(0, <[u8]>::len) as u64;
        if needed > has {
            let what = format!("the tensor map covers {needed} bytes, but its buffer has {has}");
            return Err(failed(location, what, "make the buffer larger, or correct the dimensions and strides"));
        }
        Ok(blob.to_vec())
    }

    /// Writes the contents that the buffers have in `memory` to a safetensors file.
    pub fn write_buffers(&self, to: &Path, memory: &SimMemory) -> Result<()> {
        let view = |b: &NamedBuffer| -> Result<(String, TensorView), SafeTensorError> {
            let bytes = memory.buffer_bytes(b.address).unwrap_or_default();
            let shape = vec![bytes.len() / b.dtype.bytes()];
            Ok((b.name.clone(), TensorView::new(stored_dtype(b.dtype), shape, bytes)?))
        };
        let views = self.buffers.iter().map(view).collect::<Result<Vec<_>, _>>()?;
        // Readers of PyTorch ask for this entry.
        let metadata = [("format".to_string(), "pt".to_string())].into();
        file::write_file(to, &safetensors::serialize(views, Some(metadata))?)
    }
}

/// Returns the type of elements in safetensors files.
fn stored_dtype(dtype: ElementType) -> Dtype {
    match dtype {
        ElementType::U8 => Dtype::U8,
        ElementType::I8 => Dtype::I8,
        ElementType::U16 => Dtype::U16,
        ElementType::I16 => Dtype::I16,
        ElementType::U32 => Dtype::U32,
        ElementType::I32 => Dtype::I32,
        ElementType::U64 => Dtype::U64,
        ElementType::I64 => Dtype::I64,
        ElementType::F16 => Dtype::F16,
        ElementType::Bf16 => Dtype::BF16,
        ElementType::F32 => Dtype::F32,
        ElementType::F64 => Dtype::F64,
        ElementType::E4m3 => Dtype::F8_E4M3,
    }
}

/// Reads a tensor of a safetensors file as the contents of a buffer. The tensor's type may differ from the buffer's
/// type, but must have the same width.
fn stored(path: &Path, tensor: &str, spec: &BufferSpec) -> Result<Vec<u8>> {
    let bytes = file::read_file(path)?;
    let all = SafeTensors::deserialize(&bytes)
        .map_err(|e| failed(path.display(), format!("is not a safetensors file ({e})"), "copy or write it again"))?;
    let location = format!("{}#{tensor}", path.display());
    let Ok(view) = all.tensor(tensor) else {
        let names = all.names();
        let some = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 8 { ", …" } else { "" };
        return Err(failed(location, "there is no such tensor", format!("the file has {some}{more}")));
    };
    if width(view.dtype()) != Some(spec.dtype.bytes()) {
        let what = format!(
            "has elements of type {:?}, whose width differs from that of the buffer's type {}",
            view.dtype(),
            spec.dtype.name()
        );
        return Err(failed(location, what, "give the buffer a type as wide as the stored elements"));
    }
    let stored = view.data().len() / spec.dtype.bytes();
    if stored != spec.count {
        let help = format!("write buf:{}:{stored}:…", spec.dtype.name());
        return Err(failed(
            location,
            format!("has {stored} elements, but the buffer is declared with {}", spec.count),
            help,
        ));
    }
    Ok(view.data().to_vec())
}

/// Returns the bytes per element of a type; `None` for types of less than a byte, such as 4-bit floats.
fn width(dtype: Dtype) -> Option<usize> {
    Some(dtype.bitsize()).filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::FindingKind;
    use crate::kernel_check::Source;

    /// Stores 1 to the buffer `p` if its address is not null, then loads a word through `q`.
    const LOAD_THROUGH_Q: &str = "
        .version 8.0 .target sm_80 .address_size 64
        .visible .entry k(.param .u64 p, .param .u64 q) {
            .reg .b64 %rd<3>; .reg .b32 %r<3>; .reg .pred %is_null;
            ld.param.u64 %rd1, [p]; ld.param.u64 %rd2, [q]; mov.u32 %r1, 1;
            setp.eq.u64 %is_null, %rd1, 0;
            @!%is_null st.global.u32 [%rd1], %r1;
            ld.global.u32 %r2, [%rd2];
            st.global.u32 [%rd1+4], %r2;
            ret;
        }";

    #[test]
    fn no_buffer_is_at_the_null_pointer() {
        let source = Source::Text { name: "k.ptx".into(), text: LOAD_THROUGH_Q.into() };
        let p = NamedArgument::bytes("p", vec![0; 8]);
        let q = NamedArgument::new("q", KernelArgument::Integer(0));
        let check = KernelCheck { arguments: vec![p, q], ..KernelCheck::new(source) };
        let prepared = check.prepare().unwrap();
        let report = prepared.check().unwrap();
        let kinds: Vec<_> = report.findings().map(|f| f.kind).collect();
        assert_eq!(kinds, [FindingKind::OutOfBounds]);
        assert_eq!(report.buffer("p").unwrap()[..4], [1, 0, 0, 0]);
    }
}
