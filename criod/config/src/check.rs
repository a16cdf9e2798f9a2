//! What no key can check alone: values that depend on each other, runtimes that must exist.

use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Origin, Warning};
use crate::file::{RUNTIMES, WORKLOADS, join};
use crate::handler::RuntimeHandler;
use crate::key::{Keyed, Status};
use crate::load::{Loaded, Sources};
use crate::machine::{Machine, is_program};
use crate::setting::quoted;
use crate::types::RuntimeType;

/// The least seconds for a stop, and for the creation of a container.
const LEAST_SECONDS: i64 = 30;
/// The least size of a log that is bounded: a single line can have that.
const LEAST_LOG: i64 = 8192;

/// The groups of pods' metrics, and what stands for all of them.
pub const POD_METRICS: [&str; 11] = [
    "cpu", "disk", "diskIO", "hugetlb", "memory", "network", "oom", "pressure", "process", "spec",
    "all",
];

/// Checks and completes values; needs nothing of the machine.
pub(crate) fn values(loaded: &mut Loaded) -> Result<(), Error> {
    no_effect(loaded);
    let Loaded { config, warnings, sources, .. } = loaded;
    let mut warn = |key: &str, problem: String| {
        let origin = sources.origin(key);
        warnings.push(Warning::Value { origin, key: key.to_owned(), problem });
    };
    let refuse = |key: &str, problem: &str| {
        let origin = sources.origin(key);
        Err(Error::Value { origin, key: key.to_owned(), problem: problem.to_owned() })
    };

    if config.ctr_stop_timeout < LEAST_SECONDS {
        warn(
            "crio.runtime.ctr_stop_timeout",
            format!("{} is below {LEAST_SECONDS}, which is used", config.ctr_stop_timeout),
        );
        config.ctr_stop_timeout = LEAST_SECONDS;
    }
    for (name, handler) in &mut config.runtimes {
        if handler.container_create_timeout < LEAST_SECONDS {
            let seconds = handler.container_create_timeout;
            let key = format!("{}.container_create_timeout", join(RUNTIMES, name));
            warn(&key, format!("{seconds} is below {LEAST_SECONDS}, which is used"));
            handler.container_create_timeout = LEAST_SECONDS;
        }
    }
    if config.pull_progress_timeout.is_zero() {
        warn(
            "crio.image.pull_progress_timeout",
            "without a limit one registry that stalls holds up every pull of the node".to_owned(),
        );
    }
    if let Some(dir) = config.plugin_dir.take() {
        warn(
            "crio.network.plugin_dir",
            "this is the older form of plugin_dirs, to which it is added".to_owned(),
        );
        if !config.plugin_dirs.contains(&dir) {
            config.plugin_dirs.push(dir);
        }
    }
    if config.log_size_max >= 0 && config.log_size_max < LEAST_LOG {
        return refuse("crio.runtime.log_size_max", "expected at least 8192, or -1 for no limit");
    }
    if !config.bind_mount_prefix.is_empty() && !config.bind_mount_prefix.starts_with('/') {
        return refuse("crio.runtime.bind_mount_prefix", "expected an absolute path");
    }
    for (key, value) in [
        ("crio.runtime.uid_mappings", &config.uid_mappings),
        ("crio.runtime.gid_mappings", &config.gid_mappings),
    ] {
        if !value.is_empty() {
            return refuse(key, "expected none: each pod asks for a user namespace of its own");
        }
    }
    let groups = &config.included_pod_metrics;
    if let Some(unknown) = groups.iter().find(|g| !POD_METRICS.contains(&g.as_str())) {
        let all = POD_METRICS.join(", ");
        let problem = format!("{} is no group of metrics; there are {all}", quoted(unknown));
        return refuse("crio.stats.included_pod_metrics", &problem);
    }
    if config.root == config.runroot {
        return refuse("crio.runroot", "expected a folder other than crio.root");
    }
    if config.stream_enable_tls
        && (config.stream_tls_cert.is_none() || config.stream_tls_key.is_none())
    {
        return refuse(
            "crio.api.stream_enable_tls",
            "TLS needs a certificate and its key in stream_tls_cert and stream_tls_key",
        );
    }
    Ok(())
}

/// Warns about keys that somebody set to something other than the default and that do nothing.
fn no_effect(loaded: &mut Loaded) {
    let Loaded { config, defaults, warnings, sources } = loaded;
    look(Config::keys(), "", config, defaults, sources, warnings);
    let fresh = RuntimeHandler::default();
    for (name, handler) in &config.runtimes {
        let table = join(RUNTIMES, name);
        look(RuntimeHandler::keys(), &table, handler, &fresh, sources, warnings);
    }
    for name in config.workloads.keys() {
        let key = join(WORKLOADS, name);
        warnings.push(Warning::NoEffect { origin: sources.origin(&key), key });
    }
}

