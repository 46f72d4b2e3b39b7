//! The place of one scheduler: its disk, its id, what outlives its process, and how a process there begins and ends.

use crate::ctx::{Ctx, Event, Node, Packet, Timer, What};
use crate::disk::{Failing, SimDisk};
use crate::history::History;
use crate::process::Process;
use scheduler::raft;

pub(crate) struct Seat {
    pub(crate) number: usize,
    /// 0: nobody sits here yet.
    pub(crate) id: u64,
    pub(crate) log_id: String,
    /// Of a log that begins with it.
    founders: Vec<u64>,
    /// It had a log: it must never begin another one under its id.
    begun: bool,
    pub(crate) disk: SimDisk,
    pub(crate) boot: u64,
    pub(crate) paused_until: u64,
    /// Removed, and ended for good.
    pub(crate) out: bool,
    /// Its log is lost: it does not start again.
    pub(crate) lost_log: bool,
    /// Its log is lost, and nobody noticed yet.
    pub(crate) wiped: bool,
    pub(crate) process: Option<Process>,
    /// The term that it led in when it was paused.
    led_when_paused: Option<u64>,
    /// It pauses, or did nothing since.
    pauses: bool,
}

impl Seat {
    pub(crate) fn new(number: usize, id: u64, founders: Vec<u64>) -> Self {
        Self {
            number,
            id,
            log_id: format!("log-{number}"),
            founders,
            begun: false,
            disk: SimDisk::default(),
            boot: 0,
            paused_until: 0,
            out: false,
            lost_log: false,
            wiped: false,
            process: None,
            led_when_paused: None,
            pauses: false,
        }
    }

    pub(crate) fn up(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn leads(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.status(|s| s.governs))
    }

    /// Whether it does what is due now, rather than pause or wait for its disk.
    pub(crate) fn acts(&self, now: u64) -> bool {
        self.paused_until <= now && self.process.as_ref().is_some_and(|p| p.synced_at <= now)
    }

    /// Whether it can ever run again.
    pub(crate) fn lives(&self) -> bool {
        self.id != 0 && !self.out && !self.lost_log
    }

    pub(crate) fn start(&mut self, ctx: &mut Ctx, history: &mut History) {
        if self.up() || !self.lives() {
            return;
        }
        self.boot += 1;
        if self.boot > 1 {
            ctx.count("scheduler restarted");
        }
        if ctx.faults && self.begun && ctx.dice.percent(5) {
            self.disk.damage(&mut ctx.dice);
        }
        let config = raft::Config {
            id: self.id,
            voters: self.founders.clone(),
            log_id: self.log_id.clone(),
            may_begin: !self.begun,
            dir: "disk".into(),
            seed: ctx.params.seed,
            log_bytes_max: ctx.params.log_bytes_max,
            proposals_max: 256,
            ..raft::Config::alone(self.id, "disk")
        };
        let opened = Process::open(ctx, self.number, self.boot, config, self.disk.clone());
        let damaged = self.disk.is_damaged();
        match opened {
            Ok(process) => {
                if damaged && self.disk.bitten() {
                    ctx.fail(format!("s{} started on a damaged record", self.number));
                }
                self.disk.mend();
                self.begun = true;
                ctx.note(|| format!("s{} starts, boot {}", self.number, self.boot));
                self.process = Some(process);
                self.after(ctx, history, |process, ctx, history| process.begin(ctx, history));
            }
            Err(raft::Error::LostLog { .. }) => {
                ctx.count("lost log noticed");
                ctx.note(|| format!("s{} lost its log and stays out", self.number));
                self.lost_log = true;
            }
            Err(error) => {
                let why = error.to_string();
                ctx.note(|| format!("s{} does not start: {why}", self.number));
                match error {
                    raft::Error::Damaged { .. } if damaged => ctx.count("damaged record noticed"),
                    raft::Error::Io { .. } => ctx.count("start failed at the disk"),
                    _ => return ctx.fail(format!("s{} does not start: {why}", self.number)),
                }
                // Somebody puts the copy back, or makes room.
                self.disk.cut(&mut ctx.dice);
                self.disk.mend();
                let down = ctx.dice.between(500, 4_000);
                ctx.wake(Node::Member(self.number), 0, down, Timer::Restart);
            }
        }
    }

