//! What can go wrong with a network, one variant for each operation.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::version::UnknownVersion;

/// A failed operation of CNI.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder of configurations could not be read.
    #[error("cannot read the CNI configuration folder {dir}")]
    ReadDir {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No valid configuration, or none with the wanted name.
    #[error("no CNI network{} in {dir}{}", wanted_text(wanted), rejected_text(rejected))]
    NoNetwork {
        /// The folder.
        dir: PathBuf,
        /// The network's name that was asked for.
        wanted: Option<String>,
        /// The files that were not usable, each with the reason.
        rejected: Vec<(PathBuf, String)>,
    },
    /// A configuration file could not be read.
    #[error("cannot read the CNI configuration {path}")]
    ReadConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configuration is not JSON.
    #[error("the CNI configuration {path} is not valid JSON")]
    ParseConfig {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A configuration's content is not usable.
    #[error("the CNI configuration {path} is not valid: {reason}")]
    InvalidConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The attachment has a name that the specification does not allow, or lacks something.
    #[error("cannot attach container {container}: {value:?} is no usable {what}")]
    InvalidAttachment {
        /// The container's id.
        container: String,
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A value could not be written as JSON.
    #[error("cannot write {what} as JSON")]
    Encode {
        /// What.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// There is no such plugin.
    #[error("CNI plugin {plugin:?} not found in {}", dirs_text(dirs))]
    PluginMissing {
        /// The plugin's type.
        plugin: String,
        /// The folders that were searched.
        dirs: Vec<PathBuf>,
    },
    /// The plugin could not be started, or its output not be read.
    #[error("cannot run CNI plugin {plugin} for {verb}")]
    Exec {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The plugin did not end in time; it and its children were killed.
    #[error(
        "CNI plugin {plugin} did not end {verb} within {timeout:?} and was killed{}",
        stderr_text(stderr)
    )]
    Timeout {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// The limit.
        timeout: Duration,
        /// What it had said on standard error.
        stderr: String,
    },
    /// The plugin wrote more than a result can have; it and its children were killed.
    #[error("CNI plugin {plugin} wrote more than {limit} bytes for {verb} and was killed")]
    OutputTooLarge {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The plugin reported an error in the specification's form (section 5, "Error").
    #[error(
        "CNI plugin {plugin} failed {verb}: {msg} (code {code}){}{}",
        details_text(details),
        stderr_text(stderr)
    )]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// The code; 1 to 99 are the specification's, 11 asks to try again later.
        code: u32,
        /// The message.
        msg: String,
        /// More; may be empty.
        details: String,
        /// What it said on standard error.
        stderr: String,
    },
    /// The plugin failed without an error in the specification's form.
    #[error(
        "CNI plugin {plugin} failed {verb}: {status}{}{}",
        stdout_text(stdout),
        stderr_text(stderr)
    )]
    PluginFailed {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it said on standard output.
        stdout: String,
        /// What it said on standard error.
        stderr: String,
    },
    /// The plugin ended well but its result cannot be understood.
    #[error(
        "CNI plugin {plugin} answered {verb} with what is no result: {reason}{}{}",
        stdout_text(stdout),
        stderr_text(stderr)
    )]
    BadResult {
        /// The plugin's type.
        plugin: String,
        /// ADD, DEL, ...
        verb: &'static str,
        /// What is wrong.
        reason: String,
        /// The beginning of what it said on standard output.
        stdout: String,
        /// What it said on standard error.
        stderr: String,
    },
    /// The configuration's version has no such verb.
    #[error("network {network} speaks CNI {version}, which has no {verb}")]
    Unsupported {
        /// The network's name.
        network: String,
        /// The version.
        version: crate::Version,
        /// CHECK.
        verb: &'static str,
    },
    /// CHECK needs the result of an ADD.
    #[error("no cached result of network {network} for container {container}")]
    NotCached {
        /// The network's name.
        network: String,
        /// The container's id.
        container: String,
    },
    /// The cache could not be read, written or cleared.
    #[error("cannot {action} the CNI cache {path}")]
    Cache {
        /// "read", "write" or "remove".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Several attachments or plugins failed; each error stands for itself.
    #[error("{} CNI operations failed: {}", .0.len(), list_text(.0))]
    Several(
        /// What failed.
        Vec<Error>,
    ),
    /// A version that is not known.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
}

impl Error {
    /// The code of a plugin's own error (section 5 of the specification).
    pub fn code(&self) -> Option<u32> {
        match self {
            Error::Plugin { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// One error for none, one or several.
    pub(crate) fn collect(mut errors: Vec<Error>) -> crate::Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

fn wanted_text(wanted: &Option<String>) -> String {
    wanted.as_ref().map(|name| format!(" named {name:?}")).unwrap_or_default()
}

fn rejected_text(rejected: &[(PathBuf, String)]) -> String {
    let reasons: Vec<String> =
        rejected.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

fn dirs_text(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    if dirs.is_empty() { "no folder at all".to_owned() } else { dirs.join(", ") }
}

fn labelled(label: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {label}: {text}") }
}

fn details_text(text: &str) -> String {
    labelled("details", text)
}

fn stdout_text(text: &str) -> String {
    labelled("stdout", text)
}

fn stderr_text(text: &str) -> String {
    labelled("stderr", text)
}

fn list_text(errors: &[Error]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
    texts.join("; ")
}
