//! Who listens to a subject. Pure: a tree with one level per token, where `*` is one token and a last `>` is one or
//! more. Matching visits no more nodes than the tree has on the way, whatever was subscribed.

use std::collections::HashMap;

/// Deeper subjects are refused, so that walking the tree is bounded.
pub(super) const TOKENS_LEN_MAX: usize = 128;

/// Can be sent to: no empty token, no wildcard.
pub(super) fn is_literal(subject: &[u8]) -> bool {
    is_shaped(subject) && subject.split(|b| *b == b'.').all(|token| token != b"*" && token != b">")
}

/// Can be listened to: no empty token, `>` only at the end.
pub(super) fn is_pattern(subject: &[u8]) -> bool {
    is_shaped(subject) && subject.split(|b| *b == b'.').rev().skip(1).all(|token| token != b">")
}

fn is_shaped(subject: &[u8]) -> bool {
    let mut tokens = 1;
    let mut token_len = 0;
    for b in subject {
        match b {
            b'.' if token_len == 0 => return false,
            b'.' => {
                tokens += 1;
                token_len = 0;
            }
            0..=b' ' | 127 => return false,
            _ => token_len += 1,
        }
    }
    token_len > 0 && tokens <= TOKENS_LEN_MAX && std::str::from_utf8(subject).is_ok()
}

#[derive(Debug)]
pub(super) struct Tree<S> {
    root: Node<S>,
    len: usize,
}

#[derive(Debug)]
struct Node<S> {
    literal: HashMap<Box<[u8]>, Node<S>>,
    star: Option<Box<Node<S>>>,
    /// Patterns that end here.
    here: Ends<S>,
    /// Patterns that end in `>` after this.
    below: Ends<S>,
}

#[derive(Debug)]
struct Ends<S> {
    plain: Vec<S>,
    groups: Vec<(Box<[u8]>, Vec<S>)>,
}

/// What matching finds.
pub(super) trait Visitor<'a, S> {
    fn plain(&mut self, subscription: &'a S);
    /// One of the members is to be chosen; a group can turn up more than once under the same name.
    fn group(&mut self, name: &'a [u8], members: &'a [S]);
}

impl<S> Default for Tree<S> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<S> Tree<S> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `pattern` has been checked with `is_pattern`.
    pub(super) fn insert(&mut self, pattern: &[u8], group: Option<&[u8]>, subscription: S) {
        let mut node = &mut self.root;
        let mut ends_below = false;
        for token in pattern.split(|b| *b == b'.') {
            match token {
                b">" => ends_below = true,
                b"*" => node = node.star.get_or_insert_default(),
                _ => {
                    if !node.literal.contains_key(token) {
                        node.literal.insert(token.into(), Node::default());
                    }
                    node = node.literal.get_mut(token).expect("it was just put there");
                }
            }
        }
        let ends = if ends_below { &mut node.below } else { &mut node.here };
        ends.insert(group, subscription);
        self.len += 1;
    }

    /// Removes the one that `is_it` says; nodes that no longer lead anywhere go too.
    pub(super) fn remove(&mut self, pattern: &[u8], group: Option<&[u8]>, is_it: impl Fn(&S) -> bool) -> bool {
        let removed = self.root.remove(Some(pattern), group, &is_it);
        self.len -= usize::from(removed);
        removed
    }

    /// `subject` has been checked with `is_literal`.
    pub(super) fn visit<'a>(&'a self, subject: &[u8], visitor: &mut impl Visitor<'a, S>) {
        self.root.visit(Some(subject), visitor);
    }
}

