//! `kinesin view`: a run's volume for neuroglancer, and its report, on this machine only.
//!
//! Read-only: `/volume/...` are the files of `DIR/volume`, `/` is a page with `DIR/report.json` as a table and a link,
//! `/state.json` is the state behind the link. Nothing is cached by the browser, because a running line still writes. Only
//! pages of this machine and of known public viewers may read: what lies here is unpublished, and any site could ask.
//!
//! In OME-Zarr the first voxel's centre is the origin, in precomputed volumes its corner; neuroglancer draws both as they
//! say. The image layers are therefore moved by half a voxel, so that image and labels lie on each other and voxel `i`
//! covers `i..i + 1` as neuroglancer prints it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use kinesin_stream::geometry::{VoxelSize, Zyx};
use kinesin_stream::volume::commit_log::read_log;
use kinesin_stream::volume::{self, Equivalence, VolumeError};
use serde_json::{Value, json};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_http::services::ServeDir;
use tower_http::set_header::SetResponseHeaderLayer;

/// Where the link leads: the public neuroglancer, which runs in the browser and takes its data from here.
const CLIENT: &str = "https://neuroglancer-demo.appspot.com/";
/// Sites whose pages may read; those of this machine may too.
const CLIENTS: [&str; 2] = ["https://neuroglancer-demo.appspot.com", "https://spelunker.cave-explorer.org"];
/// Merges that fit into a link; with more the labels are shown unmerged there, and `/state.json` has them all.
const MERGES_IN_LINK: usize = 2000;

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

/// What there is to see.
#[derive(Debug)]
struct Scene {
    base: String,
    shape: Zyx<usize>,
    voxel: VoxelSize,
    /// Those of image, mask and labels that are there.
    layers: Vec<&'static str>,
    /// Labels that are one object, sorted.
    merged: Vec<Vec<u64>>,
    merges: usize,
}

impl Scene {
    fn of(dir: &Path, base: &str) -> Result<Self, ViewError> {
        let root = dir.join("volume");
        let layers: Vec<_> = ["image", "mask", "labels"].into_iter().filter(|l| root.join(l).is_dir()).collect();
        let first = layers.first().ok_or_else(|| ViewError::Nothing(dir.to_path_buf()))?;
        let info = volume::open(&root.join(first))?.info().clone();
        let rows = read_log::<Equivalence>(&root.join("equivalences.jsonl"))?;
        Ok(Self {
            base: base.to_owned(),
            shape: info.shape,
            voxel: info.voxel_size.unwrap_or(VoxelSize(Zyx::new(1.0, 1.0, 1.0))),
            layers,
            merges: rows.len(),
            merged: sets(&rows),
        })
    }

    /// The link, with the merges in it where they are few.
    fn link(&self) -> String {
        format!("{CLIENT}#!{}", percent(&self.state(self.merges <= MERGES_IN_LINK).to_string()))
    }

    fn note(&self) -> Option<String> {
        (self.merges > MERGES_IN_LINK && self.layers.contains(&"labels")).then(|| {
            format!(
                "{} merges are too many for that link, which shows base labels; all of them: {CLIENT}#!{}/state.json",
                self.merges, self.base
            )
        })
    }

    /// The state of neuroglancer: layers, place, scale.
    fn state(&self, with_merges: bool) -> Value {
        let VoxelSize(nm) = self.voxel;
        let Zyx { z, y, x } = self.shape;
        let (mid_z, mid_y, mid_x) = ((z / 2) as f64 + 0.5, y as f64 / 2.0, x as f64 / 2.0);
        json!({
            "dimensions": {"x": metres(nm.x), "y": metres(nm.y), "z": metres(nm.z)},
            "position": [mid_x, mid_y, mid_z],
            // Voxels a screen pixel: the whole section in about 800 of them.
            "crossSectionScale": (x.max(y) as f64 / 800.0).max(0.05),
            "projectionScale": x.max(y) as f64 * 1.5,
            "layers": self.layers.iter().map(|l| self.layer(l, with_merges)).collect::<Vec<_>>(),
            "selectedLayer": {"layer": self.layers.last(), "visible": false},
            "layout": "4panel",
        })
    }

