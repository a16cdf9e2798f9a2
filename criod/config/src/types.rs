//! The types of values that are more than a string: choices, sizes, durations, limits, pairs.
//!
//! Each has one spelling in a file ([`Text`]) and is checked when it is read, so that whoever holds
//! a [`Config`](crate::Config) need not check again.

use std::fmt;
use std::time::Duration;

use crate::setting::{Kind, Problem, Setting, Text, expected, expected_text, quoted};
use toml::Spanned;
use toml::de::DeValue;

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// The spelling in a file.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Text for $name {
            const WHAT: &'static str = "a string";
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => {
                        let all: &[&str] = &[$($text),+];
                        let names: Vec<_> = all.iter().map(|t| quoted(t)).collect();
                        Err(expected_text(&format!("one of {}", names.join(", ")), other))
                    }
                }
            }
            fn to_text(&self) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

choice! {
    /// Who makes the cgroups of pods and containers.
    CgroupManager {
        /// systemd, over D-Bus: slices and scopes.
        Systemd = "systemd",
        /// criod and the runtime themselves, in the file system.
        Cgroupfs = "cgroupfs",
    }
}
choice! {
    /// How a runtime handler is driven.
    RuntimeType {
        /// A command of the OCI runtime command line (runc, crun, youki).
        Oci = "oci",
        /// A shim of containerd's v2 protocol (Kata Containers).
        Vm = "vm",
        /// One monitor for all containers of a pod; criod treats it as `oci`.
        Pod = "pod",
    }
}
choice! {
    /// What becomes of the volumes that an image declares.
    ImageVolumes {
        /// A folder in the container's writable layer.
        Mkdir = "mkdir",
        /// A folder outside of it, mounted.
        Bind = "bind",
        /// Nothing.
        Ignore = "ignore",
    }
}
choice! {
    /// What becomes of a name without a registry that more than one registry could serve.
    ShortNameMode {
        /// An error.
        Enforcing = "enforcing",
        /// The first registry that has it.
        Disabled = "disabled",
    }
}
choice! {
    /// How much is logged.
    LogLevel {
        /// Only what ends the daemon.
        Fatal = "fatal",
        /// The same as `fatal` for criod.
        Panic = "panic",
        /// Failures.
        Error = "error",
        /// And what looks wrong.
        Warn = "warn",
        /// And what happened.
        Info = "info",
        /// And why.
        Debug = "debug",
        /// And everything.
        Trace = "trace",
    }
}
choice! {
    /// The form of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}
choice! {
    /// The lowest TLS version that is spoken.
    TlsVersion {
        /// 1.2.
        Tls12 = "VersionTLS12",
        /// 1.3.
        Tls13 = "VersionTLS13",
    }
}
choice! {
    /// What can be done with checkpoints of containers.
    CheckpointRestore {
        /// Nothing.
        None = "none",
        /// They can be written.
        CheckpointOnly = "checkpoint_only",
        /// They can be written and containers started from them.
        CheckpointRestore = "checkpoint_restore",
    }
}

/// A size in bytes, written `12MiB`, `500KiB`, `1GB` or as a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl Text for ByteSize {
    const WHAT: &'static str = "a size such as \"12MiB\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || expected_text(Self::WHAT, text);
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(ByteSize).ok_or_else(bad)
    }

    fn to_text(&self) -> String {
        let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (factor, unit) in units {
            if self.0 != 0 && self.0.is_multiple_of(factor) {
                return format!("{}{unit}", self.0 / factor);
            }
        }
        self.0.to_string()
    }
}

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text)
    }
}

/// A duration in Go's spelling: `30s`, `1m30s`, `1.5h`, `250ms`; in files `""` is the default.
impl Text for Duration {
    const WHAT: &'static str = "a duration such as \"30s\" or \"1m30s\"";
    const EMPTY_IS_DEFAULT: bool = true;

    fn from_text(text: &str) -> Result<Self, String> {
        parse_duration(text).ok_or_else(|| expected_text(Self::WHAT, text))
    }