impl<S> Node<S> {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.star.is_none() && self.here.is_empty() && self.below.is_empty()
    }

    fn remove(&mut self, rest: Option<&[u8]>, group: Option<&[u8]>, is_it: &impl Fn(&S) -> bool) -> bool {
        let Some(rest) = rest else { return self.here.remove(group, is_it) };
        let (token, rest) = split(rest);
        match token {
            b">" => self.below.remove(group, is_it),
            b"*" => {
                let Some(node) = self.star.as_mut() else { return false };
                let removed = node.remove(rest, group, is_it);
                if node.is_empty() {
                    self.star = None;
                }
                removed
            }
            _ => {
                let Some(node) = self.literal.get_mut(token) else { return false };
                let removed = node.remove(rest, group, is_it);
                if node.is_empty() {
                    self.literal.remove(token);
                }
                removed
            }
        }
    }

    fn visit<'a>(&'a self, rest: Option<&[u8]>, visitor: &mut impl Visitor<'a, S>) {
        let Some(rest) = rest else { return self.here.visit(visitor) };
        self.below.visit(visitor);
        let (token, rest) = split(rest);
        if let Some(node) = self.literal.get(token) {
            node.visit(rest, visitor);
        }
        if let Some(node) = &self.star {
            node.visit(rest, visitor);
        }
    }
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { literal: HashMap::new(), star: None, here: Ends::default(), below: Ends::default() }
    }
}

impl<S> Default for Ends<S> {
    fn default() -> Self {
        Self { plain: Vec::new(), groups: Vec::new() }
    }
}

impl<S> Ends<S> {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_empty()
    }

    fn insert(&mut self, group: Option<&[u8]>, subscription: S) {
        let Some(name) = group else { return self.plain.push(subscription) };
        match self.groups.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, members)) => members.push(subscription),
            None => self.groups.push((name.into(), vec![subscription])),
        }
    }

    fn remove(&mut self, group: Option<&[u8]>, is_it: &impl Fn(&S) -> bool) -> bool {
        let Some(name) = group else { return take(&mut self.plain, is_it) };
        let Some(at) = self.groups.iter().position(|(known, _)| **known == *name) else { return false };
        let removed = take(&mut self.groups[at].1, is_it);
        if self.groups[at].1.is_empty() {
            self.groups.swap_remove(at);
        }
        removed
    }

    fn visit<'a>(&'a self, visitor: &mut impl Visitor<'a, S>) {
        for subscription in &self.plain {
            visitor.plain(subscription);
        }
        for (name, members) in &self.groups {
            visitor.group(name, members);
        }
    }
}

fn take<S>(list: &mut Vec<S>, is_it: &impl Fn(&S) -> bool) -> bool {
    let at = list.iter().position(is_it);
    if let Some(at) = at {
        list.swap_remove(at);
    }
    at.is_some()
}

