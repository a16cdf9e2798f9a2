//! Holds proto/runtime/v1/api.proto against the definition that Kubernetes publishes in the Go
//! module k8s.io/cri-api, in both directions.
//!
//! ```text
//! go mod download ──► api.proto ──protox──► facts ─┐
//!                                                  ├─ equal?
//! api_cri::DESCRIPTOR_SET ────────────────► facts ─┘
//! ```
//!
//! A definition is flattened into facts, one a line: a method with its request, response and
//! streaming; a field with its number, type, label and whether it is deprecated; an enum's value
//! with its number. What makes no difference on the wire or to a caller (comments, order,
//! reserved numbers, options for Go) is no fact.
//!
//! Needs `go`, and the module in Go's cache or a module proxy that has it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use protox::prost::Message;

const MODULE: &str = "k8s.io/cri-api@v0.37.2";

type Facts = BTreeSet<String>;

fn facts(set: &FileDescriptorSet) -> Facts {
    let mut facts = Facts::new();
    for file in set.file.iter().filter(|f| f.package() == "runtime.v1") {
        for e in &file.enum_type {
            enumeration(&mut facts, e.name(), e);
        }
        for m in &file.message_type {
            message(&mut facts, m.name(), m);
        }
        for service in &file.service {
            facts.insert(format!("service {}", service.name()));
            for m in &service.method {
                let stream = |yes: bool| if yes { "stream " } else { "" };
                facts.insert(format!(
                    "rpc {}.{}({}{}) returns ({}{})",
                    service.name(),
                    m.name(),
                    stream(m.client_streaming()),
                    m.input_type(),
                    stream(m.server_streaming()),
                    m.output_type(),
                ));
            }
        }
    }
    facts
}

fn enumeration(facts: &mut Facts, path: &str, e: &EnumDescriptorProto) {
    facts.insert(format!("enum {path}"));
    for v in &e.value {
        let old = v.options.as_ref().is_some_and(|o| o.deprecated());
        facts.insert(format!("enum {path}: {} = {}{}", v.name(), v.number(), deprecated(old)));
    }
}

fn message(facts: &mut Facts, path: &str, m: &DescriptorProto) {
    // A map's entry shows as `map` and is a message like any other: its key and value are facts.
    let map = m.options.as_ref().is_some_and(|o| o.map_entry());
    let old = m.options.as_ref().is_some_and(|o| o.deprecated());
    facts.insert(format!(
        "message {path}{}{}",
        if map { " (map entry)" } else { "" },
        deprecated(old)
    ));
    for f in &m.field {
        facts.insert(format!("message {path}: {}", field(f, m)));
    }
    for e in &m.enum_type {
        enumeration(facts, &format!("{path}.{}", e.name()), e);
    }
    for n in &m.nested_type {
        message(facts, &format!("{path}.{}", n.name()), n);
    }
}

fn field(f: &FieldDescriptorProto, m: &DescriptorProto) -> String {
    let label = match f.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if f.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match f.r#type() {
        Type::Message | Type::Enum | Type::Group => f.type_name().to_owned(),
        scalar => scalar.as_str_name().to_owned(),
    };
    let oneof = match f.oneof_index {
        Some(i) if !f.proto3_optional() => {
            format!(" in oneof {}", m.oneof_decl[usize::try_from(i).unwrap()].name())
        }
        _ => String::new(),
    };
    let old = f.options.as_ref().is_some_and(|o| o.deprecated());
    format!("{label}{kind} {} = {}{oneof}{}", f.name(), f.number(), deprecated(old))
}

fn deprecated(yes: bool) -> &'static str {
    if yes { " [deprecated]" } else { "" }
}

/// What one side has and the other has not; empty if they agree.
fn differences(ours: &Facts, theirs: &Facts) -> Vec<String> {
    let missing = theirs.difference(ours).map(|f| format!("- missing here:   {f}"));
    let extra = ours.difference(theirs).map(|f| format!("+ only here:      {f}"));
    missing.chain(extra).collect()
}