    fn to_text(&self) -> String {
        let nanos = self.as_nanos();
        let (secs, sub) = (self.as_secs(), self.subsec_nanos());
        if sub == 0 {
            let (h, m, s) = (secs / 3600, secs / 60 % 60, secs % 60);
            let mut out = String::new();
            if h > 0 {
                out.push_str(&format!("{h}h"));
            }
            if h > 0 || m > 0 {
                out.push_str(&format!("{m}m"));
            }
            out.push_str(&format!("{s}s"));
            return out;
        }
        match (nanos % 1_000_000, nanos % 1000) {
            (0, _) => format!("{}ms", nanos / 1_000_000),
            (_, 0) => format!("{}us", nanos / 1000),
            _ => format!("{nanos}ns"),
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(whole_len);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(tail) => {
                let len = tail.bytes().take_while(u8::is_ascii_digit).count();
                tail.split_at(len)
            }
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let (unit, after) = [
            ("ns", 1u128),
            ("us", 1000),
            ("µs", 1000),
            ("μs", 1000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000),
        ]
        .into_iter()
        .find_map(|(name, nanos)| after.strip_prefix(name).map(|tail| (nanos, tail)))?;
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        // What is below a nanosecond of the largest unit needs 13 digits; more change nothing.
        let digits = fraction.get(..fraction.len().min(15))?;
        if !digits.is_empty() {
            let part: u128 = digits.parse().ok()?;
            let scale = 10u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
            total = total.checked_add(part.checked_mul(unit)? / scale)?;
        }
        rest = after;
    }
    // Go's durations are 63 bits of nanoseconds.
    let nanos = u64::try_from(total).ok().filter(|n| i64::try_from(*n).is_ok())?;
    Some(Duration::from_nanos(nanos))
}

/// A resource limit of processes, written `nofile=1024:2048` or `nofile=1024`; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// The name in lower case without the prefix: `nofile`.
    pub name: String,
    /// The soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// The hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}

const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Text for Ulimit {
    const WHAT: &'static str = "a limit such as \"nofile=1024:2048\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || expected_text(Self::WHAT, text);
        let (name, limits) = text.split_once('=').ok_or_else(bad)?;
        let name = name.trim().to_ascii_lowercase();
        if !ULIMITS.contains(&name.as_str()) {
            return Err(format!("{} is not the name of a limit", quoted(&name)));
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |s: &str| match s.trim() {
            "-1" | "unlimited" => Ok(u64::MAX),
            s => s.parse::<u64>().map_err(|_| bad()),
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(format!("the soft limit of {} is above the hard one", quoted(text)));
        }
        Ok(Ulimit { name, soft, hard })
    }

    fn to_text(&self) -> String {
        let number = |n: u64| if n == u64::MAX { "-1".to_owned() } else { n.to_string() };
        format!("{}={}:{}", self.name, number(self.soft), number(self.hard))
    }
}

/// A Linux capability, in upper case without the prefix: `NET_BIND_SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(String);

impl Capability {
    /// The name without prefix: `CHOWN`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as in a runtime's specification: `CAP_CHOWN`.
    pub fn full(&self) -> String {
        format!("CAP_{}", self.0)
    }

    /// Reads `CHOWN`, `CAP_CHOWN` or `cap_chown`; `None` if no kernel knows it.
    pub fn new(name: &str) -> Option<Self> {
        let upper = name.trim().to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        CAPABILITIES.contains(&bare).then(|| Capability(bare.to_owned()))
    }
}

/// In the order of their numbers (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Text for Capability {
    const WHAT: &'static str = "the name of a capability";
    fn from_text(text: &str) -> Result<Self, String> {
        Capability::new(text).ok_or_else(|| format!("{} is not a capability", quoted(text)))
    }
    fn to_text(&self) -> String {
        self.0.clone()
    }
}

/// `NAME=value`, an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Never empty.
    pub name: String,
    /// May be empty.
    pub value: String,
}

impl Text for EnvVar {
    const WHAT: &'static str = "NAME=value";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok(EnvVar { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(expected_text(Self::WHAT, text)),
        }
    }
    fn to_text(&self) -> String {
        format!("{}={}", self.name, self.value)
    }
}

/// `name=value`, a kernel parameter that has a value of its own in each pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Dotted name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Sysctl {
    /// Whether the parameter belongs to a namespace of the pod, so that the node is untouched.
    pub fn is_namespaced(name: &str) -> bool {
        let name = name.replace('/', ".");
        name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."]
                .iter()
                .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
    }
}

