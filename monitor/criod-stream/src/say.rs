//! What goes to the log, which is stderr.
//!
//! The log may be full, or longer than files may be: that ends no connection, as `eprintln` would.

use std::fmt::Arguments;
use std::io::Write;

/// One line, in one write: the log is everybody's.
pub(crate) fn line(text: Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("criod-stream: {text}\n").as_bytes());
}

/// Says one line, as `println` would.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::say::line(format_args!($($text)*))
    };
}
pub(crate) use say;
