//! The types of a kernel's parameters, read from its C++ symbol and its PTX, and the check that an argument matches
//! its parameter.

use crate::program::{Kernel, Program};
use crate::ptx::ast::Type;
use crate::value::ElementType;
use anyhow::Result;

use super::argument::{KernelArgument, NamedArgument};
use super::entry;
use super::error::failed;

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
    /// Checks that an argument matches the parameter's class, and gives a number without a type the parameter's type.
    ///
    /// # Errors
    /// The argument is of another class, such as an f32 for an integer or a buffer for a number, or an integer is
    /// outside of the parameter's range.
    pub fn typed(&self, given: &NamedArgument) -> Result<KernelArgument> {
        let typed = match given.argument {
            KernelArgument::Integer(value) => self.integer(value as f64, Some(value), given)?,
            KernelArgument::Float(value) => self.integer(value, None, given)?,
            ref other => other.clone(),
        };
        self.check_kind(given, &typed)?;
        Ok(typed)
    }

    /// Gives a number the parameter's type. `value` is the number as a float, `integer` the number if it is an integer.
    fn integer(&self, value: f64, integer: Option<i128>, given: &NamedArgument) -> Result<KernelArgument> {
        let float = match (self.class, integer, self.bytes) {
            (ParameterClass::Float(dtype), ..) => Some(dtype),
            (ParameterClass::Other, None, 2) => Some(ElementType::F16),
            (_, None, 4) => Some(ElementType::F32),
            (_, None, _) => Some(ElementType::F64),
            _ => None,
        };
        let mut bytes = Vec::new();
        if let Some(dtype) = float {
            dtype.append_rounded(value, &mut bytes);
            return Ok(KernelArgument::Scalar(dtype, bytes));
        }
        let dtype = match self.bytes {
            1 => ElementType::I8,
            2 => ElementType::I16,
            4 => ElementType::I32,
            _ => ElementType::I64,
        };
        let (value, bits) = (integer.unwrap_or_default(), 8 * dtype.bytes() as u32);
        if value < -(1i128 << (bits - 1)) || value >= 1i128 << bits {
            let what = format!("{value} does not fit into {}", self.describe());
            return Err(failed(&given.location, what, format!("give an integer of {bits} bits")));
        }
        bytes.extend(&value.to_le_bytes()[..dtype.bytes()]);
        Ok(KernelArgument::Scalar(dtype, bytes))
    }

    fn check_kind(&self, named: &NamedArgument, argument: &KernelArgument) -> Result<()> {
        use ParameterClass::{Float, Integer, IntegerOrPointer, Pointer};
        let given = match (argument, self.class) {
            (KernelArgument::Scalar(dtype, _), Integer | IntegerOrPointer | Pointer) if is_float(*dtype) => {
                "is a floating-point number"
            }
            (KernelArgument::Scalar(dtype, _), Float(of)) if *dtype != of => match is_float(*dtype) {
                true => "is a floating-point number of another type",
                false => "is an integer",
            },
            (KernelArgument::Buffer(_) | KernelArgument::Pointer(..), Integer | Float(_)) => "is a pointer",
            _ => return Ok(()),
        };
        Err(failed(&named.location, format!("{given}, but {}", self.describe()), self.help(named)))
    }

    /// Makes the error for an argument that has `given` bytes instead of the parameter's number of bytes.
    pub fn wrong_size_error(&self, named: &NamedArgument, given: usize) -> anyhow::Error {
        let what = format!("has {given} bytes, but {} has {}", self.describe(), self.bytes);
        failed(&named.location, what, self.help(named))
    }

    fn describe(&self) -> String {
        format!("parameter {} ({}: {}) of kernel {}", self.index, self.name, self.types, self.kernel)
    }

    /// Returns advice on what to give for the parameter. A number on the command line is kept if it fits the type.
    fn help(&self, named: &NamedArgument) -> String {
        let Some(text) = &named.text else {
            return match self.class {
                ParameterClass::Integer => format!("give an integer of {} bits", 8 * self.bytes),
                ParameterClass::Float(dtype) => format!("give a number of type {}", dtype.name()),
                ParameterClass::Pointer => "give an array".to_string(),
                ParameterClass::IntegerOrPointer => "give an array for a pointer, an integer for a number".to_string(),
                ParameterClass::Other => format!("give an argument of {} bytes", self.bytes),
            };
        };
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
