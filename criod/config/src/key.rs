//! The description of a key, and the macro by which a table of keys becomes a struct.
//!
//! A key is written down once:
//! ```text
//! ["crio.runtime"]
//! /// What it means, for people.            -> doc comment, --help, comment in `criod config`
//! name: Type = default => flag("x").accepted();
//!    |     |       |          '-- what is irregular: flag, variable, status
//!    |     |       '-- Default of the struct
//!    |     '-- reading, checking, writing (Setting)
//!    '-- field, TOML key; the flag is --name with dashes, the variable CONTAINER_<FLAG>
//! ```
//! Everything else — reading files, warnings, flags, output — walks over these descriptions.

use toml::Spanned;
use toml::de::DeValue;

use crate::setting::{Kind, Problem};

/// Whether criod does something with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// It has its effect.
    Supported,
    /// It is read and checked, but criod does not use it yet: a value other than the default is
    /// warned about.
    Accepted,
}

/// A name that usually follows from the key's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Regular,
    Is(&'static [&'static str]),
    None,
}

/// The description of one key of the struct `C`.
pub(crate) struct Key<C: 'static> {
    /// The TOML table, dotted; empty for the keys of a repeated table.
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    /// The doc comment's lines.
    pub(crate) help: &'static [&'static str],
    pub(crate) status: Status,
    pub(crate) kind: Kind,
    pub(crate) short: Option<char>,
    pub(crate) alias: Option<&'static str>,
    pub(crate) hidden: bool,
    pub(crate) flag: Name,
    pub(crate) env: Name,
    pub(crate) read: fn(&mut C, &Spanned<DeValue<'_>>) -> Result<(), Problem>,
    pub(crate) parse: fn(&mut C, &[String]) -> Result<(), String>,
    pub(crate) render: fn(&C) -> String,
    pub(crate) same: fn(&C, &C) -> bool,
}

impl<C> Key<C> {
    pub(crate) const fn accepted(mut self) -> Self {
        self.status = Status::Accepted;
        self
    }
    pub(crate) const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }
    pub(crate) const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
    pub(crate) const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }
    pub(crate) const fn flag(mut self, names: &'static [&'static str]) -> Self {
        self.flag = Name::Is(names);
        self
    }
    pub(crate) const fn env(mut self, names: &'static [&'static str]) -> Self {
        self.env = Name::Is(names);
        self
    }
    pub(crate) const fn no_env(mut self) -> Self {
        self.env = Name::None;
        self
    }
    pub(crate) const fn no_flag(mut self) -> Self {
        self.flag = Name::None;
        self.env = Name::None;
        self
    }

    /// `crio.runtime.cgroup_manager`.
    pub(crate) fn path(&self) -> String {
        if self.section.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }

    /// The flag without its dashes, if there is one.
    pub(crate) fn flag_name(&self) -> Option<String> {
        match self.flag {
            Name::Regular => Some(self.name.replace('_', "-")),
            Name::Is(names) => names.first().map(|n| (*n).to_owned()),
            Name::None => None,
        }
    }

    /// The environment variables, the one that counts most first.
    pub(crate) fn env_names(&self) -> Vec<String> {
        match (self.env, self.flag_name()) {
            (Name::None, _) | (Name::Regular, None) => Vec::new(),
            (Name::Is(names), _) => names.iter().map(|n| (*n).to_owned()).collect(),
            (Name::Regular, Some(flag)) => {
                vec![format!("CONTAINER_{}", flag.replace('-', "_").to_ascii_uppercase())]
            }
        }
    }
}

/// A struct that was made from a table of keys.
pub(crate) trait Keyed: Default + Clone + 'static {
    fn keys() -> &'static [Key<Self>];
}

/// Makes the struct, its `Default` and its keys from one table; see the top of this file.
macro_rules! keyed {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $([$section:literal] $(
                $(#[doc = $doc:literal])+
                $field:ident : $ty:ty = $default:expr
                $(=> $($opt:ident($($arg:expr)?)).+)? ;
            )*)+
        }
        $(also { $($(#[$ometa:meta])* pub $ofield:ident : $oty:ty,)* })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($($(#[doc = $doc])+ pub $field: $ty,)*)+
            $($($(#[$ometa])* pub $ofield: $oty,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($($field: $default,)*)+
                    $($($ofield: Default::default(),)*)?
                }
            }
        }

        impl $crate::key::Keyed for $name {
            fn keys() -> &'static [$crate::key::Key<Self>] {
                static KEYS: &[$crate::key::Key<$name>] = &[$($(
                    $crate::key::Key::<$name> {
                        section: $section,
                        name: stringify!($field),
                        help: &[$($doc),+],
                        status: $crate::key::Status::Supported,
                        kind: <$ty as $crate::setting::Setting>::KIND,
                        short: None,
                        alias: None,
                        hidden: false,
                        flag: $crate::key::Name::Regular,
                        env: $crate::key::Name::Regular,
                        read: |c, v| {
                            use $crate::setting::Setting;
                            if <$ty as Setting>::EMPTY_IS_DEFAULT
                                && v.get_ref().as_str() == Some("")
                            {
                                c.$field = <$name>::default().$field;
                            } else {
                                c.$field = <$ty as Setting>::read(v)?.over(&c.$field);
                            }
                            Ok(())
                        },
                        parse: |c, words| {
                            c.$field = <$ty as $crate::setting::Setting>::parse(words)?;
                            Ok(())
                        },
                        render: |c| <$ty as $crate::setting::Setting>::render(&c.$field),
                        same: |a, b| a.$field == b.$field,
                    }$($(.$opt($($arg)?))+)?,
                )*)+];
                KEYS
            }
        }
    };
}
pub(crate) use keyed;
