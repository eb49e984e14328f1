//! The models that come with the product: `stages/models/<name>/`, found beside the sources they were built from or beside
//! the program (`models/<name>`), so that the binary stays small.

use std::path::{Path, PathBuf};

use super::{Model, ModelError};

const NAMES: [&str; 3] = ["ffn-cortex-12nm", "ffn-sim-16nm", "mask-sim-32nm"];

/// Names that [`shipped`] knows.
pub fn shipped_names() -> &'static [&'static str] {
    &NAMES
}

/// Loads a model of the product by name.
///
/// # Errors
/// [`ModelError::Read`] where the name is unknown or its folder is absent, and every error of [`Model::load`].
pub fn shipped(name: &str) -> Result<Model, ModelError> {
    let folders = folders();
    let found = folders.iter().map(|f| f.join(name)).find(|f| f.join("model.toml").is_file());
    match found.filter(|_| NAMES.contains(&name)) {
        Some(folder) => Model::load(&folder),
        None => {
            let looked = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" and ");
            Err(ModelError::Read { path: PathBuf::from(name), why: format!("no model of that name in {looked}") })
        }
    }
}

fn folders() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("models")));
    std::iter::once(Path::new(env!("CARGO_MANIFEST_DIR")).join("models")).chain(beside).collect()
}
