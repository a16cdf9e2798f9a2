//! Whom a container runs as: the users and groups of its image, read from the bytes of its
//! `/etc/passwd` and `/etc/group`. The node's own users are never asked.
//!
//! ```text
//! "" ─► uid 0       "1000" ─► uid 1000       "www" ─► its row      "u:g" ─► u, with group g
//! gid: from ":group", else run_as_group, else the row's, else 0
//! ```

use crate::error::{Error, Result};
use crate::input::UserInput;

/// Which supplementary groups a process gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// Those that the image lists the user in, and those that were asked for.
    #[default]
    Merge,
    /// Only those that were asked for.
    Strict,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserRequest<'a> {
    /// `""`, `uid`, `name`, `uid:gid`, `name:group`, …: an image's USER, or a name or number that
    /// replaces it.
    pub user: &'a str,
    /// A group id that replaces whatever the user's row or text says.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub supplemental: &'a [u32],
    /// What else to add to them.
    pub policy: GroupsPolicy,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, the primary one among them, so that giving it up does not
    /// give up what it denies.
    pub groups: Vec<u32>,
    /// The name in the image's passwd, if the user has a row.
    pub name: Option<String>,
    /// The home folder in that row, `/` without one.
    pub home: String,
    /// Whether the image has a row for the user.
    pub in_passwd: bool,
}

impl ResolvedUser {
    /// As a spec takes it.
    #[must_use]
    pub fn to_input(&self) -> UserInput {
        UserInput {
            uid: self.uid,
            gid: self.gid,
            additional_gids: self.groups.clone(),
            umask: None,
        }
    }
}

/// A row of passwd.
struct PasswdRow<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves a user against an image's files; an absent file is an empty one.
///
/// A number is an id, never the name of a row, and needs no row: what an id may do is decided by who
/// gave it, and no image may turn it into another. Rows that cannot be read are skipped, as every
/// libc does; files need not be UTF-8 all over. Supplementary groups come from the image only
/// for a user who has a row.
///
/// # Errors
/// [`Error::UnknownName`], [`Error::IdRange`].
pub fn resolve(request: &UserRequest<'_>, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser> {
    let (user, group_text) = match request.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (request.user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = String::from_utf8_lossy(passwd);
    let group = String::from_utf8_lossy(group);

    let mut rows = passwd.lines().filter_map(passwd_row);
    let (uid, row) = match number("user", user)? {
        Some(uid) => (uid, rows.find(|row| row.uid == uid)),
        None => match rows.find(|row| row.name == user) {
            Some(row) => (row.uid, Some(row)),
            None => return Err(Error::UnknownName { what: "user", name: user.to_owned() }),
        },
    };
    let gid = match (request.gid, group_text) {
        (Some(gid), _) => gid,
        (None, Some(text)) => find_group(text, &group)?,
        (None, None) => row.as_ref().map_or(0, |row| row.gid),
    };
    let mut groups = request.supplemental.to_vec();
    groups.push(gid);
    if let (GroupsPolicy::Merge, Some(row)) = (request.policy, &row) {
        groups.extend(groups_of(row.name, &group));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(ResolvedUser {
        uid,
        gid,
        groups,
        name: row.as_ref().map(|row| row.name.to_owned()),
        home: row.as_ref().map_or("", |row| row.home).to_owned(),
        in_passwd: row.is_some(),
    })
    .map(|mut user| {
        if user.home.is_empty() {
            user.home.push('/');
        }
        user
    })
}

/// The id that a text of digits is; `None`: it is a name.
fn number(what: &'static str, text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    // u32::MAX means "unchanged" to the kernel.
    match text.parse() {
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => Err(Error::IdRange { what, value: text.to_owned() }),
    }
}

/// Whether a group file has a row for a group id.
#[must_use]
pub fn has_group(group: &[u8], gid: u32) -> bool {
    String::from_utf8_lossy(group).lines().filter_map(group_row).any(|(_, id, _)| id == gid)
}

fn find_group(text: &str, group: &str) -> Result<u32> {
    if let Some(gid) = number("group", text)? {
        return Ok(gid);
    }
    match group.lines().filter_map(group_row).find(|(name, ..)| *name == text) {
        Some((_, gid, _)) => Ok(gid),
        None => Err(Error::UnknownName { what: "group", name: text.to_owned() }),
    }
}

fn groups_of<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group
        .lines()
        .filter_map(group_row)
        .filter(move |(_, _, members)| members.split(',').any(|m| m.trim() == user))
        .map(|(_, gid, _)| gid)
}

/// `name:password:uid:gid:comment:home:shell`
fn passwd_row(line: &str) -> Option<PasswdRow<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    Some(PasswdRow { name, uid, gid, home: fields.nth(1).unwrap_or("") })
}

