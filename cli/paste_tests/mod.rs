//! Tests of the translation of other programs' commands (`reel_train::runs::paste`) with the parser of this binary.

mod effect_tests;
mod meaning_tests;
mod published_tests;
mod tests;
