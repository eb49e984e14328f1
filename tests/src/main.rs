//! The same program as `kinesin`, built beside the tests so that they can start it, stop it and kill it.

fn main() -> std::process::ExitCode {
    kinesin::program()
}
