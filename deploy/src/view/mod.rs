//! `kinesin view`: a run's volume for neuroglancer, and its report, on this machine only.
//!
//! Read-only: `/volume/...` are the files of `DIR/volume`, `/` is a page with `DIR/report.json` as a table and a link,
//! `/state.json` is the state behind the link. Nothing is cached by the browser, because a running line still writes. Only
//! pages of this machine and of known public viewers may read: what lies here is unpublished, and any site could ask.
//!
//! In OME-Zarr the first voxel's centre is the origin, in precomputed volumes its corner; neuroglancer draws both as they
//! say. The image layers are therefore moved by half a voxel, so that image and labels lie on each other and voxel `i`
//! covers `i..i + 1` as neuroglancer prints it.

mod page;
mod scene;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kinesin_stream::volume::VolumeError;
use serde_json::Value;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

use page::html;
use scene::Scene;

/// Sites whose pages may read; those of this machine may too.
const CLIENTS: [&str; 2] = ["https://neuroglancer-demo.appspot.com", "https://spelunker.cave-explorer.org"];

/// Why there is nothing to look at.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The folder holds no volume.
    #[error("{0}: no volume/image, volume/mask or volume/labels in it; give the --out folder of a run")]
    Nothing(PathBuf),
    /// A volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The port cannot be had.
    #[error("cannot listen on 127.0.0.1:{port}: {source}; another --port, or 0 for any free one, may do")]
    Port {
        /// The port asked for.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server could not run.
    #[error("the server failed: {0}")]
    Server(#[from] std::io::Error),
}

/// Serves the results in `dir` on 127.0.0.1 until interrupted; prints the link first. Port 0 takes a free one.
///
/// # Errors
/// Where there is nothing to show or the port cannot be had.
pub fn view(dir: &Path, port: u16) -> Result<(), ViewError> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener =
            tokio::net::TcpListener::bind(address).await.map_err(|source| ViewError::Port { port, source })?;
        let base = format!("http://{}", listener.local_addr()?);
        let scene = Scene::of(dir, &base)?;
        println!("{}\n", scene.link());
        if let Some(note) = scene.note() {
            println!("{note}\n");
        }
        println!("{base} has the report and the link; ctrl-c ends");
        axum::serve(listener, router(dir, &base))
            .with_graceful_shutdown(async {
                if tokio::signal::ctrl_c().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
            .await?;
        Ok(())
    })
}

#[derive(Debug)]
struct Site {
    dir: PathBuf,
    base: String,
}

/// The pages and files of `dir`, which can be reached at `base`.
pub fn router(dir: &Path, base: &str) -> Router {
    let site = Arc::new(Site { dir: dir.to_path_buf(), base: base.to_owned() });
    let files = ServeDir::new(dir.join("volume")).append_index_html_on_directories(false);
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(|origin, _| may_read(origin)))
        .allow_headers(Any)
        .expose_headers([header::CONTENT_RANGE, header::CONTENT_LENGTH, header::ACCEPT_RANGES])
        .allow_private_network(true);
    Router::new()
        .route("/", get(page))
        .route("/state.json", get(state))
        .nest_service("/volume", files)
        .layer(SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, HeaderValue::from_static("no-cache")))
        .layer(cors)
        .with_state(site)
}

fn may_read(origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    let host = |o: &str| o.strip_prefix("http://").map(|h| h.rsplit_once(':').map_or(h, |(h, _)| h).to_owned());
    CLIENTS.contains(&origin) || matches!(host(origin).as_deref(), Some("127.0.0.1" | "localhost" | "[::1]"))
}

async fn state(State(site): State<Arc<Site>>) -> Response {
    match read_scene(site).await {
        Ok(scene) => Json(scene.state(true)).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn page(State(site): State<Arc<Site>>) -> Response {
    let report = tokio::fs::read(site.dir.join("report.json")).await.ok();
    let report = report.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let dir = site.dir.clone();
    match read_scene(site).await {
        Ok(scene) => Html(html(&dir, &scene, report.as_ref())).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}

async fn read_scene(site: Arc<Site>) -> Result<Scene, ViewError> {
    tokio::task::spawn_blocking(move || Scene::of(&site.dir, &site.base)).await.map_err(std::io::Error::other)?
}
