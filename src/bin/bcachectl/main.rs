//! `bcachectl`: looks at the devices of a set that does not run. It writes to none of them, but for
//! `new-uuid`, which changes the superblock of a copy.
//!
//! Exit codes: 0 nothing wrong, 1 something is wrong with what stands on a device, 2 a device cannot
//! be read or the command line cannot be understood.
#![deny(unsafe_code)]

mod check;
mod device;
mod dump;
mod new_uuid;
mod show;
mod text;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Looks at bcache's devices and images, offline. Nothing is written to them, but by new-uuid.
#[derive(Parser)]
#[command(
    name = "bcachectl",
    version,
    after_help = "Exit codes: 0 nothing wrong, 1 something is wrong on a device, 2 a device cannot be read or bad usage"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the superblocks of devices or images
    Show {
        /// Devices or images, of either kind
        #[arg(required = true)]
        devices: Vec<PathBuf>,
        /// One JSON array, an object for each device
        #[arg(long)]
        json: bool,
    },
    /// Verify everything that stands on a cache device, and its backing devices against it
    Check {
        /// The cache device or its image
        device: PathBuf,
        /// Its backing devices, as many as there are at hand
        backings: Vec<PathBuf>,
        /// One JSON object: findings, notes, summary
        #[arg(long)]
        json: bool,
    },
    /// Give a clean copy of a backing device a UUID of its own: writes to the device
    NewUuid {
        /// The copy, or its image
        device: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Print the structures of a cache device one by one
    Dump {
        /// Which structures
        what: What,
        /// The cache device or its image
        device: PathBuf,
        /// One JSON array, an object for each row
        #[arg(long)]
        json: bool,
    },
}

/// What can be dumped.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Extents: of the btree, then those of the journal that a start replays over them
    Keys,
    /// Journal entries
    Journal,
    /// Priority and generation of every bucket
    Prios,
    /// The uuid table: the volumes
    Uuids,
}

/// What became of a command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Fine,
    Wrong,
    Unreadable,
}

fn run(cli: Cli, out: &mut dyn Write) -> io::Result<Outcome> {
    match cli.command {
        Command::Show { devices, json } => show::run(&devices, json, out),
        Command::Check {
            device,
            backings,
            json,
        } => check::run(&device, &backings, json, out),
        Command::NewUuid { device, yes } => new_uuid::run(&device, yes, out),
        Command::Dump { what, device, json } => dump::run(what, &device, json, out),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(cli, &mut out).and_then(|outcome| out.flush().map(|()| outcome));
    match done {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        Ok(Outcome::Unreadable) => ExitCode::from(2),
        // Who reads has had enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bcachectl: the output cannot be written: {error}");
            ExitCode::from(2)
        }
    }
}
