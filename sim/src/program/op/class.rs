//! Instruction classes, by which the counters group executed instructions.

/// The class in which the counters count an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum InstructionClass {
    Integer,
    Float,
    Half,
    Double,
    Special,
    Convert,
    Move,
    Predicate,
    Control,
    Global,
    Shared,
    Local,
    Constant,
    Atomic,
    Shuffle,
    Barrier,
    Async,
    Matrix,
    Other,
}

impl InstructionClass {
    /// All classes, in the order in which reports print them.
    pub const ALL: [InstructionClass; 19] = [
        InstructionClass::Integer,
        InstructionClass::Float,
        InstructionClass::Half,
        InstructionClass::Double,
        InstructionClass::Special,
        InstructionClass::Convert,
        InstructionClass::Move,
        InstructionClass::Predicate,
        InstructionClass::Control,
        InstructionClass::Global,
        InstructionClass::Shared,
        InstructionClass::Local,
        InstructionClass::Constant,
        InstructionClass::Atomic,
        InstructionClass::Shuffle,
        InstructionClass::Barrier,
        InstructionClass::Async,
        InstructionClass::Matrix,
        InstructionClass::Other,
    ];

    /// Returns the name that reports print.
    pub fn name(self) -> &'static str {
        match self {
            InstructionClass::Integer => "integer",
            InstructionClass::Float => "float",
            InstructionClass::Half => "half",
            InstructionClass::Double => "double",
            InstructionClass::Special => "special",
            InstructionClass::Convert => "convert",
            InstructionClass::Move => "move",
            InstructionClass::Predicate => "predicate",
            InstructionClass::Control => "control",
            InstructionClass::Global => "global",
            InstructionClass::Shared => "shared",
            InstructionClass::Local => "local",
            InstructionClass::Constant => "constant",
            InstructionClass::Atomic => "atomic",
            InstructionClass::Shuffle => "shuffle",
            InstructionClass::Barrier => "barrier",
            InstructionClass::Async => "async",
            InstructionClass::Matrix => "matrix",
            InstructionClass::Other => "other",
        }
    }
}
