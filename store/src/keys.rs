//! The text of keys: the one module that builds and parses it.
//!
//! Keys are text, so that `etcdctl get --prefix` reads well. Every component is percent-encoded down to RFC 3986's
//! unreserved characters, so that none holds a `/`; every prefix that is ranged ends in `/`, so that `1` is never a
//! prefix of `10`. `-` alone stands for "nobody", so the text `-` is written `%2D`; an empty text is written `%`,
//! which nothing else is. A key has one text and no other is accepted: [`decode`] is the inverse of [`encode`].
//!
//! ```text
//! /concordat/<ns>/def/<kind>/<name>
//! /concordat/<ns>/session/<sid>
//! /concordat/<ns>/marker/<sid>/<name>
//! /concordat/<ns>/timeline
//! /concordat/<ns>/inbox/<app>/<sid or ->/work/<id>/<branch>
//! /concordat/<ns>/inbox/<app>/<sid>/answer/<id>/<branch>
//! /concordat/<ns>/tx/<id>
//! /concordat/<ns>/done/<id>
//! /concordat/<ns>/lock/<name>/<key>/holder
//! /concordat/<ns>/lock/<name>/<key>/waiter/<sid>/<counter>
//! /concordat/<ns>/lock/<name>/<key>/shadow/<sid>/<counter>
//! /concordat/<ns>/want/<sid>/<name>/<key>/<sid>
//! /concordat/<ns>/queue/<name>/live/seg/<partition>/<segment>
//! /concordat/<ns>/queue/<name>/live/ack/<partition>/<segment>
//! /concordat/<ns>/queue/<name>/live/claim/<partition>/<segment>/<sid>/<number>
//! /concordat/<ns>/queue/<name>/dead/<partition>/<segment>/<index>
//! /concordat/<ns>/queue/<name>/dedup/<producer>
//! /concordat/<ns>/stat/<kind>/<name>/<sid>
//! /concordat/-/epoch
//! ```
//! A `<counter>` has twenty digits, a `<partition>` at least five; a `<segment>` is `<sid>:<number>:<messages>:<bytes>`. What a key is comes
//! before its partition, so that every [`Range`] is one contiguous range of etcd's.

use std::{borrow::Cow, fmt::Write as _, str::Split};

use concordat_protocol::{Key, Kind, Name, Range, SessionId, queue::SegmentId};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What is percent-encoded: all but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ROOT: &str = "/concordat/";
const EPOCH: &str = "/concordat/-/epoch";
const NOBODY: &str = "-";
const DASH: &str = "%2D";
const EMPTY: &str = "%";

/// Why bytes are no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key of Concordat: {key:?}: {why}")]
pub struct Error {
    /// The bytes, as far as they are text.
    pub key: String,
    /// What is wrong with them.
    pub why: &'static str,
}

/// The bytes of a key in a namespace. [`Key::Epoch`] is in none: its bytes are the same for all.
pub fn encode(namespace: &str, key: &Key) -> Vec<u8> {
    let text = Text::new(namespace);
    match key {
        Key::Epoch => return EPOCH.into(),
        Key::Definition { kind, name } => text.literal("def").literal(kind_text(*kind)).text(name.as_str()),
        Key::Session(session) => text.literal("session").text(session.as_str()),
        Key::Marker { session, name } => text.literal("marker").text(session.as_str()).text(name.as_str()),
        Key::Work { app, session, transaction, branch } => text
            .literal("inbox")
            .text(app.as_str())
            .somebody(session.as_ref())
            .literal("work")
            .text(transaction.as_str())
            .text(branch.as_str()),
        Key::Answer { app, session, transaction, branch } => text
            .literal("inbox")
            .text(app.as_str())
            .text(session.as_str())
            .literal("answer")
            .text(transaction.as_str())
            .text(branch.as_str()),
        Key::Timeline => text.literal("timeline"),
        Key::Transaction(id) => text.literal("tx").text(id.as_str()),
        Key::Done(id) => text.literal("done").text(id.as_str()),
        Key::Holder { lock, key } => text.lock(lock, key).literal("holder"),
        Key::Waiter { lock, key, session, number } => {
            text.lock(lock, key).literal("waiter").text(session.as_str()).padded(*number)
        }
        Key::Shadow { lock, key, session, number } => {
            text.lock(lock, key).literal("shadow").text(session.as_str()).padded(*number)
        }
        Key::Want { holder, lock, key, session } => {
            text.wants(holder).text(lock.as_str()).text(key.as_str()).text(session.as_str())
        }
        Key::Segment { queue, partition, segment } => {
            text.queue(queue.as_str(), "live/seg").partition(*partition).segment(segment)
        }
        Key::Progress { queue, partition, segment } => {
            text.queue(queue.as_str(), "live/ack").partition(*partition).segment(segment)
        }
        Key::Claim { queue, partition, segment, session, number } => text
            .queue(queue.as_str(), "live/claim")
            .partition(*partition)
            .segment(segment)
            .text(session.as_str())
            .number(*number),
        Key::Dead { queue, partition, segment, index } => text
            .queue(queue.as_str(), "dead")
            .partition(*partition)
            .segment(segment)
            .number(u64::from(*index)),
        Key::Dedup { queue, producer } => text.queue(queue.as_str(), "dedup").text(producer.as_str()),
        Key::Stat { kind, name, session } => {
            text.literal("stat").literal(kind_text(*kind)).text(name.as_str()).text(session.as_str())
        }
    }
    .finish()
}

