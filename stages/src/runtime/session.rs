//! One single-threaded ONNX Runtime session as a [`Network`], and the check that OpenVINO heeds its options.
//!
//! OpenVINO's plug-in drops options without the prefix `<provider>.` and reads threads and precision from the JSON text in
//! `load_config` alone; with a wrong key everything runs and nothing is heeded. Hence the check: nonsense must be refused.

use ort::environment::Environment;
use ort::ep::{CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::TensorRef;

use super::{Network, NetworkError, Precision, Provider};
use crate::model::{Graph, GraphPort};

/// Name of the provider in the plug-in; others such as `.AUTO` are registered too, so it is matched exactly.
pub(super) const OPENVINO: &str = "OpenVINOExecutionProvider";

const CPU: &str = "CPUExecutionProvider";

const SELF_TEST: &[u8] = include_bytes!("selftest.onnx");

pub(super) struct OrtNetwork {
    session: Session,
    inputs: Vec<GraphPort>,
    output: String,
    batch: usize,
}

impl OrtNetwork {
    pub(super) fn open(
        env: &Environment,
        provider: Provider,
        precision: Precision,
        onnx: &[u8],
        graph: &Graph,
    ) -> Result<Self, String> {
        let hint = match precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        let batch = if provider.is_gpu() { GPU_BATCH } else { 1 };
        let session = commit(env, provider, hint, onnx, graph, batch)?;
        let output = graph.outputs.first().ok_or("the graph has no output")?.name.clone();
        Ok(Self { session, inputs: graph.inputs.clone(), output, batch })
    }

    fn run_fixed(&mut self, inputs: &[&[f32]], out: &mut [f32]) -> ort::Result<()> {
        let mut values = Vec::with_capacity(inputs.len());
        for (port, data) in self.inputs.iter().zip(inputs) {
            let shape: Vec<i64> =
                std::iter::once(self.batch as i64).chain(port.item.iter().map(|&n| n as i64)).collect();
            values.push((port.name.as_str(), TensorRef::from_array_view((shape, *data))?));
        }
        let outputs = self.session.run(values)?;
        let (shape, result) = outputs[self.output.as_str()].try_extract_tensor::<f32>()?;
        // short only where the last items of a fixed batch are padding
        if out.is_empty() || result.len() < out.len() || !out.len().is_multiple_of(result.len() / self.batch) {
            return Err(ort::Error::new(format!("the network returned {shape:?}, {} numbers were wanted", out.len())));
        }
        out.copy_from_slice(&result[..out.len()]);
        Ok(())
    }
}

/// Items per call on a GPU; a fixed number, so that results do not depend on how many wait.
pub(super) const GPU_BATCH: usize = 16;

impl Network for OrtNetwork {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        let sizes: Vec<usize> = self.inputs.iter().map(GraphPort::item_len).collect();
        let out_len = out.len() / items.max(1);
        let fits = inputs.len() == sizes.len()
            && inputs.iter().zip(&sizes).all(|(i, s)| i.len() == s * items)
            && out.len() == out_len * items;
        if !fits {
            return Err(NetworkError(format!("{items} items do not fit the buffers given")));
        }
        let fail = |e: ort::Error| NetworkError(e.to_string());
        for first in (0..items).step_by(self.batch) {
            let n = self.batch.min(items - first);
            let cut: Vec<&[f32]> = inputs.iter().zip(&sizes).map(|(i, s)| &i[first * s..(first + n) * s]).collect();
            let to = &mut out[first * out_len..(first + n) * out_len];
            if n == self.batch {
                self.run_fixed(&cut, to).map_err(fail)?;
            } else {
                let padded: Vec<Vec<f32>> = cut
                    .iter()
                    .zip(&sizes)
                    .map(|(c, s)| [c, vec![0.0; (self.batch - n) * s].as_slice()].concat())
                    .collect();
                self.run_fixed(&padded.iter().map(Vec::as_slice).collect::<Vec<_>>(), to).map_err(fail)?;
            }
        }
        Ok(())
    }
}

