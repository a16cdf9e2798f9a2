//! How a value of a key is read and written.
//!
//! ```text
//! TOML value  --read-->  typed value  --render-->  TOML text
//! flag, env   --parse-->     |
//!                         merge with what a lower file said (almost always: replace it)
//! ```
//!
//! [`Text`] is for what a single string stands for (a path, a size, a choice); [`Setting`] is for
//! what a key can hold: a text, a number, a boolean, a list of texts, a table of strings.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

/// What is wrong with a value, and where in the file's text if that is narrower than the key.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Byte range in the file.
    pub(crate) span: Range<usize>,
    /// What is wrong, as half a sentence.
    pub(crate) text: String,
}

/// What form a key's value has on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `--flag`, or `--flag=false`.
    Bool,
    /// One value; the last one given counts.
    One,
    /// Many: repeated, or separated by commas.
    Many,
    /// A table; it has no flag.
    Table,
}

/// A value that one string stands for.
pub(crate) trait Text: Sized {
    /// What is expected, with its article: "an absolute path".
    const WHAT: &'static str;
    /// Reads it; the error is half a sentence.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Writes what `from_text` reads.
    fn to_text(&self) -> String;
    /// Whether `""` in a file means the built-in default.
    const EMPTY_IS_DEFAULT: bool = false;
}

/// A value that a key can hold.
pub(crate) trait Setting: Sized + PartialEq {
    const KIND: Kind;
    const EMPTY_IS_DEFAULT: bool = false;
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem>;
    fn parse(words: &[String]) -> Result<Self, String>;
    fn render(&self) -> String;
    /// What becomes of this value, read from a file, over what lower files said.
    fn over(self, _lower: &Self) -> Self {
        self
    }
}

/// "the string "x"", "an array": what was found instead.
pub(crate) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("the string {}", quoted(&shortened(s))),
        DeValue::Integer(i) => format!("the integer {}", shortened(i.as_str())),
        DeValue::Float(f) => format!("the number {}", shortened(f.as_str())),
        DeValue::Boolean(b) => format!("the boolean {b}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn shortened(s: &str) -> String {
    const MOST: usize = 60;
    if s.chars().count() <= MOST {
        s.to_owned()
    } else {
        s.chars().take(MOST).chain(['…']).collect()
    }
}

/// "expected an integer, found the string "x"".
pub(crate) fn expected(what: &str, value: &Spanned<DeValue<'_>>) -> Problem {
    Problem {
        span: value.span(),
        text: format!("expected {what}, found {}", found(value.get_ref())),
    }
}

/// The same for text from a flag or the environment.
pub(crate) fn expected_text(what: &str, text: &str) -> String {
    format!("expected {what}, found {}", quoted(&shortened(text)))
}

/// A TOML basic string.
pub(crate) fn quoted(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML key: bare where that is allowed.
pub(crate) fn bare_or_quoted(key: &str) -> String {
    let bare =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { quoted(key) }
}

fn last(words: &[String]) -> &str {
    words.last().map(String::as_str).unwrap_or_default()
}

impl<T: Text + PartialEq> Setting for T {
    const KIND: Kind = Kind::One;
    const EMPTY_IS_DEFAULT: bool = T::EMPTY_IS_DEFAULT;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        match value.get_ref() {
            DeValue::String(s) => {
                T::from_text(s).map_err(|text| Problem { span: value.span(), text })
            }
            _ => Err(expected(T::WHAT, value)),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        T::from_text(last(words))
    }

    fn render(&self) -> String {
        quoted(&self.to_text())
    }
}

/// `""` is how a file says that there is none.
impl<T: Text + PartialEq> Setting for Option<T> {
    const KIND: Kind = Kind::One;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        match value.get_ref() {
            DeValue::String(s) if s.is_empty() => Ok(None),
            _ => <T as Setting>::read(value).map(Some),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        match last(words) {
            "" => Ok(None),
            text => T::from_text(text).map(Some),
        }
    }

    fn render(&self) -> String {
        self.as_ref().map_or_else(|| quoted(""), |v| quoted(&v.to_text()))
    }
}

impl<T: Text + PartialEq> Setting for Vec<T> {
    const KIND: Kind = Kind::Many;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(<T as Setting>::read).collect(),
            _ => Err(expected("an array of strings", value)),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        words
            .iter()
            .flat_map(|w| w.split(','))
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .map(T::from_text)
            .collect()
    }

    fn render(&self) -> String {
        match self.as_slice() {
            [] => "[]".to_owned(),
            [one] => format!("[{}]", quoted(&one.to_text())),
            many => {
                let mut out = String::from("[\n");
                for item in many {
                    out.push_str(&format!("    {},\n", quoted(&item.to_text())));
                }
                out.push(']');
                out
            }
        }
    }
}

