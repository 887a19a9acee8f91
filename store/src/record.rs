//! The bytes of records: protobuf in a versioned envelope.
//!
//! The messages are declared here by prost's derives, one module a column; a number once given to a field or a value
//! is never given to another. Fields that a newer build added are skipped; what would change the meaning of the rest
//! needs a new [`VERSION`], which older builds refuse. Golden files under `store/tests/golden` hold the format: when
//! one changes the format changed.

use concordat_protocol::{
    Definition as Def, Record, Settings,
    record::{Epoch as OfEpoch, Marker as OfMarker},
    session,
    timeline::{Lost as OfLost, Timeline as OfTimeline},
};
use prost::Message as _;

mod lock;
mod queue;
mod transaction;

/// The format that this build writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Why bytes are no record that this build understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not protobuf of our messages.
    #[error("not a record: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Written in another format, most likely by a newer build.
    #[error("a record of format version {0}; this build knows version {VERSION}")]
    Version(u32),
    /// Of a kind that only a newer build knows, or of none.
    #[error("a record of a kind that this build does not know")]
    Kind,
    /// A value that only a newer build knows, or none where there must be one.
    #[error("{what} has the value {value}, which this build does not know")]
    Value {
        /// The type of the value.
        what: &'static str,
        /// The number it is written as.
        value: i32,
    },
    /// A part is not there.
    #[error("a record without its {0}")]
    Missing(&'static str),
    /// Parts that contradict each other.
    #[error("an inconsistent record: {0}")]
    Inconsistent(&'static str),
}

/// The bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    let body = match record {
        // Alone hot and large: encoded from where it is.
        Record::Segment(segment) => return queue::encode_segment(VERSION, segment),
        Record::Definition(definition) => Body::Definition(definition.into()),
        Record::Session(session) => Body::Session(session.into()),
        Record::Marker(OfMarker) => Body::Marker(Marker {}),
        Record::Work(work) => Body::Work(work.into()),
        Record::Answer(reply) => Body::Answer(reply.into()),
        Record::Transaction(transaction) => Body::Transaction(transaction.into()),
        Record::Done(finished) => Body::Done(finished.into()),
        Record::Holder(holder) => Body::Holder(holder.into()),
        Record::Waiter(waiter) => Body::Waiter(waiter.into()),
        Record::Shadow(shadow) => Body::Shadow(shadow.into()),
        Record::Want(want) => Body::Want(want.into()),
        Record::Progress(progress) => Body::Progress(progress.into()),
        Record::Claim(claim) => Body::Claim(claim.into()),
        Record::Dead(letter) => Body::Dead(letter.into()),
        Record::Dedup(dedup) => Body::Dedup(dedup.into()),
        Record::Stat(stat) => Body::Stat(stat.into()),
        Record::Epoch(OfEpoch { holder }) => Body::Epoch(Epoch { holder: holder.clone() }),
        Record::Timeline(timeline) => Body::Timeline(timeline.into()),
    };
    Envelope { version: VERSION, body: Some(body) }.encode_to_vec()
}

/// The record that the bytes are.
pub fn decode(bytes: &[u8]) -> Result<Record, Error> {
    let Envelope { version, body } = match Envelope::decode(bytes) {
        Ok(envelope) => envelope,
        // What another format made of the rest is its own business.
        Err(error) => return Err(other_version(bytes).unwrap_or(Error::Malformed(error))),
    };
    if version != VERSION {
        return Err(Error::Version(version));
    }
    Ok(match body.ok_or(Error::Kind)? {
        Body::Definition(definition) => Record::Definition(definition.try_into()?),
        Body::Session(session) => Record::Session(session.into()),
        Body::Marker(Marker {}) => Record::Marker(OfMarker),
        Body::Work(work) => Record::Work(work.try_into()?),
        Body::Answer(reply) => Record::Answer(reply.try_into()?),
        Body::Transaction(transaction) => Record::Transaction(transaction.try_into()?),
        Body::Done(finished) => Record::Done(finished.try_into()?),
        Body::Holder(holder) => Record::Holder(holder.into()),
        Body::Waiter(waiter) => Record::Waiter(waiter.try_into()?),
        Body::Shadow(shadow) => Record::Shadow(shadow.try_into()?),
        Body::Want(want) => Record::Want(want.into()),
        Body::Segment(segment) => Record::Segment(segment.into()),
        Body::Progress(progress) => Record::Progress(progress.try_into()?),
        Body::Claim(claim) => Record::Claim(claim.try_into()?),
        Body::Dead(letter) => Record::Dead(letter.try_into()?),
        Body::Dedup(dedup) => Record::Dedup(dedup.try_into()?),
        Body::Stat(stat) => Record::Stat(stat.into()),
        Body::Epoch(Epoch { holder }) => Record::Epoch(OfEpoch { holder }),
        Body::Timeline(timeline) => Record::Timeline(timeline.into()),
    })
}

/// The version alone, when it is not ours.
fn other_version(bytes: &[u8]) -> Option<Error> {
    let Versioned { version } = Versioned::decode(bytes).ok()?;
    (version != VERSION).then_some(Error::Version(version))
}

