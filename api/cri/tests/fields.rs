//! FIELDS.md against the interface: every field of every request has a row that says what becomes of
//! it, every row is a field, and every test that a row names is there.
//!
//! ```text
//!  descriptors ─► fields of each request ─┐
//!  FIELDS.md ───► rows of each table ─────┴─► the same, each with a state and its proof
//! ```
//! That what is said to be refused is refused is for tests/conformance (fields_test.go): it sends
//! each such request and reads the error.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use protox::prost::Message;

/// Tables of their own; where another message holds one, it is not unfolded again.
const TABLES: [&str; 2] = ["PodSandboxConfig", "ContainerConfig"];

/// A field is one of these.
const STATES: [&str; 4] = ["honoured", "refused", "noted", "not on Linux"];

/// The code of an error, as the conformance specs read it.
const CODES: [&str; 5] =
    ["InvalidArgument", "FailedPrecondition", "NotFound", "Unimplemented", "AlreadyExists"];

#[derive(Debug)]
struct Row {
    state: String,
    words: String,
    refusals: String,
    tests: String,
}

/// The rows of a markdown table, by what stands first in them.
fn rows(markdown: &str) -> BTreeMap<String, BTreeMap<String, Row>> {
    let mut tables: BTreeMap<String, BTreeMap<String, Row>> = BTreeMap::new();
    let mut heading = String::new();
    for line in markdown.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.trim_matches('`').clone_into(&mut heading);
        }
        let Some(cells) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = cells.trim_end_matches(" |").split(" | ").map(str::trim).collect();
        let [field, state, words, refusals, tests] = cells[..] else {
            panic!("five cells, not {}: {line}", cells.len());
        };
        let row = Row {
            state: state.into(),
            words: words.into(),
            refusals: refusals.into(),
            tests: tests.into(),
        };
        let field = field.trim_end_matches('`').to_owned();
        let before = tables.entry(heading.clone()).or_default().insert(field.clone(), row);
        assert!(before.is_none(), "{heading}: {field} has two rows");
    }
    tables
}

struct Interface(BTreeMap<String, DescriptorProto>);

impl Interface {
    fn load() -> (Interface, BTreeSet<String>) {
        let set = FileDescriptorSet::decode(api_cri::DESCRIPTOR_SET).unwrap();
        let messages = set.file.iter().flat_map(|f| &f.message_type);
        let messages = messages.map(|m| (m.name().to_owned(), m.clone())).collect();
        let methods = set.file.iter().flat_map(|f| &f.service).flat_map(|s| &s.method);
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        (Interface(messages), methods.map(|m| last(m.input_type())).collect())
    }

    /// The paths of all fields of a message and of those in it.
    fn unfold(&self, message: &str, before: &str, all: &mut BTreeSet<String>) {
        for field in &self.0[message].field {
            let path = format!("{before}{}", field.name());
            all.insert(path.clone());
            let inner = field.type_name().rsplit('.').next().unwrap_or_default();
            let known = field.r#type() == Type::Message && self.0.contains_key(inner);
            if known && !TABLES.contains(&inner) {
                assert!(path.len() < 200, "{path}: a message that holds itself");
                self.unfold(inner, &format!("{path}."), all);
            }
        }
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tables() -> BTreeMap<String, BTreeMap<String, Row>> {
    rows(&fs::read_to_string(project().join("api/cri/FIELDS.md")).unwrap())
}

#[test]
fn every_field_has_a_row_and_every_row_a_field() {
    let (interface, requests) = Interface::load();
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for table in TABLES {
        interface.unfold(table, "", wanted.entry(table.to_owned()).or_default());
    }
    for request in &requests {
        let all = wanted.entry("Requests".to_owned()).or_default();
        interface.unfold(request, &format!("{request}."), all);
    }
    let tables = tables();
    assert_eq!(tables.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (table, fields) in wanted {
        let rows = &tables[&table];
        // `a.*` stands for all that lies below `a`, where all of it has the same lot.
        let stands = |row: &str, field: &str| match row.strip_suffix('*') {
            Some(above) => field.starts_with(above),
            None => row == field,
        };
        for field in &fields {
            match rows.keys().filter(|row| stands(row, field)).count() {
                1 => {}
                n => wrong.push(format!("{table}: {field} has {n} rows")),
            }
        }
        for row in rows.keys().filter(|row| !fields.iter().any(|f| stands(row, f))) {
            wrong.push(format!("{table}: {row} is no field"));
        }
    }
    assert!(wrong.is_empty(), "FIELDS.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_row_says_what_its_state_asks_for() {
    let mut wrong = Vec::new();
    for (table, rows) in tables() {
        for (field, row) in rows {
            let mut at = |what: &str| wrong.push(format!("{table}: {field}: {what}"));
            if !STATES.contains(&row.state.as_str()) {
                at("the state is none");
            }
            if row.words.is_empty() {
                at("no words");
            }
            if row.state == "honoured" && row.tests.is_empty() {
                at("honoured, and no test says so");
            }
            if row.state == "refused" && row.refusals.is_empty() {
                at("refused, and with no error");
            }
            let refusals = row.refusals.split("; ").filter(|r| !r.is_empty());
            for refusal in refusals {
                let code = refusal.split_once(" `").filter(|(_, text)| text.ends_with('`'));
                if !code.is_some_and(|(code, _)| CODES.contains(&code)) {
                    at(&format!("{refusal} is no code and text"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "FIELDS.md:\n{}", wrong.join("\n"));
}

/// Tests are named as `TestName` (tests/conformance) or as `path/of/file.rs: name`.
#[test]
fn every_test_that_a_row_names_is_there() {
    let mut specs = BTreeSet::new();
    for entry in fs::read_dir(project().join("tests/conformance")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with("_test.go") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|l| l.strip_prefix("func ")?.split_once('('));
            specs.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
    assert!(specs.contains("TestFieldsThatAreRefused"));
    let there = |test: &str| match test.split_once(": ") {
        None => specs.contains(test),
        Some((file, name)) => fs::read_to_string(project().join(file))
            .is_ok_and(|text| text.contains(&format!("fn {name}("))),
    };
    let mut wrong = Vec::new();
    for (table, rows) in tables() {
        for (field, row) in rows {
            let tests = row.tests.split(", ").map(|t| t.trim_matches('`'));
            for test in tests.filter(|t| !t.is_empty() && !there(t)) {
                wrong.push(format!("{table}: {field}: there is no test {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "FIELDS.md:\n{}", wrong.join("\n"));
}