/// The first token, and the others if there are any.
fn split(subject: &[u8]) -> (&[u8], Option<&[u8]>) {
    match subject.iter().position(|b| *b == b'.') {
        Some(at) => (&subject[..at], Some(&subject[at + 1..])),
        None => (subject, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen {
        plain: Vec<u32>,
        groups: Vec<(String, Vec<u32>)>,
    }

    impl<'a> Visitor<'a, u32> for Seen {
        fn plain(&mut self, subscription: &'a u32) {
            self.plain.push(*subscription);
        }
        fn group(&mut self, name: &'a [u8], members: &'a [u32]) {
            self.groups.push((String::from_utf8_lossy(name).into(), members.to_vec()));
        }
    }

    fn seen(tree: &Tree<u32>, subject: &str) -> Seen {
        let mut seen = Seen::default();
        tree.visit(subject.as_bytes(), &mut seen);
        seen.plain.sort_unstable();
        seen.groups.sort();
        seen
    }

    #[test]
    fn shapes() {
        let deep = vec!["a"; TOKENS_LEN_MAX + 1].join(".");
        //            subject   literal  pattern
        let cases = [
            ("a", true, true),
            ("a.b.c", true, true),
            ("a*.b>", true, true),
            ("*", false, true),
            ("a.*.c", false, true),
            ("a.>", false, true),
            (">", false, true),
            ("a.>.c", false, false),
            ("", false, false),
            (".", false, false),
            ("a.", false, false),
            (".a", false, false),
            ("a..b", false, false),
            ("a b", false, false),
            ("a\0b", false, false),
            (deep.as_str(), false, false),
        ];
        for (subject, literal, pattern) in cases {
            assert_eq!(is_literal(subject.as_bytes()), literal, "{subject:?} literal");
            assert_eq!(is_pattern(subject.as_bytes()), pattern, "{subject:?} pattern");
        }
        assert!(!is_literal(b"\xff\xfe"));
    }

    #[test]
    fn matching() {
        let patterns = ["a", "a.b", "a.*", "*.b", "a.>", ">", "*", "*.*", "a.*.c", "a.b.c", "*.*.>", "a*"];
        let mut tree = Tree::default();
        for (n, pattern) in (0..).zip(patterns) {
            tree.insert(pattern.as_bytes(), None, n);
        }
        let cases: &[(&str, &[&str])] = &[
            ("a", &["a", ">", "*"]),
            ("b", &[">", "*"]),
            ("a.b", &["a.b", "a.*", "*.b", "a.>", ">", "*.*"]),
            ("a.x", &["a.*", "a.>", ">", "*.*"]),
            ("x.b", &["*.b", ">", "*.*"]),
            ("a.b.c", &["a.>", ">", "a.*.c", "a.b.c", "*.*.>"]),
            ("a.b.c.d", &["a.>", ">", "*.*.>"]),
            ("a*", &["a*", ">", "*"]),
        ];
        for (subject, expected) in cases {
            let mut got: Vec<&str> = seen(&tree, subject).plain.iter().map(|n| patterns[*n as usize]).collect();
            got.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(got, expected, "{subject}");
        }
    }

    #[test]
    fn groups_come_by_name() {
        let mut tree = Tree::default();
        tree.insert(b"a", Some(b"q"), 1);
        tree.insert(b"a", Some(b"q"), 2);
        tree.insert(b"a", Some(b"r"), 3);
        tree.insert(b"*", Some(b"q"), 4);
        tree.insert(b"a", None, 5);
        let seen = seen(&tree, "a");
        assert_eq!(seen.plain, [5]);
        let groups: Vec<_> = seen.groups.iter().map(|(name, members)| (name.as_str(), members.as_slice())).collect();
        assert_eq!(groups, [("q", [1, 2].as_slice()), ("q", &[4]), ("r", &[3])]);
    }

    #[test]
    fn what_was_removed_leaves_nothing_behind() {
        let all = [("a.b.c", None), ("a.*.c", Some("q")), ("a.>", None), (">", Some("q")), ("a.b", None), ("*", None)];
        let mut tree = Tree::default();
        for (n, (pattern, group)) in (0..).zip(all) {
            tree.insert(pattern.as_bytes(), group.map(str::as_bytes), n);
        }
        assert_eq!(tree.len(), all.len());
        assert!(!tree.remove(b"a.b.c", Some(b"q"), |_| true));
        assert!(!tree.remove(b"x.y", None, |_| true));
        assert!(!tree.remove(b"a.b.c", None, |n| *n == 99));
        for (n, (pattern, group)) in (0..).zip(all) {
            assert!(tree.remove(pattern.as_bytes(), group.map(str::as_bytes), |s: &u32| *s == n), "{pattern}");
        }
        assert_eq!(tree.len(), 0);
        assert!(tree.root.is_empty());
    }

    /// The tree against a matcher that is plainly right.
    #[test]
    fn random_patterns_match_as_the_definition_says() {
        fn matches(pattern: &[&str], subject: &[&str]) -> bool {
            match (pattern, subject) {
                ([">"], [_, ..]) => true,
                ([p, pattern @ ..], [s, subject @ ..]) => (*p == "*" || p == s) && matches(pattern, subject),
                ([], []) => true,
                _ => false,
            }
        }
        let mut state: u32 = 7;
        let mut dice = move |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        for _ in 0..200 {
            let mut tree = Tree::default();
            let mut patterns: Vec<Vec<&str>> = Vec::new();
            for n in 0..20 {
                let mut pattern: Vec<&str> = (0..=dice(4)).map(|_| ["a", "b", "*"][dice(3) as usize]).collect();
                if dice(3) == 0 {
                    pattern.push(">");
                }
                tree.insert(pattern.join(".").as_bytes(), None, n);
                patterns.push(pattern);
            }
            for _ in 0..20 {
                let subject: Vec<&str> = (0..=dice(5)).map(|_| ["a", "b", "c"][dice(3) as usize]).collect();
                let expected: Vec<u32> =
                    (0..).zip(&patterns).filter(|(_, p)| matches(p, &subject)).map(|(n, _)| n).collect();
                assert_eq!(seen(&tree, &subject.join(".")).plain, expected, "{subject:?} in {patterns:?}");
            }
        }
    }
}
