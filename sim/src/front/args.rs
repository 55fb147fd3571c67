//! Parses the kernel arguments of `--arg`.

use crate::kernel_check::argument::{BufferFill, BufferIndex, BufferSpec, KernelArgument, TensorMapArgument};
use crate::tensor_map::{DataType, Swizzle};
use crate::value::ElementType;

/// Maximum size of a buffer in bytes: 64 GiB.
const MAX_BUFFER_BYTES: usize = 1 << 36;

/// Parses an argument; the error text says what is wrong and what to do.
pub fn parse_kernel_argument(text: &str) -> Result<KernelArgument, String> {
    let (kind, rest) = text.split_once(':').ok_or_else(|| format!("{text:?} has no colon; {KINDS}"))?;
    match kind {
        "buf" => buffer(rest).map(KernelArgument::Buffer),
        "struct" => structure(rest),
        "tmap" => map(rest).map(KernelArgument::TensorMap),
        _ => match ElementType::from_name(kind) {
            Some(dtype) => Ok(KernelArgument::Scalar(dtype, scalar(dtype, rest)?)),
            None => Err(format!("{kind:?} is not a kind of argument; {KINDS}")),
        },
    }
}

const KINDS: &str = "use TYPE:VALUE (i32:-5, f32:1.5), buf:TYPE:COUNT[:FILL], struct:… or tmap:…";

fn scalar(dtype: ElementType, text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    match dtype {
        ElementType::F32 => bytes.extend(float::<f32>(text, "f32")?.to_le_bytes()),
        ElementType::F16 | ElementType::Bf16 | ElementType::F64 | ElementType::E4m3 => {
            dtype.append_rounded(float(text, dtype.name())?, &mut bytes)
        }
        _ => {
            let wrong = || format!("{text:?} is not a valid {}; give an integer in its range", dtype.name());
            let value = integer(text).ok_or_else(wrong)?;
            let bits = 8 * dtype.bytes() as u32;
            let range = match dtype.name().starts_with('i') {
                true => -(1i128 << (bits - 1))..1i128 << (bits - 1),
                false => 0..1i128 << bits,
            };
            if !range.contains(&value) {
                return Err(wrong());
            }
            bytes.extend(&value.to_le_bytes()[..dtype.bytes()]);
        }
    }
    Ok(bytes)
}

fn float<T: std::str::FromStr>(text: &str, name: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a valid {name}; give a decimal number, inf or nan"))
}

/// Parses a decimal or, with 0x, hexadecimal integer.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    Some(if negative { -i128::from(value) } else { value.into() })
}

fn buffer(text: &str) -> Result<BufferSpec, String> {
    let mut parts = text.splitn(3, ':');
    let (dtype, count) = (parts.next().unwrap_or_default(), parts.next());
    let names = || ElementType::ALL.map(ElementType::name).join(" ");
    let dtype = ElementType::from_name(dtype)
        .ok_or_else(|| format!("{dtype:?} is not an element type; use one of {}", names()))?;
    let count = count.ok_or("the buffer has no length; write buf:TYPE:COUNT[:FILL]")?;
    let count: usize = count.parse().map_err(|_| format!("{count:?} is not a number of elements; give an integer"))?;
    if count > MAX_BUFFER_BYTES / dtype.bytes() {
        return Err(format!("{count} elements of {} are more than 64 GiB; use a smaller buffer", dtype.name()));
    }
    let fill = match parts.next() {
        None | Some("zeros") => BufferFill::Zeros,
        Some("uninit") => BufferFill::Uninitialized,
        Some("arange") => BufferFill::Arange,
        Some("random") => BufferFill::Random,
        Some(constant) if constant.starts_with("fill=") => BufferFill::Constant(scalar(dtype, &constant[5..])?),
        Some(other) => match other.strip_prefix('@').and_then(|f| f.rsplit_once('#')) {
            Some((file, name)) if !file.is_empty() && !name.is_empty() => BufferFill::Stored(file.into(), name.into()),
            _ => {
                return Err(format!(
                    "{other:?} is not a buffer fill; use zeros, uninit, arange, random, fill=VALUE or \
                     @FILE.safetensors#NAME"
                ));
            }
        },
    };
    Ok(BufferSpec { dtype, count, fill })
}

