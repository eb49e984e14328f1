//! Neural networks through ONNX Runtime: where its library comes from, which provider computes, one thread per session.
//!
//! ```text
//! ORT_DYLIB_PATH ─┐
//! our cache ──────┤                      ┌─ CPU provider (f32)
//! Python package ─┼─► libonnxruntime ───►┼─ OpenVINO plug-in (f32, bf16)   ──► Network: [items, ...] f32 in, f32 out
//! pip, hashed ────┘                      └─ CUDA, TensorRT (f32)
//! ```
//!
//! The build needs none of this. A provider that is asked for by name and cannot be had is an error with its remedy; only
//! [`Provider::Auto`] chooses, and [`ChosenProvider`] says what it chose and why. On the CPU providers every item of a batch is
//! computed by itself, so results have the same bits for every batch size (batching buys nothing on a CPU): one single-threaded
//! session a worker. On a GPU one owner has the only session and batches what all workers ask for ([`shared`]).

mod fake;
mod locate;
mod owner;
mod session;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use serde::{Deserialize, Serialize};

pub use self::fake::RuleNetwork;
pub use self::owner::shared;
use crate::model::Model;

/// Who computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// OpenVINO where its library is present and the machine is x86-64, else the CPU provider.
    #[default]
    Auto,
    /// ONNX Runtime's own kernels, f32.
    Cpu,
    /// Intel's kernels; 2.5 times the CPU provider in f32 and about 15 times with bf16 on a processor with AMX.
    OpenVino,
    /// NVIDIA GPUs; needs an ONNX Runtime built for CUDA.
    Cuda,
    /// NVIDIA GPUs with TensorRT; needs an ONNX Runtime built for it.
    TensorRt,
}

impl Provider {
    /// Whether it computes batches faster than single items, and one session serves it best.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda | Self::TensorRt)
    }
}

/// Number format inside the network; inputs and outputs are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// Brain floats with f32 sums; as good in measured segmentations, though not the same labels.
    Bf16,
}

/// What to open.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeSettings {
    /// Who computes. Default `auto`: the fastest that is at hand.
    pub provider: Provider,
    /// Number format. Default: bf16 where OpenVINO runs on a processor with AMX (8 times faster there), else f32.
    pub precision: Option<Precision>,
    /// Folder for the runtime that is fetched. Default: `$KINESIN_CACHE`, else `$XDG_CACHE_HOME/kinesin`, else `~/.cache/kinesin`.
    pub cache: Option<PathBuf>,
}

/// What was chosen; goes into the report of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChosenProvider {
    /// Who computes; never `auto`.
    pub provider: Provider,
    /// Number format in the network.
    pub precision: Precision,
    /// The loaded ONNX Runtime library.
    #[serde(rename = "library")]
    pub dylib: PathBuf,
    /// Its version as in its file name, empty where that has none.
    pub version: String,
    /// How it was found.
    pub source: String,
    /// Why `auto` chose this one; empty for an explicit choice.
    pub reason: String,
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library by any way.
    #[error(
        "no inference runtime: {tried}; supply one in one of three ways: (1) set ORT_DYLIB_PATH to a libonnxruntime of version 1.24 or newer, \
         (2) make `python3 -m pip` work (network or a local index) and run again, or (3) install it yourself: pip install onnxruntime==1.31.1 onnxruntime-ep-openvino==1.8.1"
    )]
    Missing {
        /// What was tried and what came of it.
        tried: String,
    },
    /// The library file is there and does not load.
    #[error("cannot load the inference runtime {}: {why}; point ORT_DYLIB_PATH at another one or remove this one", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's words.
        why: String,
    },
    /// A provider that was asked for by name cannot be had.
    #[error("provider {provider:?} is not available: {why}; {remedy}")]
    Unavailable {
        /// The provider asked for.
        provider: Provider,
        /// What is missing.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// The provider's start-up check failed: it takes no notice of its options.
    #[error("provider {provider:?} failed its start-up check: {why}; use --provider cpu")]
    SelfTest {
        /// The provider.
        provider: Provider,
        /// What went wrong.
        why: String,
    },
    /// The runtime refused a model.
    #[error("the runtime cannot open model {model}: {why}")]
    Session {
        /// Name of the model.
        model: String,
        /// The runtime's words.
        why: String,
    },
}

