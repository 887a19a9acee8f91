//! What the fuzz targets of bodies are made of: a fuzzer's bytes become bodies that mostly get past their first brace.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::DeserializeOwned;

use super::extract;

/// A field of a body and what it may hold.
pub(crate) type Field = (&'static str, Holds);

#[derive(Clone, Copy)]
pub(crate) enum Holds {
    /// One of these JSON texts.
    One(&'static [&'static str]),
    /// A list of them.
    List(&'static [&'static str]),
    /// A list of objects.
    Objects(&'static [Field]),
}

/// What hardly any field takes.
const WILD: &[&str] = &[
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e400",
    "18446744073709551616",
    "\"\"",
    "\"é\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"9999999h\"",
    "\"0.0000001ns\"",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "[\"orders\"]",
    "\"7\"",
];
/// Levels of a deep one: more than serde_json reads.
const DEEP: usize = 200;

/// A fuzzer's bytes as decisions; all alike once they are used up.
pub(crate) struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self(input.iter())
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % count
    }

    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A body of these fields, seldom broken or nothing of the kind.
    pub(crate) fn body(&mut self, fields: &[Field]) -> Vec<u8> {
        let mut body = self.object(fields).into_bytes();
        match self.below(12) {
            10 => {
                let at = self.below(body.len());
                body[at] = self.below(256) as u8;
            }
            11 => body = self.0.by_ref().copied().collect(),
            _ => {}
        }
        body
    }

    fn object(&mut self, fields: &[Field]) -> String {
        let mut members = Vec::new();
        for (name, holds) in fields {
            let times = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 2][self.below(12)];
            for _ in 0..times {
                let value = self.value(*holds);
                members.push(format!("\"{name}\":{value}"));
            }
        }
        if self.below(16) == 15 {
            members.push(format!("\"nonsense\":{}", self.wild()));
        }
        format!("{{{}}}", members.join(","))
    }

    fn value(&mut self, holds: Holds) -> String {
        if self.below(12) == 11 {
            return self.wild();
        }
        match holds {
            Holds::One(texts) => self.of(texts).to_owned(),
            Holds::List(texts) => self.list(|choices| choices.of(texts).to_owned()),
            Holds::Objects(fields) => self.list(|choices| choices.object(fields)),
        }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> String) -> String {
        let count = [1, 2, 3, 0, 1, 2, 3, 40][self.below(8)];
        let items: Vec<_> = (0..count).map(|_| item(self)).collect();
        format!("[{}]", items.join(","))
    }

    fn wild(&mut self) -> String {
        match self.below(WILD.len() + 2).checked_sub(WILD.len()) {
            None => self.of(WILD).to_owned(),
            Some(0) => format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP)),
            Some(_) => format!("\"{}\"", "x".repeat(2_000)),
        }
    }
}

/// Bodies of a type: `check` is given each one that is taken.
pub(crate) fn bodies<T: DeserializeOwned>(
    input: &[u8],
    fields: &[Field],
    check: impl FnOnce(T, &mut Choices<'_>),
) {
    let mut choices = Choices::new(input);
    let body = choices.body(fields);
    if let Ok(taken) = extract::parse(&body) {
        check(taken, &mut choices);
    }
}

/// How many inputs came to something: a target that nothing gets through tests nothing.
#[derive(Default)]
pub(crate) struct Through(AtomicUsize);

impl Through {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || *self.0.get_mut() > 0, "nothing gets through");
    }
}
