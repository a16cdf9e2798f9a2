//! The OCI runtime's command line, and what it says when it fails.
//!
//! ```text
//! RUNTIME runtime_args… --log FILE --log-format json create --bundle B --pid-file F [--console-socket S] ID
//! ```
//! Errors come by `--log`, not by stderr, which is the container's.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use api_monitor::monitor::Config;

/// How much of a runtime's log is read.
const LOG_MAX: u64 = 16 << 10;

/// The standard streams of a runtime call; `None` is the node's /dev/null.
#[derive(Default)]
pub(crate) struct Stdio3 {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Stdio3 {
    /// Those that a process of the container gets: crun gives them to its user, and whoever owns a
    /// file may change its mode. What is not wanted is a null device of this process's own.
    pub(crate) fn for_container(self) -> io::Result<Stdio3> {
        let Stdio3 { stdin, stdout, stderr } = self;
        if stdin.is_some() && stdout.is_some() && stderr.is_some() {
            return Ok(Stdio3 { stdin, stdout, stderr });
        }
        let null = sys::null::private()
            .map_err(|e| io::Error::new(e.kind(), format!("a null device: {e}")))?;
        let end = |fd: Option<OwnedFd>| fd.map_or_else(|| null.try_clone(), Ok).map(Some);
        Ok(Stdio3 { stdin: end(stdin)?, stdout: end(stdout)?, stderr: end(stderr)? })
    }
}

/// Starts `runtime verb args… id` and returns its pid. It logs into `log`.
pub(crate) fn spawn(config: &Config, log: &Path, verb: &[&str], stdio: Stdio3) -> io::Result<i32> {
    match fs::remove_file(log) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let end = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
    let child = Command::new(&config.runtime)
        .args(&config.runtime_args)
        .arg("--log")
        .arg(log)
        .args(["--log-format", "json"])
        .args(verb)
        .arg(&config.id)
        .env_clear()
        .envs(config.env.iter().filter_map(|e| e.split_once('=')))
        .current_dir(&config.bundle)
        .stdin(end(stdio.stdin))
        .stdout(end(stdio.stdout))
        .stderr(end(stdio.stderr))
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", config.runtime)))?;
    i32::try_from(child.id()).map_err(io::Error::other)
}

/// What the runtime wrote of its failure: the last error in its log.
pub(crate) fn failure(config: &Config, verb: &str, status: i32, log: &Path) -> String {
    // The end of it: what ends a call is said last.
    let text = tail(log).unwrap_or_default();
    let said = text
        .lines()
        .rev()
        .filter(|l| l.contains("error") || l.contains("fatal"))
        .find_map(message)
        .or_else(|| text.lines().rev().find_map(message));
    let name = Path::new(&config.runtime).file_name().unwrap_or_default().to_string_lossy();
    match said {
        Some(said) => format!("{name} {verb}: {said}"),
        None if status & 0x7f != 0 => format!("{name} {verb}: killed by signal {}", status & 0x7f),
        None => format!("{name} {verb}: exit status {}", status >> 8 & 0xff),
    }
}

/// The last [`LOG_MAX`] bytes of a file, whatever they are.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The string of the key `msg` of a JSON object. Enough of a parser for a runtime's log line.
fn message(line: &str) -> Option<String> {
    let rest = line.split_once("\"msg\"")?.1.trim_start().strip_prefix(':')?;
    let mut chars = rest.trim_start().strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'u' => {
                    let code: String = chars.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&code, 16).ok()?;
                    text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
}

/// Reads the pid that the runtime wrote.
pub(crate) fn pid_from(path: &Path) -> io::Result<i32> {
    let pid = fs::read_to_string(path)?.trim().parse().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: no pid", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_single_process_is_no_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        for text in ["0", "1", "-1", "", "x", "99999999999"] {
            fs::write(&path, text).unwrap();
            assert!(pid_from(&path).is_err(), "{text:?}");
        }
        fs::write(&path, "42\n").unwrap();
        assert_eq!(pid_from(&path).unwrap(), 42);
    }

    #[test]
    fn the_last_error_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let config = Config { runtime: "/usr/bin/runc".into(), ..Config::new() };
        fs::write(
            &log,
            "{\"level\":\"warning\",\"msg\":\"odd\"}\n\
             {\"level\":\"error\",\"msg\":\"exec: \\\"nope\\\": not found\\u0021\",\"time\":\"x\"}\n",
        )
        .unwrap();
        let said = failure(&config, "create", 256, &log);
        assert_eq!(said, "runc create: exec: \"nope\": not found!");
        fs::write(&log, "{\"msg\":\"unfinished").unwrap();
        assert_eq!(failure(&config, "start", 9, &log), "runc start: killed by signal 9");
        fs::remove_file(&log).unwrap();
        assert_eq!(failure(&config, "start", 3 << 8, &log), "runc start: exit status 3");
    }
}
