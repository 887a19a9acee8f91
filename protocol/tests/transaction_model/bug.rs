//! Planted bugs: what the machines would be without one of their guards.

use concordat_protocol::{Key, Plan, Range, Record, SessionId, Write, transaction::Operation};

use super::world::on_life;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    DecisionWithoutCompare,
    AnswerNotGuardedByItsItem,
    VoteNotGuardedByTheTransaction,
    WorkForTheDead,
    MoveNotRecorded,
    MoveNotGuardedByItsItem,
    FormerInboxesNotRead,
    ReadBeforeTheSwap,
    AdoptionOnTheEventAlone,
    FinishedWhileAnItemLives,
}

impl Bug {
    /// Breaks a plan on its way to etcd.
    pub(crate) fn plant(self, plan: &mut Plan, own: &SessionId) {
        let puts = |want: fn(&Key, &Record) -> bool| {
            plan.writes.iter().any(|write| matches!(write, Write::Put(key, record, _) if want(key, record)))
        };
        let votes = puts(
            |_, record| matches!(record, Record::Answer(reply) if reply.operation == Operation::Prepare),
        );
        let answers = puts(|_, record| matches!(record, Record::Answer(_)));
        let decides = puts(|_, record| matches!(record, Record::Transaction(of) if of.decision.is_some()));
        let asks = puts(|key, _| matches!(key, Key::Work { .. }));
        let moves = asks
            && plan.writes.iter().any(|write| matches!(write, Write::Delete(Range::One(Key::Work { .. }))));
        match self {
            Self::DecisionWithoutCompare if decides => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Transaction(_)));
            }
            Self::AnswerNotGuardedByItsItem if answers => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Work { .. }));
            }
            Self::VoteNotGuardedByTheTransaction if votes => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Transaction(_)));
            }
            Self::WorkForTheDead if asks => plan.compares.retain(|compare| !on_life(compare)),
            Self::MoveNotRecorded if moves && !decides => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Transaction(_)));
                plan.writes.retain(|write| !matches!(write, Write::Put(Key::Transaction(_), ..)));
            }
            Self::MoveNotGuardedByItsItem if moves && !decides => {
                plan.compares.retain(|compare| !matches!(compare.key, Key::Work { .. }));
            }
            Self::FormerInboxesNotRead => {
                plan.reads.retain(|range| !matches!(range, Range::Answers(_, session, _) if session != own));
            }
            _ => {}
        }
    }
}