/// A list that a higher file adds to instead of replacing it; what is there already stays once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additive(pub Vec<String>);

impl Deref for Additive {
    type Target = [String];
    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl Setting for Additive {
    const KIND: Kind = Kind::Many;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        Vec::<String>::read(value).map(Additive)
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        Vec::<String>::parse(words).map(Additive)
    }

    fn render(&self) -> String {
        self.0.render()
    }

    fn over(self, lower: &Self) -> Self {
        let mut all: Vec<String> = Vec::with_capacity(lower.0.len() + self.0.len());
        for item in lower.0.iter().chain(&self.0) {
            if !all.contains(item) {
                all.push(item.clone());
            }
        }
        Additive(all)
    }
}

impl Setting for BTreeMap<String, String> {
    const KIND: Kind = Kind::Table;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        match value.get_ref() {
            DeValue::Table(table) => table
                .iter()
                .map(|(k, v)| Ok((k.get_ref().to_string(), <String as Setting>::read(v)?)))
                .collect(),
            _ => Err(expected("a table of strings", value)),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        words
            .iter()
            .flat_map(|w| w.split(','))
            .map(|pair| {
                pair.split_once('=')
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .ok_or_else(|| expected_text("KEY=VALUE", pair))
            })
            .collect()
    }

    fn render(&self) -> String {
        if self.is_empty() {
            return "{}".to_owned();
        }
        let items: Vec<_> =
            self.iter().map(|(k, v)| format!("{} = {}", bare_or_quoted(k), quoted(v))).collect();
        format!("{{ {} }}", items.join(", "))
    }
}

impl Setting for bool {
    const KIND: Kind = Kind::Bool;

    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
        match value.get_ref() {
            DeValue::Boolean(b) => Ok(*b),
            _ => Err(expected("true or false", value)),
        }
    }

    fn parse(words: &[String]) -> Result<Self, String> {
        // The spellings that Go's flag libraries take.
        match last(words) {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(expected_text("true or false", other)),
        }
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Setting for $int {
            const KIND: Kind = Kind::One;

            fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, Problem> {
                let DeValue::Integer(digits) = value.get_ref() else {
                    return Err(expected("an integer", value));
                };
                // Separators and the prefix are gone from `as_str`, the base is in `radix`.
                let wide = i128::from_str_radix(digits.as_str(), digits.radix()).ok();
                wide.and_then(|n| <$int>::try_from(n).ok()).ok_or_else(|| {
                    expected(&format!("an integer from {} to {}", <$int>::MIN, <$int>::MAX), value)
                })
            }

            fn parse(words: &[String]) -> Result<Self, String> {
                last(words).trim().parse().map_err(|_| {
                    let what = format!("an integer from {} to {}", <$int>::MIN, <$int>::MAX);
                    expected_text(&what, last(words))
                })
            }

            fn render(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
integers!(i64, u32, u16, u64);

impl Text for String {
    const WHAT: &'static str = "a string";
    fn from_text(text: &str) -> Result<Self, String> {
        if text.contains('\0') {
            return Err("a string must not contain a NUL byte".to_owned());
        }
        Ok(text.to_owned())
    }
    fn to_text(&self) -> String {
        self.clone()
    }
}

/// A path of a setting is absolute, because the daemon's working directory says nothing.
impl Text for PathBuf {
    const WHAT: &'static str = "an absolute path";
    fn from_text(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(expected_text(Self::WHAT, text));
        }
        Ok(PathBuf::from(text))
    }
    fn to_text(&self) -> String {
        // Every path came from a string, so nothing is lost here.
        self.to_string_lossy().into_owned()
    }
}
