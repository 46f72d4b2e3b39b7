//! Who gets one message: all that listen alone, and one member of each group.

use std::sync::Arc;

use super::session::Subscription;
use super::subjects::Visitor;

/// Who gets a message.
#[derive(Default)]
pub(super) struct Found {
    pub(super) plain: Vec<Arc<Subscription>>,
    pub(super) groups: Vec<Group>,
}

pub(super) struct Group {
    name: Box<[u8]>,
    pub(super) chosen: Arc<Subscription>,
    /// Members that could have been chosen so far.
    seen: usize,
}

pub(super) struct Finding<'f> {
    found: &'f mut Found,
    dice: u64,
    /// A client that does not hear itself.
    skip: Option<u64>,
}

impl<'f> Finding<'f> {
    /// `dice` is anything that changes from message to message.
    pub(super) fn new(found: &'f mut Found, dice: u64, skip: Option<u64>) -> Self {
        Self { found, dice, skip }
    }

    fn dice(&mut self, n: usize) -> usize {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.dice >> 33) % u64::try_from(n.max(1)).unwrap_or(u64::MAX)).unwrap_or(0)
    }

    /// One of `members` at random, and how many there are to choose from.
    fn choose<'a>(&mut self, members: &'a [Arc<Subscription>]) -> Option<(&'a Arc<Subscription>, usize)> {
        let Some(skip) = self.skip else {
            let at = self.dice(members.len());
            return members.get(at).map(|member| (member, members.len()));
        };
        let others = || members.iter().filter(|member| member.client.id != skip);
        let len = others().count();
        let at = self.dice(len);
        others().nth(at).map(|member| (member, len))
    }
}

impl<'a> Visitor<'a, Arc<Subscription>> for Finding<'_> {
    fn plain(&mut self, subscription: &'a Arc<Subscription>) {
        if self.skip != Some(subscription.client.id) {
            self.found.plain.push(Arc::clone(subscription));
        }
    }

    /// Members of one group under several patterns are one group: each has the same chance.
    fn group(&mut self, name: &'a [u8], members: &'a [Arc<Subscription>]) {
        let Some((member, len)) = self.choose(members) else { return };
        let Some(at) = self.found.groups.iter().position(|group| *group.name == *name) else {
            return self.found.groups.push(Group { name: name.into(), chosen: Arc::clone(member), seen: len });
        };
        let seen = self.found.groups[at].seen + len;
        if self.dice(seen) < len {
            self.found.groups[at].chosen = Arc::clone(member);
        }
        self.found.groups[at].seen = seen;
    }
}

/// Finds a subscription of one client.
pub(super) struct Own {
    id: u64,
    pub(super) found: Option<Arc<Subscription>>,
}

impl Own {
    pub(super) fn of(id: u64) -> Self {
        Self { id, found: None }
    }
}

impl<'a> Visitor<'a, Arc<Subscription>> for Own {
    fn plain(&mut self, subscription: &'a Arc<Subscription>) {
        if subscription.client.id == self.id && self.found.is_none() {
            self.found = Some(Arc::clone(subscription));
        }
    }
    fn group(&mut self, _: &'a [u8], members: &'a [Arc<Subscription>]) {
        for member in members {
            self.plain(member);
        }
    }
}
