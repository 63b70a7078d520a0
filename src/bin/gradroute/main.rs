//! `gradroute`: what a ledger knows, at the command line.

mod answers;
mod arguments;
mod attenuate;
mod attenuated;
mod dials;
mod export;
mod indexing;
mod integrity;
mod memorized;
mod progress;
mod shown;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Cli, Command, Output, Trace};
use crate::shown::Shown;

/// Everything was as asked.
const FINE: u8 = 0;
/// The question could not be answered.
const FAILED: u8 = 1;
// 2 is clap's own, for a command line that cannot be understood.
/// `verify` found something wrong.
const FOUND: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            eprintln!("error: {problem}");
            if let Some(advice) = advice(&problem, &cli.command) {
                eprintln!("{advice}");
            }
            ExitCode::from(FAILED)
        }
    }
}

fn run(cli: &Cli) -> gradroute::Result<u8> {
    let quiet = cli.output.quiet;
    if let Some(page) = &cli.output.html {
        check_page(page)?;
    }
    let (shown, code) = match &cli.command {
        Command::Inspect { ledger } => (answers::inspect(ledger, quiet)?, FINE),
        Command::Trace(Trace::Forward { ledger, subject }) => {
            (answers::forward(ledger, &subject.parsed()?, quiet)?, FINE)
        }
        Command::Trace(Trace::Backward { ledger, place, grouping }) => {
            (answers::backward(ledger, &place.parsed(), grouping, quiet)?, FINE)
        }
        Command::Trace(Trace::Output(question)) => (answers::output(question, quiet)?, FINE),
        Command::Depth { ledger, subject, level } => {
            (answers::depth(ledger, &subject.parsed()?, *level, quiet)?, FINE)
        }
        Command::Overlap { ledger, category, level } => {
            (answers::overlap(ledger, category, *level, quiet)?, FINE)
        }
        Command::Alone { ledger, level, damping } => {
            (answers::alone(ledger, *level, *damping, quiet)?, FINE)
        }
        Command::Memorized(question) => (memorized::memorized(question, quiet)?, FINE),
        Command::Attenuate(question) => (attenuate::attenuate(question, quiet)?, FINE),
        Command::Verify(question) => integrity::verify(question, quiet)?,
        Command::Sign { ledger, key } => (integrity::sign(ledger, key)?, FINE),
        Command::Export(question) => (export::export(question, quiet)?, FINE),
        Command::Index(question) => (indexing::index(question, quiet)?, FINE),
        Command::Top(question) => (indexing::top(question, quiet)?, FINE),
    };
    deliver(&shown, &cli.output)?;
    Ok(code)
}

/// Refuses a page that has no folder before work is done for it.
fn check_page(path: &Path) -> gradroute::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let found = std::fs::metadata(folder).map_err(export::io(folder))?;
    let wrong = match (path.is_dir(), found.is_dir()) {
        (true, _) => std::io::ErrorKind::IsADirectory,
        (_, false) => std::io::ErrorKind::NotADirectory,
        _ => return Ok(()),
    };
    Err(export::io(path)(wrong.into()))
}

/// To the terminal, and to a page if that is asked for.
fn deliver(shown: &Shown, output: &Output) -> gradroute::Result<()> {
    let page = output.html.as_ref().map(|path| {
        std::fs::write(path, shown.page()).map_err(export::io(path))?;
        if !output.quiet && !output.json {
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    });
    if output.json {
        say(&format!("{:#}\n", shown.value))?;
    } else if !matches!(page, Some(Ok(()))) {
        // The answer is not lost with its page.
        say(&shown.text())?;
    }
    page.unwrap_or(Ok(()))
}

/// To standard output. Who reads it may have had enough, which is no error.
fn say(text: &str) -> gradroute::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(export::io(Path::new("standard output"))),
    }
}

/// What to do about an error.
fn advice(problem: &gradroute::Error, command: &Command) -> Option<&'static str> {
    use gradroute::Error;
    match problem {
        Error::Ledger { problem, .. } if problem.contains("no run here") => Some(
            "Give the directory that holds manifest.json: the one the trainer passed to \
             Ledger::create.",
        ),
        Error::Ledger { .. } if matches!(command, Command::Top(_)) => {
            Some("`gradroute index` builds the index anew from its ledger.")
        }
        Error::Ledger { .. } => {
            Some("Run `gradroute verify` on the ledger: it names every file that was altered.")
        }
        // `queries[n]` where each phase of the run has one.
        Error::Argument { argument, .. }
            if argument == "query" || argument.starts_with("queries[") =>
        {
            Some(
                "A query file is what provenance::Query::write leaves: sketches of the run's own \
             projection, one per draw.",
            )
        }
        Error::Argument { argument, .. } if argument == "category" || argument == "sample" => {
            Some("`gradroute inspect` lists the categories; `gradroute export … samples` the ids.")
        }
        Error::Argument { argument, .. } if argument.starts_with("losses.") => Some(
            "Losses speak for the checkpoints they were taken on, and for no others: give the \
             digests that are printed here, or by b3sum.",
        ),
        Error::Argument { argument, .. } if argument == "dial.block" => {
            Some("`gradroute inspect` lists the blocks of a ledger's policy.")
        }
        Error::Refused { what, .. } if what == "compiling the run's policy" => {
            Some("Give the model's layers with --layout: see `gradroute attenuate --help`.")
        }
        _ => None,
    }
}
