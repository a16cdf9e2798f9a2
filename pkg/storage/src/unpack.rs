//! Writing the entries of a layer into a folder, as overlay wants them.
//!
//! Rules for names:
//!
//! * `.` and empty parts are dropped, a leading `/` too, `..` takes back the part before it; a name
//!   that leads out of the layer that way is refused, and with it the layer.
//! * Parents are resolved by the kernel inside the layer (`RESOLVE_IN_ROOT`): a symlink on the way,
//!   absolute or with `..`, leads to a place in the layer or to nowhere. The last part of a name,
//!   and of a hard link's target, is never followed.
//! * A missing parent is made: 0755, root's, with the time of the entry that needs it.
//! * A later entry replaces an earlier one; a directory that comes again is kept and gets the
//!   later attributes.
//!
//! Whiteouts (OCI image specification, layer, "Whiteouts") become what overlay knows:
//!
//! ```text
//! .wh.NAME        character device 0/0 called NAME     hides NAME of the layers below
//! .wh..wh..opq    trusted.overlay.opaque=y on the      hides all of the directory below
//!                 directory it stands in
//! .wh..wh.*       aufs' own, passed over
//! ```
//!
//! A whiteout never hides what its own layer has, whichever comes first: a directory that is both
//! whited out and there becomes opaque, anything else just stays.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;

use failpoint::step;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Uid, XattrFlags, fchmod, fchown, futimens,
};
use rustix::io::Errno;

use crate::archive::{Archive, Header, Kind};
use crate::dirs::{Dirs, OpenDir, is_whiteout, open_dir, os, set_opaque, times};
use crate::error::{EntryProblem, Error, Result, printable};
use crate::layers::RootAttributes;
use crate::rootfs::proc_path;
use crate::stream::{self, Compression, Limits, Source, Summary};
use crate::tree;

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The unit in which file systems give out space.
const DISK_UNIT: u64 = 4096;
/// How often an entry is tried again after what was in its way is removed.
const TRIES: u32 = 4;

type Problem<T> = std::result::Result<T, EntryProblem>;

/// What an entry's work can end with: something about the entry, or about the whole layer.
enum Failure {
    Entry(EntryProblem),
    Layer(Error),
}

impl From<EntryProblem> for Failure {
    fn from(problem: EntryProblem) -> Self {
        Failure::Entry(problem)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Layer(error)
    }
}

/// What was written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) inodes: u64,
    pub(crate) entries: u64,
    pub(crate) skipped_xattrs: u64,
    pub(crate) root: Option<RootAttributes>,
    pub(crate) root_opaque: bool,
}

/// What was read and written.
pub(crate) struct Done {
    pub(crate) stream: Summary,
    pub(crate) written: Written,
}

/// Unpacks a layer into `folder`, which is there and empty.
pub(crate) fn unpack(
    folder: &Path,
    reader: impl Read + Send,
    compression: Compression,
    limits: &Limits,
) -> Result<Done> {
    let (written, stream) =
        stream::run(reader, compression, limits, |chunks| unpack_archive(folder, chunks, limits))?;
    Ok(Done { stream, written })
}

impl Source for &mut stream::Chunks {
    fn chunk(&mut self) -> Result<&[u8]> {
        stream::Chunks::chunk(self)
    }

    fn consume(&mut self, bytes: usize) {
        stream::Chunks::consume(self, bytes);
    }
}

/// Unpacks an archive into `folder`, up to the archive's end.
pub(crate) fn unpack_archive(
    folder: &Path,
    source: impl Source,
    limits: &Limits,
) -> Result<Written> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(folder, flags, Mode::empty()).map_err(|e| Error::io("open", folder, e))?;
    let mut unpacker = Unpacker { dirs: Dirs::new(root), limits, written: Written::default() };
    let mut archive = Archive::new(source);
    while let Some(header) = archive.next()? {
        unpacker.written.entries += 1;
        if unpacker.written.entries > limits.max_entries {
            return Err(Error::TooManyEntries { limit: limits.max_entries });
        }
        let made = step!("layer: entry", unpacker.entry(&header, &mut archive));
        made.map_err(|failure| match failure {
            Failure::Entry(problem) => Error::entry(&header.path, problem),
            Failure::Layer(error) => error,
        })?;
    }
    unpacker.dirs.clear().map_err(|problem| Error::entry(b".", problem))?;
    let mut written = unpacker.written;
    let made = 1 + unpacker.dirs.made;
    written.inodes += made;
    written.disk_bytes += made * DISK_UNIT;
    Ok(written)
}

