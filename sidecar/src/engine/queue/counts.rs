//! What there is to know of a queue.

use concordat_protocol::{
    Entry, Key, Millis, Range, Record,
    queue::{Fate, Message, counts::Counts},
};

use super::QueueEngine;
use crate::{problem::Problem, spans::Span};

/// A queue at one revision of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The revision.
    pub revision: i64,
    /// How many messages stand where.
    pub counts: Counts,
    /// When the oldest message was published that may still be delivered, milliseconds since the Unix epoch.
    pub oldest: Option<Millis>,
}

impl QueueEngine {
    /// Counts a queue's messages.
    ///
    /// # Errors
    /// 404 and 501 as the definition says, 503 when etcd does not answer.
    pub async fn inspect(&self, queue: &str) -> Result<Inspection, Problem> {
        self.0.definitions.queue(queue)?;
        let store = &self.0.store;
        let name = || queue.into();
        let records =
            Span::read().awaits(store.read(vec![Range::Progresses(name()), Range::Claims(name())])).await?;
        let revision = records.revision;
        let mut keys = Span::read().awaits(store.list_keys_at(Range::Segments(name()), revision)).await?;
        let oldest = keys.iter().min_by_key(|(_, created, _)| *created).map(|(key, ..)| key.clone());
        keys.extend(Span::read().awaits(store.list_keys_at(Range::DeadLetters(name()), revision)).await?);
        let counts = Counts::of(
            keys.iter().map(|(key, ..)| key),
            records.reads.iter().flatten(),
            store.clock().now().unix,
        );
        let oldest = match oldest {
            Some(key) => self.oldest(key, records.reads.iter().flatten()).await?,
            None => None,
        };
        Ok(Inspection { revision, counts, oldest })
    }

    /// When the first message that is not finished of a segment was published.
    async fn oldest<'a>(
        &self,
        key: Key,
        records: impl Iterator<Item = &'a Entry>,
    ) -> Result<Option<Millis>, Problem> {
        let Key::Segment { partition, segment, .. } = &key else { return Ok(None) };
        let (partition, segment) = (*partition, segment.clone());
        let fates = records.into_iter().find_map(|entry| match (&entry.key, &entry.record) {
            (Key::Progress { partition: of, segment: id, .. }, Record::Progress(progress))
                if *of == partition && *id == segment =>
            {
                Some(&progress.fates)
            }
            _ => None,
        });
        let fates = fates.cloned().unwrap_or_default();
        let read = Span::read().awaits(self.0.store.read(vec![key.into()])).await?;
        let Some(Entry { record: Record::Segment(body), .. }) =
            read.reads.first().and_then(|found| found.first())
        else {
            return Ok(None);
        };
        let open = |(place, message): (usize, &Message)| {
            (!fates.get(place).is_some_and(Fate::finished)).then_some(message.published)
        };
        Ok(body.messages.iter().enumerate().filter_map(open).min())
    }
}
