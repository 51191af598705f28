//! `docs/contract.md` names rules and tests that exist, has all sixteen rules and every rule of a suite, and its table is what the
//! broken parts say.

use iovirt_core::test_utils::{Sabotage, conformance, net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end -->";

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contract.md")
}

/// The rules of all suites.
fn suite_rules() -> BTreeSet<&'static str> {
    let net = net::rules().into_iter().map(|(name, _)| name);
    conformance::rule_names().into_iter().chain(net).chain(net::JUDGE_RULES).collect()
}

fn table() -> String {
    let mut broken: BTreeMap<&str, Vec<String>> =
        suite_rules().into_iter().map(|rule| (rule, vec![])).collect();
    let disks = Sabotage::ALL.iter().map(|how| (how.caught_by(), format!("`{how:?}`")));
    let wires = net::NetSabotage::ALL.iter().map(|how| (how.caught_by(), format!("`{how:?}`")));
    for (rule, how) in disks.chain(wires) {
        broken.get_mut(rule).unwrap_or_else(|| panic!("no suite has a rule {rule}")).push(how);
    }
    let mut out = String::from("| rule of a suite | a disk or a wire that breaks it |\n|---|---|\n");
    for (rule, how) in broken {
        writeln!(out, "| `{rule}` | {} |", how.join(", ")).unwrap();
    }
    out
}

/// The part of the page before the table, by the contract's rules.
fn sections(text: &str) -> Vec<&str> {
    let mut sections: Vec<_> = text.split("\n## ").skip(1).collect();
    assert!(sections.pop().unwrap().starts_with("What breaks each rule"));
    sections
}

/// What stands in backquotes and looks like a rule of a suite.
fn named_rules(section: &str) -> BTreeSet<&str> {
    let prose = section.split("```").step_by(2);
    let quoted = prose.flat_map(|prose| prose.split('`').skip(1).step_by(2));
    quoted.filter(|word| word.contains('/') && !word.contains(' ')).collect()
}

/// Links to tests: name and file.
fn named_tests(section: &str) -> Vec<(&str, &str)> {
    let links = section.split("[`").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    links.filter_map(|link| link.split_once("`](../")).collect()
}

#[test]
fn every_rule_is_held_by_something_that_exists() {
    let text = fs::read_to_string(page()).unwrap();
    let (sections, rules) = (sections(&text), suite_rules());
    assert_eq!(sections.len(), 16, "the contract has sixteen rules");
    let mut named = BTreeSet::new();
    for (number, section) in (1..).zip(&sections) {
        let title = section.lines().next().unwrap();
        assert!(title.starts_with(&format!("{number}. ")), "{title}");
        let here = named_rules(section);
        let unknown: Vec<_> = here.difference(&rules).collect();
        assert!(unknown.is_empty(), "{title}: no suite has {unknown:?}");
        let tests = named_tests(section);
        assert!(!here.is_empty() || !tests.is_empty(), "{title}: nothing holds it");
        for (test, file) in tests {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let code = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{title}: {file:?}: {error}"));
            assert!(code.contains(&format!("fn {test}()")), "{title}: {file:?} has no test {test}");
        }
        named.extend(here);
    }
    let missing: Vec<_> = rules.difference(&named).collect();
    assert!(missing.is_empty(), "no rule of the contract names {missing:?}");
}

#[test]
fn the_table_is_what_the_broken_parts_say() {
    let text = fs::read_to_string(page()).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (found, after) = rest.split_once(END).unwrap();
    let wanted = table();
    if std::env::var_os("IOVIRT_WRITE").is_some() {
        fs::write(page(), format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
    } else {
        assert_eq!(found, wanted, "run IOVIRT_WRITE=1 cargo test --test contract");
    }
}
