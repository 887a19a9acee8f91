//! Every plan of a queue, and what guards it.

use super::{
    Claim, DeadLetter, Dedup, Fate, Progress, Segment,
    location::{ClaimId, Location, definition},
};
use crate::{Key, Lease, Millis, Name, Plan, Range, SessionId};

/// An append of one segment to a partition, under the life of the queue's definition that the publisher knows: a
/// publisher with a stale definition writes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Append {
    /// Where.
    pub at: Location,
    /// Create revision of the queue's definition.
    pub definition: i64,
    /// The publishing sidecar.
    pub session: SessionId,
    /// `spec.retention.age`: etcd lets go of the segment after it, whoever lives.
    pub retention_age: Millis,
}

impl Append {
    /// Adds the append to a plan. `fates` tells of messages that wait for their time; `None` when none does.
    fn to(&self, plan: Plan, segment: Segment, fates: Option<Vec<Fate>>) -> Plan {
        let lease = Lease::Retention(self.session.clone(), self.retention_age);
        let mut plan = plan
            .same_life(definition(&self.at.queue), self.definition)
            .put(self.at.segment(), segment, lease.clone())
            .otherwise(definition(&self.at.queue));
        if let Some(fates) = fates {
            plan = plan.put(self.at.progress(), Progress { fates }, lease);
        }
        plan.alone = Some(self.at.lane());
        plan
    }
}

/// A message of a publish that is stored once however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Once {
    /// The producer's name for it.
    pub producer: Name,
    /// Its place in the segment.
    pub index: u32,
}

/// Publishes a segment. Refused, it has read the definition and then the dedup record of each of `once`.
pub fn publish(
    append: &Append,
    segment: Segment,
    fates: Option<Vec<Fate>>,
    dedup_window: Millis,
    once: &[Once],
) -> Plan {
    let mut plan = append.to(Plan::new(), segment, fates);
    let lease = Lease::Retention(append.session.clone(), dedup_window);
    for Once { producer, index } in once {
        let key = Key::Dedup { queue: append.at.queue.clone(), producer: producer.clone() };
        let (partition, segment) = (append.at.partition, append.at.segment.clone());
        plan = plan
            .absent(key.clone())
            .put(key.clone(), Dedup { partition, segment, index: *index }, lease.clone())
            .otherwise(key);
    }
    plan
}

/// Takes messages of a segment for delivery: exactly those that are handed out, counted before they are. Guarded by
/// the progress that the sidecar knows, so that no message is taken twice.
///
/// Held, it has read the segment when `read` is set. Refused: the definition, the progress, the claims.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Take<'a> {
    /// Where.
    pub at: &'a Location,
    /// Create revision of the queue's definition.
    pub definition: i64,
    /// Revision of the progress this follows, 0 for none.
    pub progress_at: i64,
    /// The fates with these deliveries counted.
    pub fates: Vec<Fate>,
    /// The claim.
    pub claim: &'a ClaimId,
    /// Place and delivery number of each message taken.
    pub places: Vec<(u32, u32)>,
    /// The segment's lease: its progress goes with it, neither before nor after.
    pub lease: Lease,
    /// Whether the messages are read as well.
    pub read: bool,
}

impl Take<'_> {
    /// The plan.
    pub fn plan(self) -> Plan {
        let (at, progress_at, read) = (self.at, self.progress_at, self.read);
        let plan = Plan::new()
            .same_life(definition(&at.queue), self.definition)
            .present(at.segment())
            .unchanged(at.progress(), progress_at)
            .otherwise(definition(&at.queue))
            .otherwise(at.progress())
            .otherwise(at.claims());
        let plan = self.with(plan);
        if read { plan.read(at.segment()) } else { plan }
    }

    /// Adds it to the plan that stores the segment: nobody else can have taken of it before.
    pub fn with(self, plan: Plan) -> Plan {
        let Self { at, claim, .. } = self;
        let session = claim.session.clone();
        plan.put(at.progress(), Progress { fates: self.fates }, self.lease).put(
            at.claim(claim),
            Claim { places: self.places },
            Lease::Session(session),
        )
    }
}

/// Where messages go that are given up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Burial {
    /// Beside the queue, for `spec.deadLetter.retention`.
    Beside(Millis),
    /// To another queue.
    Queue(Append),
}

/// Ends deliveries of a segment. Guarded by the progress that the sidecar knows and by every claim whose delivery
/// ends: a consumer that lost its claim changes nothing.
///
/// When every message is finished the segment goes, by deletes alone unless something is buried. Refused, it has read
/// the progress, the claims, the sidecar's session and, for a burial in another queue, that one's definition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Settlement<'a> {
    /// Where.
    pub at: &'a Location,
    /// The settling sidecar.
    pub session: &'a SessionId,
    /// Revision of the progress this follows, 0 for none.
    pub progress_at: i64,
    /// The claims whose deliveries end.
    pub guards: Vec<ClaimId>,
    /// Those of them with nothing left in delivery.
    pub ended: Vec<ClaimId>,
    /// The fates after it.
    pub fates: Vec<Fate>,
    /// The messages given up, by place.
    pub dead: Vec<(u32, DeadLetter)>,
    /// Where those go.
    pub burial: &'a Burial,
    /// The segment's lease, as in [`Take::lease`].
    pub lease: Lease,
}

impl Settlement<'_> {
    /// The plan.
    pub fn plan(self) -> Plan {
        let Self { at, session, .. } = self;
        let mut plan = Plan::new()
            .unchanged(at.progress(), self.progress_at)
            .otherwise(at.progress())
            .otherwise(at.claims())
            .otherwise(Key::Session(session.clone()));
        if self.progress_at == 0 {
            plan = plan.present(at.segment());
        }
        for claim in &self.guards {
            plan = plan.present(at.claim(claim));
        }
        if self.fates.iter().all(Fate::finished) {
            plan = plan.delete(at.segment()).delete(at.progress()).delete(at.claims());
        } else {
            for claim in &self.ended {
                plan = plan.delete(at.claim(claim));
            }
            plan = plan.put(at.progress(), Progress { fates: self.fates }, self.lease);
        }
        match self.burial {
            _ if self.dead.is_empty() => plan,
            Burial::Queue(append) => {
                let labelled = |letter: DeadLetter| letter.labelled(&at.queue, append.retention_age);
                let messages = self.dead.into_iter().map(|(_, letter)| labelled(letter)).collect();
                append.to(plan, Segment { messages }, None)
            }
            Burial::Beside(retention) => self.dead.into_iter().fold(plan, |plan, (place, letter)| {
                plan.put(at.dead(place), letter, Lease::Retention(session.clone(), *retention))
            }),
        }
    }
}

/// Puts dead letters back into their queue as new messages. `letters`: key and mod revision of each, `segment` their
/// messages. Refused, it has read the definition.
pub fn redrive(append: &Append, letters: &[(Key, i64)], segment: Segment) -> Plan {
    letters.iter().fold(append.to(Plan::new(), segment, None), |plan, (key, revision)| {
        plan.unchanged(key.clone(), *revision).delete(Range::One(key.clone()))
    })
}
