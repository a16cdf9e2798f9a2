//! The terminal while it is given away: every key goes to the command as it is, Ctrl-C too.
//!
//! ```text
//!  Raw::enter ── the settings as they were are kept ──► raw ── drop: return, error, panic ──► as before
//! ```
//! Signals end the session rather than the process, and so come by the same way.

use std::fs::File;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::error::{Error, Result};

/// A terminal in raw mode until this is dropped.
pub(super) struct Raw {
    terminal: File,
    before: Termios,
}

impl Raw {
    /// Sets the terminal raw.
    pub(super) fn enter(terminal: File) -> Result<Raw> {
        let failed = |e: nix::Error| Error::Terminal(e.into());
        let before = tcgetattr(&terminal).map_err(failed)?;
        let mut settings = before.clone();
        cfmakeraw(&mut settings);
        tcsetattr(&terminal, SetArg::TCSANOW, &settings).map_err(failed)?;
        Ok(Raw { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags};

    use super::*;

    #[test]
    fn it_is_as_before_however_it_ends() {
        let pty = openpty(None, None).unwrap();
        let slave = File::from(pty.slave);
        let before = tcgetattr(&slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        let raw = || {
            let now = tcgetattr(&slave).unwrap();
            let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
            !now.local_flags.intersects(cooked)
                && !now.input_flags.contains(InputFlags::ICRNL)
                && !now.output_flags.contains(OutputFlags::OPOST)
        };
        let entered = Raw::enter(slave.try_clone().unwrap()).unwrap();
        assert!(raw());
        drop(entered);
        assert_eq!(tcgetattr(&slave).unwrap(), before);

        let terminal = slave.try_clone().unwrap();
        let panicked = std::thread::spawn(move || {
            let _raw = Raw::enter(terminal).unwrap();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert_eq!(tcgetattr(&slave).unwrap(), before);
    }

    #[test]
    fn what_is_no_terminal() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Raw::enter(file), Err(Error::Terminal(_))));
    }
}
