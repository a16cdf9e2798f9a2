//! The command line and the environment.
//!
//! Each key with a flag has a `clap::Arg` of the same name. Every one of them is taken as text and
//! read by the key itself, so that a mistake has the same words wherever it stands.

use clap::{Arg, ArgAction, ArgMatches, ValueHint};

use crate::config::Config;
use crate::error::{Error, Origin, Warning};
use crate::file::{RUNTIMES, join};
use crate::handler::RuntimeHandler;
use crate::key::{Key, Keyed, Status};
use crate::load::Sources;
use crate::setting::{Kind, Setting, expected_text};
use crate::types::{ByteSize, RuntimeType};

/// Flags that CRI-O has and that mean nothing here; the second says whether a value follows.
const IGNORED: [(&str, bool); 6] = [
    ("profile", false),
    ("profile-port", true),
    ("profile-cpu", true),
    ("profile-mem", true),
    ("enable-profile-unix-socket", false),
    ("address", true),
];

/// The flags of the daemon's command, in the order of the table: `--config` and `--config-dir`,
/// one for each key that has one, and those that are understood and ignored.
pub fn flags() -> Vec<Arg> {
    let mut all = vec![
        Arg::new("config")
            .long("config")
            .short('c')
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .action(ArgAction::Append)
            .help("The configuration file; \"\" reads none [default: /etc/crio/crio.conf]"),
        Arg::new("config-dir")
            .long("config-dir")
            .short('d')
            .value_name("DIR")
            .value_hint(ValueHint::DirPath)
            .action(ArgAction::Append)
            .help("The folder of files over it; \"\" reads none [default: /etc/crio/crio.conf.d]"),
        Arg::new("runtimes")
            .long("runtimes")
            .value_name("HANDLER")
            .action(ArgAction::Append)
            .help_heading("crio.runtime")
            .help(
                "Runtime handlers: name:path:root[:type[:privileged_without_host_devices\
                 [:config_path[:container_min_memory]]]]",
            ),
    ];
    all.extend(Config::keys().iter().filter_map(arg));
    all.extend(IGNORED.iter().map(|(name, value)| {
        let arg = Arg::new(*name).long(*name).hide(true).action(ArgAction::Append);
        if *value { arg } else { switch(arg) }
    }));
    all
}

fn switch(arg: Arg) -> Arg {
    arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
}

fn arg(key: &Key<Config>) -> Option<Arg> {
    let name = key.flag_name()?;
    let help: Vec<_> = key.help.iter().map(|l| l.trim()).collect();
    let mut arg = Arg::new(name.clone())
        .long(name)
        .action(ArgAction::Append)
        .help(help.join(" "))
        .help_heading(key.section)
        .hide(key.hidden)
        .hide_short_help(key.status == Status::Accepted);
    if let Some(short) = key.short {
        arg = arg.short(short);
    }
    if let Some(alias) = key.alias {
        arg = arg.visible_alias(alias);
    }
    arg = match key.kind {
        Kind::Bool => switch(arg),
        Kind::Many => arg.value_name("VALUE,…"),
        Kind::One | Kind::Table => arg.value_name("VALUE"),
    };
    Some(arg.allow_negative_numbers(key.kind == Kind::One))
}

/// What was given for `flag`; `None` also if the command has no such flag.
pub(crate) fn given(matches: &ArgMatches, flag: &str) -> Option<Vec<String>> {
    let words = matches.try_get_many::<String>(flag).ok().flatten()?;
    Some(words.cloned().collect())
}

/// Reads the environment over `config`. A variable that is set to nothing says nothing.
pub(crate) fn apply_env(
    env: &dyn Fn(&str) -> Option<String>,
    config: &mut Config,
    sources: &mut Sources,
) -> Result<(), Error> {
    for key in Config::keys() {
        let found = key
            .env_names()
            .into_iter()
            .find_map(|name| env(&name).filter(|v| !v.is_empty()).map(|v| (name, v)));
        if let Some((name, value)) = found {
            parse(key, &[value], Origin::Env(name), config, sources)?;
        }
    }
    let name = "CONTAINER_RUNTIMES";
    if let Some(value) = env(name).filter(|v| !v.is_empty()) {
        handlers(&[value], Origin::Env(name.to_owned()), config, sources)?;
    }
    Ok(())
}

/// Reads the command line over `config`.
pub(crate) fn apply_flags(
    matches: &ArgMatches,
    config: &mut Config,
    sources: &mut Sources,
    warnings: &mut Vec<Warning>,
) -> Result<(), Error> {
    for key in Config::keys() {
        let Some(name) = key.flag_name() else { continue };
        if let Some(words) = given(matches, &name) {
            parse(key, &words, Origin::Flag(name), config, sources)?;
        }
    }
    if let Some(words) = given(matches, "runtimes") {
        handlers(&words, Origin::Flag("runtimes".to_owned()), config, sources)?;
    }
    for (name, _) in IGNORED {
        if given(matches, name).is_some() {
            warnings.push(Warning::IgnoredFlag { flag: name.to_owned() });
        }
    }
    Ok(())
}

fn parse(
    key: &Key<Config>,
    words: &[String],
    origin: Origin,
    config: &mut Config,
    sources: &mut Sources,
) -> Result<(), Error> {
    match (key.parse)(config, words) {
        Ok(()) => {
            sources.keys.insert(key.path(), origin);
            Ok(())
        }
        Err(problem) => Err(Error::Value { origin, key: key.path(), problem }),
    }
}

fn handlers(
    words: &[String],
    origin: Origin,
    config: &mut Config,
    sources: &mut Sources,
) -> Result<(), Error> {
    for word in words.iter().flat_map(|w| w.split(',')).filter(|w| !w.is_empty()) {
        let (name, handler) = handler(word).map_err(|problem| Error::Value {
            origin: origin.clone(),
            key: RUNTIMES.to_owned(),
            problem,
        })?;
        let path = join(RUNTIMES, &name);
        sources.forget(&path);
        sources.keys.insert(path, origin.clone());
        config.runtimes.insert(name, handler);
    }
    Ok(())
}

/// `name:path:root:type:privileged_without_host_devices:config_path:container_min_memory`.
fn handler(word: &str) -> Result<(String, RuntimeHandler), String> {
    let fields: Vec<&str> = word.split(':').collect();
    let what = "name:path:root and up to four more fields";
    let mut fields = match fields.len() {
        3..=7 => fields.into_iter(),
        _ => return Err(expected_text(what, word)),
    };
    let mut next = || fields.next().unwrap_or_default();
    let (name, path, root) = (next(), next(), next());
    let (kind, privileged, config, memory) = (next(), next(), next(), next());
    if name.is_empty() {
        return Err(expected_text(what, word));
    }
    let one = |s: &str| [s.to_owned()];
    let mut handler = RuntimeHandler::at(path);
    handler.runtime_root = Setting::parse(&one(root))?;
    handler.runtime_type =
        Option::<RuntimeType>::parse(&one(kind))?.unwrap_or(handler.runtime_type);
    if !privileged.is_empty() {
        handler.privileged_without_host_devices = bool::parse(&one(privileged))?;
    }
    handler.runtime_config_path = Setting::parse(&one(config))?;
    handler.container_min_memory = Option::<ByteSize>::parse(&one(memory))?;
    Ok((name.to_owned(), handler))
}
