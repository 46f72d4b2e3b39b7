//! One member without a thread of its own: whoever holds it says when time passes. The loop of `drive`, its machine, its
//! records and its handle are those of production, so that a simulation runs what production runs.

use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;

use super::disk::Disk;
use super::drive::{self, Driver};
use super::handle::{Event, Handle};
use super::{Config, Error, StateMachine, Transport};

pub struct Stepped<S, D> {
    driver: Driver<S, D>,
    events: Receiver<Event>,
}

impl<S: StateMachine, D: Disk> Stepped<S, D> {
    /// Reads the disk and does what was committed before.
    pub fn open(config: Config, disk: D, state: S, transport: impl Transport) -> Result<(Self, Handle), Error> {
        config.validate()?;
        let (mut driver, handle, events) = drive::open(config, disk, state, Box::new(transport))?;
        driver.begin()?;
        Ok((Self { driver, events }, handle))
    }

    /// Takes in what the handle was asked, lets `ticks` pass and does what follows. After an error this member must not
    /// take part any longer.
    pub fn round(&mut self, ticks: u64) -> Result<ControlFlow<()>, Error> {
        let mut flow = ControlFlow::Continue(());
        while let Ok(event) = self.events.try_recv() {
            flow = self.driver.take(event);
            if flow.is_break() {
                break;
            }
        }
        (0..ticks).for_each(|_| self.driver.tick());
        self.driver.finish_round()?;
        Ok(flow)
    }
}