    /// The process ends. With the power, what was not synced may be gone.
    pub(crate) fn crash(&mut self, ctx: &mut Ctx, power: bool) {
        if self.process.take().is_none() {
            return;
        }
        self.paused_until = 0;
        self.led_when_paused = None;
        ctx.note(|| format!("s{} {}", self.number, if power { "loses power" } else { "is killed" }));
        if power {
            ctx.count("scheduler lost power");
            self.disk.cut(&mut ctx.dice);
        } else {
            self.disk.survive();
        }
    }

    /// Ends soon, in the middle of a sync.
    pub(crate) fn trip(&mut self, ctx: &mut Ctx, how: Failing) {
        let number = 1 + ctx.dice.below(6);
        self.disk.fail_at_sync(number, how);
    }

    pub(crate) fn pause(&mut self, ctx: &mut Ctx, ms: u64) {
        self.paused_until = ctx.now + ms;
        ctx.stalls(self.number, ms);
        ctx.note(|| format!("s{} pauses for {ms} ms", self.number));
        ctx.count("scheduler paused");
        self.pauses = true;
        self.led_when_paused = self.process.as_ref().and_then(|p| p.status(|s| s.governs.then_some(s.term)));
    }

    pub(crate) fn event(&mut self, ctx: &mut Ctx, history: &mut History, event: Event) {
        if let What::Timer(Timer::Restart) = event.what {
            return self.start(ctx, history);
        }
        if !self.up() || (event.boot != 0 && event.boot != self.boot) {
            return;
        }
        if self.paused_until > ctx.now {
            let until = self.paused_until;
            return ctx.postpone(event, until);
        }
        if std::mem::take(&mut self.pauses) && self.leads() {
            let alone = ctx.net.split.as_ref().is_some_and(|split| split.members.contains(&self.number));
            ctx.count(if alone { "leader resumed on the smaller side" } else { "leader resumed" });
        }
        match event.what {
            What::Timer(Timer::Crash) => {
                if self.leads() {
                    ctx.count("leader lost during a change");
                }
                return self.crash_for_a_while(ctx);
            }
            What::Packet(packet) => match *packet {
                Packet::Out => {
                    ctx.count("removed scheduler told so");
                    self.end_for_good(ctx);
                }
                packet => self.after(ctx, history, |process, ctx, history| process.packet(ctx, history, packet)),
            },
            What::Timer(timer) => self.after(ctx, history, |process, ctx, history| process.timer(ctx, history, timer)),
        }
        if let Some(term) = self.led_when_paused
            && self.process.as_ref().is_some_and(|p| p.status(|s| s.term > term))
        {
            self.led_when_paused = None;
            if ctx.now < self.paused_until + 3_000 {
                ctx.count("leader paused and deposed");
            }
        }
    }

    fn end_for_good(&mut self, ctx: &mut Ctx) {
        ctx.note(|| format!("s{} was removed and ends", self.number));
        ctx.count("removed scheduler ended");
        self.process = None;
        self.out = true;
    }

    /// Runs a step of the process; whatever ends it, ends it here.
    fn after(
        &mut self,
        ctx: &mut Ctx,
        history: &mut History,
        step: impl FnOnce(&mut Process, &mut Ctx, &mut History) -> Result<(), raft::Error>,
    ) {
        let Some(process) = &mut self.process else { return };
        let mark = ctx.mark();
        let result = step(process, ctx, history);
        let (doomed, out) = (process.doomed, process.out);
        if out {
            return self.end_for_good(ctx);
        }
        if let Err(error) = result {
            match error {
                raft::Error::Io { .. } if self.disk.went_dark() => ctx.count("power cut in the middle of a sync"),
                raft::Error::Io { .. } => ctx.count("ended by its disk"),
                raft::Error::Damaged { .. } if self.disk.is_damaged() => ctx.count("damaged record noticed"),
                other => return ctx.fail(format!("s{}: {other}", self.number)),
            }
        } else if !doomed {
            return;
        }
        // What the others were told in the same moment may not have left the machine.
        if ctx.dice.percent(50) {
            ctx.unsend(self.number, mark);
        }
        self.crash_for_a_while(ctx);
    }

    fn crash_for_a_while(&mut self, ctx: &mut Ctx) {
        self.crash(ctx, true);
        let down = ctx.dice.between(200, 12_000);
        ctx.wake(Node::Member(self.number), 0, down, Timer::Restart);
    }
}