fn structure(text: &str) -> Result<KernelArgument, String> {
    if !text.contains('=') {
        return hexadecimal(text).map(KernelArgument::Bytes);
    }
    // Commas also separate the values of tensor maps and arrays. A part between commas therefore begins a new field
    // only if it starts with `TYPE=`, `TYPE[N]=`, `pad=`, `buf=` or `tmap=`.
    let mut fields: Vec<String> = Vec::new();
    for part in text.split(',') {
        let begins =
            part.split_once('=').is_some_and(|(k, _)| matches!(k, "buf" | "tmap" | "pad") || array_type(k).is_some());
        match fields.last_mut() {
            Some(last) if !begins => *last = format!("{last},{part}"),
            _ => fields.push(part.to_string()),
        }
    }
    let field = |text: &String| match text.split_once('=') {
        Some(("struct", _)) | None => Err(format!("{text:?} is not a struct field; write TYPE=VALUE, buf=… or tmap=…")),
        Some(("pad", bytes)) => match bytes.parse::<usize>() {
            Ok(bytes) if bytes <= MAX_FIELD_BYTES => Ok(KernelArgument::Bytes(vec![0; bytes])),
            _ => Err(format!("{bytes:?} is not a number of padding bytes; give an integer up to {MAX_FIELD_BYTES}")),
        },
        Some((kind, values)) if kind.ends_with(']') => array(kind, values),
        Some((kind, value)) => parse_kernel_argument(&format!("{kind}:{value}")),
    };
    fields.iter().map(field).collect::<Result<_, _>>().map(KernelArgument::Struct)
}

/// Maximum bytes of an array or of padding in a struct: the largest parameter size that CUDA passes to a kernel.
const MAX_FIELD_BYTES: usize = 32764;

/// Parses the name of a struct field, `TYPE` or `TYPE[N]`: returns the type, and N if it is there.
fn array_type(name: &str) -> Option<(ElementType, Option<&str>)> {
    match name.strip_suffix(']').and_then(|n| n.split_once('[')) {
        Some((dtype, count)) => Some((ElementType::from_name(dtype)?, Some(count))),
        None => Some((ElementType::from_name(name)?, None)),
    }
}

/// Parses an array in a struct: `name` is `TYPE[N]`, `values` are N values or one value for all elements.
fn array(name: &str, values: &str) -> Result<KernelArgument, String> {
    let wrong = || format!("{name}={values} is not an array; write TYPE[N]=VALUE,VALUE,… or TYPE[N]=VALUE");
    let Some((dtype, Some(count))) = array_type(name) else { return Err(wrong()) };
    let count: usize =
        count.parse().ok().filter(|n| (1..=MAX_FIELD_BYTES / dtype.bytes()).contains(n)).ok_or_else(wrong)?;
    let elements: Vec<Vec<u8>> = values.split(',').map(|value| scalar(dtype, value)).collect::<Result<_, _>>()?;
    match elements.len() {
        1 => Ok(KernelArgument::Array(dtype, elements[0].repeat(count))),
        n if n == count => Ok(KernelArgument::Array(dtype, elements.concat())),
        n => Err(format!("{name} has {n} values; give {count}, or one for all elements")),
    }
}

fn hexadecimal(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    match digits {
        Some(d) if !d.is_empty() && d.len() % 2 == 0 => Ok(d.chunks(2).map(|d| d[0] << 4 | d[1]).collect()),
        _ => Err(format!("{text:?} is not a struct; give two hexadecimal digits per byte, or fields as u32=5,f32=1")),
    }
}

fn map(text: &str) -> Result<TensorMapArgument, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [buffer, dtype, dims, strides, box_dims, swizzle] = parts[..] else {
        return Err(format!(
            "a tensor map has 6 parts, not {}; write tmap:BUF:TYPE:DIMS:STRIDES:BOX:SWIZZLE",
            parts.len()
        ));
    };
    let (number, field) = buffer.split_once('.').map_or((buffer, None), |(a, b)| (a, Some(b)));
    let index = |text: &str| {
        text.parse::<usize>().map_err(|_| format!("{buffer:?} is not a buffer; give the index of its argument, from 0"))
    };
    let swizzle = match swizzle {
        "none" => Swizzle::None,
        "32" => Swizzle::B32,
        "64" => Swizzle::B64,
        "128" => Swizzle::B128,
        other => return Err(format!("{other:?} is not a swizzle; use none, 32, 64 or 128")),
    };
    Ok(TensorMapArgument {
        buffer: BufferIndex { argument: index(number)?, field: field.map(index).transpose()? },
        offset: 0,
        data_type: DataType::from_name(dtype)
            .ok_or_else(|| format!("a tensor map cannot hold {dtype:?}; use u8, bf16, f32, …"))?,
        dims: list(dims)?,
        strides: list(strides)?,
        box_dims: list(box_dims)?,
        swizzle,
    })
}

