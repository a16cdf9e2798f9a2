//! The notations of the command line: durations, sizes, ports, mounts, users.
//!
//! ```text
//! 30  30s  2m  1.5h  500ms          duration (a bare number is seconds)
//! 64Mi  64M  1Gi  65536             memory, in Kubernetes' units
//! 8080:80  53:53/udp  [::1]:80:80   port
//! 8080:80  80  :80                  port to forward to a pod
//! /srv:/srv:ro  ./data:/data        volume
//! 1000  1000:100  nobody            user
//! ```
//! Each function is a value parser for clap; its error says what was expected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api_cri::v1::Protocol;
use jiff::Timestamp;

/// Why a value was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    #[error("expected a duration such as 30s, 2m, 1h or 500ms")]
    Duration,
    #[error("expected a size such as 64Mi, 1Gi or 65536; m and g are no units of Kubernetes'")]
    Memory,
    #[error("expected a number of processors such as 0.5 or 2, at least 0.01")]
    Cpus,
    #[error("expected a time such as 2026-11-24T07:36:22Z, or how long ago, such as 10m")]
    Time,
    #[error("expected KEY=VALUE")]
    Env,
    #[error("there is no variable {0} in this environment")]
    EnvUnset(String),
    #[error("expected HOST:CONTAINER or HOST:CONTAINER:ro, and CONTAINER an absolute path")]
    Volume,
    #[error("{0} does not exist")]
    VolumeMissing(PathBuf),
    #[error("expected HOST:CONTAINER[/PROTOCOL], ports from 1 to 65535, protocol tcp, udp or sctp")]
    Port,
    #[error("expected REMOTE, LOCAL:REMOTE or :REMOTE, REMOTE from 1 to 65535")]
    Forward,
    #[error("expected a user's number or name, then perhaps a colon and a group's number")]
    User,
    #[error("expected USER:PASSWORD")]
    Creds,
}

/// A limit of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory(pub(crate) i64);

/// A limit of processor time in thousandths of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) i64);

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Env {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// A mount from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Absolute.
    pub(crate) host: PathBuf,
    /// Absolute.
    pub(crate) container: String,
    pub(crate) readonly: bool,
}

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Empty for every address.
    pub(crate) ip: String,
    pub(crate) host: u16,
    pub(crate) container: u16,
    pub(crate) protocol: Protocol,
}

/// A port of this machine that leads to one of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward {
    /// 0 for any that is free.
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// As whom to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum User {
    Number { uid: i64, gid: Option<i64> },
    Name { name: String, gid: Option<i64> },
}

/// What to log in to a registry with. Its `Debug` does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Creds {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Creds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Creds").field("user", &self.user).finish_non_exhaustive()
    }
}

type Parsed<T> = Result<T, QuantityError>;

/// Splits "1.5h" into 1.5 and "h". Numbers are digits with at most one point: no sign, no exponent.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.ends_with('.') {
        return None;
    }
    Some((digits.parse().ok()?, unit))
}

pub(crate) fn duration(text: &str) -> Parsed<Duration> {
    let (count, unit) = number(text).ok_or(QuantityError::Duration)?;
    let seconds = match unit {
        "" | "s" => count,
        "ms" => count / 1000.0,
        "m" => count * 60.0,
        "h" => count * 3600.0,
        "d" => count * 86400.0,
        _ => return Err(QuantityError::Duration),
    };
    // What is more than a century would not fit in the wire's nanoseconds.
    if seconds > 100.0 * 366.0 * 86400.0 {
        return Err(QuantityError::Duration);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| QuantityError::Duration)
}

pub(crate) fn since(text: &str) -> Parsed<Timestamp> {
    if let Ok(ago) = duration(text) {
        let ago = jiff::SignedDuration::try_from(ago).map_err(|_| QuantityError::Time)?;
        return Timestamp::now().checked_sub(ago).map_err(|_| QuantityError::Time);
    }
    text.parse().map_err(|_| QuantityError::Time)
}

pub(crate) fn memory(text: &str) -> Parsed<Memory> {
    let (count, unit) = number(text).ok_or(QuantityError::Memory)?;
    let factor: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(QuantityError::Memory),
    };
    let bytes = (count * factor).round();
    if !(1.0..9e15).contains(&bytes) {
        return Err(QuantityError::Memory);
    }
    Ok(Memory(bytes as i64))
}