/// `name:password:gid:member,member`
fn group_row(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
    let gid = id(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or("")))
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # comment:x:9:9::/:\n\
        broken\n\
        half:x:12\n\
        www:x:33:34:web:/var/www:/bin/false\n\
        nohome:x:40:40\n\
        1000:x:0:0::/seventy:\n\
        \xff\xfe:x:5:5::/:\n\
        minus:x:-1:0::/:\n\
        last:x:90:91::/home/last:/bin/sh";
    const GROUP: &[u8] =
        b"root:x:0:root\n100:x:0:\nwww:x:34:\naudio:x:29:www,last\nvideo:x:44:last, www\nbad:x:y:www\n";

    fn user(text: &str) -> Result<ResolvedUser> {
        resolve(&UserRequest { user: text, ..Default::default() }, PASSWD, GROUP)
    }

    fn ids(text: &str) -> (u32, u32, Vec<u32>, String) {
        let u = user(text).unwrap();
        (u.uid, u.gid, u.groups, u.home)
    }

    #[test]
    fn forms_of_user() {
        assert_eq!(ids(""), (0, 0, vec![0], "/root".into()));
        assert_eq!(ids("www"), (33, 34, vec![29, 34, 44], "/var/www".into()));
        assert_eq!(ids("33"), ids("www"));
        assert_eq!(ids("www:root"), (33, 0, vec![0, 29, 44], "/var/www".into()));
        assert_eq!(ids("www:5"), (33, 5, vec![5, 29, 44], "/var/www".into()));
        assert_eq!(ids("www:"), ids("www"));
        assert_eq!(ids(":audio"), (0, 29, vec![0, 29], "/root".into()));
        assert_eq!(ids("2000"), (2000, 0, vec![0], "/".into()));
        assert_eq!(ids("2000:3000"), (2000, 3000, vec![3000], "/".into()));
        assert_eq!(ids("1000"), (1000, 0, vec![0], "/".into()), "a number is no name");
        assert_eq!(ids("2000:100").1, 100, "nor is that of a group");
        assert_eq!(ids("nohome").3, "/");
        assert_eq!(ids("last"), (90, 91, vec![29, 44, 91], "/home/last".into()));
    }

    #[test]
    fn what_is_refused() {
        for (text, want) in [
            ("nobody", "nobody"),
            ("broken", "broken"),
            ("-1", "-1"),
            ("+1", "+1"),
            ("minus", "minus"),
        ] {
            assert!(
                matches!(user(text), Err(Error::UnknownName { what: "user", name }) if name == want),
                "{text}"
            );
        }
        for text in ["4294967295", "99999999999"] {
            assert!(matches!(user(text), Err(Error::IdRange { what: "user", .. })), "{text}");
        }
        assert!(matches!(user("www:nope"), Err(Error::UnknownName { what: "group", .. })));
        assert!(matches!(user("0:4294967295"), Err(Error::IdRange { what: "group", .. })));
    }

    #[test]
    fn policies() {
        let strict = UserRequest {
            user: "www",
            gid: Some(50),
            supplemental: &[7, 7, 6],
            policy: GroupsPolicy::Strict,
        };
        assert_eq!(resolve(&strict, PASSWD, GROUP).unwrap().groups, [6, 7, 50]);
        let merge = UserRequest { policy: GroupsPolicy::Merge, ..strict };
        let got = resolve(&merge, PASSWD, GROUP).unwrap();
        assert_eq!((got.gid, got.groups.as_slice()), (50, [6, 7, 29, 44, 50].as_slice()));
    }

    #[test]
    fn groups_that_have_a_row() {
        assert!(has_group(GROUP, 29) && has_group(GROUP, 0));
        assert!(!has_group(GROUP, 30) && !has_group(b"", 0));
    }

    #[test]
    fn an_image_without_files() {
        let got = resolve(&UserRequest::default(), b"", b"").unwrap();
        assert_eq!((got.uid, got.gid, got.in_passwd), (0, 0, false));
        assert_eq!(got.home, "/");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(
            user in ".{0,20}",
            passwd in proptest::collection::vec(any::<u8>(), 0..200),
            group in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let request = UserRequest { user: &user, ..Default::default() };
            if let Ok(got) = resolve(&request, &passwd, &group) {
                prop_assert!(got.uid != u32::MAX && got.gid != u32::MAX);
                prop_assert!(got.groups.contains(&got.gid));
            }
        }

        #[test]
        fn a_row_is_found_by_name_and_number(name in "[a-z_][a-z0-9_-]{0,10}", uid in 0u32..u32::MAX, gid in 0u32..u32::MAX) {
            let passwd = format!("x:x:1:2::/:\n{name}:x:{uid}:{gid}::/h:/bin/sh\n");
            prop_assume!(name != "x");
            let request = UserRequest { user: &name, ..Default::default() };
            let got = resolve(&request, passwd.as_bytes(), b"").unwrap();
            prop_assert_eq!((got.uid, got.gid), (uid, gid));
        }
    }
}
