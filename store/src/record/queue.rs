//! Records of queues.

use concordat_protocol::queue;

use super::{Enumerated, Error, enumerated};

mod segment;

pub(super) use segment::encode_segment;

enumerated!(queue::Mode { WorkQueue = 1, PubSub = 2, Log = 3 });
enumerated!(queue::Ordering { None = 1, Key = 2 });
enumerated!(queue::OnFull { Refuse = 1, DropOldest = 2 });
enumerated!(queue::Stage { Waiting = 1, Delivered = 2, Acknowledged = 3, GivenUp = 4 });

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Settings {
    #[prost(int32, tag = "1")]
    mode: i32,
    #[prost(uint32, tag = "2")]
    partitions: u32,
    #[prost(int32, tag = "3")]
    ordering: i32,
    #[prost(uint64, tag = "4")]
    visibility: u64,
    #[prost(uint32, tag = "5")]
    max_deliveries: u32,
    #[prost(uint64, repeated, tag = "6")]
    backoff: Vec<u64>,
    #[prost(string, optional, tag = "7")]
    dead_letter_queue: Option<String>,
    #[prost(uint64, tag = "8")]
    dead_letter_retention: u64,
    #[prost(uint64, tag = "9")]
    retention_age: u64,
    #[prost(uint64, tag = "10")]
    retention_bytes: u64,
    #[prost(int32, tag = "11")]
    on_full: i32,
    #[prost(uint64, tag = "12")]
    max_message_bytes: u64,
    #[prost(uint64, tag = "13")]
    dedup_window: u64,
}

/// Encoded by [`encode_segment`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Segment {
    #[prost(message, repeated, tag = "1")]
    messages: Vec<Message>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Message {
    #[prost(bytes = "vec", tag = "1")]
    body: Vec<u8>,
    #[prost(string, tag = "2")]
    content_type: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(message, repeated, tag = "4")]
    headers: Vec<Header>,
    #[prost(uint64, tag = "5")]
    expires: u64,
    #[prost(uint64, tag = "6")]
    published: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// The fates by columns, each in the segment's order: written once a receive, so worth being small.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Progress {
    #[prost(int32, repeated, tag = "1")]
    stages: Vec<i32>,
    #[prost(uint32, repeated, tag = "2")]
    deliveries: Vec<u32>,
    /// Absent when all are 0, as most often.
    #[prost(uint64, repeated, tag = "3")]
    not_before: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Claim {
    #[prost(uint32, repeated, tag = "1")]
    places: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    deliveries: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeadLetter {
    #[prost(message, optional, tag = "1")]
    message: Option<Message>,
    #[prost(int64, tag = "2")]
    revision: i64,
    #[prost(uint32, tag = "3")]
    deliveries: u32,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(uint64, tag = "5")]
    at: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Dedup {
    #[prost(uint32, tag = "1")]
    partition: u32,
    #[prost(message, optional, tag = "2")]
    segment: Option<SegmentId>,
    #[prost(uint32, tag = "3")]
    index: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SegmentId {
    #[prost(string, tag = "1")]
    session: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint32, tag = "3")]
    messages: u32,
    #[prost(uint32, tag = "4")]
    bytes: u32,
}

impl From<&queue::Settings> for Settings {
    fn from(settings: &queue::Settings) -> Self {
        let queue::Settings {
            mode,
            partitions,
            ordering,
            visibility,
            max_deliveries,
            backoff,
            dead_letter_queue,
            dead_letter_retention,
            retention_age,
            retention_bytes,
            on_full,
            max_message_bytes,
            dedup_window,
        } = settings;
        Self {
            mode: mode.number(),
            partitions: *partitions,
            ordering: ordering.number(),
            visibility: *visibility,
            max_deliveries: *max_deliveries,
            backoff: backoff.clone(),
            dead_letter_queue: dead_letter_queue.as_ref().map(ToString::to_string),
            dead_letter_retention: *dead_letter_retention,
            retention_age: *retention_age,
            retention_bytes: *retention_bytes,
            on_full: on_full.number(),
            max_message_bytes: *max_message_bytes,
            dedup_window: *dedup_window,
        }
    }
}

impl TryFrom<Settings> for queue::Settings {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self, Error> {
        Ok(Self {
            mode: queue::Mode::of_number(settings.mode)?,
            partitions: settings.partitions,
            ordering: queue::Ordering::of_number(settings.ordering)?,
            visibility: settings.visibility,
            max_deliveries: settings.max_deliveries,
            backoff: settings.backoff,
            dead_letter_queue: settings.dead_letter_queue.map(Into::into),
            dead_letter_retention: settings.dead_letter_retention,
            retention_age: settings.retention_age,
            retention_bytes: settings.retention_bytes,
            on_full: queue::OnFull::of_number(settings.on_full)?,
            max_message_bytes: settings.max_message_bytes,
            dedup_window: settings.dedup_window,
        })
    }
}

