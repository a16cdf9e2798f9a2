//! A program of some 300 bytes that does nothing: what a pod's first process needs to be.
//!
//! It ignores SIGCHLD, so that the kernel reaps what is handed to it, ends with status 0 on SIGTERM
//! and SIGINT (a first process of a pid namespace gets only signals that it handles), and sleeps.
//! Written as machine code (x86-64), so that no compiler is needed.

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// Size of the ELF header and of the one program header.
const HEADERS: u64 = 64 + 56;

/// The program.
pub fn pause() -> Vec<u8> {
    let mut code: Vec<u8> = Vec::new();
    // Three times rt_sigaction(number, action, 0, 8): the addresses of the actions come later.
    let mut fixups = Vec::new();
    for (signal, action) in [(17u32, 0usize), (15, 1), (2, 1)] {
        code.extend_from_slice(&[0xb8, 13, 0, 0, 0]); // mov eax, 13
        code.push(0xbf); // mov edi, signal
        code.extend_from_slice(&signal.to_le_bytes());
        code.push(0xbe); // mov esi, action
        fixups.push((code.len(), action));
        code.extend_from_slice(&[0; 4]);
        code.extend_from_slice(&[0x31, 0xd2]); // xor edx, edx
        code.extend_from_slice(&[0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
        code.extend_from_slice(&[0x0f, 0x05]); // syscall
    }
    let start = code.len();
    code.extend_from_slice(&[0xb8, 34, 0, 0, 0, 0x0f, 0x05]); // pause()
    let back = start as i64 - (code.len() as i64 + 2);
    code.extend_from_slice(&[0xeb, back as i8 as u8]); // jmp start
    let handler = BASE + HEADERS + code.len() as u64;
    code.extend_from_slice(&[0x31, 0xff, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]); // exit_group(0)
    code.resize(code.len().next_multiple_of(8), 0);
    // struct sigaction of the kernel: handler, flags, restorer, mask.
    let actions = code.len();
    for words in [[1u64, 0, 0, 0], [handler, 0x0400_0000, handler, 0]] {
        for word in words {
            code.extend_from_slice(&word.to_le_bytes());
        }
    }
    for (at, action) in fixups {
        let address = BASE + HEADERS + (actions + 32 * action) as u64;
        code[at..at + 4].copy_from_slice(&(address as u32).to_le_bytes());
    }

    let size = HEADERS + code.len() as u64;
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        out.extend_from_slice(&half.to_le_bytes()); // executable, x86-64
    }
    out.extend_from_slice(&1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        out.extend_from_slice(&word.to_le_bytes()); // entry, program headers, no sections
    }
    out.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    for word in [1u32, 5] {
        out.extend_from_slice(&word.to_le_bytes()); // loadable, read and execute
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&code);
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn waits_for_sigterm_and_ends_with_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, super::pause()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let pid = child.id();
        // The signal may only come once the handler is there: SigCgt names it.
        let caught = loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap().trim();
            let mask = u64::from_str_radix(mask, 16).unwrap();
            if mask != 0 || child.try_wait().unwrap().is_some() {
                break mask;
            }
            std::thread::yield_now();
        };
        assert_ne!(caught & (1 << 14), 0);
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid as i32),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
