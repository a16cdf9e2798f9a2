//! Generates the crate's types from proto/monitor.proto, without protoc.
//!
//! ```text
//! monitor.proto ──┬─ protobuf-codegen ─► monitor.rs         messages
//!                 └─ ttrpc-codegen ────► monitor_ttrpc.rs   service (feature `ttrpc`)
//! ```
//!
//! Both files begin with inner attributes (`#![allow(…)]`), which may not stand where `include!`
//! puts them; they are taken out, and lib.rs gives its own.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const PROTO: &str = "proto/monitor.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);

    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input(PROTO)
        // No reflection: descriptors would be linked into every monitor, and nothing asks for them.
        .customize(protobuf_codegen::Customize::default().lite_runtime(true).gen_mod_rs(false))
        .out_dir(&out)
        .run()?;
    without_inner_attributes(&out.join("monitor.rs"))?;

    #[cfg(feature = "ttrpc")]
    {
        ttrpc_codegen::Codegen::new()
            .include("proto")
            .input(PROTO)
            .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
            .out_dir(&out)
            .run()?;
        without_inner_attributes(&out.join("monitor_ttrpc.rs"))?;
    }
    Ok(())
}

/// Takes the lines with inner attributes and inner documentation out of a generated file.
fn without_inner_attributes(path: &Path) -> std::io::Result<()> {
    let text: String = fs::read_to_string(path)?
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(path, text)
}
