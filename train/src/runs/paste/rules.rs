//! Runs the rules of `rules.txt`, which translate what one row of the option table cannot say.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::state::{CommandTranslation, OptionSetting};
use super::table::ORDER;
use super::terms::{Scope, outside_of_braces};
use super::words::GivenOption;

/// One row of a rule.
struct Row {
    conditions: Vec<&'static str>,
    actions: Vec<&'static str>,
    text: &'static str,
}

static RULES: LazyLock<HashMap<&str, Vec<Row>>> = LazyLock::new(|| {
    let mut rules: HashMap<&str, Vec<Row>> = HashMap::new();
    let mut rule = "";
    for line in include_str!("rules.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut columns = line.splitn(4, '|').map(str::trim);
        let mut next = || columns.next().unwrap_or_default();
        rule = Some(next()).filter(|name| !name.is_empty()).unwrap_or(rule);
        let (conditions, actions, text) = (tokens(next()), tokens(next()), next());
        rules.entry(rule).or_default().push(Row { conditions, actions, text });
    }
    rules
});

/// Splits text at its spaces, except for those between double quotes.
fn tokens(text: &'static str) -> Vec<&'static str> {
    let mut is_quoted = false;
    let is_end = |c: char| {
        is_quoted ^= c == '"';
        c == ' ' && !is_quoted
    };
    text.split(is_end).filter(|token| !token.is_empty()).collect()
}

/// Returns true if `rules.txt` has the rule.
pub fn has_rule(rule: &str) -> bool {
    RULES.contains_key(rule)
}

/// Runs a rule. Returns true if a row has the action `row`: for a rule of the option table, the rest of the table's row
/// applies as well.
pub fn run_rule(rule: &str, scope: &mut Scope, t: &mut CommandTranslation) -> bool {
    debug_assert!(has_rule(rule), "there is no rule {rule}");
    for row in RULES.get(rule).into_iter().flatten() {
        scope.text = row.text;
        if !row.conditions.iter().all(|condition| scope.holds(&condition.replace('"', ""), t)) {
            continue;
        }
        let (mut goes_on, mut applies) = (false, false);
        for action in &row.actions {
            match *action {
                "next" => goes_on = true,
                "row" => applies = true,
                action => {
                    perform(&action.replace('"', ""), scope, t);
                    scope.text = row.text;
                }
            }
        }
        if !goes_on {
            return applies;
        }
    }
    false
}

/// Runs a rule for an item; what the rows refer to is the same again afterwards.
fn run_for(rule: &str, item: Option<&str>, key: Option<&str>, scope: &mut Scope, t: &mut CommandTranslation) {
    let before = scope.clone();
    scope.item = item.map(String::from).or(before.item.clone());
    scope.key = key.map(String::from).or(before.key.clone());
    run_rule(rule, scope, t);
    let names = std::mem::take(&mut scope.names);
    *scope = Scope { names, ..before };
}

/// Performs one action of a row: `VERB`, `VERB:NAME` or `VERB:NAME=VALUE`.
fn perform(action: &str, scope: &mut Scope, t: &mut CommandTranslation) {
    let (verb, rest) = action.split_once(':').unwrap_or((action, ""));
    let at = outside_of_braces(rest, &['=']);
    let name = scope.fill(&rest[..at.unwrap_or(rest.len())], t);
    let value = at.map(|at| scope.fill(&rest[at + 1..], t));
    let text = value.clone().unwrap_or_default();
    let (given, shown) = (scope.given.clone(), scope.shown());
    let values: Vec<String> = value.into_iter().collect();
    match verb {
        "-" => {}
        "changed" => t.is_changed = true,
        "foreign" => t.is_foreign = true,
        "refuse" => {
            let (what, help) = scope.text.split_once("; ").unwrap_or((scope.text, "leave it out"));
            let (what, help) = (scope.fill(what, t), scope.fill(help, t));
            t.refuse_option(&shown, &what, &help);
        }
        "note" => t.notes.push(scope.fill(scope.text, t)),
        "harmless" => {
            let option = scope.subject.clone().unwrap_or(given.written);
            t.harmless.push((option, scope.fill(scope.text, t)));
        }
        "forget" => t.harmless.retain(|(option, _)| *option != given.written),
        "set" => t.set_option(&name, values, &given, &shown),
        "given" => t.set_option(&name, given.values.clone(), &given, &shown),
        "add" => t.add_option(&name, values, &shown),
        "replace" => t.replace_option(&name, &text, &shown),
        "remove" => drop(t.remove_option(&name)),
        "fallback" => t.fallbacks.push(OptionSetting { name, values, shown }),
        "keep" => drop(t.parts.insert(name, (text, shown))),
        "let" => drop(scope.names.insert(name, text)),
        "as" => scope.subject = Some(scope.fill(rest, t)),
        "vote" => t.count_option_of_programs(ORDER.split(' ').filter(|own| *own == name)),
        "do" => {
            scope.names.insert("arg".into(), text);
            run_for(&name, None, None, scope, t);
        }
        "for" => text.split(',').filter(|item| !item.is_empty()).for_each(|i| run_for(&name, Some(i), None, scope, t)),
        "each" => given.values.iter().for_each(|item| run_for(&name, Some(item), None, scope, t)),
        "list" => given.listed_values().iter().for_each(|item| run_for(&name, Some(item), None, scope, t)),
        "fields" => {
            let object = scope.item.clone().or(given.joined_values()).unwrap_or_default();
            for (key, value) in &serde_json::from_str::<Map<String, Value>>(&object).unwrap_or_default() {
                run_for(&name, Some(&value.to_string()), Some(key), scope, t);
            }
        }
        "pairs" => {
            for pair in
                given.joined_values().unwrap_or_else(|| "true".into()).split(',').filter(|pair| !pair.is_empty())
            {
                let (name_of_pair, value) = pair.split_once('=').unwrap_or((pair, "true"));
                let written = format!("{} {name_of_pair}", given.written);
                scope.given = GivenOption { name: name_of_pair.into(), written, values: vec![value.into()] };
                run_for(&name, Some(pair), None, scope, t);
            }
            scope.given = given;
        }
        _ => debug_assert!(false, "rules.txt has the action {verb}, which does not exist"),
    }
}
