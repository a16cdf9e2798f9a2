//! One request to rtnetlink: bring up the loopback interface of the calling thread's namespace.
//!
//! ```text
//!   nlmsghdr (16)  length | RTM_NEWLINK | REQUEST+ACK | sequence | 0
//!   ifinfomsg (16) family, type, index 1, flags IFF_UP, change IFF_UP
//!        -> nlmsghdr NLMSG_ERROR | error (0 is the acknowledgement) | the request's header
//! ```
//!
//! `lo` has index 1 in every network namespace. The kernel gives it 127.0.0.1/8 and, unless
//! IPv6 is disabled in the namespace, ::1/128 when it comes up, so no address is added here.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
};
use nix::sys::time::TimeVal;

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const LOOPBACK_INDEX: i32 = 1;
const HEADER: usize = 16;
/// The kernel answers at once; this only keeps a defect from hanging a thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The request that sets the IFF_UP flag of `lo`.
fn request(sequence: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(2 * HEADER);
    message.extend_from_slice(&(2 * HEADER as u32).to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(&[0, 0, 0, 0]); // family, padding, type
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // flags
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // which of them to change
    message
}

/// What the kernel answered: `None` if the datagram is not the answer to `sequence`.
fn answer(datagram: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let word = |at: usize| -> Option<[u8; 4]> { datagram.get(at..at + 4)?.try_into().ok() };
    let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
    if kind != NLMSG_ERROR || u32::from_ne_bytes(word(8)?) != sequence {
        return None;
    }
    Some(match i32::from_ne_bytes(word(HEADER)?) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    })
}

/// Brings up `lo` in the network namespace of the calling thread.
pub(crate) fn loopback_up() -> io::Result<()> {
    const SEQUENCE: u32 = 1;
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let timeout = TimeVal::new(ANSWER_WITHIN.as_secs() as _, 0);
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    let kernel = NetlinkAddr::new(0, 0);
    socket::sendto(socket.as_raw_fd(), &request(SEQUENCE), &kernel, MsgFlags::empty())?;
    let mut buffer = [0u8; 4096];
    loop {
        let length = match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        if let Some(answer) = answer(&buffer[..length], SEQUENCE) {
            return answer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acknowledgement(code: i32, sequence: u32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes.extend_from_slice(&0u16.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes
    }

    #[test]
    fn answers() {
        assert!(matches!(answer(&acknowledgement(0, 1), 1), Some(Ok(()))));
        let refused = answer(&acknowledgement(-1, 1), 1).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
        assert!(answer(&acknowledgement(0, 2), 1).is_none());
        assert!(answer(&acknowledgement(0, 1)[..18], 1).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = answer(&bytes, 1);
        }
    }
}
