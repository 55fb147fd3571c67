//! From arguments to the buffers and the parameter bytes of a launch.

use std::path::Path;

use anyhow::Result;
use reel_model::save::{StoredTensor, write_safetensors};
use reel_sim::check::NamedBuffer;
use reel_sim::memory::SimMemory;
use reel_sim::program::Kernel;
use reel_sim::tensor_map::TensorMap;
use reel_sim::value::ElementType;
use safetensors::{Dtype, SafeTensors};

use super::args::{Argument, Fill, Map, Spec};
use crate::fail::{bad_usage, failed};
use crate::output;

/// Buffers and parameters.
#[derive(Debug, Default)]
pub struct Bound {
    /// The buffers.
    pub memory: SimMemory,
    /// The kernel's parameters in its layout.
    pub params: Vec<u8>,
    /// The buffers with their names: `arg0`, or `arg0.1` in a struct.
    pub buffers: Vec<NamedBuffer>,
}

/// Alignment of a tensor map, the largest that a struct's fields have.
const MAP_ALIGN: usize = 64;

/// Makes the buffers of all arguments, then the parameters. Arguments beyond the kernel's parameters are buffers that tensor
/// maps are of: a kernel that takes maps seldom takes the pointers too.
pub fn bind(kernel: &Kernel, arguments: &[(String, Argument)], seed: u64) -> Result<Bound> {
    let (given, taken) = (arguments.len(), kernel.params.len());
    let beyond = arguments.iter().enumerate().skip(taken);
    let mapped = |n: usize| arguments.iter().any(|(_, argument)| argument.maps(n));
    if given < taken || !beyond.clone().all(|(n, (_, a))| matches!(a, Argument::Buffer(_)) && mapped(n)) {
        let sizes: Vec<String> = kernel.params.iter().map(|p| p.1.to_string()).collect();
        let what = format!("{given} given, but {} takes {taken} ({} bytes)", kernel.name, sizes.join(", "));
        return Err(bad_usage(
            "--arg",
            what,
            "give one --arg a parameter, in order; after them only buffers of tensor maps",
        ));
    }
    let mut bound =
        Bound { memory: SimMemory::new(), params: vec![0; kernel.param_bytes as usize], buffers: Vec::new() };
    for (n, (_, argument)) in arguments.iter().enumerate() {
        match argument {
            Argument::Buffer(spec) => bound.add_buffer(format!("arg{n}"), spec, seed)?,
            Argument::Struct(fields) => {
                for (m, field) in fields.iter().enumerate() {
                    if let Argument::Buffer(spec) = field {
                        bound.add_buffer(format!("arg{n}.{m}"), spec, seed)?;
                    }
                }
            }
            _ => {}
        }
    }
    for (n, ((text, argument), &(offset, size))) in arguments.iter().zip(&kernel.params).enumerate() {
        let place = format!("--arg {text}");
        let mut bytes = bound.bytes_of(&place, &format!("arg{n}"), argument)?;
        if let (Argument::Map(_), 8) = (argument, size) {
            bytes = bound.memory.alloc(bytes).to_le_bytes().to_vec();
        }
        if bytes.len() != size as usize {
            let what = format!("has {} bytes, but parameter {n} of {} takes {size}", bytes.len(), kernel.name);
            return Err(bad_usage(&place, what, "give an argument of its type"));
        }
        bound.params[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(bound)
}

impl Bound {
    fn add_buffer(&mut self, name: String, spec: &Spec, seed: u64) -> Result<()> {
        let n = self.buffers.len() as u64;
        let bytes = spec.count * spec.dtype.bytes();
        let address = match &spec.fill {
            Fill::Uninitialized => self.memory.alloc_uninitialized(bytes),
            Fill::Zeros => self.memory.alloc(vec![0; bytes]),
            Fill::Arange => self.memory.alloc(spec.dtype.arange(spec.count)),
            // Each buffer has numbers of its own.
            Fill::Random => self
                .memory
                .alloc(spec.dtype.normal(spec.count, seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(n))),
            Fill::Stored(file, tensor) => self.memory.alloc(stored(file, tensor, spec)?),
        };
        self.buffers.push(NamedBuffer { address, name, dtype: spec.dtype });
        Ok(())
    }

    fn address(&self, name: &str) -> Option<u64> {
        self.buffers.iter().find(|b| b.name == name).map(|b| b.address)
    }

    /// The bytes that an argument, or a struct's field, is passed as.
    fn bytes_of(&self, place: &str, name: &str, argument: &Argument) -> Result<Vec<u8>> {
        Ok(match argument {
            Argument::Scalar(_, bytes) | Argument::Bytes(bytes) => bytes.clone(),
            Argument::Buffer(_) => self.address(name).unwrap_or_default().to_le_bytes().to_vec(),
            Argument::Map(map) => self.encode(place, map)?,
            Argument::Struct(fields) => {
                let (mut bytes, mut largest) = (Vec::new(), 1);
                for (m, field) in fields.iter().enumerate() {
                    let of = self.bytes_of(place, &format!("{name}.{m}"), field)?;
                    let align = if matches!(field, Argument::Map(_)) { MAP_ALIGN } else { of.len().max(1) };
                    bytes.resize(bytes.len().next_multiple_of(align), 0);
                    bytes.extend(of);
                    largest = largest.max(align);
                }
                bytes.resize(bytes.len().next_multiple_of(largest), 0);
                bytes
            }
        })
    }

    fn encode(&self, place: &str, map: &Map) -> Result<Vec<u8>> {
        let (n, field) = map.buffer;
        let name = field.map_or_else(|| format!("arg{n}"), |m| format!("arg{n}.{m}"));
        let Some(address) = self.address(&name) else {
            let named: Vec<&str> = self.buffers.iter().map(|b| b.name.trim_start_matches("arg")).collect();
            let cure = match named.is_empty() {
                true => "give the buffer as an --arg of its own".to_string(),
                false => format!("the buffers are {}", named.join(", ")),
            };
            return Err(bad_usage(place, format!("argument {} is no buffer", name.trim_start_matches("arg")), cure));
        };
        let map = TensorMap::tiled(map.data_type, address, &map.dims, &map.strides, &map.box_dims, map.swizzle);
        let blob = map.and_then(|m| m.encode());
        Ok(blob.map_err(|e| bad_usage(place, e, "the driver's cuTensorMapEncodeTiled would refuse it too"))?.to_vec())
    }

    /// Writes the buffers as `memory` has them.
    pub fn write(&self, to: &Path, memory: &SimMemory) -> Result<()> {
        let tensors: Vec<StoredTensor> = self
            .buffers
            .iter()
            .map(|b| {
                let bytes = memory.bytes(b.address).unwrap_or_default();
                StoredTensor {
                    name: &b.name,
                    dtype: stored_name(b.dtype),
                    shape: vec![bytes.len() / b.dtype.bytes()],
                    bytes,
                }
            })
            .collect();
        Ok(write_safetensors(to, &tensors)?)
    }
}

/// The name of a type in safetensors files.
fn stored_name(dtype: ElementType) -> &'static str {
    match dtype {
        ElementType::U8 => "U8",
        ElementType::I8 => "I8",
        ElementType::U16 => "U16",
        ElementType::I16 => "I16",
        ElementType::U32 => "U32",
        ElementType::I32 => "I32",
        ElementType::U64 => "U64",
        ElementType::I64 => "I64",
        ElementType::F16 => "F16",
        ElementType::Bf16 => "BF16",
        ElementType::F32 => "F32",
        ElementType::F64 => "F64",
        ElementType::E4m3 => "F8_E4M3",
    }
}

/// The bytes of a tensor in a file, of any type as wide as the buffer's.
fn stored(file: &Path, tensor: &str, spec: &Spec) -> Result<Vec<u8>> {
    let bytes = output::read(file)?;
    let all = SafeTensors::deserialize(&bytes)
        .map_err(|e| failed(file.display(), format!("is no safetensors file ({e})"), "copy or write it again"))?;
    let place = format!("{}#{tensor}", file.display());
    let Ok(view) = all.tensor(tensor) else {
        let names = all.names();
        let some = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 8 { ", …" } else { "" };
        return Err(failed(place, "there is no such tensor", format!("the file has {some}{more}")));
    };
    if width(view.dtype()) != Some(spec.dtype.bytes()) {
        let what = format!("is stored as {:?}, which is not as wide as {}", view.dtype(), spec.dtype.name());
        return Err(failed(place, what, "give the buffer a type of the same width"));
    }
    let stored = view.data().len() / spec.dtype.bytes();
    if stored != spec.count {
        let cure = format!("write buf:{}:{stored}:…", spec.dtype.name());
        return Err(failed(place, format!("has {stored} elements, but the buffer has {}", spec.count), cure));
    }
    Ok(view.data().to_vec())
}

/// Bytes of an element, where these are whole.
fn width(dtype: Dtype) -> Option<usize> {
    Some(dtype.bitsize()).filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
}
