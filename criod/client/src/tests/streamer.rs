//! A runtime's streaming server, on the server's side of the crate `stream`: what it does with
//! whoever connects is told by a [`Script`].

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use stream::forward;
use stream::http::{Refusal, Request};
use stream::remote::{Accepted, Channel, Event, Outcome, Session, Wants};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::fake::{Fake, Streamed};
use crate::streaming::wire::{Io, Protocol, Wire};

/// What the port 6 sends, in bytes.
pub(super) const LARGE: usize = 24 << 20;

/// What the server does.
#[derive(Clone)]
pub(super) enum Script {
    /// Prints, and ends.
    Print { stdout: Vec<u8>, stderr: Vec<u8>, outcome: Outcome },
    /// Prints its input; at the input's end, ends with 3.
    Echo,
    /// Prints each size of the terminal; at the input's end, ends.
    Sizes,
    /// Prints `half`, and then the connection breaks.
    Vanish,
    /// Prints `half`, and then sends what is no SPDY.
    Garbage,
    /// Answers with this instead of an upgrade.
    Refuse(Refusal),
    /// Forwards, by what the port says: 1 echoes, 2 cannot be connected to, 3 is reset by the pod,
    /// 4 says `hello` and ends, 5 makes the whole server vanish, 6 sends [`LARGE`] bytes and ends.
    Forward,
}

/// A running server; ends, with all its connections, when it is dropped.
pub(super) struct Streamer {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Streamer {
    /// Starts one, and lets the runtime name it.
    pub(super) async fn start(fake: &Fake, script: Script) -> Streamer {
        Streamer::serve(fake, script, None).await
    }

    /// One with TLS.
    pub(super) async fn encrypted(fake: &Fake, script: Script, config: ServerConfig) -> Streamer {
        Streamer::serve(fake, script, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(fake: &Fake, script: Script, tls: Option<TlsAcceptor>) -> Streamer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        fake.state().url = format!("{scheme}://{address}/some/token?x=y");
        let fake = fake.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (fake, script, tls) = (fake.clone(), script.clone(), tls.clone());
                connections.spawn(async move {
                    let io: Box<dyn Io> = match tls {
                        None => Box::new(tcp),
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(io) => Box::new(io),
                            // The client does not trust it, or it not the client.
                            Err(_) => return,
                        },
                    };
                    connection(&fake, io, script).await;
                });
            }
        });
        Streamer { address, _tasks: tasks }
    }
}

async fn connection(fake: &Fake, mut io: Box<dyn Io>, script: Script) {
    let mut read = Vec::new();
    let (request, length) = loop {
        if let Some(head) = Request::parse(&read).unwrap() {
            break head;
        }
        if io.read_buf(&mut read).await.unwrap() == 0 {
            return;
        }
    };
    let rest = read.split_off(length);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/some/token"));
    assert_eq!(request.query, [("x".to_owned(), "y".to_owned())]);
    let streamed = fake.state().streamed.clone().unwrap();
    let wants = match &streamed {
        Streamed::Exec(r) => {
            Wants { tty: r.tty, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr }
        }
        Streamed::Attach(r) => {
            Wants { tty: r.tty, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr }
        }
        Streamed::Forward(_) => Wants::default(),
    };
    match &script {
        Script::Refuse(refusal) => {
            io.write_all(&refusal.response()).await.unwrap();
            io.shutdown().await.unwrap();
        }
        Script::Forward => {
            let accepted = forward::Accepted::negotiate(&request, &[]).unwrap();
            io.write_all(&accepted.response()).await.unwrap();
            let mut session = accepted.session();
            session.receive(&rest);
            forwarding(Wire::new(io), session).await;
        }
        _ => {
            let accepted = Accepted::negotiate(&request, wants).unwrap();
            io.write_all(&accepted.response()).await.unwrap();
            let mut session = accepted.session();
            session.receive(&rest);
            command(io, session, script).await;
        }
    }
}

