//! Queues: messages published in segments, handed out under claims, settled by compare-and-swap.
//!
//! - [`publish`] gathers one sidecar's messages into segments.
//! - [`delivery`] hands a queue's messages to one sidecar's consumers and settles them.
//! - [`plans`] holds every plan and its guards, [`invariant`] what must hold.

pub mod counts;
pub mod delivery;
pub mod invariant;
pub mod location;
pub mod plans;
pub mod publish;

use std::fmt;

use crate::{Answer, Millis, Name, SessionId};

/// What a queue gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Each message to one consumer, acknowledged.
    WorkQueue,
    /// Each message to every subscriber.
    PubSub,
    /// A partitioned log.
    Log,
}

/// What is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ordering {
    /// Nothing.
    None,
    /// Messages of one key.
    Key,
}

/// What becomes of a publish to a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnFull {
    /// It is refused.
    Refuse,
    /// The oldest messages go.
    DropOldest,
}

/// Settings of a Queue; durations in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settings {
    /// `spec.mode`.
    pub mode: Mode,
    /// `spec.partitions`.
    pub partitions: u32,
    /// `spec.ordering`.
    pub ordering: Ordering,
    /// `spec.visibility`: how long a delivery lasts.
    pub visibility: Millis,
    /// `spec.maxDeliveries`.
    pub max_deliveries: u32,
    /// `spec.backoff`: the wait after the first, second, … failed delivery; the last one repeats.
    pub backoff: Vec<Millis>,
    /// `spec.deadLetter.queue`; empty: dead letters are kept beside the queue.
    pub dead_letter_queue: Option<Name>,
    /// `spec.deadLetter.retention`.
    pub dead_letter_retention: Millis,
    /// `spec.retention.age`.
    pub retention_age: Millis,
    /// `spec.retention.bytes`.
    pub retention_bytes: u64,
    /// `spec.onFull`.
    pub on_full: OnFull,
    /// `spec.maxMessageBytes`.
    pub max_message_bytes: u64,
    /// `spec.dedupWindow`.
    pub dedup_window: Millis,
}

impl Settings {
    /// Whether the mode works yet; others are refused, never replaced.
    pub fn supported(&self) -> bool {
        self.mode == Mode::WorkQueue && self.ordering == Ordering::None
    }
}

/// A segment's name: unique, and telling its size, so that a listing of keys alone counts messages and bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The publisher's sidecar.
    pub session: SessionId,
    /// The sidecar's own counter.
    pub number: u64,
    /// How many messages it holds.
    pub messages: u32,
    /// How many bytes they are, see [`Message::size`].
    pub bytes: u32,
}

impl fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}x{}", self.session, self.number, self.messages)
    }
}

/// One message as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// The body.
    pub body: Vec<u8>,
    /// Its content type.
    pub content_type: String,
    /// `Message-Key`, empty for none.
    pub key: String,
    /// Further headers to hand on: CloudEvents attributes, `traceparent`.
    pub headers: Vec<(String, String)>,
    /// Not delivered after, milliseconds since the Unix epoch: by its `Ttl` or the queue's `retention.age`.
    pub expires: Millis,
    /// When it was published, milliseconds since the Unix epoch.
    pub published: Millis,
}

impl Message {
    /// Its bytes: body, key, content type and headers.
    pub fn size(&self) -> u64 {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        (self.body.len() + self.key.len() + self.content_type.len() + headers) as u64
    }
}

/// Messages published together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// In the order in which they were published.
    pub messages: Vec<Message>,
}

/// Where one message stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It was never handed out, or came back.
    #[default]
    Waiting,
    /// It is in the hands of a consumer, as long as a claim that names this delivery lives.
    Delivered,
    /// It is finished: a consumer acknowledged it.
    Acknowledged,
    /// It is finished: it is a dead letter, or expired.
    GivenUp,
}

/// What became of one message of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fate {
    /// Where it stands.
    pub stage: Stage,
    /// How often it was handed out.
    pub deliveries: u32,
    /// Not handed out before, milliseconds since the Unix epoch; 0 for at once.
    pub not_before: Millis,
}

impl Fate {
    /// Whether the message is never handed out again.
    pub fn finished(&self) -> bool {
        matches!(self.stage, Stage::Acknowledged | Stage::GivenUp)
    }

    /// Whether the last delivery that it may have has begun. One that came back unseen may have another.
    pub fn is_used_up(&self, max_deliveries: u32) -> bool {
        self.stage == Stage::Delivered && self.deliveries >= max_deliveries
    }
}

/// What became of a segment's messages. Absent while nothing has: the publisher puts one only for delayed messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Progress {
    /// One for each message, in the segment's order.
    pub fates: Vec<Fate>,
}

/// Messages in delivery: places in the segment, rising, with the number of the delivery that each is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Place and delivery number.
    pub places: Vec<(u32, u32)>,
}

/// A message that was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetter {
    /// The message.
    pub message: Message,
    /// Revision of its segment: with its place the offset.
    pub revision: i64,
    /// How often it was handed out.
    pub deliveries: u32,
    /// Why it was given up, in the consumer's words or ours.
    pub reason: String,
    /// When, milliseconds since the Unix epoch.
    pub at: Millis,
}

impl DeadLetter {
    /// The message as it goes on to another queue, telling where it comes from and why. It lives there as long as what
    /// is published there.
    pub fn labelled(self, queue: &Name, retention_age: Millis) -> Message {
        let mut message = self.message;
        message.expires = self.at.saturating_add(retention_age);
        for (name, value) in [
            ("concordat-dead-letter-queue", queue.to_string()),
            ("concordat-dead-letter-reason", self.reason),
            ("concordat-dead-letter-deliveries", self.deliveries.to_string()),
        ] {
            message.headers.retain(|(present, _)| present != name);
            message.headers.push((name.to_owned(), value));
        }
        message
    }
}

/// What became of a plan, as its machine learns it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// etcd answered.
    Answered(Answer),
    /// Nothing was written and nothing will be.
    NotApplied,
    /// Nobody can tell.
    Unknown,
}

/// That a message was stored: a repeat is answered from here. Its revision is the record's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dedup {
    /// Partition.
    pub partition: u32,
    /// Segment.
    pub segment: SegmentId,
    /// Place in it.
    pub index: u32,
}