struct Unpacker<'a> {
    dirs: Dirs,
    limits: &'a Limits,
    written: Written,
}

/// What a name says, once its last part is looked at.
enum Meaning<'a> {
    /// A file of this name.
    File(&'a [u8]),
    /// A whiteout of this name.
    Whiteout(&'a [u8]),
    /// The parent hides all below it.
    Opaque,
    /// aufs' own.
    Nothing,
}

impl Unpacker<'_> {
    fn entry<S: Source>(
        &mut self,
        header: &Header,
        archive: &mut Archive<S>,
    ) -> std::result::Result<(), Failure> {
        let path = self.normal(&header.path)?.ok_or(EntryProblem::Escapes)?;
        for (name, value) in &header.xattrs {
            self.check_xattr(name, value)?;
        }
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        if path.is_empty() {
            return Ok(self.root(header)?);
        }
        if parent.split(|b| *b == b'/').any(|part| part.starts_with(AUFS)) {
            return Ok(());
        }
        match meaning(name)? {
            Meaning::Nothing => Ok(()),
            Meaning::Opaque => {
                let dir = self.dirs.get_or_make(parent, time_of(header))?;
                set_opaque(&dir.fd)?;
                self.written.root_opaque |= parent.is_empty();
                Ok(())
            }
            Meaning::Whiteout(hidden) => {
                let dir = self.dirs.get_or_make(parent, time_of(header))?;
                Ok(self.whiteout(&dir, hidden)?)
            }
            Meaning::File(name) => self.file(&path, parent, name, header, archive),
        }
    }

    /// A name without `.`, `..` and superfluous slashes; none if it leads out of the layer.
    fn normal(&self, name: &[u8]) -> Problem<Option<Vec<u8>>> {
        if name.len() > self.limits.max_path {
            return Err(EntryProblem::NameTooLong { limit: self.limits.max_path });
        }
        if name.is_empty() || name.contains(&0) {
            return Err(EntryProblem::BadName);
        }
        let mut normal = Vec::with_capacity(name.len());
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." if normal.is_empty() => return Ok(None),
                b".." => {
                    let slash = normal.iter().rposition(|b| *b == b'/').unwrap_or(0);
                    normal.truncate(slash);
                }
                _ => {
                    if !normal.is_empty() {
                        normal.push(b'/');
                    }
                    normal.extend_from_slice(part);
                }
            }
        }
        Ok(Some(normal))
    }

    /// The root of the layer: it is there, and only gets attributes.
    fn root(&mut self, header: &Header) -> Problem<()> {
        if header.kind != Kind::Directory {
            return Err(EntryProblem::RootNotDirectory);
        }
        let dir = self.dirs.get(b"")?.ok_or(EntryProblem::RootNotDirectory)?;
        self.attributes(&dir.fd, header)?;
        dir.set_time(time_of(header));
        let (uid, gid) = owner(header)?;
        self.written.root =
            Some(RootAttributes { mode: header.mode, uid: uid.as_raw(), gid: gid.as_raw() });
        Ok(())
    }

    fn whiteout(&mut self, dir: &Rc<OpenDir>, hidden: &[u8]) -> Problem<()> {
        match rustix::fs::statat(&dir.fd, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_opaque(&open_dir(&dir.fd, hidden).map_err(os("open"))?)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                dir.touch();
                rustix::fs::mknodat(
                    &dir.fd,
                    hidden,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    rustix::fs::makedev(0, 0),
                )
                .map_err(os("create a whiteout"))?;
                self.written.inodes += 1;
                Ok(())
            }
            Err(e) => Err(os("look up")(e)),
        }
    }

    fn file<S: Source>(
        &mut self,
        path: &[u8],
        parent: &[u8],
        name: &[u8],
        header: &Header,
        archive: &mut Archive<S>,
    ) -> std::result::Result<(), Failure> {
        let target =
            match header.kind {
                Kind::HardLink => Some(self.normal(&header.link)?.ok_or_else(|| {
                    EntryProblem::TargetEscapes { target: printable(&header.link) }
                })?),
                _ => None,
            };
        if target.as_deref() == Some(path) {
            // A link to itself: it is there, or it is a link to nothing.
            let dir = self.dirs.get_or_make(parent, time_of(header))?;
            return match rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Ok(()),
                Err(_) => Err(missing(&header.link).into()),
            };
        }
        let mut opaque = false;
        for _ in 0..TRIES {
            // Looked up before the parent: the parent is changed, and must be in the cache then.
            let target_dir = match &target {
                Some(target) => Some(self.target(target)?),
                None => None,
            };
            let dir = self.dirs.get_or_make(parent, time_of(header))?;
            dir.touch();
            let made = match (header.kind, &target_dir) {
                (Kind::Regular, _) => create_file(&dir, name, header, archive, self),
                (Kind::Directory, _) => {
                    self.directory(path, &dir, name, header, opaque).map_err(Into::into)
                }
                (Kind::HardLink, Some((from, old))) => {
                    link(from, old, &dir, name, header).map_err(Into::into)
                }
                _ => self.special(&dir, name, header).map_err(Into::into),
            };
            match made {
                Ok(()) => return Ok(()),
                Err(Failure::Entry(EntryProblem::Os { source, .. }))
                    if Errno::from_io_error(&source) == Some(Errno::EXIST) =>
                {
                    opaque |= self.clear_way(&dir, name)?;
                }
                Err(e) => return Err(e),
            }
        }
        let source = std::io::Error::from(Errno::EXIST);
        Err(EntryProblem::Os { op: "replace what is there", source }.into())
    }

    /// Removes what an earlier entry put there. Says whether it was a whiteout.
    fn clear_way(&mut self, dir: &Rc<OpenDir>, name: &[u8]) -> Problem<bool> {
        let stat =
            rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(os("look up"))?;
        dir.touch();
        tree::remove_at(&dir.fd, name).map_err(os("remove what is there"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::Directory | FileType::Symlink) {
            self.dirs.clear()?;
        }
        Ok(is_whiteout(&stat))
    }

    /// The directory and the name of a hard link's target.
    fn target(&mut self, target: &[u8]) -> Problem<(Rc<OpenDir>, Vec<u8>)> {
        let (parent, name) = match target.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&b""[..], target),
        };
        if name.is_empty() {
            return Err(missing(target));
        }
        let dir = self.dirs.get(parent)?.ok_or_else(|| missing(target))?;
        Ok((dir, name.to_owned()))
    }

    fn directory(
        &mut self,
        path: &[u8],
        parent: &Rc<OpenDir>,
        name: &[u8],
        header: &Header,
        opaque: bool,
    ) -> Problem<()> {
        match rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                self.written.inodes += 1;
                self.written.disk_bytes += DISK_UNIT;
            }
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(os("look up"))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    return Err(os("create")(Errno::EXIST));
                }
            }
            Err(e) => return Err(os("create")(e)),
        }
        let fd = open_dir(&parent.fd, name).map_err(os("open"))?;
        self.attributes(&fd, header)?;
        if opaque {
            set_opaque(&fd)?;
        }
        // Likely the parent of what comes next.
        self.dirs.insert(path, fd)?.set_time(time_of(header));
        Ok(())
    }

    /// Symlinks, devices and fifos: what cannot be opened to be given attributes.
    fn special(&mut self, parent: &Rc<OpenDir>, name: &[u8], header: &Header) -> Problem<()> {
        let make = |kind, device| {
            // Not with the mode of the entry: the umask would change it.
            rustix::fs::mknodat(&parent.fd, name, kind, Mode::from_raw_mode(0o600), device)
                .map_err(os("create"))
        };
        match header.kind {
            Kind::Symlink => {
                if header.link.len() > self.limits.max_path {
                    return Err(EntryProblem::NameTooLong { limit: self.limits.max_path });
                }
                if header.link.is_empty() || header.link.contains(&0) {
                    return Err(EntryProblem::BadName);
                }
                rustix::fs::symlinkat(header.link.as_slice(), &parent.fd, name)
                    .map_err(os("create"))?;
            }
            Kind::Character => make(FileType::CharacterDevice, device(header)?)?,
            Kind::Block => make(FileType::BlockDevice, device(header)?)?,
            Kind::Fifo => make(FileType::Fifo, 0)?,
            Kind::Other(kind) => return Err(EntryProblem::UnsupportedType { kind }),
            Kind::Regular | Kind::Directory | Kind::HardLink => {
                return Err(EntryProblem::UnsupportedType { kind: 0 });
            }
        }
        self.written.inodes += 1;
        let (uid, gid) = owner(header)?;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&parent.fd, name, Some(uid), Some(gid), nofollow)
            .map_err(os("change the owner"))?;
        if header.kind != Kind::Symlink {
            // Nobody else is in this folder, so it is what was just made.
            let mode = Mode::from_raw_mode(header.mode);
            rustix::fs::chmodat(&parent.fd, name, mode, AtFlags::empty())
                .map_err(os("change the mode"))?;
        }
        if !header.xattrs.is_empty() {
            let mut path = proc_path(&parent.fd).into_bytes();
            path.push(b'/');
            path.extend_from_slice(name);
            self.xattrs(header, &parent.fd, |attribute, value| {
                rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty())
            })?;
        }
        rustix::fs::utimensat(&parent.fd, name, &times(time_of(header)), nofollow)
            .map_err(os("set the time"))
    }

    /// Owner, mode and extended attributes of what is open. The order matters: a change of owner
    /// takes setuid bits and file capabilities away.
    fn attributes(&mut self, file: &OwnedFd, header: &Header) -> Problem<()> {
        let (uid, gid) = owner(header)?;
        fchown(file, Some(uid), Some(gid)).map_err(os("change the owner"))?;
        fchmod(file, Mode::from_raw_mode(header.mode)).map_err(os("change the mode"))?;
        self.xattrs(header, file, |attribute, value| {
            rustix::fs::fsetxattr(file, attribute, value, XattrFlags::empty())
        })
    }

    fn check_xattr(&self, name: &[u8], value: &[u8]) -> Problem<()> {
        /// The kernel's longest name.
        const LONGEST_NAME: usize = 255;
        let attribute = || printable(name);
        // With a prefix: this file system's own, and what it would pass on to one below it.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err(EntryProblem::ForbiddenXattr { attribute: attribute() });
        }
        if name.len() > LONGEST_NAME {
            let limit = LONGEST_NAME;
            return Err(EntryProblem::XattrTooLarge { attribute: attribute(), limit });
        }
        if value.len() > self.limits.max_xattr {
            let limit = self.limits.max_xattr;
            return Err(EntryProblem::XattrTooLarge { attribute: attribute(), limit });
        }
        if name.contains(&0) { Err(EntryProblem::BadName) } else { Ok(()) }
    }

    fn xattrs(
        &mut self,
        header: &Header,
        file: &OwnedFd,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Problem<()> {
        for (name, value) in &header.xattrs {
            // Labels are the node's policy, and what only a privileged user may see is its own.
            if name.starts_with(b"trusted.") || name == b"security.selinux" {
                self.written.skipped_xattrs += 1;
                continue;
            }
            match set(name, value) {
                Ok(()) => {}
                // A file without its capabilities would be another file; the rest can be missed.
                Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
                    self.written.skipped_xattrs += 1;
                }
                // ext4 says this also of an attribute that does not fit beside the inode.
                Err(Errno::NOSPC) if has_space(file) => {
                    return Err(os("set an extended attribute")(Errno::TOOBIG));
                }
                Err(e) => return Err(os("set an extended attribute")(e)),
            }
        }
        Ok(())
    }
}

