//! A client and a server of the generated code over a unix socket: a method that is written, one
//! that is not, one that streams.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::pin::Pin;

use api_cri::v1::image_service_client::ImageServiceClient;
use api_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use api_cri::v1::runtime_service_client::RuntimeServiceClient;
use api_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use api_cri::v1::*;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

struct Half;

type Listed = Result<StreamImagesResponse, Status>;

#[tonic::async_trait]
impl RuntimeService for Half {
    async fn version(
        &self,
        request: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        let version = request.into_inner().version;
        Ok(Response::new(VersionResponse { version, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl ImageService for Half {
    async fn stream_images(
        &self,
        _: Request<StreamImagesRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<StreamImagesResponse>>, Status> {
        let image = |id: &str| -> Listed {
            let image = Image { id: id.into(), ..Default::default() };
            Ok(StreamImagesResponse { images: vec![image] })
        };
        let stream = tokio_stream::iter([image("one"), image("two")]);
        Ok(Response::new(Box::pin(stream) as Pin<Box<_>>))
    }
}

/// A channel to a server of its own, which ends with the connection.
async fn channel() -> Channel {
    let (near, far) = UnixStream::pair().unwrap();
    let routes =
        Routes::new(RuntimeServiceServer::new(Half)).add_service(ImageServiceServer::new(Half));
    tokio::spawn(async move {
        let service = TowerToHyperService::new(routes.prepare());
        let _ = auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(far), service)
            .await;
    });
    let mut near = Some(near);
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let io = near.take().map(TokioIo::new);
            async move { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        }))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_written_method_answers() {
    let mut client = RuntimeServiceClient::new(channel().await);
    let answer = client.version(VersionRequest { version: "v1".into() }).await.unwrap();
    assert_eq!(answer.into_inner().version, "v1");
}

#[tokio::test]
async fn what_is_not_written_is_unimplemented() {
    let channel = channel().await;
    let mut client = RuntimeServiceClient::new(channel.clone());
    let status = client.restore_pod(RestorePodRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = client.get_container_events(GetEventsRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let mut client = ImageServiceClient::new(channel);
    let status = client.pull_image(PullImageRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_stream_comes_in_order() {
    let mut client = ImageServiceClient::new(channel().await);
    let mut stream =
        client.stream_images(StreamImagesRequest::default()).await.unwrap().into_inner();
    let mut ids = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        ids.extend(message.images.into_iter().map(|i| i.id));
    }
    assert_eq!(ids, ["one", "two"]);
}
