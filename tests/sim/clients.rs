//! People and pipelines: they apply, scale, delete, roll back, cordon, drain and read, each time under a request id, and
//! repeat a request until it is answered. What they saw is put before the checker of `linear` in the end.

use crate::ctx::{Ask, Ctx, Node, Packet, Timer, host_id};
use crate::history::{History, request_id};
use crate::linear::{self, Op, Order, Register, Saw, Write};
use proto::app::{Actor, App, Builtin, Component, IngressRoute, Kind, Name, Provider, Scaler, Spread};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::state::State;
use std::collections::BTreeMap;

const APPS: [&str; 4] = ["shop", "mail", "chat", "blog"];
const COMPONENTS: [&str; 5] = ["api", "worker", "probe", "store", "solo"];

/// What a scheduler answers.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Outcome(pb::Outcome),
    /// The app as it is, linearizably.
    App(Register),
    Done,
    /// Refused, for good.
    Refused(String),
    /// Nothing is known: ask again, or somebody else.
    Again,
}

/// What somebody wants.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "most are writes")]
pub(crate) enum Wish {
    Write(What),
    Read(Name),
    Remove(u64),
    Transfer,
}

#[derive(Default)]
pub(crate) struct Clients {
    intents: Vec<Intent>,
    open: usize,
}

struct Intent {
    wish: Wish,
    attempt: u32,
    begun: u64,
    ended: u64,
    told: Option<Told>,
}

impl Clients {
    /// Requests without an answer.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// The answer to a request that was begun, when it is there.
    pub(crate) fn told(&self, intent: usize) -> Option<&Told> {
        self.intents[intent].told.as_ref()
    }

    pub(crate) fn begin(&mut self, ctx: &mut Ctx, wish: Wish) -> usize {
        self.intents.push(Intent { wish, attempt: 0, begun: ctx.mark(), ended: u64::MAX, told: None });
        self.open += 1;
        self.attempt(ctx, self.intents.len() - 1);
        self.intents.len() - 1
    }

    fn attempt(&mut self, ctx: &mut Ctx, number: usize) {
        let intent = &mut self.intents[number];
        intent.attempt += 1;
        let attempt = intent.attempt;
        let mut request_id = request_id(number);
        if attempt > 1 && built_in(Fault::NewIdOnRetry) {
            request_id = format!("{request_id}x{attempt}");
        }
        let what = match intent.wish.clone() {
            Wish::Write(what) => Ask::Write(pb::Command { request_id, what: Some(what) }),
            Wish::Read(app) => Ask::Read(app),
            Wish::Remove(id) => Ask::Remove(id),
            Wish::Transfer => Ask::Transfer,
        };
        let member = ctx.dice.index(ctx.seats);
        if !ctx.up[member] {
            // Nobody listens there, which shows at once.
            return ctx.wake(Node::Client, 0, 100, Timer::Retry { intent: number, attempt });
        }
        ctx.send(Node::Client, Node::Member(member), Packet::Ask { intent: number, via: None, what });
        let patience = ctx.dice.between(300, 3_000);
        ctx.wake(Node::Client, 0, patience, Timer::Retry { intent: number, attempt });
    }

    pub(crate) fn retry(&mut self, ctx: &mut Ctx, intent: usize, attempt: u32) {
        let at = &self.intents[intent];
        if at.told.is_none() && at.attempt == attempt {
            self.attempt(ctx, intent);
        }
    }

    pub(crate) fn next_request(&mut self, ctx: &mut Ctx, history: &History) {
        if ctx.faults {
            let wait = 1 + ctx.dice.below(2 * ctx.params.request_every_ms);
            ctx.wake(Node::Client, 0, wait, Timer::NextRequest);
            let wish = draw(ctx, &history.state);
            self.begin(ctx, wish);
        }
    }