impl From<Segment> for queue::Segment {
    fn from(Segment { messages }: Segment) -> Self {
        Self { messages: messages.into_iter().map(Into::into).collect() }
    }
}

impl From<&queue::Message> for Message {
    fn from(message: &queue::Message) -> Self {
        let queue::Message { body, content_type, key, headers, expires, published } = message;
        let header = |(name, value): &(String, String)| Header { name: name.clone(), value: value.clone() };
        Self {
            body: body.clone(),
            content_type: content_type.clone(),
            key: key.clone(),
            headers: headers.iter().map(header).collect(),
            expires: *expires,
            published: *published,
        }
    }
}

impl From<Message> for queue::Message {
    fn from(message: Message) -> Self {
        let Message { body, content_type, key, headers, expires, published } = message;
        let headers = headers.into_iter().map(|Header { name, value }| (name, value)).collect();
        Self { body, content_type, key, headers, expires, published }
    }
}

impl From<&queue::Progress> for Progress {
    fn from(queue::Progress { fates }: &queue::Progress) -> Self {
        let delayed = fates.iter().any(|fate| fate.not_before > 0);
        let not_before = fates.iter().filter(|_| delayed).map(|fate| fate.not_before);
        Self {
            stages: fates.iter().map(|fate| fate.stage.number()).collect(),
            deliveries: fates.iter().map(|fate| fate.deliveries).collect(),
            not_before: not_before.collect(),
        }
    }
}

impl TryFrom<Progress> for queue::Progress {
    type Error = Error;

    fn try_from(Progress { stages, deliveries, mut not_before }: Progress) -> Result<Self, Error> {
        if not_before.is_empty() {
            not_before.resize(stages.len(), 0);
        }
        if deliveries.len() != stages.len() || not_before.len() != stages.len() {
            return Err(Error::Inconsistent("the columns of a progress differ in length"));
        }
        let fate = |((stage, deliveries), not_before)| {
            Ok(queue::Fate { stage: queue::Stage::of_number(stage)?, deliveries, not_before })
        };
        let fates = stages.into_iter().zip(deliveries).zip(not_before);
        Ok(Self { fates: fates.map(fate).collect::<Result<_, Error>>()? })
    }
}

impl From<&queue::Claim> for Claim {
    fn from(queue::Claim { places }: &queue::Claim) -> Self {
        let (places, deliveries) = places.iter().copied().unzip();
        Self { places, deliveries }
    }
}

impl TryFrom<Claim> for queue::Claim {
    type Error = Error;

    fn try_from(Claim { places, deliveries }: Claim) -> Result<Self, Error> {
        if places.len() != deliveries.len() {
            return Err(Error::Inconsistent("the columns of a claim differ in length"));
        }
        Ok(Self { places: places.into_iter().zip(deliveries).collect() })
    }
}

impl From<&queue::DeadLetter> for DeadLetter {
    fn from(letter: &queue::DeadLetter) -> Self {
        let queue::DeadLetter { message, revision, deliveries, reason, at } = letter;
        Self {
            message: Some(message.into()),
            revision: *revision,
            deliveries: *deliveries,
            reason: reason.clone(),
            at: *at,
        }
    }
}

impl TryFrom<DeadLetter> for queue::DeadLetter {
    type Error = Error;

    fn try_from(letter: DeadLetter) -> Result<Self, Error> {
        let DeadLetter { message, revision, deliveries, reason, at } = letter;
        let message = message.ok_or(Error::Missing("message"))?.into();
        Ok(Self { message, revision, deliveries, reason, at })
    }
}

impl From<&queue::Dedup> for Dedup {
    fn from(queue::Dedup { partition, segment, index }: &queue::Dedup) -> Self {
        let queue::SegmentId { session, number, messages, bytes } = segment;
        let segment =
            SegmentId { session: session.to_string(), number: *number, messages: *messages, bytes: *bytes };
        Self { partition: *partition, segment: Some(segment), index: *index }
    }
}

impl TryFrom<Dedup> for queue::Dedup {
    type Error = Error;

    fn try_from(Dedup { partition, segment, index }: Dedup) -> Result<Self, Error> {
        let SegmentId { session, number, messages, bytes } = segment.ok_or(Error::Missing("segment"))?;
        let segment = queue::SegmentId { session: session.into(), number, messages, bytes };
        Ok(Self { partition, segment, index })
    }
}
