//! Random changes of JSON: a node of the tree is replaced, removed, repeated, renamed, nested, or gets an extreme
//! value.

use serde_json::{Map, Value};

use super::text;
use crate::random::Random;

/// First character of a string that [`write`] writes without quotes. Such a string is a number that [`Value`] cannot
/// hold, or deeply nested lists.
const RAW: char = '\u{10fffd}';

/// First character of a key that marks a duplicate: [`write`] leaves the character out, so that the object has one key
/// twice.
const TWICE: char = '\u{10fffc}';

/// Makes one random change to JSON. Returns false if the bytes are not JSON.
pub fn mutate_json(bytes: &mut Vec<u8>, words: &[&str], random: &mut Random) -> bool {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return false };
    let at = random.below(count(&value));
    let copied = random.below(count(&value));
    let copied = node(&mut value, &mut { copied }).map(|node| node.clone()).unwrap_or_default();
    if let Some(node) = node(&mut value, &mut { at }) {
        change_node(node, copied, words, random);
    }
    *bytes = write(&value).into_bytes();
    true
}

/// Returns the number of nodes of a JSON tree.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Returns node number `at` of a JSON tree, from 0 in the order of the text. The search counts `at` down to 0.
fn node<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| node(value, at)),
        Value::Object(map) => map.values_mut().find_map(|value| node(value, at)),
        _ => None,
    }
}

fn change_node(node: &mut Value, copied: Value, words: &[&str], random: &mut Random) {
    if random.one_in(8) {
        *node = extreme(words, random);
        return;
    }
    if random.one_in(12) {
        *node = copied;
        return;
    }
    if random.one_in(12) {
        *node = nested(node.take(), random);
        return;
    }
    match node {
        Value::Array(list) => change_list(list, copied, random),
        Value::Object(map) => change_object(map, copied, words, random),
        Value::String(old) => {
            let mut bytes = old.clone().into_bytes();
            text::mutate_text(&mut bytes, &[], words, random);
            *node = String::from_utf8_lossy(&bytes).into_owned().into();
        }
        Value::Number(_) => *node = number(random),
        Value::Bool(_) | Value::Null => *node = extreme(words, random),
    }
}

fn change_list(list: &mut Vec<Value>, copied: Value, random: &mut Random) {
    let at = random.below(list.len());
    match random.below(4) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 if !list.is_empty() => {
            let value = list[at].clone();
            let longest = if count(&value) < 4 { 5_000 } else { 50 };
            let times = 1 + random.length_up_to(longest);
            list.splice(at..at, std::iter::repeat_n(value, times));
        }
        2 => list.truncate(at),
        _ => list.insert(at, copied),
    }
}

fn change_object(map: &mut Map<String, Value>, copied: Value, words: &[&str], random: &mut Random) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let word = |random: &mut Random| if words.is_empty() { "x".to_string() } else { random.pick(words).to_string() };
    let Some(key) = keys.get(random.below(keys.len())) else {
        map.insert(word(random), copied);
        return;
    };
    match random.below(6) {
        0 | 1 => drop(map.shift_remove(key)),
        2 => {
            let value = map.shift_remove(key).unwrap_or_default();
            map.insert(word(random), value);
        }
        3 => drop(map.insert(format!("{TWICE}{key}"), copied)),
        4 => drop(map.insert(word(random), copied)),
        _ => {
            let other = keys[random.below(keys.len())].clone();
            let (a, b) = (map[key].clone(), map[&other].clone());
            map.insert(key.clone(), b);
            map.insert(other, a);
        }
    }
}

fn number(random: &mut Random) -> Value {
    format!("{RAW}{}", text::EDGE_CASE_NUMBERS[random.below(text::EDGE_CASE_NUMBERS.len())]).into()
}

fn extreme(words: &[&str], random: &mut Random) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => true.into(),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => "".into(),
        5 => "x\u{1b}[2J\u{7}é".repeat(1 + random.length_up_to(10_000)).into(),
        6 if !words.is_empty() => (*random.pick(words)).into(),
        _ => number(random),
    }
}

/// Puts a value into nested lists and objects. In one of three cases, returns empty lists that are nested up to 100,000
/// deep instead: deeper than parsers recurse.
fn nested(value: Value, random: &mut Random) -> Value {
    if random.one_in(3) {
        let depth = 1 + random.length_up_to(100_000);
        return format!("{RAW}{}{}", "[".repeat(depth), "]".repeat(depth)).into();
    }
    (0..=random.length_up_to(60)).fold(value, |value, _| match random.one_in(2) {
        true => Value::Array(vec![value]),
        false => Value::Object(Map::from_iter([("a".to_string(), value)])),
    })
}

/// Writes a value as text. Strings that begin with [`RAW`] are written without quotes, and [`TWICE`] is removed from
/// keys.
fn write(value: &Value) -> String {
    let text = value.to_string().replace(TWICE, "");
    let mut out = String::new();
    let mut rest = &text[..];
    let start = format!("\"{RAW}");
    while let Some((before, after)) = rest.split_once(&start) {
        let (raw, after) = after.split_once('"').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(raw);
        rest = after;
    }
    out + rest
}
