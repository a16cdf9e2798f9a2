//! What `criod config` prints: every key with its meaning, as TOML that reads back to the same.
//!
//! ```text
//! # What the key means.
//! # key = "value"          the default: a comment
//! # Default: "value"
//! key = "other"            not the default
//! ```
//! The order is that of the tables, handlers and workloads follow by name: the same configuration
//! gives the same bytes.

use crate::config::Config;
use crate::file::{RUNTIMES, WORKLOADS, join};
use crate::handler::{RuntimeHandler, Workload};
use crate::key::{Key, Keyed, Status};

const TOP: &str = "\
# Configuration of criod. The keys are those of CRI-O.
#
# This file is /etc/crio/crio.conf. What it says is replaced, key by key, by the files in
# /etc/crio/crio.conf.d, in the order of their names, then by environment variables, then by flags.
# A line that is a comment shows the default. Keys marked \"no effect yet\" are understood, and
# warned about where they are set.
";

/// The built-in defaults, all of them comments: the file that a package installs.
pub fn default_toml() -> String {
    to_toml(&Config::default(), &Config::default())
}

/// `config` with a comment on each key. A key is a comment only if it is the default both of this
/// machine, `defaults`, and of none in particular: what this machine lacks (systemd, a runtime) is
/// spelled out.
pub fn to_toml(config: &Config, defaults: &Config) -> String {
    let everywhere = Config::default();
    let mut out = String::from(TOP);
    let mut section = "";
    for key in Config::keys().iter().filter(|k| !is_alias(k)) {
        if key.section != section {
            if section == "crio.runtime" {
                repeated(config, defaults, &mut out);
            }
            section = key.section;
            out.push_str(&format!("\n[{section}]\n"));
        }
        let same = (key.same)(config, defaults) && (key.same)(config, &everywhere);
        entry(key, config, &everywhere, same, &mut out);
    }
    out
}

/// Keys that only add to another one: they are never set when a configuration is complete.
fn is_alias(key: &Key<Config>) -> bool {
    key.name == "plugin_dir"
}

fn entry<C>(key: &Key<C>, value: &C, default: &C, same: bool, out: &mut String) {
    out.push('\n');
    for line in key.help {
        out.push_str(&format!("#{line}\n"));
    }
    if key.status == Status::Accepted {
        out.push_str("# (no effect yet)\n");
    }
    let line = format!("{} = {}", key.name, (key.render)(value));
    if same {
        comment(&line, out);
    } else {
        if !(key.same)(value, default) {
            comment(&format!("Default: {}", (key.render)(default)), out);
        }
        out.push_str(&line);
        out.push('\n');
    }
}

fn comment(text: &str, out: &mut String) {
    for line in text.lines() {
        out.push_str(&format!("# {line}\n"));
    }
}

/// An example of each table that repeats, then those that there are, with what is not the default.
fn repeated(config: &Config, defaults: &Config, out: &mut String) {
    out.push_str("\n# A runtime handler. crun and runc need no table where they are in PATH.\n");
    example::<RuntimeHandler>(&format!("{RUNTIMES}.NAME"), out);
    for (name, handler) in &config.runtimes {
        let known = defaults.runtimes.get(name) == Some(handler);
        let text = table(&join(RUNTIMES, name), handler);
        if known { comment_table(&text, out) } else { out.push_str(&text) }
    }
    out.push_str("\n# A kind of pod with resources of its own.\n");
    example::<Workload>(&format!("{WORKLOADS}.NAME"), out);
    for (name, workload) in &config.workloads {
        out.push_str(&table(&join(WORKLOADS, name), workload));
    }
}

fn comment_table(text: &str, out: &mut String) {
    out.push_str("\n# Found in PATH:\n");
    comment(text.trim(), out);
}

fn example<C: Keyed>(header: &str, out: &mut String) {
    comment(&format!("[{header}]"), out);
    let value = C::default();
    for key in C::keys() {
        entry(key, &value, &value, true, out);
    }
}

fn table<C: Keyed>(header: &str, value: &C) -> String {
    let default = C::default();
    let mut out = format!("\n[{header}]\n");
    for key in C::keys().iter().filter(|k| !(k.same)(value, &default)) {
        out.push_str(&format!("{} = {}\n", key.name, (key.render)(value)));
    }
    out
}