/// A run of a network failed.
#[derive(Debug, thiserror::Error)]
#[error("inference failed: {0}")]
pub struct NetworkError(pub String);

/// A network that turns items of fixed size into items of fixed size; both are f32 in C order.
pub trait Network: Send {
    /// Computes `items` items. Each entry of `inputs` is one input of the network with its items back to back; `out` takes
    /// the items of the only output back to back. An item's result depends on that item alone.
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError>;
}

/// An opened runtime; cheap to share, makes one single-threaded [`Network`] per worker.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    plugin: Option<PathBuf>,
    chosen: ChosenProvider,
}

/// The library can be loaded into a process once, so what was loaded is process-wide.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

#[derive(Clone)]
struct Loaded {
    environment: Environment,
    located: locate::Located,
    /// What came of registering and checking OpenVINO's plug-in, once that was tried.
    openvino: Option<Result<(), OpenVinoFault>>,
}

/// OpenVINO is not there, or not to be trusted.
#[derive(Clone)]
enum OpenVinoFault {
    Absent(String),
    Wrong(String),
}

impl Runtime {
    /// Finds or fetches the library, loads it, chooses the provider and checks it. Takes seconds the first time on a machine.
    ///
    /// # Errors
    /// Every way in which a runtime or provider can be missing, each with its remedy.
    pub fn open(settings: &RuntimeSettings) -> Result<Self, RuntimeError> {
        let wants_plugin = matches!(settings.provider, Provider::Auto | Provider::OpenVino) && locate::PLUGIN_EXISTS;
        let mut guard = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut loaded = match guard.take() {
            Some(loaded) => loaded,
            None => load(locate::locate(settings.cache.as_deref(), wants_plugin)?)?,
        };
        let made = Self::choose(settings, &mut loaded);
        *guard = Some(loaded);
        made
    }

    /// What computes, and from where.
    pub fn chosen(&self) -> &ChosenProvider {
        &self.chosen
    }

    /// A session of its own for one worker; one thread.
    ///
    /// # Errors
    /// [`RuntimeError::Session`] where the runtime refuses the model.
    pub fn network(&self, model: &Model) -> Result<Box<dyn Network>, RuntimeError> {
        let session = session::OrtNetwork::open(
            &self.environment,
            self.chosen.provider,
            self.chosen.precision,
            model.onnx(),
            model.graph(),
        );
        session
            .map(|s| Box::new(s) as Box<dyn Network>)
            .map_err(|why| RuntimeError::Session { model: model.name().to_owned(), why })
    }

    fn choose(settings: &RuntimeSettings, loaded: &mut Loaded) -> Result<Self, RuntimeError> {
        let (provider, reason) = match settings.provider {
            Provider::Auto => match openvino(loaded) {
                Ok(()) => (Provider::OpenVino, "OpenVINO's library is present and passed its check".to_owned()),
                Err(OpenVinoFault::Absent(why) | OpenVinoFault::Wrong(why)) => {
                    (Provider::Cpu, format!("OpenVINO not used: {why}"))
                }
            },
            Provider::OpenVino => {
                openvino(loaded).map_err(|fault| match fault {
                    OpenVinoFault::Absent(why) => RuntimeError::Unavailable {
                        provider: Provider::OpenVino,
                        why,
                        remedy: "pip install onnxruntime==1.31.1 onnxruntime-ep-openvino==1.8.1 (Linux on x86-64 only), or use --provider cpu".into(),
                    },
                    OpenVinoFault::Wrong(why) => RuntimeError::SelfTest { provider: Provider::OpenVino, why },
                })?;
                (Provider::OpenVino, String::new())
            }
            Provider::Cpu => (Provider::Cpu, String::new()),
            gpu => {
                session::try_gpu(&loaded.environment, gpu).map_err(|why| RuntimeError::Unavailable {
                    provider: gpu,
                    why,
                    remedy: "set ORT_DYLIB_PATH to the library of onnxruntime-gpu on a machine with an NVIDIA GPU, or use --provider auto".into(),
                })?;
                (gpu, String::new())
            }
        };
        let precision = precision(provider, settings.precision)?;
        let located = &loaded.located;
        Ok(Self {
            environment: loaded.environment.clone(),
            plugin: located.plugin.clone(),
            chosen: ChosenProvider {
                provider,
                precision,
                dylib: located.dylib.clone(),
                version: locate::version(&located.dylib).map_or(String::new(), |(text, _)| text),
                source: located.how.to_owned(),
                reason,
            },
        })
    }

