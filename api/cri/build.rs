//! Generates the crate's types from proto/runtime/v1/api.proto, without protoc.
//!
//! Three files go to OUT_DIR:
//!
//! ```text
//! api.proto ──protox──► descriptors ──┬─► runtime.v1.rs       messages, clients, servers
//!                                     ├─► names.rs            every enum's `json::Named`
//!                                     └─► descriptor_set.bin  DESCRIPTOR_SET
//! ```
//!
//! Each field carries the serde attributes that make its JSON that of the protobuf specification's
//! JSON mapping: the name in lowerCamelCase, enums by name, 64-bit integers as strings, bytes in
//! base64.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};
use tonic_prost_build::Builder;

const PROTO: &str = "proto/runtime/v1/api.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut set = protox::compile([PROTO], ["proto"])?;

    let mut builder = tonic_prost_build::configure()
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        .build_client(env::var_os("CARGO_FEATURE_CLIENT").is_some())
        // Clients are given their channel: the interface is spoken over unix sockets only.
        .build_transport(false)
        .generate_default_stubs(true)
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .message_attribute(".", "#[derive(::serde::Serialize)]");
    let mut names = String::new();
    for file in &set.file {
        let package = file.package();
        for m in &file.message_type {
            builder = message(builder, &mut names, &format!(".{package}.{}", m.name()), m)?;
        }
        for e in &file.enum_type {
            named(&mut names, e.name(), e)?;
        }
    }
    fs::write(out.join("names.rs"), names)?;
    builder.compile_fds(set.clone())?;

    for file in &mut set.file {
        file.source_code_info = None;
    }
    write_descriptors(&out, &set)?;
    Ok(())
}

fn write_descriptors(out: &Path, set: &prost_types::FileDescriptorSet) -> std::io::Result<()> {
    use protox::prost::Message as _;
    fs::write(out.join("descriptor_set.bin"), set.encode_to_vec())
}

/// Gives every field of a message, and of the messages in it, its serde attributes.
fn message(
    mut builder: Builder,
    names: &mut String,
    path: &str,
    m: &DescriptorProto,
) -> Result<Builder, Box<dyn Error>> {
    // A map is a nested message to the compiler, and a BTreeMap here. Those of this interface are
    // all from string to string, which serde writes as the mapping wants.
    let maps: Vec<_> = m
        .nested_type
        .iter()
        .filter(|n| n.options.as_ref().is_some_and(|o| o.map_entry()))
        .map(|n| format!("{path}.{}", n.name()))
        .collect();
    for field in &m.field {
        let mut attribute = format!("rename = {:?}", field.json_name());
        if !maps.iter().any(|map| map == field.type_name())
            && let Some(with) = serializer(field)?
        {
            write!(attribute, ", serialize_with = {with:?}")?;
        }
        builder = builder
            .field_attribute(format!("{path}.{}", field.name()), format!("#[serde({attribute})]"));
    }
    for e in &m.enum_type {
        named(names, &format!("{}::{}", snake(m.name()), e.name()), e)?;
    }
    for n in &m.nested_type {
        let nested = format!("{path}.{}", n.name());
        if !maps.contains(&nested) {
            builder = message(builder, names, &nested, n)?;
        }
    }
    Ok(builder)
}

/// The function of `crate::json` for a field that serde alone would not write as it should.
fn serializer(field: &FieldDescriptorProto) -> Result<Option<String>, Box<dyn Error>> {
    let repeated = field.label() == Label::Repeated;
    Ok(Some(match field.r#type() {
        Type::Enum | Type::Bytes if repeated => {
            return Err(format!("no JSON is written for the list {}", field.name()).into());
        }
        Type::Enum => {
            // `.runtime.v1.Outer.Inner` is `v1::outer::Inner` in Rust.
            let parts: Vec<_> = field.type_name().split('.').skip(3).collect();
            let (name, outer) = parts.split_last().ok_or("an enum field without a type")?;
            let outer: String = outer.iter().map(|o| format!("{}::", snake(o))).collect();
            format!("crate::json::enumeration::<crate::v1::{outer}{name}, _>")
        }
        Type::Int64 | Type::Uint64 if repeated => "crate::json::integers".into(),
        Type::Int64 | Type::Uint64 => "crate::json::integer".into(),
        Type::Bytes => "crate::json::bytes".into(),
        _ => return Ok(None),
    }))
}

/// Appends the `Named` of one enum.
fn named(names: &mut String, path: &str, e: &EnumDescriptorProto) -> Result<(), Box<dyn Error>> {
    if e.value.is_empty() {
        return Err(format!("enum {path} has no values").into());
    }
    writeln!(
        names,
        "impl crate::json::Named for crate::v1::{path} {{
    fn name(self) -> &'static str {{
        self.as_str_name()
    }}
}}"
    )?;
    Ok(())
}

/// SecurityProfile → security_profile.
fn snake(camel: &str) -> String {
    let mut snake = String::new();
    for (i, c) in camel.chars().enumerate() {
        if c.is_ascii_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
