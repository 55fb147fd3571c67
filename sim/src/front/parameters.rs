//! The types of a kernel's parameters, read from its C++ symbol and its PTX, and the check that an argument matches
//! its parameter.

use crate::program::{Kernel, Program};
use crate::ptx::ast::Type;
use crate::value::ElementType;
use anyhow::Result;

use super::args::KernelArgument;
use super::entry;
use super::error::usage_error;

/// The class of arguments that a parameter accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ParameterClass {
    Integer,
    Float(ElementType),
    Pointer,
    /// A 64-bit integer in PTX, which can be an integer or a pointer in the source.
    IntegerOrPointer,
    /// A struct, an array, or an unknown type.
    Other,
}

/// A parameter of a kernel.
#[derive(Debug)]
pub struct KernelParameter {
    index: usize,
    /// The kernel's name in messages.
    kernel: String,
    /// The parameter's name in the PTX.
    name: String,
    /// The parameter's types for messages: the source type if the symbol contains it, then the PTX type.
    types: String,
    class: ParameterClass,
    bytes: usize,
}

/// Returns the parameters of a kernel in order.
pub fn kernel_parameters(program: &Program, kernel: &Kernel) -> Vec<KernelParameter> {
    let functions = &program.module.functions;
    let function = functions.iter().find(|f| f.kernel && !f.declaration && f.name == kernel.name);
    let declared = function.map_or(&[][..], |f| &f.params);
    let signature = entry::demangled_signature(&kernel.name);
    // The mangled symbol of a C++ function without C linkage contains the types in the source.
    let sources = entry::parameter_types(&signature).filter(|types| types.len() == declared.len());
    let one = |(index, p): (usize, &crate::ptx::ast::Param)| {
        let source = sources.as_ref().map(|types| types[index].as_str());
        let ptx = p.ty.map(|ty| format!(".{ty:?}").to_lowercase());
        let array = || format!("{} bytes", p.size);
        let types = [source.map(str::to_string), ptx].into_iter().flatten().collect::<Vec<_>>().join(", ");
        KernelParameter {
            index,
            kernel: signature.clone(),
            name: p.name.clone(),
            types: if types.is_empty() { array() } else { types },
            class: source.and_then(class_of_source_type).unwrap_or_else(|| class_of_ptx_type(p.ty)),
            bytes: p.size as usize,
        }
    };
    declared.iter().enumerate().map(one).collect()
}

/// Returns whether Triton made the PTX: its source is Python, or its shared memory has the name that Triton gives it.
pub fn is_from_triton(program: &Program) -> bool {
    let module = &program.module;
    module.files.iter().any(|(_, name)| name.ends_with(".py"))
        || module.variables.iter().any(|variable| variable.name == "global_smem")
}

/// Returns the class of arguments for a parameter of this C++ type; `None` for structs and for type names of the
/// program.
fn class_of_source_type(name: &str) -> Option<ParameterClass> {
    Some(match name {
        _ if name.ends_with(['*', '&']) => ParameterClass::Pointer,
        "bool" | "char" | "signed char" | "unsigned char" | "short" | "unsigned short" | "int" | "unsigned int"
        | "long" | "unsigned long" | "long long" | "unsigned long long" => ParameterClass::Integer,
        "float" => ParameterClass::Float(ElementType::F32),
        "double" => ParameterClass::Float(ElementType::F64),
        "__half" => ParameterClass::Float(ElementType::F16),
        "__nv_bfloat16" => ParameterClass::Float(ElementType::Bf16),
        _ => return None,
    })
}

/// Returns the class of arguments for a parameter of this PTX type; `None` stands for an array.
fn class_of_ptx_type(ty: Option<Type>) -> ParameterClass {
    match ty {
        Some(Type::U64 | Type::S64) => ParameterClass::IntegerOrPointer,
        Some(Type::U8 | Type::S8 | Type::U16 | Type::S16 | Type::U32 | Type::S32) => ParameterClass::Integer,
        Some(Type::F32) => ParameterClass::Float(ElementType::F32),
        Some(Type::F64) => ParameterClass::Float(ElementType::F64),
        Some(Type::F16) => ParameterClass::Float(ElementType::F16),
        _ => ParameterClass::Other,
    }
}

fn is_float(dtype: ElementType) -> bool {
    use ElementType::{Bf16, E4m3, F16, F32, F64};
    matches!(dtype, F16 | Bf16 | F32 | F64 | E4m3)
}

impl KernelParameter {
    /// Checks that an argument matches the parameter's class. `text` is the argument as the user wrote it.
    ///
    /// # Errors
    /// The argument is of another class, such as an f32 for an integer or a buffer for a number.
    pub fn check_kind(&self, text: &str, argument: &KernelArgument) -> Result<()> {
        use ParameterClass::{Float, Integer, IntegerOrPointer, Pointer};
        let given = match (argument, self.class) {
            (KernelArgument::Scalar(dtype, _), Integer | IntegerOrPointer | Pointer) if is_float(*dtype) => {
                "is a floating-point number"
            }
            (KernelArgument::Scalar(dtype, _), Float(of)) if *dtype != of => match is_float(*dtype) {
                true => "is a floating-point number of another type",
                false => "is an integer",
            },
            (KernelArgument::Buffer(_), Integer | Float(_)) => "is a pointer",
            _ => return Ok(()),
        };
        Err(usage_error(&format!("--arg {text}"), format!("{given}, but {}", self.describe()), self.help(text)))
    }

    /// Makes the error for an argument that has `given` bytes instead of the parameter's number of bytes.
    pub fn wrong_size_error(&self, text: &str, given: usize) -> anyhow::Error {
        let what = format!("has {given} bytes, but {} has {}", self.describe(), self.bytes);
        usage_error(&format!("--arg {text}"), what, self.help(text))
    }

    fn describe(&self) -> String {
        format!("parameter {} ({}: {}) of kernel {}", self.index, self.name, self.types, self.kernel)
    }

    /// Returns advice on what to write for the parameter. The number in `text` is kept if it fits the type.
    fn help(&self, text: &str) -> String {
        let value = text.split_once(':').map_or("", |(_, value)| value);
        let bits = 8 * self.bytes;
        let integers = || {
            let value = if value.parse::<i64>().is_ok() { value } else { "VALUE" };
            format!("i{bits}:{value} or u{bits}:{value}")
        };
        match self.class {
            ParameterClass::Integer => format!("write {}", integers()),
            ParameterClass::Float(dtype) => {
                let value = if value.parse::<f64>().is_ok() { value } else { "VALUE" };
                format!("write {}:{value}", dtype.name())
            }
            ParameterClass::Pointer => "write buf:TYPE:COUNT:FILL".to_string(),
            ParameterClass::IntegerOrPointer => {
                format!("write buf:TYPE:COUNT:FILL for a pointer, {} for a number", integers())
            }
            ParameterClass::Other => format!("give an argument of {} bytes, such as struct:…", self.bytes),
        }
    }
}