    /// The OpenVINO plug-in library that goes with the runtime, where there is one.
    pub fn plugin(&self) -> Option<&std::path::Path> {
        self.plugin.as_deref()
    }
}

/// A factory of networks for workers, the form in which kernels take a runtime.
pub type NetworkFactory = Arc<dyn Fn() -> Result<Box<dyn Network>, RuntimeError> + Send + Sync>;

impl Runtime {
    /// One [`Network`] per call for this model: a session of its own on a CPU, a share of one owner's on a GPU.
    pub fn factory(&self, model: &Model) -> NetworkFactory {
        let (runtime, model) = (self.clone(), model.clone());
        let own: NetworkFactory = Arc::new(move || runtime.network(&model));
        if self.chosen.provider.is_gpu() { shared(own, session::GPU_BATCH) } else { own }
    }
}

fn load(located: locate::Located) -> Result<Loaded, RuntimeError> {
    let fail = |why: String| RuntimeError::Load { path: located.dylib.clone(), why };
    let builder = ort::init_from(&located.dylib).map_err(|e| fail(e.to_string()))?;
    let environment = builder.with_name("kinesin").with_telemetry(false).build().map_err(|e| fail(e.to_string()))?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    tracing::info!(dylib = %located.dylib.display(), how = located.how, "inference runtime loaded");
    Ok(Loaded { environment, located, openvino: None })
}

/// Registers and checks the plug-in, once per process.
fn openvino(loaded: &mut Loaded) -> Result<(), OpenVinoFault> {
    if loaded.openvino.is_none() {
        loaded.openvino = Some(try_openvino(&loaded.environment, loaded.located.plugin.as_deref()));
    }
    loaded.openvino.clone().expect("just set")
}

fn try_openvino(environment: &Environment, plugin: Option<&std::path::Path>) -> Result<(), OpenVinoFault> {
    let absent = |why: &str| OpenVinoFault::Absent(why.to_owned());
    let plugin = plugin.ok_or_else(|| absent("its plug-in library was not found beside the runtime"))?;
    environment.register_ep_library(session::OPENVINO, plugin).map_err(|e| absent(&e.to_string()))?;
    // the check provokes an error, which is no news for the terminal
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    let checked = session::self_test(environment).map_err(OpenVinoFault::Wrong);
    environment.set_log_level(ort::logging::LogLevel::Error);
    checked
}

fn precision(provider: Provider, asked: Option<Precision>) -> Result<Precision, RuntimeError> {
    let refuse =
        |why: &str, remedy: &str| Err(RuntimeError::Unavailable { provider, why: why.into(), remedy: remedy.into() });
    match (provider, asked) {
        (_, Some(Precision::F32)) => Ok(Precision::F32),
        (Provider::OpenVino, None) => Ok(if locate::cpu_has("amx_bf16") { Precision::Bf16 } else { Precision::F32 }),
        (Provider::OpenVino, Some(Precision::Bf16))
            if locate::cpu_has("amx_bf16") || locate::cpu_has("avx512_bf16") =>
        {
            Ok(Precision::Bf16)
        }
        (Provider::OpenVino, Some(Precision::Bf16)) => {
            refuse("this processor has no bf16 instructions", "use --precision f32")
        }
        (_, None) => Ok(Precision::F32),
        (_, Some(Precision::Bf16)) => {
            refuse("it computes in f32 only", "use --precision f32, or --provider openvino for bf16")
        }
    }
}

#[cfg(test)]
mod tests;