/// What every format of every version begins with.
#[derive(Clone, PartialEq, prost::Message)]
struct Versioned {
    #[prost(uint32, tag = "1")]
    version: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(oneof = "Body", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "2")]
    Definition(Definition),
    #[prost(message, tag = "3")]
    Session(Session),
    #[prost(message, tag = "4")]
    Marker(Marker),
    #[prost(message, tag = "5")]
    Work(transaction::Work),
    #[prost(message, tag = "6")]
    Answer(transaction::Reply),
    #[prost(message, tag = "7")]
    Transaction(transaction::Transaction),
    #[prost(message, tag = "8")]
    Done(transaction::Finished),
    #[prost(message, tag = "9")]
    Holder(lock::Holder),
    #[prost(message, tag = "10")]
    Segment(queue::Segment),
    #[prost(message, tag = "11")]
    Progress(queue::Progress),
    #[prost(message, tag = "12")]
    Claim(queue::Claim),
    #[prost(message, tag = "13")]
    Dead(queue::DeadLetter),
    #[prost(message, tag = "14")]
    Dedup(queue::Dedup),
    #[prost(message, tag = "15")]
    Stat(Stat),
    #[prost(message, tag = "16")]
    Epoch(Epoch),
    #[prost(message, tag = "17")]
    Waiter(lock::Waiter),
    #[prost(message, tag = "18")]
    Shadow(lock::Shadow),
    #[prost(message, tag = "19")]
    Timeline(Timeline),
    #[prost(message, tag = "20")]
    Want(lock::Want),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Definition {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(int64, tag = "2")]
    generation: i64,
    #[prost(oneof = "OfKind", tags = "3, 4, 5")]
    settings: Option<OfKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OfKind {
    #[prost(message, tag = "3")]
    Transaction(transaction::Settings),
    #[prost(message, tag = "4")]
    Lock(lock::Settings),
    #[prost(message, tag = "5")]
    Queue(queue::Settings),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Session {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(string, tag = "2")]
    app: String,
    #[prost(bool, tag = "3")]
    accepts: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Marker {}

#[derive(Clone, PartialEq, prost::Message)]
struct Stat {
    #[prost(message, repeated, tag = "1")]
    counters: Vec<Counter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Counter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Epoch {
    #[prost(string, tag = "1")]
    holder: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Timeline {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    cluster: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(int64, tag = "4")]
    offset: i64,
    #[prost(message, optional, tag = "5")]
    lost: Option<Lost>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Lost {
    #[prost(string, tag = "1")]
    why: String,
    #[prost(int64, tag = "2")]
    raised: i64,
}

/// A type of a few values, each written as a number of its own; 0 is none of them, so that a value that is not there
/// is noticed.
trait Enumerated: Sized {
    fn number(self) -> i32;
    fn of_number(number: i32) -> Result<Self, Error>;
}

macro_rules! enumerated {
    ($type:ty { $($variant:ident = $number:literal),+ $(,)? }) => {
        impl crate::record::Enumerated for $type {
            fn number(self) -> i32 {
                match self { $(Self::$variant => $number),+ }
            }
            fn of_number(number: i32) -> Result<Self, crate::record::Error> {
                match number {
                    $($number => Ok(Self::$variant),)+
                    value => Err(crate::record::Error::Value { what: stringify!($type), value }),
                }
            }
        }
    };
}
use enumerated;

impl From<&Def> for Definition {
    fn from(Def { uid, generation, settings }: &Def) -> Self {
        let settings = match settings {
            Settings::Transaction(settings) => OfKind::Transaction(settings.into()),
            Settings::Lock(settings) => OfKind::Lock(settings.into()),
            Settings::Queue(settings) => OfKind::Queue(settings.into()),
        };
        Self { uid: uid.clone(), generation: *generation, settings: Some(settings) }
    }
}

impl TryFrom<Definition> for Def {
    type Error = Error;

    fn try_from(Definition { uid, generation, settings }: Definition) -> Result<Self, Error> {
        let settings = match settings.ok_or(Error::Missing("settings"))? {
            OfKind::Transaction(settings) => Settings::Transaction(settings.try_into()?),
            OfKind::Lock(settings) => Settings::Lock(settings.try_into()?),
            OfKind::Queue(settings) => Settings::Queue(settings.try_into()?),
        };
        Ok(Self { uid, generation, settings })
    }
}

impl From<&session::Session> for Session {
    fn from(session::Session { pod, app, accepts }: &session::Session) -> Self {
        Self { pod: pod.clone(), app: app.to_string(), accepts: *accepts }
    }
}

impl From<Session> for session::Session {
    fn from(Session { pod, app, accepts }: Session) -> Self {
        Self { pod, app: app.into(), accepts }
    }
}

impl From<&OfTimeline> for Timeline {
    fn from(OfTimeline { epoch, cluster, index, offset, lost }: &OfTimeline) -> Self {
        let lost = lost.as_ref().map(|OfLost { why, raised }| Lost { why: why.clone(), raised: *raised });
        Self { epoch: *epoch, cluster: *cluster, index: *index, offset: *offset, lost }
    }
}

impl From<Timeline> for OfTimeline {
    fn from(Timeline { epoch, cluster, index, offset, lost }: Timeline) -> Self {
        let lost = lost.map(|Lost { why, raised }| OfLost { why, raised });
        Self { epoch, cluster, index, offset, lost }
    }
}

impl From<&session::Stat> for Stat {
    fn from(session::Stat { counters }: &session::Stat) -> Self {
        let counter = |(name, value): &(String, u64)| Counter { name: name.clone(), value: *value };
        Self { counters: counters.iter().map(counter).collect() }
    }
}

impl From<Stat> for session::Stat {
    fn from(Stat { counters }: Stat) -> Self {
        Self { counters: counters.into_iter().map(|Counter { name, value }| (name, value)).collect() }
    }
}
