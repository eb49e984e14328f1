//! The `kinesin` program; everything is in the library beside it, so that tests call the same code.

fn main() -> std::process::ExitCode {
    kinesin::program()
}
