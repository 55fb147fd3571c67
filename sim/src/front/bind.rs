//! Allocates the buffers that the arguments describe, and lays out the parameter bytes of a launch.

use std::path::Path;

use crate::check::NamedBuffer;
use crate::memory::SimMemory;
use crate::program::Kernel;
use crate::tensor_map::TensorMap;
use crate::value::ElementType;
use anyhow::Result;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::args::{BufferFill, BufferIndex, BufferSpec, KernelArgument, TensorMapArgument};
use super::error::{failed, usage_error};
use super::output;
use super::parameters::KernelParameter;

/// The buffers and parameters of a launch.
#[derive(Debug, Default)]
pub struct BoundArguments {
    /// The simulated memory with all buffers.
    pub memory: SimMemory,
    /// The kernel's parameters, as bytes in the kernel's layout.
    pub params: Vec<u8>,
    /// The buffers with their names: `arg0`, or `arg0.1` for a field of a struct.
    pub buffers: Vec<NamedBuffer>,
}

/// Alignment of a tensor map in bytes; other struct fields need at most this alignment.
const MAP_ALIGN: usize = 64;

/// Allocates the buffers of all arguments, then lays out the kernel's parameters. There may be more arguments than
/// parameters: a kernel may take only the tensor map of a buffer and not the buffer's pointer; such buffers must be the
/// last arguments. All buffers together may have at most `max_bytes` bytes. `from_triton` tells whether Triton made the
/// kernel.
pub fn bind_arguments(
    kernel: &Kernel,
    from_triton: bool,
    parameters: &[KernelParameter],
    arguments: &[(String, KernelArgument)],
    seed: u64,
    max_bytes: u64,
) -> Result<BoundArguments> {
    let (given, taken) = (arguments.len(), kernel.params.len());
    let beyond = arguments.iter().enumerate().skip(taken);
    let mapped = |n: usize| arguments.iter().any(|(_, argument)| argument.has_tensor_map_of(n));
    if given < taken || !beyond.clone().all(|(n, (_, a))| matches!(a, KernelArgument::Buffer(_)) && mapped(n)) {
        let sizes: Vec<String> = kernel.params.iter().map(|p| p.1.to_string()).collect();
        let what = format!(
            "got {given} arguments, but kernel {} has {taken} parameters (sizes in bytes: {})",
            kernel.name,
            sizes.join(", ")
        );
        let of_triton = match given < taken && from_triton {
            true => {
                "the last two pointers of a Triton kernel are its global and its profile scratch buffer, such as \
                     --arg buf:u8:4096:zeros (global_scratch_size in Triton's metadata has the bytes per block)"
            }
            false => "more arguments must be buffers of tensor maps",
        };
        return Err(usage_error("--arg", what, format!("give one --arg per parameter, in order; {of_triton}")));
    }
    for ((text, argument), parameter) in arguments.iter().zip(parameters) {
        parameter.check_kind(text, argument)?;
    }
    let bytes: u64 = arguments.iter().map(|(_, argument)| argument.buffer_bytes()).sum();
    if bytes > max_bytes {
        let what = format!("the buffers have {bytes} bytes, but the limit is {} MiB", max_bytes >> 20);
        return Err(usage_error("--arg", what, "use smaller buffers, or raise --max-memory"));
    }
    let mut bound =
        BoundArguments { memory: SimMemory::new(), params: vec![0; kernel.param_bytes as usize], buffers: Vec::new() };
    for (n, (_, argument)) in arguments.iter().enumerate() {
        match argument {
            KernelArgument::Buffer(spec) => bound.add_buffer(format!("arg{n}"), spec, seed)?,
            KernelArgument::Struct(fields) => {
                for (m, field) in fields.iter().enumerate() {
                    if let KernelArgument::Buffer(spec) = field {
                        bound.add_buffer(format!("arg{n}.{m}"), spec, seed)?;
                    }
                }
            }
            _ => {}
        }
    }
    let places = kernel.params.iter().zip(parameters);
    for (n, ((text, argument), (&(offset, size), parameter))) in arguments.iter().zip(places).enumerate() {
        let location = format!("--arg {text}");
        let mut bytes = bound.bytes_of(&location, &format!("arg{n}"), argument)?;
        if let (KernelArgument::TensorMap(_), 8) = (argument, size) {
            bytes = bound.memory.alloc(bytes).to_le_bytes().to_vec();
        }
        if bytes.len() != size as usize {
            return Err(parameter.wrong_size_error(text, bytes.len()));
        }
        bound.params[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(bound)
}

impl BoundArguments {
    fn add_buffer(&mut self, name: String, spec: &BufferSpec, seed: u64) -> Result<()> {
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
        };
        self.buffers.push(NamedBuffer { address, name, dtype: spec.dtype });
        Ok(())
    }

    fn address(&self, name: &str) -> Option<u64> {
        self.buffers.iter().find(|b| b.name == name).map(|b| b.address)
    }

    /// Returns the parameter bytes of an argument or struct field: its value, or the address of its buffer.
    fn bytes_of(&self, location: &str, name: &str, argument: &KernelArgument) -> Result<Vec<u8>> {
        Ok(match argument {
            KernelArgument::Scalar(_, bytes) | KernelArgument::Array(_, bytes) | KernelArgument::Bytes(bytes) => {
                bytes.clone()
            }
            KernelArgument::Buffer(_) => self.address(name).unwrap_or_default().to_le_bytes().to_vec(),
            KernelArgument::TensorMap(map) => self.encode(location, map)?,
            KernelArgument::Struct(fields) => {
                let (mut bytes, mut largest) = (Vec::new(), 1);
                for (m, field) in fields.iter().enumerate() {
                    let of = self.bytes_of(location, &format!("{name}.{m}"), field)?;
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

    fn encode(&self, location: &str, map: &TensorMapArgument) -> Result<Vec<u8>> {
        let BufferIndex { argument: n, field } = map.buffer;
        let name = field.map_or_else(|| format!("arg{n}"), |m| format!("arg{n}.{m}"));
        let Some(address) = self.address(&name) else {
            let named: Vec<&str> = self.buffers.iter().map(|b| b.name.trim_start_matches("arg")).collect();
            let help = match named.is_empty() {
                true => "pass the buffer as its own --arg".to_string(),
                false => format!("the buffers are {}", named.join(", ")),
            };
            return Err(usage_error(
                location,
                format!("argument {} is not a buffer", name.trim_start_matches("arg")),
                help,
            ));
        };
        let map = TensorMap::tiled(map.data_type, address, &map.dims, &map.strides, &map.box_dims, map.swizzle);
        let blob = map.and_then(|m| m.encode());
        Ok(blob
            .map_err(|e| {
                usage_error(
                    location,
                    e,
                    "correct the tensor map; the CUDA driver (cuTensorMapEncodeTiled) would reject it too",
                )
            })?
            .to_vec())
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
        output::write_file(to, &safetensors::serialize(views, Some(metadata))?)
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
fn stored(file: &Path, tensor: &str, spec: &BufferSpec) -> Result<Vec<u8>> {
    let bytes = output::read_file(file)?;
    let all = SafeTensors::deserialize(&bytes)
        .map_err(|e| failed(file.display(), format!("is not a safetensors file ({e})"), "copy or write it again"))?;
    let location = format!("{}#{tensor}", file.display());
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
