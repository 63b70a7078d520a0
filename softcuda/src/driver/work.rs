//! What a stream does and what a graph's nodes hold: work that owns everything it needs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::boundary::{HostFunction, StreamCallback};
use super::context::Health;
use super::copy::Copy;
use super::error::{Error, Outcome, SUCCESS, Status};
use super::event::Event;
use super::fill::Fill;
use super::graph::Executable;
use super::launch::Prepared;
use super::state::{Handle, driver};

#[derive(Debug, Clone)]
pub enum Work {
    Copy(Copy),
    Fill(Fill),
    Launch(Arc<Prepared>),
    /// A function of the host's with its data.
    Host(HostFunction, usize),
    Callback {
        function: StreamCallback,
        stream: Handle,
        data: usize,
    },
    /// The event's record of a number is reached.
    Record(Arc<Event>, u64),
    /// Goes on when the event's record of a number is reached.
    Wait(Arc<Event>, u64),
    /// Memory that a stream allocated; it is there from the start.
    Allocate(u64),
    Free(u64),
    /// A graph's own memory is given back: it stays for the next launch.
    Return,
    Graph(Arc<Executable>),
}

impl Work {
    /// True if it should not keep the caller waiting: what may wait for the caller itself and, if launches
    /// run beside the caller, those.
    pub fn leaves_caller(&self, asynchronous: bool) -> bool {
        match self {
            Work::Host(..) | Work::Callback { .. } => true,
            Work::Wait(event, number) => !event.is_finished(*number),
            Work::Launch(_) => asynchronous,
            Work::Graph(graph) => graph.steps().any(|work| work.leaves_caller(asynchronous)),
            _ => false,
        }
    }

    /// Does the work. After a fault only what others wait for is still done.
    pub fn run(&self, health: &Health) -> Outcome {
        let done = catch_unwind(AssertUnwindSafe(|| self.perform(health)));
        done.unwrap_or_else(|_| {
            eprintln!("softcuda: work of a stream panicked; please report this");
            health.fail(Error::Unknown)
        })
    }

    fn perform(&self, health: &Health) -> Outcome {
        match self {
            Work::Record(event, number) => event.finish(*number),
            Work::Wait(event, number) => event.wait(*number),
            Work::Callback { function, stream, data } => {
                let status = health.check().map_or_else(|error| error as Status, |()| SUCCESS);
                function(*stream, status, *data);
            }
            Work::Allocate(_) | Work::Return => {}
            _ => {
                health.check()?;
                self.perform_healthy(health)?;
            }
        }
        Ok(())
    }

    fn perform_healthy(&self, health: &Health) -> Outcome {
        match self {
            Work::Copy(copy) => copy.run(),
            Work::Fill(fill) => fill.run(),
            Work::Launch(prepared) => prepared.run(health),
            Work::Host(function, data) => {
                function(*data);
                Ok(())
            }
            Work::Free(address) => {
                if driver()?.device.free(*address) {
                    Ok(())
                } else {
                    Err(Error::InvalidValue)
                }
            }
            Work::Graph(graph) => graph.steps().try_for_each(|work| work.run(health)),
            _ => Ok(()),
        }
    }
}
