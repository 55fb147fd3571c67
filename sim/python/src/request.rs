//! The requests of the Python package: JSON texts, whose objects become a [`KernelCheck`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_sim::front;
use reel_sim::kernel_check::argument::{
    BufferFill, BufferIndex, BufferSpec, KernelArgument, NamedArgument, TensorMapArgument,
};
use reel_sim::kernel_check::{CompilerSettings, InputError, KernelCheck, Limits, Source, failed, speedscope};
use reel_sim::tensor_map::{DataType, Swizzle};
use reel_sim::value::ElementType;
use serde::Deserialize;

/// A check as the Python package describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The path of a file; else `text`.
    path: Option<PathBuf>,
    /// How messages name the text.
    name: String,
    /// PTX or CUDA C++.
    text: Option<String>,
    entry: Option<String>,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: Option<[u32; 3]>,
    shared: u32,
    arch: Option<String>,
    arguments: Vec<Named>,
    buffers: Vec<Buffer>,
    interleavings: u32,
    count_only: bool,
    strict_proxy: bool,
    threads: Option<usize>,
    seed: u64,
    include: Vec<PathBuf>,
    define: Vec<String>,
    standard: Option<String>,
    limit_instructions: Option<u64>,
    max_seconds: Option<f64>,
    /// MiB.
    max_memory: Option<u64>,
}

/// An argument of the kernel, and how messages name it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    value: Value,
}

/// A buffer of the request, which arguments refer to by number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Buffer {
    name: String,
    dtype: String,
    count: usize,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Value {
    /// An integer, in decimal, that takes the type of its parameter.
    Int { value: String },
    /// The bits of an f64 that takes the type of its parameter.
    Float { bits: u64 },
    /// A number of a known type.
    Scalar { dtype: String, bytes: Vec<u8> },
    /// A struct by value.
    Bytes { bytes: Vec<u8> },
    /// A struct by value as its fields, in C's layout.
    Struct { fields: Vec<Value> },
    /// A pointer into buffer number `buffer`.
    Pointer { buffer: usize, offset: u64 },
    /// A tensor map of memory in buffer number `buffer`, as for cuTensorMapEncodeTiled.
    #[serde(rename = "tensormap")]
    TensorMap {
        buffer: usize,
        offset: u64,
        dtype: String,
        dims: Vec<u64>,
        strides: Vec<u64>,
        #[serde(rename = "box")]
        box_dims: Vec<u32>,
        swizzle: u32,
    },
}

impl Request {
    /// Runs the check. Returns its report as JSON, as text and as a flame graph, and the buffers after the first run.
    pub fn check(
        self,
        contents: Vec<Option<Vec<u8>>>,
        cancelled: Arc<AtomicBool>,
    ) -> anyhow::Result<(String, String, String, Vec<Vec<u8>>)> {
        let names: Vec<String> = self.buffers.iter().map(|buffer| buffer.name.clone()).collect();
        let mut prepared = self.kernel_check(contents)?.prepare()?;
        prepared.options.limits.cancelled = Some(cancelled);
        let report = prepared.check()?;
        prepared.error_if_stopped_early(&report.report)?;
        if let Some(finding) = report.unsupported() {
            let location = format!("{}:{}", prepared.source.name(), finding.line);
            return Err(failed(location, &finding.message, "compile for another architecture"));
        }
        let after = names.iter().map(|name| report.buffer(name).unwrap_or_default().to_vec()).collect();
        Ok((report.json().to_string(), front::report_text(&report), speedscope(&report).to_string(), after))
    }

    /// Returns the PTX of the source.
    pub fn ptx(self) -> anyhow::Result<String> {
        let check = self.kernel_check(Vec::new())?;
        Ok(check.source.read_or_compile(&check.compiler, check.arch.as_deref())?.ptx)
    }

