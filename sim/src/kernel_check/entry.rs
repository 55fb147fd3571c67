//! Finds the kernel of a module that `--entry` names, by its symbol or by its name in the source.

use anyhow::Result;
use cpp_demangle::Symbol;

use super::error::{InputError, failed};
use super::wording::Wording;

/// Returns the symbol of the kernel that `wanted` names (see `find`); if `wanted` is `None`, the only kernel of the
/// file.
pub fn select_kernel_symbol<'a>(
    wanted: Option<&str>,
    symbols: &[&'a str],
    file: &str,
    wording: Wording,
) -> Result<&'a str> {
    let option = wording.option("entry");
    if symbols.is_empty() {
        return Err(failed(file, "has no kernel", "give a file with a __global__ function (.entry in PTX)"));
    }
    let Some(wanted) = wanted else {
        return match symbols {
            [only] => Ok(only),
            _ => Err(failed(
                &option,
                format!("{file} has {} kernels", symbols.len()),
                format!("name one of {}", short_list(symbols)),
            )),
        };
    };
    find(symbols, wanted).map_err(|e| InputError(format!("{option} {e}")).into())
}

/// Returns the only symbol that `wanted` selects. `wanted` is the symbol itself, or a C++ name:
/// `ns::kernel<3>(float*)`, `ns::kernel<3>`, `ns::kernel` or `kernel`. If no kernel has this name, `wanted` selects
/// symbols whose name begins with it, or else symbols whose name or parameters contain it.
fn find<'a>(symbols: &[&'a str], wanted: &str) -> Result<&'a str, String> {
    if let Some(exact) = symbols.iter().find(|s| **s == wanted) {
        return Ok(exact);
    }
    let literals = without_literal_types(wanted);
    let matching = |test: &dyn Fn(&str) -> bool| -> Vec<&'a str> {
        symbols.iter().copied().filter(|s| names(s).iter().any(|n| test(&without_literal_types(n)))).collect()
    };
    let mut matches = matching(&|name| name == literals);
    if matches.is_empty() && !wanted.is_empty() {
        matches = matching(&|name| name.starts_with(&literals));
    }
    if matches.is_empty() && !wanted.is_empty() {
        matches = symbols
            .iter()
            .copied()
            .filter(|s| without_literal_types(&demangled_signature(s)).contains(&literals))
            .collect();
    }
    match matches[..] {
        [one] => Ok(one),
        [] => Err(format!("{wanted}: no such kernel; the file has {}", short_list(symbols))),
        _ => Err(format!("{wanted}: {} kernels have this name; use one of {}", matches.len(), short_list(&matches))),
    }
}

/// Normalizes template arguments: removes spaces after commas and the types of integer literals, which demanglers and
/// users write differently. `k<8u>`, `k<8ul>` and `k<(unsigned int)8>` become `k<8>`.
fn without_literal_types(name: &str) -> String {
    let mut text = name.replace(", ", ",");
    for ty in ["unsigned int", "unsigned long", "unsigned long long", "long", "long long", "unsigned short", "short"] {
        text = text.replace(&format!("({ty})"), "");
    }
    let mut out = String::with_capacity(text.len());
    let mut in_number = false;
    for (at, c) in text.char_indices() {
        let before = out.chars().next_back().unwrap_or(' ');
        let rest = text[at..].trim_start_matches(['u', 'l']);
        let is_suffix = matches!(c, 'u' | 'l') && (rest.is_empty() || rest.starts_with([',', '>']));
        let begins = !(before.is_ascii_alphanumeric() || before == '_');
        in_number = c.is_ascii_digit() && (in_number || begins) || in_number && is_suffix;
        if !in_number || c.is_ascii_digit() {
            out.push(c);
        }
    }
    out
}

/// Maximum number of kernels in a message, and maximum number of characters of each name.
const MAX_LISTED: usize = 6;
const MAX_LISTED_CHARACTERS: usize = 100;