async fn command(io: Box<dyn Io>, mut session: Session, script: Script) {
    let mut wire = Wire::new(io);
    let mut rest = (Vec::new(), Vec::new());
    let mut last = None;
    loop {
        while let Some(event) = session.event().unwrap() {
            match event {
                Event::Ready => match &script {
                    Script::Print { stdout, stderr, outcome } => {
                        rest = (stdout.clone(), stderr.clone());
                        last = Some(outcome.clone());
                    }
                    Script::Vanish | Script::Garbage => {
                        assert_eq!(session.send(Channel::Stdout, b"half"), 4);
                        while !session.output().is_empty() {
                            wire.turn(&mut session).await;
                        }
                        let mut io = wire.into_io();
                        if matches!(script, Script::Garbage) {
                            let _ = io.write_all(&[0x80, 9, 9, 9].repeat(99)).await;
                            let _ = io.read_to_end(&mut Vec::new()).await;
                        }
                        return;
                    }
                    _ => {}
                },
                // It is pending then.
                Event::Data { .. } => {}
                Event::Resize { width, height } => {
                    if matches!(script, Script::Sizes) {
                        rest.0.extend(format!("{width}x{height}\r\n").bytes());
                    }
                }
                Event::Closed { .. } => {
                    last = Some(match script {
                        Script::Echo => Outcome::Exit(3),
                        _ => Outcome::Success,
                    });
                }
                Event::Deaf { .. } => {}
                Event::Gone => return,
            }
        }
        if matches!(script, Script::Echo) {
            loop {
                let n = session.room(Channel::Stdout).min(session.pending(Channel::Stdin).len());
                if n == 0 {
                    break;
                }
                let bytes = session.pending(Channel::Stdin)[..n].to_vec();
                let sent = session.send(Channel::Stdout, &bytes);
                session.consumed(Channel::Stdin, sent);
            }
        }
        for (channel, bytes) in [(Channel::Stdout, &mut rest.0), (Channel::Stderr, &mut rest.1)] {
            let n = session.send(channel, bytes);
            bytes.drain(..n);
        }
        let all = rest.0.is_empty() && rest.1.is_empty();
        if all
            && session.pending(Channel::Stdin).is_empty()
            && let Some(outcome) = last.take()
        {
            session.finish(outcome);
        }
        // What was consumed may have made an event possible.
        if session.done() {
            let mut io = wire.into_io();
            let _ = io.shutdown().await;
            let _ = io.read_to_end(&mut Vec::new()).await;
            return;
        }
        wire.turn(&mut session).await;
    }
}

async fn forwarding(mut wire: Wire, mut session: forward::Session) {
    let mut echoing = Vec::new();
    let mut sending: Option<(forward::Id, usize)> = None;
    loop {
        while let Some(event) = session.event().unwrap() {
            match event {
                forward::Event::Opened { id, port } => match port {
                    1 => echoing.push((id, false)),
                    2 => session.fail(id, "nobody\nlistens"),
                    3 => session.reset(id),
                    4 => {
                        assert_eq!(session.send(id, b"hello"), 5);
                        session.close(id);
                    }
                    6 => sending = Some((id, LARGE)),
                    _ => return,
                },
                forward::Event::Data { .. } => {}
                forward::Event::Closed { id } => {
                    if let Some(one) = echoing.iter_mut().find(|(i, _)| *i == id) {
                        one.1 = true;
                    }
                }
                forward::Event::Reset { id } => echoing.retain(|(i, _)| *i != id),
                forward::Event::Gone => return,
            }
        }
        if let Some((id, left)) = &mut sending {
            *left -= session.send(*id, &vec![6; (*left).min(65_536)]);
            if *left == 0 {
                session.close(*id);
                sending = None;
            }
        }
        echoing.retain(|(id, ended)| {
            loop {
                let n = session.room(*id).min(session.pending(*id).len());
                if n == 0 {
                    break;
                }
                let bytes = session.pending(*id)[..n].to_vec();
                let sent = session.send(*id, &bytes);
                session.consumed(*id, sent);
            }
            let over = *ended && session.pending(*id).is_empty();
            if over {
                session.close(*id);
            }
            !over
        });
        wire.turn(&mut session).await;
    }
}

macro_rules! protocol {
    ($session:ty) => {
        impl Protocol for $session {
            fn space(&mut self) -> &mut [u8] {
                <$session>::space(self)
            }
            fn filled(&mut self, n: usize) {
                <$session>::filled(self, n);
            }
            fn eof(&mut self) {
                <$session>::eof(self);
            }
            fn output(&mut self) -> &[u8] {
                <$session>::output(self)
            }
            fn sent(&mut self, n: usize) {
                <$session>::sent(self, n);
            }
        }
    };
}

protocol!(Session);
protocol!(forward::Session);
