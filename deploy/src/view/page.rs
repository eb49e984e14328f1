//! The page at `/`: the report as tables, and the link.

use std::path::Path;

use kinesin_stream::geometry::{VoxelSize, Zyx};
use serde_json::Value;

use super::scene::Scene;

/// The page.
pub(super) fn html(dir: &Path, scene: &Scene, report: Option<&Value>) -> String {
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
        scene.layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", "),
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