pub(crate) fn cpus(text: &str) -> Parsed<Cpus> {
    match number(text) {
        Some((count, "")) if (0.01..=100_000.0).contains(&count) => {
            Ok(Cpus((count * 1000.0).round() as i64))
        }
        _ => Err(QuantityError::Cpus),
    }
}

pub(crate) fn env(text: &str) -> Parsed<Env> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None if text.is_empty() => return Err(QuantityError::Env),
        None => (text, std::env::var(text).map_err(|_| QuantityError::EnvUnset(text.into()))?),
    };
    if key.is_empty() {
        return Err(QuantityError::Env);
    }
    Ok(Env { key: key.into(), value })
}

pub(crate) fn volume(text: &str) -> Parsed<Volume> {
    let mut parts = text.split(':');
    let (Some(host), Some(container)) = (parts.next(), parts.next()) else {
        return Err(QuantityError::Volume);
    };
    let readonly = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(QuantityError::Volume),
    };
    if parts.next().is_some() || host.is_empty() || !container.starts_with('/') {
        return Err(QuantityError::Volume);
    }
    let host = if host.starts_with('/') {
        PathBuf::from(host)
    } else {
        // The runtime works in another directory.
        Path::new(host).canonicalize().map_err(|_| QuantityError::VolumeMissing(host.into()))?
    };
    Ok(Volume { host, container: container.into(), readonly })
}

pub(crate) fn port(text: &str) -> Parsed<Port> {
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((ports, "sctp")) => (ports, Protocol::Sctp),
        Some(_) => return Err(QuantityError::Port),
    };
    let (rest, container) = ports.rsplit_once(':').ok_or(QuantityError::Port)?;
    let (ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => (ip, host),
        None => ("", rest),
    };
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if (!ip.is_empty() || rest.contains(':')) && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(QuantityError::Port);
    }
    let one = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && !text.starts_with('+') => Ok(port),
        _ => Err(QuantityError::Port),
    };
    Ok(Port { ip: ip.into(), host: one(host)?, container: one(container)?, protocol })
}

pub(crate) fn forward(text: &str) -> Parsed<Forward> {
    let one = |text: &str| match text.parse::<u16>() {
        Ok(port) if !text.starts_with('+') => Ok(port),
        _ => Err(QuantityError::Forward),
    };
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (0, one(remote)?),
        Some((local, remote)) => (one(local)?, one(remote)?),
        None => (one(text)?, one(text)?),
    };
    if remote == 0 { Err(QuantityError::Forward) } else { Ok(Forward { local, remote }) }
}

pub(crate) fn user(text: &str) -> Parsed<User> {
    let id = |text: &str| match text.parse::<u32>() {
        Ok(id) if !text.starts_with('+') => Some(i64::from(id)),
        _ => None,
    };
    let (user, gid) = match text.split_once(':') {
        Some((user, gid)) => (user, Some(id(gid).ok_or(QuantityError::User)?)),
        None => (text, None),
    };
    match id(user) {
        Some(uid) => Ok(User::Number { uid, gid }),
        None if user.is_empty() || user.starts_with('+') => Err(QuantityError::User),
        None if user.bytes().all(|b| b.is_ascii_digit()) => Err(QuantityError::User),
        None => Ok(User::Name { name: user.into(), gid }),
    }
}

