//! The `kinesin` program; everything is in the library beside it, so that tests call the same code.

use std::process::ExitCode;

use clap::Parser;
use kinesin::cli::Cli;
use kinesin::outcome::exit_code;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KINESIN_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = kinesin::execute(&Cli::parse());
    if let Err(failure) = &result {
        eprintln!("error: {failure}");
    }
    ExitCode::from(exit_code(&result))
}
