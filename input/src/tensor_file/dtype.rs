//! The element types that weights are stored in.

/// The element type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoredDType {
    /// f32, IEEE single precision.
    F32,
    /// bfloat16, the upper 16 bits of f32.
    Bf16,
    /// f16, IEEE half precision.
    F16,
}

impl StoredDType {
    /// The size of an element in bytes.
    pub fn element_bytes(self) -> usize {
        match self {
            StoredDType::F32 => 4,
            StoredDType::Bf16 | StoredDType::F16 => 2,
        }
    }

    /// The dtype's name in safetensors headers.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            StoredDType::F32 => "F32",
            StoredDType::Bf16 => "BF16",
            StoredDType::F16 => "F16",
        }
    }

    /// The dtype's name in config.json (`torch_dtype`).
    pub fn torch_dtype_name(self) -> &'static str {
        match self {
            StoredDType::F32 => "float32",
            StoredDType::Bf16 => "bfloat16",
            StoredDType::F16 => "float16",
        }
    }

    /// Parses the name of a dtype in safetensors headers.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        [StoredDType::F32, StoredDType::Bf16, StoredDType::F16]
            .into_iter()
            .find(|dtype| dtype.safetensors_name() == name)
    }
}