fn list<T: std::str::FromStr>(text: &str) -> Result<Vec<T>, String> {
    let each = text.split(',').filter(|_| !text.is_empty());
    each.map(|n| n.parse::<T>().map_err(|_| format!("{text:?} is not a list; give integers separated by commas")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        match parse_kernel_argument(text) {
            Ok(KernelArgument::Scalar(_, bytes) | KernelArgument::Bytes(bytes)) => bytes,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn parses_numbers() {
        assert_eq!(bytes("i32:-5"), (-5i32).to_le_bytes());
        assert_eq!(bytes("u64:18446744073709551615"), [255; 8]);
        assert_eq!(bytes("u32:0xff"), [255, 0, 0, 0]);
        assert_eq!(bytes("i8:-128"), [128]);
        assert_eq!(bytes("f32:1.5"), 1.5f32.to_le_bytes());
        assert_eq!(bytes("f64:-inf"), f64::NEG_INFINITY.to_le_bytes());
        assert_eq!(bytes("bf16:1"), [0x80, 0x3f]);
        assert_eq!(bytes("struct:00fF10"), [0, 255, 16]);
        for wrong in
            ["i8:128", "u8:-1", "u32:4294967296", "u32:1.5", "f32:x", "i32:", "i32", "q32:1", "i64:9223372036854775808"]
        {
            assert!(parse_kernel_argument(wrong).unwrap_err().contains("; "), "{wrong}");
        }
    }

    #[test]
    fn parses_buffers() {
        let of = |text: &str| match parse_kernel_argument(text) {
            Ok(KernelArgument::Buffer(spec)) => spec,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(of("buf:f32:7"), BufferSpec { dtype: ElementType::F32, count: 7, fill: BufferFill::Zeros });
        assert_eq!(of("buf:e4m3:0:uninit").fill, BufferFill::Uninitialized);
        assert_eq!(of("buf:f32:64:fill=-inf").fill, BufferFill::Constant(f32::NEG_INFINITY.to_le_bytes().to_vec()));
        assert_eq!(of("buf:i16:2:fill=-2").fill, BufferFill::Constant(vec![254, 255]));
        assert_eq!(
            of("buf:i64:3:@a:b#c.safetensors#x").fill,
            BufferFill::Stored("a:b#c.safetensors".into(), "x".into())
        );
        for wrong in [
            "buf:f32",
            "buf:f33:1",
            "buf:f32:-1",
            "buf:f32:1:ones",
            "buf:f32:1:@f",
            "buf:u8:99999999999999",
            "buf:u8:1:fill=256",
        ] {
            assert!(parse_kernel_argument(wrong).unwrap_err().contains("; "), "{wrong}");
        }
    }

    #[test]
    fn parses_structs_and_tensor_maps() {
        let Ok(KernelArgument::Struct(fields)) =
            parse_kernel_argument("struct:u32=5,tmap=0:bf16:64,32:128:64,8:128,buf=f32:64:zeros")
        else {
            panic!()
        };
        assert_eq!(fields.len(), 3);
        assert_eq!(fields[0], KernelArgument::Scalar(ElementType::U32, vec![5, 0, 0, 0]));
        let KernelArgument::TensorMap(map) = &fields[1] else { panic!("{fields:?}") };
        assert_eq!(
            (map.buffer, map.data_type, map.swizzle),
            (BufferIndex { argument: 0, field: None }, DataType::Bf16, Swizzle::B128)
        );
        assert_eq!((&map.dims[..], &map.strides[..], &map.box_dims[..]), (&[64, 32][..], &[128][..], &[64, 8][..]));
        let Ok(KernelArgument::TensorMap(map)) = parse_kernel_argument("tmap:2.1:f32:64::16:none") else { panic!() };
        assert_eq!((map.buffer, map.strides.len()), (BufferIndex { argument: 2, field: Some(1) }, 0));
        let Ok(KernelArgument::Struct(fields)) =
            parse_kernel_argument("struct:u8=1,f32[3]=1,2,3,pad=4,u16[2]=7,buf=f32:4:fill=-1")
        else {
            panic!()
        };
        let sizes: Vec<usize> = fields
            .iter()
            .map(|field| match field {
                KernelArgument::Array(_, bytes) | KernelArgument::Bytes(bytes) => bytes.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(sizes, [0, 12, 4, 4, 0]);
        for wrong in [
            "struct:f32[2]=1,2,3",
            "struct:f32[0]=1",
            "struct:f32[x]=1",
            "struct:pad=-1",
            "struct:pad=99999",
            "struct:0",
            "struct:xyz",
            "struct:a=1",
            "struct:struct=00",
            "tmap:0:f32:1:1:1",
            "tmap:0:f32:1::1:96",
            "tmap:x:f32:1::1:none",
        ] {
            assert!(parse_kernel_argument(wrong).unwrap_err().contains("; "), "{wrong}");
        }
    }
}
