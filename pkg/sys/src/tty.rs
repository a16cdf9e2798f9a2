//! The size of a terminal.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Columns and rows, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The size of the terminal; of its master or its slave.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel writes one winsize, which lives until then.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    nix::errno::Errno::result(done)?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the size; where it changes, the foreground process group gets SIGWINCH.
pub fn resize(terminal: impl AsFd, to: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: to.rows, ws_col: to.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel reads one winsize, which lives until then.
    let done =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, OwnedFd};

    use super::*;

    #[test]
    fn what_the_master_sets_the_slave_has() {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: openpty writes two descriptors; the other pointers may be null.
        let done = unsafe {
            let (name, termios, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
            libc::openpty(&raw mut master, &raw mut slave, name, termios, size)
        };
        assert_eq!(done, 0);
        // SAFETY: both have just been made for us.
        let (master, slave) =
            unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        resize(&master, Size { rows: 24, columns: 132 }).unwrap();
        assert_eq!(size(slave.as_fd()).unwrap(), Size { rows: 24, columns: 132 });
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(resize(&reader, Size::default()).is_err() && size(reader.as_fd()).is_err());
    }
}
