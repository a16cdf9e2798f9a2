//! An SELinux context: `user:role:type`, and with multi-level policies `:level`.

use std::fmt;
use std::str::FromStr;

use super::Options;
use crate::{Error, Result};

/// A context. The level may hold colons itself: `s0:c1,c2`, `s0-s0:c0.c1023`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Who.
    pub user: String,
    /// In which role.
    pub role: String,
    /// What.
    pub typ: String,
    /// How secret; policies without levels have none.
    pub level: Option<String>,
}

/// What may stand in a part: what policies are made of, and nothing that ends a mount option.
fn usable(value: &str, more: &str) -> bool {
    let each = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || more.contains(c);
    !value.is_empty() && value.len() <= 255 && value.chars().all(each)
}

impl FromStr for Context {
    type Err = Error;

    fn from_str(text: &str) -> Result<Context> {
        let bad = || Error::Context(text.to_owned());
        let mut parts = text.splitn(4, ':');
        let mut part = || parts.next().filter(|p| usable(p, "")).map(str::to_owned).ok_or_else(bad);
        let (user, role, typ) = (part()?, part()?, part()?);
        let level = parts.next().map(str::to_owned);
        if level.as_ref().is_some_and(|l| !usable(l, ":,")) {
            return Err(bad());
        }
        Ok(Context { user, role, typ, level })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.typ)?;
        self.level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

impl Context {
    /// This context with the parts that the options name.
    ///
    /// # Errors
    /// [`Error::Part`] for a part that is none.
    pub fn with(&self, options: &Options<'_>) -> Result<Context> {
        let or = |part, value: &str, own: &str, more| match value {
            "" => Ok(own.to_owned()),
            value if usable(value, more) => Ok(value.to_owned()),
            value => Err(Error::Part { part, value: value.to_owned() }),
        };
        let level = or("level", options.level, self.level.as_deref().unwrap_or_default(), ":,")?;
        Ok(Context {
            user: or("user", options.user, &self.user, "")?,
            role: or("role", options.role, &self.role, "")?,
            typ: or("type", options.typ, &self.typ, "")?,
            level: Some(level).filter(|l| !l.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn contexts() {
        for text in ["a_u:b_r:c_t", "a:b:c:s0", "a:b:c:s0:c1,c2", "a:b:c:s0-s15:c0.c1023"] {
            assert_eq!(text.parse::<Context>().unwrap().to_string(), text);
        }
        let level = "u:r:t:s0:c1,c2".parse::<Context>().unwrap().level;
        assert_eq!(level.as_deref(), Some("s0:c1,c2"));
        for text in
            ["", "a", "a:b", "a::c", ":b:c", "a:b:", "a:b:c:", "a b:c:d", "a:b:c\n", "a:b:c:s0\""]
        {
            assert!(text.parse::<Context>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_alike(text in "[a-z:,.0 \"]{0,30}") {
            if let Ok(context) = text.parse::<Context>() {
                prop_assert_eq!(context.to_string(), text);
            }
        }
    }
}
