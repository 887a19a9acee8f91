//! Dead letters kept beside a queue: browsed, and put back.

use std::collections::BTreeSet;

use concordat_protocol::{
    Entry, Key, Range, Record,
    queue::{
        DeadLetter, Segment, SegmentId, Settings,
        location::{Location, offset},
        plans::{self, Append},
        publish::SEGMENT_BYTES,
    },
};

use super::{Inner, QueueEngine};
use crate::{api, definitions::Defined, failpoint, problem::Problem, spans::Span};

/// Dead letters read together, and put back by one plan: all of a queue's may be more than there is memory.
const TOGETHER: usize = 20;
/// Bytes of the dead letters of one answer: with more of them it ends.
const BROWSED: u64 = 4 << 20;
/// How often a plan is tried again that met with others at the same letters.
const ATTEMPTS: usize = 10;

/// A dead letter with where it was.
#[derive(Clone, Debug)]
pub struct DeadMessage {
    /// Partition it was published to.
    pub partition: u32,
    /// The offset it had there.
    pub offset: u64,
    /// The letter.
    pub letter: DeadLetter,
    key: Key,
    revision: i64,
}

impl DeadMessage {
    fn of(entry: Entry) -> Option<Self> {
        let (Key::Dead { partition, index, .. }, Record::Dead(letter)) = (&entry.key, entry.record) else {
            return None;
        };
        let (partition, offset) = (*partition, offset(letter.revision, *index));
        Some(Self { partition, offset, letter, key: entry.key, revision: entry.mod_revision })
    }

    /// Its id: that of the message.
    pub fn id(&self) -> String {
        api::queue::message_id(self.partition, self.offset)
    }
}

impl QueueEngine {
    /// The dead letters of a queue, oldest first: so many, or fewer where they are large. Browsing consumes nothing.
    ///
    /// # Errors
    /// 404 and 501 as the definition says, 503 when etcd does not answer.
    pub async fn dead(&self, queue: &str, max: usize) -> Result<Vec<DeadMessage>, Problem> {
        self.0.definitions.queue(queue)?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        let keys = self.0.dead_keys(queue).await?;
        for part in keys[..max.min(keys.len())].chunks(TOGETHER) {
            for letter in self.0.letters(part).await? {
                bytes += letter.letter.message.size();
                if bytes > BROWSED && !letters.is_empty() {
                    return Ok(letters);
                }
                letters.push(letter);
            }
        }
        Ok(letters)
    }

    /// Puts dead letters back into their queue as new messages, those of these ids or all; how many.
    ///
    /// # Errors
    /// 404 and 501 as the definition says, 503 when nothing is taken in or etcd does not answer: some may be put back
    /// by then.
    pub async fn redrive(&self, queue: &str, ids: Option<BTreeSet<String>>) -> Result<usize, Problem> {
        let defined = self.intake(queue)?;
        let (mut redriven, all) = (0, ids.as_ref().map_or(usize::MAX, BTreeSet::len));
        for _ in 0..ATTEMPTS {
            let mut found = false;
            for part in self.0.dead_keys(queue).await?.chunks(TOGETHER) {
                let mut letters = self.0.letters(part).await?;
                letters.retain(|dead| ids.as_ref().is_none_or(|ids| ids.contains(&dead.id())));
                found |= !letters.is_empty();
                for chunk in chunks(letters) {
                    redriven += self.0.put_back(queue, &defined, chunk).await?;
                }
            }
            if !found || redriven >= all {
                break;
            }
        }
        Ok(redriven)
    }
}

impl Inner {
    /// Where a queue's dead letters are, in the order in which they came to be.
    async fn dead_keys(&self, queue: &str) -> Result<Vec<Key>, Problem> {
        let range = Range::DeadLetters(queue.into());
        let (mut keys, _) = Span::read().awaits(self.store.list_keys(range)).await?;
        keys.sort_by_key(|(_, created, _)| *created);
        Ok(keys.into_iter().map(|(key, ..)| key).collect())
    }

    /// Those of them that are still there.
    async fn letters(&self, keys: &[Key]) -> Result<Vec<DeadMessage>, Problem> {
        let ranges = keys.iter().cloned().map(Range::One).collect();
        let answer = Span::read().awaits(self.store.read(ranges)).await?;
        Ok(answer.reads.into_iter().flatten().filter_map(DeadMessage::of).collect())
    }

    /// How many of them were put back: all, or none when another was at one of them.
    async fn put_back(
        &self,
        queue: &str,
        defined: &Defined<Settings>,
        letters: Vec<DeadMessage>,
    ) -> Result<usize, Problem> {
        let (count, now) = (letters.len(), self.store.clock().now().unix);
        let keys: Vec<_> = letters.iter().map(|dead| (dead.key.clone(), dead.revision)).collect();
        let bytes = letters.iter().map(|dead| dead.letter.message.size()).sum::<u64>() as u32;
        let messages = letters.into_iter().map(|dead| {
            let mut message = dead.letter.message;
            message.expires = now.saturating_add(defined.settings.retention_age);
            message
        });
        let session = self.store.session().id;
        let segment =
            SegmentId { session: session.clone(), number: self.numbers(), messages: count as u32, bytes };
        let append = Append {
            at: Location { queue: queue.into(), partition: 0, segment },
            definition: defined.create_revision,
            session,
            retention_age: defined.settings.retention_age,
        };
        let plan = plans::redrive(&append, &keys, Segment { messages: messages.collect() });
        failpoint!("queue-before-redrive");
        let answer = Span::commit("redrive").awaits(self.store.commit(plan)).await?;
        failpoint!("queue-after-redrive");
        Ok(if answer.held { count } else { 0 })
    }
}

/// Parts that one plan can put back.
fn chunks(letters: Vec<DeadMessage>) -> Vec<Vec<DeadMessage>> {
    let mut chunks: Vec<Vec<DeadMessage>> = Vec::new();
    let mut bytes = 0;
    for dead in letters {
        let size = dead.letter.message.size();
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < TOGETHER && bytes + size <= SEGMENT_BYTES => {
                bytes += size;
                chunk.push(dead);
            }
            _ => {
                bytes = size;
                chunks.push(vec![dead]);
            }
        }
    }
    chunks
}