fn look<C: Keyed>(
    keys: &[crate::key::Key<C>],
    table: &str,
    value: &C,
    default: &C,
    sources: &Sources,
    warnings: &mut Vec<Warning>,
) {
    for key in keys.iter().filter(|k| k.status == Status::Accepted) {
        let path = if table.is_empty() { key.path() } else { join(table, key.name) };
        let origin = sources.origin(&path);
        if origin != Origin::Default && !(key.same)(value, default) {
            warnings.push(Warning::NoEffect { key: path, origin });
        }
    }
}

/// Finds the handlers' programs. A handler that cannot work is left out with a warning; if it is
/// the default, that is an error. Afterwards `runtime_path` of each handler is absolute, and
/// `default_runtime` names one of them.
pub(crate) fn runtimes(machine: &Machine, loaded: &mut Loaded) -> Result<(), Error> {
    let Loaded { config, warnings, sources, defaults } = loaded;
    if config.default_runtime.is_empty() {
        config.default_runtime.clone_from(&defaults.default_runtime);
    }
    if config.default_runtime.is_empty() {
        return Err(Error::NoRuntime);
    }
    let name = config.default_runtime.clone();
    let key = "crio.runtime.default_runtime";
    let refuse = |problem: String| {
        let origin = sources.origin(key);
        Err(Error::Value { origin, key: key.to_owned(), problem })
    };
    let default = match config.runtimes.get(&name) {
        None => return refuse(format!("there is no handler {}", quoted(&name))),
        Some(handler) if handler.inherit_default_runtime => {
            return refuse(format!("the handler {} inherits from itself", quoted(&name)));
        }
        Some(handler) => match complete(machine, &name, handler, None) {
            Ok(handler) => handler,
            Err(problem) => {
                return refuse(format!("the handler {} cannot work: {problem}", quoted(&name)));
            }
        },
    };
    let all = std::mem::take(&mut config.runtimes);
    for (other, handler) in all {
        if other == name {
            continue;
        }
        match complete(machine, &other, &handler, Some(&default)) {
            Ok(handler) => {
                config.runtimes.insert(other, handler);
            }
            Err(problem) => {
                let origin = sources.origin(&join(RUNTIMES, &other));
                warnings.push(Warning::HandlerDropped { name: other, origin, problem });
            }
        }
    }
    config.runtimes.insert(name, default);
    Ok(())
}

fn complete(
    machine: &Machine,
    name: &str,
    handler: &RuntimeHandler,
    default: Option<&RuntimeHandler>,
) -> Result<RuntimeHandler, String> {
    let mut handler = handler.clone();
    if let (true, Some(default)) = (handler.inherit_default_runtime, default) {
        handler.runtime_path.clone_from(&default.runtime_path);
        handler.runtime_type = default.runtime_type;
        handler.runtime_root.clone_from(&default.runtime_root);
        handler.runtime_config_path.clone_from(&default.runtime_config_path);
    }
    let program =
        if handler.runtime_path.is_empty() { name } else { handler.runtime_path.as_str() };
    if program.starts_with('/') {
        if !is_program(Path::new(program)) {
            return Err(format!("{} is not a program", quoted(program)));
        }
        handler.runtime_path = program.to_owned();
    } else {
        let found = machine.find(program);
        let found = found.as_deref().and_then(Path::to_str);
        handler.runtime_path =
            found.ok_or_else(|| format!("there is no {} in PATH", quoted(program)))?.to_owned();
    }
    let vm = handler.runtime_type == RuntimeType::Vm;
    if vm && !is_shim(&handler.runtime_path) {
        return Err(format!(
            "expected a program containerd-shim-NAME for the type vm, found {}",
            quoted(&handler.runtime_path)
        ));
    }
    if handler.runtime_config_path.is_some() && !vm {
        return Err("runtime_config_path is for the type vm alone".to_owned());
    }
    if handler.no_sync_log && handler.runtime_type != RuntimeType::Oci {
        return Err("no_sync_log is for the type oci alone".to_owned());
    }
    Ok(handler)
}

/// Whether the program has the name of a shim: `containerd-shim-` and letters, digits, - and +.
fn is_shim(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.strip_prefix("containerd-shim-").is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'+')
    })
}