/// The key that the bytes are, in `namespace` or in none ([`Key::Epoch`]).
pub fn decode(namespace: &str, bytes: &[u8]) -> Result<Key, Error> {
    match decode_any(bytes)? {
        (Some(other), _) if other != namespace => Err(error(bytes, "it is of another namespace")),
        (_, key) => Ok(key),
    }
}

/// The key that the bytes are, and its namespace (`None` for [`Key::Epoch`]).
pub fn decode_any(bytes: &[u8]) -> Result<(Option<Cow<'_, str>>, Key), Error> {
    parse(bytes).map_err(|why| error(bytes, why))
}

/// The range as etcd takes it: from the first, inclusive, to the second, exclusive; an empty second means just the
/// first. What etcd finds in it comes in the order of the text, which is not that of [`Key`].
pub fn range(namespace: &str, range: &Range) -> (Vec<u8>, Vec<u8>) {
    let text = Text::new(namespace);
    let text = match range {
        Range::One(key) => return (encode(namespace, key), Vec::new()),
        Range::All => text,
        Range::Definitions => text.literal("def"),
        Range::Sessions => text.literal("session"),
        Range::Markers => text.literal("marker"),
        Range::Inbox(app) => text.literal("inbox").text(app.as_str()),
        Range::InboxOf(app, session) => text.literal("inbox").text(app.as_str()).somebody(session.as_ref()),
        Range::Answers(app, session, transaction) => text
            .literal("inbox")
            .text(app.as_str())
            .text(session.as_str())
            .literal("answer")
            .text(transaction.as_str()),
        Range::Transactions => text.literal("tx"),
        Range::Finished => text.literal("done"),
        Range::Lock(name) => text.literal("lock").text(name.as_str()),
        Range::LockKey(name, key) => text.lock(name, key),
        Range::Locks => text.literal("lock"),
        Range::Wants(session) => text.wants(session),
        Range::WantsOf(session, name, key) => text.wants(session).text(name.as_str()).text(key.as_str()),
        Range::Queue(name) => text.literal("queue").text(name.as_str()),
        Range::Live(name) => text.queue(name.as_str(), "live"),
        Range::Segments(name) => text.queue(name.as_str(), "live/seg"),
        Range::Progresses(name) => text.queue(name.as_str(), "live/ack"),
        Range::Claims(name) => text.queue(name.as_str(), "live/claim"),
        Range::ClaimsOf(name, partition, segment) => {
            text.queue(name.as_str(), "live/claim").partition(*partition).segment(segment)
        }
        Range::DeadLetters(name) => text.queue(name.as_str(), "dead"),
        Range::Stats(kind, name) => text.literal("stat").literal(kind_text(*kind)).text(name.as_str()),
        Range::AllStats => text.literal("stat"),
    };
    text.prefix()
}

/// The range of every key of every namespace, as [`range()`] answers it.
pub fn everything() -> (Vec<u8>, Vec<u8>) {
    until_next(ROOT.to_owned())
}

/// The namespace of whatever key this is, if it is in one, and from where on the keys of later ones are.
pub(crate) fn namespace(bytes: &[u8]) -> Option<(Option<String>, Vec<u8>)> {
    let component = std::str::from_utf8(bytes).ok()?.strip_prefix(ROOT)?.split('/').next()?;
    let (_, next) = until_next(format!("{ROOT}{component}/"));
    Some((text(component).ok().map(Cow::into_owned), next))
}

