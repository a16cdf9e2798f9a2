//! Holds this workspace to the house's rules: prints what is wrong, and ends with 1 if anything is.
//!
//! Run it in the workspace, after `cargo fetch`: it asks cargo and git, and no network.

use std::path::Path;
use std::process::{Command, ExitCode};

use house::workspace::Workspace;
use house::{Finding, arrows, manifest, steps, tidy};

fn main() -> ExitCode {
    match findings() {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in findings {
                println!("{finding}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("house: {error}");
            ExitCode::FAILURE
        }
    }
}

fn findings() -> Result<Vec<Finding>, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let metadata = run(&cargo, &["metadata", "--no-deps", "--format-version", "1", "--offline"])?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata).map_err(|e| format!("cargo metadata: {e}"))?;
    let root = metadata["workspace_root"].as_str().unwrap_or(".").to_owned();
    let workspace =
        Workspace::parse(&metadata).ok_or("cargo metadata: not what is expected of it")?;

    let mut findings = arrows::check(&workspace);
    findings.extend(manifest::check_root(&read(&root, "Cargo.toml")?));
    for member in &workspace.members {
        let text = read(&root, &format!("{}/Cargo.toml", member.folder))?;
        findings.extend(manifest::check(&member.folder, &text));
        if member.room() == "monitor" {
            // As it is built: alone, so that nobody else's features count.
            let args =
                ["tree", "--offline", "-p", &member.name, "-e", "normal", "--prefix", "none"];
            let tree = run(&cargo, &args)?;
            findings.extend(arrows::closure(&member.name, &String::from_utf8_lossy(&tree)));
        }
    }
    let files = ["-C", &root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let files = String::from_utf8_lossy(&run("git", &files)?).into_owned();
    let mut all_steps = Vec::new();
    for path in files.split_terminator('\0') {
        // Not there: removed, and not yet said so to git.
        let Ok(text) = std::fs::read(Path::new(&root).join(path)) else { continue };
        findings.extend(tidy::check(path, &text));
        if let Ok(text) = std::str::from_utf8(&text)
            && steps::concerns(path)
        {
            findings.extend(steps::check(path, text));
            all_steps.extend(steps::steps(path, text));
        }
    }
    findings.extend(steps::check_names(all_steps));
    if files.is_empty() {
        return Err("git knows of no files here".into());
    }
    findings.sort();
    findings.dedup();
    Ok(findings)
}

fn read(root: &str, path: &str) -> Result<String, String> {
    std::fs::read_to_string(Path::new(root).join(path)).map_err(|e| format!("{path}: {e}"))
}

fn run(program: &str, args: &[&str]) -> Result<Vec<u8>, String> {
    let out = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("{program} {}: {}", args.first().unwrap_or(&""), said.trim()))
}