pub(crate) fn creds(text: &str) -> Parsed<Creds> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => {
            Ok(Creds { user: user.into(), password: password.into() })
        }
        _ => Err(QuantityError::Creds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "s", "-1s", "1w", "1e9s", "1.", ".5s", "99999999d", "nan", "1 s"] {
            assert_eq!(duration(wrong), Err(QuantityError::Duration), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(memory("64Mi"), Ok(Memory(64 << 20)));
        assert_eq!(memory("1.5Gi"), Ok(Memory(3 << 29)));
        assert_eq!(memory("64M"), Ok(Memory(64_000_000)));
        assert_eq!(memory("65536"), Ok(Memory(65536)));
        for wrong in ["", "0", "64m", "64g", "-1", "64MiB", "99999999999999999999", "Mi"] {
            assert_eq!(memory(wrong), Err(QuantityError::Memory), "{wrong}");
        }
        assert_eq!(cpus("0.5"), Ok(Cpus(500)));
        assert_eq!(cpus("2"), Ok(Cpus(2000)));
        for wrong in ["0", "500m", "-1", "", "1e9"] {
            assert_eq!(cpus(wrong), Err(QuantityError::Cpus), "{wrong}");
        }
    }

    #[test]
    fn ports_to_forward() {
        let made = |local, remote| Ok(Forward { local, remote });
        assert_eq!(forward("80"), made(80, 80));
        assert_eq!(forward("8080:80"), made(8080, 80));
        assert_eq!(forward(":80"), made(0, 80));
        assert_eq!(forward("0:80"), made(0, 80));
        for wrong in ["", ":", "0", "80:", "80:0", "+1", "1:+1", "65536", "1:2:3", "http", "-1"] {
            assert_eq!(forward(wrong), Err(QuantityError::Forward), "{wrong}");
        }
    }

    #[test]
    fn ports() {
        let p =
            |ip: &str, host, container, protocol| Port { ip: ip.into(), host, container, protocol };
        assert_eq!(port("8080:80"), Ok(p("", 8080, 80, Protocol::Tcp)));
        assert_eq!(port("8080:80/tcp"), Ok(p("", 8080, 80, Protocol::Tcp)));
        assert_eq!(port("53:53/udp"), Ok(p("", 53, 53, Protocol::Udp)));
        assert_eq!(port("127.0.0.1:1:2"), Ok(p("127.0.0.1", 1, 2, Protocol::Tcp)));
        assert_eq!(port("[::1]:1:2/sctp"), Ok(p("::1", 1, 2, Protocol::Sctp)));
        for wrong in
            ["", "80", "0:80", "80:0", "80:65536", "80:80/icmp", "x:1:2", ":80:80", "+1:2", "1:2/"]
        {
            assert_eq!(port(wrong), Err(QuantityError::Port), "{wrong}");
        }
    }

    #[test]
    fn volumes() {
        let v = volume("/a:/b:ro").unwrap();
        assert_eq!(
            (v.host.as_path(), v.container.as_str(), v.readonly),
            (Path::new("/a"), "/b", true)
        );
        assert!(!volume("/a:/b").unwrap().readonly);
        assert!(volume(".:/b").unwrap().host.is_absolute());
        for wrong in ["", "/a", "/a:b", ":/b", "/a:/b:rx", "/a:/b:ro:z"] {
            assert_eq!(volume(wrong), Err(QuantityError::Volume), "{wrong}");
        }
        assert!(matches!(volume("./no-such-thing:/b"), Err(QuantityError::VolumeMissing(_))));
    }

    #[test]
    fn users_variables_and_credentials() {
        assert_eq!(user("1000"), Ok(User::Number { uid: 1000, gid: None }));
        assert_eq!(user("0:0"), Ok(User::Number { uid: 0, gid: Some(0) }));
        assert_eq!(user("nobody:5"), Ok(User::Name { name: "nobody".into(), gid: Some(5) }));
        for wrong in ["", ":", "a:b", "99999999999", "+1", "1:-1"] {
            assert_eq!(user(wrong), Err(QuantityError::User), "{wrong}");
        }
        assert_eq!(env("A=b=c"), Ok(Env { key: "A".into(), value: "b=c".into() }));
        assert_eq!(env("=x"), Err(QuantityError::Env));
        assert!(matches!(env("NO_SUCH_VARIABLE_HERE"), Err(QuantityError::EnvUnset(_))));
        assert_eq!(creds("u:p:q").unwrap().password, "p:q");
        assert_eq!(creds("u"), Err(QuantityError::Creds));
        assert!(!format!("{:?}", creds("u:secret").unwrap()).contains("secret"));
    }

    #[test]
    fn times() {
        assert_eq!(since("2026-11-24T07:36:22Z").unwrap().as_second(), 1795505782);
        assert!(since("10m").unwrap() < Timestamp::now());
        assert_eq!(since("yesterday"), Err(QuantityError::Time));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9a-zA-Z.:/\\[\\]=+-]{0,24}|\\PC{0,12}") {
            let _ = (duration(&text), memory(&text), cpus(&text), port(&text), user(&text));
            let _ = (env(&text), creds(&text), since(&text), volume(&text));
        }
    }
}