    pub(crate) fn answer(&mut self, ctx: &mut Ctx, history: &History, intent: usize, told: Told) {
        let now = ctx.mark();
        let at = &mut self.intents[intent];
        if at.told.is_some() {
            return;
        }
        match &told {
            // It asks somebody else, soon.
            Told::Again => {
                let (wait, attempt) = (ctx.dice.between(50, 400), at.attempt);
                return ctx.wake(Node::Client, 0, wait, Timer::Retry { intent, attempt });
            }
            Told::Outcome(outcome) if outcome.error.is_empty() => {
                let changed = outcome.change != "unchanged";
                if changed && !history.took_effect(intent) {
                    ctx.fail(format!("request {intent} was acknowledged and never committed"));
                }
                ctx.count("request acknowledged");
            }
            Told::Outcome(_) => {
                ctx.count("request refused");
                if history.took_effect(intent) {
                    ctx.fail(format!("request {intent} was refused and had taken effect"));
                }
            }
            Told::App(_) => ctx.count("read answered"),
            Told::Done => ctx.count("leadership or member changed on request"),
            Told::Refused(why) => {
                ctx.note(|| format!("refused: {why}"));
                ctx.count("change of schedulers refused");
            }
        }
        (at.told, at.ended) = (Some(told), now + 1);
        self.open -= 1;
    }

    /// What was acknowledged is what the log says, in the end, and what was seen could have happened in some order.
    pub(crate) fn check(&self, ctx: &mut Ctx, history: &History) {
        for (number, intent) in self.intents.iter().enumerate() {
            let Some(Told::Outcome(told)) = intent.told.as_ref() else { continue };
            match history.state.answered(&request_id(number)) {
                Some(kept) if kept == told => {}
                kept => ctx.fail(format!("request {number} was told {told:?}, the log has {kept:?}")),
            }
        }
        self.check_order(ctx);
    }

    pub(crate) fn check_order(&self, ctx: &mut Ctx) {
        for app in APPS {
            let ops: Vec<Op> = self.intents.iter().filter_map(|intent| intent.seen_of(app)).collect();
            let order = linear::check(ops);
            ctx.count(if order == Order::Undecided { "order not decided" } else { "order decided" });
            if let Order::None(part) = order {
                let told: Vec<String> =
                    part.iter().take(12).map(|op| format!("{}..{} {:?}", op.begun, op.ended, op.saw)).collect();
                ctx.fail(format!("no order explains what clients saw of {app}: {}", told.join("; ")));
            }
        }
    }
}

impl Intent {
    fn seen_of(&self, name: &str) -> Option<Op> {
        let (app, write, if_version) = match &self.wish {
            Wish::Read(app) => (app.to_string(), Write::Apply, 0),
            Wish::Write(What::ApplyApp(c)) => {
                (App::from_json(&c.spec).ok()?.name.to_string(), Write::Apply, c.if_version)
            }
            Wish::Write(What::ScaleActor(c)) => (c.app.clone(), Write::Change, c.if_version),
            Wish::Write(What::RollbackApp(c)) => (c.app.clone(), Write::Change, c.if_version),
            Wish::Write(What::DeleteApp(c)) => (c.app.clone(), Write::Delete, c.if_version),
            _ => return None,
        };
        if app != name {
            return None;
        }
        let saw = match &self.told {
            Some(Told::App(register)) => Saw::Read(*register),
            Some(Told::Outcome(o)) if o.error.is_empty() && o.change == "unchanged" => {
                Saw::Unchanged { version: o.version }
            }
            Some(Told::Outcome(o)) if o.error.is_empty() => Saw::Wrote { write, if_version, version: o.version },
            Some(Told::Outcome(o)) if o.error.starts_with("there is no app") => Saw::Missing,
            Some(Told::Outcome(o)) if o.error.contains("is being deleted") => Saw::Deleting,
            Some(Told::Outcome(o)) if o.error.contains("get it again") => Saw::Moved { if_version },
            // What else was wrong says nothing of the version.
            Some(_) => return None,
            None if matches!(self.wish, Wish::Read(_)) => return None,
            None => Saw::Unknown { write },
        };
        Some(Op { begun: self.begun, ended: self.ended, saw })
    }
}