    fn kernel_check(self, contents: Vec<Option<Vec<u8>>>) -> anyhow::Result<KernelCheck> {
        let source = match (self.path, self.text) {
            (Some(path), _) => Source::File(path),
            (None, text) => Source::Text { name: self.name, text: text.unwrap_or_default() },
        };
        // The buffers come after the arguments, which point into them.
        let first = self.arguments.len();
        let mut arguments = Vec::new();
        for Named { name, value } in self.arguments {
            let argument = value.argument(&name, first)?;
            arguments.push(NamedArgument::new(&name, argument));
        }
        for (Buffer { name, dtype, count }, content) in self.buffers.into_iter().zip(contents) {
            let fill = content.map_or(BufferFill::Uninitialized, |bytes| BufferFill::Bytes(bytes.into()));
            let spec = BufferSpec { dtype: element_type(&name, &dtype)?, count, fill };
            arguments.push(NamedArgument::new(&name, KernelArgument::Buffer(spec)));
        }
        let limits = Limits::default();
        let limits = Limits {
            instructions: self.limit_instructions.unwrap_or(limits.instructions),
            seconds: self.max_seconds,
            memory_bytes: self.max_memory.map_or(limits.memory_bytes, |mebibytes| mebibytes.saturating_mul(1 << 20)),
        };
        let (include, define, standard) = (self.include, self.define, self.standard);
        let new = KernelCheck::new(source);
        Ok(KernelCheck {
            entry: self.entry,
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            shared: self.shared,
            arch: self.arch,
            arguments,
            interleavings: self.interleavings,
            count_only: self.count_only,
            strict_proxy: self.strict_proxy,
            threads: self.threads.unwrap_or(new.threads),
            seed: self.seed,
            compiler: CompilerSettings { include, define, standard, nvcc: Vec::new() },
            limits,
            ..new
        })
    }
}

impl Value {
    /// Converts the value. `first` is the number of the argument that is buffer 0.
    fn argument(self, name: &str, first: usize) -> anyhow::Result<KernelArgument> {
        let buffer = |number: usize| BufferIndex { argument: first + number, field: None };
        Ok(match self {
            Value::Int { value } => match value.parse() {
                Ok(value) => KernelArgument::Integer(value),
                Err(_) => {
                    return Err(failed(name, format!("{value} has more than 127 bits"), "give a smaller integer"));
                }
            },
            Value::Float { bits } => KernelArgument::Float(f64::from_bits(bits)),
            Value::Scalar { dtype, bytes } => KernelArgument::Scalar(element_type(name, &dtype)?, bytes),
            Value::Bytes { bytes } => KernelArgument::Bytes(bytes),
            Value::Struct { fields } => {
                let fields = fields.into_iter().map(|field| field.argument(name, first));
                KernelArgument::Struct(fields.collect::<anyhow::Result<_>>()?)
            }
            Value::Pointer { buffer: number, offset } => KernelArgument::Pointer(buffer(number), offset),
            Value::TensorMap { buffer: number, offset, dtype, dims, strides, box_dims, swizzle } => {
                let swizzle = match swizzle {
                    0 => Swizzle::None,
                    32 => Swizzle::B32,
                    64 => Swizzle::B64,
                    128 => Swizzle::B128,
                    other => return Err(failed(name, format!("swizzle {other}"), "use 0, 32, 64 or 128")),
                };
                let data_type = DataType::from_name(&dtype)
                    .ok_or_else(|| failed(name, format!("a tensor map cannot hold {dtype}"), "use u8, bf16, f32, …"))?;
                let buffer = buffer(number);
                KernelArgument::TensorMap(TensorMapArgument {
                    buffer,
                    offset,
                    data_type,
                    dims,
                    strides,
                    box_dims,
                    swizzle,
                })
            }
        })
    }
}

fn element_type(name: &str, dtype: &str) -> anyhow::Result<ElementType> {
    let unknown = || InputError::new(name, format!("{dtype} is not an element type"), "use u8, f16, bf16, f32, …");
    Ok(ElementType::from_name(dtype).ok_or_else(unknown)?)
}