fn meaning(name: &[u8]) -> Problem<Meaning<'_>> {
    if name == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    if name.starts_with(AUFS) {
        return Ok(Meaning::Nothing);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::File(name)),
        Some(b"" | b"." | b"..") => Err(EntryProblem::BadName),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}

fn missing(target: &[u8]) -> EntryProblem {
    EntryProblem::TargetMissing { target: printable(target) }
}

fn time_of(header: &Header) -> Timespec {
    Timespec { tv_sec: header.mtime.0, tv_nsec: header.mtime.1.into() }
}

fn owner(header: &Header) -> Problem<(Uid, Gid)> {
    // The highest means "leave it" to the kernel.
    let id = |id: u64| {
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(EntryProblem::IdOutOfRange)
    };
    Ok((Uid::from_raw(id(header.uid)?), Gid::from_raw(id(header.gid)?)))
}

fn device(header: &Header) -> Problem<rustix::fs::Dev> {
    // The kernel has 12 bits for the major and 20 for the minor number.
    let (major, minor) = header.device;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(EntryProblem::IdOutOfRange);
    }
    Ok(rustix::fs::makedev(major as u32, minor as u32))
}

/// Whether the file system of an open file has blocks left.
fn has_space(file: &OwnedFd) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|stat| stat.f_bavail > 16)
}

