//! The end of serving: who still gets an answer, and which.
//!
//! ```text
//!             SIGTERM, SIGINT
//!  Serving ───────────────────────────────────────────▶ Ending       every call: Unavailable
//!     │                                                    ▲
//!     └──SIGHUP, a successor is ready──▶ HandingOver ──────┘         every call but ExecSync
//! ```
//! A call in flight is answered, not cut: its caller learns that it may repeat it, and the operation goes
//! on with the next criod. Streams of events end with the same answer; who listens lists anew. A
//! connection closes (GOAWAY) with its last call; what is not flushed in [`FLUSH`] is not waited for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::body::Body;

use crate::error::{Error, Kind};

/// How long a client may take to take its answer when criod ends.
pub(crate) const FLUSH: Duration = Duration::from_millis(500);

/// What is still served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// All of it.
    Serving,
    /// The ExecSync calls that are in flight.
    HandingOver,
    /// Nothing.
    Ending,
}

/// The stage, as its owner has it.
#[derive(Debug)]
pub(crate) struct Stages(watch::Sender<Stage>);

/// The stage, as others see it.
#[derive(Debug, Clone)]
pub(crate) struct Seen(watch::Receiver<Stage>);

impl Stages {
    pub(crate) fn new() -> Stages {
        Stages(watch::Sender::new(Stage::Serving))
    }

    /// Goes on to a later one.
    pub(crate) fn set(&self, stage: Stage) {
        self.0.send_replace(stage);
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen(self.0.subscribe())
    }
}

impl Seen {
    pub(crate) fn now(&self) -> Stage {
        *self.0.borrow()
    }

    /// Waits until this stage, or a later one, is there.
    pub(crate) async fn reached(&mut self, stage: Stage) {
        // Who would say so is gone: then it is the end.
        let _ = self.0.wait_for(|now| *now >= stage).await;
    }
}

/// How many of something there are.
#[derive(Debug, Clone)]
pub(crate) struct Count(Arc<watch::Sender<usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Count);

impl Default for Count {
    fn default() -> Count {
        Count(Arc::new(watch::Sender::new(0)))
    }
}

impl Count {
    pub(crate) fn one(&self) -> Counted {
        self.0.send_modify(|n| *n += 1);
        Counted(self.clone())
    }

    pub(crate) fn now(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until there is none.
    pub(crate) async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

/// A task that ends with whoever waits for it.
#[derive(Debug)]
pub(crate) struct Attached<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for Attached<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a call that the end has met is told.
pub(crate) fn unavailable(exec: bool) -> Status {
    match exec {
        false => Error::from(Kind::Restarting).status(),
        true => Error::from(Kind::ResultLost).status(),
    }
}

/// A body that ends with [`unavailable`] where it would have to be waited for beyond a stage.
pub(crate) struct Cut {
    inner: Body,
    reached: BoxFuture<'static, ()>,
    ended: bool,
}

/// The answer, for as long as the stage is an earlier one.
pub(crate) fn until(stage: Stage, mut seen: Seen, response: Response<Body>) -> Response<Body> {
    let reached = Box::pin(async move { seen.reached(stage).await });
    response.map(|inner| Body::new(Cut { inner, reached, ended: false }))
}

impl HttpBody for Cut {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if self.reached.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(match unavailable(false).add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(e) => Err(e),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn what_is_there_is_sent_and_what_is_waited_for_is_unavailable() {
        let stages = Stages::new();
        let whole = until(
            Stage::HandingOver,
            stages.seen(),
            Response::new(Body::new("x".to_owned().map_err(|e| match e {}))),
        );
        stages.set(Stage::Ending);
        let got = whole.into_body().collect().await.unwrap();
        assert!(got.trailers().is_none());
        assert_eq!(got.to_bytes(), "x");

        let waits = futures_util::stream::pending::<Result<Frame<_>, Status>>();
        let body = Body::new(http_body_util::StreamBody::new(waits));
        let cut = until(Stage::HandingOver, stages.seen(), Response::new(body));
        let got = cut.into_body().collect().await.unwrap();
        assert_eq!(got.trailers().unwrap()["grpc-status"], "14");
    }

    #[tokio::test]
    async fn the_last_one_is_waited_for() {
        let count = Count::default();
        let (one, other) = (count.one(), count.one());
        let waiting = tokio::spawn({
            let count = count.clone();
            async move { count.none().await }
        });
        drop(one);
        assert_eq!(count.now(), 1);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(other);
        waiting.await.unwrap();
    }
}