/// What somebody wants next.
fn draw(ctx: &mut Ctx, state: &State) -> Wish {
    let number = ctx.dice.index(ctx.params.apps);
    let app = APPS[number].to_owned();
    if ctx.dice.percent(30) {
        return Wish::Read(app.parse().expect("a name"));
    }
    let if_version = match ctx.dice.below(10) {
        0 => state.apps.get(app.as_str()).map_or(0, |a| a.version),
        1 => 1 + ctx.dice.below(state.applied + 1),
        _ => 0,
    };
    Wish::Write(match ctx.dice.below(100) {
        0..40 => {
            let app = draw_app(ctx, number);
            What::ApplyApp(pb::ApplyApp { spec: app.to_json(), if_version })
        }
        40..58 => {
            let actor = (*ctx.dice.pick(&["api", "worker", "store", "solo"])).to_owned();
            let replicas = u32::try_from(ctx.dice.below(ctx.params.replicas_below())).expect("small");
            What::ScaleActor(pb::ScaleActor { app, actor, replicas, if_version })
        }
        58..70 => {
            let to = if ctx.dice.percent(70) { 0 } else { 1 + ctx.dice.below(8) };
            What::RollbackApp(pb::RollbackApp { app, to, if_version })
        }
        70..78 => What::DeleteApp(pb::DeleteApp { app, if_version }),
        kind => {
            let host = ctx.dice.index(ctx.params.hosts);
            let host = if ctx.dice.percent(50) { format!("h{host}") } else { host_id(host).to_string() };
            let (cordoned, draining) = match kind {
                78..82 => (true, false),
                82..90 => (true, true),
                _ => (false, false),
            };
            What::SetCordon(pb::SetCordon { host, cordoned, draining })
        }
    })
}

fn draw_app(ctx: &mut Ctx, number: usize) -> App {
    let mut components = BTreeMap::new();
    for (at, component) in COMPONENTS.iter().enumerate() {
        if at > 0 && ctx.dice.percent(55) {
            continue;
        }
        let name: Name = component.parse().expect("a name");
        components.insert(name, Box::new(draw_component(ctx, number, component)));
    }
    let name = APPS[number].parse().expect("a name");
    App { name, labels: BTreeMap::new(), annotations: BTreeMap::new(), components, links: Vec::new() }
}

fn draw_component(ctx: &mut Ctx, app: usize, name: &str) -> Component {
    if name == "store" {
        let provider = Provider { image: "builtin:keyvalue".into(), builtin: Builtin::Keyvalue };
        let scaler = Scaler::Spread { replicas: 1, spread: Vec::new() };
        return Component { kind: Kind::Provider(provider), scaler, strict: false, config: BTreeMap::new() };
    }
    let (bad, below, strict) = (ctx.params.bad_revisions, ctx.params.replicas_below(), ctx.params.strict);
    let dice = &mut ctx.dice;
    let mut ingress = Vec::new();
    if dice.percent(30) {
        // Of few paths, so that apps want the same at times.
        let path = if dice.percent(20) { "/".to_owned() } else { format!("/{app}{}", dice.below(2)) };
        ingress.push(IngressRoute { host: String::new(), path });
    }
    let image = format!("sim:{}", dice.below(4));
    let actor = Actor {
        image,
        digest: None,
        exports: Vec::new(),
        ingress,
        grants: Default::default(),
        limits: Default::default(),
    };
    let mut config = BTreeMap::new();
    if dice.percent(bad) {
        config.insert("start".to_owned(), "fails".to_owned());
    }
    let shares = *dice.pick(&[0, 0, 1, 2, 3]);
    let spread: Vec<Spread> = (0..shares)
        .map(|n| {
            let requirements: &[(&str, &str)] = match dice.below(8) {
                0 | 1 => &[("zone", "a")],
                2 | 3 => &[("zone", "b")],
                4 => &[("disk", "ssd")],
                5 => &[("arch", "x86_64")],
                6 => &[("zone", "nowhere")],
                _ => &[],
            };
            let requirements = requirements.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Spread { name: format!("s{n}"), requirements, weight: *dice.pick(&[0, 1, 20, 80, 100]) }
        })
        .collect();
    let daemon = name == "probe" && dice.percent(80);
    let strict = name == "solo" || name == "worker" && dice.percent(strict);
    let most = if strict {
        2
    } else if daemon {
        3
    } else {
        below
    };
    let replicas = u32::try_from(dice.below(most)).expect("small");
    let scaler = if daemon { Scaler::Daemon { replicas, spread } } else { Scaler::Spread { replicas, spread } };
    Component { kind: Kind::Actor(actor), scaler, strict, config }
}

/// What an operator does about an app that can not start: the same without what is wrong; `None` when it is fine.
pub(crate) fn repaired(app: &App) -> Option<Wish> {
    let mut repaired = app.clone();
    for component in repaired.components.values_mut() {
        component.config.remove("start");
    }
    (repaired != *app).then(|| Wish::Write(What::ApplyApp(pb::ApplyApp { spec: repaired.to_json(), if_version: 0 })))
}