/// Refuses nonsense, and computes in f32 what the CPU provider computes.
pub(super) fn self_test(env: &Environment) -> Result<(), String> {
    let graph = Graph::parse(SELF_TEST).map_err(|e| e.to_string())?;
    if commit(env, Provider::OpenVino, "nonsense", SELF_TEST, &graph, 1).is_ok() {
        return Err("it took a precision that does not exist, so it ignores its options".into());
    }
    let input: Vec<f32> = (0..250).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
    let mut results = Vec::new();
    for provider in [Provider::Cpu, Provider::OpenVino] {
        let mut network = OrtNetwork::open(env, provider, Precision::F32, SELF_TEST, &graph)?;
        let mut out = vec![0.0; 125];
        network.run(&[&input], 1, &mut out).map_err(|e| e.to_string())?;
        results.push(out);
    }
    let worst = results[0].iter().zip(&results[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if worst > 1e-5 { Err(format!("its f32 differs from the CPU provider's by {worst}")) } else { Ok(()) }
}

/// Whether a session can be made on this GPU provider at all.
pub(super) fn try_gpu(env: &Environment, provider: Provider) -> Result<(), String> {
    let graph = Graph::parse(SELF_TEST).map_err(|e| e.to_string())?;
    commit(env, provider, "f32", SELF_TEST, &graph, 1).map(|_| ())
}

fn commit(
    env: &Environment,
    provider: Provider,
    hint: &str,
    onnx: &[u8],
    graph: &Graph,
    batch: usize,
) -> Result<Session, String> {
    let mut builder = base(env, graph, batch).map_err(|e| e.to_string())?;
    builder = match provider {
        Provider::Cpu | Provider::Auto => on_cpu(env, builder)?,
        Provider::OpenVino => on_openvino(env, builder, hint)?,
        Provider::Cuda => on_gpu(builder, CUDA::default().with_tf32(false).build())?,
        Provider::TensorRt => on_gpu(builder, TensorRT::default().build())?,
    };
    builder.commit_from_memory(onnx).map_err(|e| e.to_string())
}

fn base(env: &Environment, graph: &Graph, batch: usize) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(env)?.with_intra_threads(1)?.with_inter_threads(1)?;
    if let Some(name) = &graph.batch_name {
        builder = builder.with_dimension_override(name, batch as i64)?;
    }
    Ok(builder.with_deterministic_compute(true)?)
}

/// By name: a session without any would be given to a plug-in that is registered, with the plug-in's own precision.
fn on_cpu(env: &Environment, builder: SessionBuilder) -> Result<SessionBuilder, String> {
    let devices: Vec<_> = env.devices().filter(|d| d.ep().is_ok_and(|name| name == CPU)).take(1).collect();
    if devices.is_empty() {
        return Err("the runtime offers no CPU provider".into());
    }
    builder.with_devices(devices, None).map_err(|e| e.to_string())
}

fn on_openvino(env: &Environment, builder: SessionBuilder, hint: &str) -> Result<SessionBuilder, String> {
    let config = serde_json::json!({"CPU": {
        "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO",
    }});
    let options = [(format!("{OPENVINO}.load_config"), config.to_string())];
    let devices: Vec<_> = env
        .devices()
        .filter(|d| {
            d.ep().is_ok_and(|name| name == OPENVINO) && d.hardware_device().ty() == ort::memory::DeviceType::CPU
        })
        .take(1)
        .collect();
    if devices.is_empty() {
        return Err("the plug-in offers no CPU device".into());
    }
    let builder = builder.with_devices(devices, Some(&options)).map_err(|e| e.to_string())?;
    builder.with_disable_cpu_fallback().map_err(|e| e.to_string())
}

fn on_gpu(builder: SessionBuilder, provider: ExecutionProviderDispatch) -> Result<SessionBuilder, String> {
    let builder = builder.with_execution_providers([provider.error_on_failure()]).map_err(|e| e.to_string())?;
    // a layer that the GPU cannot compute would go to the CPU without a word
    builder.with_disable_cpu_fallback().map_err(|e| e.to_string())
}
