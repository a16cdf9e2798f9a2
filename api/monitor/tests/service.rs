//! The generated client against the generated server, over a unix socket.
#![cfg(feature = "ttrpc")]
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::sync::Arc;

use api_monitor::SERVICE;
use api_monitor::monitor::{
    ExecSyncRequest, ExecSyncResponse, Phase, StateRequest, StateResponse, StopRequest,
};
use api_monitor::service::{Monitor, MonitorClient, create_monitor};
use async_trait::async_trait;
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context::with_timeout;

struct Half;

#[async_trait]
impl Monitor for Half {
    async fn state(&self, _: &TtrpcContext, _: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(StateResponse { phase: Phase::PHASE_RUNNING.into(), pid: 7, ..Default::default() })
    }

    async fn exec_sync(
        &self,
        _: &TtrpcContext,
        request: ExecSyncRequest,
    ) -> ttrpc::Result<ExecSyncResponse> {
        let exit_code = i32::try_from(request.process.len()).unwrap();
        Ok(ExecSyncResponse { exit_code, ..Default::default() })
    }
}

#[tokio::test]
async fn calls_come_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let services = create_monitor(Arc::new(Half));
    assert!(services.contains_key(SERVICE), "{:?}", services.keys());
    let mut server = Server::new()
        .add_listener(ttrpc::asynchronous::transport::Listener::from(listener))
        .register_service(services);
    server.start().await.unwrap();

    let client = Client::connect(&format!("unix://{}", path.display())).await.unwrap();
    let client = MonitorClient::new(client);
    let state = client.state(with_timeout(0), &StateRequest::new()).await.unwrap();
    assert_eq!((state.phase, state.pid), (Phase::PHASE_RUNNING.into(), 7));

    let request = ExecSyncRequest { process: vec![b' '; 1 << 20], ..Default::default() };
    let answer = client.exec_sync(with_timeout(0), &request).await.unwrap();
    assert_eq!(answer.exit_code, 1 << 20);

    let error = client.stop(with_timeout(0), &StopRequest::new()).await.unwrap_err();
    let ttrpc::Error::RpcStatus(status) = error else { panic!("{error}") };
    assert_eq!(status.code(), ttrpc::Code::NOT_FOUND);
    server.shutdown().await.unwrap();
}
