//! A release of criod-monitor or criod-keeper that is not to be trusted: how, its name says.
//!
//! ```text
//! refuses   asked whether it can go on, it says no      hangs    it never answers
//! crashes   it says yes, and crashes when it goes on    aborts   it crashes as soon as it is asked
//! ```

use std::time::Duration;

fn main() {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let asked = args.any(|a| a == "--check-state");
    match (name.rsplit('/').next().unwrap_or_default(), asked) {
        ("refuses", _) => {
            eprintln!("odd-release: nothing is known of this");
            std::process::exit(1);
        }
        ("hangs", _) => loop {
            std::thread::sleep(Duration::from_secs(1000));
        },
        ("crashes", true) => {}
        _ => std::process::abort(),
    }
}
