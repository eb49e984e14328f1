use super::*;

/// A runtime as found on this machine; `None` with a message where there is none, so that tests pass without network.
fn runtime(provider: Provider, precision: Option<Precision>) -> Option<Runtime> {
    match Runtime::open(&RuntimeSettings { provider, precision, cache: None }) {
        Ok(runtime) => Some(runtime),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn fib25() -> Option<Model> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let root = std::env::var_os("KINESIN_DATA").map_or(here, PathBuf::from);
    let model = Model::load(&root.join("fib25/ffn_fib25_fp32.onnx"));
    model.map_err(|why| eprintln!("skipped: {why}")).ok()
}

#[test]
fn bf16_is_refused_where_the_provider_has_none() {
    let text = precision(Provider::Cpu, Some(Precision::Bf16)).unwrap_err().to_string();
    assert!(text.contains("--precision f32"), "{text}");
    assert_eq!(precision(Provider::Cuda, None).unwrap(), Precision::F32);
}

#[test]
fn a_missing_runtime_names_three_ways_to_supply_it() {
    let text = RuntimeError::Missing { tried: "nothing".into() }.to_string();
    assert!(text.contains("ORT_DYLIB_PATH") && text.contains("pip` work") && text.contains("pip install"));
}

#[test]
fn an_item_has_the_same_bits_in_every_batch_size() {
    let Some(model) = fib25() else { return };
    for (provider, precision) in
        [(Provider::Cpu, None), (Provider::OpenVino, Some(Precision::F32)), (Provider::OpenVino, None)]
    {
        let Some(runtime) = runtime(provider, precision) else { continue };
        let mut network = runtime.network(&model).unwrap();
        let n = 33 * 33 * 33;
        let image: Vec<f32> = (0..4 * n).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
        let seed: Vec<f32> = (0..4 * n).map(|i| if i % n == n / 2 { 2.944 } else { -2.944 }).collect();
        let mut together = vec![0.0; 4 * n];
        network.run(&[&image, &seed], 4, &mut together).unwrap();
        let mut alone = vec![0.0; n];
        let at = 2 * n..3 * n;
        network.run(&[&image[at.clone()], &seed[at.clone()]], 1, &mut alone).unwrap();
        assert_eq!(alone, together[at], "{:?}", runtime.chosen());
    }
}

#[test]
fn the_cpu_provider_computes_in_f32_also_where_a_plug_in_with_bf16_is_at_hand() {
    let (Some(model), Some(plugged)) = (fib25(), runtime(Provider::OpenVino, Some(Precision::F32))) else { return };
    let Some(cpu) = runtime(Provider::Cpu, None) else { return };
    let n = 33 * 33 * 33;
    let image: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    let seed: Vec<f32> = (0..n).map(|i| if i == n / 2 { 2.944 } else { -2.944 }).collect();
    let answers: Vec<Vec<f32>> = [cpu, plugged]
        .iter()
        .map(|runtime| {
            let mut out = vec![0.0; n];
            runtime.network(&model).unwrap().run(&[&image, &seed], 1, &mut out).unwrap();
            out
        })
        .collect();
    let worst = answers[0].iter().zip(&answers[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // two f32 implementations differ by some 1e-5 here, bf16 by some 1e-1
    assert!(worst < 5e-3, "{worst}");
}

#[test]
fn auto_says_what_it_chose_and_buffers_that_do_not_fit_are_refused() {
    let Some(runtime) = runtime(Provider::Auto, None) else { return };
    assert_ne!(runtime.chosen().provider, Provider::Auto);
    assert!(!runtime.chosen().reason.is_empty() && runtime.chosen().dylib.is_file());
    let Some(model) = fib25() else { return };
    let mut network = runtime.network(&model).unwrap();
    assert!(network.run(&[&[0.0; 5], &[0.0; 5]], 1, &mut [0.0; 5]).is_err());
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_its_remedy() {
    if runtime(Provider::Cpu, None).is_none()
        || locate::cpu_has("never")
        || std::path::Path::new("/dev/nvidia0").exists()
    {
        return;
    }
    let text =
        Runtime::open(&RuntimeSettings { provider: Provider::Cuda, ..Default::default() }).unwrap_err().to_string();
    assert!(text.contains("onnxruntime-gpu"), "{text}");
}
