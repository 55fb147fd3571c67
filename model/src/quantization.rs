//! How linear layers store their weights.

/// How the weights of the decoder's linear layers and of the output layer are stored. The vision tower, embeddings,
/// norms, biases and LoRA adapters always have the dtype of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// Weights are stored in the dtype of the model. Those of quantised files stay as they are if decode steps read them
    /// fast, otherwise they are dequantised.
    #[default]
    None,
    /// Like `None`, but all weights of quantised files stay as they are. They cannot be trained.
    OfFiles,
    /// Like `OfFiles`, and plain weights of the decoder's linear layers are quantised while they are loaded. Files with
    /// quantised weights are refused.
    AtLoad(LoadFormat),
    /// Weights are stored as int8 with one scale for each row: symmetric, rounded to nearest. For inference only.
    Int8,
}

/// A format to which plain weights can be quantised while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// 4 bits: nf4 of bitsandbytes with double quantisation, blocks of 64 weights. Their scales are f32 in memory.
    Nf4,
    /// 8-bit floats (e4m3) with an f32 scale for each block of 128 × 128 weights.
    Fp8,
}