/// From a prefix that ends in `/` to the end of what begins with it.
fn until_next(prefix: String) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.clone().into_bytes();
    end.pop();
    end.push(b'/' + 1);
    (prefix.into_bytes(), end)
}

fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Transaction => "transaction",
        Kind::Lock => "lock",
        Kind::Queue => "queue",
    }
}

fn error(bytes: &[u8], why: &'static str) -> Error {
    Error { key: String::from_utf8_lossy(bytes).into_owned(), why }
}

/// A key or prefix in the making: each component followed by a `/`.
struct Text(String);

impl Text {
    fn new(namespace: &str) -> Self {
        let mut text = String::with_capacity(128);
        text.push_str(ROOT);
        Self(text).text(namespace)
    }
    /// A component of our own choice.
    fn literal(mut self, literal: &str) -> Self {
        self.0.push_str(literal);
        self.0.push('/');
        self
    }
    /// A component of somebody else's choice.
    fn text(mut self, text: &str) -> Self {
        match text {
            "" => self.0.push_str(EMPTY),
            NOBODY => self.0.push_str(DASH),
            text => self.0.extend(utf8_percent_encode(text, RESERVED)),
        }
        self.0.push('/');
        self
    }
    fn somebody(self, session: Option<&SessionId>) -> Self {
        match session {
            Some(session) => self.text(session.as_str()),
            None => self.literal(NOBODY),
        }
    }
    fn number(mut self, number: u64) -> Self {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{number}/");
        self
    }
    /// A number whose order is that of its text.
    fn padded(mut self, number: u64) -> Self {
        let _ = write!(self.0, "{number:020}/");
        self
    }
    fn lock(self, lock: &Name, key: &Name) -> Self {
        self.literal("lock").text(lock.as_str()).text(key.as_str())
    }
    fn wants(self, holder: &SessionId) -> Self {
        self.literal("want").text(holder.as_str())
    }
    fn queue(self, queue: &str, part: &str) -> Self {
        self.literal("queue").text(queue).literal(part)
    }
    fn partition(mut self, partition: u32) -> Self {
        let _ = write!(self.0, "{partition:05}/");
        self
    }
    fn segment(mut self, SegmentId { session, number, messages, bytes }: &SegmentId) -> Self {
        self = self.text(session.as_str());
        self.0.pop();
        let _ = write!(self.0, ":{number}:{messages}:{bytes}/");
        self
    }
    fn finish(mut self) -> Vec<u8> {
        self.0.pop();
        self.0.into_bytes()
    }
    fn prefix(self) -> (Vec<u8>, Vec<u8>) {
        until_next(self.0)
    }
}

/// What is wrong with a key.
type Why = &'static str;

fn parse(bytes: &[u8]) -> Result<(Option<Cow<'_, str>>, Key), Why> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    if text == EPOCH {
        return Ok((None, Key::Epoch));
    }
    let rest = text.strip_prefix(ROOT).ok_or("it does not begin with /concordat/")?;
    let mut parts = Parts(rest.split('/'));
    let namespace = parts.text()?;
    let key = match parts.raw()? {
        "def" => Key::Definition { kind: parts.kind()?, name: parts.id()? },
        "session" => Key::Session(parts.id()?),
        "marker" => Key::Marker { session: parts.id()?, name: parts.id()? },
        "timeline" => Key::Timeline,
        "inbox" => parts.inbox()?,
        "tx" => Key::Transaction(parts.id()?),
        "done" => Key::Done(parts.id()?),
        "lock" => {
            let (lock, key) = (parts.id()?, parts.id()?);
            match parts.raw()? {
                "holder" => Key::Holder { lock, key },
                "waiter" => Key::Waiter { lock, key, session: parts.id()?, number: parts.padded()? },
                "shadow" => Key::Shadow { lock, key, session: parts.id()?, number: parts.padded()? },
                _ => return Err("no such part of a lock"),
            }
        }
        "want" => {
            Key::Want { holder: parts.id()?, lock: parts.id()?, key: parts.id()?, session: parts.id()? }
        }
        "queue" => parts.queue()?,
        "stat" => Key::Stat { kind: parts.kind()?, name: parts.id()?, session: parts.id()? },
        _ => return Err("no such part of a namespace"),
    };
    match parts.0.next() {
        None => Ok((Some(namespace), key)),
        Some(_) => Err("it has too many components"),
    }
}

/// The components that are left.
struct Parts<'a>(Split<'a, char>);

