//! CRI's ImageService on top of [`Images`].
//!
//! Errors and what the kubelet makes of them: it looks for `RegistryUnavailable` as the first word
//! of an error of code Unknown, and for no other code. That an image is not here is an error of no
//! call: ImageStatus answers without an image, RemoveImage succeeds.
//!
//! Annotations and runtime handlers of an image's name change nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api_cri::v1::image_service_server::ImageService as Service;
use api_cri::v1::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoRequest,
    ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse, UInt64Value,
};
use registry::Credentials;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::error::{Error, Kind};
use crate::images::{ImageId, ImageInfo, Images};

/// The container that uses an image, if any.
pub type InUse = Arc<dyn Fn(&ImageId) -> Option<String> + Send + Sync>;

/// How many images one message of a stream holds.
const BATCH: usize = 100;

/// CRI's ImageService.
#[derive(Clone)]
pub struct ImageService {
    images: Images,
    in_use: InUse,
}

impl ImageService {
    /// Serves `images`; `in_use` keeps those that containers use from being removed.
    pub fn new(images: Images, in_use: InUse) -> ImageService {
        ImageService { images, in_use }
    }

    fn list(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let name = filter.and_then(|filter| filter.image).map(|spec| spec.image);
        self.images.list(name.as_deref()).into_iter().map(message).collect()
    }

    fn verbose(&self, info: &ImageInfo) -> Result<BTreeMap<String, String>, Status> {
        let raw = self.images.raw_config(&info.id).map_err(|e| status_of(&e))?;
        let spec: serde_json::Value =
            raw.and_then(|raw| serde_json::from_slice(&raw).ok()).unwrap_or_default();
        let json = serde_json::json!({"labels": info.config.config.labels, "imageSpec": spec});
        Ok(BTreeMap::from([("info".to_owned(), json.to_string())]))
    }
}

/// The answer that an error becomes; its message names image and cause.
pub fn status_of(error: &Error) -> Status {
    let text = error.full();
    match error.kind() {
        Kind::Unavailable => Status::unknown(format!("RegistryUnavailable: {text}")),
        Kind::NotFound => Status::not_found(text),
        Kind::Unauthorized | Kind::Blocked => Status::permission_denied(text),
        Kind::BadReference => Status::invalid_argument(text),
        Kind::Invalid | Kind::InUse => Status::failed_precondition(text),
        Kind::NoSpace => Status::resource_exhausted(text),
        Kind::Internal => Status::internal(text),
    }
}

fn message(info: ImageInfo) -> Image {
    let spec = ImageSpec { image: info.id.clone(), ..Default::default() };
    Image {
        id: info.id,
        repo_tags: info.repo_tags,
        repo_digests: info.repo_digests,
        size: info.size,
        uid: info.uid.map(|value| Int64Value { value }),
        username: info.username,
        spec: Some(spec),
        pinned: info.pinned,
    }
}

fn named(spec: Option<ImageSpec>) -> Result<String, Status> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image),
        _ => Err(Status::invalid_argument("no image is named")),
    }
}

fn credentials(image: &str, auth: Option<AuthConfig>) -> Result<Credentials, Status> {
    let auth = auth.unwrap_or_default();
    Credentials::from_cri(
        &auth.username,
        &auth.password,
        &auth.auth,
        &auth.identity_token,
        &auth.registry_token,
    )
    .map_err(|error| Status::invalid_argument(format!("pulling image {image}: {error}")))
}

#[tonic::async_trait]
impl Service for ImageService {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.list(request.into_inner().filter);
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<BoxStream<StreamImagesResponse>>, Status> {
        let images = self.list(request.into_inner().filter);
        let batches: Vec<Result<StreamImagesResponse, Status>> = images
            .chunks(BATCH)
            .map(|batch| Ok(StreamImagesResponse { images: batch.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(batches))))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let Some(info) = self.images.status(&name) else {
            return Ok(Response::new(ImageStatusResponse::default()));
        };
        let verbose = if request.verbose { self.verbose(&info)? } else { BTreeMap::new() };
        let image = Some(message(info));
        Ok(Response::new(ImageStatusResponse { image, info: verbose }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let credentials = credentials(&name, request.auth)?;
        let pulled = self.images.pull(&name, credentials).await;
        let image_ref = pulled.map_err(|error| status_of(&error))?;
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?;
        self.images.remove(&name, &*self.in_use).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        let info = self.images.fs_info();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let usage = FilesystemUsage {
            timestamp: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: info.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(UInt64Value { value: info.used_bytes }),
            inodes_used: Some(UInt64Value { value: info.inodes }),
        };
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
