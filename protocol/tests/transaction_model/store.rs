//! The model of etcd that plans land on.

use super::*;

impl World {
    /// Runs a plan on etcd as the store does, and notes what the history must know.
    pub(super) fn commit(&mut self, plan: &Plan) -> Answer {
        let get = |ranges: &[Range]| ranges.iter().cloned().map(Op::Get).collect::<Vec<_>>();
        let mut then: Vec<Op<Key, Range, Record>> = plan
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, value, lease) => Op::Put {
                    key: key.clone(),
                    value: value.clone(),
                    lease: match lease {
                        Lease::Session(session) => session.as_str()[1..].parse().unwrap(),
                        _ => 0,
                    },
                },
                Write::Delete(range) => Op::Delete(range.clone()),
            })
            .collect();
        then.extend(get(&plan.reads));
        let txn = Txn { compares: plan.compares.clone(), then, or_else: get(&plan.otherwise) };
        let before = self.etcd.revision();
        let answer = self.etcd.txn(&txn).expect("a plan etcd would refuse whole");
        let revision = self.etcd.revision();
        self.wake(before);
        if answer.held {
            self.note(plan, revision);
        }
        let reads = answer
            .answers
            .into_iter()
            .filter_map(|answer| match answer {
                OpAnswer::Got(items) => Some(items.into_iter().map(|(key, item)| Entry {
                    key,
                    record: item.value,
                    create_revision: item.create_revision,
                    mod_revision: item.mod_revision,
                    lease: item.lease,
                })),
                _ => None,
            })
            .map(Iterator::collect)
            .collect();
        Answer { held: answer.held, revision, reads }
    }

    /// Whoever waits may find something new, if etcd has changed.
    pub(super) fn wake(&mut self, before: i64) {
        if self.etcd.revision() > before {
            let waits = self.pods.iter_mut().flatten().flat_map(|sidecar| sidecar.waits.values_mut());
            waits.for_each(|(_, changed)| *changed = true);
        }
    }

    fn note(&mut self, plan: &Plan, revision: i64) {
        for write in &plan.writes {
            match write {
                Write::Put(_, Record::Transaction(Transaction { decision: Some(decision), .. }), _)
                    if !self.history.decisions.iter().any(|(_, of)| of == decision) =>
                {
                    self.history.decisions.insert((revision, *decision));
                }
                Write::Put(Key::Answer { branch, .. }, Record::Answer(reply), _)
                    if reply.operation == Operation::Prepare =>
                {
                    let yes = matches!(reply.verdict, Verdict::Yes(_));
                    self.history.votes.insert((branch.clone(), revision, yes));
                }
                _ => {}
            }
        }
    }

    pub(super) fn entry(&self, key: &Key) -> Option<Entry> {
        self.etcd.get(key).map(|item| Entry {
            key: key.clone(),
            record: item.value.clone(),
            create_revision: item.create_revision,
            mod_revision: item.mod_revision,
            lease: item.lease,
        })
    }
}

/// Whether a compare looks whether a session lives.
pub(crate) fn on_life(compare: &Compare<Key>) -> bool {
    matches!(compare.key, Key::Session(_))
        && compare.target == Target::CreateRevision
        && compare.relation == Relation::Greater
}