fn ours() -> FileDescriptorSet {
    FileDescriptorSet::decode(api_cri::DESCRIPTOR_SET).unwrap()
}

/// The folder of the published module.
fn module() -> PathBuf {
    let elsewhere = tempfile::tempdir().unwrap();
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .env("GOFLAGS", "-mod=mod")
        .current_dir(elsewhere.path())
        .output()
        .unwrap_or_else(|e| panic!("this test needs Go (`go` on PATH) to fetch {MODULE}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| {
        panic!("no JSON from `go mod download`: {e}\n{}", String::from_utf8_lossy(&output.stderr))
    });
    match answer["Dir"].as_str() {
        Some(dir) if output.status.success() => dir.into(),
        _ => panic!("`go mod download` could not fetch {MODULE}: {}", answer["Error"]),
    }
}

#[test]
fn the_definition_is_the_published_one() {
    let folder = module().join("pkg/apis/runtime/v1");
    let published = protox::compile(["api.proto"], [&folder]).unwrap();
    let (ours, theirs) = (facts(&ours()), facts(&published));
    // 43 methods and 175 messages with hundreds of fields: a reading that found nothing to compare
    // must not pass for an agreement.
    assert!(theirs.len() > 800, "only {} facts in {}", theirs.len(), folder.display());
    let differences = differences(&ours, &theirs);
    assert!(
        differences.is_empty(),
        "{} differences from {MODULE}:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// Changes the definition in one way and gives the differences that shows.
fn changed(change: impl FnOnce(&mut prost_types::FileDescriptorProto)) -> Vec<String> {
    let mut set = ours();
    change(set.file.iter_mut().find(|f| f.package() == "runtime.v1").unwrap());
    differences(&facts(&ours()), &facts(&set))
}

fn message_mut<'a>(
    file: &'a mut prost_types::FileDescriptorProto,
    name: &str,
) -> &'a mut DescriptorProto {
    file.message_type.iter_mut().find(|m| m.name() == name).unwrap()
}

#[test]
fn every_kind_of_difference_shows() {
    assert!(changed(|_| ()).is_empty());

    let number = changed(|f| message_mut(f, "Mount").field[0].number = Some(40));
    assert_eq!(number.len(), 2, "{number:?}");
    assert!(number[0].contains("container_path = 40"), "{number:?}");

    for change in [
        changed(|f| message_mut(f, "Mount").field[0].name = Some("other".into())),
        changed(|f| message_mut(f, "Mount").field[0].r#type = Some(Type::Bytes.into())),
        changed(|f| message_mut(f, "Mount").field[0].label = Some(Label::Repeated.into())),
        changed(|f| message_mut(f, "Mount").field[0].proto3_optional = Some(true)),
        changed(|f| {
            message_mut(f, "Mount").field[0].options.get_or_insert_default().deprecated = Some(true)
        }),
        changed(|f| message_mut(f, "ImageSpec").nested_type[0].options = None),
        changed(|f| f.enum_type[0].value[0].number = Some(9)),
        changed(|f| message_mut(f, "SecurityProfile").enum_type[0].value[1].number = Some(9)),
        changed(|f| f.service[0].method[0].server_streaming = Some(true)),
        changed(|f| f.service[0].method[0].input_type = Some(".runtime.v1.Mount".into())),
    ] {
        assert_eq!(change.len(), 2, "{change:?}");
    }
    for gone in [
        changed(|f| drop(f.service[0].method.remove(0))),
        changed(|f| drop(message_mut(f, "Mount").field.remove(3))),
        changed(|f| drop(f.enum_type[0].value.remove(1))),
        changed(|f| f.message_type.retain(|m| m.name() != "GetEventsRequest")),
    ] {
        assert_eq!(gone.len(), 1, "{gone:?}");
    }
}