impl<'a> Parts<'a> {
    fn raw(&mut self) -> Result<&'a str, Why> {
        self.0.next().ok_or("it has too few components")
    }
    fn text(&mut self) -> Result<Cow<'a, str>, Why> {
        self.raw().and_then(text)
    }
    fn id<T: for<'b> From<&'b str>>(&mut self) -> Result<T, Why> {
        Ok(T::from(&*self.text()?))
    }
    fn kind(&mut self) -> Result<Kind, Why> {
        let text = self.raw()?;
        [Kind::Transaction, Kind::Lock, Kind::Queue]
            .into_iter()
            .find(|kind| kind_text(*kind) == text)
            .ok_or("no such kind")
    }
    fn inbox(&mut self) -> Result<Key, Why> {
        let (app, somebody, what) = (self.id()?, self.raw()?, self.raw()?);
        let session = match somebody {
            NOBODY => None,
            somebody => Some(SessionId::from(&*text(somebody)?)),
        };
        let (transaction, branch) = (self.id()?, self.id()?);
        match (what, session) {
            ("work", session) => Ok(Key::Work { app, session, transaction, branch }),
            ("answer", Some(session)) => Ok(Key::Answer { app, session, transaction, branch }),
            ("answer", None) => Err("an answer for nobody"),
            _ => Err("no such part of an inbox"),
        }
    }
    fn queue(&mut self) -> Result<Key, Why> {
        let (queue, part) = (self.id()?, self.raw()?);
        let live = match part {
            "dedup" => return Ok(Key::Dedup { queue, producer: self.id()? }),
            "live" => Some(self.raw()?),
            _ => None,
        };
        let (partition, segment) = (self.partition()?, self.segment()?);
        match live.unwrap_or(part) {
            "seg" if live.is_some() => Ok(Key::Segment { queue, partition, segment }),
            "ack" if live.is_some() => Ok(Key::Progress { queue, partition, segment }),
            "claim" if live.is_some() => Ok(Key::Claim {
                queue,
                partition,
                segment,
                session: self.id()?,
                number: number(self.raw()?)?,
            }),
            "dead" if live.is_none() => {
                Ok(Key::Dead { queue, partition, segment, index: number(self.raw()?)? })
            }
            _ => Err("no such part of a queue"),
        }
    }
    fn padded(&mut self) -> Result<u64, Why> {
        let digits = self.raw()?;
        if digits.len() != 20 {
            return Err("a counter that is not of twenty digits");
        }
        match digits.trim_start_matches('0') {
            "" => Ok(0),
            digits => number(digits),
        }
    }
    fn partition(&mut self) -> Result<u32, Why> {
        let digits = self.raw()?;
        match digits.len() {
            0..5 => Err("a partition of less than five digits"),
            // Here alone zeros lead: they are padding.
            5 => match digits.trim_start_matches('0') {
                "" => Ok(0),
                digits => number(digits),
            },
            _ => number(digits),
        }
    }
    fn segment(&mut self) -> Result<SegmentId, Why> {
        const SHAPE: Why = "a segment is not of the form session:number:messages:bytes";
        let mut fields = self.raw()?.split(':');
        let mut field = || fields.next().ok_or(SHAPE);
        let segment = SegmentId {
            session: SessionId::from(&*text(field()?)?),
            number: number(field()?)?,
            messages: number(field()?)?,
            bytes: number(field()?)?,
        };
        if fields.next().is_some() { Err(SHAPE) } else { Ok(segment) }
    }
}

/// The text that a component encodes, if it does so in the one way there is.
fn text(component: &str) -> Result<Cow<'_, str>, Why> {
    match component {
        EMPTY => return Ok(Cow::Borrowed("")),
        DASH => return Ok(Cow::Borrowed(NOBODY)),
        "" => return Err("an empty component"),
        NOBODY => return Err("nobody where somebody is named"),
        _ => {}
    }
    let text = percent_decode_str(component).decode_utf8().map_err(|_| "a component is not UTF-8")?;
    let rest = utf8_percent_encode(&text, RESERVED)
        .try_fold(component, |rest, chunk| rest.strip_prefix(chunk))
        .filter(|rest| rest.is_empty());
    if rest.is_none() {
        return Err("a component is not encoded as it should be");
    }
    Ok(text)
}

/// A number in decimal, without sign or leading zeros.
fn number<T: std::str::FromStr>(digits: &str) -> Result<T, Why> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || (digits.len() > 1 && digits.starts_with('0')) {
        return Err("a number is not plain decimal");
    }
    digits.parse().map_err(|_| "a number is missing or too large")
}
