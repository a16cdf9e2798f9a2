//! The messages on the wire, which monitors of other releases read.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use api_monitor::monitor::{Config, Exit, Phase, StateResponse};
use api_monitor::protobuf::{EnumOrUnknown, Message, MessageField};

/// A state whose bytes are spelt out: numbers and types of the fields may never change.
#[test]
fn a_states_bytes_are_fixed() {
    let state = StateResponse {
        phase: Phase::PHASE_EXITED.into(),
        pid: 300,
        exit: MessageField::some(Exit { code: 137, signal: 9, oom: true, ..Default::default() }),
        error: "no".into(),
        ..Default::default()
    };
    let bytes = [
        0x08, 6, // phase
        0x10, 0xac, 0x02, // pid
        0x2a, 7, 0x08, 0x89, 0x01, 0x10, 9, 0x18, 1, // exit: code, signal, oom
        0x3a, 2, b'n', b'o', // error
    ];
    assert_eq!(state.write_to_bytes().unwrap(), bytes);
    assert_eq!(StateResponse::parse_from_bytes(&bytes).unwrap(), state);
}

/// What a later release adds is neither an error nor lost when the message is written again.
#[test]
fn what_is_not_known_is_kept() {
    let bytes = [
        0x08, 99, // a phase of the future
        0xa2, 0x06, 3, b'n', b'e', b'w', // field 100, which there is not
    ];
    let state = StateResponse::parse_from_bytes(&bytes).unwrap();
    assert_eq!(state.phase, EnumOrUnknown::from_i32(99));
    assert_eq!(state.phase.enum_value(), Err(99));
    assert_eq!(state.write_to_bytes().unwrap(), bytes);
}

#[test]
fn a_torn_message_is_an_error() {
    let config = Config { id: "c1".into(), cgroups: vec!["/a".into()], ..Default::default() };
    let bytes = config.write_to_bytes().unwrap();
    for end in [1, bytes.len() - 1] {
        assert!(Config::parse_from_bytes(&bytes[..end]).is_err(), "{end}");
    }
}
