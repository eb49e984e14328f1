//! The only binary: command line, site files, plans, reports.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | the command line, a contract |
//! | [`site`], [`faults`] | the site file, all its mistakes told at once |
//! | [`check`] | `kinesin check`: the plan and the memory budget |
//! | `head`, [`run`] | `kinesin run`, `send`, `receive`: the live line |
//! | [`offline`] | `kinesin sim`, `stitch`, `align`: recorded data through the same stages |
//! | [`part`] | part of a volume, reduced |
//! | [`segment`] | `kinesin segment`, `mask`: a volume through the same stages |
//! | `flooding` | the line that says how far a flood is |
//! | [`merge`] | `kinesin consensus`, `agglomerate`: segmentations made into others |
//! | [`instrument`] | the instrument that a site file names |
//! | [`prepare`] | models, networks, folders, the identity of a run |
//! | [`govern`], [`events`], [`metrics`] | what happens when compute falls behind, and who is told |
//! | [`score`] | `kinesin score` |
//! | [`report`], [`progress`], [`console`] | what people see |
//! | `scenario` | `--scenario`: faults on purpose |
//! | [`view`] | `kinesin view` |
//! | [`ledger`] | `kinesin ledger`: where every tile stands, as table, JSON, CSV or Parquet |
//! | [`outcome`] | exit codes |
//!
//! Absent on purpose: algorithms (they are in `stages`) and anything that a library user would want to call.

pub mod check;
pub mod cli;
pub mod console;
mod doubts;
pub mod events;
mod exchange;
pub mod faults;
mod flooding;
pub mod govern;
mod head;
pub mod instrument;
pub mod ledger;
pub mod merge;
pub mod metrics;
mod numbering;
pub mod offline;
pub mod outcome;
pub mod part;
pub mod prepare;
pub mod progress;
pub mod report;
pub mod run;
mod scenario;
pub mod score;
pub mod segment;
pub mod site;
pub mod view;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use outcome::{Failure, Outcome, exit_code};

/// The system's allocator keeps a heap a thread and gives little of it back: after an hour the program held twice what it leased.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The whole program: reads the command line, does it, says why not, gives the exit status.
pub fn program() -> ExitCode {
    console::init();
    let result = execute(&Cli::parse());
    if let Err(failure) = &result {
        eprintln!("error: {failure}");
    }
    ExitCode::from(exit_code(&result))
}

/// Does what the command line says.
pub fn execute(cli: &Cli) -> Result<Outcome, Failure> {
    match &cli.command {
        Command::Check(args) => check::check(args, cli.json),
        Command::Run(args) => run::run(args, cli.json),
        Command::Send(args) => run::send(args, cli.json),
        Command::Receive(args) => run::receive(args, cli.json),
        Command::Keys(args) => run::keys(args, cli.json),
        Command::Sim(args) => offline::sim(args, cli.json),
        Command::Stitch(args) => offline::stitch(args, cli.json),
        Command::Align(args) => offline::align(args, cli.json),
        Command::Segment(args) => segment::segment(args, cli.json),
        Command::Mask(args) => segment::mask(args, cli.json),
        Command::Consensus(args) => merge::consensus(args, cli.json),
        Command::Agglomerate(args) => merge::agglomerate(args, cli.json),
        Command::Score(args) => score::score(args, cli.json),
        Command::View(args) => view::view(&args.dir, args.port).map(|()| Outcome::Complete).map_err(Failure::input),
        Command::Ledger(args) => ledger::ledger(args, cli.json),
    }
}
