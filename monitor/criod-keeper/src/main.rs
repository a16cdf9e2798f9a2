//! criod-keeper: one small process per node that outlives criod and every monitor.
//!
//! ```text
//!   criod ────────┐ FORK, SPARE, GET, LIST …
//!   monitor ──────┤ SPARE, WATCH, REAP, GET     one SOCK_SEQPACKET socket
//!   monitor ──────┘
//!        ▲ forks, in the cgroup that it joined at its start
//! ```
//! | message                        | descriptors    | answer                                      |
//! |--------------------------------|----------------|---------------------------------------------|
//! | `PING`                         |                | `OK version pid`                            |
//! | `FORK id program arg…`         | the new one's stdin, stderr | `OK pid` + its pidfd           |
//! | `SPARE id name`                | one            | `OK`; in place of an earlier one            |
//! | `DROP id [name]`               |                | `OK`; all of `id`, or one                   |
//! | `GET id`                       |                | `OK name…` + a descriptor for each          |
//! | `WATCH id pid`                 |                | `OK`; its exit status will be remembered    |
//! | `REAP [id] pid`                |                | `OK running`, `OK status time`, `OK unknown`|
//! | `LIST after`                   |                | `OK id…`: the next ids that hold spares     |
//! | `UPGRADE program`              |                | `OK version`, by what it has become         |
//!
//! A wrong message is answered with `ERR text`. `status` is a wait status, `time` is in nanoseconds
//! since the Unix epoch. The keeper is a subreaper: when a monitor dies, its container's init
//! becomes the keeper's child, so that the exit status is exact. It parses nothing from outside
//! and decides nothing.

mod exits;
mod handover;
mod server;
mod upgrade;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match server::Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("criod-keeper: {text}");
            return ExitCode::from(64);
        }
    };
    let keeper = match options.handover {
        Some(number) => server::Keeper::resume(&options, number),
        None => server::Keeper::new(&options).inspect(|_| {
            // Whoever is started after this finds the socket.
            if let Err(e) = sys::notify::notify("READY=1") {
                eprintln!("criod-keeper: tell the service manager: {e}");
            }
        }),
    };
    match keeper.and_then(|mut k| k.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("criod-keeper: {}: {e}", options.socket.display());
            ExitCode::FAILURE
        }
    }
}
