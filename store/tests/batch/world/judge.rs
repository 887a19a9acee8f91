//! What a serial execution of the plans comes to, and whether the clients were told of nothing else.

use concordat_protocol::{
    Answer, Key, Record,
    etcd::{self, Op, OpAnswer, Target, TxnAnswer},
};
use concordat_store::{CommitError, batch::independent};

use super::{Request, World};
use crate::plans::{Shown, contents, shown};

impl World {
    /// What etcd did to a transaction, one plan after the other.
    pub(super) fn execute(&mut self, txn: &Request, answer: &TxnAnswer<Key, Record>) {
        let marker = txn
            .compares
            .iter()
            .find(|one| matches!(one.key, Key::Marker { .. }) && one.target == Target::ModRevision);
        // Of a refused batch its marker may have been as it expected: then its one plan did not hold, or something by
        // which several plans are bound, and none of these was tried.
        let several = tickets(txn).count() > 1;
        let expected = marker.is_none_or(|marker| match answer.answers.last() {
            _ if answer.held => true,
            Some(OpAnswer::Got(items)) => {
                items.first().is_some_and(|(_, item)| item.mod_revision == marker.value)
            }
            _ => false,
        });
        if !expected || several && !answer.held {
            return;
        }
        for ticket in tickets(txn).collect::<Vec<_>>() {
            self.executions += 1;
            let one = &mut self.submitted[ticket];
            one.repeatable |= marker.is_none() && !one.prepared.puts;
            one.executions.push((self.executions, shown(self.serial.txn(&one.prepared.txn))));
        }
    }

    /// An error says what no serial execution explains.
    pub(super) fn judge(&self) -> Result<(), String> {
        if contents(&self.etcd) != contents(&self.serial) {
            return Err(format!(
                "etcd holds {:?}, a serial execution {:?}",
                contents(&self.etcd),
                contents(&self.serial)
            ));
        }
        for (ticket, one) in self.submitted.iter().enumerate() {
            let held = one.executions.iter().filter(|(_, (held, _))| *held).count();
            if one.prepared.puts && held > 1 {
                return Err(format!("plan {ticket} was applied twice"));
            }
            match &one.result {
                None => return Err(format!("plan {ticket} was never answered")),
                Some(Ok(answer)) => {
                    if !one.executions.iter().any(|(_, shown)| agrees(shown, answer)) {
                        let executed = &one.executions;
                        return Err(format!(
                            "plan {ticket} was answered {answer:?}, serially it is {executed:?}"
                        ));
                    }
                }
                Some(Err(CommitError::Unknown(_))) => {}
                Some(Err(error)) if held > 0 => {
                    return Err(format!("plan {ticket} was answered {error}, and applied"));
                }
                Some(Err(_)) => {}
            }
        }
        self.in_order()
    }

    /// Of plans of one session that are not independent, the one submitted first is applied first.
    fn in_order(&self) -> Result<(), String> {
        let all = self.submitted.iter().enumerate();
        for (a, first) in all.clone() {
            for (b, second) in all.clone().skip(a + 1).filter(|(_, second)| second.client == first.client) {
                let (Some((last, _)), Some((early, _))) =
                    (first.executions.last(), second.executions.first())
                else {
                    continue;
                };
                let dependent = !independent(&first.prepared.footprint, &second.prepared.footprint);
                if last > early && dependent && !first.repeatable {
                    return Err(format!("plan {b} was applied out of order, before {a}"));
                }
            }
        }
        Ok(())
    }
}

/// Whether an execution shows what was answered; after what was asked for it may show guards of leases.
fn agrees((held, found): &Shown, answer: &Answer) -> bool {
    let reads =
        answer.reads.iter().map(|read| read.iter().map(|entry| (entry.key.clone(), entry.record.clone())));
    *held == answer.held && reads.zip(found).all(|(read, found)| read.eq(found.iter().cloned()))
}

/// The plans that a commit carries, in its order: side by side, or inside.
pub(super) fn tickets(txn: &Request) -> impl Iterator<Item = usize> + '_ {
    let of = |txn: &'_ Request| {
        let ticket = |compare: &etcd::Compare<Key>| match &compare.key {
            Key::Transaction(id) => id.as_str().strip_prefix("ticket-")?.parse().ok(),
            _ => None,
        };
        txn.compares.iter().filter_map(ticket).collect::<Vec<_>>()
    };
    let inside = txn.then.iter().flat_map(move |op| match op {
        Op::Txn(txn) => of(txn),
        _ => Vec::new(),
    });
    of(txn).into_iter().chain(inside)
}
