use super::*;

const ONNX: &[u8] = include_bytes!("../runtime/selftest.onnx");

fn fib25_file() -> Option<PathBuf> {
    let root = std::env::var_os("KINESIN_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    Some(root.join("fib25/ffn_fib25_fp32.onnx")).filter(|p| p.is_file())
}

fn write_folder(extra: &str, sha: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.onnx"), ONNX).unwrap();
    let card = format!(
        "name = \"t\"\nkind = \"ffn\"\nfile = \"model.onnx\"\nsha256 = \"{sha}\"\nlicence = \"MIT\"\ndescription = \"\"\naxes = \"zyx\"\n\
         voxel_size_nm = [30.0, 12.0, 12.0]\nshape = [17, 32, 33]\n{extra}[normalisation]\nkind = \"section\"\n[ffn]\ndeltas = [4, 20, 8]\n\
         init_activation = 0.95\npad_value = 0.05\nmove_threshold = 0.9\nsegment_threshold = 0.6\nmin_segment_size = 300\n\
         min_boundary_dist = [0, 1, 1]\ndisco_seed_threshold = 0.0\n"
    );
    std::fs::write(dir.path().join("model.toml"), card).unwrap();
    dir
}

#[test]
fn a_model_whose_shapes_do_not_fit_is_refused_with_every_fault_at_once() {
    let dir = write_folder("", &digest(ONNX));
    let text = Model::load(dir.path()).unwrap_err().to_string();
    for part in [
        "x [N, 2, 5, 5, 5]",
        "image [N, 1, 17, 32, 33] and seed",
        "shape along y is 32",
        "delta along y is 20, at most 16",
    ] {
        assert!(text.contains(part), "{part} missing in: {text}");
    }
}

#[test]
fn another_file_than_the_card_was_written_for_is_refused() {
    let dir = write_folder("", &"0".repeat(64));
    assert!(matches!(Model::load(dir.path()), Err(ModelError::Hash { .. })));
}

#[test]
fn an_unknown_key_and_a_missing_folder_are_named() {
    let dir = write_folder("colour = 1\n", &digest(ONNX));
    assert!(Model::load(dir.path()).unwrap_err().to_string().contains("colour"));
    let text = Model::load(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(text.contains("/nowhere/model.toml") && text.contains("ffn-sim-16nm"));
    assert!(shipped("ffn-unknown").is_err());
}

#[test]
fn a_bare_onnx_file_runs_with_the_published_settings() {
    let Some(file) = fib25_file() else {
        eprintln!("skipped: no FIB-25 data (set KINESIN_DATA)");
        return;
    };
    let model = Model::load(&file).unwrap();
    assert_eq!(model.ffn().unwrap().deltas, Zyx::new(8, 8, 8));
    assert_eq!(model.graph().inputs[0].item, [1, 33, 33, 33]);
    assert!(model.mask().is_err());
}
