//! Reads the settings of the rotary embedding, theta and the M-RoPE sections. transformers 5 writes both to
//! `rope_parameters`; earlier versions write `rope_theta` and `rope_scaling.mrope_section`. Each setting can be at the
//! top level, in `text_config`, or in both.

use super::Family;
use super::fields::JsonFields;
use crate::error::Result;

/// The base of the rotary frequencies of the vision towers. transformers hard-codes it and does not read it from a
/// config.
const VISION_THETA: f64 = 10_000.0;

/// A value with the key path where it was found first.
type Found<T> = Option<(String, T)>;

/// The settings of the decoder's rotary embedding.
pub(super) struct TextRope {
    /// The base of the frequencies.
    pub(super) theta: f64,
    /// The number of frequencies for time, height and width.
    pub(super) section: [usize; 3],
    /// Whether the frequencies of the three sections alternate.
    pub(super) interleaved: bool,
}

impl TextRope {
    /// Reads the settings. `fields` are the text keys; `root` is the whole config.
    ///
    /// # Errors
    /// A value is missing, unsupported, or stated twice with two values.
    pub(super) fn read(family: Family, fields: &JsonFields, root: &JsonFields, head_dim: usize) -> Result<Self> {
        let interleaved = family == Family::Qwen3Vl;
        let (mut theta, mut section) = (None, None);
        for level in [fields, root] {
            for key in ["rope_parameters", "rope_scaling"] {
                let Some(rope) = level.opt_object(key)? else { continue };
                check_kind(&rope)?;
                check_interleaving(&rope, interleaved)?;
                if rope.has_key("rope_theta") {
                    add(&mut theta, &rope, "rope_theta", rope.positive_f64("rope_theta")?)?;
                }
                if rope.has_key("mrope_section") {
                    add(&mut section, &rope, "mrope_section", mrope_section(&rope, head_dim)?)?;
                }
            }
            if level.has_key("rope_theta") {
                add(&mut theta, level, "rope_theta", level.positive_f64("rope_theta")?)?;
            }
        }
        let key = if fields.has_key("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
        match (theta, section) {
            (_, None) if !fields.has_key(key) => Err(fields.error(key, "is missing; it must contain mrope_section")),
            (_, None) => Err(fields.error(&format!("{key}.mrope_section"), "is missing")),
            (None, _) => Err(fields.error("rope_theta", "is missing")),
            (Some((_, theta)), Some((_, section))) => Ok(Self { theta, section, interleaved }),
        }
    }
}

/// Checks `mrope_interleaved` against the family, whose layout of the frequencies transformers hard-codes.
fn check_interleaving(rope: &JsonFields, interleaved: bool) -> Result<()> {
    match rope.opt_bool("mrope_interleaved")? {
        Some(stated) if stated != interleaved => {
            Err(rope.error("mrope_interleaved", format!("is {stated}; only {interleaved} is supported for this model")))
        }
        _ => Ok(()),
    }
}

/// Stores the first value of a setting; refuses a second value that differs.
fn add<T: PartialEq + std::fmt::Debug>(found: &mut Found<T>, fields: &JsonFields, key: &str, value: T) -> Result<()> {
    match found {
        Some((first, other)) if *other != value => {
            Err(fields.error(key, format!("is {value:?}, but {first} is {other:?}")))
        }
        Some(_) => Ok(()),
        None => {
            *found = Some((fields.path_of(key), value));
            Ok(())
        }
    }
}

/// Checks `type` and `rope_type`, which must be `mrope` or `default`: both mean M-RoPE for this model.
fn check_kind(rope: &JsonFields) -> Result<()> {
    for key in ["type", "rope_type"] {
        if let Some(kind) = rope.opt_str(key)?
            && kind != "mrope"
            && kind != "default"
        {
            return Err(rope.error(key, format!("is `{kind}`; only mrope and default are supported")));
        }
    }
    Ok(())
}

fn mrope_section(rope: &JsonFields, head_dim: usize) -> Result<[usize; 3]> {
    let parts = rope.int_list("mrope_section")?;
    let Ok(section) = <[usize; 3]>::try_from(parts.as_slice()) else {
        return Err(rope.error("mrope_section", format!("has {} numbers, not 3 (time, height, width)", parts.len())));
    };
    let sum: usize = section.iter().sum();
    if sum != head_dim / 2 {
        return Err(
            rope.error("mrope_section", format!("sums to {sum}; the sum must be {}, half of head_dim", head_dim / 2))
        );
    }
    Ok(section)
}

/// Checks the `rope_parameters` of `vision_config`, which transformers 5 writes.
pub(super) fn check_vision_rope(fields: &JsonFields) -> Result<()> {
    let rope = fields.object_or_empty("rope_parameters")?;
    match rope.opt_f64("rope_theta")? {
        Some(theta) if theta != VISION_THETA => {
            Err(rope.error("rope_theta", format!("is {theta}; only {VISION_THETA} is supported")))
        }
        _ => Ok(()),
    }
}