    fn layer(&self, name: &str, with_merges: bool) -> Value {
        let url = |scheme: &str| format!("{scheme}://{}/volume/{name}", self.base);
        let VoxelSize(nm) = self.voxel;
        let half_voxel = json!({
            "outputDimensions": {"z": metres(nm.z), "y": metres(nm.y), "x": metres(nm.x)},
            "matrix": [[1, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0.5]],
        });
        match name {
            "image" => json!({
                "type": "image",
                "name": name,
                "source": {"url": url("zarr"), "transform": half_voxel},
            }),
            "mask" => json!({
                "type": "segmentation",
                "name": name,
                "source": {"url": url("zarr"), "transform": half_voxel},
                "visible": false,
                "selectedAlpha": 0.3,
            }),
            _ => {
                let mut layer = json!({
                    "type": "segmentation",
                    "name": name,
                    "source": url("precomputed"),
                    "selectedAlpha": 0.4,
                });
                if with_merges && !self.merged.is_empty() {
                    // As text: numbers of JavaScript end at 2^53.
                    let text = |set: &Vec<u64>| set.iter().map(u64::to_string).collect::<Vec<_>>();
                    layer["equivalences"] = self.merged.iter().map(text).collect();
                }
                layer
            }
        }
    }
}

/// A voxel's side as neuroglancer takes it; through text, so that 4 nm is 4e-9 m and not its neighbour.
fn metres(nm: f64) -> Value {
    json!([format!("{nm}e-9").parse().unwrap_or(nm * 1e-9), "m"])
}

/// Labels that are connected by rows, each set sorted, sets by their first.
fn sets(rows: &[Equivalence]) -> Vec<Vec<u64>> {
    let mut parent: BTreeMap<u64, u64> = BTreeMap::new();
    fn root(parent: &mut BTreeMap<u64, u64>, label: u64) -> u64 {
        let mut at = label;
        while let Some(&up) = parent.get(&at).filter(|&&up| up != at) {
            let next = parent.get(&up).copied().unwrap_or(up);
            parent.insert(at, next);
            at = next;
        }
        at
    }
    for row in rows {
        let (a, b) = (root(&mut parent, row.a), root(&mut parent, row.b));
        parent.entry(a.min(b)).or_insert(a.min(b));
        parent.insert(a.max(b), a.min(b));
    }
    let labels: Vec<u64> = parent.keys().copied().collect();
    let mut sets: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for label in labels {
        sets.entry(root(&mut parent, label)).or_default().push(label);
    }
    sets.into_values().filter(|s| s.len() > 1).collect()
}

/// Percent-encodes what a fragment may not hold.
fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-_.~:,/!".contains(&b) {
            out.push(char::from(b));
        } else {
            write!(out, "%{b:02X}").expect("writing to a String does not fail");
        }
        out
    })
}

fn html(dir: &Path, scene: &Scene, report: Option<&Value>) -> String {
    let title = escape(&dir.display().to_string());
    let Zyx { z, y, x } = scene.shape;
    let VoxelSize(nm) = scene.voxel;
    let note = scene.note().map(|n| format!("<p>{}</p>", escape(&n))).unwrap_or_default();
    let report = report.map_or("<p>No report.json yet: the run is not at its end.</p>".to_owned(), table);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Kinesin: {title}</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}}\
         table{{border-collapse:collapse;margin:.2rem 0}}td,th{{border-bottom:1px solid #8884;padding:.2rem .8rem .2rem 0;\
         text-align:left;vertical-align:top}}th{{font-weight:600}}td{{font-variant-numeric:tabular-nums}}\
         a.go{{display:inline-block;padding:.5rem 1rem;border:1px solid;border-radius:.4rem;text-decoration:none}}\
         </style></head><body><h1>{title}</h1>\
         <p>{x} &times; {y} &times; {z} voxels (x, y, z) of {} &times; {} &times; {} nm: {}</p>\
         <p><a class=\"go\" href=\"{}\">Open in neuroglancer</a></p>{note}<h2>Report</h2>{report}</body></html>",
        nm.x,
        nm.y,
        nm.z,
        scene.layers.join(", "),
        escape(&scene.link()),
    )
}

