//! Results open in the programs that people use: CloudVolume, TensorStore, zarr-python, napari's reader.
//!
//! The real clients, in a Python environment of their own, made once in `$KINESIN_CACHE` (or below the target folder). Where
//! it cannot be made, as without a network, the test says why and passes; with `CI=true` that is a failure.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use kinesin_stream::geometry::{VoxelSize, Xy, Zyx};
use kinesin_stream::volume::{self, ImageSpec, ImageWriter, LabelSpec, LabelWriter, Reduce, VolumeInfo};
use ndarray::{Array2, Array3, s};
use serde_json::{Value, json};

const SHAPE: Zyx<usize> = Zyx::new(7, 45, 70);
const VOXEL: VoxelSize = VoxelSize(Zyx::new(30.0, 4.5, 4.0));

#[test]
fn cloudvolume_tensorstore_zarr_python_and_napari_read_what_was_written() -> Result<()> {
    let Some(python) = environment_or_skip()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let expected = json!({
        "labels": write_labels(dir.path())?,
        "image": write_image(dir.path(), "image", Reduce::Mean, 200)?,
        "mask": write_image(dir.path(), "mask", Reduce::Mode, 4)?,
    });
    fs::write(dir.path().join("expected.json"), serde_json::to_vec_pretty(&expected)?)?;
    let text = run(Command::new(python).arg(clients().join("read_back.py")).arg(dir.path()))?;
    for who in ["CloudVolume: labels", "TensorStore: labels", "zarr-python: image level 2", "napari: mask level 0"] {
        ensure!(text.contains(who), "read_back.py did not compare {who}:\n{text}");
    }
    Ok(())
}

#[test]
fn what_zarr_python_and_cloudvolume_write_is_read() -> Result<()> {
    let Some(python) = environment_or_skip()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    run(Command::new(python).arg(clients().join("write.py")).arg(dir.path()))?;
    let truth = Array3::from_shape_fn((5, 23, 41), |(z, y, x)| (x + 41 * (y + 23 * z)) as u64 * 7919 % 251);
    let mut seen = 0;
    for entry in fs::read_dir(dir.path())? {
        let path = entry?.path();
        let volume = volume::open(&path)?;
        let name = path.to_string_lossy();
        ensure!(name.ends_with(&volume.info().dtype.to_string()), "{name} was read as {}", volume.info().dtype);
        ensure!(volume.read_labels(volume.info().bounds())? == truth, "{name} came back different");
        if name.contains("precomputed") {
            ensure!(volume.info().origin == Zyx::new(30, -20, 10), "{name} begins at {:?}", volume.info().origin);
            ensure!(volume.info().voxel_size == Some(VoxelSize(Zyx::new(30.0, 4.0, 4.0))), "{name} has no voxel size");
        }
        seen += 1;
    }
    ensure!(seen == 10, "write.py wrote {seen} volumes");
    Ok(())
}

/// The Python with the clients, `None` (said on standard error) where it cannot be had outside CI.
fn environment_or_skip() -> Result<Option<PathBuf>> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match environment() {
        Ok(python) => Ok(Some(python)),
        Err(e) if std::env::var("CI").is_ok_and(|v| v == "true") => Err(e),
        Err(e) => {
            // Not `eprintln!`, which the test harness keeps to itself when a test passes.
            writeln!(std::io::stderr(), "skipped, the Python clients cannot be installed: {e:#}")?;
            Ok(None)
        }
    }
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// The Python with the clients in it; made where the one there is not of these requirements.
fn environment() -> Result<PathBuf> {
    let cache = std::env::var_os("KINESIN_CACHE")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
        .join("clients");
    let files = ["requirements.txt", "requirements-napari.txt"].map(|f| clients().join(f));
    let wanted = files.iter().map(fs::read_to_string).collect::<std::io::Result<String>>()?;
    let python = cache.join("bin/python");
    let stamp = cache.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) && python.is_file() {
        return Ok(python);
    }
    if cache.exists() {
        fs::remove_dir_all(&cache)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&cache))?;
    let pip = |more: &[&str], file: &Path| {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        // Byte code is made of what is imported, which is a tenth of what is installed.
        pip.arg("--no-compile");
        run(pip.args(more).arg("-r").arg(file)).map(drop)
    };
    pip(&[], &files[0])?;
    pip(&["--no-deps"], &files[1])?;
    fs::write(stamp, wanted)?;
    Ok(python)
}

/// What the command prints, or why it failed.
fn run(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    bail!("{command:?}: {text}{}", String::from_utf8_lossy(&out.stderr).trim())
}

/// Every label width, more than 2^53 and 0 among them, committed in steps of 4 sections.
fn write_labels(dir: &Path) -> Result<Value> {
    let origin = Zyx::new(12, 0, 256);
    let spec = LabelSpec { shape: SHAPE, voxel_size: VOXEL, origin, chunk: Zyx::new(4, 32, 32) };
    let labels = Array3::from_shape_fn(<[usize; 3]>::from(SHAPE), |(z, y, x)| {
        ((z / 2 + 7 * (y / 6) + 31 * (x / 5)) as u64 % 290) * ((1 << 53) + 1)
    });
    let writer = LabelWriter::create(&dir.join("volume/labels"), spec)?;
    for z in [0, 4] {
        writer.write_box(Zyx::new(z, 0, 0), labels.slice(s![z..(z + 4).min(SHAPE.z), .., ..]))?;
    }
    fs::write(dir.join("labels.raw"), labels.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
    let VoxelSize(size) = VOXEL;
    Ok(json!({"file": "labels.raw", "dtype": "uint64", "shape": SHAPE, "voxel_size": size, "origin": origin}))
}

/// A section without data among others; the reduced levels are expected as our own reader gives them.
fn write_image(dir: &Path, name: &str, reduce: Reduce, values: usize) -> Result<Vec<Value>> {
    let path = dir.join("volume").join(name);
    let chunk = Xy::new(32, 16);
    let levels = ImageSpec::levels_for(SHAPE, chunk);
    let writer = ImageWriter::create(&path, ImageSpec { shape: SHAPE, voxel_size: VOXEL, levels, chunk, reduce })?;
    for z in (0..SHAPE.z).filter(|&z| z != 3) {
        let section = Array2::from_shape_fn((SHAPE.y, SHAPE.x), |(y, x)| ((z * 37 + y * 5 + x * 11) % values) as u8);
        writer.write_section(z, section.view())?;
        let file = dir.join(format!("{name}_0_{z}"));
        fs::write(file, section.iter().copied().collect::<Vec<_>>())?;
    }
    (0..levels)
        .map(|level| {
            let volume = volume::open(&path.join(level.to_string()))?;
            let VolumeInfo { shape, voxel_size, .. } = *volume.info();
            let voxels = volume.read_u8(volume.info().bounds())?;
            for (z, section) in voxels.outer_iter().enumerate().filter(|(z, _)| level == 0 && *z != 3) {
                let given = fs::read(dir.join(format!("{name}_0_{z}")))?;
                ensure!(section.iter().eq(&given), "{name} section {z} came back different");
            }
            let file = format!("{name}_{level}.raw");
            fs::write(dir.join(&file), voxels.iter().copied().collect::<Vec<_>>())?;
            let voxel_size = voxel_size.context("the image has no voxel size")?;
            Ok(json!({"file": file, "dtype": "uint8", "shape": shape, "voxel_size": voxel_size}))
        })
        .collect()
}