impl Text for Sysctl {
    const WHAT: &'static str = "name=value";
    fn from_text(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| expected_text(Self::WHAT, text))?;
        let (name, value) = (name.trim(), value.trim());
        if !Sysctl::is_namespaced(name) {
            return Err(format!("{} is not a parameter of a pod's namespaces", quoted(name)));
        }
        Ok(Sysctl { name: name.to_owned(), value: value.to_owned() })
    }
    fn to_text(&self) -> String {
        format!("{}={}", self.name, self.value)
    }
}

/// A host device for containers, written `/dev/host:/dev/inside:rwm`; the last two may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Path on the host, below /dev.
    pub host: String,
    /// Path in the container, below /dev.
    pub inside: String,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

impl Text for DeviceSpec {
    const WHAT: &'static str = "a device such as \"/dev/fuse:/dev/fuse:rwm\"";
    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || expected_text(Self::WHAT, text);
        let is_mode = |s: &str| {
            (1..=3).contains(&s.len())
                && s.bytes().enumerate().all(|(i, b)| {
                    b"rwm".contains(&b) && !s.as_bytes().iter().take(i).any(|seen| *seen == b)
                })
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (host, inside, permissions) = match parts.as_slice() {
            [host] => (*host, *host, "rwm"),
            [host, mode] if is_mode(mode) => (*host, *host, *mode),
            [host, inside] => (*host, *inside, "rwm"),
            [host, inside, mode] if is_mode(mode) => (*host, *inside, *mode),
            _ => return Err(bad()),
        };
        let below_dev = |p: &str| p.starts_with("/dev/") && !p.split('/').any(|c| c == "..");
        if !below_dev(host) || !below_dev(inside) {
            return Err(bad());
        }
        Ok(DeviceSpec {
            host: host.to_owned(),
            inside: inside.to_owned(),
            permissions: permissions.to_owned(),
        })
    }
    fn to_text(&self) -> String {
        format!("{}:{}:{}", self.host, self.inside, self.permissions)
    }
}

impl std::str::FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text)
    }
}

/// A port that files write as a string (`"0"`); a bare number is understood, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextPort(pub u16);

impl Setting for TextPort {
    const KIND: Kind = Kind::One;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        let text = match value.get_ref() {
            DeValue::String(s) => s.as_ref(),
            DeValue::Integer(i) if i.radix() == 10 => i.as_str(),
            _ => return Err(expected(PORT, value)),
        };
        text.parse().map(TextPort).map_err(|_| expected(PORT, value))
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        let word = words.last().map(String::as_str).unwrap_or_default();
        word.parse().map(TextPort).map_err(|_| expected_text(PORT, word))
    }

    fn render(&self) -> String {
        quoted(&self.0.to_string())
    }
}

const PORT: &str = "a port from 0 to 65535";

/// A greatest message size in bytes; what is zero or less in a file is the default of 80 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageSize(pub u32);

impl MessageSize {
    /// 80 MiB.
    pub const DEFAULT: MessageSize = MessageSize(80 * 1024 * 1024);
}

impl Setting for MessageSize {
    const KIND: Kind = Kind::One;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        let bytes = i64::read(value)?;
        MessageSize::from_bytes(bytes).ok_or_else(|| expected(MESSAGE_SIZE, value))
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        let bytes = i64::parse(words)?;
        MessageSize::from_bytes(bytes)
            .ok_or_else(|| expected_text(MESSAGE_SIZE, &bytes.to_string()))
    }

    fn render(&self) -> String {
        self.0.to_string()
    }
}

const MESSAGE_SIZE: &str = "a size in bytes below 2 GiB";

impl MessageSize {
    fn from_bytes(bytes: i64) -> Option<Self> {
        match bytes {
            ..=0 => Some(Self::DEFAULT),
            // gRPC's length field has 32 bits, and clients use signed ones.
            _ => i32::try_from(bytes).ok().and_then(|b| u32::try_from(b).ok()).map(MessageSize),
        }
    }
}

#[cfg(test)]
mod tests;