/// Lists kernels by their C++ names: at most six, each shortened in its middle if it is long.
fn short_list(symbols: &[&str]) -> String {
    let mut listed: Vec<String> = symbols.iter().take(MAX_LISTED).map(|s| shorten(&demangled_signature(s))).collect();
    if symbols.len() > MAX_LISTED {
        listed.push(format!("… ({} in all)", symbols.len()));
    }
    listed.join(", ")
}

/// Shortens a name in its middle if it is long.
fn shorten(name: &str) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= MAX_LISTED_CHARACTERS {
        return name.to_string();
    }
    let half = MAX_LISTED_CHARACTERS / 2;
    let (start, end) = (&characters[..half], &characters[characters.len() - half..]);
    format!("{}…{}", start.iter().collect::<String>(), end.iter().collect::<String>())
}

/// Replaces the mangled C++ symbols in a message by their names, each shortened in its middle if it is long.
pub fn demangle_symbols(message: &str) -> String {
    let is_symbol = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    let mut out = String::new();
    let mut rest = message;
    while let Some(start) = rest.find("_Z") {
        let before = rest[..start].chars().next_back();
        let end = rest[start..].find(|c| !is_symbol(c)).map_or(rest.len(), |length| start + length);
        out += &rest[..start];
        let symbol = &rest[start..end];
        out += &if before.is_some_and(is_symbol) { symbol.to_string() } else { shorten(&demangled_signature(symbol)) };
        rest = &rest[end..];
    }
    out + rest
}

/// Returns the C++ name with its parameters, or the symbol if it is not mangled.
pub fn demangled_signature(symbol: &str) -> String {
    let text = Symbol::new(symbol).ok().and_then(|s| s.demangle().ok()).unwrap_or_else(|| symbol.to_string());
    text.strip_prefix("void ").map_or(text.clone(), str::to_string)
}

/// Returns the types of the parameters in a signature; `None` if it has no parameter list, like the name of a C
/// function.
pub fn parameter_types(signature: &str) -> Option<Vec<String>> {
    let parameters = |rest: &str| rest.starts_with('(') && !rest.starts_with("(anonymous namespace)");
    let start = top_level(signature, parameters).next()? + 1;
    let list = signature[start..].strip_suffix(')')?;
    let mut types = Vec::new();
    let mut from = 0;
    for at in top_level(list, |rest| rest.starts_with(',')).chain([list.len()]) {
        types.push(list[from..at].trim().to_string());
        from = (at + 1).min(list.len());
    }
    Some(types.into_iter().filter(|ty| !ty.is_empty()).collect())
}

/// Returns all names by which `--entry` can select the kernel `symbol`.
fn names(symbol: &str) -> Vec<String> {
    let signature = demangled_signature(symbol);
    let parameters = |rest: &str| rest.starts_with('(') && !rest.starts_with("(anonymous namespace)");
    let name = &signature[..top_level(&signature, parameters).next().unwrap_or(signature.len())];
    let mut names = vec![signature.clone(), name.to_string()];
    let after_path = top_level(name, |rest| rest.starts_with("::")).last().map_or(0, |at| at + 2);
    names.push(name[after_path..].to_string());
    for name in [name, &name[after_path..]] {
        let template = name.ends_with('>').then(|| top_level(name, |rest| rest.starts_with('<')).last()).flatten();
        names.extend(template.map(|at| name[..at].to_string()));
    }
    names
}

