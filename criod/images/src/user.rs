//! The `User` of an image's config, as the kubelet wants to hear of it.
//!
//! ```text
//! ""              uid 0            "1000", "1000:…"     uid 1000
//! "app", "app:…"  username "app"   "99999999999999"     username: no user id is that large
//! ```
//!
//! Exactly one of the two is set: with neither, the kubelet would run a non-root image as root.

/// The user id, or the name where it is none.
pub(crate) fn of_config(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (Some(0), String::new());
    }
    match user.parse::<u32>() {
        // u32 takes a leading plus; a user's name could begin with one.
        Ok(uid) if !user.starts_with('+') => (Some(i64::from(uid)), String::new()),
        _ => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::of_config;

    #[test]
    fn one_of_two() {
        for (user, uid, name) in [
            ("", Some(0), ""),
            (":5", Some(0), ""),
            ("0", Some(0), ""),
            ("1000", Some(1000), ""),
            ("1000:1000", Some(1000), ""),
            ("1000:staff", Some(1000), ""),
            ("app", None, "app"),
            ("app:app", None, "app"),
            ("4294967295", Some(4_294_967_295), ""),
            ("4294967296", None, "4294967296"),
            ("-1", None, "-1"),
            ("+1", None, "+1"),
        ] {
            assert_eq!(of_config(user), (uid, name.to_owned()), "{user:?}");
        }
    }
}