fn create_file<S: Source>(
    dir: &Rc<OpenDir>,
    name: &[u8],
    header: &Header,
    archive: &mut Archive<S>,
    unpacker: &mut Unpacker<'_>,
) -> std::result::Result<(), Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir.fd, name, flags, Mode::from_raw_mode(0o600))
        .map_err(os("create"))?;
    let mut file = File::from(file);
    let wrong = |source| EntryProblem::Os { op: "write", source };
    match &header.sparse {
        None => loop {
            let chunk = archive.chunk()?;
            if chunk.is_empty() {
                break;
            }
            let taken = chunk.len();
            file.write_all(chunk).map_err(wrong)?;
            archive.consume(taken);
        },
        Some(sparse) => {
            for &(mut at, mut left) in &sparse.extents {
                while left > 0 {
                    let chunk = archive.chunk()?;
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                    if most == 0 {
                        break;
                    }
                    file.write_all_at(&chunk[..most], at).map_err(wrong)?;
                    archive.consume(most);
                    at += most as u64;
                    left -= most as u64;
                }
            }
            file.set_len(sparse.size).map_err(wrong)?;
        }
    }
    let file = OwnedFd::from(file);
    // After the data: writing takes setuid bits and capabilities away.
    unpacker.attributes(&file, header)?;
    futimens(&file, &times(time_of(header))).map_err(os("set the time"))?;
    unpacker.written.bytes += header.size;
    unpacker.written.disk_bytes += header.size.next_multiple_of(DISK_UNIT);
    unpacker.written.inodes += 1;
    Ok(())
}

fn link(
    from: &Rc<OpenDir>,
    old: &[u8],
    dir: &Rc<OpenDir>,
    name: &[u8],
    header: &Header,
) -> Problem<()> {
    match rustix::fs::linkat(from.fd.as_fd(), old, dir.fd.as_fd(), name, AtFlags::empty()) {
        Err(Errno::NOENT) => Err(missing(&header.link)),
        Err(Errno::EXIST) => {
            // Maybe two names of one file through a symlink: then removing one would lose it.
            let look = |at: &OpenDir, name: &[u8]| {
                rustix::fs::statat(&at.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            };
            match (look(from, old), look(dir, name)) {
                (Ok(a), Ok(b)) if a.st_ino == b.st_ino => Ok(()),
                _ => Err(os("link")(Errno::EXIST)),
            }
        }
        other => other.map_err(os("link")),
    }
}