/// Returns the positions in `text`, outside of angle and round brackets, where the rest of the text satisfies
/// `wanted`.
fn top_level<'a>(text: &'a str, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = usize> + 'a {
    let mut depth = 0;
    text.char_indices().filter_map(move |(at, c)| {
        let here = depth == 0 && wanted(&text[at..]);
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            _ => {}
        }
        here.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_a_kernel_by_symbol_or_name() {
        let symbols = ["scale", "_Z3addPfS_i", "_ZN3lib6reduceILi4EfEEvPKT0_PS1_", "_ZN12_GLOBAL__N_16hiddenEv"];
        for (wanted, found) in [
            ("scale", 0),
            ("add", 1),
            ("add(float*, float*, int)", 1),
            ("_Z3addPfS_i", 1),
            ("reduce", 2),
            ("lib::reduce", 2),
            ("lib::reduce<4, float>", 2),
            ("reduce<4, float>", 2),
            ("hidden", 3),
            ("(anonymous namespace)::hidden", 3),
            ("lib::red", 2),
            ("add(float", 1),
            ("educe<4", 2),
            ("*, int)", 1),
        ] {
            assert_eq!(find(&symbols, wanted), Ok(symbols[found]), "{wanted}");
        }
        let e = find(&symbols, "sub").unwrap_err();
        assert!(e.contains("no such kernel") && e.contains("add(float*, float*, int)"), "{e}");
        assert!(find(&["_Z3addPf", "_Z3addPd"], "ad").unwrap_err().contains("use one of add(float*), add(double*)"));
        for wanted in [None, Some("k")] {
            let e = select_kernel_symbol(wanted, &[], "f.cu", Wording::CommandLine).unwrap_err().to_string();
            assert!(e.starts_with("f.cu: has no kernel; "), "{e}");
        }
        assert!(
            select_kernel_symbol(None, &symbols, "f.cu", Wording::CommandLine)
                .unwrap_err()
                .to_string()
                .contains("4 kernels")
        );
        assert_eq!(select_kernel_symbol(None, &symbols[..1], "f.cu", Wording::CommandLine).unwrap(), "scale");
    }

    #[test]
    fn parameter_types_are_those_of_the_source() {
        let of = |symbol: &str| parameter_types(&demangled_signature(symbol));
        assert_eq!(of("_Z5saxpyPKfPffj").unwrap(), ["float const*", "float*", "float", "unsigned int"]);
        assert_eq!(of("_ZN3lib6reduceILi4EfEEvPKT0_PS1_").unwrap(), ["float const*", "float*"]);
        assert_eq!(of("_Z1kv").unwrap(), [""; 0]);
        assert_eq!(of("saxpy"), None);
    }

    #[test]
    fn rejects_a_name_of_several_kernels() {
        let symbols = ["_Z1kILi3EEvPf", "_Z1kILi4EEvPf"];
        let e = find(&symbols, "k").unwrap_err();
        assert!(e.contains("k<3>") && e.contains("k<4>"), "{e}");
        assert_eq!(find(&symbols, "k<4>"), Ok(symbols[1]));
        assert_eq!(find(&symbols, "<4"), Ok(symbols[1]));
    }

    #[test]
    fn literals_of_template_arguments_may_have_types() {
        let symbols = ["_Z4foldIiLj8ELb1EEvPT_", "_Z4foldIiLj80ELb1EEvPT_", "_Z4foldIiLm9ELb0EEvPT_"];
        for (wanted, found) in [
            ("fold<int, 8u, true>", 0),
            ("fold<int, 8, true>", 0),
            ("fold<int,8,true>", 0),
            ("fold<int, (unsigned int)80, true>(int*)", 1),
            ("fold<int, 80u", 1),
            ("9ul", 2),
            ("fold<int, 9, ", 2),
        ] {
            assert_eq!(find(&symbols, wanted), Ok(symbols[found]), "{wanted}");
        }
        assert_eq!(without_literal_types("a8u<x1l, -3ul, 7l>(k<2u>*)"), "a8u<x1l,-3,7>(k<2>*)");
    }

    #[test]
    fn lists_are_short() {
        let names: Vec<String> = (0..40).map(|n| format!("_Z1kILi{n}EEvPf")).collect();
        let symbols: Vec<&str> = names.iter().map(String::as_str).collect();
        let e = find(&symbols, "k").unwrap_err();
        assert!(
            e.contains("40 kernels") && e.contains("k<5>") && !e.contains("k<6>") && e.contains("(40 in all)"),
            "{e}"
        );
        let long = format!("_Z{}{}v", 400, "x".repeat(400));
        assert!(short_list(&[&long]).chars().count() < 120);
    }

    #[test]
    fn messages_show_demangled_names() {
        let text = "call of function _ZN3lib6reduceILi4EfEEvPKT0_PS1_, and x_Z1kv; no _Z.";
        assert_eq!(
            demangle_symbols(text),
            "call of function lib::reduce<4, float>(float const*, float*), and x_Z1kv; no _Z."
        );
    }
}
