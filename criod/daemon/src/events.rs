//! What happens to containers and pods, told to whoever listens (GetContainerEvents).
//!
//! ```text
//! a record changes ─▶ tell ─▶ the steps since the last telling ─▶ a queue for each client ─▶ stream
//!    none ─▶ CREATED ─▶ STARTED ─▶ STOPPED ─▶ DELETED            │ full: the stream ends with an error
//! ```
//! An event is told after the record shows it, and by steps: however two tellings of one container
//! race, none of its steps is told twice, left out or out of order. (One that never started has no
//! STARTED.) A pod's own events have the pod's id as that of the container; CREATED and STARTED come
//! together, when it is ready.
//!
//! Each client has a queue of its own, bounded by number and by bytes. Who does not keep up with it
//! gets what is in it, then `ResourceExhausted`: it must list anew, and knows. Others notice nothing.
//! A restart of criod ends all streams, so that what happened meanwhile needs no telling.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api_cri::v1::{ContainerEventResponse, ContainerEventType as Type};
use prost::Message;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tonic::Status;
use tonic::codegen::BoxStream;
use tracing::warn;

use crate::cri;
use crate::node::{Container, Node, Pod, lock};
use crate::record::{ContainerRecord, ContainerState, PodRecord, PodState};

/// The most that wait for one client: events, and their bytes.
const MOST_EVENTS: usize = 1000;
const MOST_BYTES: usize = 16 << 20;

/// How far the telling of a container or pod has come.
#[derive(Debug, Default)]
pub(crate) struct Told(AtomicU8);

const NONE: u8 = 0;
const CREATED: u8 = 1;
const STARTED: u8 = 2;
const STOPPED: u8 = 3;
const DELETED: u8 = 4;

/// Where the telling should be.
fn step_of(record: &ContainerRecord) -> u8 {
    match record.state {
        ContainerState::Creating => NONE,
        _ if record.infra => NONE,
        ContainerState::Created | ContainerState::Unknown => CREATED,
        ContainerState::Running => STARTED,
        ContainerState::Exited => STOPPED,
        ContainerState::Removing => DELETED,
    }
}

fn step_of_pod(record: &PodRecord) -> u8 {
    match record.state {
        PodState::Creating => NONE,
        PodState::Ready => STARTED,
        // A removal that fails makes it NotReady again.
        PodState::NotReady | PodState::Removing => STOPPED,
    }
}

/// The steps from one to another.
fn steps(from: u8, to: u8, started: bool) -> impl Iterator<Item = Type> {
    // What nobody was told of needs no end.
    let begins = from > NONE || to < DELETED;
    (from + 1..=to).filter(move |_| begins).filter_map(move |step| match step {
        CREATED => Some(Type::ContainerCreatedEvent),
        STARTED => started.then_some(Type::ContainerStartedEvent),
        STOPPED => (started || to == STOPPED).then_some(Type::ContainerStoppedEvent),
        _ => Some(Type::ContainerDeletedEvent),
    })
}

#[derive(Debug)]
struct Client {
    queue: Sender<Arc<ContainerEventResponse>>,
    /// Bytes of what is in the queue.
    bytes: Arc<AtomicUsize>,
}

/// All clients. Locked while an event is made and put into the queues, so that all have one order;
/// nothing waits while it is locked.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Vec<Client>>);

impl Events {
    /// The events from now on.
    pub(crate) fn subscribe(&self) -> BoxStream<ContainerEventResponse> {
        let (queue, events) = mpsc::channel(MOST_EVENTS);
        let bytes = Arc::new(AtomicUsize::new(0));
        let mut clients = lock(&self.0);
        clients.retain(|c| !c.queue.is_closed());
        clients.push(Client { queue, bytes: Arc::clone(&bytes) });
        stream(events, bytes)
    }

    /// Puts an event into every queue; who has no room is let go.
    fn publish(clients: &mut Vec<Client>, event: ContainerEventResponse) {
        let (size, event) = (event.encoded_len(), Arc::new(event));
        clients.retain(|client| {
            let waiting = client.bytes.fetch_add(size, Ordering::SeqCst);
            // One event is taken however long it is.
            let room = waiting == 0 || waiting + size <= MOST_BYTES;
            let taken = room && client.queue.try_send(Arc::clone(&event)).is_ok();
            if !taken && !client.queue.is_closed() {
                warn!("a client of events does not keep up and is let go");
            }
            taken
        });
    }
}

/// The stream of one client: it ends with an error, as criod never ends one otherwise.
fn stream(
    events: Receiver<Arc<ContainerEventResponse>>,
    bytes: Arc<AtomicUsize>,
) -> BoxStream<ContainerEventResponse> {
    let next = |state: Option<(Receiver<Arc<ContainerEventResponse>>, Arc<AtomicUsize>)>| async {
        let (mut events, bytes) = state?;
        match events.recv().await {
            Some(event) => {
                bytes.fetch_sub(event.encoded_len(), Ordering::SeqCst);
                let event = Arc::unwrap_or_clone(event);
                Some((Ok(event), Some((events, bytes))))
            }
            None => {
                let text = "events were lost, as they were not read in time: list anew";
                Some((Err(Status::resource_exhausted(text)), None))
            }
        }
    };
    Box::pin(futures_util::stream::unfold(Some((events, bytes)), next))
}

