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
    /// Weights are stored as int8 with one scale for each row: symmetric, rounded to nearest. For inference only.
    Int8,
}
