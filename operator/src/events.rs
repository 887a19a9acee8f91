//! Events: what changed for the people who own an object, told once.

use concordat_crds::conditions::{ABORTED, COMMITTED, DEAD_LETTERS, READY, STUCK, reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

/// Longest note that the API server takes, in bytes.
const NOTE_LIMIT: usize = 1024;

/// The events to tell when conditions change: that an object stands otherwise, that its transaction is decided, that
/// something waits for a person. Conditions that come and go in normal work tell nothing.
pub fn changes(previous: &[Condition], now: &[Condition]) -> Vec<Event> {
    now.iter()
        .filter(|condition| {
            let before = previous.iter().find(|before| before.type_ == condition.type_);
            before.is_none_or(|before| before.status != condition.status || before.reason != condition.reason)
        })
        .filter_map(of_condition)
        .collect()
}

fn of_condition(condition: &Condition) -> Option<Event> {
    let holds = condition.status == "True";
    let (type_, reason) = match condition.type_.as_str() {
        READY if holds || condition.reason == reason::DELETING => (EventType::Normal, &condition.reason),
        READY => (EventType::Warning, &condition.reason),
        COMMITTED if holds => (EventType::Normal, &condition.type_),
        ABORTED | STUCK | DEAD_LETTERS if holds => (EventType::Warning, &condition.type_),
        _ => return None,
    };
    Some(event(type_, reason, &condition.message))
}

/// An event; a note that is too long is cut.
pub fn event(type_: EventType, reason: &str, note: &str) -> Event {
    let mut end = note.len().min(NOTE_LIMIT);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note[..end].to_owned()),
        action: "Reconcile".into(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    fn told(previous: &[Condition], now: &[Condition]) -> Vec<(EventType, String)> {
        changes(previous, now).into_iter().map(|event| (event.type_, event.reason)).collect()
    }

    #[test]
    fn what_changed_is_told_once() {
        let ready = condition("Ready", "True", "Accepted", "");
        assert_eq!(told(&[], std::slice::from_ref(&ready)), [(EventType::Normal, "Accepted".into())]);
        assert!(told(std::slice::from_ref(&ready), std::slice::from_ref(&ready)).is_empty());
        let message = condition("Ready", "True", "Accepted", "said otherwise");
        assert!(told(&[ready], &[message]).is_empty());
    }

    #[test]
    fn each_condition_is_told_as_what_it_is() {
        for (type_, status, reason, expected) in [
            ("Ready", "True", "Accepted", Some((EventType::Normal, "Accepted"))),
            ("Ready", "False", "Invalid", Some((EventType::Warning, "Invalid"))),
            ("Ready", "False", "ModeNotSupported", Some((EventType::Warning, "ModeNotSupported"))),
            ("Ready", "False", "StoreUnavailable", Some((EventType::Warning, "StoreUnavailable"))),
            ("Ready", "False", "Deleting", Some((EventType::Normal, "Deleting"))),
            ("Committed", "True", "Decided", Some((EventType::Normal, "Committed"))),
            ("Committed", "False", "Decided", None),
            ("Aborted", "True", "Decided", Some((EventType::Warning, "Aborted"))),
            ("Stuck", "True", "ParticipantRefused", Some((EventType::Warning, "Stuck"))),
            ("Stuck", "False", "Progressing", None),
            ("DeadLetters", "True", "DeliveriesExhausted", Some((EventType::Warning, "DeadLetters"))),
            ("Contended", "True", "Waiters", None),
            ("Draining", "True", "MessagesLeft", None),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(type_, reason)| (type_, reason.to_owned())).collect();
            assert_eq!(told(&[], &[condition(type_, status, reason, "")]), expected, "{type_}={status}");
        }
    }

    #[test]
    fn a_note_is_never_longer_than_the_api_server_takes() {
        let long = condition("Ready", "False", "Invalid", &format!("x{}", "é".repeat(2_000)));
        let note = changes(&[], &[long]).remove(0).note.unwrap();
        assert_eq!(note.len(), 1023);
    }
}