impl Node {
    /// Tells what has become of a container. Called after its record has changed.
    pub(crate) fn tell(&self, container: &Container) {
        let record = container.record.get();
        self.stats_news(&record);
        let mut clients = lock(&self.events.0);
        // Anew, as another may have told more in the meantime.
        let record = container.record.get();
        let to = step_of(&record);
        let from = container.told.0.fetch_max(to, Ordering::SeqCst);
        if clients.is_empty() {
            return;
        }
        let Ok(pod) = self.pod(&record.pod) else { return };
        for what in steps(from, to, record.started_at > 0) {
            let event = self.event(&container.id, what, &pod);
            Events::publish(&mut clients, event);
        }
    }

    /// Tells what has become of a pod.
    pub(crate) fn tell_pod(&self, pod: &Pod) {
        // One that never came to be was never told of.
        if pod.told.0.load(Ordering::SeqCst) > NONE || pod.record.get().state == PodState::Ready {
            self.tell_pod_step(pod, step_of_pod(&pod.record.get()));
        }
    }

    /// Tells that a pod is gone.
    pub(crate) fn tell_pod_gone(&self, pod: &Pod) {
        self.tell_pod_step(pod, DELETED);
    }

    fn tell_pod_step(&self, pod: &Pod, to: u8) {
        let mut clients = lock(&self.events.0);
        let from = pod.told.0.fetch_max(to, Ordering::SeqCst);
        if clients.is_empty() {
            return;
        }
        for what in steps(from, to, true) {
            let event = self.event(&pod.id, what, pod);
            Events::publish(&mut clients, event);
        }
    }

    /// What a start found needs no telling: nobody was listening.
    pub(crate) fn nothing_to_tell(&self) {
        for container in self.all_containers() {
            container.told.0.fetch_max(step_of(&container.record.get()), Ordering::SeqCst);
        }
        for pod in self.all_pods() {
            pod.told.0.fetch_max(step_of_pod(&pod.record.get()), Ordering::SeqCst);
        }
    }

    /// An event with the pod and its containers as they are now.
    fn event(&self, id: &str, what: Type, pod: &Pod) -> ContainerEventResponse {
        let containers_statuses = cri::statuses_of(self, &pod.id);
        ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: what as i32,
            created_at: sys::clock::realtime(),
            pod_sandbox_status: Some(cri::pod_status(&pod.record.get())),
            containers_statuses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    fn names(from: u8, to: u8, started: bool) -> Vec<&'static str> {
        let name = |t: Type| t.as_str_name();
        let name = |t| name(t).trim_start_matches("CONTAINER_").trim_end_matches("_EVENT");
        steps(from, to, started).map(name).collect()
    }

    #[test]
    fn every_step_is_told_once() {
        assert_eq!(names(NONE, CREATED, false), ["CREATED"]);
        assert_eq!(names(CREATED, STOPPED, true), ["STARTED", "STOPPED"]);
        assert_eq!(names(STOPPED, STARTED, true), [""; 0]);
        assert_eq!(names(CREATED, STOPPED, false), ["STOPPED"]);
        assert_eq!(names(CREATED, DELETED, false), ["DELETED"]);
        assert_eq!(names(STARTED, DELETED, true), ["STOPPED", "DELETED"]);
        assert_eq!(names(NONE, DELETED, true), [""; 0]);
        assert_eq!(names(DELETED, DELETED, true), [""; 0]);
    }

    fn event(n: usize) -> ContainerEventResponse {
        ContainerEventResponse { container_id: n.to_string(), ..Default::default() }
    }

    #[tokio::test]
    async fn who_does_not_read_is_told_so_and_holds_up_nobody() {
        let events = Events::default();
        let (mut stalled, mut reading) = (events.subscribe(), events.subscribe());
        let gone = events.subscribe();
        drop(gone);
        for n in 0..2 * MOST_EVENTS {
            Events::publish(&mut lock(&events.0), event(n));
            assert_eq!(reading.next().await.unwrap().unwrap().container_id, n.to_string());
        }
        for n in 0..MOST_EVENTS {
            assert_eq!(stalled.next().await.unwrap().unwrap().container_id, n.to_string());
        }
        let end = stalled.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::ResourceExhausted);
        assert!(stalled.next().await.is_none());
        assert_eq!(lock(&events.0).len(), 1);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_its_size_as_well() {
        let events = Events::default();
        let mut client = events.subscribe();
        let long = ContainerEventResponse {
            container_id: "x".repeat(MOST_BYTES / 2 + 1),
            ..Default::default()
        };
        Events::publish(&mut lock(&events.0), long.clone());
        Events::publish(&mut lock(&events.0), long.clone());
        assert!(client.next().await.unwrap().is_ok());
        assert!(client.next().await.unwrap().is_err());
        // One that is read in time may follow another, and none is too long for an empty queue.
        let mut client = events.subscribe();
        for _ in 0..3 {
            let long = ContainerEventResponse {
                container_id: "x".repeat(MOST_BYTES + 1),
                ..Default::default()
            };
            Events::publish(&mut lock(&events.0), long);
            assert!(client.next().await.unwrap().is_ok());
        }
    }
}
