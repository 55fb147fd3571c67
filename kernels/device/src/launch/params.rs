//! Parameters of kernels: addresses, the structs that [`params!`](crate::params) declares, and their C declarations.

/// An address in the memory of the device that runs the launch; 0 stands for an absent operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Addr(pub u64);

impl Addr {
    /// The absent operand.
    pub const NULL: Addr = Addr(0);

    /// Whether the operand is absent.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// Returns the address `bytes` bytes after this one.
    pub const fn offset(self, bytes: usize) -> Addr {
        Addr(self.0 + bytes as u64)
    }
}

/// One field of a parameter struct, as the C declaration needs it.
#[derive(Clone, Copy, Debug)]
pub struct ParamField {
    /// The field's name, the same in Rust and in C.
    pub name: &'static str,
    /// The field's C type.
    pub c_type: &'static str,
    /// The field's offset in the struct, in bytes.
    pub offset: usize,
    /// Whether the field is an [`Addr`].
    pub address: bool,
}

impl ParamField {
    /// The value of this field in a parameter struct if the field is a size: a whole number that is neither negative
    /// nor an address. Padding (`reserved`) is not a size.
    pub(super) fn size_in(&self, params: &[u8]) -> Option<u64> {
        if self.address || self.name.starts_with("reserved") {
            return None;
        }
        let bytes = params.get(self.offset..)?;
        match self.c_type {
            <u64 as CType>::NAME => Some(u64::from_ne_bytes(*bytes.first_chunk()?)),
            <u32 as CType>::NAME => Some(u32::from_ne_bytes(*bytes.first_chunk()?).into()),
            <i32 as CType>::NAME => i32::from_ne_bytes(*bytes.first_chunk()?).try_into().ok(),
            _ => None,
        }
    }
}

/// A Rust type that has an exact C counterpart of the same size and alignment.
pub trait CType {
    /// The name in CUDA C++.
    const NAME: &'static str;
    /// Whether the type is an address.
    const ADDRESS: bool = false;
}
impl CType for Addr {
    const NAME: &'static str = "unsigned long long";
    const ADDRESS: bool = true;
}
impl CType for u64 {
    const NAME: &'static str = "unsigned long long";
}
impl CType for u32 {
    const NAME: &'static str = "unsigned int";
}
impl CType for i32 {
    const NAME: &'static str = "int";
}
impl CType for f32 {
    const NAME: &'static str = "float";
}

/// Space for a tensor map in a parameter struct. It is all zeros when a call is made. The launch plan describes the
/// map ([`Stage::tensor_maps`](super::Stage::tensor_maps)), and the device encodes the map into this field when it
/// launches. The field must come first in the struct or after other maps, because it is aligned to 64 bytes (PTX ISA,
/// "Tensor-map").
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMapSlot([u8; 128]);

impl TensorMapSlot {
    /// A slot without a map.
    pub const EMPTY: TensorMapSlot = TensorMapSlot([0; 128]);
}

impl CType for TensorMapSlot {
    const NAME: &'static str = "TensorMapSlot";
}

/// Words at the end of a parameter struct, all 0, that fill it up to a multiple of its alignment, which is 64 bytes if
/// it has a [`TensorMapSlot`].
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Padding<const WORDS: usize>([u32; WORDS]);

// SAFETY: the struct is its array of words, for which all bits 0 are a value.
#[allow(unsafe_code)]
unsafe impl<const WORDS: usize> bytemuck::Zeroable for Padding<WORDS> {}
// SAFETY: the same; all bits are values, and an array has no bytes between its words.
#[allow(unsafe_code)]
unsafe impl<const WORDS: usize> bytemuck::Pod for Padding<WORDS> {}

impl<const WORDS: usize> Padding<WORDS> {
    /// Padding, all zeros.
    pub const ZEROS: Self = Padding([0; WORDS]);
}

impl CType for Padding<3> {
    const NAME: &'static str = "Padding<3>";
}
impl CType for Padding<6> {
    const NAME: &'static str = "Padding<6>";
}
impl CType for Padding<9> {
    const NAME: &'static str = "Padding<9>";
}
impl CType for Padding<10> {
    const NAME: &'static str = "Padding<10>";
}
impl CType for Padding<15> {
    const NAME: &'static str = "Padding<15>";
}

/// The declarations of [`TensorMapSlot`] and [`Padding`] in CUDA C++.
pub(super) const TENSOR_MAP_SLOT_DECLARATION: &str = "struct alignas(64) TensorMapSlot { unsigned char bytes[128]; };\n\
     template <int WORDS> struct Padding { unsigned int words[WORDS]; };\n";

/// A parameter struct declared by [`params!`](crate::params).
pub trait Params: bytemuck::Pod {
    /// The struct's name.
    const NAME: &'static str;
    /// The struct's fields in order.
    const FIELDS: &'static [ParamField];

    /// Returns the C declaration, with static asserts on the size and on every offset.
    fn c_declaration() -> String {
        let name = Self::NAME;
        let mut text = format!("struct {name} {{\n");
        for f in Self::FIELDS {
            text += &format!("  {} {};\n", f.c_type, f.name);
        }
        text += "};\n";
        text += &format!("static_assert(sizeof({name}) == {}, \"{name}\");\n", size_of::<Self>());
        for f in Self::FIELDS {
            text +=
                &format!("static_assert(offsetof({name}, {n}) == {o}, \"{name}.{n}\");\n", n = f.name, o = f.offset);
        }
        text
    }
}

/// Declares a kernel's parameters: a `repr(C)` struct without padding, at most 4 KiB.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $ty),* }
        const _: () = assert!(size_of::<$name>() <= 4096);
        impl $name {
            /// Parameters with null addresses and all numbers 0.
            #[allow(unsafe_code, dead_code)]
            // SAFETY: the struct is `Zeroable`: all bits 0 are a value.
            pub const EMPTY: $name = unsafe { std::mem::zeroed() };
        }
        impl $crate::launch::Params for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::launch::ParamField] = &[$($crate::launch::ParamField {
                name: stringify!($field),
                c_type: <$ty as $crate::launch::CType>::NAME,
                offset: std::mem::offset_of!($name, $field),
                address: <$ty as $crate::launch::CType>::ADDRESS,
            }),*];
        }
    };
}
