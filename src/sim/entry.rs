//! Which kernel `--entry` means: by its symbol, or by the name that it has in the source.

use crate::fail::bad_usage;
use anyhow::Result;

/// The symbol that `entry` names among `symbols`. Without a name it is the only one there is.
pub fn choose<'a>(entry: Option<&str>, symbols: &[&'a str], file: &str) -> Result<&'a str> {
    let listed = symbols.join(" ");
    if symbols.is_empty() {
        return Err(bad_usage(file, "has no kernel", "give a file with a __global__ function (.entry in PTX)"));
    }
    let Some(entry) = entry else {
        let [only] = symbols else {
            let what = format!("{} has {} kernels", file, symbols.len());
            return Err(bad_usage("--entry", what, format!("name one of {listed}")));
        };
        return Ok(only);
    };
    if let Some(exact) = symbols.iter().find(|s| **s == entry) {
        return Ok(exact);
    }
    let named: Vec<&str> = symbols.iter().copied().filter(|s| is_named(s, entry)).collect();
    match named[..] {
        [one] => Ok(one),
        [] => Err(bad_usage("--entry", format!("{entry}: no such kernel in {file}"), format!("it has {listed}"))),
        _ => Err(bad_usage("--entry", format!("{entry} is any of {}", named.join(" ")), "give the whole symbol")),
    }
}

/// Whether a mangled symbol is of a function of this name, with or without its namespaces.
fn is_named(symbol: &str, entry: &str) -> bool {
    let Some(parts) = names(symbol) else { return false };
    let full = parts.join("::");
    full == entry || parts.last() == Some(&entry) || full.ends_with(&format!("::{entry}"))
}

/// The names in a symbol of the Itanium C++ ABI (chapter "Name mangling"): namespaces, then the function. Anonymous namespaces are left out.
fn names(symbol: &str) -> Option<Vec<&str>> {
    let rest = symbol.strip_prefix("_Z")?;
    let (nested, mut rest) = rest.strip_prefix('N').map_or((false, rest), |r| (true, r));
    let mut parts = Vec::new();
    loop {
        // L: a static function, or one of an anonymous namespace.
        rest = rest.strip_prefix('L').unwrap_or(rest);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            break;
        }
        let length: usize = rest[..digits].parse().ok()?;
        let name = rest.get(digits..digits.checked_add(length)?)?;
        rest = &rest[digits + length..];
        if !name.starts_with("_GLOBAL__N_") && !name.starts_with("_INTERNAL_") {
            parts.push(name);
        }
        if !nested {
            break;
        }
    }
    Some(parts).filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_have_names() {
        let of = |s| names(s).map(|p| p.join("::"));
        assert_eq!(of("_Z6kernelPfi").as_deref(), Some("kernel"));
        assert_eq!(of("_ZN2ns3sub1kIfLi4EEEvPT_").as_deref(), Some("ns::sub::k"));
        assert_eq!(of("_ZN12_GLOBAL__N_11kEPf").as_deref(), Some("k"));
        assert_eq!(of("_ZL1kPf").as_deref(), Some("k"));
        assert_eq!(of("kernel"), None);
        assert_eq!(of("_Z99x"), None);
        assert_eq!(of("_Z99999999999999999999999x"), None);
    }

    #[test]
    fn names_choose_kernels() {
        let all = ["_Z1kPf", "_ZN1a1gIfEEvPT_", "_ZN1a1gIdEEvPT_", "plain"];
        let of = |entry| choose(entry, &all, "f.cu").map_err(|e| e.to_string());
        assert_eq!(of(Some("k")), Ok("_Z1kPf"));
        assert_eq!(of(Some("plain")), Ok("plain"));
        assert_eq!(of(Some("_ZN1a1gIdEEvPT_")), Ok("_ZN1a1gIdEEvPT_"));
        assert!(of(Some("a::g")).unwrap_err().contains("any of _ZN1a1gIfEEvPT_ _ZN1a1gIdEEvPT_"));
        assert!(of(Some("h")).unwrap_err().contains("no such kernel"));
        assert!(of(None).unwrap_err().contains("4 kernels"));
        assert_eq!(choose(None, &["_Z1kPf"], "f.cu").unwrap(), "_Z1kPf");
        assert!(choose(None, &[], "f.cu").is_err());
    }
}
