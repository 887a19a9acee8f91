//! Totals over sidecars that come and go.

use std::collections::BTreeMap;

use concordat_crds::DistributedTransactionStatus;
use concordat_protocol::{
    SessionId,
    session::{Stat, counter},
};

/// How many transactions committed and aborted. A sidecar counts from its start and its count goes with its session,
/// so what is added here is by how much each count rose since it was last looked at. What finished while no operator
/// looked and no sidecar that saw it still lives is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Finished by commit.
    pub committed: u64,
    /// Finished by abort.
    pub aborted: u64,
    last: Option<BTreeMap<SessionId, (u64, u64)>>,
}

impl Totals {
    /// Takes in the counts of all live sidecars. The first time, when it is not known how much of them the status
    /// includes already, the totals are the status's or the counts', whichever are larger.
    pub fn look<'a>(
        &mut self,
        status: Option<&DistributedTransactionStatus>,
        stats: impl IntoIterator<Item = (&'a SessionId, &'a Stat)>,
    ) {
        let counts: BTreeMap<SessionId, (u64, u64)> = stats
            .into_iter()
            .map(|(session, stat)| {
                (session.clone(), (stat.get(counter::COMMITTED), stat.get(counter::ABORTED)))
            })
            .collect();
        match &self.last {
            Some(last) => {
                for (session, (committed, aborted)) in &counts {
                    let (before_committed, before_aborted) = last.get(session).copied().unwrap_or_default();
                    self.committed += committed.saturating_sub(before_committed);
                    self.aborted += aborted.saturating_sub(before_aborted);
                }
            }
            None => {
                let shown = |count: Option<u64>| count.unwrap_or_default();
                let (committed, aborted) =
                    counts.values().fold((0, 0), |(a, b), (committed, aborted)| (a + committed, b + aborted));
                self.committed = committed.max(shown(status.and_then(|status| status.committed)));
                self.aborted = aborted.max(shown(status.and_then(|status| status.aborted)));
            }
        }
        self.last = Some(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(totals: &mut Totals, status: (u64, u64), counts: &[(&str, u64, u64)]) -> (u64, u64) {
        let status = DistributedTransactionStatus {
            committed: Some(status.0),
            aborted: Some(status.1),
            ..DistributedTransactionStatus::default()
        };
        let stats: Vec<(SessionId, Stat)> = counts
            .iter()
            .map(|(session, committed, aborted)| {
                let counters = vec![("aborted".into(), *aborted), ("committed".into(), *committed)];
                ((*session).into(), Stat { counters })
            })
            .collect();
        totals.look(Some(&status), stats.iter().map(|(session, stat)| (session, stat)));
        (totals.committed, totals.aborted)
    }

    #[test]
    fn what_a_session_counted_stays_when_it_is_gone() {
        let mut totals = Totals::default();
        assert_eq!(look(&mut totals, (0, 0), &[("a", 5, 1)]), (5, 1));
        assert_eq!(look(&mut totals, (5, 1), &[("a", 7, 1), ("b", 2, 2)]), (9, 3));
        assert_eq!(look(&mut totals, (9, 3), &[("b", 3, 2)]), (10, 3));
        assert_eq!(look(&mut totals, (10, 3), &[]), (10, 3));
    }

    #[test]
    fn an_operator_that_starts_goes_on_from_the_status_and_never_falls_behind_the_sidecars() {
        assert_eq!(look(&mut Totals::default(), (100, 4), &[("a", 5, 9)]), (100, 9));
        let mut totals = Totals::default();
        look(&mut totals, (100, 4), &[("a", 5, 1)]);
        assert_eq!(look(&mut totals, (100, 4), &[("a", 6, 1)]), (101, 4));
    }

    #[test]
    fn a_status_that_lags_does_not_count_twice() {
        let mut totals = Totals::default();
        look(&mut totals, (0, 0), &[("a", 5, 0)]);
        look(&mut totals, (0, 0), &[("a", 8, 0)]);
        assert_eq!(look(&mut totals, (0, 0), &[("a", 8, 0)]), (8, 0));
    }
}
