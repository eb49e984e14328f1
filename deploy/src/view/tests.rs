//! Promises of the viewer.

use std::io::{Read, Write};
use std::net::TcpStream;

use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use kinesin_stream::volume::{CommitLog, Equivalence, ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce};
use ndarray::{Array2, Array3};
use serde_json::json;

use super::scene::MERGES_IN_LINK;
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

#[test]
fn the_newest_version_of_a_section_lies_on_the_image_and_provisional_labels_below_the_labels() {
    let dir = run_folder();
    let volume = dir.path().join("volume");
    for name in ["revisions/1_v1", "revisions/1_v2", "revisions/0_v10", "labels_light"] {
        std::fs::create_dir_all(volume.join(name)).unwrap();
    }
    let state = Scene::of(dir.path(), "http://127.0.0.1:1").unwrap().state(true);
    let layers = state["layers"].as_array().unwrap();
    let names: Vec<_> = layers.iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["image", "revisions/0_v10", "revisions/1_v2", "labels_light", "labels"]);
    assert!(layers[1]["shader"].as_str().unwrap().contains("discard"));
    assert_eq!(layers[2]["source"]["url"], "zarr://http://127.0.0.1:1/volume/revisions/1_v2");
    assert_eq!(layers[3]["visible"], false);
    (0..30).for_each(|z| std::fs::create_dir_all(volume.join(format!("revisions/{z}_v1"))).unwrap());
    let scene = Scene::of(dir.path(), "").unwrap();
    assert_eq!(scene.state(true)["layers"].as_array().unwrap().len(), 3 + 20);
    assert!(scene.note().unwrap().contains("10 more sections"));
}
