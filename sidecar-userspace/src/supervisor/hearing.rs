//! What the worker says, and what it is told.

use std::{fs::File, os::fd::AsFd, time::Instant};

use super::{
    turns::Supervisor,
    worker::{Stage, Why, Worker},
};
use crate::control::{self, Order, Report};

impl Supervisor {
    /// Hears what the worker says.
    pub(super) fn listen(&mut self) {
        while let Some(worker) = &mut self.worker {
            match worker.heard() {
                Ok(report) => self.answer(report),
                Err(control::Error::Busy) => return,
                Err(control::Error::Gone) => {
                    worker.silent_since.get_or_insert_with(Instant::now);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "the worker speaks what is not understood and is killed; please report");
                    return worker.kill(Why::NotUnderstood);
                }
            }
        }
    }

    fn answer(&mut self, report: Report) {
        match report {
            Report::Serving => self.serving(),
            Report::Failed(why) => tracing::error!(why, "the worker cannot serve"),
            Report::Pong(number) => self.pings.answered(number),
            Report::Reloaded { offer, in_force } => self.configurations.answered(offer, in_force),
            // One that serves has not handed over.
            Report::Open(_) => {}
            Report::Withdraw(withdrawn) => self.withdraw(withdrawn),
            report => self.pass_on(report),
        }
    }

    /// What somebody has asked a worker for, whichever it was: around an upgrade also one that serves no more, or not yet. What such
    /// a one says of itself counts for nothing.
    pub(super) fn pass_on(&mut self, report: Report) {
        match report {
            Report::LogLevel(directives) => match self.log.set(&directives) {
                Ok(()) => self.log_level = Some(directives),
                Err(error) => tracing::warn!(%error, "the supervisor's log level stays what it is"),
            },
            Report::Drain => self.drain("sidecar drain", false),
            // Without one nobody is to ask.
            Report::FastPath { wanted, number } => {
                self.fast_path.iter().for_each(|path| path.answer(wanted, number));
            }
            Report::Serving
            | Report::Failed(_)
            | Report::Pong(_)
            | Report::Reloaded { .. }
            | Report::Open(_)
            | Report::Withdraw(_) => {}
        }
    }

    fn serving(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.stage = Stage::Serving;
            tracing::info!(
                ms = worker.since.elapsed().as_millis() as u64,
                worker = worker.pid(),
                "a new worker serves"
            );
        }
        self.tell_conditions();
        // What the one before has not answered.
        self.configurations.offers().for_each(|offer| self.send_offer(offer));
    }

    /// After the upgrade of this process: everybody reads its figures, and the worker that serves knows what the one before knew.
    pub(super) fn greet(&mut self, newer: bool) {
        let leaving = self.upgrades.leaving.iter().map(|leaving| &leaving.worker);
        for worker in self.worker.iter().chain(leaving) {
            if let Err(error) = worker.channel.send(&Order::Board, &[self.board.as_fd()]) {
                tracing::warn!(%error, worker = worker.pid(), "a worker goes on with old figures");
            }
        }
        self.tell_conditions();
        if newer {
            self.configurations.offer_in_force();
        }
        self.configurations.offers().for_each(|offer| self.send_offer(offer));
    }

    pub(super) fn tell(&self, order: &Order) {
        if let Some(worker) = &self.worker {
            worker.tell(order);
        }
    }

    pub(super) fn tell_conditions(&self) {
        self.keeping.conditions().iter().for_each(|order| self.tell(order));
    }

    /// Offers the configuration that was read last. A worker that does not serve yet gets it when it does. Those that were replaced
    /// get it as well: what is not allowed any more ends there, too. Whether it is in force is for the one that serves to say.
    pub(super) fn offer_configuration(&self) {
        if let Some(offer) = self.configurations.offers().last() {
            self.send_offer(offer);
            self.upgrades.leaving.iter().for_each(|leaving| offer_to(&leaving.worker, offer));
        }
    }

    fn send_offer(&self, offer: (u64, &File)) {
        if let Some(worker) = self.worker.as_ref().filter(|worker| worker.stage == Stage::Serving) {
            offer_to(worker, offer);
        }
    }
}

fn offer_to(worker: &Worker, (number, offered): (u64, &File)) {
    match worker.channel.send(&Order::Reload(number), &[offered.as_fd()]) {
        // It ends, and nothing is carried by it any more.
        Ok(()) | Err(control::Error::Gone) => {}
        Err(error) => {
            tracing::warn!(%error, worker = worker.pid(), "a worker was not told of the configuration");
        }
    }
}
