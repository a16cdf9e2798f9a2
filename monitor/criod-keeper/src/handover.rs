//! What a keeper hands over to the program that it becomes: a list of records in a memory file.
//!
//! ```text
//! file     record…       each record: its fields, each closed by a NUL byte, in this order
//! format N  ·  listener FD DEV INO  ·  next N  ·  files N  ·  exits FD  ·  conn KEY FD
//! spare ID NAME FD  ·  watch PID ID  ·  exit PID ID STATUS TIME  ·  asked KEY
//! ```
//! Descriptors keep their numbers. [`FORMAT`] grows with what a successor must not pass over; a
//! record of a kind that is not known is refused.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::str::FromStr;

use crate::exits::Exit;
use crate::server::Keeper;

/// Which format this program writes, and the last one that it reads.
pub(crate) const FORMAT: u32 = 1;

/// What was handed over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) listener: RawFd,
    pub(crate) place: Option<(u64, u64)>,
    pub(crate) next_conn: u64,
    pub(crate) soft_files: Option<u64>,
    pub(crate) exits_file: RawFd,
    pub(crate) conns: Vec<(u64, RawFd)>,
    pub(crate) spares: Vec<(String, String, RawFd)>,
    pub(crate) watched: Vec<(i32, String)>,
    pub(crate) exits: BTreeMap<i32, Exit>,
    /// The connection that asked for the upgrade.
    pub(crate) asked: u64,
}

struct Writing<'a> {
    text: String,
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Writing<'a> {
    fn record(&mut self, fields: &[&str]) {
        self.text.extend(fields.iter().flat_map(|f| [f, "\0"]));
    }

    fn fd(&mut self, fd: &'a impl AsFd) -> String {
        self.fds.push(fd.as_fd());
        fd.as_fd().as_raw_fd().to_string()
    }
}

impl Keeper {
    /// All that a successor needs, and the descriptors that it needs with it.
    pub(crate) fn give(&self, asked: u64) -> (String, Vec<BorrowedFd<'_>>) {
        let mut out = Writing { text: String::new(), fds: Vec::new() };
        out.record(&["format", &FORMAT.to_string()]);
        let (dev, ino) = self.place.unwrap_or_default();
        let fd = out.fd(&self.listener);
        out.record(&["listener", &fd, &dev.to_string(), &ino.to_string()]);
        out.record(&["next", &self.next_conn.to_string()]);
        if let Some(soft) = self.soft_files {
            out.record(&["files", &soft.to_string()]);
        }
        let fd = out.fd(self.exits.file());
        out.record(&["exits", &fd]);
        for (key, conn) in &self.conns {
            let fd = out.fd(conn);
            out.record(&["conn", &key.to_string(), &fd]);
        }
        for (id, named) in &self.spares {
            for (name, fd) in named {
                let fd = out.fd(fd);
                out.record(&["spare", id, name, &fd]);
            }
        }
        for (pid, id) in &self.watched {
            out.record(&["watch", &pid.to_string(), id]);
        }
        for (pid, Exit { id, status, time }) in self.exits.all() {
            out.record(&["exit", &pid.to_string(), id, &status.to_string(), &time.to_string()]);
        }
        out.record(&["asked", &asked.to_string()]);
        (out.text, out.fds)
    }
}

/// Reads what was handed over; refuses what this program does not know.
pub(crate) fn read(bytes: Vec<u8>) -> Result<Given, String> {
    let text = String::from_utf8(bytes).map_err(|_| "what is handed over is no text")?;
    let text = text.strip_suffix('\0').ok_or("what is handed over is not whole")?;
    let mut fields = text.split('\0');
    let mut given = Given::default();
    let mut first = true;
    while let Some(kind) = fields.next() {
        if first != (kind == "format") {
            return Err("what is handed over does not begin with its format".into());
        }
        first = false;
        let mut word = || fields.next().ok_or(format!("{kind}: something is missing"));
        match kind {
            "format" => {
                let format: u32 = number(word()?)?;
                if format == 0 || format > FORMAT {
                    return Err(format!(
                        "format {format} is handed over, {FORMAT} is the last known"
                    ));
                }
            }
            "listener" => {
                given.listener = number(word()?)?;
                let place = (number(word()?)?, number(word()?)?);
                given.place = (place != (0, 0)).then_some(place);
            }
            "next" => given.next_conn = number(word()?)?,
            "files" => given.soft_files = Some(number(word()?)?),
            "exits" => given.exits_file = number(word()?)?,
            "conn" => given.conns.push((number(word()?)?, number(word()?)?)),
            "spare" => {
                let (id, name) = (word()?.to_owned(), word()?.to_owned());
                given.spares.push((id, name, number(word()?)?));
            }
            "watch" => given.watched.push((number(word()?)?, word()?.to_owned())),
            "exit" => {
                let (pid, id) = (number(word()?)?, word()?.to_owned());
                let (status, time) = (number(word()?)?, number(word()?)?);
                given.exits.insert(pid, Exit { id, status, time });
            }
            "asked" => given.asked = number(word()?)?,
            other => return Err(format!("{other:?} is handed over, which is unknown")),
        }
    }
    if given.listener == 0 || given.exits_file == 0 {
        return Err("no socket or no file of exits is handed over".into());
    }
    Ok(given)
}

fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{text:?} is no such number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_or_not_whole_is_refused() {
        let nul = |text: &str| text.replace(' ', "\0");
        let whole = nul("format 1 listener 3 4 5 next 6 exits 7 spare a b 8 asked 9 ");
        let given = read(whole.clone().into()).unwrap();
        assert_eq!(given.spares, [("a".into(), "b".into(), 8)]);
        assert_eq!((given.listener, given.place, given.asked), (3, Some((4, 5)), 9));
        for cut in 0..whole.len() {
            // Cut between two records it may still be enough.
            if let Ok(part) = read(whole.as_bytes()[..cut].to_vec()) {
                assert!(part.listener == 3 && part.exits_file == 7, "{cut}");
            }
        }
        for wrong in [
            whole.replacen('1', "2", 1),
            whole.replacen('1', "0", 1),
            whole.replace("spare", "future"),
            whole.replacen(&nul("format 1 "), "", 1),
            whole.replace('8', "x"),
            String::new(),
        ] {
            assert!(read(wrong.clone().into()).is_err(), "{wrong:?}");
        }
        assert!(read(vec![0xff, 0]).is_err());
    }
}