/// JSON as nested tables; a list of records has one row each.
fn table(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let row = |(k, v): (&String, &Value)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(k), table(v));
            format!("<table>{}</table>", fields.iter().map(row).collect::<String>())
        }
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_object) => {
            let keys = |v: &Value| v.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
            let heads = keys(&items[0]);
            let head: String = heads.iter().map(|k| format!("<th>{}</th>", escape(k))).collect();
            let row = |v: &Value| {
                let cells: String = heads.iter().map(|k| format!("<td>{}</td>", table(&v[k]))).collect();
                format!("<tr>{cells}</tr>")
            };
            format!("<table><tr>{head}</tr>{}</table>", items.iter().map(row).collect::<String>())
        }
        Value::Array(items) => items.iter().map(table).collect::<Vec<_>>().join(", "),
        Value::String(text) => escape(text),
        Value::Null => "&ndash;".to_owned(),
        Value::Number(n) if n.is_f64() => format!("{:.4}", n.as_f64().unwrap_or(f64::NAN)),
        other => escape(&other.to_string()),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use kinesin_stream::geometry::Xy;
    use kinesin_stream::volume::{CommitLog, ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce};
    use ndarray::{Array2, Array3};

    use super::*;

    fn run_folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (shape, voxel_size) = (Zyx::new(2, 20, 30), VoxelSize(Zyx::new(30.0, 4.0, 4.5)));
        let spec = ImageSpec { shape, voxel_size, levels: 2, chunk: Xy::new(16, 16), reduce: Reduce::Mean };
        let image = ImageWriter::create(&dir.path().join("volume/image"), spec).unwrap();
        image.write_section(0, Array2::from_elem((20, 30), 7).view()).unwrap();
        let spec = LabelSpec { shape, voxel_size, origin: Zyx::default(), chunk: Zyx::new(2, 16, 16) };
        let labels = LabelWriter::create(&dir.path().join("volume/labels"), spec).unwrap();
        labels.write_box(Zyx::default(), Array3::ones((2, 20, 30)).view()).unwrap();
        std::fs::write(dir.path().join("report.json"), r#"{"scores": {"<b>": 0.5}, "stages": [{"n": 1}]}"#).unwrap();
        std::fs::write(dir.path().join("secret.txt"), "not to be seen").unwrap();
        dir
    }

    fn merge(dir: &Path, rows: &[(u64, u64)]) {
        let (mut log, _) = CommitLog::open(&dir.join("volume/equivalences.jsonl")).unwrap();
        log.append_all(&rows.iter().map(|&(a, b)| Equivalence { a, b }).collect::<Vec<_>>()).unwrap();
    }

    /// Serves `dir` and asks each of `requests` (path and further header lines); whole answers as text.
    fn answers(dir: &Path, requests: &[(&str, &str)]) -> Vec<String> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(dir, &format!("http://{address}"));
        runtime.spawn(async move { axum::serve(listener, router).await });
        let ask = |(path, more): &(&str, &str)| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{more}\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        };
        requests.iter().map(ask).collect()
    }

    #[test]
    fn the_files_of_the_volume_and_nothing_else_can_be_read() {
        let dir = run_folder();
        let client = "Origin: https://neuroglancer-demo.appspot.com\r\n";
        let [whole, part, outside, encoded, sibling, other] = &answers(
            dir.path(),
            &[
                ("/volume/labels/info", client),
                ("/volume/labels/info", "Origin: http://localhost:8080\r\nRange: bytes=0-3\r\n"),
                ("/volume/../secret.txt", ""),
                ("/volume/%2e%2e/secret.txt", ""),
                ("/secret.txt", ""),
                ("/volume/labels/info", "Origin: https://elsewhere.example\r\n"),
            ],
        )[..] else {
            panic!("six answers")
        };
        assert!(whole.starts_with("HTTP/1.1 200") && whole.contains("compressed_segmentation"), "{whole}");
        assert!(whole.contains("access-control-allow-origin: https://neuroglancer-demo.appspot.com"), "{whole}");
        assert!(whole.contains("cache-control: no-cache"), "{whole}");
        assert!(part.starts_with("HTTP/1.1 206") && part.contains("content-range: bytes 0-3/"), "{part}");
        assert!(part.contains("access-control-allow-origin: http://localhost:8080"), "{part}");
        for refused in [outside, encoded, sibling] {
            assert!(refused.starts_with("HTTP/1.1 4") && !refused.contains("not to be seen"), "{refused}");
        }
        assert!(!other.contains("access-control-allow-origin"), "{other}");
    }

    #[test]
    fn the_page_has_the_report_as_text_and_the_link() {
        let dir = run_folder();
        let answer = &answers(dir.path(), &[("/", "")])[0];
        assert!(answer.contains("<th>&lt;b&gt;</th><td>0.5000</td>"), "{answer}");
        assert!(answer.contains("href=\"https://neuroglancer-demo.appspot.com/#!%7B"), "{answer}");
        assert!(answer.contains("30 &times; 20 &times; 2 voxels (x, y, z) of 4.5 &times; 4 &times; 30 nm"), "{answer}");
    }

    #[test]
    fn the_link_holds_scale_place_and_layers_that_lie_on_each_other() {
        let dir = run_folder();
        let scene = Scene::of(dir.path(), "http://127.0.0.1:1").unwrap();
        let state = scene.state(true);
        assert_eq!(state["dimensions"], json!({"x": [4.5e-9, "m"], "y": [4e-9, "m"], "z": [3e-8, "m"]}));
        assert_eq!(state["position"], json!([15.0, 10.0, 1.5]));
        let names: Vec<_> = state["layers"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["image", "labels"]);
        assert_eq!(state["layers"][0]["source"]["url"], "zarr://http://127.0.0.1:1/volume/image");
        assert_eq!(state["layers"][0]["source"]["transform"]["matrix"][0], json!([1, 0, 0, 0.5]));
        assert_eq!(state["layers"][1]["source"], "precomputed://http://127.0.0.1:1/volume/labels");
        assert!(!scene.link().contains(['{', '"', ' ', '<']), "{}", scene.link());
    }

    #[test]
    fn merges_are_in_the_link_while_they_fit_and_all_in_the_state() {
        let dir = run_folder();
        merge(dir.path(), &[(5, 3), (9, 8), (3, 7), (u64::MAX, 9), (7, 5)]);
        let scene = Scene::of(dir.path(), "").unwrap();
        let wanted = json!([["3", "5", "7"], ["8", "9", u64::MAX.to_string()]]);
        assert_eq!(scene.state(true)["layers"][1]["equivalences"], wanted);
        assert_eq!(scene.note(), None);
        merge(dir.path(), &(0..MERGES_IN_LINK as u64).map(|i| (100 + i, 101 + i)).collect::<Vec<_>>());
        let scene = Scene::of(dir.path(), "http://127.0.0.1:1").unwrap();
        assert!(scene.link().len() < 4000 && scene.note().unwrap().contains("http://127.0.0.1:1/state.json"));
        let state = &answers(dir.path(), &[("/state.json", "")])[0];
        assert!(state.contains(&(100 + MERGES_IN_LINK).to_string()), "{state}");
    }

    #[test]
    fn a_folder_without_a_volume_and_a_port_in_use_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let e = view(dir.path(), 0).unwrap_err().to_string();
        assert!(e.contains("no volume/image"), "{e}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let e = view(dir.path(), taken.local_addr().unwrap().port()).unwrap_err().to_string();
        assert!(e.contains("--port"), "{e}");
    }
}
