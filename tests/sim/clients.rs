//! People and pipelines: they apply, scale, delete, roll back, cordon and drain, each time under a request id, and
//! repeat a request until it is answered.

use crate::ctx::{Ctx, Mutation, Node, Packet, Timer, host_id};
use crate::history::{History, request_id};
use proto::app::{Actor, App, Builtin, Component, IngressRoute, Kind, Name, Provider, Scaler, Spread};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::state::State;
use std::collections::BTreeMap;

const APPS: [&str; 4] = ["shop", "mail", "chat", "blog"];
const COMPONENTS: [&str; 4] = ["api", "worker", "probe", "store"];

#[derive(Default)]
pub(crate) struct Clients {
    intents: Vec<Intent>,
    open: usize,
}

struct Intent {
    what: What,
    attempt: u32,
    answer: Option<pb::Outcome>,
}

impl Clients {
    /// Requests without an answer.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    pub(crate) fn begin(&mut self, ctx: &mut Ctx, what: What) {
        self.intents.push(Intent { what, attempt: 0, answer: None });
        self.open += 1;
        self.attempt(ctx, self.intents.len() - 1);
    }

    fn attempt(&mut self, ctx: &mut Ctx, number: usize) {
        let intent = &mut self.intents[number];
        intent.attempt += 1;
        let attempt = intent.attempt;
        let mut request_id = request_id(number);
        if ctx.mutation == Some(Mutation::NewIdOnRetry) && attempt > 1 {
            request_id = format!("{request_id}x{attempt}");
        }
        let command = pb::Command { request_id, what: Some(intent.what.clone()) };
        let member = ctx.dice.index(ctx.params.members);
        ctx.send(Node::Client, Node::Member(member), Packet::Request { intent: number, command });
        let patience = ctx.dice.between(300, 3_000);
        ctx.wake(Node::Client, 0, patience, Timer::Retry { intent: number, attempt });
    }

    pub(crate) fn timer(&mut self, ctx: &mut Ctx, history: &History, timer: Timer) {
        match timer {
            Timer::Retry { intent, attempt } => {
                let at = &self.intents[intent];
                if at.answer.is_none() && at.attempt == attempt {
                    self.attempt(ctx, intent);
                }
            }
            Timer::NextRequest => {
                if ctx.faults {
                    let wait = 1 + ctx.dice.below(2 * ctx.params.request_every_ms);
                    ctx.wake(Node::Client, 0, wait, Timer::NextRequest);
                    if let Some(what) = draw(ctx, &history.state) {
                        self.begin(ctx, what);
                    }
                }
            }
            other => ctx.fail(format!("a client was woken by {other:?}")),
        }
    }

    pub(crate) fn packet(&mut self, ctx: &mut Ctx, history: &History, packet: Packet) {
        let Packet::Response { intent, outcome } = packet else {
            return ctx.fail(format!("a client was sent {packet:?}"));
        };
        let at = &mut self.intents[intent];
        if at.answer.is_some() {
            return;
        }
        // Without an outcome nothing is known: it asks somebody else, soon.
        let Some(outcome) = outcome else {
            let (wait, attempt) = (ctx.dice.between(50, 400), at.attempt);
            return ctx.wake(Node::Client, 0, wait, Timer::Retry { intent, attempt });
        };
        if outcome.error.is_empty() {
            let changed = outcome.change != "unchanged";
            if changed && !history.took_effect(intent) {
                ctx.fail(format!("request {intent} was acknowledged and never committed"));
            }
            ctx.count("request acknowledged");
        } else {
            ctx.count("request refused");
            if history.took_effect(intent) {
                ctx.count("refused although a copy was applied");
            }
        }
        at.answer = Some(outcome);
        self.open -= 1;
    }

    /// What was acknowledged is what the log says, in the end.
    pub(crate) fn check(&self, ctx: &mut Ctx, state: &State) {
        for (number, intent) in self.intents.iter().enumerate() {
            let Some(told) = intent.answer.as_ref().filter(|a| a.error.is_empty()) else { continue };
            match state.answered(&request_id(number)) {
                Some(kept) if kept == told => {}
                kept => ctx.fail(format!("request {number} was told {told:?}, the log has {kept:?}")),
            }
        }
    }
}

/// What somebody wants next.
fn draw(ctx: &mut Ctx, state: &State) -> Option<What> {
    let number = ctx.dice.index(ctx.params.apps);
    let app = APPS[number].to_owned();
    let if_version = match ctx.dice.below(10) {
        0 => state.apps.get(app.as_str()).map_or(0, |a| a.version),
        1 => 1 + ctx.dice.below(state.applied + 1),
        _ => 0,
    };
    Some(match ctx.dice.below(100) {
        0..40 => {
            let app = draw_app(ctx, number);
            What::ApplyApp(pb::ApplyApp { spec: app.to_json(), if_version })
        }
        40..58 => {
            let actor = (*ctx.dice.pick(&COMPONENTS[..3])).to_owned();
            let replicas = u32::try_from(ctx.dice.below(13)).expect("small");
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
        components.insert(name, draw_component(ctx, number, component));
    }
    let name = APPS[number].parse().expect("a name");
    App { name, labels: BTreeMap::new(), annotations: BTreeMap::new(), components, links: Vec::new() }
}

fn draw_component(ctx: &mut Ctx, app: usize, name: &str) -> Component {
    if name == "store" {
        let provider = Provider { image: "builtin:keyvalue".into(), builtin: Builtin::Keyvalue };
        let scaler = Scaler::Spread { replicas: 1, spread: Vec::new() };
        return Component { kind: Kind::Provider(provider), scaler, config: BTreeMap::new() };
    }
    let bad = ctx.params.bad_revisions;
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
    let most = if daemon { 3 } else { 13 };
    let replicas = u32::try_from(dice.below(most)).expect("small");
    let scaler = if daemon { Scaler::Daemon { replicas, spread } } else { Scaler::Spread { replicas, spread } };
    Component { kind: Kind::Actor(actor), scaler, config }
}

/// What an operator does about an app that can not start: the same without what is wrong; `None` when it is fine.
pub(crate) fn repaired(app: &App) -> Option<What> {
    let mut repaired = app.clone();
    for component in repaired.components.values_mut() {
        component.config.remove("start");
    }
    (repaired != *app).then(|| What::ApplyApp(pb::ApplyApp { spec: repaired.to_json(), if_version: 0 }))
}
